"""The longest stable and the best step sizes of self-play on a known game.

Near the regularised equilibrium p* a step multiplies every direction by a complex factor that depends on eta, beta and the
rotation s of that direction (`nash.spectrum`), here in the order of one, two and one judge calls a step:

    omd         (1 - eta beta) + i eta s
    egpo        (1 - eta beta) (1 + i eta s) - (eta s)^2
    optimistic  the larger root of z^2 - (m + i eta s (1 + m)) z + i eta s m,   m = 1 - eta beta

The rate is the largest modulus over all s; it decides stability, and which step is best. |factor|^2 is convex in s^2 for omd and
egpo, so that only the largest and the smallest s count (for optimistic by computation). In closed form, s the largest rotation:

    omd         limit 2 beta / (beta^2 + s^2), best beta / (beta^2 + s^2), rate s / sqrt(beta^2 + s^2)
    egpo        smallest s 0: best 1 / sqrt(beta^2 + s^2), rate 1 - beta / sqrt(beta^2 + s^2)
    optimistic  smallest s 0: best eta s = (1 - eta beta) sqrt((1 + eta beta) / (3 - eta beta)), rate 1 - eta beta

With r = beta / s small, n judge calls shrink the distance by about 1 - n r^2 / 2 (omd), 1 - n r / 2 (egpo) and 1 - n r / sqrt(3)
(optimistic). All this holds near p*; from far away a step is safe up to `nash.extragradient_safe` and `nash.optimistic_safe`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..types import PreftuneError
from .nash import regularised_nash, rotation_bound, spectrum
from .solver import ALONE, solve

Factor = Callable[[float, float, Tensor], Tensor]  # (eta, beta, s [k]) -> [k], complex

DENSE = 300  # responses above which only the largest rotation is computed, by Lanczos' method, and the smallest is taken as 0


@dataclass(frozen=True)
class Steps:
    """Step sizes eta for a game, and the factor per step by which the distance to p* shrinks with the best of them."""

    beta: float
    rotation: float  # s, the largest at p*
    slowest: float  #  the smallest s at p*
    omd_limit: float
    omd_best: float
    omd_rate: float
    egpo_limit: float
    egpo_best: float
    egpo_rate: float
    optimistic_limit: float
    optimistic_best: float
    optimistic_rate: float
    omd_start: float  # the best steps for the larger of the rotations at p* and at the reference: to start a run there with
    egpo_start: float
    optimistic_start: float


def advise(P: Tensor, log_mu: Tensor, beta: float, *, log_p: Tensor | None = None) -> Steps:
    """The steps for a game P [n, n], from its rotations at p*, which is solved for unless log_p [n] is it.

    Limits, best steps and rates are those near p*. Where p* is almost one response and the reference is not, games turn faster at
    the start than at the end, and a run from the reference needs the shorter steps *_start.
    """
    if P.ndim != 2:
        raise PreftuneError(f"win probabilities have shape {list(P.shape)}, needed one game [n, n]; ask for advice game by game")
    if not (beta > 0 and math.isfinite(beta)):
        raise PreftuneError(
            f"beta is {beta}, needed a finite number above 0; without a pull no step brings the last iterate of omd to rest"
        )
    if log_p is None:
        log_p = _equilibrium(P, log_mu, beta)
    end = advise_for(beta, *rotations(P, log_p))
    first = rotations(P, log_mu)[0]
    if first <= end.rotation:
        return end
    start = advise_for(beta, first)
    return replace(end, omd_start=start.omd_best, egpo_start=start.egpo_best, optimistic_start=start.optimistic_best)


def advise_unseen(P: Tensor, beta: float) -> Steps:
    """The same without solving, for the worst game with margins up to max|A|: rotations between 0 and `nash.rotation_bound`.

    Its limits hold near the equilibrium of this game too (a smaller s is stable wherever a larger one is), so that its best
    steps are safe there; they are shorter than those of `advise`.
    """
    return advise_for(beta, float(rotation_bound(P).max()))


def advise_for(beta: float, rotation: float, slowest: float = 0.0) -> Steps:
    """The same for rotations given as numbers, the largest and the smallest."""
    found: dict[str, float] = {}
    for name, factor in FACTORS.items():
        rate = radius(factor, beta, (rotation, slowest))
        limit = _limit(rate, 2 / beta)
        best = _lowest(rate, limit)
        found |= {f"{name}_limit": limit, f"{name}_best": best, f"{name}_rate": rate(best), f"{name}_start": best}
    return Steps(beta, rotation, slowest, **found)


def iterations(rate: float, gap: float = 1e-6, start: float = 1.0) -> float:
    """Steps from one gap to another at a rate: log(gap / start) / (2 log rate), since the gap is quadratic in the distance to p*."""
    if not 0 < gap <= start:
        raise PreftuneError(f"gap is {gap} and start {start}, needed 0 < gap <= start; give the gap at the first policy as start")
    if rate >= 1:
        return math.inf
    return math.log(gap / start) / (2 * math.log(rate)) if rate > 0 else 1.0


# --- factors of a step ------------------------------------------------------------------------------------------------


def omd_factor(eta: float, beta: float, s: Tensor) -> Tensor:
    return 1 - eta * beta + 1j * eta * s


def egpo_factor(eta: float, beta: float, s: Tensor) -> Tensor:
    """Source  arXiv:2503.08942 alg. 1, linearised at its fixed point"""
    return (1 - eta * beta) * (1 + 1j * eta * s) - (eta * s) ** 2


def optimistic_factor(eta: float, beta: float, s: Tensor) -> Tensor:
    """The larger root of z^2 - (m + i eta s (1 + m)) z + i eta s m."""
    m, turn = 1 - eta * beta, 1j * eta * s
    sum_ = m + turn * (1 + m)
    root = torch.sqrt(sum_ * sum_ - 4 * turn * m)
    return torch.where((sum_ + root).abs() > (sum_ - root).abs(), sum_ + root, sum_ - root) / 2


FACTORS: dict[str, Factor] = {"omd": omd_factor, "egpo": egpo_factor, "optimistic": optimistic_factor}


def radius(factor: Factor, beta: float, s: tuple[float, ...] | Tensor) -> Callable[[float], float]:
    """eta -> the largest modulus of the factors over all rotations s."""
    turns = torch.as_tensor(s, dtype=torch.float64)
    return lambda eta: float(factor(eta, beta, turns).abs().max())


def _limit(rate: Callable[[float], float], high: float) -> float:
    """The eta below which the rate is below 1; at `high` it is not."""
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) < 1 else (low, middle)
    return low


def _lowest(rate: Callable[[float], float], high: float) -> float:
    """Where a function on [0, high] that falls and then rises is lowest, by golden section."""
    low, golden = 0.0, (math.sqrt(5) - 1) / 2
    for _ in range(100):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if rate(a) < rate(b) else (a, high)
    return (low + high) / 2


# --- rotations --------------------------------------------------------------------------------------------------------


def rotations(P: Tensor, log_p: Tensor) -> tuple[float, float]:
    """The largest and the smallest rotation of P [n, n] at log p [n]; for more than `DENSE` responses the smallest is taken as 0."""
    if len(P) <= DENSE:
        found = spectrum(P, log_p)
        return (float(found[0]), float(found[-1])) if len(found) else (0.0, 0.0)
    return _largest_rotation(P, log_p), 0.0


def _largest_rotation(P: Tensor, log_p: Tensor) -> float:
    """Lanczos' method on S^T S, S = B A B with B = diag(u) (I - u u^T), u = sqrt(p): its largest eigenvalue is s^2. Two products a turn."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    u = (0.5 * torch.log_softmax(log_p.double(), -1)).exp().numpy()
    A = P.double().numpy()  # P in place of A = P - 1/2: the projections remove what they differ by

    def turned(x: NDArray[np.float64]) -> NDArray[np.float64]:
        y = u * (A @ (u * (x - u * (u @ x))))
        return np.asarray(y - u * (u @ y))

    n = len(u)
    square = LinearOperator((n, n), matvec=lambda x: -turned(turned(x.reshape(-1))), dtype=np.float64)
    start = np.random.default_rng(0).normal(size=n)
    return math.sqrt(max(0.0, float(eigsh(square, k=1, which="LA", v0=start, tol=1e-6, return_eigenvectors=False)[0])))


def _equilibrium(P: Tensor, log_mu: Tensor, beta: float) -> Tensor:
    if len(P) <= ALONE:
        return regularised_nash(P, log_mu, beta)
    found = solve(P, log_mu, beta, gap=1e-12)  # Newton's method costs n^3 a turn
    if not found.arrived:
        raise PreftuneError(f"the gap is {found.gap:.1e} after {found.steps} steps, needed 1e-12 at the equilibrium; take a larger beta")
    return found.log_p
