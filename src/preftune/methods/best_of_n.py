"""Best-of-n fine-tuning: RAFT (Dong et al. 2023), arXiv:2304.06767, in its plainest form."""

from __future__ import annotations

from functools import partial

from ..collect.rejection import the_best
from ..collect.reward import Reward
from ..objectives.online import value
from ..reference import none
from ..types import Method
from ..update import plain


def best_of_n(n: int = 8, reward: Reward | None = None) -> Method:
    """By rounds: the policy answers n times, the judge picks the best, and the policy learns to give that at once (summed likelihood).

    The baseline of every method that plays. After one round trained to its end the policy has the law of the best of n draws of the
    first model: P(no better than y)^n - P(worse than y)^n, at most log n - (n - 1) / n nats from it, whatever the rewards'
    scale. R rounds make the best of n^R.

    Nothing pulls to the first model. A judge without scores picks the highest win rate among the n. on_policy has this as one corner of
    its three axes (negative_gradient="none"), by win rates and by steps; n is ours.
    """
    return Method(partial(value, sign=-1), the_best(n=n, reward=reward), none, plain, collect_every="round")
