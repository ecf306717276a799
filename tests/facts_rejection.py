"""Facts of pairs by rejection and of the best of n: rso, best-of-n."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from facts import Facts, Limit, Refusal, pairs, row, soft_pairs
from preftune import methods
from preftune.objectives import auxiliary, pairwise
from preftune.types import Scored

SHIPPED = {
    "rso": Facts(methods.rso(), steady=True, shift=True, swap=True),
    "rso hinge-norm": Facts(methods.rso(loss="hinge-norm"), shift=True),
    "rso hinge": Facts(methods.rso(loss="hinge"), shift=True),
    "best-of-n": Facts(methods.best_of_n(), steady=True),
}


def hinge_of_rso(s: Scored) -> Tensor:
    """max(0, 1 - gamma (log pi(w) - log pi(l))) at gamma = .25."""
    return (1 - 0.25 * (s.logp[:, 0] - s.logp[:, 1])).clamp(min=0)


def best_first(s: Scored) -> Scored:
    """All of the calibration on column 0."""
    rows = s.rows.replace(extra={"calibration": torch.tensor([[1.0, 0.0]] * len(s.rows), dtype=torch.float64)})
    return Scored(rows, s.logp, length=s.length)


LIMITS: dict[str, Limit] = {
    "rso's sigmoid-norm is dpo with gamma for beta": (
        row(methods.rso(gamma=0.3).objective),
        row(partial(pairwise.dpo, beta=0.3)),
        soft_pairs,
    ),
    "rso's hinge-norm is the hinge on log-ratios": (
        row(methods.rso(gamma=0.3, loss="hinge-norm").objective),
        row(partial(pairwise.hinge, beta=0.3)),
        pairs,
    ),
    "rso's hinge is slic's without a reference, at slope gamma": (
        row(methods.rso(gamma=0.25, loss="hinge").objective),
        hinge_of_rso,
        pairs,
    ),
    "best-of-n is sft on the best, summed": (
        lambda s: methods.best_of_n().objective(best_first(s)).row,
        lambda s: partial(auxiliary.nll, aggregation="seq_sum")(s).row,
        pairs,
    ),
}

REFUSED: dict[str, Refusal] = {
    "rso: more responses than candidates": (lambda: methods.rso(candidates=4, responses=6), "candidates is 4 and responses 6, needed"),
    "rso: an odd one has no neighbour": (lambda: methods.rso(responses=5), "an even number of responses where neighbours make pairs"),
    "rso: no slope": (lambda: methods.rso(gamma=0.0), "gamma is 0.0, needed a finite number above 0"),
    "rso: nothing to resample by": (lambda: methods.rso(beta=0.0), "beta is 0.0, needed a number above 0, or inf"),
    "rso: a bound beyond one half": (lambda: methods.rso(eps=0.5), "eps is 0.5, needed 0 <= eps < 0.5"),
    "rso: another way to draw": (lambda: methods.rso(draws="iid"), "draws is 'iid', needed one of without_replacement, independent"),
    "rso: another pairing": (lambda: methods.rso(pairing="tournament"), "pairing is 'tournament', needed one of first_round, all"),
    "rso: another label": (lambda: methods.rso(label="hard"), "label is 'hard' and reward None, needed one of threshold, sampled, soft"),
    "rso: another reward": (lambda: methods.rso(reward="winrate"), "reward 'winrate', needed .* score, log_odds or None"),
    "rso: another loss": (lambda: methods.rso(loss="ipo"), "loss is 'ipo', needed one of sigmoid-norm, hinge-norm, hinge"),
    "rso: a hinge does not read soft labels": (lambda: methods.rso(loss="hinge", label="soft"), "label is 'soft' with loss 'hinge'"),
    "best-of-n: of one": (lambda: methods.best_of_n(n=1), "n is 1, needed 2 or more"),
    "best-of-n: another reward": (lambda: methods.best_of_n(reward="log_odds"), "reward is 'log_odds', needed 'score', 'winrate', or None"),
}
