"""Aligned supervised fine-tuning through absolute likelihood (2024), arXiv:2409.10571."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import reference_free
from ..objectives.auxiliary import add, nll, scale
from ..reference import none
from ..types import Method
from ..update import plain


def asft(lam: float = 1.0, beta: float = 1.0, ce: float = 1.0) -> Method:
    """Likelihood of the chosen response per token, times ce, plus lam times a term that judges each response by its own odds.

    At beta = ce = 1 the loss is -(1 + lam) m_chosen - lam log(1 - e^m_rejected): likelihood and unlikelihood, no comparison.
    lam = 0 is sft with seq_mean; orpo compares the two odds instead. Formula and defaults are those of turbo-alignment, the
    authors published no code.
    """
    return Method(add(scale(nll, ce), scale(partial(reference_free.asft, beta=beta), lam)), given, none, plain)
