"""Objectives whose gradient is grad log pi times a constant: rewards, win rates and KL to the reference enter as stop-gradients.

E_y is the sum over the law where the columns of a row enumerate one, otherwise the mean over the responses present. The law is
that of the policy which answered, a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..numerics import not_negative, one_of, positive
from ..types import Loss, PreftuneError, Scored, needs, needs_of
from .pairwise import PULL

Baseline = Literal["none", "leave_one_out"]
Aggregation = Literal["grpo", "bnpo", "dapo", "dr_grpo"]
Level = Literal["token", "sequence"]
Spread = Literal["group", "batch", "none"]
Scale = Literal["reward", "gradient", "logratio"]


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
    """values [B, K - first] minus the mean of those of the OTHER responses, so that no response is its own baseline.

    n / (n - 1) (v - mean v) over n draws; v - E v over a law, where a constant baseline is exact. Absent responses and a draw
    that stands alone have 0.
    """
    present = here(s, first)
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
    row = -mean(s, one_of("baseline", baseline, BASELINES)(s, gain) * s.logp)
    return Loss(row, {"winrate": mean(s, winrate), "kl": mean(s, s.logratio.detach())})


# (rows, gains [B, K]) -> what a log-prob is multiplied by, without gradient
BASELINES: dict[str, Callable[[Scored, Tensor], Tensor]] = {
    "none": lambda s, gain: torch.where(here(s) > 0, gain.detach(), 0.0),  # an absent response has no label: NaN
    "leave_one_out": lambda s, gain: without(s, gain.detach()),
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


# --- rewards: regression --------------------------------------------------------------------------------------------

# What the squared difference of rewards is multiplied by, as a function of beta
SCALES: dict[str, Callable[[float], float]] = {
    "reward": lambda beta: 1.0,  #                    as it stands: the gradient is proportional to beta
    "gradient": lambda beta: 1 / (2 * beta),  #       a pair pulls with its difference of regularised rewards
    "logratio": lambda beta: 1 / (beta * beta),  #    of (h - R / beta): online IPO with rewards for win rates
}


@needs(columns="K", labels=("score",), optional=("law",))
def copg(s: Scored, *, beta: float = 0.06, scale: Scale = "gradient") -> Loss:
    """Contrastive policy gradient: regularised rewards of one prompt's responses become equal.

    loss = scale(beta) E_{y, y'} [(r(y) - r(y'))^2],   r = score - beta logratio,   scale = 1, 1 / (2 beta), 1 / beta^2

    The mean over pairs is over the law's independent pairs where the columns enumerate one, otherwise over the pairs drawn or
    given. Any law of the responses will do, on-policy or not: no importance weights.

    Limits  0 where log pi = log pi_ref + score / beta + const, pair by pair. scale="gradient", two responses: minus the gradient of
            the paper's eq. 7, (r(y) - r(y')) (grad log pi(y) - grad log pi(y')); on-policy twice that of E[score] - beta KL.
            scale="logratio" is `online_ipo` with the score for the win rate; on a pair with scores 1/4 and -1/4 it is ipo
    Not     a sum over pairs: arXiv:2504.00698's k-sample loss is k / 2 times this. Rewards enter squared: outliers decide
    Source  arXiv:2406.19185 eq. 7 to 9 and 18
    """
    positive("beta", beta, PULL)
    score = scores(s, "copg")
    gain = score - beta * s.logratio
    row = 2 * one_of("scale", scale, SCALES)(beta) * mean(s, without(s, gain) * (gain - mean(s, gain)[:, None]))
    return Loss(row, {"score": mean(s, score), "kl": mean(s, s.logratio.detach())})


# --- rewards: clipped policy gradients ------------------------------------------------------------------------------


@needs(columns="K", labels=("score",), optional=("law", "old_logp", "advantage"))
def rloo(s: Scored, *, beta: float = 0.05, epsilon: float = 0.2) -> Loss:
    """REINFORCE with leave-one-out baselines, the KL to the reference inside the reward.

    loss = E_y[ -min(W A, clip(W, 1 - epsilon, 1 + epsilon) A) ],   W = pi / pi_old of whole responses
    A = r(y) - mean of r over the other responses,                  r = score - beta log(pi_old / pi_ref)

    Reads   extra: old_logp [B, K, S], log-probs under the policy that answered; without them it is this one, and W = 1 in value
            (the first step on fresh samples). advantage [B, K], where a collector has computed it
    Limits  W = 1: the gradient of -E[score] + beta KL(pi || pi_ref), exact over an enumerated law, unbiased over draws
    Not     a ratio per token: W leaves the clip's interval soon where responses are long (`grpo` by sequences takes the mean)
    Source  arXiv:2402.14740; ratio and clip as in TRL's RLOOTrainer
    """
    not_negative("beta", beta, PULL)
    positive("epsilon", epsilon, CLIP)
    old = s.rows.extra.get("old_logp")
    old = s.logp.detach() if old is None else old.to(s.logp).sum(2)
    kl = s.logratio.detach() + (old - s.logp.detach())
    score = scores(s, "rloo")
    given = s.rows.extra.get("advantage")
    advantage = without(s, score - beta * kl) if given is None else given.to(s.logp)
    row = mean(s, clipped((s.logp - old).exp(), advantage, epsilon, epsilon))
    return Loss(row, {"score": mean(s, score), "kl": mean(s, kl)})


@needs(columns="K", labels=("score",), optional=("law", "old_logp", "advantage"), wants=("segments",), domain=80.0)
def grpo(
    s: Scored,
    *,
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    aggregation: Aggregation = "dapo",
    level: Level = "token",
    spread: Spread = "group",
    longest: int | None = None,
) -> Loss:
    """Group relative policy optimisation over tokens t of responses y (each segment is a token).

    l_t = -min(rho_t A, clip(rho_t, 1 - epsilon, 1 + epsilon_high) A) + beta (e^-x_t - 1 + x_t),   x_t = log pi_t / pi_ref_t
    A = (score - mean of the group) / (its standard deviation + 1e-4),   rho_t = pi_t / pi_old_t

    aggregation  grpo: E_y[mean_t l_t];  dapo, bnpo: the mean over all tokens of the batch;  dr_grpo: E_y[sum_t l_t] / longest
    level        token: rho_t as it stands; sequence: the geometric mean over the response's tokens (GSPO)
    spread       group, batch: whose standard deviation divides (batch: its value depends on the whole batch); none (Dr. GRPO)

    Reads   extra: old_logp [B, K, S], see `rloo`; advantage [B, K] or [B, K, S], where a collector has computed it
    Gives   count: tokens, for the mean over them. metrics: dead, 1 where all scores of a group are alike, so that A = 0
    Limits  rho = 1, beta = 0: REINFORCE with A; undivided over K draws (K - 1) / K of the gradient of E[score], since the mean holds
            the response itself. Two responses: A = +-0.707 whatever the gap of the scores
    Not     the reward less beta KL(pi || pi_ref): the estimate is differentiated here, and on fresh samples that is the gradient of
            KL(pi_ref || pi), so that a bandit ends at pi_ref beta / (c - score) if A is undivided; with the KL inside the reward
            (`rloo`, `ppo`) at the tilted reference. e^-x overflows far below the reference
    Source  arXiv:2402.03300 eq. 3, 4; arXiv:2503.14476 (dapo), arXiv:2503.20783 (dr_grpo), arXiv:2507.18071 (sequence);
            names and defaults of TRL's GRPOTrainer
    """
    not_negative("beta", beta, PULL)
    positive("epsilon", epsilon, CLIP)
    high = epsilon if epsilon_high is None else epsilon_high
    positive("epsilon_high", high, CLIP)
    aggregate = one_of("aggregation", aggregation, AGGREGATIONS)
    score = scores(s, "grpo")
    logp, there = tokens(s)
    ratio = one_of("level", level, LEVELS)(logp - old_logp(s), there).exp()
    loss = clipped(ratio, group_advantage(s, score, spread), epsilon, high)
    metrics = {"score": mean(s, score), "dead": alike(s, score)}
    if beta:
        metrics["kl"] = mean(s, s.logratio.detach())
        loss = loss + beta * k3(s)
    row, count = aggregate(s, loss * there, there, length_of(longest, aggregation))
    return Loss(row, metrics, count)


@needs(columns="K", labels=("score",), optional=("law", "old_logp", "old_value"), wants=("segments",), batch=True)
def ppo(
    s: Scored,
    *,
    beta: float = 0.05,
    epsilon: float = 0.2,
    value_epsilon: float = 0.2,
    value_weight: float = 0.1,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
) -> Loss:
    """Proximal policy optimisation over tokens t of responses (each segment is a token), the KL to the reference inside the reward.

    l_t = -min(rho_t A_t, clip(rho_t, 1 -+ epsilon) A_t) + value_weight / 2 max((V - G_t)^2, (clip(V, V_old -+ value_epsilon) - G_t)^2)
    A = gae(R, V_old),  G = A + V_old,   R_t = -beta log(pi_old_t / pi_ref_t), + score at the last token;   mean over all tokens

    Reads   the head "value" [B, K, 1], extra: old_logp [B, K, S], see `rloo`; old_value [B, K, 1], the head's outputs then
            V is the head's mean over the prompt's OTHER responses, the same for all tokens: heads read whole responses, and a value
            that has seen the response it judges would be a biased baseline. So two or more responses are needed, or a law
    Gives   count: tokens. whiten: A is brought to mean 0 and variance 1 over the batch's tokens, so that rows depend on one another
    Limits  rho = 1: REINFORCE with A. gamma = lam = 1, no whitening: the gradient of -E[score] + beta KL, as `rloo`'s (over the
            number of tokens where lengths are alike)
    Not     a value of each token's prefix, as TRL's PPOTrainer had: with one value for all tokens lam < 1, like gamma < 1, takes from
            early tokens the credit for the end. Whitening blows up tiny spreads, and hides the fixed point: A never shrinks
    Source  arXiv:1707.06347 eq. 7, 9 and 11; token rewards, whitening and defaults of TRL's PPOTrainer
    """
    not_negative("beta", beta, PULL)
    positive("epsilon", epsilon, CLIP)
    positive("value_epsilon", value_epsilon, "it clips how far the value moves from what it was")
    not_negative("value_weight", value_weight, "it weighs the value's loss")
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise PreftuneError(f"gamma is {gamma} and lam {lam}, needed numbers from 0 to 1: they discount what comes later; 1 does not")
    kl, score = mean(s, s.logratio.detach()), scores(s, "ppo")
    if "value" not in s.heads or s.segment_ref_logp is None:
        raise PreftuneError("ppo reads the head value and the reference's log-probs by segment; compose it as methods.ppo does")
    (logp, there), old = tokens(s), old_logp(s)
    value, old_value = (others(s, x) * there for x in (s.heads["value"], s.rows.extra.get("old_value", s.heads["value"].detach())))
    last = there * (1 - torch.cat([there[:, :, 1:], torch.zeros_like(there[:, :, :1])], 2))
    reward = last * score[:, :, None] - beta * there * (old - s.segment_ref_logp.detach())
    advantage = gae(reward, old_value, gamma=gamma, lam=lam)
    goal = advantage + old_value
    near = old_value + (value - old_value).clamp(-value_epsilon, value_epsilon)
    missed = torch.maximum((value - goal) ** 2, (near - goal) ** 2)
    policy = clipped((logp - old).exp(), whitened(s, advantage, there) if whiten else advantage, epsilon, epsilon)
    row, count = AGGREGATIONS["dapo"](s, (policy + value_weight / 2 * missed) * there, there, 1)
    return Loss(row, {"score": mean(s, score), "kl": kl, "value_error": mean(s, (missed.detach() * there).sum(2) / lengths(there))}, count)


CLIP = "it is how far the ratio to the policy that answered may leave 1"


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A); the advantage is a constant."""
    advantage = advantage.detach()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def gae(reward: Tensor, value: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates over the last axis; reward and value are 0 after a response's end.

    A_t = delta_t + gamma lam A_t+1,   delta_t = R_t + gamma V_t+1 - V_t
    Source  arXiv:1506.02438 eq. 16
    """
    after = torch.cat([value[..., 1:], torch.zeros_like(value[..., :1])], -1)
    delta, sum_, found = reward + gamma * after - value, torch.zeros_like(value[..., 0]), []
    for at_t in reversed(delta.unbind(-1)):
        sum_ = at_t + gamma * lam * sum_
        found.append(sum_)
    return torch.stack(found[::-1], -1)


def k3(s: Scored) -> Tensor:
    """e^-x - 1 + x by segment [B, K, S], x = log pi / pi_ref: at least 0, and E_pi of it is the KL of one token."""
    x = s.segment_logratio
    found = torch.expm1(-x) + x
    broken = ~torch.isfinite(found).all(2).all(1)
    if broken.any():
        ids = [s.rows.id[i] for i in broken.nonzero().flatten().tolist()]
        raise PreftuneError(
            f"the KL estimate e^-x - 1 + x of rows {ids[:10]} is beyond what {str(found.dtype)[6:]} holds: x, a token's log-ratio, fell to "
            f"{float(x.detach()[broken].min()):.6g}; needed tokens that the policy has not all but lost; lower the learning rate, or "
            "take beta=0 or rloo, whose KL is inside the reward"
        )
    return found


def scores(s: Scored, name: str) -> Tensor:
    """The rewards [B, K], 0 for absent responses, which have none."""
    if s.rows.score is None:
        raise PreftuneError(f"{name} reads score, but the rows carry none; collect with a judge, or give scores")
    return torch.where(here(s) > 0, s.rows.score.to(s.logp), 0.0)


def tokens(s: Scored) -> tuple[Tensor, Tensor]:
    """Log-probs by segment [B, K, S], and 1 where the response has that segment."""
    if s.segment_logp is None:
        raise PreftuneError("the scores carry no log-probs by segment, needed one for each token; declare wants=('segments',)")
    there = here(s)[:, :, None].expand_as(s.segment_logp)
    return s.segment_logp, there if s.rows.segments is None else there * (s.rows.segments.diff(dim=2) > 0).to(there)


def old_logp(s: Scored) -> Tensor:
    """Log-probs by segment under the policy that answered: kept by the collector, or else those of this policy as it is."""
    assert s.segment_logp is not None
    old: Tensor | None = s.rows.extra.get("old_logp")
    return s.segment_logp.detach() if old is None else old.to(s.segment_logp)


def lengths(there: Tensor) -> Tensor:
    """Segments of each response [B, K], 1 for an empty one."""
    return there.sum(2).clamp(min=1)


def others(s: Scored, value: Tensor) -> Tensor:
    """The mean of value [B, K, 1] over a row's other responses, or over the law."""
    value = value[:, :, 0].to(s.logp)
    return (value - without(s, value))[:, :, None]


def over_batch(s: Scored, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, K, S] minus its mean over all tokens of the batch, and its variance []: unbiased over draws, the law's over laws."""
    weight = share(s)[:, :, None] * there
    centred = x - (weight * x).sum() / weight.sum()
    variance = (weight * centred**2).sum() / weight.sum()
    n = there.sum()
    return centred, variance if s.rows.law is not None else variance * n / (n - 1).clamp(min=1)


def whitened(s: Scored, x: Tensor, there: Tensor) -> Tensor:
    """x [B, K, S] with mean 0 and variance 1 over the batch's tokens; one token alone has 0."""
    centred, variance = over_batch(s, x, there)
    return centred * torch.rsqrt(variance + 1e-8)


def alike(s: Scored, score: Tensor) -> Tensor:
    """1 where all responses of a row have the same score, so that none is better than another: [B]."""
    absent = here(s) == 0
    return (score.masked_fill(absent, -torch.inf).amax(1) <= score.masked_fill(absent, torch.inf).amin(1)).to(score)


def group_advantage(s: Scored, score: Tensor, spread: Spread) -> Tensor:
    """What a collector has computed, or (score - E score) / (standard deviation + 1e-4): [B, K, S] or [B, K, 1]."""
    given: Tensor | None = s.rows.extra.get("advantage")
    if given is not None:
        return given.to(s.logp).reshape(*score.shape, -1)
    away = score - mean(s, score)[:, None]
    divided: Tensor = away / one_of("spread", spread, SPREADS)(s, score)
    return divided[:, :, None]


SPREADS: dict[str, Callable[[Scored, Tensor], Tensor]] = {  # [B, 1], [] and [B, K]; without an absent response's score
    "group": lambda s, score: mean(s, without(s, score) * (score - mean(s, score)[:, None])).sqrt()[:, None] + 1e-4,
    "batch": lambda s, score: over_batch(s, score[:, :, None], here(s)[:, :, None])[1].sqrt() + 1e-4,
    "none": lambda s, score: torch.ones_like(score),
}

LEVELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # log-ratios [B, K, S] to the policy that answered, where there are any
    "token": lambda x, there: x,
    "sequence": lambda x, there: ((x * there).sum(2) / lengths(there))[:, :, None].expand_as(x),
}

# (rows, losses of tokens [B, K, S], where there are any, the longest response) -> row [B], count [B]
AGGREGATIONS: dict[str, Callable[[Scored, Tensor, Tensor, int], tuple[Tensor, Tensor | None]]] = {
    "grpo": lambda s, loss, there, longest: (mean(s, loss.sum(2) / lengths(there)), None),
    "dapo": lambda s, loss, there, longest: (mean(s, loss.sum(2)), mean(s, there.sum(2))),
    "dr_grpo": lambda s, loss, there, longest: (mean(s, loss.sum(2)) / longest, None),
}
AGGREGATIONS["bnpo"] = AGGREGATIONS["dapo"]  # the learner's mean is over the whole batch, however it is cut into micro-batches


def length_of(longest: int | None, aggregation: Aggregation) -> int:
    """The number that dr_grpo divides by; the others divide by none."""
    if aggregation == "dr_grpo" and not (longest and longest > 0):
        raise PreftuneError(f"longest is {longest} with aggregation='dr_grpo', needed the number of tokens that a response may have")
    return longest or 1


def reading_less(objective: partial[Loss], **fields: Any) -> partial[Loss]:
    """The objective with a narrower declaration, where its hyperparameters leave something unread."""
    objective.needs = replace(needs_of(objective), **fields)  # type: ignore[attr-defined]
    return objective
