"""Objectives of a pair with a reference: column 0 is preferred, column 1 is not.

All read logp and ref_logp [B, 2] in nats per response and write h or g for the gap of the two log-ratios. Where rows
carry a soft label `prefer` = P(column 0 beats column 1) and the objective reads it, the loss is its expectation over both
orders. Objectives that see more than the gap stand in `absolute`.
"""

from __future__ import annotations

import math

from torch import Tensor, relu

from ..numerics import logsigmoid, positive, sigmoid
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
    """`ordered` for the implicit rewards beta * logratio."""
    return ordered(beta * s.logratio)


def ordered(reward: Tensor) -> dict[str, Tensor]:
    """Rewards [B, 2], their margin, and whether they order the pair as labelled (a tie does not)."""
    chosen, rejected = reward.detach()[:, 0], reward.detach()[:, 1]
    right = (chosen > rejected).to(reward.dtype)
    return {"reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected, "accuracy": right}


def cross_entropy(s: Scored, h: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1-e) logsigmoid(h) - e logsigmoid(-h) = -logsigmoid(h) + e h, with e = P(column 1 beats column 0): the row's 1 - prefer
    mixed with the flip rate label_smoothing. The second form is computed: it keeps its relative accuracy at h = 50 and beyond.
    """
    flip_rate(label_smoothing)
    row = -logsigmoid(h)
    if s.rows.prefer is not None:
        prefer = s.rows.prefer.to(h)
        return row + ((1 - prefer) * (1 - label_smoothing) + prefer * label_smoothing) * h
    return row + label_smoothing * h if label_smoothing else row


@needs(**PAIR)
def dpo(s: Scored, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Loss:
    """Direct preference optimisation, with label smoothing (cDPO) and soft labels.

    loss = -(1-e) logsigmoid(h) - e logsigmoid(-h),   h = beta (logratio[:, 0] - logratio[:, 1]),   e as in `cross_entropy`

    Limits  smoothing 0 and hard labels: plain DPO, ln 2 at the reference; finite optimum h = log((1-e)/e) for e > 0
    Not     the per-token `dpo_norm`: log-probs are sums
    Source  arXiv:2305.18290 eq. 7; label smoothing: Mitchell, cDPO note, eq. 3
    """
    positive("beta", beta, PULL)
    return Loss(cross_entropy(s, beta * gap(s), label_smoothing), pair_metrics(s, beta))


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


@needs(columns=2, labels=("ranked",))
def hinge(s: Scored, *, beta: float = 0.1) -> Loss:
    """Hinge on the gap of log-ratios, normalised by the reference (hinge-norm).

    loss = max(0, 1 - h),   h = beta (logratio[:, 0] - logratio[:, 1])

    Limits  beta max(0, 1 / beta - gap): gradients are -+beta inside the margin and exactly 0 outside and at the kink
    Not     SLiC-HF, under whose name TRL lists it: that has no reference and a likelihood term (see `hinge_free`)
    Source  arXiv:2309.06657 (RSO), hinge-norm, whose gamma is our beta
    """
    positive("beta", beta, PULL)
    row = relu(1 - beta * gap(s))
    return Loss(row, {**pair_metrics(s, beta), "active": (row.detach() > 0).to(row.dtype)})


@needs(columns=2, labels=("ranked",), reference=False)
def hinge_free(s: Scored, *, delta: float = 1.0) -> Loss:
    """Hinge on summed log-probs without a reference: the calibration term of SLiC-HF.

    loss = max(0, delta - logp[:, 0] + logp[:, 1])

    Limits  flat where the preferred response leads by delta nats; watch the metric `active`
    Not     on per-token means, and not 1 - beta (..): the slope is 1 per nat whatever delta is
    Source  arXiv:2305.10425, the first term of its loss
    """
    positive("delta", delta, "it is the lead in nats that the preferred response has to have")
    lead = s.logp[:, 0] - s.logp[:, 1]
    row = relu(delta - lead)
    right, active = (lead.detach() > 0).to(row.dtype), (row.detach() > 0).to(row.dtype)
    return Loss(row, {"margin": lead.detach(), "accuracy": right, "active": active})


@needs(columns=2, labels=("ranked",))
def exo(s: Scored, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Loss:
    """Efficient exact optimisation of a pair: the REVERSE KL from smoothed labels to the policy's two-point law.

    loss = KL(q || p) = q log(q / (1-e)) + (1-q) log((1-q) / e),   q = sigmoid(h),  h = beta (logratio[:, 0] - logratio[:, 1])

    Limits  0 at h = log((1-e)/e), where it turns back; between -log(1-e) and -log e far out. d loss / d h =
            q (1-q) (h - log((1-e)/e)) vanishes for badly ordered pairs (-.079 at h = -5, -5.5e-8 at -20): they hardly move
    Not     cDPO, the forward cross-entropy of the same two laws. e = 0 would take log 0
    Source  arXiv:2402.00856 eq. 16
    """
    positive("beta", beta, PULL)
    flip_rate(label_smoothing)
    positive("label_smoothing", label_smoothing, "exo takes its logarithm; the authors use 0.001")
    h = beta * gap(s)
    win, lose = logsigmoid(h), logsigmoid(-h)
    row = win.exp() * (win - math.log1p(-label_smoothing)) + lose.exp() * (lose - math.log(label_smoothing))
    return Loss(row, pair_metrics(s, beta))


@needs(columns=2, labels=("ranked",))
def discopop(s: Scored, *, beta: float = 0.05, tau: float = 0.05) -> Loss:
    """DiscoPOP: logistic loss for wrongly ordered pairs, exponential loss for rightly ordered ones, blended by m.

    loss = (1-m) (-logsigmoid(h)) + m e^-h,   m = sigmoid(h / tau),   h = beta (logratio[:, 0] - logratio[:, 1])

    Limits  0.846574 = (1 + ln 2) / 2 at the reference; DPO for h << 0, e^-h for h >> 0
    Not     convex: with tau = 0.05 there is a minimum at h = -0.118570 (0.785924) and a maximum at h = +0.072006 (0.878290);
            at the reference d loss / d h = (1 - ln 2) / (4 tau) - 3/4 = +0.784, so the first steps LOWER the margin
    Source  arXiv:2406.08414, their log_ratio_modulated_loss
    """
    positive("beta", beta, PULL)
    positive("tau", tau, "it is the width of the blend")
    if tau > 1:
        raise PreftuneError(
            f"tau is {tau}, needed at most 1: above it m e^-h grows without bound for badly ordered pairs; the authors' is 0.05"
        )
    h = beta * gap(s)
    # m e^-h in one exponential: for h << 0 it is tiny while e^-h alone overflows.
    row = sigmoid(-h / tau) * -logsigmoid(h) + (logsigmoid(h / tau) - h).exp()
    return Loss(row, pair_metrics(s, beta))
