"""What judges are trained on: comparisons that show two responses at once, and marks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ..judges.comparison import shown
from ..types import Collect, Context, PreftuneError, Rows


def both_orders(ctx: Context) -> Rows:
    """A pair [B, 2] as two comparisons [B, 2]: column 0 shows (preferred, other), column 1 the same two the other way round.

    A comparison takes the place of the response: the policy's own template puts it behind the prompt, which is read once for both, and
    a head reads it at its last token, which has seen everything. A text that ended its turn early is shown like any other.
    """
    policy = ctx.roles["current"]
    if not hasattr(policy, "answer"):
        raise PreftuneError("comparisons are made of text, but this policy answers with none; use a language model")
    pairs = ctx.feed.response.take(columns=[0, 1]).show()
    return ctx.feed.replace(response=policy.answer([[shown(a, b), shown(b, a)] for a, b in pairs]))


def stacked(ctx: Context, *, names: Sequence[str]) -> Rows:
    """The rows with the label `attributes` [B, K, A]: the columns of these names side by side, NaN where a response has no mark."""
    n, k = ctx.feed.response.shape
    marks: list[Any] = []
    for name in names:
        column = ctx.feed.extra.get(name)
        column = torch.full((n, k), torch.nan, dtype=torch.float64) if column is None else column
        if column.ndim == 1 and k == 1:
            column = column[:, None]
        if column.shape != (n, k):
            raise PreftuneError(
                f"the column {name!r} has marks of shape {tuple(column.shape)} for {n} rows of {k} responses, "
                f"needed a number for each response; write a list of {k} numbers into every cell"
            )
        marks.append(column)
    if all(column.isnan().all() for column in marks):
        raise PreftuneError(
            f"rows {list(ctx.feed.id[:10])} have none of the columns {', '.join(names)}, needed marks of their responses; "
            "name your columns with attributes=..., or rename them"
        )
    return ctx.feed.replace(extra={**ctx.feed.extra, "attributes": torch.stack(marks, 2)})


stacked.makes = ("attributes",)  # type: ignore[attr-defined]  # no column of the file


def marked(names: Sequence[str]) -> Collect:
    """`stacked` of these columns."""
    return partial(stacked, names=tuple(names))
