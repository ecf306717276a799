"""Attribute regression (HelpSteer2, Wang et al. 2024), arXiv:2406.08673."""

from __future__ import annotations

from functools import partial

from ..collect.compare import marked
from ..objectives.judge_training import attribute_regression as loss
from ..objectives.policy_gradient import reading_less
from ..reference import none
from ..types import Head, Method, PreftuneError
from ..update import plain
from .reward_model import JUDGING

HELPSTEER = "helpfulness,correctness,coherence,complexity,verbosity"


def attribute_regression(attributes: str = HELPSTEER) -> Method:
    """A judge with one output for each mark that people gave a response; it regresses them, and a weighted sum of them is its score.

    attributes  names of the columns with the marks, separated by commas: a number for the response, or a list with one for each

    Marks that are missing count nothing. Unlike rewards of comparisons, marks compare responses to different prompts. The authors
    train 2 epochs, and weigh helpfulness 0.65, correctness 0.8, coherence 0.45.
    """
    names = tuple(name.strip() for name in attributes.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise PreftuneError(f"attributes is {attributes!r}, needed different names of columns, separated by commas; see docs/judges.md")
    objective = reading_less(partial(loss), optional=names)
    head = Head(len(names), pool="last", std=None)
    recipe = {**JUDGING, "epochs": 2.0}
    return Method(objective, marked(names), none, plain, recipe=recipe, heads={"attributes": head})
