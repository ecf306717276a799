"""What comparisons among n items say: Borda, Bradley-Terry, circles, and whether the circles are more than noise.

wins [..., n, n] holds counts: wins[i, j] = how often i was preferred to j, a tie as half a win for each; N = wins + wins^T.
P as in `games`. Leading dimensions are batches of tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..numerics import logsigmoid
from ..types import Key, PreftuneError
from .games import bradley_terry
from .nash import nash

ROUNDING = 1e-9  # differences of probabilities below this are none


def smoothed(wins: Tensor, smoothing: float = 0.5) -> Tensor:
    """P_ij = (wins_ij + smoothing) / (N_ij + 2 smoothing), [..., n, n]; 1/2 on the diagonal and, if smoothing > 0, where N_ij = 0.

    Limits  smoothing 0: the observed frequencies, NaN for pairs never compared; 1/2 is Jeffreys' prior, 1 Laplace's rule
    """
    P = (wins + smoothing) / (wins + wins.mT + 2 * smoothing)
    return torch.where(torch.eye(wins.shape[-1], dtype=torch.bool), 0.5, P)


def borda(P: Tensor) -> Tensor:
    """Mean win rate against the other items, [..., n]."""
    return (P.sum(-1) - 0.5) / (P.shape[-1] - 1)


def condorcet_winner(P: Tensor) -> int | None:
    """The item of P [n, n] that beats every other with more than 1/2, if there is one. It is then the whole lottery."""
    beaten = (P > 0.5 + ROUNDING).sum(-1)
    return int(beaten.argmax()) if int(beaten.max()) == len(P) - 1 else None


def only_equilibrium(P: Tensor, p: Tensor) -> bool:
    """Is the equilibrium p [n] of P [n, n] the only one?

    If it is, everything outside its support loses to it (an equilibrium with that property always exists), and p alone
    solves (P - 1/2) p = 0 on its support; and conversely.
    """
    A = P - 0.5
    inside = p > ROUNDING
    if ((A @ p)[~inside] > -ROUNDING).any():
        return False
    return int(torch.linalg.matrix_rank(A[inside][:, inside], atol=ROUNDING)) == int(inside.sum()) - 1


def lottery_range(P: Tensor) -> Tensor:
    """Least and largest weight of every item over all equilibria of P [n, n], [n, 2], by 2 n linear programs."""
    from scipy.optimize import linprog

    n = len(P)
    A = (P - 0.5).double().numpy()

    def extreme(i: int, sign: float) -> float:
        c = np.zeros(n)
        c[i] = sign
        solved = linprog(c, A_ub=A, b_ub=np.full(n, 1e-12), A_eq=np.ones((1, n)), b_eq=np.ones(1), bounds=[(0, 1)] * n, method="highs")
        if solved.status != 0:
            raise PreftuneError(f"the linear program of a game of {n} responses ended with {solved.message!r}, needed an optimum; check P")
        return abs(float(solved.x[i]))

    return torch.tensor([[extreme(i, 1.0), extreme(i, -1.0)] for i in range(n)], dtype=torch.float64)


# --- Bradley-Terry ----------------------------------------------------------------------------------------------------


def components(edges: Tensor, connection: str = "weak") -> list[list[int]]:
    """The parts into which edges [n, n] fall, by first item; "strong": each item of a part reaches all others of it along the edges."""
    from scipy.sparse.csgraph import connected_components

    _, label = connected_components(edges.numpy() > 0, directed=True, connection=connection)
    parts: dict[int, list[int]] = {}
    for item, part in enumerate(label.tolist()):
        parts.setdefault(part, []).append(item)
    return list(parts.values())


def undefeated(wins: Tensor) -> list[int]:
    """A smallest group in wins [n, n] that never lost to the rest; [] if there is none, and Bradley-Terry is finite."""
    parts = components(wins, "strong")
    closed = [part for part in parts if not wins[:, part].sum(1)[[i for i in range(len(wins)) if i not in part]].any()]
    return [] if len(parts) == 1 else closed[0]


def bradley_terry_fit(wins: Tensor, start: Tensor | None = None) -> Tensor:
    """Maximum likelihood strengths v [..., n] of P(i beats j) = sigmoid(v_i - v_j), of mean 0, by damped Newton steps.

    sum_j wins_ij - N_ij sigmoid(v_i - v_j) = 0 for every i.  A step is divided by 1 + the largest change of a compared gap v_i - v_j:
    along any direction that change times the second derivative bounds the third, so the likelihood rises from everywhere.

    Limits  all pairs compared equally often: the order of Borda; the same as `dpo_optimum` with the law N
    Not     finite where some items never lose to the rest (`undefeated`) or the pairs do not join all items: refused
    """
    N = wins + wins.mT
    v = torch.zeros_like(wins[..., 0]) + (0 if start is None else start)
    for _ in range(200):
        step, singular = torch.linalg.solve_ex(_curvature(N, v), (wins - N * bradley_terry(v)).sum(-1))
        if singular.any() or not step.isfinite().all():
            break
        change = torch.where(N > 0, step.unsqueeze(-1) - step.unsqueeze(-2), 0.0).abs().amax((-1, -2)).unsqueeze(-1)
        v = v + step / (1 + change)
        if (change < 1e-6).all():  # the error left is of the order of its square
            centred: Tensor = v - v.mean(-1, keepdim=True)
            return centred
    raise PreftuneError(
        "the Bradley-Terry fit runs to infinity, needed comparisons that join all items, and no group that never loses; add to both sides"
    )


def _curvature(N: Tensor, v: Tensor) -> Tensor:
    """Minus the second derivative of the log-likelihood [..., n, n], made invertible on the constant vector, which v has none of."""
    win = bradley_terry(v)
    weight = N * win * win.mT
    degree = weight.sum(-1)
    return torch.diag_embed(degree) - weight + (degree.mean(-1) / v.shape[-1])[..., None, None]


def shrunk(wins: Tensor, v: Tensor) -> Tensor:
    """v [n] less the spread that estimation adds: sqrt(max(0, 1 - sum of the estimates' variances / sum v^2)) v.

    Fitted strengths of equal items differ by noise, and draws from them have fewer circles than the data by nature.
    """
    variances = torch.linalg.inv(_curvature(wins + wins.mT, v)).diagonal() - 1 / _curvature(wins + wins.mT, v).sum()
    spread = (v**2).sum()
    return v * (1 - variances.sum() / spread).clamp(min=0).sqrt() if spread > 0 else v


def deviance(wins: Tensor, v: Tensor) -> Tensor:
    """2 sum_ij wins_ij log(frequency_ij / sigmoid(v_i - v_j)), [...]: what Bradley-Terry leaves unexplained; 0 if it fits exactly."""
    v = v.to(wins.dtype)
    explained = wins * logsigmoid(v.unsqueeze(-1) - v.unsqueeze(-2))
    return 2 * (torch.xlogy(wins, wins) - torch.xlogy(wins, wins + wins.mT) - explained).sum((-1, -2))


# --- circles ----------------------------------------------------------------------------------------------------------


def circles(P: Tensor) -> tuple[Tensor, Tensor]:
    """(circular triples, decided triples) of the majority relation of P [..., n, n], each [...]; a triple with a tie is undecided.

    With B_ij = [P_ij > 1/2]: trace(B^3) / 3 circles, and with both directions trace / 6 triples. Coin flips make a quarter circular.
    """
    B = (P > 0.5 + ROUNDING).double()
    either = B + B.mT
    return ((B @ B) * B.mT).sum((-1, -2)) / 3, ((either @ either) * either.mT).sum((-1, -2)) / 6


def circle_strength(wins: Tensor) -> Tensor:
    """trace(Z^3) / 3, [...]: every circular triple of wins [..., n, n] with the product of its three majorities in standard errors.

    Z_ij = max(0, (wins_ij - wins_ji) / sqrt(N_ij)), which is the excess over a coin flip in its standard error. Where all of them are 1
    this is the number of circles: circles by a hair count for little, so that a real one stands out among them.
    """
    N = wins + wins.mT
    Z = torch.where(N > 0, (wins - wins.mT) / N.sqrt(), 0.0).clamp(min=0)
    return ((Z @ Z) * Z.mT).sum((-1, -2)) / 3


@dataclass(frozen=True)
class Intransitivity:
    """Three statistics of the counts beside what they are when Bradley-Terry is true; p-values by parametric bootstrap."""

    deviance: float
    degrees: int  #              of freedom: compared pairs - (n - 1)
    p_deviance: float  #         how often Bradley-Terry leaves as much unexplained
    circles: int
    circles_expected: float  #   mean under Bradley-Terry
    p_circles: float  #          how often it makes as many
    strength: float  #           of the circles, `circle_strength`
    p_strength: float  #         how often Bradley-Terry makes them as strong
    draws: int


def intransitivity(wins: Tensor, v: Tensor, *, draws: int = 1000, seed: int = 0) -> Intransitivity:
    """Does wins [n, n] hold more intransitivity than noise makes under the Bradley-Terry strengths v [n]?

    Every draw has the same number of comparisons for every pair, from sigmoid(v_i - v_j), and a fit of its own.
    p = (1 + draws at least as extreme) / (1 + draws).

    Limits  the strength answers to circles alone. The deviance is also large where wins follow an order but not the logistic curve. The
            number has little power: items of equal strength make a quarter of their triples circular by chance
    Not     valid where comparisons depend on each other (many by one person). Ties (half wins) are drawn as comparisons with a
            winner: more noise than the data have, so that the test errs to the safe side
    """
    seen, (turns, _) = float(deviance(wins, _nudged_fit(wins, v))), circles(_frequencies(wins))
    unexplained, turned, strengths = [], [], []
    for drawn in _draws(wins, bradley_terry(shrunk(wins, v)), draws, Key.of(seed).fold("bradley-terry")):
        unexplained.append(deviance(drawn, _nudged_fit(drawn, v)))
        turned.append(circles(_frequencies(drawn))[0])
        strengths.append(circle_strength(drawn))
    strength = float(circle_strength(wins))

    def share(extreme: Tensor) -> float:
        return (1 + int(extreme.sum())) / (1 + draws)

    compared = int(((wins + wins.mT) > 0).sum()) // 2
    return Intransitivity(
        deviance=seen,
        degrees=compared - (len(wins) - 1),
        p_deviance=share(torch.cat(unexplained) >= seen - 1e-6),
        circles=round(float(turns)),
        circles_expected=float(torch.cat(turned).mean()),
        p_circles=share(torch.cat(turned) >= turns),
        strength=strength,
        p_strength=share(torch.cat(strengths) >= strength - 1e-9),
        draws=draws,
    )


def lottery_draws(wins: Tensor, smoothing: float, *, draws: int = 1000, seed: int = 0) -> Tensor:
    """Maximal lotteries [draws, n] of counts drawn again from the observed frequencies, smoothed as the data are."""
    again = _draws(wins, _frequencies(wins), draws, Key.of(seed).fold("lottery"))
    return torch.cat([nash(smoothed(drawn, smoothing)) for drawn in again])


def _frequencies(wins: Tensor) -> Tensor:
    """wins / N, and 1/2 where a pair was never compared."""
    N = wins + wins.mT
    return torch.where(N > 0, wins / N, 0.5)


def _nudged_fit(wins: Tensor, start: Tensor) -> Tensor:
    """The fit with a thousandth of a win for each side of every compared pair: finite also where a draw leaves some items undefeated."""
    return bradley_terry_fit(wins + 1e-3 * ((wins + wins.mT) > 0), start)


def _draws(wins: Tensor, P: Tensor, draws: int, key: Key) -> Iterator[Tensor]:
    """Counts [chunk, n, n] with as many comparisons of every pair as in wins [n, n], each won with probability P [n, n]."""
    n = len(wins)
    i, j = np.triu_indices(n, 1)
    N: NDArray[np.float64] = (wins + wins.mT).numpy()[i, j]
    if np.any(N % 1):
        raise PreftuneError(
            "the counts of some pair do not sum to a whole number, needed whole comparisons to draw them again; take --bootstrap 0"
        )
    generator, chunk = key.numpy(), max(1, 2**21 // n**2)
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        won = generator.binomial(N.astype(np.int64), P.numpy()[i, j], size=(size, len(N)))
        drawn = np.zeros((size, n, n))
        drawn[:, i, j], drawn[:, j, i] = won, N - won
        yield torch.from_numpy(drawn)
