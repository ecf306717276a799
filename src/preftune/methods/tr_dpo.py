"""Trust-region DPO: a moving reference (Gorbatovski et al. 2024), arXiv:2404.09656 eq. 8, 9."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import pairwise
from ..reference import soft
from ..types import Method, PreftuneError
from ..update import plain


def tr_dpo(beta: float = 0.05, alpha: float = 0.6, every: int = 512) -> Method:
    """DPO whose reference becomes alpha * policy + (1 - alpha) * reference every `every` steps.

    alpha = 1 is the hard update, alpha = 0 is dpo. After each move the margins jump towards 0, and the KL to the first
    model is no longer bounded; the report measures drift and KL against that first model. With exact inner solves the
    hard form is iterated DPO.
    """
    if every < 1:
        raise PreftuneError(f"every is {every}, needed a number of steps of at least 1")
    return Method(partial(pairwise.dpo, beta=beta), given, soft(alpha), plain, reference_every=every)
