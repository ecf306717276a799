"""Anchored preference optimisation on unpaired responses (D'Oosterlinck et al. 2024), arXiv:2408.06266 eq. 7; TRL's apo_zero_unpaired."""

from __future__ import annotations

from functools import partial

from ..collect.draw import labelled
from ..objectives import pointwise
from ..reference import frozen
from ..types import Method
from ..update import plain


def apo_zero_unpaired(beta: float = 0.1) -> Method:
    """Responses labelled good or bad: raise the good, lower the bad, each with a pull that fades as it goes. Pairs count as one of each.

    This is kto without its KL baseline, so rows need no partner of another prompt. It takes the majority label and calibrates
    nothing; bco does. Made for data better than the model (apo_zero pairs them; apo_down is for data that are worse).
    """
    return Method(partial(pointwise.apo_zero_unpaired, beta=beta), labelled, frozen, plain)
