"""Online fast-slow chasing DPO (Qi et al. 2024), arXiv:2406.05534. Experimental: the paper's loss was not available to us."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from ..collect.draw import given
from ..numerics import one_of
from ..objectives.auxiliary import add, scale
from ..objectives.online import apart, chasing
from ..objectives.pairwise import dpo
from ..reference import frozen
from ..types import Loss, Method
from ..update import fast_slow

TERMS: dict[str, Callable[..., Loss]] = {"chasing": chasing, "gap": apart}


def ofs_dpo(beta: float = 0.1, gamma: float = 0.1, slow: float = 0.1, g: Literal["chasing", "gap"] = "chasing") -> Method:
    """DPO by two learners of different speed on a stream of pairs, each also held against the other: dpo + gamma g.

    slow  the slow learner's rate over the fast one's; both train, and the fast one is handed out
    g     two readings of the summaries: "chasing" is dpo with the other learner as the reference, whose gradient stays where
          dpo's own has saturated; "gap" is the squared difference of the two probabilities that the winner wins

    gamma = 0 is dpo. Defaults are ours. Left out: the exchange of the two roles when the slow one validates better, which needs
    pairs held out of the stream, and the combination of several domains' fast learners. Holds moments for both.
    """
    one_of("g", g, TERMS, ": how the two learners are held against each other")
    objective = add(partial(dpo, beta=beta), scale(partial(TERMS[g], beta=beta), gamma))
    notes = ("experimental: the loss of ofs-dpo is a reading of summaries of the paper",)
    return Method(objective, given, frozen, fast_slow(slow), notes=notes, roles=("twin",))
