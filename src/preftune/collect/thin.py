"""Pairs out of lists: which two responses of a prompt become a row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..types import Collect, Context, Judge, Key, Policy, PreftuneError, Rows
from .label import heard, itself, preferences


def both_orders(judge: Judge, rows: Rows, y: Any, key: Key) -> tuple[Tensor, Tensor]:
    """P(y_i beats y_j) [B, K, K] averaged over both orders of presentation, 1/2 for i = j, and how far the two answers were apart.

    p = (p_ij + 1 - p_ji) / 2, p_ij the answer with y_i shown first; a judge with a taste for the first place has |p_ij - (1 - p_ji)| > 0.
    NaN where it is silent in one of them.
    """
    first = itself(preferences(judge, rows, y, y, key))
    second = 1 - first.mT
    return (first + second) / 2, (first - second).abs()


def temper(p: Tensor, T: float) -> Tensor:
    """sigmoid(T logit p): below T = 1 nearer to one half. Written so that 0 and 1 stay what they are."""
    return p**T / (p**T + (1 - p) ** T)


def paired(policy: Policy, rows: Rows, y: Any, pairs: Sequence[Sequence[tuple[int, int]]], **labels: Any) -> Rows:
    """Rows of two out of responses y [B, K]: `pairs` [B][P] says which columns, the better first; ids are extended by them.

    Prompt and weight are repeated, labels [B, K] are left behind; those given are [sum of P, ...].
    """
    source = [b for b, some in enumerate(pairs) for _ in some]
    chosen = [columns for some in pairs for columns in some]
    parts = [y.take(rows=[b], columns=[i]).join(y.take(rows=[b], columns=[j])).pack() for b, (i, j) in zip(source, chosen, strict=True)]
    # What a policy unpacks is laid out row after row, so rows are joined as files would be.
    response = policy.unpack({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    gone = dict.fromkeys(("response", "prompts", "present", "score", "prefer", "winrate", "beats", "desirable", "law"))
    few = rows.replace(**gone, extra={}).take(source)
    ids = tuple(f"{name} {i}-{j}" for name, (i, j) in zip(few.id, chosen, strict=True))
    return few.replace(id=ids, response=response, ranked=True, segments=None, segment_label=None, **labels)


def ranked_pairs(ctx: Context, *, responses: int = 4, T: float = 1.0) -> Rows:
    """All pairs of `responses` answers of the current policy, the one of the higher mean win probability first, with soft labels.

    Where the columns enumerate a law, a pair weighs as much as it would be drawn. extra: disagreement [B], how far the
    judge's answers in the two orders were apart.
    """
    policy = ctx.roles["current"]
    y = policy.sample(ctx.feed, responses, ctx.key.fold("pair"))
    p, apart = both_orders(ctx.judge, ctx.feed, y, ctx.key.fold("judge"))
    ctx, y, p, apart = heard(ctx, y, p, apart)
    ranks = p.mean(2).argsort(dim=1, descending=True, stable=True).tolist()
    pairs = [list(itertools.combinations(order, 2)) for order in ranks]
    at = tuple(torch.tensor([(b, i, j) for b, some in enumerate(pairs) for i, j in some]).T)
    rows = paired(policy, ctx.feed, y, pairs, prefer=temper(p[at], T), extra={"disagreement": apart[at]})
    if y.law is None:
        return rows
    drawn = y.law[at[0], at[1]] * y.law[at[0], at[2]] * (1.0 if rows.weight is None else rows.weight)
    return rows.replace(weight=drawn / drawn.mean())


ranked_pairs.makes = ("disagreement",)  # type: ignore[attr-defined]


def all_pairs(*, responses: int, T: float) -> Collect:
    """`ranked_pairs` with its numbers checked when a method is composed."""
    if responses < 2:
        raise PreftuneError(f"responses is {responses}, needed 2 or more: the answers to a prompt are compared with one another")
    if not 0 < T < float("inf"):
        raise PreftuneError(f"T is {T}, needed a finite number above 0: the judge's probabilities are sharpened above 1, softened below")
    return partial(ranked_pairs, responses=responses, T=T)
