"""Accelerated preference optimisation (He, Yuan, Gu 2024), arXiv:2410.06293."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from ..collect.online import among
from ..collect.select import among_own
from ..numerics import one_of, positive
from ..objectives import pairwise, pointwise
from ..objectives.online import judged_pairs
from ..reference import extrapolated
from ..types import Collect, Method, Objective
from ..update import plain

Inner = Literal["dpo", "ipo", "sppo"]
INNER: dict[str, Callable[[float, int], tuple[Objective, Collect]]] = {
    "dpo": lambda beta, n: (partial(judged_pairs, beta=beta, loss="dpo"), among(responses=n, label="soft")),
    "ipo": lambda beta, n: (partial(judged_pairs, beta=beta, loss="ipo"), among(responses=n, label="soft")),
    "sppo": lambda beta, n: (partial(pointwise.sppo, beta=beta, centred=True), among_own(responses=n, train_on="all")),
}


def apo_nesterov(alpha: float = 0.3, beta: float = 0.1, inner: Inner = "dpo", responses: int = 2) -> Method:
    """Rounds of dpo, ipo or sppo on fresh responses, with Nesterov's momentum between them: solve, then go on by alpha of the round's move.

    hat_t+1 = the round's solution from pi_t;   pi_t+1 = hat_t+1 (hat_t+1 / hat_t)^alpha / Z, the next reference, sampler and start

    Extrapolated are parameters, which on a table are log-probs. The run hands out the extrapolated policy of its last round; the first
    round has no momentum to go on by. alpha = 0 is the inner method by rounds (sppo with its residuals centred).

    Under a fixed reward a round's solution moves by r / beta + alpha times its move before, up to r / (beta (1 - alpha)): in the long run
    this is the inner method with beta (1 - alpha), with which it should be compared; log-ratios to the first model grow as much. On
    cyclic games momentum makes the circles wider. alpha is the authors' as reported elsewhere, beta and responses are ours.
    Not anchored preference optimisation (apo_zero, apo_down).
    """
    positive("beta", beta, pairwise.PULL)
    one_of("inner", inner, INNER, ": the loss of a round")
    objective, collect = INNER[inner](beta, responses)
    move = extrapolated(alpha)
    return Method(objective, collect, move, plain, collect_every="round", recipe={"rounds": 3}, roles=("hat",))
