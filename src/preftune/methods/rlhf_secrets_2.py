"""Preference strength by votes of reward models, after "Secrets of RLHF in Large Language Models, Part II", arXiv:2401.06080."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from ..collect.draw import given
from ..collect.repair import flip_weakest
from ..numerics import one_of
from ..objectives.modifiers import odpo, spce
from ..objectives.pairwise import dpo
from ..reference import frozen
from ..types import Method, PreftuneError
from ..update import plain


def _margin(beta: float, largest: float) -> Method:
    return Method(partial(odpo, beta=beta, clip=largest), given, frozen, plain)


def _flip(beta: float, share: float) -> Method:
    collect = partial(flip_weakest, share=share)  # a share of the whole data: collected as one round
    return Method(partial(dpo, beta=beta), collect, frozen, plain, collect_every="round", reads="responses")


def _soft(beta: float) -> Method:
    return Method(partial(spce, beta=beta), given, frozen, plain)


Mode = Literal["margin", "flip", "soft"]
MODES: dict[str, Callable[..., Method]] = {"margin": _margin, "flip": _flip, "soft": _soft}
DEFAULTS: dict[str, dict[str, float]] = {"margin": {"largest": 3.0}, "flip": {"share": 0.2}, "soft": {}}


def rlhf_secrets_2(beta: float = 0.1, mode: Mode = "margin", largest: float | None = None, share: float | None = None) -> Method:
    """DPO on labels that several reward models have judged; mu = mean over the models of the reward difference of a pair.

    margin  -logsigmoid(h - mu), mu no farther than largest (3) from 0. Reads the mean rewards as scores; with largest 0 dpo
    flip    turns the labels of the share (0.2) of the data with the least mu. Reads the mean rewards as scores; with share 0 dpo
    soft    -p logsigmoid(h) - (1 - p) logsigmoid(-h), p the share of votes for the chosen response, as prefer

    The paper trains reward models so, on h = r(chosen) - r(rejected); here h = beta times the gap of log-ratios. Scores should
    come from models that have not been trained on the pair they judge. The paper flips a fifth; largest is ours.
    """
    one_of("mode", mode, MODES)
    said = {name: value for name, value in (("largest", largest), ("share", share)) if value is not None}
    if not said.keys() <= DEFAULTS[mode].keys():
        raise PreftuneError(f"mode is {mode} and {', '.join(said)} was given: largest goes with mode=margin and share with mode=flip only")
    options = DEFAULTS[mode] | said
    if not 0 <= options.get("share", 0) < 1:
        raise PreftuneError(f"share is {share}, needed 0 <= share < 1: the part of the labels that is turned")
    if not options.get("largest", 0) >= 0:
        raise PreftuneError(
            f"largest is {largest}, needed a number of at least 0: the largest margin that is asked for; inf limits nothing"
        )
    return MODES[mode](beta, **options)
