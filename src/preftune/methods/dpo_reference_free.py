"""DPO without a reference (Rafailov et al. 2023, reference_free in the authors' code), arXiv:2305.18290."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import modifiers
from ..reference import none
from ..types import Method
from ..update import plain


def dpo_reference_free(beta: float = 0.1, label_smoothing: float = 0.0) -> Method:
    """DPO against a reference that finds every response alike likely: no second model, and nothing that holds the policy back.

    The preference term of cpo, which adds the chosen's likelihood. Log-probs are sums, so that longer responses start
    behind; simpo takes means. Libraries have dropped the option; OpenRLHF and the authors' code keep it.
    """
    return Method(partial(modifiers.dpo_reference_free, beta=beta, label_smoothing=label_smoothing), given, none, plain)
