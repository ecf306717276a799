"""Who answers."""

from __future__ import annotations

from typing import Literal

import torch

from ..types import Context, PreftuneError, Rows
from .label import winrate

Pairs = Literal["policy", "uniform"]


def given(ctx: Context) -> Rows:
    """The rows as the data have them: offline methods."""
    return ctx.feed


def mismatched(ctx: Context) -> Rows:
    """Labelled responses [B, K] joined by the K responses of another row, from which KTO estimates its KL baseline.

    Ranked pairs count as one desirable and one undesirable response. The partner is the next row of another prompt in
    the shuffled batch, so partners change from epoch to epoch.
    """
    rows = ctx.feed
    if rows.desirable is None and not rows.ranked:
        raise PreftuneError("found neither desirable labels nor ranked pairs; needed completion and label columns, or chosen and rejected")
    n, k = len(rows), rows.response.shape[1]
    desirable = torch.tensor([[column == 0 for column in range(k)]] * n) if rows.desirable is None else rows.desirable
    partner = [next(((i + j) % n for j in range(1, n) if rows.prompt[(i + j) % n] != rows.prompt[i]), i) for i in range(n)]
    if partner == list(range(n)):
        raise PreftuneError(
            f"all {n} rows of this batch have the same prompt, but kto estimates its KL baseline from responses of other "
            "prompts; use a larger batch, data with several prompts, or a pairwise method"
        )
    present = None if rows.present is None else torch.cat([rows.present, rows.present[partner]], dim=1)
    return rows.replace(response=rows.response.join(rows.response.take(rows=partner)), desirable=desirable, present=present)


def against_opponent(ctx: Context, *, pairs: Pairs = "policy", samples: int = 2, opponents: int = 1) -> Rows:
    """`samples` responses of the current policy and their win rates against the opponent role.

    pairs="policy"   drawn from the policy and judged against one another, itself at 1/2: for two samples the winrates
                     differ by P(y beats y') - 1/2, the pair form of online IPO; the opponent role is then not asked
    pairs="uniform"  drawn by the policy's stand-in for a uniform law and judged against fresh draws of the opponent
    """
    if samples < 2 or opponents < 1:
        raise PreftuneError(
            f"samples is {samples} and opponents is {opponents}, needed samples >= 2 and opponents >= 1: "
            "the loss compares responses of one prompt with one another; raise them"
        )
    current = ctx.roles["current"]
    if pairs == "policy":
        y = z = current.sample(ctx.feed, samples, ctx.key.fold("pair"))
    elif pairs == "uniform":
        y = current.sample(ctx.feed, samples, ctx.key.fold("pair"), **current.uniform)
        z = ctx.roles["opponent"].sample(ctx.feed, opponents, ctx.key.fold("opponent"))
    else:
        raise PreftuneError(f"pairs is {pairs!r}, needed 'policy' or 'uniform'")
    return ctx.feed.replace(response=y, law=y.law, winrate=winrate(ctx.judge, ctx.feed, y, z, ctx.key.fold("judge")))
