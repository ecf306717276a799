"""Facts of the methods that work on the data: degraded copies, stated goals, a curriculum of pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from facts import B, Facts, Limit, Refusal, Value, at_reference, normal, pairs, row, soft_pairs, swapped
from preftune import methods
from preftune.objectives import degree, pairwise
from preftune.objectives.auxiliary import add, scale
from preftune.types import Scored

SHIPPED = {
    "spo-degree": Facts(methods.spo_degree(), steady=True, shift=True, swap=False),  # the label of the copies is no side of the pair
    "spo-degree ordinal": Facts(methods.spo_degree(ordinal="logistic"), steady=True, shift=True),
    "spo-degree hinge": Facts(methods.spo_degree(ordinal="hinge"), steady=True, shift=True),
    "curry-dpo": Facts(methods.curry_dpo(), steady=True, shift=True, swap=True),
    "curry-dpo mixed": Facts(methods.curry_dpo(variant="mixed"), steady=True, shift=True, swap=True),
    "reward-augmented": Facts(methods.reward_augmented(), steady=True, shift=True, swap=True),
    "reward-augmented smoothed": Facts(methods.reward_augmented(label_smoothing=0.3), shift=True, swap=True),
}


def graded(outputs: int = 3, present: bool = True) -> Scored:
    """Pairs and two copies: degrees 0, none, 1, 2; some copies are absent."""
    s = pairs()
    wide = torch.cat([s.logp, normal(B, 2) - 20], 1).detach().requires_grad_()
    label = torch.tensor([[0.0, -1.0, 1.0, 2.0]] * B, dtype=torch.float64)
    there = torch.ones(B, 4, dtype=torch.bool)
    if present:
        there[::3, 2] = False
        label[::3, 2] = -1
    rows = s.rows.replace(extra={"degree": label}, present=there)
    head = normal(B, 4, outputs).requires_grad_()
    return Scored(rows, wide, torch.cat([s.ref_logp, wide.detach()[:, 2:]], 1), heads={"degree": head})


def two_degrees() -> Scored:
    s = graded(outputs=2, present=False)
    keep = s.rows.label("degree").clone()
    keep[:, 3] = -1
    return replace(s, rows=s.rows.replace(extra={"degree": keep}))


def at_zero(outputs: int) -> Scored:
    s = graded(outputs)
    return replace(s, heads={"degree": torch.zeros(B, 4, outputs, dtype=torch.float64)})


def scores(s: Scored) -> Tensor:
    """A scale made of two outputs: log q_0 - log q_1, [B, K, 1]."""
    head = s.heads["degree"]
    return head[:, :, :1] - head[:, :, 1:]


LIMITS: dict[str, Limit] = {
    "degree of two is the logistic loss of their outputs' differences": (
        row(degree.degree),
        lambda s: (softplus(-scores(s)[:, 0, 0]) + softplus(scores(s)[:, 2, 0])) / 2,
        two_degrees,
    ),
    "ordinal of two degrees is one logistic pair": (
        lambda s: degree.ordinal(replace(s, heads={"degree": scores(s)})).row,
        lambda s: softplus(scores(s)[:, 2, 0] - scores(s)[:, 0, 0]),
        two_degrees,
    ),
    "ordinal's hinge of two degrees is 1 minus their difference, if positive": (
        lambda s: degree.ordinal(replace(s, heads={"degree": scores(s)}), surrogate="hinge").row,
        lambda s: (1 + scores(s)[:, 2, 0] - scores(s)[:, 0, 0]).clamp(min=0),
        two_degrees,
    ),
    "degree does not feel a constant on all outputs": (
        row(degree.degree),
        lambda s: degree.degree(replace(s, heads={"degree": s.heads["degree"] + 5})).row,
        graded,
    ),
    "ordinal does not feel a constant on all scores": (
        row(degree.ordinal),
        lambda s: degree.ordinal(replace(s, heads={"degree": s.heads["degree"] + 5})).row,
        lambda: graded(1),
    ),
    "degree leaves responses out that have none": (
        row(degree.degree),
        lambda s: degree.degree(replace(s, heads={"degree": s.heads["degree"] + torch.tensor([0, 9.0, 0, 0])[:, None] * normal(3)})).row,
        graded,
    ),
    "spo_degree is dpo plus gamma times degree": (
        row(methods.spo_degree(beta=0.5, gamma=0.3).objective),
        lambda s: pairwise.dpo(s, beta=0.5).row + 0.3 * degree.degree(s).row,
        graded,
    ),
    "spo_degree with gamma 0 is dpo": (row(methods.spo_degree(beta=0.5, gamma=0.0).objective), row(methods.dpo(beta=0.5).objective), pairs),
    "dpo plus nothing times degree is dpo": (row(add(pairwise.dpo, scale(degree.degree, 0.0))), row(pairwise.dpo), graded),
}

LIMITS |= {
    "curry_dpo's loss is dpo": (row(methods.curry_dpo(beta=0.2).objective), row(methods.dpo(beta=0.2).objective), soft_pairs),
    "curry_dpo's loss is dpo in every variant": (
        row(methods.curry_dpo(beta=0.2, variant="mixed").objective),
        row(methods.dpo(beta=0.2).objective),
        soft_pairs,
    ),
    "reward_augmented's loss is dpo at beta 0.01": (
        row(methods.reward_augmented().objective),
        row(methods.dpo(beta=0.01).objective),
        pairs,
    ),
    "reward_augmented with smoothing is cdpo": (
        row(methods.reward_augmented(0.1, 0.3).objective),
        row(methods.dpo(0.1, 0.3).objective),
        pairs,
    ),
}

SAME_GRADIENT: dict[str, Limit] = {
    "without goals in their prompts the two rows of a pair cancel at the reference": (
        lambda s: pairwise.dpo(s).row + pairwise.dpo(swapped(s)).row,
        lambda s: 0 * s.logp.sum(1),
        lambda: at_reference(pairs()),
    ),
}

VALUES: dict[str, Value] = {
    "degree of a head at zero is ln 3": (row(degree.degree), math.log(3), lambda: at_zero(3)),
    "ordinal of a head at zero is ln 2": (row(degree.ordinal), math.log(2), lambda: at_zero(1)),
    "ordinal's hinge of a head at zero is 1": (lambda s: degree.ordinal(s, surrogate="hinge").row, 1.0, lambda: at_zero(1)),
}

BETAS = {
    "spo-degree": lambda v: methods.spo_degree(beta=v),
    "curry-dpo": lambda v: methods.curry_dpo(beta=v),
    "reward-augmented": lambda v: methods.reward_augmented(beta=v),
}

FLIP_RATES = {"reward-augmented": lambda e: methods.reward_augmented(label_smoothing=e)}

REFUSED: dict[str, Refusal] = {
    "a negative weight of the degrees": (lambda: methods.spo_degree(gamma=-0.1), "gamma is -0.1"),
    "no degree at all beside a weight of 0": (lambda: methods.spo_degree(gamma=0.0, degrees=-3), "degrees is -3"),
    "a single degree": (lambda: methods.spo_degree(degrees=1), "degrees is 1"),
    "an unknown way to remove": (lambda: methods.spo_degree(remove="letters"), "remove is 'letters'"),
    "an unknown surrogate": (lambda: degree.ordinal(graded(1), surrogate="squared"), "surrogate is 'squared'"),
    "a curriculum of no stage": (lambda: methods.curry_dpo(stages=0), "stages is 0"),
    "an unknown curriculum": (lambda: methods.curry_dpo(variant="hard first"), "variant is 'hard first'"),
    "degrees without a head": (lambda: degree.degree(pairs()), "heads="),
}
