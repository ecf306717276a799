"""Where responses are cut: boundaries [B, K, S + 1] in tokens, from which scoring sums by segment."""

from __future__ import annotations

import torch

from ..types import Context, Rows


def common_length(ctx: Context) -> Rows:
    """Every response in two: a head as long as the shorter response of its row, and the tail beyond, which one of a pair lacks.

    Tokens are counted, the end of turn with them, as truncation left them.
    """
    length = ctx.feed.response.length
    common = length.min(1, keepdim=True).values.expand_as(length)
    return ctx.feed.replace(segments=torch.stack([torch.zeros_like(length), common, length], 2))


common_length.makes = ("segments",)  # type: ignore[attr-defined]  # no steps of the file


def every_token(rows: Rows) -> Rows:
    """Every token of every response a segment of its own; shorter responses have empty ones behind their end."""
    length = rows.response.length
    return rows.replace(segments=torch.minimum(torch.arange(int(length.max()) + 1), length[:, :, None]))
