"""Labels from a judge, and the rows that it says nothing about."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..numerics import average
from ..types import Context, Judge, Key, PreftuneError, Rows

MOST = 0.5  # of the rows of a batch may be without an answer


def preferences(judge: Judge, rows: Rows, y: Any, z: Any, key: Key) -> Tensor:
    """P(y beats z) [B, K, L] as the judge says it; NaN where it gave no answer."""
    beats: Tensor = judge.prefer(rows, y, z, key)
    needed = [len(rows), y.shape[1], z.shape[1]]
    if list(beats.shape) != needed:
        raise PreftuneError(
            f"the judge {type(judge).__name__} gave preferences of shape {list(beats.shape)}, needed {needed}: rows, responses and those "
            "they are compared with; correct its `prefer`"
        )
    return beats


def winrate(judge: Judge, rows: Rows, y: Any, z: Any, key: Key) -> Tensor:
    """P(y beats z) averaged over the columns of z: [B, K]; over z's law where it enumerates a distribution. NaN where one has no answer."""
    averaging = getattr(judge, "winrate", None)  # AveragingJudge; asking for the protocol costs as much as a small game
    if averaging is not None:
        found: Tensor = averaging(rows, y, z, key)
        return found
    beats = preferences(judge, rows, y, z, key)
    return average(itself(beats) if z is y else beats, z.law)


def itself(beats: Tensor) -> Tensor:
    """P [B, K, K] of responses among themselves: a judge need not compare one with itself, whose mean over both orders is 1/2 anyway."""
    same = torch.eye(beats.shape[-1], dtype=torch.bool, device=beats.device)
    return torch.where(same & beats.isnan(), 0.5, beats)


def heard(ctx: Context, y: Any, answers: Tensor, *more: Tensor) -> tuple[Any, ...]:
    """(ctx, y, answers, *more) of the rows about which the judge was not silent: `answers` [B, ...] hold no NaN there.

    A collector calls this as soon as it has asked, and goes on with what it returns. A row with one missing answer is left out whole:
    a mean over the responses that have one would be a win rate of another kind. The rows left out are named in `ctx.silent`, which a
    run counts; the loss is the mean over those that stay. More than half of a batch is an error: what is left would be the judge's choice.
    """
    missing = answers.isnan().reshape(len(answers), -1).any(1)
    if not missing.any():
        return (ctx, y, answers, *more)
    silent = [ctx.feed.id[i] for i in missing.nonzero().flatten().tolist()]
    if len(silent) > MOST * len(ctx.feed):
        raise PreftuneError(
            f"the judge gave no answer about {len(silent)} of {len(ctx.feed)} rows, {', '.join(silent[:5])}{' ...' * (len(silent) > 5)}; "
            "needed all answers about half of a batch or more; see what it says about one of them, or take another judge"
        )
    ctx.silent.extend(silent)
    stay = (~missing).nonzero().flatten().tolist()
    return dataclasses.replace(ctx, feed=ctx.feed.take(stay)), y.take(rows=stay), *(x[stay] for x in (answers, *more))
