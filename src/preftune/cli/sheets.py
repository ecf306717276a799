"""The page of all methods, docs/methods.md: a table and a fact sheet each, from signatures, docstrings and `known_as`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..types import PreftuneError
from .output import number

HEADER = """# Methods

What every method is, reads and takes, where it comes from, and what other code calls it. Written from the methods' own docstrings
and signatures by `make docs`: edit those. `preftune show METHOD` prints the same with all that the docstrings say, and
`preftune from-trl` turns a configuration of TRL into a command.

In formulas, column 0 of `logp` and `logratio` = log pi - log pi_ref is the preferred response; nats per response, summed over
its tokens. "Not" warns of what goes by the same name or is easily mistaken for it.
"""
SECTION = re.compile(r"(Reads|Gives|Limits|Not|Source) {2,}(.*)")


def sections(doc: str) -> dict[str, str]:
    """A docstring by its sections, each in one line; "" has what stands before the first, as it is laid out."""
    found: dict[str, list[str]] = {"": []}
    here = ""
    for line in doc.splitlines():
        begins = SECTION.match(line)
        if begins:
            here, line = begins[1], begins[2]
        elif here and line.strip() and not line.startswith(" "):
            here = ""
        found.setdefault(here, []).append(line.strip() if here else line)
    return {name: (" " if name else "\n").join(lines).strip() for name, lines in found.items()}


def write(path: Path) -> None:
    """Write the page."""
    if path.suffix != ".md" or not path.parent.is_dir():
        raise PreftuneError(f"--docs was given {path}, needed a .md file in a folder that exists; for instance --docs docs/methods.md")
    path.write_text(page(), encoding="utf-8")


def page() -> str:
    """The text of the page."""
    from .show import catalogue, describe

    listed = {name: (facts, describe(name, {})) for name, facts in catalogue().items()}
    rows = [
        [f"[{name}](#{name})", facts["about"], _data(sheet), _reference(sheet), _arxiv(sheet)] for name, (facts, sheet) in listed.items()
    ]
    parts = [HEADER, table(["method", "in one line", "a batch holds", "reference", "source"], rows)]
    return "\n".join([*parts, "", *(fact_sheet(name, facts["aliases"], sheet) for name, (facts, sheet) in listed.items())])


def fact_sheet(name: str, aliases: str, sheet: Mapping[str, Any]) -> str:
    """One method."""
    lines = [f"## {name}", "", sheet["source"], "", sheet["about"], ""]
    for objective, doc in sheet["formulas"].items():
        title, _, formula = sections(doc)[""].partition("\n\n")
        lines += [f"`{objective}`: {' '.join(title.split())}", "", *(["```text", formula, "```", ""] if formula else [])]
    if sheet["hyperparameters"]:
        rows = [[f"`{key}`", str(one["default"]), one["takes"]] for key, one in sheet["hyperparameters"].items()]
        lines += [table(["hyperparameter", "default", "takes"], rows), ""]
    lines += [f"- **Batch**: {_data(sheet)}" + "".join(f"; {word}" for word in _besides(sheet))]
    parts = sheet["composition"]
    lines += [f"- **Composition**: {parts['collect']} x {parts['objective']} x {parts['reference']} x {parts['update']}, {_when(parts)}"]
    if sheet["recipe"]:
        lines += [f"- **Recommends**: {', '.join(f'{key} = {value}' for key, value in sheet['recipe'].items())}"]
    for word, section in (("Limits", "Limits"), ("Not", "Not")):
        several = len(sheet["formulas"]) > 1
        said = {one: sections(doc).get(section) for one, doc in sheet["formulas"].items()}
        lines += [f"- **{word}**{f' (`{one}`)' if several else ''}: {text}" for one, text in said.items() if text]
    lines += [f"- **Said when it runs**: {note}" for note in sheet["notes"]]
    if sheet["relatives"]:
        lines += [f"- **Relatives**: {', '.join(f'[{other}](#{other})' for other in sheet['relatives'])}"]
    if aliases:
        lines += [f"- **Also**: {', '.join(aliases.split())}"]
    if sheet["known_as"]:
        lines += ["", "You may know it as", "", table(["in", "its name", "here"], [list(one.values()) for one in sheet["known_as"]])]
    return "\n".join(lines).rstrip() + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(columns), ["---"] * len(columns), *cells])


def _data(sheet: Mapping[str, Any]) -> str:
    """ "ranked pairs with other_scores; prefer where given"."""
    needs = sheet["needs"]
    responses = needs["responses per prompt"]
    ranked = "ranked " if "ranked" in needs["labels"] else ""
    kinds = {1: "single responses", 2: f"{ranked}pairs", "K": f"{ranked}lists"}
    labels = ", ".join(label for label in needs["labels"] if label != "ranked")
    words = kinds.get(responses, f"{responses} {ranked}responses") + (f" with {labels}" if labels else "")
    return words + (f"; {', '.join(needs['reads where given'])} where given" if needs["reads where given"] else "")


def _besides(sheet: Mapping[str, Any]) -> list[str]:
    """What scoring, judging and normalising have to provide."""
    needs = sheet["needs"]
    words = {"a judge": "a judge labels it", "the whole batch at once": "its rows are coupled: the loss sees the whole batch"}
    found = [text for key, text in words.items() if needs[key]]
    found += [f"further roles: {', '.join(needs['further roles'])}"] if needs["further roles"] else []
    found += [f"scores carry {', '.join(needs['computed besides'])}"] if needs["computed besides"] else []
    return found + ([f"finite up to log-ratios of {number(needs['log-ratios up to'])}"] if needs["log-ratios up to"] < 1000 else [])


def _reference(sheet: Mapping[str, Any]) -> str:
    return str(sheet["composition"]["reference"]) if sheet["needs"]["a reference"] else "none"


def _when(parts: Mapping[str, Any]) -> str:
    return {"run": "on given rows", "round": "rows collected by rounds", "step": "rows collected at every step"}[
        parts["rows are collected every"]
    ]


def _arxiv(sheet: Mapping[str, Any]) -> str:
    found = re.search(r"arXiv:(\d{4}\.\d{5})", sheet["source"])
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else ""
