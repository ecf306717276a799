"""Optimistic EGPO: the extragradient of arXiv:2503.08942 alg. 1 with one call a step, as Popov (1980) made extragradient single-call."""

from __future__ import annotations

from functools import partial

from ..collect.draw import Pairs, against
from ..objectives import games
from ..reference import frozen
from ..types import Method, PreftuneError
from ..update import optimistic
from .online_ipo import SELF_PLAY


def egpo_optimistic(beta: float = 0.1, momentum: float = 1.0, pairs: Pairs = "uniform", responses: int = 2, opponents: int = 1) -> Method:
    """Self-play against the policy extrapolated from its last step: egpo's equilibrium at half its samples and judging.

    momentum = 1 - eta beta is egpo with the win rates of the half step before, eta the mirror-descent step (on a table
    4 lr / (n beta)); the default 1 is that for eta beta << 1. 0 is online mirror descent. Stable up to about eta * s = 0.58, s the
    largest rotation of the game, where egpo is up to 1. Ours; no public code or table is known to us.
    """
    if opponents < 1:
        raise PreftuneError(f"opponents is {opponents}, needed 1 or more: the opponent is the extrapolated policy, which this is about")
    collect = against(pairs=pairs, responses=responses, opponents=opponents)
    objective = partial(games.online_ipo, beta=beta)
    return Method(objective, collect, frozen, optimistic(momentum), collect_every="step", recipe=SELF_PLAY, roles=("previous",))
