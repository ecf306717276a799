"""Where offline methods end on a table: population optima over all policies, in closed form or by a convex solve.

The data are pairs (i, j) drawn from a law [..., n, n] (None: every pair alike), labelled "i beats j" with probability
P[i, j]. Results are log-probabilities [..., n]; P and log mu as in `nash`. Pairs (i, i) carry no information.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..types import PreftuneError
from .games import validate
from .nash import newton


def rlhf_optimum(reward: Tensor, log_mu: Tensor, beta: float) -> Tensor:
    """argmax_p E_p[reward] - beta KL(p || mu) = softmax(log mu + reward / beta), in logs [..., n].

    Also where DPO ends when labels are Bradley-Terry in this reward, whatever the law of the pairs, as long as it
    connects all responses.
    Source  arXiv:2305.18290 eq. 4
    """
    _positive(beta)
    return torch.log_softmax(log_mu + reward / beta, -1)


def ipo_optimum(P: Tensor, log_mu: Tensor, beta: float, *, law: Tensor | None = None) -> Tensor:
    """Where offline IPO ends: least squares of log-ratio gaps on (P[i, j] - 1/2) / beta.

    E[(g - 1/(2 beta))^2] over labels = (g_ij - (P_ij - 1/2) / beta)^2 + const,   g_ij = u_i - u_j,   u = log pi / mu

    With W = law + law^T the minimiser solves the Laplacian system  sum_j W_ij (u_i - u_j) = sum_j W_ij (P_ij - 1/2) / beta.

    Limits  uniform law: u_i = mean_j (2 P_ij - 1) / (2 beta), the Borda ranking; law p* p*^T with p* the regularised
            equilibrium: p* itself, which is why IPO on pairs of its own policy is a Nash method
    Source  arXiv:2310.12036 eq. 17
    """
    _positive(beta)
    W = _weights(validate(P), law)
    u = torch.linalg.solve(_laplacian(W), (W * (P - 0.5)).sum(-1) / beta)
    return torch.log_softmax(log_mu + u, -1)


def dpo_optimum(P: Tensor, log_mu: Tensor, beta: float, *, law: Tensor | None = None) -> Tensor:
    """Where DPO ends when both outcomes of every pair are in the data: the Bradley-Terry fit v of P, as softmax(log mu + v / beta).

    v = argmin E_law[ -P_ij logsigmoid(v_i - v_j) - P_ji logsigmoid(v_j - v_i) ],   Newton's method with backtracking

    Limits  P Bradley-Terry: `rlhf_optimum`; uniform law: the same ranking as Borda (and as `ipo_optimum`)
    Not     finite if some responses never lose to the rest (DPO pushes such a gap without end): refused
    """
    _positive(beta)
    W = _weights(validate(P), law)
    _connected(
        W * P, "some responses never lose to the others and DPO pushes their gap without end; add pairs that they lose, or use ipo_optimum"
    )

    def win(v: Tensor) -> Tensor:
        return torch.sigmoid(v.unsqueeze(-1) - v.unsqueeze(-2))

    v = newton(
        lambda v: (W * (win(v) - P)).sum(-1),
        lambda v: _laplacian(W * win(v) * win(v).mT),
        torch.zeros(W.shape[:-1], dtype=W.dtype),
    )
    return torch.log_softmax(log_mu + v / beta, -1)


def divergence_optimum(reward: Tensor, log_mu: Tensor, beta: float, divergence: str, alpha: float | None = None) -> Tensor:
    """argmax_p E_p[reward] - beta D_f(p || mu) = mu f'^-1((reward - c) / beta), with the c that normalises it, in logs [..., n].

    Where DPO under an f-divergence ends when labels are Bradley-Terry in this reward.

    log u = log f'^-1(x) for u = p / mu, with f'(1) = 0:
    reverse_kl  x                        forward_kl  -log(1 - x), x < 1
    js          x - log(2 - e^x), x < log 2          alpha  -log(1 - alpha x) / alpha, x < 1 / alpha
    Limits  alpha -> 0: reverse_kl, which is `rlhf_optimum`; alpha -> 1: forward_kl
    Source  arXiv:2309.16240, theorem 1 (alpha as there)
    """
    _positive(beta)
    if divergence not in INVERSES:
        raise PreftuneError(f"divergence is {divergence!r}, needed one of {', '.join(INVERSES)}")
    if (alpha is None) == (divergence == "alpha") or (alpha is not None and not 0 < alpha < 1):
        raise PreftuneError(f"alpha is {alpha} with {divergence}, needed a number in (0, 1) for divergence='alpha' and none for the others")
    log_u, highest = INVERSES[divergence](1.0 if alpha is None else alpha)
    x = reward / beta
    top = x.amax(-1, keepdim=True)
    return _normalised(lambda t: log_mu + log_u(x + t), -top, torch.minimum(highest - top, -x.amin(-1, keepdim=True)))


# alpha -> (log f'^-1 as a function of x, the x below which it is finite)
INVERSES: dict[str, Callable[[float], tuple[Callable[[Tensor], Tensor], Tensor]]] = {
    "reverse_kl": lambda _: (lambda x: x, torch.tensor(math.inf, dtype=torch.float64)),
    "forward_kl": lambda _: (lambda x: -torch.log1p(-x), torch.tensor(1.0, dtype=torch.float64)),
    "js": lambda _: (lambda x: x - torch.log(2 - torch.exp(x)), torch.tensor(math.log(2), dtype=torch.float64)),
    "alpha": lambda alpha: (lambda x: -torch.log1p(-alpha * x) / alpha, torch.tensor(1 / alpha, dtype=torch.float64)),
}


def per_token_optimum(reward: Tensor, log_mu: Tensor, length: Tensor, beta: float) -> Tensor:
    """log mu + length (reward / beta + c), normalised: where losses of per-token means end under Bradley-Terry labels, [..., n].

    With log mu = 0 for those without a reference (simpo with gamma 0).
    Limits  lengths all L: `rlhf_optimum` with beta / L
    """
    _positive(beta)
    x = reward / beta
    reach = (log_mu.abs().amax() / length.amin() + x.abs().amax() + math.log(length.shape[-1])) + torch.ones_like(x[..., :1])
    return _normalised(lambda t: log_mu + length * (x + t), -reach, reach)


def odds_optimum(reward: Tensor) -> Tensor:
    """p_i = sigmoid(reward_i + c), normalised: where the odds-ratio term alone ends under Bradley-Terry labels, in logs [..., n].

    The odds p_i / (1 - p_i) are e^reward up to a factor: a response that has most of the mass has larger odds than e^reward says.
    """
    reach = reward.abs().amax() + math.log(reward.shape[-1]) + torch.ones_like(reward[..., :1])
    return _normalised(lambda t: torch.nn.functional.logsigmoid(reward + t), -reach, reach)


def _normalised(log_p: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """log_p(t) [..., n], which grows with t [..., 1], at the t whose exponentials sum to one, by bisection; `low` moves down as needed."""

    def below(t: Tensor) -> Tensor:  # a sum that is infinite or undefined lies beyond what log_p is finite for
        return torch.logsumexp(log_p(t), -1, keepdim=True) < 0

    while not below(low).all():
        low = torch.where(below(low), low, 2 * low - high - 1)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = torch.where(below(middle), middle, low), torch.where(below(middle), high, middle)
    return torch.log_softmax(log_p(low), -1)


def _positive(beta: float) -> None:
    if not (beta > 0 and math.isfinite(beta)):
        raise PreftuneError(f"beta is {beta}, needed a finite number above 0; it is the pull towards the reference")


def _weights(P: Tensor, law: Tensor | None) -> Tensor:
    """W = law + law^T with an empty diagonal, of mean one, [..., n, n]."""
    law = torch.ones_like(P) if law is None else law
    if law.shape[-2:] != P.shape[-2:] or not (law >= 0).all():
        raise PreftuneError(
            f"the law of the pairs has shape {list(law.shape)} and minimum {law.min().item():g}, "
            f"needed [..., {P.shape[-1]}, {P.shape[-1]}] without negative entries; give every pair its share of the data"
        )
    if P.shape[-1] < 2:
        raise PreftuneError("the game has one response, needed at least two; an optimum is fitted to pairs")
    W = law + law.mT
    W = W - torch.diag_embed(W.diagonal(dim1=-2, dim2=-1))
    _connected(W, "gaps between parts without a common pair are undetermined; add pairs that join them")
    return W / W.mean((-1, -2), keepdim=True) + torch.zeros_like(P)


def _laplacian(W: Tensor) -> Tensor:
    """diag(W 1) - W for symmetric W [..., n, n], plus the mean degree on the constant vector, which a Laplacian alone maps to 0."""
    degree = W.sum(-1)
    return torch.diag_embed(degree) - W + (degree.mean(-1) / W.shape[-1])[..., None, None]


def _connected(edges: Tensor, why: str) -> None:
    """Refuse edges [..., n, n] along which some response cannot be reached from some other."""
    from scipy.sparse.csgraph import connected_components

    for number, table in enumerate(edges.reshape(-1, *edges.shape[-2:]).numpy()):
        parts, label = connected_components(table > 0, connection="strong")
        if parts > 1:
            raise PreftuneError(f"game {number} falls into {parts} parts, responses by part {label.tolist()}; needed one, since {why}")
