"""Odds ratio preference optimisation (Hong et al. 2024), arXiv:2403.07691 eq. 6, 7."""

from __future__ import annotations

from ..collect.draw import given
from ..objectives.auxiliary import add, nll, scale
from ..objectives.reference_free import odds_ratio
from ..reference import none
from ..types import Method
from ..update import plain


def orpo(lam: float = 0.1) -> Method:
    """Likelihood of the chosen response plus lam times the odds-ratio term: one stage from a base model, no reference.

    The likelihood is the mean over the completion's tokens, each row alike (LLaMA-Factory's reading). The authors' code
    and TRL average over prompt and completion, which makes the balance of the two terms depend on the prompt's length.
    """
    return Method(add(nll, scale(odds_ratio, lam)), given, none, plain)
