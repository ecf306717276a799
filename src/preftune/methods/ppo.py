"""Proximal policy optimisation (Schulman et al. 2017), arXiv:1707.06347, with a KL to the reference inside the reward."""

from __future__ import annotations

from functools import partial
from typing import Literal

from ..collect.reward import Reward, rewards
from ..objectives import policy_gradient
from ..reference import frozen
from ..types import Head, Method
from ..update import plain
from .online_ipo import WINS


def ppo(
    kl_coef: float = 0.05,
    cliprange: float = 0.2,
    cliprange_value: float = 0.2,
    vf_coef: float = 0.1,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    responses: int = 2,
    reward: Reward | None = None,
    collect_every: Literal["step", "round"] = "round",
) -> Method:
    """By rounds: the policy answers, then several epochs of clipped steps on these answers, with a value head for a baseline.

    Names and defaults are those that TRL's PPOTrainer had, but for responses (1 there) and lam (0.95): heads read whole responses
    here, so the value is the head's mean over a prompt's OTHER responses, the same for all tokens, and lam < 1 would but
    discount the credit of early tokens. The head shares the policy's layers and is dropped in the end. whiten=True divides
    advantages by their spread over the batch: near-ties become large, and on a table steps never shrink; whiten=False reaches
    reference * exp(reward / kl_coef) there.

    collect_every="step" draws for every step: then the ratio is 1 and the clips idle. Without scores of the judge a response's
    reward is how often it beats the policy, see rloo.
    """
    collect = rewards(responses=responses, reward=reward, itself=False, remember=collect_every == "round")
    objective = policy_gradient.reading_less(
        partial(
            policy_gradient.ppo,
            beta=kl_coef,
            epsilon=cliprange,
            value_epsilon=cliprange_value,
            value_weight=vf_coef,
            gamma=gamma,
            lam=lam,
            whiten=whiten,
        ),
        batch=whiten,
    )
    recipe = ({"epochs": 4.0} if collect_every == "round" else {}) | ({"beta1": 0.0} if reward == "winrate" else {})
    notes = (WINS,) if reward is None else ()
    head = Head(size=1, std=0.0)  # no baseline at first, rather than a random one
    return Method(objective, collect, frozen, plain, collect_every=collect_every, recipe=recipe, notes=notes, heads={"value": head})
