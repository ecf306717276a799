"""Adaptive-rejection preference optimisation (X-ALMA, Xu et al. 2024), arXiv:2410.03115."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import reference_free
from ..objectives.auxiliary import add, nll, scale
from ..reference import none
from ..types import Method
from ..update import plain


def arpo(beta: float = 0.1, k1: float = 0.9, k2: float = 0.4, alpha: float = 1.0) -> Method:
    """cpo that rejects less where both responses are about equally likely, as two good translations are.

    Where the mean log-probs differ by log(2 / k1) / k2 nats a token or more this is cpo with the same alpha. Defaults: the
    authors' code, in which k1 and k2 are relax_cofficient_1 and relax_cofficient_2.
    """
    return Method(add(partial(reference_free.arpo, beta=beta, k1=k1, k2=k2), scale(nll, alpha)), given, none, plain)
