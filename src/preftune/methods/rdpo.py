"""Robust DPO under flipped labels (Ray Chowdhury et al. 2024), arXiv:2403.00409 eq. 12."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import pairwise
from ..reference import frozen
from ..types import Method
from ..update import plain


def rdpo(beta: float = 0.1, label_smoothing: float = 0.1) -> Method:
    """DPO whose expected loss under labels flipped with rate label_smoothing is the clean DPO loss.

    Unbounded below: negative losses are normal, stop early. With rate 0 this is dpo; dpo(label_smoothing=...) is cDPO,
    which shrinks the margin instead.
    """
    return Method(partial(pairwise.rdpo, beta=beta, label_smoothing=label_smoothing), given, frozen, plain)
