"""Objectives of a pair that look at each log-ratio by itself and not only at their gap: column 0 is preferred.

All read logp and ref_logp [B, 2] in nats per response. A constant added to both log-ratios of a row changes their value,
which is what they are for: the preferred response cannot pay with its own probability for a wider gap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from ..numerics import logsigmoid, one_of, positive, sigmoid
from ..types import Loss, Scored, needs
from .pairwise import PAIR, PULL, gap, pair_metrics
from .running import running_mean


@needs(columns=2, labels=("ranked",))
def nca(s: Scored, *, beta: float = 0.01) -> Loss:
    """Noise contrastive alignment of a pair.

    loss = -logsigmoid(r0) - 1/2 logsigmoid(-r0) - 1/2 logsigmoid(-r1),   r = beta logratio

    Limits  2 ln 2 at the reference. The preferred response stops at r0 = ln 2 (sigmoid 2/3); r1 falls without end, towards
            the infimum -log(2/3) - 1/2 log(1/3) = 0.954771, which no policy reaches
    Source  arXiv:2402.05369, the pair form with hard labels
    """
    positive("beta", beta, PULL)
    r = beta * s.logratio
    row = -logsigmoid(r[:, 0]) - 0.5 * logsigmoid(-r[:, 0]) - 0.5 * logsigmoid(-r[:, 1])
    return Loss(row, pair_metrics(s, beta))


@needs(columns=2, labels=("ranked",))
def apo_zero(s: Scored, *, beta: float = 0.1) -> Loss:
    """Anchored preference optimisation, zero: raise the preferred response, lower the other; for data better than the model.

    loss = (1 - sigmoid(r0)) + sigmoid(r1),   r = beta logratio

    Limits  1 at the reference; `kto` with baseline 0 and both weights 1; gradients vanish for |r| beyond about 10
    Not     its unpaired form, a mean over responses: half of this. Nor Accelerated Preference Optimization, another APO
    Source  arXiv:2408.06266 eq. 7
    """
    positive("beta", beta, PULL)
    r = beta * s.logratio
    return Loss(sigmoid(-r[:, 0]) + sigmoid(r[:, 1]), pair_metrics(s, beta))


@needs(columns=2, labels=("ranked",))
def apo_down(s: Scored, *, beta: float = 0.1) -> Loss:
    """Anchored preference optimisation, down: lower both responses, the other one more; for data worse than the model.

    loss = sigmoid(r0) + (1 - sigmoid(r0 - r1)),   r = beta logratio

    Limits  1 at the reference, where the two terms cancel for the preferred response: only the other one moves at first
    Source  arXiv:2408.06266 eq. 8
    """
    positive("beta", beta, PULL)
    return Loss(sigmoid(beta * s.logratio[:, 0]) + sigmoid(-beta * gap(s)), pair_metrics(s, beta))


Shift = Literal["running", "none"]
SHIFTS: dict[str, Callable[[Scored, Tensor], tuple[Tensor, dict[str, Tensor]]]] = {
    "running": lambda s, rewards: running_mean(s, "bco", rewards),
    "none": lambda s, rewards: (rewards.new_zeros(()), {}),
}


@needs(columns=2, labels=("ranked",), batch=True)
def bco_pair(s: Scored, *, beta: float = 0.1, shift: Shift = "running") -> Loss:
    """Binary classifier optimisation of a pair: each response is classified by its reward against a common shift.

    loss = -logsigmoid(r0 - delta) - logsigmoid(delta - r1),   r = beta logratio

    shift   "running": delta = mean of all rewards of all steps so far, this batch's included, a constant for the gradient;
            "none": delta = 0, two independent logistic losses
    Limits  delta = 0: 2 ln 2 at the reference; never below DPO's loss, whatever delta is; a constant on all r and on
            delta changes nothing; a response preferred with probability p stops at r - delta = logit(p)
    Not     TRL's bco_pair, which kept the running shift until 0.28 and has none since
    Source  arXiv:2404.04656, with TRL 0.24's count-weighted mean (update first, then use)
    """
    positive("beta", beta, PULL)
    one_of("shift", shift, SHIFTS, "; the paper's is running")
    r = beta * s.logratio
    delta, new = SHIFTS[shift](s, r)
    row = -logsigmoid(r[:, 0] - delta) - logsigmoid(delta - r[:, 1])
    return Loss(row, {**pair_metrics(s, beta), "shift": delta.expand_as(row)}, running=new)


@needs(**PAIR)
def sppo_hard(s: Scored, *, beta: float = 0.001) -> Loss:
    """Self-play preference optimisation on a labelled pair: regress both log-ratios to their centred win rates over beta.

    loss = (logratio[:, 0] - (p - 1/2) / beta)^2 + (logratio[:, 1] + (p - 1/2) / beta)^2

    with p = P(column 0 beats column 1): the row's `prefer`, 1 where there is none.

    Gives   row [B], nats^2, the SUM of the two squares
    Limits  0 at log-ratios +-(p - 1/2) / beta; their difference alone is ipo's target at half the beta
    Not     iterated: SPPO draws anew and judges against the last policy. At beta = 0.001 the targets are +-500 nats and the
            loss is 5e5 at the reference: clip, and read it against the learning rate
    Source  arXiv:2405.00675 eq. 4.7 (their eta is 1 / beta), TRL's sppo_hard
    """
    positive("beta", beta, PULL)
    p: Tensor | float = 1.0 if s.rows.prefer is None else s.rows.prefer.to(s.logratio.dtype)
    target = (p - 0.5) / beta
    return Loss((s.logratio[:, 0] - target) ** 2 + (s.logratio[:, 1] + target) ** 2, pair_metrics(s, beta))
