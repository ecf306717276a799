"""The best against the worst of a prompt's responses, found by comparing few of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ..types import Collect, Context, PreftuneError, Rows
from .label import heard, preferences
from .thin import paired

Matches = Sequence[Sequence[tuple[int, int]]]  # [B] of columns (i, j), which meet


def tournament(ctx: Context, *, responses: int = 8) -> Rows:
    """The winner of the winners and the loser of the losers among `responses` of the current policy, [B, 2] with hard labels.

    Neighbours meet; winners go on among winners and losers among losers, until two are left, which meet as a check and change places
    if the check says so. The likelier wins, of equals the one that came first: 3 responses / 2 - 1 comparisons instead of
    responses^2, each asked in one order.
    """
    policy, count = ctx.roles["current"], iter(range(responses))
    y = policy.sample(ctx.feed, responses, ctx.key.fold("pair"))
    if y.law is not None:
        raise PreftuneError("the policy enumerates its responses, needed draws for a tournament; draw, or compare all: labels=winrate")

    silent = torch.zeros(len(ctx.feed))  # NaN where a match had no answer

    def play(matches: Matches) -> list[list[tuple[int, int]]]:
        """The same matches, the winner first."""
        rows = paired(policy, ctx.feed, y, matches)
        first, second = (rows.response.take(columns=[column]) for column in (0, 1))
        p = preferences(ctx.judge, rows, first, second, ctx.key.fold("judge", next(count)))[:, 0, 0]
        players = [b for b, some in enumerate(matches) for _ in some]
        silent[[players[i] for i in p.isnan().nonzero().flatten().tolist()]] = torch.nan
        first_won = iter((p >= 0.5).tolist())
        return [[(i, j) if next(first_won) else (j, i) for i, j in some] for some in matches]

    def knock_out(columns: list[list[int]], stays: int) -> list[int]:
        while len(columns[0]) > 1:
            decided = play([list(zip(some[::2], some[1::2], strict=True)) for some in columns])
            columns = [[match[stays] for match in some] for some in decided]
        return [some[0] for some in columns]

    opening = play([list(zip(range(0, responses, 2), range(1, responses, 2), strict=True))] * len(ctx.feed))
    best = knock_out([[winner for winner, _ in some] for some in opening], 0)
    worst = knock_out([[loser for _, loser in some] for some in opening], 1)
    final = play([[match] for match in zip(best, worst, strict=True)])
    ctx, y, _, stay = heard(ctx, y, silent, torch.arange(len(silent)))
    final = [final[b] for b in stay.tolist()]
    sure = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64).expand(len(ctx.feed), 2, 2)
    return paired(policy, ctx.feed, y, final, beats=sure)


def knocked_out(*, responses: int) -> Collect:
    """`tournament` with its number checked when a method is composed."""
    if responses < 2 or responses & (responses - 1):
        raise PreftuneError(f"responses is {responses}, needed 2, 4, 8, ...: half of them leave in every round of a tournament")
    return partial(tournament, responses=responses)
