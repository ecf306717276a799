"""What is done to labels that several reward models have voted on."""

from __future__ import annotations

import torch

from ..types import Context, PreftuneError, Rows


def flip_weakest(ctx: Context, *, share: float) -> Rows:
    """Turn the labels of the share of rows that the reward models support least: prefer becomes 1 - prefer, a hard label's 1 becomes 0.

    The support is score[:, 0] - score[:, 1], scores being means over the models. The share is one of all rows given here:
    collect once a round, or it is one of every batch.
    """
    rows = ctx.feed
    if rows.score is None or rows.score.isnan().any():
        raise PreftuneError("rows carry no scores, needed both responses' mean reward to tell which labels are weakest; give scores")
    weakest = (rows.score[:, 0] - rows.score[:, 1]).argsort(stable=True)[: round(share * len(rows))]
    prefer = torch.ones(len(rows), dtype=torch.float64) if rows.prefer is None else rows.prefer.clone()
    prefer[weakest] = 1 - prefer[weakest]
    return rows.replace(prefer=prefer)
