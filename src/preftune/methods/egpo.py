"""Extragradient preference optimisation (Zhou, Fazel, Du 2025), arXiv:2503.08942 alg. 1."""

from __future__ import annotations

from functools import partial

from ..collect.draw import Pairs, against
from ..objectives import games
from ..reference import frozen
from ..types import Method, PreftuneError
from ..update import extragradient
from .online_ipo import SELF_PLAY


def egpo(beta: float = 0.1, pairs: Pairs = "uniform", responses: int = 2, opponents: int = 1) -> Method:
    """Self-play that reaches the regularised Nash equilibrium in its last iterate, where plain self-play circles.

    With update=plain and pairs="uniform" this is online mirror descent. One step costs two rounds of samples and of
    judging. On a table an SGD step lr is the step eta = 4 lr / (n beta); it is stable up to about eta * s = 1, s the
    largest rotation of the game.
    """
    if opponents < 1:
        raise PreftuneError(f"opponents is {opponents}, needed 1 or more: the opponent is the half-step policy, which egpo is about")
    collect = against(pairs=pairs, responses=responses, opponents=opponents)
    return Method(partial(games.online_ipo, beta=beta), collect, frozen, extragradient, collect_every="step", recipe=SELF_PLAY)
