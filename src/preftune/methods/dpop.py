"""DPO-positive (Pal et al. 2024, Smaug), arXiv:2402.13228."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import modifiers
from ..reference import frozen
from ..types import Method
from ..update import plain


def dpop(beta: float = 0.3, lam: float = 50.0) -> Method:
    """DPO that does not let the chosen response become less likely than it was under the reference.

    A fall of the chosen response by one nat costs lam nats of margin; while it has not fallen this is dpo, and so it is
    with lam = 0. Made for pairs that differ in a few tokens, where dpo lowers both. turbo-alignment's default lam is 0.1.
    """
    return Method(partial(modifiers.dpop, beta=beta, lam=lam), given, frozen, plain)
