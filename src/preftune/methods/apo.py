"""Anchored preference optimisation (D'Oosterlinck et al. 2024), arXiv:2408.06266 eq. 7 and 8."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import absolute
from ..reference import frozen
from ..types import Method
from ..update import plain


def apo_zero(beta: float = 0.1) -> Method:
    """Raises the chosen response and lowers the rejected one, each against the reference; for data better than the model.

    Equals kto with baseline 0; apo_zero_unpaired is the form for single labelled responses. Not Accelerated Preference
    Optimization (arXiv:2410.06293), an update rule with the same initials.
    """
    return Method(partial(absolute.apo_zero, beta=beta), given, frozen, plain)


def apo_down(beta: float = 0.1) -> Method:
    """Lowers both responses, the rejected one more; for data worse than the model. At the start only the rejected one moves."""
    return Method(partial(absolute.apo_down, beta=beta), given, frozen, plain)
