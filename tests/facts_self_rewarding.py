"""Facts of self-rewarding."""

from __future__ import annotations

from functools import partial

from facts import Facts, Limit, Refusal, pairs, row
from preftune import methods
from preftune.objectives import pairwise

SHIPPED = {"self-rewarding": Facts(methods.self_rewarding(), steady=True, shift=True, swap=True)}

LIMITS: dict[str, Limit] = {
    "self-rewarding has no loss of its own: it is dpo's": (
        row(methods.self_rewarding(beta=0.3).objective),
        row(partial(pairwise.dpo, beta=0.3)),
        pairs,
    ),
}

REFUSED: dict[str, Refusal] = {
    "self-rewarding: one answer has no better": (lambda: methods.self_rewarding(responses=1), "responses is 1 and judgements 3, needed 2"),
    "self-rewarding: no grade": (lambda: methods.self_rewarding(judgements=0), "judgements 0, needed"),
    "self-rewarding: a reward that is none": (lambda: methods.self_rewarding(reward="marks"), "reward is 'marks', needed 'score'"),  # type: ignore[arg-type]
}
