"""General preference optimisation (Zhang et al. 2024), arXiv:2410.02197."""

from __future__ import annotations

from functools import partial

from ..collect.graded import by_mean_score
from ..collect.select import Trained
from ..numerics import positive
from ..objectives import games, pairwise
from ..reference import soft
from ..types import Method
from ..update import plain


def gpo(beta: float = 0.001, responses: int = 5, train_on: Trained = "extremes", centred: bool = False) -> Method:
    """Rounds of self-play like sppo's, towards mean preference scores in the place of win rates: large where the judge is sure.

    A score is the log-odds of the judge's probability, of both orders: s / tau_rm of a general preference model, whose tau_rm the
    authors set to .1; another tau_rm is another beta. Their tables hold 2 s / tau_rm, so that their .001 is this .0005. A judge that
    is sure has no log-odds and is refused. train_on="extremes" keeps the responses of the best and the worst mean score, "all"
    every one.

    Not centred, the minimum is no normalised policy's; centred=True makes a round pi_t exp(score / beta) / Z, solved exactly. At
    beta = .001 the targets lie thousands of nats away: the authors stop after one epoch at 5e-7. Nothing pulls to the first model.
    """
    positive("beta", beta, pairwise.PULL)
    collect = by_mean_score(responses=responses, train_on=train_on)
    objective = partial(games.gpo, beta=beta, centred=centred)
    return Method(objective, collect, soft(1.0), plain, collect_every="round", recipe={"optimiser": "rmsprop", "rounds": 3})
