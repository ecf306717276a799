"""The Bradley-Terry reward model (Ouyang et al. 2022), arXiv:2203.02155, eq. 1."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..numerics import one_of
from ..objectives.judge_training import MARGINS, Margin, bradley_terry
from ..objectives.policy_gradient import reading_less
from ..reference import none
from ..types import Head, Method
from ..update import plain

JUDGING = {"lr": 1e-5, "epochs": 1.0, "batch": 64}  # a reward model that sees its pairs twice has learned them by heart


def reward_model(margin: Margin = "none", label_smoothing: float = 0.0, centring: float = 0.0) -> Method:
    """A judge, not a policy: a linear head on the state of a response's last token, whose difference is the log-odds of a preference.

    margin    "subtract": -logsigmoid(r0 - r1 - m), "scale": -|m| logsigmoid(r0 - r1), m the column `margin`: the strength of a preference
    centring  c: plus c (r0 + r1)^2, which draws the mean reward of a pair to 0; usual is 0.01

    Soft labels `prefer` are read where they are given. Rewards are known up to a function of the prompt: they compare responses to one
    prompt. Of cyclic preferences nothing is learned, see general-preference. With adapters lr 1e-4 is usual.
    """
    one_of("margin", margin, MARGINS)
    objective = partial(bradley_terry, margin=margin, label_smoothing=label_smoothing, centring=centring)
    labels = ("ranked",) if margin == "none" else ("ranked", "margin")
    objective = reading_less(objective, labels=labels, optional=("prefer",))
    return Method(objective, given, none, plain, recipe=JUDGING, heads={"reward": Head(1, pool="last", std=None)})
