"""Facts of rewards and policy gradients: ppo, grpo, rloo, copg, spo-minimax, and the terms of other methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from facts import DRAW, B, Facts, Limit, Refusal, Value, at, at_reference, law, normal, over_count, pairs, row
from preftune import methods
from preftune.objectives import games, pairwise
from preftune.objectives import policy_gradient as pg
from preftune.policies.tabular import TableResponses
from preftune.probe import probe
from preftune.types import Method, Rows, Scored

SHIPPED = {
    # smooth=False: rewards, KL and baselines are constants for the gradient, and parts of the value
    "rloo": Facts(methods.rloo(), shift=True, swap=True, smooth=False),
    "grpo": Facts(methods.grpo(), steady=True, shift=True, swap=True, smooth=False),
    "grpo of the paper": Facts(methods.grpo(beta=0.04, loss_type="grpo"), swap=True, smooth=False),
    "grpo dr": Facts(
        methods.grpo(loss_type="dr_grpo", scale_rewards="none", max_completion_length=9), steady=True, shift=True, swap=True, smooth=False
    ),
    "grpo by sequences": Facts(
        methods.grpo(importance_sampling_level="sequence", loss_type="grpo"), steady=True, shift=True, swap=True, smooth=False
    ),
    # apart=False: a response is compared with what the head says, which is random here
    "ppo": Facts(methods.ppo(), apart=False, smooth=False),
    "ppo unwhitened": Facts(methods.ppo(whiten=False), apart=False, smooth=False),
    "copg": Facts(methods.copg(), shift=True, swap=True),
    "copg offline": Facts(methods.copg(responses=None, scale="logratio"), shift=True, swap=True),
    "spo-minimax": Facts(methods.spo_minimax(), shift=True, swap=True, smooth=False),
}


def group(K: int = 4, S: int = 1, *, law: bool = False, **extra: Tensor) -> Scored:
    """B lists of K responses of S tokens each, with scores that are win rates as well."""
    score = torch.rand(B, K, generator=DRAW, dtype=torch.float64)
    weight = torch.rand(B, K, generator=DRAW, dtype=torch.float64).softmax(1) if law else None
    token = -torch.rand(B, K, S, generator=DRAW, dtype=torch.float64)
    reference = token + 0.5 * normal(B, K, S)
    segments = torch.arange(S + 1).expand(B, K, S + 1)
    rows = Rows(
        tuple(map(str, range(B))),
        tuple(range(B)),
        TableResponses(torch.arange(K).expand(B, K)),
        score=score,
        winrate=score,
        law=weight,
        segments=segments,
        extra=extra,
    )
    length = torch.full((B, K), float(S), dtype=torch.float64)
    s = Scored(rows, token.sum(2).requires_grad_(), reference.sum(2), length, segment_logp=token, segment_ref_logp=reference)
    return replace(s, heads={"value": normal(B, K, 1)})


def reinforce(advantage: Callable[[Scored], Tensor]) -> Callable[[Scored], Tensor]:
    """-E_y[A log pi(y)] with a constant A."""
    return lambda s: -pg.mean(s, advantage(s).detach() * s.logp)


def regularised(s: Scored) -> Tensor:
    """score - 0.3 logratio, without the mean of the others."""
    return pg.without(s, s.rows.score - 0.3 * s.logratio)


def critic(s: Scored) -> Scored:
    """A head that knows the regularised reward of each response."""
    return replace(s, heads={"value": (s.rows.score - 0.3 * s.logratio).detach()[:, :, None]})


def standardised(s: Scored) -> Tensor:
    score = s.rows.score
    return (score - score.mean(1, keepdim=True)) / (score.std(1, keepdim=True) + 1e-4)


def scored(*score: float) -> Callable[[Scored], Scored]:
    return lambda s: replace(s, rows=s.rows.replace(score=scores(*score)))


def drawn_at(s: Scored, shift: float) -> Scored:
    """The same responses, drawn by a policy that gave each token e^-shift times its probability."""
    return replace(s, rows=s.rows.replace(extra={**s.rows.extra, "old_logp": s.segment_logp.detach() - shift}))


def unit_ratio(s: Scored) -> Scored:
    return drawn_at(s, 0.0)


def enumerated(K: int = 4, S: int = 1) -> Scored:
    return group(K, S, law=True)


rloo, copg, regularised_pg = partial(pg.rloo, beta=0.3), partial(pg.copg, beta=0.3), partial(pg.regularised_pg, beta=0.3)
plain_ppo = partial(pg.ppo, beta=0.3, value_weight=0.0, lam=1.0, whiten=False)
four_by_five, pair = partial(group, 4, 5), partial(group, 2)

# sentence: (left, right, rows)
LIMITS: dict[str, Limit] = {
    "copg in log-ratios is online_ipo with scores for win rates": (
        row(partial(copg, scale="logratio")),
        row(partial(games.online_ipo, beta=0.3)),
        group,
    ),
    "copg in log-ratios over a law is online_ipo over that law": (
        row(partial(copg, scale="logratio")),
        row(partial(games.online_ipo, beta=0.3)),
        enumerated,
    ),
    "copg in rewards is beta^2 times online_ipo": (
        row(partial(copg, scale="reward")),
        lambda s: 0.3**2 * games.online_ipo(s, beta=0.3).row,
        enumerated,
    ),
    "copg's gradient scale is beta / 2 times online_ipo": (row(copg), lambda s: 0.15 * games.online_ipo(s, beta=0.3).row, group),
    "copg on scores of 1/4 and -1/4 is ipo": (
        lambda s: pg.copg(scored(0.25, -0.25)(s), beta=0.3, scale="logratio").row,
        lambda s: pairwise.ipo(s, beta=0.3).row,
        pairs,
    ),
    "copg is indifferent to a constant on a prompt's scores": (
        row(copg),
        lambda s: copg(replace(s, rows=s.rows.replace(score=s.rows.score + 7.0))).row,
        group,
    ),
    "copg over four responses is the mean over their six pairs": (
        row(copg),
        lambda s: (
            sum(
                ((s.rows.score - 0.3 * s.logratio)[:, i] - (s.rows.score - 0.3 * s.logratio)[:, j]) ** 2 / 0.6
                for i in range(4)
                for j in range(i)
            )
            / 6
        ),
        group,
    ),
    "ppo without a tokens' spread, with a critic that knows all, is rloo": (
        lambda s: plain_ppo(critic(s)).row,
        row(rloo),
        lambda: group(4),
    ),
    "the same over a law": (lambda s: plain_ppo(critic(s)).row, row(rloo), enumerated),
    "grpo by sequences of one token is grpo by tokens": (
        lambda s: pg.grpo(drawn_at(s, 0.1), level="sequence").row,
        lambda s: pg.grpo(drawn_at(s, 0.1)).row,
        group,
    ),
    "of equal lengths the mean over tokens is the mean over responses": (
        lambda s: over_count(partial(pg.grpo, beta=0.1, aggregation="dapo"), drawn_at(s, 0.1)),
        lambda s: over_count(partial(pg.grpo, beta=0.1, aggregation="grpo"), drawn_at(s, 0.1)),
        four_by_five,
    ),
    "dr_grpo with the true length is the mean over responses": (
        lambda s: pg.grpo(drawn_at(s, 0.1), beta=0.1, aggregation="dr_grpo", longest=5).row,
        lambda s: pg.grpo(drawn_at(s, 0.1), beta=0.1, aggregation="grpo").row,
        four_by_five,
    ),
    "bnpo is dapo": (
        lambda s: pg.grpo(drawn_at(s, 0.1), aggregation="bnpo").row,
        lambda s: pg.grpo(drawn_at(s, 0.1)).row,
        four_by_five,
    ),
    "log-probs kept from sampling change nothing before the first step: rloo": (row(rloo), lambda s: rloo(unit_ratio(s)).row, four_by_five),
    "log-probs kept from sampling change nothing before the first step: grpo": (
        row(partial(pg.grpo, beta=0.1)),
        lambda s: pg.grpo(unit_ratio(s), beta=0.1).row,
        four_by_five,
    ),
    "log-probs kept from sampling change nothing before the first step: ppo": (
        row(pg.ppo),
        lambda s: pg.ppo(unit_ratio(s)).row,
        four_by_five,
    ),
    "an advantage that a collector has computed is taken: rloo": (
        row(rloo),
        lambda s: rloo(replace(s, rows=s.rows.replace(extra={"advantage": regularised(s).detach()}))).row,
        group,
    ),
    "an advantage that a collector has computed is taken: grpo": (
        row(pg.grpo),
        lambda s: pg.grpo(replace(s, rows=s.rows.replace(extra={"advantage": standardised(s)}))).row,
        four_by_five,
    ),
    "beyond the clip a good response is pulled no more: its loss is constant": (
        lambda s: rloo(drawn_at(scored(1.0, 0.0)(at_reference(s)), 1.0)).row,
        lambda s: (math.e - 1.2) / 2 + 0 * s.logp.sum(1),
        pair,
    ),
}
VALUE_ONLY = {"beyond the clip a good response is pulled no more: its loss is constant"}  # the bad one is pushed on

SAME_GRADIENT: dict[str, Limit] = {
    "copg pulls twice as hard as rloo, draw by draw": (row(copg), lambda s: 2 * rloo(s).row, group),
    "copg pulls twice as hard as rloo over a law": (row(copg), lambda s: 2 * rloo(s).row, enumerated),
    "rloo's first step is REINFORCE": (row(rloo), reinforce(regularised), group),
    "the regularised game with leave-one-out is rloo on win rates": (
        row(partial(regularised_pg, baseline="leave_one_out")),
        row(rloo),
        group,
    ),
    "the regularised game with leave-one-out over a law is rloo on win rates": (
        row(partial(regularised_pg, baseline="leave_one_out")),
        row(rloo),
        enumerated,
    ),
    "the KL term of rloo is beta times reverse_kl": (
        lambda s: rloo(scored(1.0, 1.0, 1.0, 1.0)(s)).row,
        lambda s: 0.3 * pg.reverse_kl(s).row,
        group,
    ),
    "reverse_kl leaves out the columns before the first": (
        lambda s: pg.reverse_kl(s, first=2).row,
        lambda s: (s.logratio[:, 2] - s.logratio[:, 3]).detach() * (s.logp[:, 2] - s.logp[:, 3]) / 2,
        group,
    ),
    "grpo's first step is REINFORCE with standardised scores": (row(partial(pg.grpo, aggregation="grpo")), reinforce(standardised), group),
    "Dr. GRPO's first step is REINFORCE with centred scores": (
        row(partial(pg.grpo, aggregation="dr_grpo", spread="none", longest=1)),
        reinforce(lambda s: s.rows.score - s.rows.score.mean(1, keepdim=True)),
        group,
    ),
    "ppo's first step with no head and no whitening is REINFORCE": (
        lambda s: plain_ppo(replace(s, heads={"value": torch.zeros(B, 4, 1, dtype=torch.float64)})).row,
        reinforce(lambda s: s.rows.score - 0.3 * s.logratio),
        group,
    ),
}


def at_ratios(*logratio: float) -> Callable[[Scored], Scored]:
    return lambda s: at(s, s.ref_logp + torch.tensor(logratio, dtype=torch.float64))


# sentence: (formula, value, rows)
VALUES: dict[str, Value] = {
    # regularised rewards 1 - .5 * .2 = .9 and 0 + .5 * .1 = .05: .85^2 = .7225
    "copg of rewards 1 and 0": (
        lambda s: pg.copg(scored(1.0, 0.0)(at_ratios(0.2, -0.1)(s)), beta=0.5, scale="reward").row,
        0.7225,
        pair,
    ),
    # the same rewards over a law of .3 and .7: E (r - r')^2 = 2 * .3 * .7 * .7225
    "copg of rewards 1 and 0 over a law": (
        lambda s: pg.copg(law(0.3, 0.7)(scored(1.0, 0.0)(at_ratios(0.2, -0.1)(s))), beta=0.5, scale="reward").row,
        2 * 0.3 * 0.7 * 0.7225,
        pair,
    ),
    # of two draws with log-ratios .2 and -.1 the mean, whatever the gradient
    "reverse_kl's value is the mean log-ratio": (lambda s: pg.reverse_kl(at_ratios(0.2, -0.1)(s)).row, 0.05, pair),
    # winrates .9 and .2: -(.4 - .3 * .2) log .5 / 2 - (-.3 + .3 * .1) log .25 / 2
    "regularised_pg of two draws": (
        lambda s: regularised_pg(won(0.9, 0.2)(likely(0.5, 0.25)(s))).row,
        (-0.34 * math.log(0.5) + 0.27 * math.log(0.25)) / 2,
        pair,
    ),
    # two responses: the standard deviation is the gap over the root of 2, so A = +-0.7071 (less 1e-4 of it), whatever the gap
    "grpo's advantages of two responses": (
        lambda s: pg.group_advantage(scored(9.0, 2.0)(s), scores(9.0, 2.0), "group")[:, 0, 0],
        3.5 / (7 / 2**0.5 + 1e-4),
        pair,
    ),
    "a group of equal scores is dead": (lambda s: pg.grpo(scored(0.1, 0.1, 0.1, 0.1)(s)).metrics["dead"], 1.0, group),
    "a group of unequal scores is not": (lambda s: pg.grpo(scored(0.1, 0.1, 0.1, 0.2)(s)).metrics["dead"], 0.0, group),
}


def scores(*score: float) -> Tensor:
    return torch.tensor([score] * B, dtype=torch.float64)


def unjudged(s: Scored) -> Scored:
    return replace(s, rows=s.rows.replace(score=None, winrate=None))


def won(*winrate: float) -> Callable[[Scored], Scored]:
    return lambda s: replace(s, rows=s.rows.replace(winrate=scores(*winrate)))


def likely(*p: float) -> Callable[[Scored], Scored]:
    """Log-probabilities of p at log-ratios .2 and -.1."""
    logp = scores(*p).log()
    return lambda s: at(replace(s, ref_logp=logp - scores(0.2, -0.1)), logp)


BETAS: dict[str, Callable[[float], Method]] = {"copg": lambda beta: methods.copg(beta=beta)}

REFUSED: dict[str, Refusal] = {
    "rloo on one draw": (lambda: rloo(group(1)), "one response each"),
    "policy gradient: rows without scores": (lambda: pg.grpo(unjudged(group())), "grpo reads score"),
    "policy gradient: rows without win rates": (
        lambda: regularised_pg(replace(group(), rows=group().rows.replace(winrate=None))),
        "reads winrate",
    ),
    "policy gradient: an unknown baseline": (lambda: pg.regularised_pg(group(), baseline="mean"), "baseline is 'mean'"),
    "policy gradient: an unknown scale": (lambda: probe(methods.copg(scale="tau")), "scale is 'tau'"),
    "policy gradient: an unknown aggregation": (lambda: probe(methods.grpo(loss_type="mean")), "loss_type is 'mean'"),
    "policy gradient: an unknown level": (lambda: probe(methods.grpo(importance_sampling_level="word")), "level is 'word'"),
    "policy gradient: an unknown spread": (lambda: probe(methods.grpo(scale_rewards="std")), "spread is 'std'"),
    "dr_grpo without a length": (lambda: methods.grpo(loss_type="dr_grpo"), "max_completion_length is None with loss_type='dr_grpo'"),
    "a length that no mean reads": (lambda: methods.grpo(max_completion_length=9), "max_completion_length is 9 with loss_type='dapo'"),
    "dr_grpo's loss without a length": (lambda: pg.length_of(None, "dr_grpo"), "longest is None"),
    "a clip of 0": (lambda: probe(methods.rloo(epsilon=0.0)), "epsilon is 0.0"),
    "a discount above 1": (lambda: probe(methods.ppo(gamma=2.0)), "gamma is 2.0"),
    "a negative discount": (lambda: probe(methods.ppo(lam=-1.0)), "lam -1.0"),
    "a negative KL": (lambda: probe(methods.rloo(beta=-0.1)), "beta is -0.1"),
    "policy gradient: one response": (lambda: methods.rloo(responses=1), "responses is 1"),
    "an unknown reward": (lambda: methods.grpo(reward="wins"), "reward is 'wins'"),
    "a judge's reward for the data's responses": (lambda: methods.copg(responses=None, reward="score"), "own scores are read"),
}
