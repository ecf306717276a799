"""Iterative Nash policy optimisation (Zhang et al. 2024), arXiv:2407.00617 alg. 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from ..collect.online import among
from ..collect.select import among_own
from ..collect.tournament import knocked_out
from ..numerics import one_of
from ..objectives import games
from ..reference import previous
from ..types import Collect, Loss, Method, PreftuneError
from ..update import plain

Labels = Literal["winrate", "sampled", "tournament"]
LABELS: dict[str, tuple[Callable[..., Loss], Callable[[int], Collect]]] = {
    "winrate": (games.inpo, lambda responses: among_own(responses=responses, train_on="all")),
    "sampled": (games.inpo_pairs, lambda responses: among(responses=responses, label="sampled")),
    "tournament": (games.inpo_pairs, lambda responses: knocked_out(responses=responses)),
}


def inpo(tau: float = 0.005 / 3, eta: float | None = None, labels: Labels = "winrate", responses: int = 8) -> Method:
    """By rounds: pi_t+1 ~ ref^(tau / eta) pi_t^(1 - tau / eta) exp(P(y beats pi_t) / eta), mirror descent with step 1 / eta.

    labels  "winrate" regresses to the win rates of all responses against one another; "sampled" to labels drawn with the judge's
            probability, one for every two responses (the paper's loss with 2: the same in expectation); "tournament" to the winner
            over the loser of a knock-out, as the authors train: best against worst, which is no longer that loss

    eta is an INVERSE step, the whole pull: tau of it to the reference, the rest to the policy of the last round. None is 3 tau, the
    authors' proportion; their eta is .005, from a grid of .002 to .1. tau = eta is online_ipo by rounds, tau = 0 (with an eta)
    pure self-play. The last iterate goes to the equilibrium regularised by tau for eta above (tau^2 + s^2) / (2 tau), s the
    rotation of the game, and with eta_t = tau (t + 2) / 2; below it circles. Rounds take new prompts; the authors take 3 with 8 responses.
    """
    whole = 3 * tau if eta is None else eta
    if not 0 <= tau <= whole:
        raise PreftuneError(
            f"tau is {tau} and eta {whole}, needed 0 <= tau <= eta: beyond it the last policy would weigh less than nothing"
        )
    one_of("labels", labels, LABELS, ": what the responses are regressed to")
    loss, collect = LABELS[labels]
    objective = partial(loss, beta=tau, inertia=whole - tau)
    recipe = {"rounds": 3, "schedule": "cosine"}
    return Method(objective, collect(responses), previous, plain, collect_every="round", recipe=recipe, roles=("previous",))
