"""Magnetic preference optimisation (Wang et al. 2024), arXiv:2410.16714."""

from __future__ import annotations

from functools import partial

from ..collect.draw import Pairs, against
from ..numerics import positive
from ..objectives import games, pairwise
from ..reference import soft
from ..types import Method, PreftuneError
from ..update import plain
from .online_ipo import SELF_PLAY


def mpo(tau: float = 0.1, K: int = 100, pairs: Pairs = "uniform", responses: int = 2, opponents: int = 1) -> Method:
    """Self-play pulled to a magnet, which every K steps becomes the policy: to the equilibrium WITHOUT regulariser in the last iterate.

    Between moves of the magnet this is magnetic mirror descent, theta <- (theta + eta tau log magnet + eta P pi) / (1 + eta tau), and that
    is online mirror descent with step eta / (1 + eta tau): on a table an SGD step lr with 4 lr / n = eta tau / (1 + eta tau). All
    that is new is the move. K has to be large enough that the game pulled to the magnet is nearly solved: K = 1 is
    multiplicative weights with step eta / (1 + eta tau), which circles. The way to the equilibrium is slow where few responses
    carry it (rock-paper-scissors 932 steps at tau = .1, eta = .5; ten random responses more than 20,000).

    The policy may go arbitrarily far from the first model; evaluations measure KL and win rate against that one, not the magnet.
    The paper trains language models by a token-level policy gradient; tau and K are ours. Not mpo_mixed (Mixed PO, InternVL).
    """
    positive("tau", tau, pairwise.PULL)
    if K < 1:
        raise PreftuneError(f"K is {K}, needed 1 or more: the steps between two moves of the magnet")
    collect = against(pairs=pairs, responses=responses, opponents=opponents)
    objective = partial(games.online_ipo, beta=tau)
    return Method(objective, collect, soft(1.0), plain, collect_every="step", reference_every=K, recipe=SELF_PLAY)
