"""What a judge's verdicts on several models say: win rates, length-controlled ones, Elo, the Nash mixture, circles, order bias.

Pure functions of a table of verdicts; `contest.arena` makes such tables with language models. Letters: M models, B prompts, n answers of a
prompt, R resamples. Prompts are what is drawn again for intervals: verdicts about answers to one prompt are not independent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .evaluation import Interval
from .exact.nash import nash, regularised_nash
from .exact.voting import (
    ROUNDING,
    Intransitivity,
    bradley_terry_fit,
    components,
    condorcet_winner,
    intransitivity,
    only_equilibrium,
    undefeated,
)
from .types import Key, PreftuneError

ELO = 400 / math.log(10)  #  points of a unit of log-odds
ANCHOR = 1000.0  #           mean Elo of the models
TIE = 0.5  #                 wins added to both sides of every pair where some model never lost: Bradley-Terry is infinite without
NUDGE = 1e-3  #              the same in resamples, which may hold such a model by chance
RIDGE = 0.02  #              of the length model, on both coefficients; see `length_control`
LEVEL = 0.95
EVEN = 1e-4  #               pull to the uniform mixture that chooses among several equilibria, in win rate per nat
CIRCULAR = 0.05  #           p-value below which circles are called more than noise
MOST = 1 << 20  #            effective comparisons of a pair, at most
SAME = 1e-12  #              of the largest variance: below it is rounding
GRID = 1 << 20  #            wins are rounded to this fraction, so that counts of both sides sum exactly


@dataclass(frozen=True)
class Verdicts:
    """What a judge said about M models' answers; answer s of one model to a prompt meets answer s of another."""

    names: tuple[str, ...]  #                      [M]
    beats: np.ndarray  #                           float64 [M, M, B, n]: P(i beats j), i shown first; NaN: no answer, or never asked
    equal: np.ndarray  #                           bool [M, M, B, n]: the same text twice, a tie without asking
    length: np.ndarray  #                          float64 [M, B, n], characters
    clusters: Sequence[Hashable] | None = None  # [B] prompts that are drawn together; None: each by itself

    def __post_init__(self) -> None:
        models = len(self.names)
        if models < 2:
            raise PreftuneError(f"found verdicts about {models} model, needed at least two that meet; give another model")
        shape = (models, models, *self.length.shape[1:])
        if self.beats.shape != shape or self.equal.shape != shape or len(self.length) != models or self.length.ndim != 3:
            raise PreftuneError(
                f"verdicts have shape {self.beats.shape}, equal answers {self.equal.shape}, lengths {self.length.shape}, "
                f"needed [M, M, B, n] twice and [M, B, n] with {models} models; make all of the same answers"
            )
        if ((self.beats < 0) | (self.beats > 1)).any():
            raise PreftuneError(
                "a verdict lies outside of [0, 1], needed P(the first beats the second) or NaN; give probabilities, not scores"
            )

    @property
    def wins(self) -> np.ndarray:
        """q_ij = (P(i beats j | i first) + 1 - P(j beats i | j first)) / 2 [M, M, B, n]: a liking for a place drops out.

        One half where both answers are the same text; NaN where the judge left either order open, and on the diagonal.
        """
        both = (self.beats + 1 - self.beats.swapaxes(0, 1)) / 2
        found = np.where(self.equal, 0.5, both)
        found[np.arange(len(self.names)), np.arange(len(self.names))] = np.nan
        return found


# --- sums by prompt, and prompts drawn again ------------------------------------------------------------------------------------------


def resamples(clusters: Sequence[Hashable], draws: int, seed: int) -> np.ndarray:
    """float64 [1 + draws, B]: how often each prompt counts, once each in the first row, then as often as its cluster was drawn."""
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    member = np.array([number[name] for name in clusters])
    drawn = Key.of(seed).fold("prompts").numpy().multinomial(len(number), np.full(len(number), 1 / len(number)), size=draws)
    return np.concatenate([np.ones((1, len(member))), drawn[:, member].astype(float)])


def interval(values: np.ndarray) -> Interval:
    """The first of values [1 + R] with the percentile interval of the others; NaN to NaN where none of them is finite."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if drawn.size else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high))


def sums(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sum of the known values, how many are known) over the answers of a prompt, [..., B, n] -> [..., B] twice."""
    return np.nansum(values, axis=-1), (~np.isnan(values)).sum(-1).astype(float)


def mean_by(weight: np.ndarray, total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Weighted means [R, ...] of sums and counts [..., B] under weights [R, B]; NaN where nothing is known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return weighted(weight, total) / weighted(weight, count)


def weighted(weight: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Sums over prompts [R, ...] of totals [..., B] under weights [R, B]."""
    return np.asarray(np.tensordot(weight, total, axes=(1, -1)))


# --- length -----------------------------------------------------------------------------------------------------------------------


def length_scale(difference: np.ndarray) -> float:
    """The standard deviation (divided by N - 1) of differences of lengths [N]; 0 for fewer than two."""
    return float(np.std(difference, ddof=1)) if difference.size > 1 else 0.0


def length_control(
    won: np.ndarray,
    difference: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    scale: float | None = None,
    ridge: float = RIDGE,
    start: tuple[float, float] = (0.0, 0.0),
) -> tuple[np.ndarray, np.ndarray]:
    """(theta, phi), each [R]: the length-controlled log-odds of a model against a baseline, and what the judge makes of length.

    logit P(model wins) = theta + phi tanh(d / s),   d = len(baseline) - len(model) in characters,   s = sd(d)

    Reads   won [N] in [0, 1], a soft label of every comparison; difference d [N]; weight [R, N], one row a fit, or None: all count once
    Gives   theta; sigmoid(theta) is the win rate at equal length. phi > 0: the judge rewards the SHORTER answer
    Limits  model and baseline swapped: won -> 1 - won, d -> -d, theta changes its sign, phi stays. d = 0 everywhere: phi is 0 and
            sigmoid(theta) the plain win rate, but for the ridge
    Not     the published fit, which takes an L1 penalty by cross-validation, a difficulty of every prompt that was fitted on its
            leaderboard, and two gamed baselines. Here ridge / 2 (theta^2 + phi^2), as much as .08 of a tie, keeps finite what sure
            verdicts leave without a maximum. Where one model is the longer one throughout, its length and its merit cannot be told
            apart, and theta is an extrapolation
    Source  arXiv:2404.04475 and its code, the variant without difficulty
    """
    scale = length_scale(difference) if scale is None else scale
    x = np.tanh(difference / scale) if scale > 0 else np.zeros_like(difference)
    w = np.ones((1, len(won))) if weight is None else weight
    theta, phi = np.full(len(w), start[0]), np.full(len(w), start[1])
    for _ in range(200):
        p = _logistic(theta[:, None] + phi[:, None] * x)
        rest, curve = w * (won - p), w * p * (1 - p)
        gradient = np.stack([rest.sum(1) - ridge * theta, rest @ x - ridge * phi], 1)
        a, b, c = curve.sum(1) + ridge, curve @ x, curve @ x**2 + ridge
        step = np.stack([c * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]], 1) / (a * c - b * b)[:, None]
        change = np.abs(step).sum(1)  # of any log-odds, since |x| <= 1; a step divided by 1 + it never overshoots
        theta, phi = theta + step[:, 0] / (1 + change), phi + step[:, 1] / (1 + change)
        if (change < 1e-8).all():
            return theta, phi
    raise PreftuneError(f"the length model with ridge {ridge} did not settle in 200 steps, needed a maximum; take a larger ridge")


def _logistic(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))


# --- rankings and circles -------------------------------------------------------------------------------------------------------------


def elo(strength: np.ndarray) -> np.ndarray:
    """400 / ln 10 strength + 1000: a model that is 400 points up wins 10 of 11."""
    return ELO * strength + ANCHOR


def strengths(wins: np.ndarray) -> tuple[np.ndarray, float]:
    """(Bradley-Terry log-strengths of mean 0 [R, M], wins added to both sides of every pair) of counts [R, M, M], the data first.

    None are added where the data's fit is finite; resamples are nudged by a thousandth, so that one without a defeat has a fit as well.
    """
    table = torch.from_numpy(wins)
    met = (table[0] + table[0].mT > 0).double()
    added = TIE if undefeated(table[0]) else 0.0
    first = bradley_terry_fit(table[0] + added * met)
    rest = [bradley_terry_fit(table[1:] + max(added, NUDGE) * met, first)] if len(table) > 1 else []
    return torch.cat([first[None], *rest]).numpy(), added


def mixtures(P: torch.Tensor) -> np.ndarray:
    """An equilibrium [R, M] of every game P [R, M, M]: a model that beats every other is the only one, and saves a linear programme."""
    models = P.shape[-1]
    found = ((P > 0.5 + ROUNDING).sum(-1) == models - 1).double()
    rest = found.sum(-1) == 0
    if rest.any():
        found[rest] = nash(P[rest])
    return found.numpy()


def effective(total: np.ndarray, count: np.ndarray, clusters: Sequence[Hashable]) -> tuple[float, float]:
    """(wins, comparisons) of one pair: as many independent comparisons as would estimate its win rate as exactly as its prompts do.

    p = sum of q / number of comparisons,   var p = sum over prompts of (their sum of q - p their number)^2 / number^2 G / (G - 1),
    comparisons = p (1 - p) / var p: fewer than were made where answers to a prompt agree, more where verdicts are probabilities.

    Reads   total, count [B], sums of q and of comparisons by prompt; G clusters. A prompt that says one half is added, so that
            no variance is 0
    Limits  one hard verdict a prompt: nearly the number of comparisons
    Source  the effective sample size of survey statistics (Rao and Scott, 1992)
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    member = [number[name] for name in clusters]
    q, m = (np.bincount(member, values, len(number)) for values in (total, count))
    q, m = q[m > 0], m[m > 0]
    if not len(m):
        return 0.0, 0.0
    q, m = np.append(q, m.mean() / 2), np.append(m, m.mean())
    p = q.sum() / m.sum()
    variance = ((q - p * m) ** 2).sum() / m.sum() ** 2 * len(m) / (len(m) - 1)
    N = min(MOST, max(1, round(p * (1 - p) / variance if variance > SAME * p * (1 - p) else m.sum())))  # ties throughout: their number
    return round(p * N * GRID) / GRID, float(N)


def counts(verdicts: Verdicts) -> np.ndarray:
    """Effective wins [M, M] of every pair (`effective`), whole comparisons in sum."""
    total, count = sums(verdicts.wins)
    clusters = range(total.shape[-1]) if verdicts.clusters is None else verdicts.clusters
    wins = np.zeros(total.shape[:2])
    for i, j in itertools.combinations(range(len(wins)), 2):
        won, N = effective(total[i, j], count[i, j], clusters)
        wins[i, j], wins[j, i] = won, N - won
    return wins


@dataclass(frozen=True)
class Circle:
    """Three models of which each beats the next and the last the first."""

    names: tuple[str, str, str]
    winrates: tuple[float, float, float]
    strength: float  # product of the three majorities in standard errors


def strongest_circle(names: Sequence[str], P: np.ndarray, wins: np.ndarray) -> Circle | None:
    """The circle of P [M, M] whose three majorities are the least likely to be noise, by counts wins [M, M]."""
    N = wins + wins.T
    Z = np.where(N > 0, (wins - wins.T) / np.sqrt(np.maximum(N, 1)), 0.0)
    best: Circle | None = None
    for one, two, three in itertools.combinations(range(len(names)), 3):
        for a, b, c in ((one, two, three), (one, three, two)):
            majorities = (Z[a, b], Z[b, c], Z[c, a])
            if min(majorities) > 0 and (best is None or math.prod(majorities) > best.strength):
                best = Circle((names[a], names[b], names[c]), (P[a, b], P[b, c], P[c, a]), math.prod(majorities))
    return best


def circularity(verdicts: Verdicts, *, draws: int = 1000, seed: int = 0) -> Intransitivity | None:
    """Are the circles among the models more than noise? The tests of `exact.voting`, on effective counts.

    `p_strength` below .05 calls a table intransitive, `p_deviance` says that Bradley-Terry does not fit, circles or not. None: fewer than
    three models, fewer than two prompts, or models that no comparison joins.

    Limits  called intransitive, of 200 contests with two half-alike answers to each of 60 prompts (seeds 0 to 199, 300 draws): a
            Bradley-Terry judge of three or five models never, of equal or of spread strengths; independent coin flips 4.5 % of three
            models, 3.5 % of five; a circle of three at .6 77 %, among five models 63 %; at .65 99.5 % and 95.5 %; at .7 all.
            tests/test_standings.py counts them again
    """
    wins = torch.from_numpy(counts(verdicts))
    total, prompts = wins + wins.mT, len(set(range(verdicts.length.shape[1]) if verdicts.clusters is None else verdicts.clusters))
    if len(wins) < 3 or prompts < 2 or draws < 1 or not joined(total.numpy()):
        return None
    fitted = bradley_terry_fit(wins + (TIE if undefeated(wins) else 0.0) * (total > 0))
    return intransitivity(wins, fitted, draws=draws, seed=seed)


def joined(met: np.ndarray) -> bool:
    """Does a chain of comparisons join all models? met [M, M] is above 0 where two met."""
    return len(components(torch.from_numpy(met))) == 1


# --- the whole table ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A model in the leaderboard."""

    name: str
    elo: Interval | None  #         None where no chain of comparisons joins all models
    lottery: Interval  #            weight in the Nash mixture
    winrate: Interval  #            mean against the others (Borda)
    controlled: Interval  #         the same at equal length
    worst: float | None  #          the lowest win rate against one model, and which
    worst_against: str | None
    length: Interval  #             characters


@dataclass(frozen=True)
class Standings:
    """What the verdicts say. Tables are [M][M], row against column, None on the diagonal and where nothing was compared."""

    names: tuple[str, ...]
    prompts: int
    winrate: list[list[Interval | None]]  #     both orders averaged
    controlled: list[list[Interval | None]]  #  at equal length; one half where answers are the same throughout
    length_effect: list[list[float | None]]  #  phi of `length_control`: above 0 the judge rewards the shorter answer
    bias: Interval  #                           mean of P(i beats j | i first) + P(j beats i | j first) - 1: 1 always the first
    consistency: Interval  #                    share of comparisons with the same winner (or tie) in both orders
    board: list[Place]  #                       best Elo first; without Elo by win rate
    condorcet: str | None  #                    the model that beats every other, if there is one
    test: Intransitivity | None
    circle: Circle | None  #                    the strongest circle of majorities, significant or not
    intransitive: bool | None  #                by the test at .05; None without a test
    compared: list[list[int]]  #                comparisons that count, equal answers among them
    equal: int  #                               comparisons of equal texts: ties, not asked
    open: int  #                                comparisons that the judge left open in one order or both: left out
    warnings: list[str] = field(repr=False)


def standings(verdicts: Verdicts, *, draws: int = 1000, seed: int = 0) -> Standings:
    """Everything at once; intervals are percentiles over `draws` resamples of the prompts, 0 leaves intervals and test out."""
    names, (models, prompts, _) = verdicts.names, verdicts.length.shape
    wins, pairs = verdicts.wins, list(itertools.combinations(range(models), 2))
    total, count = sums(wins)
    if not count.any():
        raise PreftuneError("the judge left every comparison open, needed at least one verdict; see why, and ask again in a new folder")
    clusters = list(range(prompts) if verdicts.clusters is None else verdicts.clusters)
    weight = resamples(clusters, draws if len(set(clusters)) > 1 else 0, seed)
    rate = mean_by(weight, total, count)  # [R, M, M]
    won = weighted(weight, total)
    controlled, effect, warnings = _controlled(verdicts, wins, weight, pairs)
    met = count.sum(-1)
    never = [f"{names[i]} and {names[j]}" for i, j in pairs if not met[i, j]]
    warnings += [f"no comparison of {which} counts: their win rate is unknown, and one half for the mixture" for which in never]
    points = None
    if joined(met):
        found, added = strengths(won)
        points = elo(found)
        if added:
            group = ", ".join(names[i] for i in undefeated(torch.from_numpy(won[0])))
            warnings.append(
                f"{group} never lost to the rest, so Elo has no finite value; {added:g} wins are added to both sides of every pair"
            )
    P = torch.from_numpy(np.where(np.isnan(rate) | np.eye(models, dtype=bool), 0.5, rate))
    mixture = mixtures(P)
    if not only_equilibrium(P[0], torch.from_numpy(mixture[0])):
        mixture[0] = regularised_nash(P[0], torch.zeros(models, dtype=torch.float64), EVEN).exp().numpy()
        warnings.append("the Nash mixture is one of several that none beats; this is nearly the most even of them")
    lengths, mean, fair = mean_by(weight, *sums(verdicts.length)), _average(rate), _average(controlled)
    test = circularity(verdicts, draws=draws, seed=seed)
    order = sorted(range(models), key=lambda i: -(mean[0, i] if points is None else points[0, i]))
    first, second = _both_orders(verdicts)
    if len(set(clusters)) < 2:
        warnings.append("there is one prompt, so nothing has an interval: what other prompts would say is unknown")
    return Standings(
        names=names,
        prompts=prompts,
        winrate=_table(models, rate),
        controlled=_table(models, controlled),
        length_effect=[[None if np.isnan(x) else float(x) for x in row] for row in effect],
        bias=interval(mean_by(weight, *sums(first + second - 1))),
        consistency=interval(mean_by(weight, *sums(_same(first, second)))),
        board=[
            Place(
                name=names[i],
                elo=None if points is None else interval(points[:, i]),
                lottery=interval(mixture[:, i]),
                winrate=interval(mean[:, i]),
                controlled=interval(fair[:, i]),
                worst=_lowest(rate[0, i])[0],
                worst_against=None if (rival := _lowest(rate[0, i])[1]) is None else names[rival],
                length=interval(lengths[:, i]),
            )
            for i in order
        ],
        condorcet=None if (best := condorcet_winner(P[0])) is None else names[best],
        test=test,
        circle=strongest_circle(names, P[0].numpy(), counts(verdicts)),
        intransitive=None if test is None else test.p_strength < CIRCULAR,
        compared=met.astype(int).tolist(),
        equal=int(sum(verdicts.equal[i, j].sum() for i, j in pairs)),
        open=int(sum(np.isnan(wins[i, j]).sum() for i, j in pairs)),
        warnings=warnings,
    )


def _controlled(
    verdicts: Verdicts, wins: np.ndarray, weight: np.ndarray, pairs: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(length-controlled win rates [R, M, M], phi [M, M], what to be wary of): a fit for every pair and resample."""
    models, names, said = len(verdicts.names), verdicts.names, []
    rates, effect = np.full((len(weight), models, models), np.nan), np.full((models, models), np.nan)
    for i, j in pairs:
        known = ~np.isnan(wins[i, j])
        if not known.any():
            continue
        won, difference = wins[i, j][known], (verdicts.length[j] - verdicts.length[i])[known]
        heavy = np.repeat(weight, known.sum(1), axis=1)
        scale = length_scale(difference)
        (theta, *_), (phi, *_) = length_control(won, difference, scale=scale)
        again, _ = length_control(won, difference, heavy[1:], scale=scale, start=(theta, phi))
        equal = bool(verdicts.equal[i, j][known].all())  # the same texts throughout: one half by definition
        rates[:, i, j] = 0.5 if equal else _logistic(np.append(theta, again))
        rates[:, j, i], effect[i, j], effect[j, i] = 1 - rates[:, i, j], phi, phi
        if (difference > 0).all() or (difference < 0).all():
            longer = names[j if difference[0] > 0 else i]
            said.append(
                f"every answer of {longer} is longer than that of {names[i if longer == names[j] else j]}, so that their length-controlled "
                "win rate is an extrapolation: length and merit cannot be told apart"
            )
    return rates, effect, said


def _both_orders(verdicts: Verdicts) -> tuple[np.ndarray, np.ndarray]:
    """P(i beats j | i first) and P(j beats i | j first) of all pairs i < j, each [B, pairs n]; NaN where not both orders were asked."""
    i, j = np.triu_indices(len(verdicts.names), 1)
    first, second = (np.where(verdicts.equal[i, j], np.nan, verdicts.beats[side]) for side in ((i, j), (j, i)))
    open_ = np.isnan(first) | np.isnan(second)
    flat = lambda table: np.where(open_, np.nan, table).swapaxes(0, 1).reshape(table.shape[1], -1)
    return flat(first), flat(second)


def _same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 where both orders name the same winner, or both a tie; 0 where they do not; NaN where one is missing."""
    return np.where(np.isnan(first), np.nan, np.sign(first - 0.5) == np.sign(0.5 - second))


def _average(table: np.ndarray) -> np.ndarray:
    """Means of the known entries [R, M, M] -> [R, M]; NaN for a row without any."""
    total, count = sums(np.where(np.eye(table.shape[1], dtype=bool), np.nan, table))
    with np.errstate(invalid="ignore"):
        return total / count


def _lowest(rates: np.ndarray) -> tuple[float | None, int | None]:
    """The lowest known win rate of rates [M], and against whom."""
    known = [(float(x), i) for i, x in enumerate(rates) if not np.isnan(x)]
    return min(known, default=(None, None))  # type: ignore[return-value]


def _table(models: int, rates: np.ndarray) -> list[list[Interval | None]]:
    """Intervals [M][M] of rates [1 + R, M, M]; None where the data have none."""
    at = range(models)
    return [[None if np.isnan(rates[0, i, j]) or i == j else interval(rates[:, i, j]) for j in at] for i in at]
