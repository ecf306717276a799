"""Objectives of single responses with a label each."""

from __future__ import annotations

import torch

from ..numerics import positive, sigmoid
from ..types import Loss, PreftuneError, Scored, needs

PULL = "it is the pull towards the reference"


@needs(columns="K", labels=("desirable",), batch=True)
def kto(s: Scored, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Loss:
    """Kahneman-Tversky optimisation: prospect-theoretic value of single labelled responses.

    desirable    w_D (1 - sigmoid(beta (r - z0)))        r = logratio of a labelled response
    undesirable  w_U (1 - sigmoid(beta (z0 - r)))        z0 = max(0, mean over the batch of mismatched logratios), a constant

    Reads   desirable [B, K]: labels of columns 0 .. K-1; the further columns are responses of OTHER prompts, which
            estimate KL(policy || reference)
    Gives   row: the sum over a row's labelled responses; count: their number
    Limits  policy = reference: w / 2 everywhere; |d loss / d r| <= w beta / 4, vanishing for very easy and very hard rows
    Not     calibrated: with P(desirable) = p the optimum of r is infinite, by the sign of w_D p - w_U (1 - p)
    Source  arXiv:2402.01306 eq. 7 and 8 (the clamp follows the mean, as in the authors' code)
    """
    positive("beta", beta, PULL)
    positive("desirable_weight", desirable_weight, "it weighs the desirable responses")
    positive("undesirable_weight", undesirable_weight, "it weighs the undesirable responses")
    if s.rows.desirable is None:
        raise PreftuneError("kto reads the label desirable, but the rows carry none; give completion and label columns, or pairs")
    labelled = s.rows.desirable.shape[1]
    if s.logratio.shape[1] <= labelled:
        raise PreftuneError("kto needs mismatched responses beside the labelled ones for its KL baseline; collect with `mismatched`")
    present = torch.ones_like(s.logratio) if s.rows.present is None else s.rows.present.to(s.logratio.dtype)
    reward, judged = s.logratio[:, :labelled], present[:, :labelled]
    z0 = ((s.logratio * present)[:, labelled:].sum() / present[:, labelled:].sum()).clamp(min=0).detach()
    good = s.rows.desirable.to(reward.dtype)
    sign = 2 * good - 1
    weight = judged * (desirable_weight * good + undesirable_weight * (1 - good))
    # 1 - sigmoid(x) is computed as sigmoid(-x): no cancellation when x is large.
    row = (weight * sigmoid(-sign * beta * (reward - z0))).sum(1)
    count = judged.sum(1)
    right = ((sign * (reward.detach() - z0) > 0) * judged).sum(1) / count.clamp(min=1)
    return Loss(row, {"accuracy": right, "kl_baseline": z0.expand_as(row)}, count)
