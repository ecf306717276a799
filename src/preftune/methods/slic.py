"""Sequence likelihood calibration with human feedback (Zhao et al. 2023), arXiv:2305.10425."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives.auxiliary import add, nll, scale
from ..objectives.pairwise import hinge_free
from ..reference import none
from ..types import Method
from ..update import plain


def slic(delta: float = 1.0, lam: float = 0.1) -> Method:
    """SLiC-HF: max(0, delta - logp(chosen) + logp(rejected)) - lam * logp(target), summed log-probs, no reference.

    The target of the likelihood term is the chosen response. Defaults are those of HALOs, which calls delta beta. Relatives:
    hinge (with a reference, no likelihood). In TRL the nearest is the CPO trainer's "hinge", whose margin is 1 / beta
    nats and whose likelihood is a token mean.
    """
    likelihood = scale(partial(nll, aggregation="seq_sum"), lam)
    return Method(add(partial(hinge_free, delta=delta), likelihood), given, none, plain)
