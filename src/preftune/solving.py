"""What a table of comparisons says: the maximal lottery beside the rankings, and whether its circles are more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .data.comparisons import SMOOTHING, Comparisons, from_probabilities, load, some, weights
from .exact.nash import duality_gap, nash, regularised_nash
from .exact.voting import (
    Intransitivity,
    borda,
    bradley_terry_fit,
    circles,
    condorcet_winner,
    intransitivity,
    lottery_draws,
    lottery_range,
    only_equilibrium,
    undefeated,
)
from .numerics import not_negative, positive
from .types import PreftuneError

NOTHING = 1e-6  # lottery weights below this are none
MANY = 50  #      items beyond which intervals and ranges, a linear program each, are left out


@dataclass(frozen=True)
class Solution:
    """Lottery, rankings and circles of n items, in the order of the file. Weights sum to 1."""

    source: str
    names: tuple[str, ...]
    beta: float
    smoothing: float
    comparisons: float | None  #                       how many, None where the data are probabilities
    lottery: list[float]  #                            an equilibrium: no item beats this mixture with more than 1/2
    unique: bool  #                                    is it the only one?
    interval: list[tuple[float, float]] | None  #      95 % of the lotteries of counts drawn again from the observed frequencies
    range: list[tuple[float, float]] | None  #         least and largest weight over all equilibria, where there are several
    gap: float  #                                      2 max_i P(item i beats the lottery) - 1: rounding
    regularised: list[float]  #                        equilibrium with a pull of beta to the reference; always the only one
    reference: list[float]
    borda: list[float]  #                              mean win rate against the others
    bradley_terry: list[float] | None  #               log strengths of mean 0; None where none are finite
    condorcet: str | None  #                           the item that beats every other, if there is one
    circles: int  #                                    triples whose majorities run in a circle
    triples: int  #                                    triples without a tie; of coin flips a quarter are circles
    test: Intransitivity | None  #                     None without counts
    never: list[tuple[str, str]] = field(repr=False)  # pairs that were never compared
    warnings: list[str] = field(repr=False)


def solve(
    comparisons: str | Path | Comparisons | Tensor | Sequence[Sequence[float]],
    *,
    beta: float = 0.01,
    smoothing: float = SMOOTHING,
    format: str | None = None,
    reference: str | Path | Sequence[float] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Solution:
    """The maximal lottery of comparison data, its KL-regularised version, Borda and Bradley-Terry, and a test of intransitivity.

    comparisons  a file (`data.comparisons`), what it was read as, or win probabilities [n, n]
    beta         pull of the regularised lottery to the reference, in win rate per nat
    smoothing    wins added to both sides of every pair before counts become probabilities
    reference    weights above 0, or a CSV file with the columns name and weight; default: all items alike
    bootstrap    draws of the test and of the intervals; 0 leaves both out

    Everything but the Bradley-Terry fit of counts and the test is computed from the smoothed probabilities.
    """
    positive("beta", beta, "it is the pull to the reference")
    not_negative("bootstrap", bootstrap, "it is the number of draws")
    data = read(comparisons, format, smoothing)
    P, wins, names = data.P, data.wins, data.names
    mu = torch.full((len(names),), 1 / len(names), dtype=torch.float64) if reference is None else _reference(reference, names)
    lottery = nash(P)
    unique = only_equilibrium(P, lottery)
    strengths, warnings = _strengths(data)
    small, whole = len(names) <= MANY, wins is not None and not ((wins + wins.mT) % 1).any()
    drawn = bootstrap > 0 and whole
    if wins is not None and not whole:
        warnings.append("the comparisons of some pair are no whole number, so there is no test and there are no intervals")
    if drawn and not small:
        warnings.append(f"there are no intervals: they take a linear program a draw, which is left out beyond {MANY} items")
    seen = P if wins is None else (wins > wins.mT).double() + 0.5 * (wins == wins.mT)  # majorities
    turns, triples = (round(float(number)) for number in circles(seen))
    spread = lottery_draws(wins, data.smoothing, draws=bootstrap, seed=seed) if wins is not None and drawn and small else None
    found = Solution(
        source=data.source,
        names=names,
        beta=beta,
        smoothing=data.smoothing,
        comparisons=None if wins is None else float(wins.sum()),
        lottery=lottery.tolist(),
        unique=unique,
        interval=None if spread is None else _pairs(torch.quantile(spread, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).T),
        range=_pairs(lottery_range(P)) if not unique and small else None,
        gap=float(duality_gap(P, lottery)),
        regularised=regularised_nash(P, mu.log(), beta).exp().tolist(),
        reference=mu.tolist(),
        borda=borda(P).tolist(),
        bradley_terry=None if strengths is None else strengths.tolist(),
        condorcet=None if (best := condorcet_winner(P)) is None else names[best],
        circles=turns,
        triples=triples,
        test=intransitivity(wins, strengths, draws=bootstrap, seed=seed) if wins is not None and strengths is not None and drawn else None,
        never=data.never,
        warnings=warnings,
    )
    warnings += _disagreements(found)
    return found


def read(comparisons: str | Path | Comparisons | Tensor | Sequence[Sequence[float]], format: str | None, smoothing: float) -> Comparisons:
    """A file, win probabilities, or what is already read."""
    if isinstance(comparisons, str | Path):
        return load(comparisons, format=format, smoothing=smoothing)
    return comparisons if isinstance(comparisons, Comparisons) else from_probabilities(comparisons)


def _reference(given: str | Path | Sequence[float], names: tuple[str, ...]) -> Tensor:
    if isinstance(given, str | Path):
        return weights(given, names)
    mu = torch.as_tensor(given, dtype=torch.float64)
    if mu.shape != (len(names),) or not (mu > 0).all() or not mu.isfinite().all():
        raise PreftuneError(f"the reference is {mu.tolist()}, needed {len(names)} finite weights above 0; give every item one")
    return mu / mu.sum()


def _strengths(data: Comparisons) -> tuple[Tensor | None, list[str]]:
    """The Bradley-Terry fit, from counts or, without them, from every pair alike; and what had to be done to have one."""
    wins = data.P - 0.5 * torch.eye(len(data.P)) if data.wins is None else data.wins
    winners = undefeated(wins)
    if not winners:
        return bradley_terry_fit(wins), []
    group = some([data.names[i] for i in winners])
    if data.wins is None:
        return None, [f"Bradley-Terry has no finite fit: {group} never lose to the rest"]
    if data.smoothing == 0:
        raise PreftuneError(
            f"{data.source}: found that {group} never lost to the rest, needed a win on both sides for a finite Bradley-Terry fit; "
            f"--smoothing {SMOOTHING} adds {SMOOTHING} wins to both sides of every pair, which makes it finite and its size a convention"
        )
    added = data.smoothing * (wins + wins.mT > 0)
    return bradley_terry_fit(wins + added), [
        f"{group} never lost to the rest, so the likelihood of Bradley-Terry grows without end; its strengths are those with "
        f"{data.smoothing:g} wins added to both sides of every compared pair, and their size depends on that number"
    ]


def _disagreements(found: Solution) -> list[str]:
    """Where lottery and rankings part, in sentences."""
    names, lottery = found.names, found.lottery
    top = lambda values: max(range(len(names)), key=values.__getitem__)
    rankings = {"Borda": found.borda, **({"Bradley-Terry": found.bradley_terry} if found.bradley_terry else {})}
    said = []
    for ranking, values in rankings.items():
        first = top(values)
        if found.condorcet and names[first] != found.condorcet:
            said.append(f"{found.condorcet} beats every other item and is the whole lottery, but {ranking} puts {names[first]} first")
        elif (found.range[first][1] if found.range else lottery[first]) < NOTHING:
            heaviest = names[top(lottery)]
            said.append(f"{ranking} puts {names[first]} first, but the lottery gives it no weight (most goes to {heaviest})")
    if found.bradley_terry and (one := top(found.borda)) != (other := top(found.bradley_terry)):
        said.append(f"Borda puts {names[one]} first, Bradley-Terry {names[other]}: pairs were not compared equally often")
    if not found.unique:
        free = [] if found.range is None else [f"{n} {a:.3g} to {b:.3g}" for n, (a, b) in zip(names, found.range) if b - a > NOTHING]
        said.append("the lottery is one of several equilibria" + (f"; weights can be: {some(free)}" if free else ""))
    if found.never:
        said.append(f"pairs never compared, which count as ties: {some([f'{a} and {b}' for a, b in found.never])}")
    return said


def _pairs(table: Tensor) -> list[tuple[float, float]]:
    return [(low, high) for low, high in table.tolist()]
