"""Objectives of a pair that need no reference. All read logp and most length [B, 2]; column 0 is preferred."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, relu

from ..numerics import log1mexp, logsigmoid, one_of, positive
from ..types import Loss, PreftuneError, Scored, needs
from .pairwise import flip_rate, lengths, ordered

SCALE = "it scales SimPO's mean log-probabilities"
TEMPERATURE = "it scales log-probabilities to rewards"

Link = Literal["logistic", "hinge", "squared"]
LINKS: dict[str, Callable[[Tensor, float], Tensor]] = {  # of the margin z = beta d - gamma and of beta
    "logistic": lambda z, beta: -logsigmoid(z),
    "hinge": lambda z, beta: relu(1 - z),
    "squared": lambda z, beta: ((z - 0.5) / beta) ** 2,
}


@needs(columns=2, labels=("ranked",), reference=False)
def cpo(
    s: Scored, *, beta: float = 0.1, gamma: float = 0.0, link: Link = "logistic", per_token: bool = False, label_smoothing: float = 0.0
) -> Loss:
    """The preference term of contrastive preference optimisation: a pair without a reference, under one of three links.

    z = beta d - gamma,   d = logp[:, 0] - logp[:, 1]; per_token: m[:, 0] - m[:, 1]

    logistic  -logsigmoid(z)              TRL's sigmoid; per_token its simpo, and its tpo-l
    hinge     max(0, 1 - z)               TRL's hinge
    squared   (d - 1 / (2 beta))^2        with gamma 0; per_token: TRL's ipo

    label_smoothing e: (1-e) loss(z) + e loss(-z), under every link (TRL's ignores it outside the logistic one).

    Limits  logistic, gamma 0: dpo with a reference to which both are alike. hinge at beta = 1 / delta: SLiC-HF's over delta
    Not     gamma / beta. On sums beta 0.1 saturates: a lead of 100 nats leaves a pull of 4.5e-5 beta
    Source  arXiv:2401.08417 eq. 3; the other links: TRL's CPOTrainer
    """
    positive("beta", beta, TEMPERATURE)
    flip_rate(label_smoothing)
    one_of("link", link, LINKS, "; the paper's is logistic")
    value = s.mean_logp if per_token else s.logp
    z = beta * (value[:, 0] - value[:, 1]) - gamma
    row = LINKS[link](z, beta)
    if label_smoothing:
        row = (1 - label_smoothing) * row + label_smoothing * LINKS[link](-z, beta)
    return Loss(row, ordered(beta * value))


@needs(columns=2, labels=("ranked",), reference=False)
def simpo(s: Scored, *, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0) -> Loss:
    """Simple preference optimisation: mean log-probs, with a margin gamma in reward units.

    loss = -logsigmoid(z) + e z,   z = beta (m0 - m1) - gamma,   m = logp / length,   e = label_smoothing

    Limits  scaling logp and length together changes nothing; gamma 0 and equal lengths L: DPO's form without a reference at beta / L
    Not     gamma / beta: authors and HALOs give that ratio, TRL and LLaMA-Factory give gamma
    Source  arXiv:2405.14734 eq. 6; label smoothing and the hinge (see `cpo`): the authors' code
    """
    positive("beta", beta, SCALE)
    flip_rate(label_smoothing)
    m = s.mean_logp
    z = beta * (m[:, 0] - m[:, 1]) - gamma
    return Loss(-logsigmoid(z) + label_smoothing * z, ordered(beta * m))


@needs(columns=2, labels=("ranked",), reference=False, domain=100.0)
def alphapo(s: Scored, *, beta: float = 2.5, gamma: float = 0.1, alpha: float = 0.25) -> Loss:
    """SimPO with another shape of the reward.

    loss = -logsigmoid(beta (r0 - r1) - gamma),   r = (1 - e^(-alpha m)) / alpha,   m = logp / length

    Limits  alpha 0 is simpo. alpha > 0: unlikely responses (m << 0) weigh e^(-alpha m) times as much, and r is finite only
            while alpha |m| < 88 in float32, 709 in float64: beyond, the rows are named. alpha < 0: r stays within 1 / |alpha|
    Not     on sums of log-probs, to which TRL's `alpha` applies under its other losses: e^(-alpha logp) overflows at once
    Source  arXiv:2501.03884, as in TRL's CPOTrainer (loss_type "alphapo")
    """
    positive("beta", beta, SCALE)
    if not math.isfinite(alpha):
        raise PreftuneError(f"alpha is {alpha}, needed a finite number; 0 is SimPO")
    m = s.mean_logp
    r = -torch.expm1(-alpha * m) / alpha if alpha else m
    z = beta * (r[:, 0] - r[:, 1]) - gamma
    bad = (~torch.isfinite(z)).nonzero().flatten().tolist()
    if bad:
        limit, lowest = math.log(torch.finfo(z.dtype).max), float(m.detach()[bad].min())
        raise PreftuneError(
            f"e^(-alpha m) of rows {[s.rows.id[i] for i in bad[:10]]} overflows at alpha = {alpha}: their mean log-prob m falls to "
            f"{lowest:.4g}, needed alpha |m| < {limit:.0f}; lower alpha or the learning rate, or look at these rows"
        )
    return Loss(-logsigmoid(z), ordered(beta * r))


@needs(columns=2, labels=("ranked",), reference=False)
def arpo(s: Scored, *, beta: float = 0.1, k1: float = 0.9, k2: float = 0.4) -> Loss:
    """Adaptive rejection: CPO whose rejected term is relaxed where both responses are about equally likely.

    loss = -logsigmoid(beta (logp0 - q logp1)),   q = min(1, k1 e^(k2 |m0 - m1|) - 1),   m = logp / length

    Limits  q = 1, and CPO, where |m0 - m1| >= log(2 / k1) / k2; q = k1 - 1 where m0 = m1: with k1 < 1 a rejected response
            as likely as the preferred one is pulled UP a little
    Not     a constant weight: as in the authors' code the gradient flows through q as well, so that a preferred response
            which trails a much longer one can be pushed down
    Source  arXiv:2410.03115; ALMA's cpo_trainer.py, whose relax_cofficient_1 and _2 are k1 and k2
    """
    positive("beta", beta, TEMPERATURE)
    positive("k1", k1, "1 - k1 is how far an equally likely rejected response is pulled up")
    positive("k2", k2, "it is how fast the rejection returns with the distance of the two")
    m = s.mean_logp
    # min(1, k1 e^x - 1) as k1 e^min(x, log 2/k1) - 1: the same number, without infinity times zero in its gradient
    q = k1 * torch.exp((k2 * (m[:, 0] - m[:, 1]).abs()).clamp(max=math.log(2 / k1))) - 1
    return Loss(-logsigmoid(beta * (s.logp[:, 0] - q * s.logp[:, 1])), {**ordered(beta * s.logp), "rejection": q.detach()})


def _logodds(s: Scored) -> Tensor:
    """m - log(1 - e^m) [B, K]: the log-odds of a response at its mean log-probability m < 0."""
    m = s.mean_logp
    return m - log1mexp(m)


@needs(columns=2, labels=("ranked",), reference=False)
def odds_ratio(s: Scored) -> Loss:
    """The odds-ratio term of ORPO.

    loss = -logsigmoid(o0 - o1),   o = m - log(1 - e^m),   m = logp / length < 0

    Limits  m0 = m1 gives ln 2; both m far below 0: SimPO with beta 1, gamma 0. A mean log-prob of exactly 0 has infinite odds
    Source  arXiv:2403.07691 eq. 7
    """
    odds = _logodds(s)
    return Loss(-logsigmoid(odds[:, 0] - odds[:, 1]), ordered(odds))


@needs(columns=2, labels=("ranked",), reference=False)
def asft(s: Scored, *, beta: float = 1.0) -> Loss:
    """The alignment term of ASFT: each response is classified by its own odds, they are not compared.

    loss = -logsigmoid(beta o0) - logsigmoid(-beta o1),   o = m - log(1 - e^m),   m = logp / length < 0

    Limits  beta 1: -m0 - log(1 - e^m1), the likelihood of the preferred and the unlikelihood of the other response; minus
            `odds_ratio` it is -log(p0 (1-p1) + p1 (1-p0)) >= 0, p = e^m; it explodes as the other's m1 approaches 0
    Not     Anchored SFT, another ASFT
    Source  arXiv:2409.10571, as in turbo-alignment's ASFTLoss, without its clamp of e^m at 1 - 1e-7
    """
    positive("beta", beta, "it scales the log-odds")
    odds = _logodds(s)
    return Loss(-logsigmoid(beta * odds[:, 0]) - logsigmoid(-beta * odds[:, 1]), ordered(odds))


@needs(columns=3, labels=("ranked",), reference=False)
def gold_nll(s: Scored) -> Loss:
    """Likelihood per token of a gold response beside the pair: columns are preferred, dispreferred, gold.

    loss = -logp[:, 2] / length[:, 2]

    Source  arXiv:2405.16681, its likelihood term
    """
    row = -s.logp[:, 2] / lengths(s)[:, 2]
    return Loss(row, {"nll": row.detach()})
