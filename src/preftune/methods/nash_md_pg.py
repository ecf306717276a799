"""Nash-MD-PG (Munos et al. 2023), arXiv:2312.00886 sec. 7."""

from __future__ import annotations

from functools import partial

from ..collect.draw import Player, against
from ..numerics import not_negative
from ..objectives import pairwise, policy_gradient
from ..objectives.policy_gradient import Baseline
from ..reference import frozen
from ..types import Method, PreftuneError
from ..update import plain
from .online_ipo import SELF_PLAY


def nash_md_pg(tau: float = 0.008, mixture: float = 0.125, responses: int = 1, opponents: int = 1, baseline: Baseline = "none") -> Method:
    """Policy gradient against the mixture: grad log pi(y) (P(y beats y') - 1/2 - tau log pi(y) / ref(y)), y ~ pi, y' ~ mixture.

    The mixture policy^(1 - mixture) * reference^mixture is drawn from token by token and is a constant. mixture = 0 is self-play, 1 the
    best response to the reference. For mixtures between, the policy does not go to the equilibrium regularised by tau: the mixture
    (of whole responses) goes to the equilibrium of tau / (1 - mixture), the policy to the best response to it, as in ipo_md.

    baseline="leave_one_out" compares 2 or more responses with one another, unbiased as well and less noisy; the paper draws one. Not
    TRL's NashMDTrainer, which multiplies each token's log-ratio with that token's log-prob (biased), forms P from a scalar
    reward (so that preferences are transitive), and mixes half and half, which the paper finds no better than RLHF.
    """
    not_negative("tau", tau, pairwise.PULL)
    if opponents < 1:
        raise PreftuneError(f"opponents is {opponents}, needed 1 or more: the opponent is the mixture, which nash-md-pg is about")
    least = 1 if baseline == "none" else 2
    collect = against(pairs="policy", responses=responses, opponents=opponents, opponent=Player("opponent", mixture), least=least)
    objective = partial(policy_gradient.regularised_pg, beta=tau, baseline=baseline)
    return Method(objective, collect, frozen, plain, collect_every="step", recipe=SELF_PLAY)
