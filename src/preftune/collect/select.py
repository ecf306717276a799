"""Which responses of a row are trained on."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch

from ..types import Collect, Context, PreftuneError, Rows
from .draw import against_opponent

Trained = Literal["extremes", "all"]


def extremes(rows: Rows) -> Rows:
    """Of each row the response of the highest win rate and one of the lowest; the others count as absent and are not scored.

    Win rates stay what they were against all responses. Of equal ones the first is the best and the last the worst, so that
    two responses stay even where all are alike. Columns that enumerated a law do so no longer.
    """
    if rows.winrate is None:
        raise PreftuneError("the rows carry no win rates, needed to tell best from worst; judge the responses first")
    here = torch.ones_like(rows.winrate, dtype=torch.bool) if rows.present is None else rows.present
    order = rows.winrate.masked_fill(~here, -torch.inf).argsort(dim=1, descending=True, stable=True)
    last = (here.sum(1, keepdim=True) - 1).clamp(min=0)
    kept = torch.zeros_like(here).scatter(1, torch.cat([order[:, :1], order.gather(1, last)], 1), True)
    return rows.replace(present=kept & here, law=None)


def self_judged(ctx: Context, *, responses: int = 5, train_on: Trained = "extremes") -> Rows:
    """`responses` of the current policy, each judged against all of them, itself at 1/2; best and worst are kept, or all."""
    rows = against_opponent(ctx, responses=responses, opponents=0)
    return extremes(rows) if train_on == "extremes" else rows


def among_own(*, responses: int, train_on: Trained) -> Collect:
    """`self_judged` with its numbers checked when a method is composed."""
    if responses < 2:
        raise PreftuneError(f"responses is {responses}, needed 2 or more: they are judged against one another; the authors draw 5")
    if train_on not in ("extremes", "all"):
        raise PreftuneError(
            f"train_on is {train_on!r}, needed 'extremes' or 'all': train on the best and the worst response, or on every one"
        )
    return partial(self_judged, responses=responses, train_on=train_on)
