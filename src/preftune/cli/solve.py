"""preftune solve: comparison data as a game; its lottery and its rankings side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json
from .output import print_json, print_list, print_table

if TYPE_CHECKING:
    from ..solving import Solution

SHOWN = 40  # items in the table


def solve(
    file: Annotated[Path, typer.Argument(help="Win probabilities, win counts or a list of pairs: .csv, .tsv, .json, .jsonl, .parquet.")],
    beta: Annotated[float, typer.Option(help="Pull of the regularised lottery to the reference, in win rate per nat.")] = 0.01,
    smoothing: Annotated[float, typer.Option(help="Wins added to both sides of every pair of counts.")] = 0.5,
    format: Annotated[str | None, typer.Option(help="probabilities, counts or pairs, where the file leaves it open.")] = None,
    reference: Annotated[Path | None, typer.Option(help="CSV with the columns name and weight; all items alike if left out.")] = None,
    bootstrap: Annotated[int, typer.Option(help="Draws of the test and the intervals; 0 leaves them out.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    json: Json = False,
) -> None:
    """Solve comparison data: the mixture that nothing beats, its regularised version, Bradley-Terry and Borda, and a test of circles."""
    from ..solving import solve as run

    found = run(file, beta=beta, smoothing=smoothing, format=format, reference=reference, bootstrap=bootstrap, seed=seed)
    if json:
        print_json(asdict(found))
    else:
        tell(found)


def tell(found: Solution) -> None:
    """Print what was found: the items by lottery weight and then by Borda, the circles, the warnings."""
    n = len(found.names)
    counted = "win probabilities" if found.comparisons is None else f"{found.comparisons:.10g} comparisons, smoothed by {found.smoothing:g}"
    print(f"{found.source}: {n} items, {counted}; beta = {found.beta:g}\n")
    interval, range_, strengths = found.interval, found.range, found.bradley_terry
    columns: dict[str, Callable[[int], str]] = {"item": lambda i: found.names[i], "lottery": lambda i: _weight(found.lottery[i])}
    if interval:
        columns["95 %"] = lambda i: _between(interval[i])
    if range_:
        columns["can be"] = lambda i: _between(range_[i]) if range_[i][1] - range_[i][0] > 5e-5 else ""
    columns["regularised"] = lambda i: _weight(found.regularised[i])
    columns |= _ranking("Borda", found.borda) | (_ranking("Bradley-Terry", strengths) if strengths else {})
    order = sorted(range(n), key=lambda i: (-round(found.lottery[i], 6), -found.borda[i]))
    print_table(list(columns), [[cell(i) for cell in columns.values()] for i in order[:SHOWN]])
    if n > SHOWN:
        print(f"and {n - SHOWN} more (--json has all)")
    share = f" ({found.circles / found.triples:.1%}; coin flips 25 %)" if found.triples else ""
    print(f"\nCondorcet winner: {found.condorcet or 'none'}")
    print(f"circular triples: {found.circles} of {found.triples} without a tie{share}")
    if found.test:
        test = found.test
        print(f"\nnoise of Bradley-Terry, {test.draws} draws with as many comparisons of every pair:")
        rows = [
            ["circular triples", test.circles, f"{test.circles_expected:.3g} on average", test.p_circles],
            ["strength of the circles", test.strength, "", test.p_strength],
            ["deviance", test.deviance, f"{test.degrees} degrees of freedom", test.p_deviance],
        ]
        print_table(["", "here", "under Bradley-Terry", "p"], rows)
    if found.warnings:
        print()
        print_list("warning", found.warnings)


def _ranking(name: str, values: list[float]) -> dict[str, Callable[[int], str]]:
    """A value and its place, 1 for the largest; equal values share a place."""
    rounded = [round(value, 9) for value in values]
    return {name: lambda i: f"{rounded[i] + 0.0:.4f} #{1 + sum(other > rounded[i] for other in rounded)}"}


def _weight(value: float) -> str:
    return f"{value:.4f}" if value >= 5e-5 else "0" if value < 1e-6 else "<.0001"


def _between(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.3f}-{pair[1]:.3f}"
