"""Online IPO (Calandriello et al. 2024), arXiv:2403.08635."""

from __future__ import annotations

from functools import partial

from ..collect.draw import Pairs, against
from ..numerics import positive
from ..objectives import games, pairwise
from ..reference import frozen
from ..types import Method
from ..update import plain

SELF_PLAY = {"beta1": 0.0}  # momentum orbits the equilibrium of a cyclic game instead of reaching it
WINS = "where the judge only compares, rewards are wins over the policy: that is self-play, in which momentum orbits; set beta1=0 then"


def online_ipo(tau: float = 1.0, pairs: Pairs = "policy", responses: int = 2, opponents: int | None = None) -> Method:
    """Pairs of the current policy, judged against one another: the fixed point is the Nash equilibrium regularised by tau.

    opponents fresh draws of the policy are asked instead where a number is given. pairs="uniform" draws the pair uniformly
    (on text: broadly) and needs them, one by default: on a table an SGD step is then exactly online mirror descent with
    eta = 4 lr / (n tau).
    """
    positive("tau", tau, pairwise.PULL)
    asked = opponents if opponents is not None else int(pairs == "uniform")
    collect = against(pairs=pairs, responses=responses, opponents=asked)
    return Method(partial(games.online_ipo, beta=tau), collect, frozen, plain, collect_every="step", recipe=SELF_PLAY)
