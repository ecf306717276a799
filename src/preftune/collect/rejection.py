"""Of many responses those that a better policy would have given: rejection sampling by reward, and the best of n."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..numerics import average, one_of
from ..types import Collect, Context, Key, Policy, PreftuneError, Rows
from .label import heard, preferences
from .online import extremes_law
from .reward import Reward, grades, has_scores
from .thin import paired

Draws = Literal["without_replacement", "independent"]
Pairing = Literal["first_round", "all"]
Label = Literal["threshold", "sampled", "soft"]
Odds = Literal["score", "log_odds"]
Pairs = list[list[tuple[int, int]]]  # [B] of columns


# --- statistical rejection sampling -------------------------------------------------------------------------------------


def acceptance(reward: Tensor, beta: float) -> Tensor:
    """exp((r - max r) / beta), how likely each of [..., N] candidates is kept; 1 for the best, and for all where beta is infinite.

    Limits  a constant added to the rewards of a prompt changes nothing
    """
    return ((reward - reward.amax(-1, keepdim=True)) / beta).exp()


def survivors(reward: Tensor, n: int, beta: float, key: Key) -> list[int]:
    """n of N candidates without replacement: in every sweep each that is left is kept with its `acceptance` among those left.

    The first of them follows proposal * exp(r / beta) / Z, up to how far the best candidate is from the best there is; the later
    ones are no independent draws of it: they are what is left. Fewer than n where there are fewer candidates.

    Limits  beta = inf: the first n; beta to 0: the n best
    Source  arXiv:2309.06657 alg. 1, with candidates told apart by place, not by text: equal ones stay as many as were drawn
    """
    draw, left, found = key.numpy(), list(range(len(reward))), list[int]()
    while len(found) < n and left:
        kept = torch.from_numpy(draw.random(len(left))) < acceptance(reward[left].double(), beta)
        found += [i for i, stays in zip(left, kept.tolist(), strict=True) if stays][: n - len(found)]
        left = [i for i in left if i not in found]
    return found


def independent(reward: Tensor, n: int, beta: float, key: Key) -> list[int]:
    """n independent draws, with replacement, of the candidates [N] weighed by exp(r / beta): each as the first survivor."""
    until = acceptance(reward.double(), beta).cumsum(0)
    lots = torch.from_numpy(key.numpy().random(n)) * until[-1]
    found: list[int] = torch.searchsorted(until, lots, right=True).clamp(max=len(reward) - 1).tolist()
    return found


DRAWS = {"without_replacement": survivors, "independent": independent}
PAIRINGS = {
    "first_round": lambda kept: list(zip(kept[::2], kept[1::2], strict=False)),
    "all": lambda kept: list(itertools.combinations(kept, 2)),
}


def log_odds(ctx: Context, sampler: Policy, y: Any, eps: float = 0.0) -> Tensor:
    """r [B, N] = logit P(y beats y_b), asked in both orders, y_b one more response of the sampler; its mean over a law that is known.

    eps keeps P within [eps, 1 - eps]; 0 leaves it as it is and refuses a judge that is sure.
    """
    base = sampler.sample(ctx.feed, 1, ctx.key.fold("baseline"))
    first = preferences(ctx.judge, ctx.feed, y, base, ctx.key.fold("reward"))
    second = 1 - preferences(ctx.judge, ctx.feed, base, y, ctx.key.fold("reward")).mT
    p = ((first + second) / 2).double().cpu()
    reward = average(torch.logit(p.clamp(eps, 1 - eps) if eps else p), base.law)
    odd = reward.isinf().any(1)
    if odd.any():
        ids = [ctx.feed.id[i] for i in odd.nonzero().flatten().tolist()]
        raise PreftuneError(
            f"the judge is sure of an answer for rows {ids[:10]}, needed probabilities between 0 and 1: rewards are their log-odds; "
            "set eps=0.01 to bound them, or give a judge with scores"
        )
    return reward


def oriented(ctx: Context, y: Any, pairs: Pairs, label: Label) -> tuple[Pairs, Tensor]:
    """The pairs with the winner first, those without one left out, and P(first beats second) of those that stay; both orders asked."""
    if not any(pairs):
        raise PreftuneError("every pair was one response twice, needed two different ones; raise candidates, or beta")
    rows = paired(ctx.roles["current"], ctx.feed, y, pairs)
    a, b = (rows.response.take(columns=[column]) for column in (0, 1))
    key = ctx.key.fold("judge")
    p = (preferences(ctx.judge, rows, a, b, key)[:, 0, 0] + 1 - preferences(ctx.judge, rows, b, a, key)[:, 0, 0]).double().cpu() / 2
    _, _, p, stay = heard(dataclasses.replace(ctx, feed=rows), rows.response, p, torch.arange(len(p)))
    answered, number = set(stay.tolist()), itertools.count()
    pairs = [[pair for pair in some if next(number) in answered] for some in pairs]
    rows = rows.take(stay.tolist())
    first = torch.from_numpy(ctx.key.fold("label").uniform(rows.id)) < p if label == "sampled" else p >= 0.5
    known = iter(zip(first.tolist(), (p != 0.5).tolist(), strict=True))
    won: Pairs = []
    for some in pairs:
        verdicts = [(pair, *next(known)) for pair in some]
        won.append([(i, j) if wins else (j, i) for (i, j), wins, decided in verdicts if decided or label != "threshold"])
    p = torch.where(first, p, 1 - p)
    p = p[p != 0.5] if label == "threshold" else p
    if not len(p):
        raise PreftuneError("the judge finds the responses of every pair alike, needed a winner; take another judge, or label=soft")
    return won, p


def resampled(
    ctx: Context,
    *,
    sampler: str = "reference",
    candidates: int = 64,
    responses: int = 8,
    beta: float = 0.5,
    draws: Draws = "without_replacement",
    pairing: Pairing = "first_round",
    label: Label = "threshold",
    reward: Odds | None = None,
    eps: float = 0.0,
) -> Rows:
    """Ranked pairs of `responses` out of `candidates` of the role `sampler`, as a policy sampler * exp(r / beta) / Z would have drawn them.

    reward   "score": the judge's; "log_odds": logit P(y beats y_b) against one more draw of the sampler; None: scores where there are any
    eps      bounds the probabilities that log-odds are taken of, see `log_odds`
    pairing  "first_round": neighbours; "all": everyone with everyone
    label    "threshold": the likelier wins, equals make no pair; "sampled": a winner drawn with the judge's probability; "soft": `prefer`
             holds that probability

    Where the sampler enumerates its law, the survivors' law is known, and every pair weighs as much as two draws of it would make it.
    """
    first = ctx.roles[sampler]
    y = first.sample(ctx.feed, candidates, ctx.key.fold("candidates"))
    if reward == "log_odds" or (reward is None and not has_scores(ctx.judge)):
        r = log_odds(ctx, first, y, eps)
    else:
        r = grades(ctx.judge, ctx.feed, y, ctx.key.fold("reward"), reward="score", itself=True).double().cpu()
    ctx, y, r = heard(ctx, y, r)
    if y.law is None:
        key = ctx.key.fold("survivors")
        kept = [DRAWS[draws](r[b], responses, beta, key.fold(name)) for b, name in enumerate(ctx.feed.id)]
        pairs = [[(i, j) for i, j in PAIRINGS[pairing](some) if i != j] for some in kept]
    else:
        pairs = [list(itertools.combinations(range(y.shape[1]), 2)) for _ in range(len(ctx.feed))]
    won, p = oriented(ctx, y, pairs, label)
    rows = paired(ctx.roles["current"], ctx.feed, y, won, **({"prefer": p} if label == "soft" else {}))
    if y.law is None:
        return rows
    law = (y.law.log() + r / beta).softmax(1)
    often = torch.stack([law[b, i] * law[b, j] for b, some in enumerate(won) for i, j in some])
    often = often if rows.weight is None else often * rows.weight
    return rows.replace(weight=often / often.mean())


resampled.makes = ("ranked", "prefer")  # type: ignore[attr-defined]


def by_rejection(
    *,
    sampler: str,
    candidates: int,
    responses: int,
    beta: float,
    draws: Draws,
    pairing: Pairing,
    label: Label,
    reward: Odds | None,
    eps: float,
) -> Collect:
    """`resampled` with its arguments checked when a method is composed."""
    if not candidates >= responses >= 2 or (pairing == "first_round" and responses % 2):
        raise PreftuneError(
            f"candidates is {candidates} and responses {responses}, needed candidates >= responses >= 2, and an even number of responses "
            "where neighbours make pairs; the authors take 64 and 8"
        )
    if not beta > 0:
        raise PreftuneError(f"beta is {beta}, needed a number above 0, or inf: rewards are divided by it; the authors take 0.5")
    if not 0 <= eps < 0.5:
        raise PreftuneError(f"eps is {eps}, needed 0 <= eps < 0.5: how near 0 and 1 a probability counts; 0 refuses a judge that is sure")
    one_of("draws", draws, DRAWS, ": how candidates are drawn again")
    one_of("pairing", pairing, PAIRINGS, ": which of them meet")
    if label not in get_args(Label) or reward not in (*get_args(Odds), None):
        raise PreftuneError(
            f"label is {label!r} and reward {reward!r}, needed one of {', '.join(get_args(Label))}, and score, log_odds or None: None "
            "takes the judge's scores where it has them"
        )
    return partial(
        resampled,
        sampler=sampler,
        candidates=candidates,
        responses=responses,
        beta=beta,
        draws=draws,
        pairing=pairing,
        label=label,
        reward=reward,
        eps=eps,
    )


# --- the best of n ------------------------------------------------------------------------------------------------------


def best_of(ctx: Context, *, n: int, reward: Reward | None = None) -> Rows:
    """n responses of the current policy with their `score` [B, n]; extra: calibration [B, n], all of it on the best, others are absent.

    reward: "score" for the judge's scores, "winrate" for win rates among the n, None for scores where the judge has them. Of equals the
    first is the best. Where the policy enumerates its law, calibration is the law of the best of n draws.
    """
    y = ctx.roles["current"].sample(ctx.feed, n, ctx.key.fold("pair"))
    score = grades(ctx.judge, ctx.feed, y, ctx.key.fold("judge"), reward=reward, itself=True).double().cpu()
    ctx, y, score = heard(ctx, y, score)
    if y.law is not None:
        best = extremes_law(y.law, score, n).sum(2)
        return ctx.feed.replace(response=y, law=y.law, score=score, extra={"calibration": best})
    best = torch.nn.functional.one_hot(score.argmax(1), score.shape[1]).double()
    return ctx.feed.replace(response=y, present=best > 0, score=score, extra={"calibration": best})


best_of.makes = ("calibration",)  # type: ignore[attr-defined]


def the_best(*, n: int, reward: Reward | None) -> Collect:
    """`best_of` with its arguments checked when a method is composed."""
    if n < 2:
        raise PreftuneError(f"n is {n}, needed 2 or more: the best of one response is the response; 4 to 16 are usual")
    if reward not in ("score", "winrate", None):
        raise PreftuneError(f"reward is {reward!r}, needed 'score', 'winrate', or None for the judge's scores where it has them")
    return partial(best_of, n=n, reward=reward)
