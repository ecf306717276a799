"""Efficient exact optimisation, pairwise (Ji et al. 2024), arXiv:2402.00856 eq. 16."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import pairwise
from ..reference import frozen
from ..types import Method
from ..update import plain


def exo(beta: float = 0.1, label_smoothing: float = 1e-3) -> Method:
    """Reverse KL from smoothed labels to the policy's choice between the two responses: mode-seeking where dpo is not.

    label_smoothing has to be above 0: it sets both the target log((1-e)/e) of the margin and the ceiling -log e of the loss.
    TRL took 0 for 0.001 silently until 0.28. With badly ordered pairs the gradient vanishes: start from a model that ranks.
    """
    return Method(partial(pairwise.exo, beta=beta, label_smoothing=label_smoothing), given, frozen, plain)
