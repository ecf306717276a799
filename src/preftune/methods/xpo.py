"""Exploratory preference optimisation (Xie et al. 2024), arXiv:2405.21046 alg. 1, as TRL's XPOTrainer steps."""

from __future__ import annotations

from ..collect.online import Label
from ..numerics import positive
from ..objectives.pairwise import PULL
from ..types import Method
from .vpo import vpo


def xpo(beta: float = 0.1, alpha: float = 1e-5, label: Label = "soft") -> Method:
    """A response of the policy against one of the reference, plus alpha log pi(the reference's response): global optimism.

    The term repels the policy from the reference: it raises what is likelier than under it and lowers what is rarer, which is
    not "pushing mass onto reference completions". It is unbounded below, hence alpha this small; the paper's schedule over three
    rounds is 1e-5, 5e-6, 0. The same loss as vpo's with alpha_vpo = alpha / beta. Each step has fresh pairs; the paper keeps
    those of earlier rounds.
    """
    positive("beta", beta, PULL)
    return vpo(beta=beta, alpha=alpha / beta, calibration="reference", partner="reference", label=label)
