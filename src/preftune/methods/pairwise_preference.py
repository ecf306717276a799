"""A judge that reads both responses at once, in the way of PairRM (Jiang et al. 2023), arXiv:2306.02561."""

from __future__ import annotations

from functools import partial

from ..collect.compare import both_orders
from ..objectives.judge_training import pairwise_preference as loss
from ..reference import none
from ..types import Head, Method
from ..update import plain
from .reward_model import JUDGING


def pairwise_preference(label_smoothing: float = 0.0) -> Method:
    """A judge that is shown two responses, in both orders, and whose logit is that of the first one shown.

    It may learn any preferences, circles included, and costs a pass of prompt and both responses for each pair and order: K responses
    cost K (K - 1) passes, where general-preference costs K. It may come to like what stands first; the judge made of it
    averages both orders.
    """
    objective = partial(loss, label_smoothing=label_smoothing)
    return Method(objective, both_orders, none, plain, recipe=JUDGING, heads={"preference": Head(1, pool="last", std=None)})
