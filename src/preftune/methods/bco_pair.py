"""Binary classifier optimisation on pairs (Jung et al. 2024), arXiv:2404.04656."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import absolute
from ..reference import frozen
from ..types import Method
from ..update import plain


def bco_pair(beta: float = 0.1, shift: absolute.Shift = "running") -> Method:
    """Classifies each response of a pair as good or bad by its reward against a running mean of all rewards.

    shift="running" is the paper's reward shift, over the whole batch and saved with the run; shift="none" is what TRL's
    "bco_pair" has computed since 2026. Its loss is never below dpo's. Relative: bco (single labelled responses).
    """
    return Method(partial(absolute.bco_pair, beta=beta, shift=shift), given, frozen, plain)
