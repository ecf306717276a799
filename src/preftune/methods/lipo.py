"""Listwise preference optimisation with lambda weights (Liu et al. 2024), arXiv:2402.01878."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import listwise
from ..ranking import Ranks, Reduction
from ..reference import frozen
from ..types import Method
from ..update import plain


def lipo(beta: float = 0.05, ranks: Ranks = "model", reduction: Reduction = "sum", unit: float = 1.0) -> Method:
    """LiPO-lambda: pairs of a graded list, weighed by how much exchanging the two would change the list's discounted gain.

    unit divides the data's scores before they become gains 2^psi: give 10 for marks of 0 to 10. With two responses of grades
    1 and 0 this is 0.532 times dpo; with weights of one it is pair-logistic. ranks=labels takes the discount from the
    grades, which on images is RankDPO. The default beta is not checked against the paper.
    """
    objective = partial(listwise.lipo, beta=beta, ranks=ranks, reduction=reduction, unit=unit)
    return Method(objective, given, frozen, plain)
