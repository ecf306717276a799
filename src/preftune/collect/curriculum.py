"""Which pair of a ranked list is trained on, and when."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Context, PreftuneError, Rows


def worse(rows: Rows, column: int) -> Tensor:
    """Which rows have a response at this rank that is no tie with their best [B]."""
    kept = torch.full((len(rows),), column < rows.response.shape[1])
    if column < rows.response.shape[1] and rows.present is not None:
        kept = kept & rows.present[:, column]
    if column < rows.response.shape[1] and rows.score is not None:
        kept = kept & (rows.score[:, 0] != rows.score[:, column])
    return kept


def best_against(rows: Rows, column: int) -> Rows:
    """The best response and the one at this rank, as pairs. Rows without a response there, or with equal scores, are left out."""
    if not rows.ranked:
        raise PreftuneError("a curriculum needs ranked responses, but the rows have no order; give scores, ranks, or ranked: true")
    wide, kept = rows.response.shape[1], worse(rows, column)
    if not kept.any():
        raise PreftuneError(
            f"no row has a response of rank {column + 1} that is worse than its best: found {wide} responses at most; "
            f"needed stages + 1 of them; set stages to {max(1, wide - 1)} or give longer lists"
        )
    some = rows.take(kept.nonzero().flatten().tolist())
    pick = lambda label: None if label is None else label[:, [0, column]]
    return Rows(
        id=some.id,
        prompt=some.prompt,
        response=some.response.take(columns=[0, column]),
        ranked=True,
        score=pick(some.score),
        desirable=pick(some.desirable),
        prefer=some.prefer if column == 1 else None,
        weight=some.weight,
    )


def easy_to_hard(ctx: Context, *, stages: int) -> Rows:
    """Stage t = 0, 1, ... pairs the best response with the one of rank stages + 1 - t: the distance shrinks from stage to stage.
    Further rounds repeat the last stage."""
    return best_against(ctx.feed, max(1, stages - ctx.round))


def mixed(ctx: Context, *, stages: int) -> Rows:
    """Every step pairs the best responses of its rows with those of one rank, drawn by chance among the ranks that its rows have:
    the curriculum's pairs in no order."""
    ranks = [column for column in range(1, stages + 1) if worse(ctx.feed, column).any()] or [stages]
    return best_against(ctx.feed, ranks[int(ctx.key.fold("rank").numpy().integers(len(ranks)))])
