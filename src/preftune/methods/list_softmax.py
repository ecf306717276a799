"""Softmax cross-entropy of a list (LiPO's softmax, arXiv:2402.01878) and InfoNCA (Chen et al. 2024, arXiv:2402.05369)."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import listwise
from ..reference import frozen
from ..types import Method
from ..update import plain


def list_softmax(beta: float = 0.05, alpha: float | None = None) -> Method:
    """The softmax of a list's log-ratios imitates its scores: their shares of the sum, or with alpha their softmax.

    With alpha this is InfoNCA, whose rewards are the scores; nca with alpha is its relative that also holds absolute likelihoods. With
    two responses of grades 1 and 0 it is dpo. Scores below 0 need alpha.
    """
    return Method(partial(listwise.list_softmax, beta=beta, alpha=alpha), given, frozen, plain)
