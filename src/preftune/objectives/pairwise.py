"""Objectives of a pair with a reference: column 0 is preferred, column 1 is not.

All read logp and ref_logp [B, 2] in nats per response and write h or g for the gap of the two log-ratios. Where rows
carry a soft label `prefer` = P(column 0 beats column 1), the loss is its expectation over both orders.
"""

from __future__ import annotations

from torch import Tensor

from ..numerics import logsigmoid, positive
from ..types import Loss, PreftuneError, Scored, needs

PULL = "it is the pull towards the reference"
PAIR = dict(columns=2, labels=("ranked",), optional=("prefer",))


def flip_rate(eps: float) -> None:
    """Refuse a rate of flipped labels that is not below one half."""
    if not 0 <= eps < 0.5:
        raise PreftuneError(f"label_smoothing is {eps}, needed 0 <= value < 0.5: at one half and above labels carry no information")


def gap(s: Scored) -> Tensor:
    """Log-ratio of the preferred response minus that of the other, [B]."""
    return s.logratio[:, 0] - s.logratio[:, 1]


def pair_metrics(s: Scored, beta: float) -> dict[str, Tensor]:
    """Implicit rewards beta * logratio and whether they order the pair as labelled (a tie does not)."""
    reward = beta * s.logratio.detach()
    return {
        "reward_chosen": reward[:, 0],
        "reward_rejected": reward[:, 1],
        "margin": reward[:, 0] - reward[:, 1],
        "accuracy": (reward[:, 0] > reward[:, 1]).to(reward.dtype),
    }


@needs(**PAIR)
def dpo(s: Scored, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Loss:
    """Direct preference optimisation, with label smoothing (cDPO) and soft labels.

    loss = -(1-e) logsigmoid(h) - e logsigmoid(-h) = -logsigmoid(h) + e h,   h = beta (logratio[:, 0] - logratio[:, 1])

    with e = P(column 1 beats column 0): the row's 1 - prefer mixed with the flip rate label_smoothing. The second form
    is the one computed: it keeps its relative accuracy at h = 50 and beyond.

    Limits  smoothing 0 and hard labels: plain DPO, ln 2 at the reference; finite optimum h = log((1-e)/e) for e > 0
    Not     the per-token `sigmoid_norm`: log-probs are sums
    Source  arXiv:2305.18290 eq. 7; label smoothing: Mitchell, cDPO note, eq. 3
    """
    positive("beta", beta, PULL)
    flip_rate(label_smoothing)
    h = beta * gap(s)
    row = -logsigmoid(h)
    if s.rows.prefer is not None:
        prefer = s.rows.prefer.to(h.dtype)
        row = row + ((1 - prefer) * (1 - label_smoothing) + prefer * label_smoothing) * h
    elif label_smoothing:
        row = row + label_smoothing * h
    return Loss(row, pair_metrics(s, beta))


@needs(**PAIR)
def ipo(s: Scored, *, beta: float = 0.1) -> Loss:
    """Identity preference optimisation: regress the log-ratio gap to 1 / (2 beta).

    loss = (g - 1 / (2 beta))^2,  g = logratio[:, 0] - logratio[:, 1];  soft labels: p (g - t)^2 + (1 - p) (g + t)^2

    Gives   row [B], nats^2
    Limits  minimum 0 at g = 1 / (2 beta); symmetric about it; soft labels: optimum g = (2p - 1) / (2 beta)
    Not     the per-token variant some libraries call ipo: see `ipo_avg`
    Source  arXiv:2310.12036 eq. 17 (its tau is our beta)
    """
    positive("beta", beta, PULL)
    return _identity(s, gap(s), beta)


@needs(**PAIR)
def ipo_avg(s: Scored, *, beta: float = 0.1) -> Loss:
    """IPO on per-token means, the form that TRL, HALOs and LLaMA-Factory call ipo.

    loss = (m - 1 / (2 beta))^2,  m = logratio[:, 0] / length[:, 0] - logratio[:, 1] / length[:, 1]

    Limits  both responses of length L: `ipo` with beta / L, divided by L^2
    Not     the paper's loss, whose log-ratios are sums; beta does not carry over (a factor of about the mean length)
    Source  TRL 1.16 dpo_trainer.py, branch "ipo"
    """
    positive("beta", beta, PULL)
    mean = s.logratio / lengths(s)
    return _identity(s, mean[:, 0] - mean[:, 1], beta)


def lengths(s: Scored) -> Tensor:
    """Response tokens [B, K]."""
    if s.length is None:
        raise PreftuneError("this objective reads response lengths, but the policy gave none; score with lengths")
    return s.length


def _identity(s: Scored, g: Tensor, beta: float) -> Loss:
    target = 1 / (2 * beta)
    row = (g - target) ** 2
    if s.rows.prefer is not None:
        prefer = s.rows.prefer.to(g.dtype)
        row = prefer * row + (1 - prefer) * (g + target) ** 2
    return Loss(row, {**pair_metrics(s, beta), "gap": g.detach()})


@needs(columns=2, labels=("ranked",))
def rdpo(s: Scored, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Loss:
    """Robust DPO: the unbiased estimate of the clean DPO loss when labels flip with rate e = label_smoothing.

    loss = [(1-e) L(h) - e L(-h)] / (1-2e) = L(h) - e h / (1-2e),   L(h) = -logsigmoid(h)

    Limits  e = 0 is DPO; negative values are normal: the loss falls without bound as h grows, stop early
    Not     cDPO, which adds e h instead of subtracting (see `dpo`); `rdpo_length` (R-DPO) is another paper
    Source  arXiv:2403.00409 eq. 12
    """
    positive("beta", beta, PULL)
    flip_rate(label_smoothing)
    h = beta * gap(s)
    return Loss(-logsigmoid(h) - label_smoothing / (1 - 2 * label_smoothing) * h, pair_metrics(s, beta))
