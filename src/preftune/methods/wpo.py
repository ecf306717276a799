"""Weighted preference optimisation (Zhou et al. 2024), arXiv:2406.11827 eq. 2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from ..collect.draw import given
from ..objectives import modifiers
from ..objectives.pairwise import dpo
from ..ranking import choose
from ..reference import frozen
from ..types import Method, Objective
from ..update import plain

FORMS: dict[str, Callable[[Objective], Objective]] = {
    "aligned": modifiers.wpo,
    "aligned without limit": partial(modifiers.wpo, limit=float("inf")),
    "plain": modifiers.wpo_plain,
}


def wpo(
    beta: float = 0.01, weights: Literal["aligned", "aligned without limit", "plain"] = "aligned", label_smoothing: float = 0.0
) -> Method:
    """DPO whose pairs weigh as much as the current policy would write them: old pairs act like samples of the policy.

    loss = w_0 w_1 dpo, with constants
    aligned   w = exp(mean_t [log pi(y_t) - log sum_v pi(v)^2]), the product at most 1: the paper's code and earlier TRL
    aligned without limit   the same, the product as it is: TRL 1.16, use_weighting
    plain     w = exp(mean_t log pi(y_t)), which prefers texts of low entropy: open-instruct

    Weights of 1 would be dpo.
    """
    return Method(choose("weights", FORMS, weights)(partial(dpo, beta=beta, label_smoothing=label_smoothing)), given, frozen, plain)
