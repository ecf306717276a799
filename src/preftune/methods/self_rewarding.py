"""Self-rewarding language models (Yuan et al. 2024), arXiv:2401.10020, the loop of section 2."""

from __future__ import annotations

from functools import partial

from ..collect.graded import ends_of_grades
from ..collect.reward import Reward
from ..objectives import pairwise
from ..reference import soft
from ..types import Method
from ..update import plain


def self_rewarding(beta: float = 0.1, responses: int = 4, judgements: int = 3, reward: Reward | None = None) -> Method:
    """By rounds: the policy answers, a judge grades, and dpo prefers the best answer to the worst, against the round's first policy.

    judgements  whose mean is a grade; those without an answer are left out. A judge without chance in it (an expected digit, a trained
                one) says the same every time: 1 is enough, and is the score itself
    reward      "score" for the judge's scores, "winrate" for win rates among the answers, None for scores where the judge has them

    Answers that were not graded make no pair, nor do equal grades; a prompt with fewer than two graded answers is left out and
    counted. Rounds never share pairs, since grades of two rounds are not on one scale.

    The authors' judge is the policy itself with a rubric of 0 to 5 points (here whatever the judge is: a language model may be given,
    also the one that a round made); they draw at temperature 0.7 and top_p 0.9, here as the policy decodes, and add new prompts
    each round. Their models were fine-tuned on instructions and judgements before; without that small ones judge near chance. The
    objective has no minimum on sure labels: length and drift grow by rounds. Watch them, and a second judge.
    """
    collect = ends_of_grades(responses=responses, judgements=judgements, reward=reward)
    recipe = {"rounds": 2, "batch": 16}
    return Method(partial(pairwise.dpo, beta=beta), collect, soft(1.0), plain, collect_every="round", recipe=recipe)
