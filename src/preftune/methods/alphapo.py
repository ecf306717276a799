"""AlphaPO: reward shape matters for LLM alignment (Gupta et al. 2025), arXiv:2501.03884."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import reference_free
from ..reference import none
from ..types import Method
from ..update import plain


def alphapo(beta: float = 2.5, gamma: float = 0.1, alpha: float = 0.25) -> Method:
    """simpo with the reward (1 - p^-alpha) / alpha, p the geometric mean of a response's token probabilities.

    alpha = 0 is simpo. Defaults: Mistral-Instruct in the paper, with lr 7e-7. gamma is in reward units, as in TRL's
    simpo_gamma; TRL needs loss_type "alphapo", or its default cpo_alpha = 1 adds a likelihood term.
    """
    return Method(partial(reference_free.alphapo, beta=beta, gamma=gamma, alpha=alpha), given, none, plain)
