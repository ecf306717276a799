"""Noise contrastive alignment (Chen et al. 2024), arXiv:2402.05369, of pairs and of lists with scores."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import absolute
from ..objectives.listwise import list_nca
from ..reference import frozen
from ..types import Method
from ..update import plain


def nca(beta: float = 0.01, alpha: float | None = None) -> Method:
    """Looks at the absolute log-ratios: the chosen response is drawn to beta * logratio = ln 2, the rejected one pushed down.

    So the chosen response cannot lose probability for the sake of the gap, as it can under dpo. TRL's "nca_pair".
    With alpha the rows are lists of K graded responses: each is drawn to beta * logratio = log(K t), t = softmax(score / alpha).
    InfoNCA, which only compares, is list_softmax with alpha.
    """
    objective = partial(absolute.nca, beta=beta) if alpha is None else partial(list_nca, beta=beta, alpha=alpha)
    return Method(objective, given, frozen, plain)
