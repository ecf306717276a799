"""Responses of the policy with a reward each."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .. import processes
from ..types import Collect, Context, Judge, Key, PreftuneError, Rows, ScoringJudge
from .label import heard, winrate
from .segment import every_token
from .thin import both_orders

Reward = Literal["score", "winrate"]


def rewarded(ctx: Context, *, responses: int, reward: Reward | None = None, itself: bool = True, remember: bool = False) -> Rows:
    """`responses` of the current policy, every token a segment, with `score` [B, K].

    reward     "score" asks the judge for it, "winrate" has it compare; None asks for scores where the judge has them
    itself     whether a draw's wins count itself, see `wins`
    remember   keeps in extra what the policy thinks of them now: old_logp [B, K, S], and old_value [B, K, 1] where it has a head
               "value". Needed where the same rows are descended on more than once
    """
    current = ctx.roles["current"]
    y = current.sample(ctx.feed, responses, ctx.key.fold("pair"))
    ctx, y, score = heard(ctx, y, grades(ctx.judge, ctx.feed, y, ctx.key.fold("judge"), reward=reward, itself=itself))
    rows = every_token(ctx.feed.replace(response=y, law=y.law)).replace(score=score)
    if not remember:
        return rows
    with torch.no_grad():
        now = processes.score(current, rows, ("segments",))
    kept = {"old_logp": now.segment_logp, "old_value": now.heads.get("value")}
    return rows.replace(extra={**rows.extra, **{name: value for name, value in kept.items() if value is not None}})


rewarded.makes = ("segments", "score", "old_logp", "old_value", "advantage")  # type: ignore[attr-defined]  # no columns of the file


def grades(judge: Judge, rows: Rows, y: Any, key: Key, *, reward: Reward | None, itself: bool) -> Tensor:
    """The reward of every response [B, K], by the judge's scores or its comparisons; `rewarded` says which. NaN where it is silent."""
    if reward == "score" and not has_scores(judge):
        raise PreftuneError(f"reward is 'score', but the judge {type(judge).__name__} has no scores; give one that has, or reward=winrate")
    if reward == "winrate" or not has_scores(judge):
        return wins(judge, rows, y, key, itself=itself)
    score: Tensor = judge.score(rows, y, key)  # type: ignore[attr-defined]
    return score


def wins(judge: Judge, rows: Rows, y: Any, key: Key, *, itself: bool) -> Tensor:
    """P(y beats the policy): over its law where the columns enumerate it, otherwise the mean over the draws, in both orders.

    itself   whether a draw counts itself, at 1/2. Against the others alone the mean is unbiased, and the rewards of a row add up to
             K / 2. But the others' rewards hold their matches against y: a loss that compares y with them (leave-one-out,
             differences of pairs) then sees every match twice, K / (K - 1) times the difference that there is. Counting
             itself takes exactly that back
    """
    if y.law is not None:
        return winrate(judge, rows, y, y, key)
    beats, _ = both_orders(judge, rows, y, key)
    return beats.mean(2) if itself else (beats.sum(2) - 0.5) / (y.shape[1] - 1)


def has_scores(judge: Judge) -> bool:
    """Whether the judge has a scale of its own; a table has one where it was given rewards."""
    return isinstance(judge, ScoringJudge) and getattr(judge, "rewards", True) is not None


def rewards(*, responses: int, reward: Reward | None = None, itself: bool = True, remember: bool = False) -> Collect:
    """`rewarded` with its arguments checked when a method is composed."""
    if responses < 2:
        raise PreftuneError(f"responses is {responses}, needed 2 or more: each is compared with the others of its prompt; raise it")
    if reward not in ("score", "winrate", None):
        raise PreftuneError(f"reward is {reward!r}, needed 'score', 'winrate', or None for the judge's scores where it has them")
    return partial(rewarded, responses=responses, reward=reward, itself=itself, remember=remember)
