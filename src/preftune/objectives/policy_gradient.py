"""Objectives whose gradient is grad log pi times a constant: rewards, win rates and KL to the reference enter as stop-gradients.

E_y is the sum over the law where the columns of a row enumerate one, otherwise the mean over the responses present. The law is
that of the policy which answered, a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..numerics import not_negative
from ..types import Loss, PreftuneError, Scored, needs
from .pairwise import PULL

Baseline = Literal["none", "leave_one_out"]


# --- expectations over the columns of a row -------------------------------------------------------------------------


def here(s: Scored, first: int = 0) -> Tensor:
    """1 where a response is present, [B, K - first]; the columns before `first` are left out."""
    logp = s.logp[:, first:]
    return torch.ones_like(logp) if s.rows.present is None else s.rows.present[:, first:].to(logp)


def share(s: Scored, first: int = 0) -> Tensor:
    """What each column counts in E_y, [B, K - first]: its probability under the law, or one over the number of responses present."""
    if s.rows.law is not None:
        return s.rows.law[:, first:].detach().to(s.logp)
    present = here(s, first)
    return present / present.sum(1, keepdim=True).clamp(min=1)


def without(s: Scored, values: Tensor, first: int = 0) -> Tensor:
    """values [B, K - first] minus the mean of those of the OTHER responses, so that no response is its own baseline; no gradient.

    n / (n - 1) (v - mean v) over n draws; v - E v over a law, where a constant baseline is exact. Absent responses and a draw
    that stands alone have 0.
    """
    values, present = values.detach(), here(s, first)
    if s.rows.law is None and values.shape[1] < 2:
        raise PreftuneError("the rows have one response each, needed 2 or more: each is compared with the others; draw more responses")
    values = torch.where(present > 0, values, 0.0)  # an absent response has no label: NaN
    away = values - mean(s, values, first)[:, None]
    n = present.sum(1, keepdim=True)
    return present * (away if s.rows.law is not None else away * n / (n - 1).clamp(min=1))


def mean(s: Scored, values: Tensor, first: int = 0) -> Tensor:
    """E_y of values [B, K - first], [B]; absent responses take no part."""
    return (share(s, first) * torch.where(here(s, first) > 0, values, 0.0)).sum(1)


# --- games ----------------------------------------------------------------------------------------------------------


@needs(columns="K", labels=("winrate",), optional=("law",))
def regularised_pg(s: Scored, *, beta: float = 0.1, baseline: Baseline = "none") -> Loss:
    """REINFORCE on the regularised game: up the gradient of P(pi beats the opponent) - beta KL(pi || pi_ref), the opponent a constant.

    loss = -E_y[ sg(c(y) - b(y)) log pi(y) ],   c = winrate - 1/2 - beta logratio

    Reads   winrate [B, K] = P(response beats the opponent); law [B, K] where the columns enumerate the policy's
    Gives   a value without a meaning of its own: its gradient counts. metrics: winrate and kl, E_y of either
    Limits  over an enumerated law the gradient is exact for any constant b, for E_y[grad log pi] = 0. baseline="leave_one_out"
            takes b(y) = mean of c over the other responses: unbiased as well, and less noisy
    Not     a KL per token times that token's log-prob (TRL's NashMDTrainer): that drops what a token does to later tokens' terms.
            The KL itself must not be differentiated through logratio: the mean of grad log pi says nothing about it
    Source  arXiv:2312.00886, Nash-MD-PG, whole responses as actions
    """
    not_negative("beta", beta, PULL)
    if s.rows.winrate is None:
        raise PreftuneError("regularised_pg reads winrate, but the rows carry none; collect with a judge against an opponent")
    winrate = s.rows.winrate.to(s.logp)
    gain = winrate - 0.5 - beta * s.logratio.detach()
    row = -mean(s, less(s, gain, baseline) * s.logp)
    return Loss(row, {"winrate": mean(s, winrate), "kl": mean(s, s.logratio.detach())})


def less(s: Scored, gain: Tensor, baseline: Baseline) -> Tensor:
    """The gain [B, K] minus its baseline, no gradient."""
    if baseline not in BASELINES:
        raise PreftuneError(f"baseline is {baseline!r}, needed one of {', '.join(BASELINES)}: what a response's gain is compared with")
    return BASELINES[baseline](s, gain)


BASELINES: dict[str, Callable[[Scored, Tensor], Tensor]] = {
    "none": lambda s, gain: torch.where(here(s) > 0, gain.detach(), 0.0),  # an absent response has no label: NaN
    "leave_one_out": without,
}


@needs(columns="K", labels=(), optional=("law",))
def reverse_kl(s: Scored, *, first: int = 0) -> Loss:
    """KL(pi || pi_ref) on responses of the policy: its value estimated, its gradient that of the score function.

    loss = E_y[h] in value,   E_y[ sg(h(y) - mean of h over the other responses) grad log pi(y) ] in gradient,   h = logratio

    Reads   the columns from `first` on, which the policy has just drawn, or enumerates with their law [B, K]
    Limits  over an enumerated law value and gradient are exact; over draws both are unbiased (two or more are needed)
    Not     E_y[h] differentiated as it stands: its mean gradient over draws of the policy is E[grad log pi] = 0, no pull at all
    Source  arXiv:2406.01462 (HyPO's online term); leave-one-out as in arXiv:2402.14740
    """
    h, logp = s.logratio.detach()[:, first:], s.logp[:, first:]
    kl = mean(s, h, first)
    return Loss(kl + mean(s, without(s, h, first) * (logp - logp.detach()), first), {"kl": kl})
