"""REINFORCE leave-one-out (Ahmadian et al. 2024), arXiv:2402.14740."""

from __future__ import annotations

from functools import partial
from typing import Literal

from ..collect.reward import Reward, rewards
from ..objectives import policy_gradient
from ..reference import frozen
from ..types import Method
from ..update import plain
from .online_ipo import SELF_PLAY, WINS


def rloo(
    beta: float = 0.05,
    epsilon: float = 0.2,
    responses: int = 2,
    reward: Reward | None = None,
    collect_every: Literal["step", "round"] = "step",
) -> Method:
    """Each response is pulled by its reward less the mean reward of the others; the KL to the reference is inside the reward.

    In expectation exactly the gradient of E[reward] - beta KL: on a table the fixed point is reference * exp(reward / beta). Defaults
    are TRL's. collect_every="step" draws for every step, so that the ratio is 1 and epsilon idle; "round" descends on a round's
    responses as often as epochs says, with the log-probs that they were drawn at: then the clip acts.

    Without a scale of its own the judge compares, and a response's reward is how often it beats the policy: self-play, whose
    fixed point is the Nash equilibrium regularised by beta, and which may circle (spo_minimax).
    """
    collect = rewards(responses=responses, reward=reward, remember=collect_every == "round")
    objective = partial(policy_gradient.rloo, beta=beta, epsilon=epsilon)
    recipe = SELF_PLAY if reward == "winrate" else {}
    notes = (WINS,) if reward is None else ()
    return Method(objective, collect, frozen, plain, collect_every=collect_every, recipe=recipe, notes=notes)
