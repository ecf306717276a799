"""Nash-MD (Munos et al. 2023), arXiv:2312.00886 sec. 6 and theorem 1."""

from __future__ import annotations

from functools import partial

from ..collect.draw import Pairs, Player, against
from ..numerics import positive
from ..objectives import games, pairwise
from ..reference import frozen
from ..types import Method, PreftuneError
from ..update import plain
from .online_ipo import SELF_PLAY


def nash_md(tau: float = 0.1, mixture: float = 0.125, pairs: Pairs = "uniform", responses: int = 2, opponents: int = 1) -> Method:
    """Mirror descent against the geometric mixture policy^(1 - mixture) * reference^mixture instead of against the policy.

    On a table with uniform pairs an SGD step lr is the paper's step eta = 4 lr / (n tau), whose mixture is eta * tau. For mixture 0 it
    is online mirror descent. With a constant mixture > 0 it converges to another point than the equilibrium regularised by tau:
    the mixture goes to the equilibrium of tau / (1 - mixture) and the policy to the best response to it. Theorem 1's rate, and
    the right limit, are those of steps eta_t = 2 / (tau (t + 2)) with mixture 2 / (t + 2): a schedule that no constant has.

    The paper trains language models with nash_md_pg; tau is ours, the mixture among the best of theirs. On text the mixture is made
    token by token, which is not the mixture of whole responses, and costs a forward pass of either model for every token.
    """
    positive("tau", tau, pairwise.PULL)
    if opponents < 1:
        raise PreftuneError(f"opponents is {opponents}, needed 1 or more: the opponent is the mixture, which nash-md is about")
    collect = against(pairs=pairs, responses=responses, opponents=opponents, opponent=Player("opponent", mixture))
    return Method(partial(games.online_ipo, beta=tau), collect, frozen, plain, collect_every="step", recipe=SELF_PLAY)
