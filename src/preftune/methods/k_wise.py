"""The reward model of ranked lists (InstructGPT, Ouyang et al. 2022), arXiv:2203.02155, eq. 1; Plackett-Luce: arXiv:2301.11270."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..numerics import one_of
from ..objectives.judge_training import FORMS, Form
from ..objectives.judge_training import k_wise as loss
from ..reference import none
from ..types import Head, Method
from ..update import plain
from .reward_model import JUDGING


def k_wise(form: Form = "pairs") -> Method:
    """The reward model for lists: all responses to a prompt are one element of the batch, each read once.

    form  "pairs": the mean logistic loss over all pairs of different grades; "plackett_luce": the likelihood of the whole ranking

    On pairs it is reward-model.
    """
    one_of("form", form, FORMS)
    return Method(partial(loss, form=form), given, none, plain, recipe=JUDGING, heads={"reward": Head(1, pool="last", std=None)})
