"""Where offline methods end on a table: population optima over all policies, in closed form or by a convex solve.

The data are pairs (i, j) drawn from a law [..., n, n] (None: every pair alike), labelled "i beats j" with probability
P[i, j]. Results are log-probabilities [..., n]; P and log mu as in `nash`. Pairs (i, i) carry no information.
"""

from __future__ import annotations

import math

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
