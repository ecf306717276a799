"""Labels from a judge."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..numerics import average
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
    averaging = getattr(judge, "winrate", None)  # AveragingJudge; asking for the protocol costs as much as a small game
    beats: Tensor = averaging(rows, y, z, key) if averaging is not None else average(preferences(judge, rows, y, z, key), z.law)
    silent = beats.isnan().any(-1)
    if silent.any():
        ids = [rows.id[i] for i in silent.nonzero().flatten().tolist()]
        raise PreftuneError(f"the judge gave no answer for rows {ids[:10]}; needed a preference for every response; remove these prompts")
    return beats
