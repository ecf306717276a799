"""Continuous adversarial IPO (Xhonneux et al. 2024; later called CAPO), arXiv:2405.15589."""

from __future__ import annotations

from functools import partial
from typing import Literal

from ..collect.draw import given
from ..numerics import positive
from ..objectives import pairwise
from ..reference import frozen
from ..types import Method
from ..update import adversarial


def c_advipo(
    beta: float = 0.25, iterations: int = 10, step: float = 1e-4, eps: float = 0.05, reference: Literal["clean", "perturbed"] = "clean"
) -> Method:
    """Prefer the safe answer although an adversary has moved the prompt's embeddings towards the other one: ipo_avg under attack.

    Ranked pairs: the safe response, then the one that the attack makes likelier. At every step iterations signed gradient
    steps of size step move every prompt token, within a ball of radius eps times the mean length of an embedding. Text only.
    With iterations = 0 this is ipo-avg with tau = beta.

    reference="clean" is the authors' code for this loss: the reference scores the prompts as they are. Their code also counts
    away tokens of log-prob below -5 as 0 in the policy's mean and not in the reference's; here no token is left out. Held-out
    loss and accuracy are those of clean prompts. The ball binds only where iterations * step * sqrt(width) passes it: watch
    attack_at_radius.
    """
    positive("beta", beta, pairwise.PULL)
    return Method(partial(pairwise.ipo_avg, beta=beta), given, frozen, adversarial(iterations, step, eps, reference))
