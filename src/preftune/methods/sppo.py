"""Self-play preference optimisation (Wu et al. 2024), arXiv:2405.00675 alg. 1, eq. 4.7."""

from __future__ import annotations

from functools import partial

from ..collect.select import Trained, among_own
from ..numerics import positive
from ..objectives import pointwise
from ..reference import soft
from ..types import Method
from ..update import plain


def sppo(eta: float = 1000.0, responses: int = 5, train_on: Trained = "extremes", centred: bool = False) -> Method:
    """Rounds of self-play: every round regresses log-ratios to eta times the win rate over one half, against the round's first policy.

    train_on="extremes" trains on the best and the worst of the responses, as the authors' code does, train_on="all" on every one. Win
    rates are means over all of them, the response itself at 1/2. centred=True takes the mean of the residual out of the loss, so
    that its minimiser is the step of multiplicative weights, which the authors' loss misses for want of a normaliser.

    At eta = 1000 targets lie up to 500 nats away: the authors stop after one epoch at 5e-7, far from the minimum. Nothing pulls to
    the first model, and in a cyclic game the last round does not settle (their average over rounds does; egpo's last iterate does).
    Takes rounds = 3 in the paper, each on new prompts; relatives: sppo_hard (offline, win rates 1 and 0), online_ipo.
    """
    positive("eta", eta, "it is the step of multiplicative weights, and its inverse the pull towards the round's first policy")
    collect = among_own(responses=responses, train_on=train_on)
    objective = partial(pointwise.sppo, beta=1 / eta, centred=centred)
    return Method(objective, collect, soft(1.0), plain, collect_every="round", recipe={"optimiser": "rmsprop", "rounds": 3})
