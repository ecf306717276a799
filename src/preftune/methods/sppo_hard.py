"""Self-play preference optimisation on labelled pairs (Wu et al. 2024), arXiv:2405.00675 eq. 4.7."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import absolute
from ..reference import frozen
from ..types import Method
from ..update import plain


def sppo_hard(beta: float = 0.001) -> Method:
    """Regresses the two log-ratios to +-(P(win) - 1/2) / beta; hard labels are P = 1, soft ones come with `prefer`.

    One round of SPPO's regression on given pairs, TRL's loss_type "sppo_hard"; the paper's eta is 1 / beta. With its beta of
    0.001 the targets are +-500 nats and every gradient is clipped: only the learning rate counts then. Relative: sppo.
    """
    return Method(partial(absolute.sppo_hard, beta=beta), given, frozen, plain)
