"""Direct Nash optimisation (Rosset et al. 2024), arXiv:2404.03715 alg. 1."""

from __future__ import annotations

from functools import partial

from ..collect.select import among_own
from ..numerics import positive
from ..objectives import games
from ..reference import soft
from ..types import Method
from ..update import plain


def dno(eta: float = 0.1, responses: int = 5) -> Method:
    """By rounds: regress, by cross-entropy over all pairs, differences of win rates against the round's first policy onto log-ratios to it.

    Solved exactly a round is multiplicative weights, pi_t exp(winrate / eta) / Z, whatever the law of the pairs: the same iterates as
    sppo's, from another loss. The guarantee is of the average of the iterates; the last one circles where preferences are cyclic,
    and nothing pulls to the first model. P(pi_t+1 beats pi_t) = 1/2 + eta [KL(pi_t+1, pi_t) + KL(pi_t, pi_t+1)].

    The authors train language models with dno_prct; eta and responses are ours.
    """
    positive("eta", eta, "it is the pull towards the round's first policy, and its inverse the step of multiplicative weights")
    collect = among_own(responses=responses, train_on="all")
    return Method(partial(games.dno, beta=eta), collect, soft(1.0), plain, collect_every="round", recipe={"rounds": 3})
