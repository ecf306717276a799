"""Calibrated DPO (Xiao et al. 2024), arXiv:2412.14516."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import modifiers
from ..reference import frozen
from ..types import Method
from ..update import plain


def cal_dpo(beta: float = 0.001, weight: float = 1.0) -> Method:
    """The DPO loss at beta 1 plus the squares that fix the log-ratios of chosen and rejected at 1 / (2 beta) and minus that.

    beta enters the targets only: the authors' 0.001 and 0.002 ask for 500 and 250 nats a response, whatever its length. Their code
    weighs the squares by 0.5. Where ipo regresses the difference of the two log-ratios, this regresses each.
    """
    return Method(partial(modifiers.cal_dpo, beta=beta, weight=weight), given, frozen, plain)
