"""IPO-MD (Calandriello et al. 2024), arXiv:2403.08635 sec. 5."""

from __future__ import annotations

from functools import partial

from ..collect.draw import Player, against
from ..numerics import positive
from ..objectives import games, pairwise
from ..reference import frozen
from ..types import Method
from ..update import plain
from .online_ipo import SELF_PLAY


def ipo_md(tau: float = 1.0, b: float = 0.125, responses: int = 2, opponents: int = 0) -> Method:
    """Online IPO on pairs drawn from the mixture policy^(1 - b) * reference^b, judged against one another (or `opponents` fresh draws).

    b = 0 is online_ipo, b = 1 IPO on pairs of the reference. The fixed point is that of nash_md_pg: the mixture (of whole responses)
    goes to the equilibrium of tau / (1 - b), the policy to the best response to it, off the equilibrium of tau for every b > 0. The
    loss centres under the mixture, without which its direction would be wrong; log-ratios are the policy's and are not
    importance-weighted. The paper finds no gain over b = 0.

    On text the mixture is made token by token, which is not the mixture of whole responses, and costs a forward pass of either
    model for every token.
    """
    positive("tau", tau, pairwise.PULL)
    player, opponent = Player("current", b), Player("opponent", b)  # the same law: the opponent is the policy as it is
    collect = against(pairs="policy", responses=responses, opponents=opponents, player=player, opponent=opponent)
    return Method(partial(games.online_ipo, beta=tau), collect, frozen, plain, collect_every="step", recipe=SELF_PLAY)
