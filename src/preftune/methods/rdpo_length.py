"""Length-regularised DPO, R-DPO (Park et al. 2024), arXiv:2403.19159."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import modifiers
from ..reference import frozen
from ..types import Method
from ..update import plain


def rdpo_length(beta: float = 0.1, alpha: float = 0.01) -> Method:
    """DPO for the reward minus alpha per token: part of the preference for a longer response is laid to its length.

    alpha = 0 is dpo. alpha is in reward units a token: at beta 0.1 and alpha 0.01 a token more costs 0.1 nats of log-ratio.
    Another paper than rdpo (robust DPO). The value 0.01 is ours.
    """
    return Method(partial(modifiers.rdpo_length, beta=beta, alpha=alpha), given, frozen, plain)
