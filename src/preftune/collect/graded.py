"""Responses of the policy that a grade sets apart: pairs by a margin, best and worst by a mean preference score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..numerics import average
from ..types import Collect, Context, Policy, PreftuneError, Rows
from .label import heard
from .online import extremes_law
from .reward import Reward, grades
from .select import Trained, extremes
from .thin import both_orders, paired

# --- preference scores ------------------------------------------------------------------------------------------------


def mean_scores(ctx: Context, *, responses: int = 5, train_on: Trained = "extremes") -> Rows:
    """`responses` of the current policy; score [B, K] = E_j s(i > j) over its law or over them all, s(i > j) = logit P(i beats j).

    P is asked in both orders, so that s is skew, and s(i > i) = 0. train_on="extremes" keeps best and worst, the others count as absent.
    """
    y = ctx.roles["current"].sample(ctx.feed, responses, ctx.key.fold("pair"))
    P, _ = both_orders(ctx.judge, ctx.feed, y, ctx.key.fold("judge"))
    ctx, y, P = heard(ctx, y, P.double().cpu())
    s = torch.logit(P)
    if not s.isfinite().all():
        ids = [ctx.feed.id[i] for i in (~s.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()]
        raise PreftuneError(
            f"the judge is sure of an answer for rows {ids[:10]}, needed probabilities between 0 and 1: the log-odds of a sure win are "
            "infinite; temper the judge, or use sppo, which reads win rates"
        )
    score = average(s, y.law)
    rows = ctx.feed.replace(response=y, law=y.law, winrate=score)
    rows = extremes(rows) if train_on == "extremes" else rows
    return rows.replace(winrate=None, score=score)


def by_mean_score(*, responses: int, train_on: Trained) -> Collect:
    """`mean_scores` with its numbers checked when a method is composed."""
    if responses < 2:
        raise PreftuneError(f"responses is {responses}, needed 2 or more: they are compared with one another; the authors draw 5")
    if train_on not in ("extremes", "all"):
        raise PreftuneError(f"train_on is {train_on!r}, needed 'extremes' or 'all': the best and the worst response, or every one")
    return partial(mean_scores, responses=responses, train_on=train_on)


# --- the best and the worst by grades -----------------------------------------------------------------------------------


def graded_ends(ctx: Context, *, responses: int = 4, judgements: int = 3, reward: Reward | None = None) -> Rows:
    """Ranked pairs of the best and the worst graded of `responses` of the current policy; none where all grades are equal.

    A grade is the mean of `judgements`, each asked with a key of its own, those without an answer left out; an answer without any is no
    end. Of equals the first is taken. Where the columns enumerate a law, a pair weighs as much as it would be the ends of so many draws.

    reward: "score" for the judge's scores, "winrate" for win rates within the prompt, None for scores where the judge has them.
    """
    policy = ctx.roles["current"]
    y = policy.sample(ctx.feed, responses, ctx.key.fold("pair"))
    asked = [grades(ctx.judge, ctx.feed, y, ctx.key.fold("judge", j), reward=reward, itself=True) for j in range(judgements)]
    grade = torch.stack(asked).double().cpu().nanmean(0)
    known = (~grade.isnan()).sum(1)
    few = known < (2 if y.law is None else grade.shape[1])  # the ends of a law are not known while one of its columns has no grade
    ctx, y, _, grade = heard(ctx, y, torch.where(few, torch.nan, 0.0), grade)
    often = _drawn_ends(grade) if y.law is None else ends_law(y.law, grade, responses)
    pairs = [[(best, worst) for best, worst in some.nonzero().tolist()] for some in often > 0]
    if not any(pairs):
        raise PreftuneError(
            f"the judge grades all responses alike in each of {len(pairs)} prompts of round {ctx.round}, needed different grades in one; "
            "draw more responses, or take a judge with finer grades"
        )
    rows = paired(policy, ctx.feed, y, pairs)
    if y.law is None:
        return rows
    drawn = often[often > 0] * (1.0 if rows.weight is None else rows.weight)
    return rows.replace(weight=drawn / drawn.mean())


def _drawn_ends(grade: Tensor) -> Tensor:
    """[B, K, K]: 1 for the first of the highest grades and the first of the lowest, where they differ. NaN is no end."""
    best, worst = (torch.where(grade.isnan(), sign * -torch.inf, grade) for sign in (1, -1))
    ends = torch.zeros(*grade.shape, grade.shape[1])
    rows = torch.arange(len(grade))
    ends[rows, best.argmax(1), worst.argmin(1)] = (best.amax(1) > worst.amin(1)).to(ends)
    return ends


def ends_law(law: Tensor, grade: Tensor, n: int) -> Tensor:
    """P(column i is taken as the best and j as the worst of n draws) [B, K, K] from their law and grades [B, K]; 0 for equal grades.

    Columns of one grade share what `extremes_law` gives to all of them by their probability: the first drawn is taken.
    """
    alike = (grade[:, :, None] == grade[:, None, :]).to(law)
    share = law / (alike @ law[:, :, None])[:, :, 0].clamp(min=torch.finfo(law.dtype).tiny)
    ends: Tensor = share[:, :, None] * (alike @ extremes_law(law, grade, n) @ alike) * share[:, None, :]
    return ends * (1 - alike)


def ends_of_grades(*, responses: int, judgements: int, reward: Reward | None) -> Collect:
    """`graded_ends` with its numbers checked when a method is composed."""
    if responses < 2 or judgements < 1:
        raise PreftuneError(
            f"responses is {responses} and judgements {judgements}, needed 2 or more answers and 1 or more grades of each; the authors "
            "take 4 and 3"
        )
    if reward not in ("score", "winrate", None):
        raise PreftuneError(f"reward is {reward!r}, needed 'score', 'winrate', or None for the judge's scores where it has them")
    return partial(graded_ends, responses=responses, judgements=judgements, reward=reward)


# --- pairs of large margin ----------------------------------------------------------------------------------------------


def margin_pairs(
    ctx: Context,
    *,
    responses: int = 5,
    least: float = 5.0,
    margin: float = 2.0,
    own_margin: float = 1.0,
    past: float = 0.3,
    reward: Reward | None = None,
) -> Rows:
    """All pairs among `responses` of the current policy, and the first response of the data where the rows have one, that are far apart.

    The better has a grade of at least `least` and leads by `margin`, or by `own_margin` where the policy wrote it. Pairs of the round
    before join until they are the share `past` of all, those of the one before it half as many, and so on; never twice.
    reward: "score" for the judge's scores, "winrate" for win rates within the prompt, None for scores where the judge has them.

    Where the columns enumerate a law, a pair weighs as much as it would be drawn. extra: round [N], which collected the pair.
    """
    policy = ctx.roles["current"]
    y = policy.sample(ctx.feed, responses, ctx.key.fold("pair"))
    law, own = y.law, y.shape[1]
    if ctx.feed.response is not None:
        y = y.join(ctx.feed.response.take(columns=[0]))
        # It is there once: n draws make n (n - 1) p_i p_j pairs of their own, but n p_j with it.
        law = None if law is None else torch.cat([law, torch.full_like(law[:, :1], 1 / (responses - 1))], 1)
    score = grades(ctx.judge, ctx.feed, y, ctx.key.fold("judge"), reward=reward, itself=True)
    ctx, y, score, *laws = heard(ctx, y, score, *([] if law is None else [law]))
    law = laws[0] if laws else None
    lead = torch.full((y.shape[1],), own_margin, dtype=score.dtype)
    lead[own:] = margin
    apart = (score[:, :, None] - score[:, None, :] >= lead[:, None]) & (score >= least)[:, :, None]
    if not apart.any():
        raise PreftuneError(
            f"no pair of round {ctx.round} has a better response of at least {least:g} that leads by {own_margin:g} ({margin:g} over the "
            f"policy's): grades go from {float(score.min()):.3g} to {float(score.max()):.3g}; set least and the margins on the "
            "judge's scale (win rates lie between 0 and 1)"
        )
    b, i, j = apart.nonzero(as_tuple=True)
    pairs = [[(better, worse) for better, worse in some.nonzero().tolist()] for some in apart]
    fresh = paired(policy, ctx.feed, y, pairs, extra={"round": torch.full((len(b),), ctx.round)})
    if law is not None:
        drawn = law[b, i] * law[b, j] * (1.0 if fresh.weight is None else fresh.weight)
        fresh = fresh.replace(weight=drawn / drawn.mean())
    return stacked(policy, [fresh, *_again(ctx, len(fresh), past)])


margin_pairs.makes = ("ranked",)  # type: ignore[attr-defined]


def _again(ctx: Context, fresh: int, past: float) -> list[Rows]:
    """Pairs of earlier rounds, drawn anew: the shares past, past / 2, ... of a whole to which `fresh` is the rest."""
    shares = [past / 2**age for age in range(len(ctx.past))]
    whole, found = fresh / (1 - sum(shares)), []
    for age, (share, rows) in enumerate(zip(shares, reversed(ctx.past), strict=True)):
        number = ctx.round - 1 - age
        then = [n for n, made in enumerate(rows.extra["round"].tolist()) if made == number]  # not those it took over itself
        lots = ctx.key.fold("past", number).uniform([rows.id[n] for n in then])
        some = rows.take([then[n] for n in lots.argsort()[: int(share * whole)]])
        found.append(some.replace(id=tuple(f"{name} of round {number}" for name in some.id)))
    return found


def stacked(policy: Policy, parts: Sequence[Rows]) -> Rows:
    """Ranked pairs below one another, with their weights and rounds."""
    packed = [part.response.pack() for part in parts if len(part)]
    common = set.intersection(*(set(pack) for pack in packed))  # log-probs stay only where all have them
    weights = [torch.ones(len(part), dtype=torch.float64) if part.weight is None else part.weight for part in parts]
    return Rows(
        id=tuple(name for part in parts for name in part.id),
        prompt=tuple(prompt for part in parts for prompt in part.prompt),
        response=policy.unpack({name: torch.cat([pack[name] for pack in packed]) for name in sorted(common)}),
        ranked=True,
        weight=None if all(part.weight is None for part in parts) else torch.cat(weights),
        extra={"round": torch.cat([part.extra["round"] for part in parts])},
    )


def far_apart(*, responses: int, least: float, margin: float, own_margin: float, past: float, reward: Reward | None) -> Collect:
    """`margin_pairs` with its numbers checked when a method is composed."""
    if responses < 2:
        raise PreftuneError(f"responses is {responses}, needed 2 or more: they are compared with one another; the authors draw 5")
    if not (margin > 0 and own_margin > 0):
        raise PreftuneError(f"margin is {margin} and own_margin {own_margin}, needed numbers above 0: how far the better response leads")
    if not 0 <= past < 0.5:
        raise PreftuneError(f"past is {past}, needed 0 <= past < 0.5: the last round's share, the one before has half of it, and so on")
    if reward not in ("score", "winrate", None):
        raise PreftuneError(f"reward is {reward!r}, needed 'score', 'winrate', or None for the judge's scores where it has them")
    return partial(margin_pairs, responses=responses, least=least, margin=margin, own_margin=own_margin, past=past, reward=reward)
