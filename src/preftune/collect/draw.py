"""Who answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from ..types import Collect, Context, Policy, PreftuneError, Roles, Rows
from .label import heard, winrate

Pairs = Literal["policy", "uniform"]


def given(ctx: Context) -> Rows:
    """The rows as the data have them: offline methods."""
    return ctx.feed


def labelled(ctx: Context) -> Rows:
    """The rows as the data have them, with a label for every response: of ranked responses the first is desirable, the others are not."""
    rows = ctx.feed
    if rows.desirable is not None:
        return rows
    if not rows.ranked:
        raise PreftuneError("found neither desirable labels nor ranked pairs; needed completion and label columns, or chosen and rejected")
    n, k = rows.response.shape
    return rows.replace(desirable=torch.tensor([[column == 0 for column in range(k)]] * n))


def mismatched(ctx: Context) -> Rows:
    """Labelled responses [B, K] joined by the K responses of another row, from which KTO estimates its KL baseline.

    Ranked pairs count as one desirable and one undesirable response. The partner is the next row of another prompt in
    the shuffled batch, so partners change from epoch to epoch.
    """
    rows = labelled(ctx)
    n = len(rows)
    partner = [next(((i + j) % n for j in range(1, n) if rows.prompt[(i + j) % n] != rows.prompt[i]), i) for i in range(n)]
    if partner == list(range(n)):
        raise PreftuneError(
            f"all {n} rows of this batch have the same prompt, but kto estimates its KL baseline from responses of other "
            "prompts; use a larger batch, data with several prompts, or a pairwise method"
        )
    present = None if rows.present is None else torch.cat([rows.present, rows.present[partner]], dim=1)
    return rows.replace(response=rows.response.join(rows.response.take(rows=partner)), present=present)


@dataclass(frozen=True)
class Player:
    """Who answers: the policy of a role, or with mixture > 0 the geometric mixture role^(1 - mixture) * reference^mixture / Z."""

    role: str
    mixture: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.mixture <= 1:
            raise PreftuneError(f"mixture is {self.mixture}, needed 0 <= mixture <= 1: the weight of the reference in the mixture")

    def __call__(self, roles: Roles) -> Policy:
        policy: Policy = roles[self.role].mix(roles["reference"], self.mixture) if self.mixture else roles[self.role]
        return policy

    def __str__(self) -> str:
        return f"{self.role}^{1 - self.mixture:g} reference^{self.mixture:g}" if self.mixture else self.role


CURRENT, OPPONENT = Player("current"), Player("opponent")


def against_opponent(
    ctx: Context,
    *,
    pairs: Pairs = "policy",
    responses: int = 2,
    opponents: int = 1,
    player: Player = CURRENT,
    opponent: Player = OPPONENT,
) -> Rows:
    """`responses` of the player and their win rates.

    pairs      "policy" draws them from the player as it answers, "uniform" from its stand-in for a uniform law
    opponents  how many fresh draws of the opponent they are judged against; 0 judges them against one another, itself
               at 1/2: two winrates then differ by P(y beats y') - 1/2, the pair form of online IPO
    player     which policy of the roles answers, `role`: the one that trains unless said
    opponent   which one is answered back: the update rule's unless said
    """
    who = player(ctx.roles)
    y = who.sample(ctx.feed, responses, ctx.key.fold("pair"), **(who.uniform if pairs == "uniform" else {}))
    z = opponent(ctx.roles).sample(ctx.feed, opponents, ctx.key.fold("opponent")) if opponents else y
    ctx, y, won = heard(ctx, y, winrate(ctx.judge, ctx.feed, y, z, ctx.key.fold("judge")))
    return ctx.feed.replace(response=y, law=y.law, winrate=won)


def against(
    *,
    pairs: Pairs,
    responses: int,
    opponents: int,
    player: Player = CURRENT,
    opponent: Player = OPPONENT,
    least: int = 2,
) -> Collect:
    """`against_opponent` with its numbers checked when a method is composed; `least` is how many responses the loss compares."""
    if pairs not in ("policy", "uniform"):
        raise PreftuneError(f"pairs is {pairs!r}, needed 'policy' or 'uniform'; 'policy' draws what the policy would answer")
    if responses < least or opponents < 0:
        raise PreftuneError(
            f"responses is {responses} and opponents is {opponents}, needed responses >= {least} and opponents >= 0: "
            "the loss compares responses of one prompt with one another; raise them"
        )
    if pairs == "uniform" and not opponents:
        raise PreftuneError("opponents is 0 with uniform pairs, needed 1 or more: uniform responses are no sample of the policy")
    return partial(against_opponent, pairs=pairs, responses=responses, opponents=opponents, player=player, opponent=opponent)
