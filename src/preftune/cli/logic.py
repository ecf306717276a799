"""preftune logic: a preference as a formula, its loss, and how losses entail one another."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..types import PreftuneError
from .options import Json, pairs
from .output import number, print_json, print_table, write

if TYPE_CHECKING:
    from ..logic.structure import Structure

AT = {"w": 0.3, "l": 0.2, "rw": 0.25, "rl": 0.35, "m": 0.5}  # where rho is shown if nothing is said
SHOWN = 16  # worlds in the table


def logic(
    formula: Annotated[str | None, typer.Argument(help="A formula over w, l, rw, rl, such as 'l -> w', or a known loss's name.")] = None,
    given: Annotated[str | None, typer.Option(help="What holds in the cases that count.")] = None,
    both: Annotated[str | None, typer.Option(help="What counts for the winning and for the losing side.")] = None,
    decompile: Annotated[str | None, typer.Option(help="A ratio instead of a formula, such as 'w*(1 - l)/(l*(1 - w))'.")] = None,
    compare: Annotated[tuple[str, str] | None, typer.Option(help="Two formulas or names: which one entails the other?")] = None,
    lattice: Annotated[Path | None, typer.Option(help="Draw the known losses, and the formula, by entailment: .svg or .html.")] = None,
    at: Annotated[list[str] | None, typer.Option("--at", help="atom=probability where the loss is shown; may be repeated.")] = None,
    json: Json = False,
) -> None:
    """A preference written as a formula: its loss, its ratio, and what it entails. Without arguments the known losses."""
    from ..logic import structure as structures
    from ..logic.known import KNOWN, resolve
    from ..logic.text import ATOMS, LONG

    p = {**AT, **probabilities({LONG.get(name, name): value for name, value in pairs(at or [], "--at").items()})}
    extra = [name for name in p if name not in ATOMS]
    ways = {"a formula": formula, "--decompile": decompile, "--compare": compare}
    said = [name for name, value in ways.items() if value is not None]
    if len(said) > 1 or (formula is None and (given or both)) or (compare and lattice):
        raise PreftuneError(
            f"{' and '.join(said or ['no formula'])} came with other options, needed a formula (with --given and --both), --decompile or "
            "--compare alone; --lattice goes with the first two"
        )
    chosen = None
    if formula is not None:
        chosen = resolve(formula, given, both, extra)
    elif decompile is not None:
        chosen = structures.decompile(decompile, extra)
    if compare:
        facts = comparison(compare, [resolve(one, extra=extra) for one in compare])
    else:
        facts = describe(chosen, p) if chosen else {"known": {name: entry(name) for name in KNOWN}}
    if lattice:
        facts["lattice"] = draw(lattice, chosen)
    if json:
        print_json(facts)
    elif compare:
        print(facts["sentence"])
    elif chosen:
        tell(facts)
    elif not lattice:
        print_table(["loss", "formula", "ratio"], [[name, one["formula"], one["ratio"]] for name, one in facts["known"].items()])
        print()
        print_table(["loss", "is the registry's"], [[name, line] for name, one in facts["known"].items() for line in one["registry"]])
    if lattice and not json:
        print(f"{len(facts['lattice']['losses'])} losses, {len(facts['lattice']['lines'])} lines, written to {lattice}")


def probabilities(texts: Mapping[str, str]) -> dict[str, float]:
    """Probabilities strictly between 0 and 1."""
    from ..registry import Setting, parse

    found = {name: parse(text, Setting(name, 0.5, float)) for name, text in texts.items()}
    for name, value in found.items():
        if not 0 < value < 1:
            raise PreftuneError(f"--at {name} is {value}, needed a probability above 0 and below 1; for instance --at {name}=0.3")
    return found


def entry(name: str) -> dict[str, Any]:
    """A known loss as it is listed."""
    from ..logic.known import KNOWN

    one = KNOWN[name]
    return {
        "formula": str(one.structure),
        "ratio": one.structure.ratio,
        "about": one.about,
        "registry": [str(equal) for equal in one.equals],
    }


def describe(one: Structure, p: Mapping[str, float]) -> dict[str, Any]:
    """All that is said of a structure; rho and its slopes are computed as in training."""
    import torch

    from ..logic.known import KNOWN, named
    from ..logic.structure import covers
    from ..objectives.logic import compiled, log_ratio
    from ..types import needs_of

    labels = [label for _, label in one.worlds]
    same, alike = named(one)
    lines = covers({"": one} | {name: other.structure for name, other in KNOWN.items() if name not in same})
    logp = {name: torch.tensor([p[name]], dtype=torch.float64).log().requires_grad_() for name in one.atoms}
    rho = log_ratio(one, logp)
    slopes = torch.autograd.grad(rho.sum(), list(logp.values()), allow_unused=True) if rho.requires_grad else ()
    core, given, both = one.clauses
    facts = {
        "formula": core,
        "given": given,
        "both": both,
        "ratio": one.ratio,
        "worlds": {label: labels.count(label) for label in ("win", "lose", "both", "none")},
        "table": [{**world, "side": label} for world, label in one.worlds],
        "known": same,
        "same value": alike,
        "entails": [high for low, high in lines if not low],
        "entailed by": [low for low, high in lines if not high],
        "registry": [str(equal) for name in (*same, *alike) for equal in KNOWN[name].equals],
        "at": {name: p[name] for name in one.atoms},
        "rho": rho.item(),
        "slopes": {name: 0.0 if slope is None else slope.item() for name, slope in zip(logp, slopes)},
    }
    margin = -math.log(p["m"]) if "m" in one.reduced.atoms else None
    try:
        objective = compiled(one, margin=margin)
    except PreftuneError as error:  # a structure may have a loss that nothing can learn from; the reason is worth printing
        return {**facts, "trains": str(error)}
    clauses = {"given": given if given != "true" else None, "both": both if both != "false" else None}
    settings = {"formula": same[0]} if same else {"formula": core, **clauses}
    settings |= {"margin": None if margin is None else f"{margin:.4g}"}
    given_settings = [f"--set {shlex.quote(f'{name}={value}')}" for name, value in settings.items() if value is not None]
    return {**facts, "reference": needs_of(objective).reference, "trains": " ".join(["preftune train logic", *given_settings])}


def tell(facts: Mapping[str, Any]) -> None:
    """Print what `describe` found."""
    worlds, where = facts["worlds"], ", ".join(f"{name} = {value:g}" for name, value in facts["at"].items())
    print_table(
        ["", ""],
        [
            ["formula", facts["formula"]],
            *([name, facts[name]] for name, nothing in (("given", "true"), ("both", "false")) if facts[name] != nothing),
            ["ratio", facts["ratio"]],
            ["worlds", f"{sum(worlds.values())}: " + ", ".join(f"{n} {label}" for label, n in worlds.items())],
            ["known as", ", ".join(facts["known"]) or "none of the known losses"],
            *(
                [["same value as", ", ".join(facts["same value"]) + " (other tables, common factors cancel)"]]
                if facts["same value"]
                else []
            ),
            *([way, ", ".join(facts[way])] for way in ("entails", "entailed by") if facts[way]),
            *([["in the registry" if i == 0 else "", line] for i, line in enumerate(facts["registry"])]),
            [f"at {where}", f"rho = {number(facts['rho'])}"],
            ["slopes of rho", ", ".join(f"{number(slope)} in log {name}" for name, slope in facts["slopes"].items()) or "none"],
            *([["reference", "kept" if facts["reference"] else "none"]] if "reference" in facts else []),
            ["train with" if "reference" in facts else "cannot train", facts["trains"]],
        ],
        header=False,
    )
    print()
    names = list(facts["at"])
    print_table(
        [*names, "side"],
        [[*("true" if row[name] else "false" for name in names), row["side"]] for row in facts["table"][:SHOWN]],
    )
    if len(facts["table"]) > SHOWN:
        print(f"and {len(facts['table']) - SHOWN} more (--json has all)")


def comparison(names: tuple[str, str], pair: list[Structure]) -> dict[str, Any]:
    """How two structures are related, in a sentence and as data, with points that show it where they are incomparable."""
    from ..logic.known import KNOWN
    from ..logic.structure import apart, relation

    one, other = pair
    a, b = ({name.lower(): name for name in KNOWN}.get(name.lower(), repr(name)) for name in names)
    found = relation(one, other)
    facts: dict[str, Any] = {"a": a, "b": b, "relation": found, "same value": one.equals(other), "points": []}
    if found == "incomparable" and not facts["same value"]:
        for name, point in zip((a, b), apart(one, other)):
            if point is not None:
                ratios = [float(structure.odds({**point})) for structure in (one, other)]
                facts["points"].append({"larger": name, "at": {k: float(v) for k, v in point.items()}, "ratios": ratios})
    facts["sentence"] = SENTENCES[found].format(a=a, b=b)
    if found == "incomparable":
        facts["sentence"] += "\n" + (
            "their ratios are equal at all probabilities all the same: common factors cancel" if facts["same value"] else ""
        )
        facts["sentence"] += "\n".join(shown(point) for point in facts["points"])
        if len(facts["points"]) == 1:
            facts["sentence"] += f"\nthe ratio of {facts['points'][0]['larger']} is nowhere on the grid 0.1, 0.5, 0.9 the smaller one"
    return facts


SENTENCES = {
    "equivalent": "{a} and {b} are equivalent: the same table, and so the same loss at all probabilities",
    "entails": "{a} entails {b}: its winning worlds are among the other's, and the other's losing worlds among its own; "
    "the loss of {a} is never below that of {b}",
    "entailed": "{b} entails {a}: its winning worlds are among the other's, and the other's losing worlds among its own; "
    "the loss of {b} is never below that of {a}",
    "incomparable": "{a} and {b} are incomparable: neither entails the other",
}


def shown(point: Mapping[str, Any]) -> str:
    where = ", ".join(f"{name} = {value:g}" for name, value in point["at"].items())
    return f"at {where} the ratios are {number(point['ratios'][0])} and {number(point['ratios'][1])}"


def draw(file: Path, chosen: Structure | None) -> dict[str, Any]:
    """Write the picture; -> its boxes and lines."""
    from ..logic.known import KNOWN
    from ..logic.picture import svg
    from ..logic.structure import covers, relation

    if file.suffix not in (".svg", ".html"):
        raise PreftuneError(f"--lattice is {str(file)!r}, needed a name that ends in .svg, .html; for instance --lattice losses.svg")
    boxes = {name: one.structure for name, one in KNOWN.items()}
    marked = [name for name, one in boxes.items() if chosen and relation(one, chosen) == "equivalent"]
    if chosen and not marked:
        boxes["your formula"] = chosen
        marked = ["your formula"]
    methods = {name: ", ".join(dict.fromkeys(equal.label for equal in one.equals)) for name, one in KNOWN.items()}
    picture = svg(boxes, methods, marked)
    if file.suffix == ".html":
        picture = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>The logic of losses</title><body>{picture}</body></html>\n'
    write(file, picture)
    return {"file": str(file), "losses": list(boxes), "lines": covers(boxes)}
