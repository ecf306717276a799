"""What is done to labels that several reward models have voted on."""

from __future__ import annotations

import torch

from ..types import Context, PreftuneError, Rows


def flip_weakest(ctx: Context, *, share: float) -> Rows:
    """Turn the labels of the share of rows that the reward models support least: prefer becomes 1 - prefer there, 1 elsewhere where hard.

    The support is score[:, 0] - score[:, 1], scores being means over the models. The share is one of all rows given here:
    collect once a round, or it is one of every batch.
    """
    rows = ctx.feed
    if rows.score is None:
        raise PreftuneError("the rows carry no scores, needed both responses' mean reward to tell which labels are weakest; give scores")
    weakest = (rows.score[:, 0] - rows.score[:, 1]).argsort(stable=True)[: int(share * len(rows))]
    prefer = torch.ones(len(rows), dtype=torch.float64) if rows.prefer is None else rows.prefer.clone()
    prefer[weakest] = 1 - prefer[weakest]
    return rows.replace(prefer=prefer)


def voted(ctx: Context) -> Rows:
    """The rows as the data have them, if they carry the share of votes for column 0 as `prefer`."""
    if ctx.feed.prefer is None:
        raise PreftuneError(
            "the rows carry no soft label prefer, needed the share of the reward models that side with the chosen response; "
            "give votes_chosen and votes_rejected, or prefer"
        )
    return ctx.feed
