"""Group relative policy optimisation (Shao et al. 2024), arXiv:2402.03300, and its aggregations: DAPO, Dr. GRPO, GSPO."""

from __future__ import annotations

from functools import partial
from typing import Literal

from ..collect.reward import Reward, rewards
from ..numerics import one_of
from ..objectives import policy_gradient
from ..reference import frozen, none
from ..types import Method, PreftuneError
from ..update import plain
from .online_ipo import SELF_PLAY, WINS


def grpo(
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    loss_type: policy_gradient.Aggregation = "dapo",
    importance_sampling_level: policy_gradient.Level = "token",
    scale_rewards: policy_gradient.Spread = "group",
    max_completion_length: int | None = None,
    responses: int = 8,
    reward: Reward | None = None,
    collect_every: Literal["step", "round"] = "step",
) -> Method:
    """Each token is pulled by its response's reward, less the group's mean and divided by its standard deviation; no value model.

    Names and defaults are TRL's: beta = 0 keeps no reference, and loss_type="dapo" is the mean over all tokens, not the paper's.
    The paper: beta=0.04, loss_type="grpo". Dr. GRPO: loss_type="dr_grpo", scale_rewards="none", max_completion_length=n. GSPO:
    importance_sampling_level="sequence", loss_type="grpo". responses is TRL's num_generations.

    collect_every="step" draws for every step, so that the ratio is 1 and epsilon idle; "round" descends on a round's responses as
    often as epochs says (TRL's num_iterations), with the log-probs that they were drawn at. Without scores of the judge a
    response's reward is how often it beats the policy, see rloo. Groups of equal rewards pull nothing: the metric `dead`.
    """
    one_of("loss_type", loss_type, policy_gradient.AGGREGATIONS)
    if (loss_type == "dr_grpo") != (max_completion_length is not None):
        raise PreftuneError(
            f"max_completion_length is {max_completion_length} with loss_type={loss_type!r}, but dr_grpo divides by it and no other; "
            "give it with dr_grpo, and only there"
        )
    collect = rewards(responses=responses, reward=reward, remember=collect_every == "round")
    objective = policy_gradient.reading_less(
        partial(
            policy_gradient.grpo,
            beta=beta,
            epsilon=epsilon,
            epsilon_high=epsilon_high,
            aggregation=loss_type,
            level=importance_sampling_level,
            spread=scale_rewards,
            longest=max_completion_length,
        ),
        **({} if beta else {"reference": False, "domain": 1000.0}),
        batch=scale_rewards == "batch",
    )
    recipe = SELF_PLAY if reward == "winrate" else {}
    notes = (WINS,) if reward is None else ()
    return Method(objective, collect, frozen if beta else none, plain, collect_every=collect_every, recipe=recipe, notes=notes)
