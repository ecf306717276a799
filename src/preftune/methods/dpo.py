"""Direct preference optimisation (Rafailov et al. 2023), arXiv:2305.18290 eq. 7."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import pairwise
from ..reference import frozen
from ..types import Method
from ..update import plain


def dpo(beta: float = 0.1, label_smoothing: float = 0.0) -> Method:
    """Pairs against a frozen reference, hard or soft labels (`prefer`), with optional label smoothing.

    label_smoothing e > 0 is cDPO (Mitchell's note, eq. 3). Relatives: rdpo (unbiased under flips), ipo (bounded target),
    rpo (adds the likelihood of the chosen), tr_dpo (moves the reference). The paper gives no default for beta; 0.1 is the
    low end of the range it names.
    """
    return Method(partial(pairwise.dpo, beta=beta, label_smoothing=label_smoothing), given, frozen, plain)
