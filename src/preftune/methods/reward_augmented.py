"""DPO on reward-augmented data (Zhang et al. 2024), arXiv:2410.08067: preferences under stated goals."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..collect.draw import given
from ..objectives import pairwise
from ..reference import frozen
from ..types import Method, needs_of
from ..update import plain


def reward_augmented(beta: float = 0.01, label_smoothing: float = 0.0) -> Method:
    """DPO on rows that `preftune data goals` made: each scored pair twice, asked for the better answer's score and for the worse one's.

    The loss is dpo's. What differs is the data, so each row must say its `goal`: on rows without goals in their prompts the
    two of a pair would cancel. Ask the trained model for the top goal in the same words (`--goal 10`). beta and the training
    settings are the authors' for 7B models; for Qwen2 they smooth labels by 0.3.
    """
    objective = partial(pairwise.dpo, beta=beta, label_smoothing=label_smoothing)
    objective.needs = replace(needs_of(objective), labels=("ranked", "goal"))  # type: ignore[attr-defined]
    return Method(objective, given, frozen, plain, recipe={"lr": 5e-7, "schedule": "cosine", "warmup": 0.1})
