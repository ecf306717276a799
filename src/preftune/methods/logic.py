"""A preference as a formula (Richardson, Srikumar and Sabharwal 2024), arXiv:2412.17696."""

from __future__ import annotations

from ..collect import draw
from ..logic.known import resolve
from ..objectives.logic import Link, Scale, compiled
from ..reference import frozen, none
from ..types import Method, needs_of
from ..update import plain


def logic(
    formula: str = "l -> w",
    given: str | None = None,
    both: str | None = None,
    link: Link = "logistic",
    beta: float = 1.0,
    scale: Scale = "per_token",
    margin: float | None = None,
) -> Method:
    """A loss compiled from a propositional formula over the answers: winner w, loser l, and rw, rl under the reference.

    formula is the preference, given what has to hold for a case to count, both what counts for either side; or formula is the
    name of a known loss (`preftune logic` lists them). The default says that where the loser is valid so is the winner; with
    link logistic and beta 1 a loss is then -log P(formula | given). Sums of log-probs (scale sequence) are the scale of dpo and
    cpo, means per token (per_token) that of simpo and orpo's odds; where a formula denies an atom, means are needed, for a whole
    response is never likely. margin is for formulas with the constant m, log m = -margin. A reference is kept where the formula
    names one.
    """
    objective = compiled(resolve(formula, given, both), link=link, beta=beta, scale=scale, margin=margin)
    return Method(objective, draw.given, frozen if needs_of(objective).reference else none, plain)
