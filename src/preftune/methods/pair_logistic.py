"""All pairs of a list under the logistic loss (RankNet) or the hinge: the pairwise baselines of arXiv:2402.01878."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import listwise
from ..ranking import Reduction
from ..reference import frozen
from ..types import Method
from ..update import plain


def pair_logistic(beta: float = 0.05, reduction: Reduction = "mean") -> Method:
    """dpo on all pairs of a list with different grades; with two responses it is dpo. lipo adds weights to the pairs."""
    return Method(partial(listwise.pair_logistic, beta=beta, reduction=reduction), given, frozen, plain)


def pair_hinge(beta: float = 0.05, reduction: Reduction = "mean") -> Method:
    """hinge on all pairs of a list with different grades; with two responses it is hinge."""
    return Method(partial(listwise.pair_hinge, beta=beta, reduction=reduction), given, frozen, plain)
