"""Objectives of single responses with a label each."""

from __future__ import annotations

from ..numerics import sigmoid
from ..types import Loss, PreftuneError, Scored, needs
from .pairwise import _positive


@needs(columns=2, labels=("desirable",), batch=True)
def kto(s: Scored, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Loss:
    """Kahneman-Tversky optimisation: prospect-theoretic value of a single labelled response.

    desirable    w_D (1 - sigmoid(beta (r - z0)))        r = logratio[:, 0]
    undesirable  w_U (1 - sigmoid(beta (z0 - r)))        z0 = max(0, mean over the batch of logratio[:, 1]), a constant

    Reads   column 0: the labelled response; column 1: a response of ANOTHER prompt, which estimates KL(policy || reference)
    Limits  policy = reference: w / 2 everywhere; |d loss / d r| <= w beta / 4, vanishing for very easy and very hard rows
    Source  arXiv:2402.01306 eq. 7 and 8 (the clamp follows the mean, as in the authors' code)
    """
    _positive("beta", beta)
    if s.rows.desirable is None:
        raise PreftuneError("kto reads the label desirable, but the rows carry none; give completion and label columns, or pairs")
    reward = s.logratio[:, 0]
    z0 = s.logratio[:, 1].mean().clamp(min=0).detach()
    good = s.rows.desirable[:, 0].to(reward.dtype)
    sign = 2 * good - 1
    weight = desirable_weight * good + undesirable_weight * (1 - good)
    # 1 - sigmoid(x) is computed as sigmoid(-x): no cancellation when x is large.
    row = weight * sigmoid(-sign * beta * (reward - z0))
    value = beta * reward.detach()
    return Loss(row, {"reward": value, "accuracy": ((value > 0) == (good > 0)).to(value.dtype), "kl_baseline": z0.expand_as(value)})
