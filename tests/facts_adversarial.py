"""Facts of the objectives under attack: c-advul, c-advipo. The attack itself is in test_adversarial.py."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch

from facts import Facts, Limit, Refusal, Value, at, gradient, normal, pairs, row
from preftune import methods
from preftune.objectives import pairwise
from preftune.objectives.adversarial import c_advul
from preftune.objectives.auxiliary import nll, scale
from preftune.probe import probe
from preftune.types import Scored
from preftune.update import adversarial

SHIPPED = {
    "c-advipo": Facts(methods.c_advipo(), swap=True),
    "c-advul": Facts(methods.c_advul(), steady=True),
}
uncut = partial(c_advul, toward_cutoff=0.0, away_cutoff=-math.inf)


def at_means(safe: float, unsafe: float) -> Scored:
    """Mean log-probs of a token, of column 0 and of column 1."""
    s = pairs()
    return at(s, s.length * torch.tensor([safe, unsafe], dtype=torch.float64))


LIMITS: dict[str, Limit] = {
    "c_advipo's loss is ipo_avg": (row(methods.c_advipo(0.3).objective), row(partial(pairwise.ipo_avg, beta=0.3)), pairs),
    "c_advul with away 0 and no cut-off is the likelihood of the safe response": (
        row(partial(uncut, toward=0.7, away=0.0)),
        row(scale(nll, 0.7)),
        pairs,
    ),
    "c_advul without cut-offs is a difference of mean cross-entropies": (
        row(partial(uncut, toward=0.7, away=0.2)),
        lambda s: -0.7 * s.mean_logp[:, 0] + 0.2 * s.mean_logp[:, 1],
        pairs,
    ),
    "c_advul within its cut-offs is c_advul without them": (row(c_advul), row(uncut), lambda: at_means(-0.6, -4.9)),
    "c_advul beyond its cut-offs keeps a thousandth of each slope": (
        row(c_advul),
        lambda s: 0.5 * (0.5 - 0.001 * s.mean_logp[:, 0]) + 0.5 * (-5.0 + 0.001 * s.mean_logp[:, 1]),
        lambda: at_means(-0.4, -5.1),
    ),
    "c_advul ignores a reference": (row(c_advul), lambda s: c_advul(replace(s, ref_logp=normal(*s.logp.shape))).row, pairs),
}

VALUES: dict[str, Value] = {
    "c_advul at cross-entropies 1 and 2 is (1 - 2) / 2": (row(c_advul), -0.5, lambda: at_means(-1.0, -2.0)),
    "c_advul jumps at the toward cut-off": (row(partial(c_advul, away=0.0)), 0.5 * (0.5 + 0.0004), lambda: at_means(-0.4, -2.0)),
    "c_advul jumps at the away cut-off": (row(partial(c_advul, toward=0.0)), 0.5 * (-5 - 0.006), lambda: at_means(-1.0, -6.0)),
    "a positive away_cutoff cuts off every response from the start": (
        lambda s: gradient(row(partial(c_advul, toward=0.0, away_cutoff=5.0)), s)[:, 1] * s.length[:, 1],
        0.5 * 0.001,
        lambda: at_means(-1.0, -0.01),
    ),
    "c_advul is unbounded below without its away cut-off": (
        row(partial(uncut, toward=0.0, away=1.0)),
        -1e6,
        lambda: at_means(-1.0, -1e6),
    ),
}

BETAS = {"c-advipo": lambda v: methods.c_advipo(beta=v)}

REFUSED: dict[str, Refusal] = {
    "an attack of fewer than no steps": (lambda: methods.c_advipo(iterations=-1), "steps is -1"),
    "an attack that goes the other way": (lambda: methods.c_advipo(step=-1e-4), "step -0.0001"),
    "an attack of step 0": (lambda: methods.c_advul(step=0.0), "step 0.0"),
    "a NaN radius": (lambda: methods.c_advul(eps=math.nan), "radius nan"),
    "an unknown prompt of the reference": (lambda: adversarial(reference="both"), "reference is 'both'"),  # type: ignore[arg-type]
    "unlikelihood of weight nothing": (lambda: probe(methods.c_advul(toward=0.0, away=0.0)), "not both 0"),
    "a negative weight of c_advul": (lambda: probe(methods.c_advul(away=-0.5)), "away -0.5"),
    "a NaN weight of c_advul": (lambda: probe(methods.c_advul(away=math.nan)), "away nan"),
}
