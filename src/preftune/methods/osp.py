"""Online self-preferring language models (Zhai et al. 2024), arXiv:2405.14103."""

from __future__ import annotations

from functools import partial

from ..collect.thin import all_pairs
from ..objectives import modifiers
from ..reference import frozen
from ..types import Method
from ..update import plain


def osp(beta: float = 0.1, responses: int = 4, T: float = 1.0) -> Method:
    """By rounds: the policy answers, the judge compares all answers in both orders, all pairs train with soft labels.

    With labels of Bradley-Terry in a reward R the optimum is reference * exp(R / beta), since strength sets the margin; sure
    labels make it dpo. T < 1 tempers a judge that is too sure. The authors' judge is the language model itself; here it is
    whichever is given. A round has responses (responses - 1) / 2 pairs of a prompt, and the recommended epochs pass over
    them once. responses and T are ours; the paper's are not known to us.
    """
    pairs = responses * (responses - 1) // 2
    collect = all_pairs(responses=responses, T=T)
    return Method(partial(modifiers.spce, beta=beta), collect, frozen, plain, collect_every="round", recipe={"epochs": float(pairs)})
