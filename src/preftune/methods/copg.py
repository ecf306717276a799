"""Contrastive policy gradient (Flet-Berliac et al. 2024), arXiv:2406.19185 eq. 7."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..collect.reward import Reward, rewards
from ..objectives import policy_gradient
from ..reference import frozen
from ..types import Method, PreftuneError
from ..update import plain
from .online_ipo import SELF_PLAY, WINS


def copg(
    beta: float = 0.06,
    responses: int | None = 2,
    reward: Reward | None = None,
    scale: policy_gradient.Scale = "gradient",
) -> Method:
    """Regress differences of log-ratios to differences of rewards over beta, on responses of any origin: no importance weights.

    The optimum is reference * exp(reward / beta), whatever drew the responses. responses=None trains on those of the data with
    their scores, two or more a prompt, as the paper does; a number draws so many of the policy at every step (two in the later
    report arXiv:2504.00698). beta is the paper's best of 0.01 to 1. scale says what the loss is multiplied by as beta changes; the
    paper's pull is "gradient", and is unstable in it below 0.03.

    Relatives: online_ipo is this with win rates for rewards (scale="logratio"), rloo the same gradient on fresh samples.
    """
    objective = partial(policy_gradient.copg, beta=beta, scale=scale)
    if responses is None:
        if reward is not None:
            raise PreftuneError(f"reward is {reward!r} with responses=None, but the data's own scores are read; leave reward out")
        return Method(objective, given, frozen, plain)
    collect = rewards(responses=responses, reward=reward)
    recipe, notes = SELF_PLAY if reward == "winrate" else {}, (WINS,) if reward is None else ()
    return Method(objective, collect, frozen, plain, collect_every="step", recipe=recipe, notes=notes)
