"""Nash-EMA-PG (Munos et al. 2023), arXiv:2312.00886 sec. 7."""

from __future__ import annotations

from functools import partial

from ..collect.draw import Player, against
from ..numerics import not_negative
from ..objectives import pairwise, policy_gradient
from ..objectives.policy_gradient import Baseline
from ..reference import ema
from ..types import Method, PreftuneError
from ..update import plain
from .online_ipo import SELF_PLAY


def nash_ema_pg(tau: float = 0.008, decay: float = 0.999, responses: int = 1, opponents: int = 1, baseline: Baseline = "none") -> Method:
    """Policy gradient against a slow policy, the running average of the parameters: slow <- decay slow + (1 - decay) policy.

    As nash_md_pg with another opponent. The average stands in for the mixture of past policies, of which it is the geometric one on
    a table. Where it settles the slow policy is the policy, so the limit is the equilibrium regularised by tau, without the bias
    of nash_md_pg; that it settles is not proven. decay = 0 is self-play against the policy before the step. The paper takes .999
    and .9995, and found the method weaker than nash_md_pg; its letter for decay is that of the other method's mixture.
    """
    not_negative("tau", tau, pairwise.PULL)
    if opponents < 1:
        raise PreftuneError(f"opponents is {opponents}, needed 1 or more: the opponent is the slow policy, which nash-ema-pg is about")
    least = 1 if baseline == "none" else 2
    collect = against(pairs="policy", responses=responses, opponents=opponents, opponent=Player("slow"), least=least)
    objective = partial(policy_gradient.regularised_pg, beta=tau, baseline=baseline)
    return Method(objective, collect, ema(decay), plain, collect_every="step", reference_every=1, recipe=SELF_PLAY, roles=("slow",))
