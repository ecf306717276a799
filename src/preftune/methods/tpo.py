"""Tree preference optimisation with adaptive step reward (2024), arXiv:2410.12854."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import tree
from ..ranking import Ranks, Reduction
from ..reference import frozen
from ..types import Method
from ..update import plain


def tpo(
    beta: float = 0.5,
    weight: tree.Weight = "similarity",
    step: Reduction = "sum",
    ranks: Ranks = "model",
    reduction: Reduction = "sum",
    unit: float = 100.0,
) -> Method:
    """lipo on the paths of a preference tree, every step weighed by how alike it is to the same step of the best path.

    The rows need the boundaries of their steps (segments) and marks of 0 to unit. weight=none is lipo; weight=distance
    stresses what differs, as the paper's motive suggests, and then never raises the best path itself. The released code
    inverts the sign and reads unshifted log-probs: this follows the paper's idea. Not triple-po, which TRL calls TPO.
    """
    objective = partial(tree.tpo, beta=beta, weight=weight, step=step, ranks=ranks, reduction=reduction, unit=unit)
    return Method(objective, given, frozen, plain)
