"""preftune judge test: how good a judge is on held-out labelled data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, Read, Rename, pairs, reading
from .output import interval, number, print_json, print_list, print_table, write

if TYPE_CHECKING:
    from ..judge_quality import JudgeTest

MEASURES = {  # what is printed, in this order, and what it means
    "accuracy": "the better one likelier; ties half",
    "length_baseline": "the longer one taken instead",
    "best_of_list": "the best of a list on top; ties share",
    "accuracy_longer_right": "where the longer one is better",
    "accuracy_shorter_right": "where the shorter one is",
    "length_weight": "log-odds of length, the label known",
    "order_bias": "above 0: the first shown is liked",
    "consistency": "both orders end alike",
    "calibration_error": "confidence less share of right",
    "brier": "squared error against the label",
    "log_loss": "nats",
    "label_entropy": "log loss of the labels' own law",
}


def test(
    judge: Annotated[str, typer.Argument(help="Name with options, package.module:function, folder of a trained judge, or http address.")],
    data: Annotated[str, typer.Option(help="Held-out labelled pairs or lists: file, folder or hub id.")],
    subset_column: Annotated[str | None, typer.Option(help="Column that names subsets; `subset` where there is one.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows to use, from the first on; all if left out.")] = None,
    lists: Annotated[int, typer.Option(min=0, help="Lists of responses to a same prompt, drawn to look for circles.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of lists, bootstrap and tests.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A page with the same numbers, .html.")] = None,
    read: Read = None,
    rename: Rename = None,
    json: Json = False,
) -> None:
    """Measure a judge: accuracy, calibration, taste for the first place and for length, circles, and what it costs."""
    how = reading(pairs(read or [], "--read"), pairs(rename or [], "--rename"))
    from ..api import judge_test as run

    found = run(judge, data, subset_column=subset_column, rows=rows, lists=lists, read=how, seed=seed)
    if out is not None:
        from ..report.judge import page

        write(out, page(f"{judge} on {data}", found, MEASURES))
    if json:
        print_json(asdict(found))
    else:
        tell(found)


def tell(found: JudgeTest) -> None:
    """Print what was measured: the measures, subsets, tenths, calibration, circles, cost and notes."""
    print(f"{found.rows} rows, {found.pairs} labelled pairs, both orders asked\n")
    shown = [
        [name.replace("_", " "), interval(found.measures.get(name)), said] for name, said in MEASURES.items() if name in found.measures
    ]
    print_table(["", "value", ""], shown, header=False)
    for title, groups in (("subset", found.subsets), ("tenth by difference", found.deciles)):
        if groups:
            print()
            rows = [[g.name, g.pairs, interval(g.accuracy), interval(g.longer)] for g in groups]
            print_table([title, "pairs", "accuracy", "taking the longer"], rows)
    if found.sections:
        print()
        print_table(["section", "accuracy"], [[name, interval(value)] for name, value in found.sections.items()])
    print()
    table = [[f"{b.low:.2f} to {b.high:.2f}", b.pairs, b.confidence, b.right] for b in found.bins if b.pairs]
    print_table(["chance of the favourite", "pairs", "mean", "it won"], table)
    if found.transitivity:
        print()
        print_table(["", "", ""], circles(found.transitivity), header=False)
    print(f"\nanswers: {found.asked} needed, {found.silent} missing; {number(found.seconds)} seconds" + calls(found.calls))
    print_list("note", found.notes)


def circles(t: Any) -> list[list[str]]:
    """The rows of a table on circles."""
    rows = [
        ["lists", str(t.lists), f"{t.triples} triples without a tie"],
        ["circular triples", str(t.circles), f"share {interval(t.share)}; coin flips 0.25"],
        ["by verdicts", str(t.verdicts), f"strengths and noise make {t.expected:.3g}; as many with p = {t.p_circles:.3g}"],
    ]
    if t.unexplained is not None:
        rows.append(["off the scale", f"{t.unexplained:.3g}", "of squared log-odds, which no strengths explain"])
        rows.append(["between orders", f"{t.noise:.3g}", f"of noise; as much off the scale with p = {t.p_additive:.3g}"])
    return rows


def calls(counted: dict[str, int]) -> str:
    """What a judge that counts was asked."""
    return f"; the judge was asked {counted['asked']}, {counted['known']} were known, {counted['silent']} silent" if counted else ""
