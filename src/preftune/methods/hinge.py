"""Hinge on normalised log-ratios (Liu et al. 2023), arXiv:2309.06657, their hinge-norm."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import pairwise
from ..reference import frozen
from ..types import Method
from ..update import plain


def hinge(beta: float = 0.1) -> Method:
    """max(0, 1 - beta * gap): pairs whose gap of log-ratios has reached 1 / beta nats pull no more; see the metric `active`.

    TRL's loss_type "hinge", which it lists under SLiC-HF; that one is `slic`. The paper, RSO, calls this slope gamma (0.05)
    and applies it to pairs that it samples by rejection.
    """
    return Method(partial(pairwise.hinge, beta=beta), given, frozen, plain)
