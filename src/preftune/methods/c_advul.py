"""Continuous adversarial unlikelihood (Xhonneux et al. 2024; later called CAT), arXiv:2405.15589."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import adversarial as objectives
from ..reference import none
from ..types import Method
from ..update import adversarial

UTILITY = "c-advul trains without the authors' term on utility data (weight 1 on UltraChat, 7 rows of 8): check that ordinary answers stay"


def c_advul(
    toward: float = 0.5,
    away: float = 0.5,
    toward_cutoff: float = 0.5,
    away_cutoff: float = -5.0,
    iterations: int = 10,
    step: float = 1e-4,
    eps: float = 0.05,
) -> Method:
    """Raise the safe answer and lower the other while an adversary moves the prompt's embeddings towards the latter.

    Ranked pairs: the safe response, then the one that the attack makes likelier; the attack is that of c_advipo. Text only,
    no reference. away_cutoff is compared with a mean log-prob and therefore negative.

    The authors add the likelihood of answers to other, harmless prompts that are not attacked. It is left out: its rows would
    be singles among the pairs of a batch.
    """
    objective = partial(objectives.c_advul, toward=toward, away=away, toward_cutoff=toward_cutoff, away_cutoff=away_cutoff)
    return Method(objective, given, none, adversarial(iterations, step, eps), notes=(UTILITY,))
