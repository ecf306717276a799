"""DiscoPOP, a loss found by a language model (Lu et al. 2024), arXiv:2406.08414."""

from __future__ import annotations

import math
from functools import partial

from ..collect.draw import given
from ..numerics import positive
from ..objectives import pairwise
from ..reference import frozen
from ..types import Method
from ..update import plain


def discopop(beta: float = 0.05, tau: float = 0.05) -> Method:
    """Their log-ratio modulated loss: logistic for wrongly ordered pairs, exponential for rightly ordered ones.

    Not convex, and it starts the wrong way: see its note. tau = 0.05 reproduces the published loss, which was found at
    beta = 0.05 without scaling its sigmoid.
    """
    positive("tau", tau, "it is the width of the blend")
    slope = (1 - math.log(2)) / (4 * tau) - 0.75  # d loss / d h at h = 0
    start = (
        f"discopop: with tau = {tau:g} the loss rises by {slope:.3f} per unit of h at the reference, so the first step LOWERS the margin; "
        "with tau = 0.05 a pair first falls towards h = -0.1186 (loss 0.7859, reference 0.8466), and only others carry it over "
        "h = +0.0720 (loss 0.8783), beyond which its margin grows"
    )
    return Method(partial(pairwise.discopop, beta=beta, tau=tau), given, frozen, plain, notes=(start,) if slope > 0 else ())
