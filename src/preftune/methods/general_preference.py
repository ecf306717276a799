"""The general preference model (Zhang et al. 2024), arXiv:2410.02197."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..numerics import positive
from ..objectives.judge_training import general_preference as loss
from ..reference import none
from ..types import Head, Method, PreftuneError
from ..update import plain
from .reward_model import JUDGING


def general_preference(tau: float = 0.1, planes: int = 3, gated: bool = False, label_smoothing: float = 0.0) -> Method:
    """A judge of preferences that may go in circles: each response is embedded once, and a skew-symmetric form of two embeddings is the
    log-odds of the preference.

    planes  k, for embeddings of 2k numbers: 1 holds any cycle of three; 2, 3 and 4 are the authors'
    gated   weighs the planes by a second head, averaged over both responses

    The authors train 2 epochs. They start the head with 1 / (width + 1), near the saddle at 0; here it starts with 0.02. Larger first
    weights, divided by tau, make a judge that is too sure from the first step (docs/judges.md).
    """
    positive("tau", tau, "it is the temperature of the preference model")
    if planes < 1:
        raise PreftuneError(f"planes is {planes}, needed at least 1: an embedding has two numbers for each plane; 3 is usual")
    heads = {"embedding": Head(2 * planes, pool="last")}
    if gated:
        heads["gate"] = Head(planes, pool="last", std=0.0)  # all planes alike at first
    objective = partial(loss, tau=tau, gated=gated, label_smoothing=label_smoothing)
    return Method(objective, given, none, plain, recipe={**JUDGING, "epochs": 2.0}, heads=heads)
