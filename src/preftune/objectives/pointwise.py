"""Objectives of single responses with a label each."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..numerics import logsigmoid, positive, sigmoid
from ..types import Loss, PreftuneError, Scored, needs
from .running import running_mean

PULL = "it is the pull towards the reference"
MEMORY = 0.9  # what a step's mismatched responses count of what the next step's do, where kto's baseline runs
Baseline = Literal["batch", "running"]


def _labelled(s: Scored, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Log-ratios of the labelled responses [B, K], +1 for desirable and -1 for undesirable, 1 where present; not the further columns."""
    if s.rows.desirable is None:
        raise PreftuneError(f"{name} reads the label desirable, but the rows carry none; give completion and label columns, or pairs")
    labelled = s.rows.desirable.shape[1]
    ratio = s.logratio[:, :labelled]
    present = torch.ones_like(ratio) if s.rows.present is None else s.rows.present[:, :labelled].to(ratio.dtype)
    return ratio, 2 * s.rows.desirable.to(ratio.dtype) - 1, present


def _right(sign: Tensor, margin: Tensor, present: Tensor) -> Tensor:
    """Share of a row's labelled responses whose margin has the sign of its label (a tie has not), [B]."""
    return ((sign * margin.detach() > 0) * present).sum(1) / present.sum(1).clamp(min=1)


@needs(columns="K", labels=("desirable",), batch=True)
def kto(
    s: Scored,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    baseline: Baseline = "batch",
    balanced: bool = False,
) -> Loss:
    """Kahneman-Tversky optimisation: prospect-theoretic value of single labelled responses.

    desirable    w_D (1 - sigmoid(beta (r - z0)))        r = logratio of a labelled response
    undesirable  w_U (1 - sigmoid(beta (z0 - r)))        z0 = max(0, mean of mismatched logratios), a constant

    Reads   desirable [B, K]: labels of columns 0 .. K-1; the further columns are responses of OTHER prompts, which
            estimate KL(policy || reference): baseline="batch" takes their mean over this batch, "running" their mean over all
            steps, in which every step counts 0.9 times as much as the next (for batches of a few rows, whose mean is noise)
    Gives   row: the sum over a row's labelled responses; count: their number. balanced=True makes the learner's quotient half the
            desirable responses' mean plus half the undesirable ones', whatever their numbers in the batch
    Limits  policy = reference: w / 2 everywhere; |d loss / d r| <= w beta / 4, vanishing for very easy and very hard rows
    Not     calibrated: with P(desirable) = p the optimum of r is infinite, by the sign of w_D p - w_U (1 - p)
    Source  arXiv:2402.01306 eq. 7 and 8 (the clamp follows the mean, as in the authors' code)
    """
    positive("beta", beta, PULL)
    positive("desirable_weight", desirable_weight, "it weighs the desirable responses")
    positive("undesirable_weight", undesirable_weight, "it weighs the undesirable responses")
    ratio, sign, present = _labelled(s, "kto")
    kl, running = _mismatched_mean(s, ratio.shape[1], baseline)
    z0, good = kl.clamp(min=0), (1 + sign) / 2
    weight = present * (desirable_weight * good + undesirable_weight * (1 - good))
    if balanced:
        weight = weight * _balance(good, present)
    # 1 - sigmoid(x) is computed as sigmoid(-x): no cancellation when x is large.
    row = (weight * sigmoid(-sign * beta * (ratio - z0))).sum(1)
    return Loss(row, {"accuracy": _right(sign, ratio - z0, present), "kl_baseline": z0.expand_as(row)}, present.sum(1), running)


def _mismatched_mean(s: Scored, labelled: int, baseline: Baseline) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean of the log-ratios beyond the labelled columns, a constant, and what is kept of it for the next step."""
    if baseline not in ("batch", "running"):
        raise PreftuneError(f"baseline is {baseline!r}, needed 'batch' or 'running': over which responses kto takes its KL baseline")
    if s.logratio.shape[1] <= labelled:
        raise PreftuneError("kto needs mismatched responses beside the labelled ones for its KL baseline; collect with `mismatched`")
    there = None if s.rows.present is None else s.rows.present[:, labelled:]
    faded = {name: MEMORY * value if name == "kl_count" else value for name, value in s.running.items()}
    now = replace(s, running=faded if baseline == "running" else {})
    kl, running = running_mean(now, "kl", s.logratio[:, labelled:], there)
    return kl, running if baseline == "running" else {}


def _balance(good: Tensor, present: Tensor) -> Tensor:
    """Weights of mean one over the responses present, with equal sums for both classes: n / (2 n of the class) [B, K]."""
    n, n_good = present.sum(), (present * good).sum()
    n_bad = n - n_good
    classes = n_good.clamp(max=1) + n_bad.clamp(max=1)  # 1 where the batch has but one
    return n / classes / torch.where(good > 0, n_good, n_bad).clamp(min=1)


@needs(columns="K", labels=("desirable",), batch=True)
def bco(s: Scored, *, beta: float = 0.1) -> Loss:
    """Binary classifier optimisation of single labelled responses: logistic regression on the implicit reward, shifted.

    desirable    -logsigmoid(beta r - delta)       r = logratio
    undesirable  -logsigmoid(delta - beta r)       delta = mean of beta r over all responses of all steps so far, a constant

    Gives   row: the sum over a row's labelled responses; count: their number
    Limits  delta follows a constant on all log-ratios of a first batch, so that it changes nothing; `bco_pair` on pairs, whose
            quotient is over pairs and hence twice as large. With P(desirable) = p the optimum is finite: beta r - delta = logit(p)
    Not     the weights of the underlying distribution matching: a prompt classifier's weights come as the rows' `weight`
    Source  arXiv:2404.04656; delta as in TRL's BCOTrainer: this batch's rewards, before its step, included
    """
    positive("beta", beta, PULL)
    ratio, sign, present = _labelled(s, "bco")
    delta, running = running_mean(s, "delta", beta * ratio, present)
    margin = beta * ratio - delta
    row = -(present * logsigmoid(sign * margin)).sum(1)
    return Loss(row, {"accuracy": _right(sign, margin, present), "delta": delta.expand_as(row)}, present.sum(1), running)


@needs(columns="K", labels=("desirable",))
def apo_zero_unpaired(s: Scored, *, beta: float = 0.1) -> Loss:
    """Anchored preference optimisation, zero, on single labelled responses.

    desirable    1 - sigmoid(beta r)        r = logratio
    undesirable  sigmoid(beta r)

    Gives   row: the sum over a row's labelled responses; count: their number, so that the learner's quotient is a mean over responses
    Limits  `kto` with weights 1 whose baseline is 0, value for value; on a pair of one good and one bad response: paired apo-zero,
            whose quotient is over pairs and hence twice as large
    Not     calibrated, as little as `kto`: linear in sigmoid(beta r), so the majority label decides
    Source  arXiv:2408.06266 eq. 7, unpaired as in TRL's KTOTrainer
    """
    positive("beta", beta, PULL)
    ratio, sign, present = _labelled(s, "apo_zero_unpaired")
    row = (present * sigmoid(-sign * beta * ratio)).sum(1)
    return Loss(row, {"accuracy": _right(sign, ratio, present)}, present.sum(1))


@needs(columns="K", labels=("winrate",), optional=("law",))
def sppo(s: Scored, *, beta: float = 0.001, centred: bool = False) -> Loss:
    """Self-play preference optimisation: regress each log-ratio to its win rate over one half, in units of beta.

    loss = E_y[u^2],   u = logratio - (winrate - 1/2) / beta;   centred: loss = E_y[(u - E u)^2]

    The expectation is over pi_t, which is the reference, drew the responses and is what win rates are against: over its law
    [B, K] where the columns enumerate it, else the mean over the responses present. beta is the paper's 1 / eta.

    Reads   winrate [B, K] = P(response beats pi_t)
    Limits  centred, over a law: half of `online_ipo`, with its minimiser pi_t exp(winrate / beta) / Z: multiplicative weights.
            Not centred, 1/2 stands in for beta log Z, so that no normalised policy reaches the targets and the minimiser is
            another one: on rock-paper-scissors from (.6, .3, .1) off by .001 in total variation at beta = 1, by .08 at 0.2
    Not     `sppo_hard`: win rates 1 and 0, and the sum of both squares instead of their mean
    Source  arXiv:2405.00675 eq. 4.7; the mean over two kept responses as in the authors' code
    """
    positive("beta", beta, PULL)
    if s.rows.winrate is None:
        raise PreftuneError("sppo reads winrate, but the rows carry none; collect with a judge against the policy of the round")
    present = torch.ones_like(s.logratio) if s.rows.present is None else s.rows.present.to(s.logratio.dtype)
    winrate = torch.where(present > 0, s.rows.winrate.to(present.dtype), 0.0)  # an absent response has none: NaN
    share = present / present.sum(1, keepdim=True) if s.rows.law is None else s.rows.law.to(winrate.dtype)
    u = s.logratio - (winrate - 0.5) / beta
    if centred:
        u = u - (share * u).sum(1, keepdim=True)
    return Loss((share * u * u).sum(1), {"winrate": (share * winrate).sum(1)})
