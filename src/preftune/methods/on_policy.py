"""What makes preference fine-tuning work: on-policy samples and negative gradients (Tajwar et al. 2024), arXiv:2404.14367, as knobs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from ..collect.online import Negative, best_and_worst
from ..numerics import not_negative, positive
from ..objectives.auxiliary import add, scale
from ..objectives.online import Link, judged_pairs, lowered, value
from ..objectives.pairwise import PULL
from ..reference import frozen, none
from ..types import Method, Objective, PreftuneError
from ..update import plain

likelihood = partial(value, sign=-1)  # of the best response
READ: dict[str, tuple[str, ...]] = {  # by kind of negative gradient
    "none": (),
    "worst": ("margin", "push", "floor"),
    "mean": ("push", "floor"),
    "contrastive": ("margin", "beta", "loss"),
}
OBJECTIVES: dict[str, Callable[[float, Link, float, float], Objective]] = {
    "none": lambda beta, loss, push, floor: likelihood,
    "worst": lambda beta, loss, push, floor: add(likelihood, scale(partial(lowered, floor=floor), push)),
    "mean": lambda beta, loss, push, floor: add(likelihood, scale(partial(lowered, floor=floor), push)),
    "contrastive": lambda beta, loss, push, floor: partial(judged_pairs, beta=beta, loss=loss),
}


def on_policy(
    fraction: float = 1.0,
    refresh: Literal["step", "round"] = "step",
    responses: int = 4,
    negative_gradient: Negative = "contrastive",
    margin: float = 0.0,
    beta: float = 0.1,
    loss: Link = "dpo",
    push: float = 0.1,
    floor: float = 10.0,
) -> Method:
    """Three axes of one method: who writes the responses, how often they are drawn anew, and whether bad ones are pushed down.

    fraction           of the prompts answered by the policy; the others train on the pairs of the data, at 0 all (offline)
    refresh            "step": fresh answers each step; "round": answers are used for the epochs of a round (sample reuse)
    negative_gradient  "contrastive": loss ("dpo", "ipo", "hinge") with pull beta on the best against the worst; "none": the likelihood
                       of the best (best-of-n fine-tuning); "worst", "mean": this, and push times the worst or the other responses
                       down, until they are floor nats below the reference. Without a floor such terms have no minimum
    margin             best and worst whose win rates differ by less make no pair

    The authors find that fresh answers and negative gradients help most where good responses are rare under the reference, and little
    where they are likely already. On an exact bandit of theirs the first holds here; contrastive pairs lead early and then settle
    short of best-of-n, since best and worst grow alike (tests/test_online.py). fraction=0 and "none" is sft on the chosen (summed);
    fraction=0 is dpo, ipo or hinge. Pairs of similar quality may lower both. A diagnostic: which knob matters depends on the data.
    """
    if negative_gradient not in OBJECTIVES or refresh not in ("step", "round"):
        raise PreftuneError(
            f"negative_gradient is {negative_gradient!r} and refresh {refresh!r}, needed {', '.join(OBJECTIVES)}, and step or round"
        )
    if not 0 <= fraction <= 1 or responses < 2:
        raise PreftuneError(f"fraction is {fraction} and responses {responses}, needed 0 <= fraction <= 1 and responses >= 2")
    defaults = {"margin": (margin, 0.0), "beta": (beta, 0.1), "loss": (loss, "dpo"), "push": (push, 0.1), "floor": (floor, 10.0)}
    unread = [name for name, (value, default) in defaults.items() if value != default and name not in READ[negative_gradient]]
    if unread:
        raise PreftuneError(
            f"{' and '.join(unread)} were given, which negative_gradient={negative_gradient!r} does not read; leave them out"
        )
    positive("beta", beta, PULL)
    not_negative("margin", margin, "it is a difference of win rates")
    return Method(
        OBJECTIVES[negative_gradient](beta, loss, push, floor),
        partial(best_and_worst, responses=responses, negative=negative_gradient, margin=margin, fraction=fraction),
        none if negative_gradient == "none" else frozen,
        plain,
        collect_every="run" if fraction == 0 else refresh,
        reads="prompts" if fraction == 1 else "responses",
        columns=2,
    )
