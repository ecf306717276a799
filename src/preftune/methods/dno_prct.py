"""DNO-Prct, the practical direct Nash optimisation (Rosset et al. 2024), arXiv:2404.03715 alg. 2."""

from __future__ import annotations

from functools import partial

from ..collect.graded import far_apart
from ..collect.reward import Reward
from ..objectives import pairwise
from ..reference import soft
from ..types import Method
from ..update import plain


def dno_prct(
    eta: float = 0.1,
    responses: int = 5,
    least: float = 5.0,
    margin: float = 2.0,
    own_margin: float = 1.0,
    past: float = 0.3,
    gold: bool = False,
    reward: Reward | None = None,
) -> Method:
    """By rounds: dpo against the round's first policy on pairs that a judge grades far apart, some of earlier rounds among them.

    The better response has a grade of `least` or more and leads by `own_margin`, or by `margin` where it is the gold response of the
    data (gold=True, the first or chosen one: then it is no pure self-play). Defaults are for the authors' rubric of six points:
    set all three on the scale of your judge. A judge without scores grades by win rates, which lie between 0 and 1. A round that
    leaves no pair is an error.

    This is iterative dpo, with what that takes for granted (Bradley-Terry); where preferences are cyclic only dno has the
    guarantee. Sure labels want a larger eta than there; the authors take .1 or .05, 3 rounds of new prompts, and keep the best
    iterate on validation (early_stop). They draw with top_p .95 at temperature .7 and make repetitive responses losers; here they
    are drawn as the policy decodes, and judged as they are.
    """
    collect = far_apart(responses=responses, least=least, margin=margin, own_margin=own_margin, past=past, reward=reward)
    return Method(
        partial(pairwise.dpo, beta=eta),
        collect,
        soft(1.0),
        plain,
        collect_every="round",
        recipe={"rounds": 3},
        reads="responses" if gold else None,
        columns=1 if gold else None,
    )
