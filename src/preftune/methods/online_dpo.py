"""Direct alignment from online feedback (Guo et al. 2024), arXiv:2402.04792: the losses of offline methods on fresh pairs."""

from __future__ import annotations

from functools import partial

from ..collect.online import Label, among
from ..objectives.online import Link, judged_pairs
from ..reference import frozen
from ..types import Method
from ..update import plain
from .online_ipo import SELF_PLAY


def online_dpo(beta: float = 0.1, loss: Link = "dpo", label: Label = "soft", responses: int = 2) -> Method:
    """Each step the policy answers twice, the judge compares, and the pair trains it against the first model.

    loss   "dpo", "ipo" or "hinge" (the authors' SLiC), for which the authors take beta 0.1, 1 and 0.002
    label  "soft" trains with the judge's probability; "sampled" draws the winner with it: the same in expectation, only noisier;
           "threshold" lets the likelier win, as TRL does with rewards: another game, in which every preference is sure and a
           transitive judge leaves no finite optimum. Equals make no pair

    On preferences of Bradley-Terry it ends at reference * exp(r / beta); on others beside the Nash equilibrium, which online_ipo
    and egpo reach. responses > 2 compares all of them. On text, short max_response cuts most answers.
    """
    collect = among(responses=responses, label=label)
    return Method(partial(judged_pairs, beta=beta, loss=loss), collect, frozen, plain, collect_every="step", recipe=SELF_PLAY)
