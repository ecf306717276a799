"""preftune show: what a method is, where it comes from, what it takes and what it needs."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..types import Method, PreftuneError
from .options import Json, Set, pairs
from .output import number, print_json, print_table

CLAUSE = 30  # characters; shorter ones are a name before a colon
INSISTS = {"simpo": {"gamma_beta_ratio": "0.5"}}  # what a method has no default for, so that its sheet can be written


def show(
    method: Annotated[str | None, typer.Argument(help="A method's name, or package.module:function; without it the list of all.")] = None,
    setting: Set = None,
    docs: Annotated[Path | None, typer.Option(help="Write the page of all methods to this Markdown file.")] = None,
    json: Json = False,
) -> None:
    """Describe a method: formula, source, hyperparameters, what it needs, its traps, relatives and names elsewhere."""
    if docs is not None:
        from .sheets import write

        write(docs)
        return
    if method is None:
        listed = catalogue()
        if json:
            print_json(listed)
        else:
            print_table(
                ["method", "hyperparameters", "in one line"],
                [[name, facts["hyperparameters"], facts["about"]] for name, facts in listed.items()],
            )
            print("\npreftune show METHOD says more; preftune copy METHOD FILE gives you the method's file to change.")
        return
    facts = describe(method, pairs(setting or []))
    if json:
        print_json(facts)
    else:
        _print(facts)


def catalogue() -> dict[str, dict[str, str]]:
    """Every shipped method: its hyperparameters with their defaults, the first sentence about it, its other names."""
    from ..methods import ALIASES, METHODS
    from ..registry import signature_of

    return {
        name: {
            "hyperparameters": " ".join(f"{one.name}={number(one.default)}" for one in signature_of(function).values()),
            "about": _first_sentence(function),
            "aliases": " ".join(alias for alias, target in ALIASES.items() if target == name),
        }
        for name, function in METHODS.items()
    }


def describe(name: str, settings: dict[str, str]) -> dict[str, Any]:
    """All that `show METHOD` prints, as plain values."""
    from ..api import prepare
    from ..methods import METHODS
    from ..registry import REQUIRED, resolve_method, signature_of, words

    function = resolve_method(name)
    facts: dict[str, Any] = {
        "method": name,
        "source": inspect.getdoc(sys.modules[function.__module__]) or "",
        "about": inspect.getdoc(function) or "",
        "hyperparameters": {
            one.name: {"default": "(required)" if one.default is REQUIRED else one.default, "takes": words(one.annotation)}
            for one in signature_of(function).values()
        },
        "relatives": relatives(function),
        "known_as": known_as(function),
        "file": inspect.getsourcefile(function),
    }
    try:
        return facts | composition(prepare(name, settings).method)
    except PreftuneError as error:  # a method may insist on a value; what it says then is worth printing
        if settings:
            raise
        own = next((own for own, one in METHODS.items() if one is function), "")
        if own not in INSISTS:
            return facts | {"composition": {"with its defaults": str(error)}}
        return facts | composition(prepare(name, INSISTS[own]).method)


def known_as(function: Callable[..., Method]) -> list[dict[str, str]]:
    """What other code calls the method: {"in", "name", "here"}."""
    from ..methods import METHODS
    from ..methods.known_as import KNOWN_AS
    from .trl.losses import names_in_trl

    own = [name for name, one in METHODS.items() if one is function]
    found = [{"in": "TRL", "name": there, "here": here} for name in own for there, here in names_in_trl(name)]
    return found + [{"in": known.library, "name": known.name, "here": known.here} for name in own for known in KNOWN_AS.get(name, ())]


def composition(method: Method) -> dict[str, Any]:
    """The four parts of a method, the formulas of its objective, what it needs and what it recommends."""
    from ..types import needs_of, parts_of
    from .sheets import sections

    needs = needs_of(method.objective)
    objectives = list(parts_of(method.objective))
    docs = {one.__name__: inspect.getdoc(one) or "" for one in objectives or [_maker(method.update)]}  # or of the rule without gradients
    return {
        "composition": {
            "collect": name_of(method.collect),
            "objective": " + ".join(one.__name__ for one in objectives) or "none",
            "reference": name_of(method.reference),
            "update": name_of(method.update),
            "rows are collected every": method.collect_every,
        },
        "formulas": docs,
        "traps": {name: sections(doc)["Not"] for name, doc in docs.items() if "Not" in sections(doc)},
        "needs": {
            "responses per prompt": method.columns or needs.columns,
            "labels": list(needs.labels),
            "reads where given": list(needs.optional),
            "a reference": needs.reference,
            "a judge": not method.offline,
            "further roles": list(method.roles),
            "computed besides": [*needs.wants, *(f"head {name} ({head.size})" for name, head in method.heads.items())],
            "the whole batch at once": needs.batch,
            "log-ratios up to": needs.domain,
        },
        "recipe": dict(method.recipe),
        "notes": list(method.notes),
    }


def name_of(part: Any) -> str:
    """The name of a collector, reference or update with the arguments that it was given."""
    if isinstance(part, partial):
        return f"{part.func.__name__}({', '.join(f'{key}={value}' for key, value in part.keywords.items())})"
    maker = part.__qualname__.partition(".<locals>")[0]  # soft(alpha) returns a function of its own
    given = inspect.getclosurevars(part).nonlocals
    return f"{maker}({', '.join(f'{key}={value}' for key, value in given.items())})" if given else str(maker)


def _maker(rule: Any) -> Any:
    """The function of its module that made an update rule, or the rule itself."""
    return getattr(inspect.getmodule(rule), rule.__qualname__.partition(".<locals>")[0], rule)


def relatives(function: Callable[..., Method]) -> list[str]:
    """Methods that this one's description names, or whose description names it."""
    from ..methods import METHODS

    def named(text: str, name: str) -> bool:
        return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text.replace("_", "-"), re.IGNORECASE) is not None

    own = [name for name, one in METHODS.items() if one is function]
    about = _text(function)
    return [
        name
        for name, other in METHODS.items()
        if other is not function and (named(about, name) or any(named(_text(other), mine) for mine in own))
    ]


def _text(function: Callable[..., Any]) -> str:
    return f"{inspect.getdoc(sys.modules[function.__module__])}\n{inspect.getdoc(function)}"


def _first_sentence(function: Callable[..., Any]) -> str:
    """Up to the first full stop, colon or semicolon at the end of a clause that says something."""
    text = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    ends = [found.start() for found in re.finditer(r"[.;:] |\.$", text)]
    return text[: next((end for end in ends if end >= CLAUSE), len(text))].rstrip(".")


def _print(facts: dict[str, Any]) -> None:
    print(f"{facts['method']}\n\n{facts['source']}\n\n{facts['about']}\n")
    print_table(
        ["hyperparameter", "default", "takes"],
        [[name, str(one["default"]), one["takes"]] for name, one in facts["hyperparameters"].items()],
    )
    for title in ("composition", "needs", "recipe"):
        if facts.get(title):
            print(f"\n{title}")
            print_table(["", ""], [[key, _say(value)] for key, value in facts[title].items()], header=False)
    for note in facts.get("notes", ()):
        print(f"\nnote: {note}")
    for name, formula in facts.get("formulas", {}).items():
        print(f"\n{name}\n" + "\n".join(f"    {line}".rstrip() for line in formula.splitlines()))
    if facts["known_as"]:
        print("\nyou may know it as")
        print_table(["in", "its name", "here"], [list(one.values()) for one in facts["known_as"]])
    if facts["relatives"]:
        print(f"\nrelatives: {', '.join(facts['relatives'])}")
    print(f"\nfile: {facts['file']}")


def _say(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
