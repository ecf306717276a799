"""Noise contrastive alignment (Chen et al. 2024), arXiv:2402.05369, the pairwise form."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import absolute
from ..reference import frozen
from ..types import Method
from ..update import plain


def nca(beta: float = 0.01) -> Method:
    """Looks at the absolute log-ratios: the chosen response is drawn to beta * logratio = ln 2, the rejected one pushed down.

    So the chosen response cannot lose probability for the sake of the gap, as it can under dpo. TRL's "nca_pair".
    """
    return Method(partial(absolute.nca, beta=beta), given, frozen, plain)
