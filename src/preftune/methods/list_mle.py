"""ListMLE, or DPO under Plackett-Luce (Rafailov et al. 2023), arXiv:2305.18290 app. A.3; as a baseline in arXiv:2402.01878."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import listwise
from ..reference import frozen
from ..types import Method
from ..update import plain


def list_mle(beta: float = 0.05) -> Method:
    """The likelihood of the whole order of a list: the best drawn first, then the best of the rest, and so on.

    With two responses this is dpo. Only the order of the scores matters; equal scores are drawn from the same remainder.
    """
    return Method(partial(listwise.list_mle, beta=beta), given, frozen, plain)
