"""Self-supervised preference optimisation with preference degrees (Li et al. 2024), arXiv:2409.17791."""

from __future__ import annotations

from functools import partial
from typing import Literal

from ..collect.augment import degraded
from ..numerics import positive
from ..objectives import degree
from ..objectives.auxiliary import add, scale
from ..objectives.pairwise import dpo
from ..reference import frozen
from ..types import Head, Method
from ..update import plain
from .dpo import dpo as without_degrees

HEAD_LR = 10.0  # its learning rate over the policy's: it starts from nothing


def spo_degree(
    beta: float = 0.1,
    gamma: float = 0.1,
    degrees: int = 3,
    remove: Literal["keyphrases", "random"] = "keyphrases",
    replace: bool = False,
    shuffle_degrees: bool = False,
    ordinal: Literal["logistic", "hinge"] | None = None,
) -> Method:
    """DPO + gamma * degree: the policy also learns how much of its key phrases the preferred text has lost.

    From the preferred text the best d / (degrees - 1) of its RAKE phrases are removed, d = 1 .. degrees - 1; a linear head on
    the mean hidden state of a response tells the copies apart. The head is dropped in the end. gamma = 0 is dpo.

    Controls: remove="random" takes away as many words by chance: if it helps as much, key phrases are not what works;
    shuffle_degrees leaves nothing to learn; replace keeps the length; ordinal scores the copies on a scale instead.
    What the paper's body says (degrees, gamma, layer, pooling) was not available: defaults and details are ours.
    Measured against its controls on a small model it gained nothing: docs/spo-degree.md.
    Not the diffusion method SPO (step-aware), nor self-play preference optimisation (sppo).
    """
    copies = degraded(degrees=degrees, remove=remove, replace=replace, shuffle=shuffle_degrees)
    if gamma == 0:
        return without_degrees(beta)
    positive("gamma", gamma, "it weighs the degree loss; 0 is dpo")
    term = degree.degree if ordinal is None else partial(degree.ordinal, surrogate=ordinal)
    head = Head(size=degrees if ordinal is None else 1, pool="mean", lr_scale=HEAD_LR)
    objective = add(partial(dpo, beta=beta), scale(term, gamma))
    return Method(objective, copies, frozen, plain, heads={"degree": head}, columns=2)
