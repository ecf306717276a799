"""Labels from a judge."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..types import Judge, Key, PreftuneError, Rows


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
    """P(y beats z) averaged over the columns of z: [B, K]; over z's law where it enumerates a distribution."""
    average = getattr(judge, "winrate", None)  # AveragingJudge; asking for the protocol costs as much as a small game
    if average is not None:
        beats: Tensor = average(rows, y, z, key)
    else:
        each = preferences(judge, rows, y, z, key)
        beats = each.mean(-1) if z.law is None else (each * z.law.to(each)[:, None, :]).sum(-1)
    silent = beats.isnan().any(-1)
    if silent.any():
        ids = [rows.id[i] for i in silent.nonzero().flatten().tolist()]
        raise PreftuneError(f"the judge gave no answer for rows {ids[:10]}; needed a preference for every response; remove these prompts")
    return beats
