"""Length-desensitised DPO (Liu et al. 2024), arXiv:2409.06411."""

from __future__ import annotations

from functools import partial

from ..collect.segment import common_length
from ..objectives import modifiers
from ..reference import frozen
from ..types import Method
from ..update import plain


def ld_dpo(beta: float = 0.1, alpha: float = 0.5) -> Method:
    """DPO in which the tokens that the longer response has beyond the shorter one's length count alpha times.

    alpha = 1 is dpo, and so is a pair of equal lengths; alpha = 0 compares both up to the shorter length. Policy and
    reference are weighed alike (TRL's ld_alpha; LLaMA-Factory weighs the policy alone).
    """
    return Method(partial(modifiers.ld_dpo, beta=beta, alpha=alpha), common_length, frozen, plain)
