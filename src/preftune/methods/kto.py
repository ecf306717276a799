"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024), arXiv:2402.01306 eq. 7, 8."""

from __future__ import annotations

from functools import partial

from ..collect.draw import mismatched
from ..objectives import pointwise
from ..reference import frozen
from ..types import Method
from ..update import plain


def kto(
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    baseline: pointwise.Baseline = "batch",
    balanced: bool = False,
) -> Method:
    """Unpaired responses labelled good or bad. Pairs count as one of each.

    The KL baseline is the mean over the whole batch, also under micro-batches, of mismatched responses drawn anew in
    every epoch (TRL fixes them); baseline="running" carries it over steps, for small batches. balanced=True gives both classes
    half of the loss in every batch, whatever their shares. KTO takes the majority label and calibrates nothing; bco does.
    """
    objective = partial(
        pointwise.kto,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        baseline=baseline,
        balanced=balanced,
    )
    return Method(objective, mismatched, frozen, plain)
