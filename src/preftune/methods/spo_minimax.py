"""Self-play preference optimisation as a minimax game (Swamy et al. 2024), arXiv:2401.04056."""

from __future__ import annotations

from functools import partial

from ..collect.reward import rewards
from ..objectives import policy_gradient
from ..reference import frozen
from ..types import Method
from ..update import plain
from .online_ipo import SELF_PLAY


def spo_minimax(beta: float = 0.05, responses: int = 4) -> Method:
    """One player against itself: a response's reward is how often it beats the policy's other responses, and `rloo` does the rest.

    r_i = sum over j != i of P(y_i beats y_j) / (responses - 1), a constant; exact: r = P pi. The mean of r is 1/2 in every batch, and
    the policy gradient takes r_i - 1/2: a mean over the others' r, which hold their matches against y_i, would count each twice.

    The theory is of the AVERAGE of the iterates of a no-regret learner without a reference (beta = 0), on a table theta + eta P pi
    (Hedge): a minimax winner, at a rate of 1 / sqrt(steps). The last iterate circles where preferences are cyclic. The paper
    leaves the learner open; here it is the policy gradient, which weighs that step by pi, and beta > 0, which pulls also the last
    iterate to the equilibrium regularised by beta if steps are small. beta is that of TRL's RLOO, responses are ours. Rewards are
    not divided by their spread, which blows up near-ties.

    Not sppo (Wu et al.), whose regression to win rates is by rounds; nor spo_degree.
    """
    collect = rewards(responses=responses, reward="winrate")
    objective = partial(policy_gradient.rloo, beta=beta)
    return Method(objective, collect, frozen, plain, collect_every="step", recipe=SELF_PLAY)
