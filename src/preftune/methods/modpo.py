"""Multi-objective DPO (Zhou et al. 2023), arXiv:2310.03708."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import modifiers
from ..reference import frozen
from ..types import Method, PreftuneError
from ..update import plain


def modpo(beta: float = 0.1, weights: str = "0.5,0.5", link: modifiers.Link = "logistic") -> Method:
    """Pairs of one objective and scores of the others train towards the weighted sum of all: reference * exp(w.r / beta).

    weights are those of the pairs' objective, then of each column of `other_scores`; they add up to one. "1,0" is dpo.
    other_scores have to be in the units of beta * log-ratio: rewards of a Bradley-Terry model, or beta times the log-ratio
    of a policy trained by dpo on that objective. The front is drawn by one run for each choice of weights.
    """
    try:
        parsed = tuple(float(w) for w in weights.split(","))
    except ValueError as error:
        raise PreftuneError(f"weights is {weights!r}, needed numbers between commas, the trained objective first; as in 0.5,0.5") from error
    return Method(partial(modifiers.modpo, beta=beta, weights=parsed, link=link), given, frozen, plain)
