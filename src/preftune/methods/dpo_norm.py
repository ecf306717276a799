"""DPO on log-ratios per token, Tulu 3 (Lambert et al. 2024), arXiv:2411.15124."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import modifiers
from ..reference import frozen
from ..types import Method
from ..update import plain


def dpo_norm(beta: float = 5.0) -> Method:
    """DPO whose log-ratios are divided by their response's length, so that long responses count as much as short ones.

    At equal lengths L this is dpo with beta / L: beta is about 50 times dpo's (open-instruct: 5), and winner and loser are
    moved by 1 / length each, so the learning rate has to be found anew. TRL calls it sigmoid_norm, under its default beta 0.1.
    """
    return Method(partial(modifiers.dpo_norm, beta=beta), given, frozen, plain)
