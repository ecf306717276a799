"""Curriculum over ranked preference pairs (Pattnaik et al. 2024), arXiv:2403.07230: Curry-DPO, later Curri-DPO."""

from __future__ import annotations

from functools import partial
from typing import Literal

from ..collect.curriculum import easy_to_hard, mixed
from ..numerics import one_of
from ..objectives import pairwise
from ..reference import frozen, soft
from ..types import Method, PreftuneError
from ..update import plain


def curry_dpo(beta: float = 0.1, stages: int = 3, variant: Literal["curriculum", "fixed-reference", "mixed"] = "curriculum") -> Method:
    """DPO on the best response against the worst, then the second worst ..., and at last the second best, of stages + 1 responses.

    A stage is a round. At its end the policy becomes the reference, so each stage starts at loss ln 2 and the KL to the first
    model is not bounded; the report measures it. Optimiser and learning-rate schedule run on through the stages.
    variant "fixed-reference" keeps the first reference; "mixed" draws the rank of each step by chance and keeps it too.
    With two responses and one stage this is dpo. Ties with the best and shorter lists are left out of a stage. With noisy
    scores the last pairs are the noisiest. beta is dpo's; the paper's settings were not available.
    """
    if stages < 1:
        raise PreftuneError(f"stages is {stages}, needed 1 or more: one less than the responses of a prompt")
    loss = partial(pairwise.dpo, beta=beta)
    pairs, shuffled = partial(easy_to_hard, stages=stages), partial(mixed, stages=stages)
    variants = {
        "curriculum": Method(
            loss, pairs, soft(1.0), plain, collect_every="round", recipe={"rounds": stages}, reads="responses", columns="K"
        ),
        "fixed-reference": Method(
            loss, pairs, frozen, plain, collect_every="round", recipe={"rounds": stages}, reads="responses", columns="K"
        ),
        "mixed": Method(loss, shuffled, frozen, plain, recipe={"epochs": float(stages)}, columns="K"),
    }
    one_of("variant", variant, variants, "; curriculum is the paper's")
    return variants[variant]
