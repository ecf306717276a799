"""Objectives of a list of K responses with grades: DPO's relatives from learning to rank.

All read s_i = beta logratio_i and grades psi_i [B, K], higher is better: the rows' `score` divided by `unit`, or, where rows
are ranked without scores, the share of the list that stands below, (K-1-k) / (K-1). `pair_logistic`, `pair_hinge` and
`list_mle` read their order alone. Equal grades make no pair. Responses that are not `present` take no part.
"""

from __future__ import annotations

import torch
from torch import Tensor, relu

from ..numerics import logsigmoid, positive
from ..ranking import Graded, Ranks, Reduction, lambda_rows, plackett_luce
from ..types import Loss, PreftuneError, Scored, needs
from .pairwise import PULL

LIST = dict(columns="K", labels=("ranked",), optional=("score",))


def graded(s: Scored, scores: Tensor, unit: float = 1.0) -> Graded:
    """The rows' grades beside the model's scores [B, K]."""
    positive("unit", unit, "grades are scores divided by it")
    rows = s.rows
    here = torch.ones_like(scores, dtype=torch.bool) if rows.present is None else rows.present.to(scores.device)
    if rows.score is None and not rows.ranked:
        raise PreftuneError("the rows have neither scores nor an order, needed one of them; give scores, or responses best first")
    if rows.score is None:
        below = here.flip(1).cumsum(1).flip(1) - 1  # responses that stand behind k
        return Graded(scores, torch.where(here, below / (here.sum(1, keepdim=True) - 1).clamp(min=1), 0.0).to(scores), here)
    psi = torch.where(here, rows.score.to(scores), 0.0) / unit
    if not torch.isfinite(psi).all():
        ids = [rows.id[i] for i in (~torch.isfinite(psi)).any(1).nonzero().flatten().tolist()]
        raise PreftuneError(f"rows {ids[:10]} have a response without a finite score, needed one for each; score it, or leave the row out")
    return Graded(scores, psi, here)


@needs(**LIST)
def lipo(s: Scored, *, beta: float = 0.05, ranks: Ranks = "model", reduction: Reduction = "sum", unit: float = 1.0) -> Loss:
    """LiPO-lambda: pairs of the list, weighed by the change in discounted gain if the two exchanged places.

    loss = -sum_{psi_i > psi_j} |2^psi_i - 2^psi_j| |1 / ln(1 + tau_i) - 1 / ln(1 + tau_j)| logsigmoid(s_i - s_j)

    ranks      tau = 1, 2, ..: "model" by the current s, highest first, anew at every step; "labels" by psi, a constant weight
    reduction  "sum" over pairs, which grows as K^2, or their "mean"
    unit       psi = score / unit; marks of 0 to 10 are steep gains (2^10), a unit of 10 makes them nearly linear

    Reads   logratio [B, K], grades (see above); the weights carry no gradient
    Limits  K = 2, psi = (1, 0): 0.532456 = 1 / ln 2 - 1 / ln 3 times dpo; weights all 1: `pair_logistic`
            at the reference all s tie and the order of the columns decides tau; under "labels" the grades do
    Not     the sum with a minus in some transcriptions, which is to be maximised; nor ranks from 0, which divide by ln 1
    Source  arXiv:2402.01878 (LiPO-lambda); ranks="labels": arXiv:2410.18013 eq. 5-7 (RankDPO)
    """
    positive("beta", beta, PULL)
    x = graded(s, beta * s.logratio, unit)
    return Loss(lambda_rows(x, ranks=ranks, reduction=reduction), x.metrics())


@needs(**LIST)
def list_mle(s: Scored, *, beta: float = 0.05) -> Loss:
    """ListMLE: the likelihood of the whole order under Plackett-Luce, DPO's K-wise form.

    loss = -sum_k [s_(k) - log sum_{l >= k} e^s_(l)],   (k) the responses by falling grade

    Limits  K = 2 is dpo. Equal grades: Breslow's likelihood, each drawn from all that are not graded above it
    Source  arXiv:2305.18290 app. A.3 (DPO under Plackett-Luce); ListMLE: Xia et al., ICML 2008
    """
    positive("beta", beta, PULL)
    x = graded(s, beta * s.logratio)
    return Loss(plackett_luce(x), x.metrics())


@needs(**LIST)
def list_softmax(s: Scored, *, beta: float = 0.05, alpha: float | None = None) -> Loss:
    """Softmax cross-entropy of the list: the scores' softmax imitates the grades.

    loss = -sum_i t_i log softmax(s)_i,   t = psi / sum psi;  with alpha: t = softmax(psi / alpha), which is InfoNCA

    Limits  K = 2, psi = (1, 0): dpo; alpha -> 0: all weight on the best. Optimum softmax(s) = t
    Source  arXiv:2402.01878 (softmax, ListNet's top-one form); alpha: arXiv:2402.05369 (InfoNCA)
    """
    positive("beta", beta, PULL)
    x = graded(s, beta * s.logratio)
    if alpha is not None:
        target = x.softmax(alpha)
    else:
        bad = (x.psi < 0).any(1) | ~(x.psi.sum(1) > 0)
        if bad.any():
            ids = [s.rows.id[i] for i in bad.nonzero().flatten().tolist()]
            raise PreftuneError(f"the grades of rows {ids[:10]} are no shares of a whole, needed numbers >= 0, not all 0; or give alpha")
        target = x.psi / x.psi.sum(1, keepdim=True)
    own = torch.where(x.here, x.s, -torch.inf).log_softmax(1)
    return Loss(-(target * torch.where(x.here, own, 0.0)).sum(1), x.metrics())


@needs(**LIST)
def list_nca(s: Scored, *, beta: float = 0.01, alpha: float = 1.0) -> Loss:
    """Noise contrastive alignment of a list: every response is told from noise by its own log-ratio, as often as its grade says.

    loss = -sum_i [t_i logsigmoid(s_i) + logsigmoid(-s_i) / K],   t = softmax(psi / alpha)

    Limits  2 ln 2 at the reference; optimum s_i = log(K t_i), not up to a constant; K = 2, alpha -> 0: `nca`
    Source  arXiv:2402.05369, the form for K responses with rewards; its InfoNCA is `list_softmax` with alpha
    """
    positive("beta", beta, PULL)
    x = graded(s, beta * s.logratio)
    noise = x.here.to(x.s) / x.here.sum(1, keepdim=True)
    return Loss(-(x.softmax(alpha) * logsigmoid(x.s) + noise * logsigmoid(-x.s)).sum(1), x.metrics())


@needs(**LIST)
def pair_logistic(s: Scored, *, beta: float = 0.05, reduction: Reduction = "mean") -> Loss:
    """Logistic loss over all pairs of the list with different grades: RankNet.

    loss = mean_{psi_i > psi_j} -logsigmoid(s_i - s_j)

    Limits  K = 2 is dpo
    Source  arXiv:2402.01878 (pair-logistic); RankNet: Burges et al., ICML 2005
    """
    positive("beta", beta, PULL)
    x = graded(s, beta * s.logratio)
    return Loss(x.over_pairs(-logsigmoid(x.gap), reduction), x.metrics())


@needs(**LIST)
def pair_hinge(s: Scored, *, beta: float = 0.05, reduction: Reduction = "mean") -> Loss:
    """Hinge loss over all pairs of the list with different grades.

    loss = mean_{psi_i > psi_j} max(0, 1 - (s_i - s_j))

    Limits  K = 2 is the hinge of a pair; pairs in order by more than 1 / beta nats pull nothing
    Source  arXiv:2402.01878 (pair-hinge)
    """
    positive("beta", beta, PULL)
    x = graded(s, beta * s.logratio)
    return Loss(x.over_pairs(relu(1 - x.gap), reduction), x.metrics())


@needs(**LIST)
def pointwise_mse(s: Scored, *, beta: float = 0.05, unit: float = 1.0) -> Loss:
    """Regress every score on its grade.

    loss = mean_i (s_i - psi_i)^2

    Limits  0 at logratio = psi / beta; a constant added to all log-ratios changes the loss, unlike in the losses of pairs
    Source  arXiv:2402.01878 (point-mse)
    """
    positive("beta", beta, PULL)
    x = graded(s, beta * s.logratio, unit)
    return Loss((x.here * (x.s - x.psi) ** 2).sum(1) / x.here.sum(1), x.metrics())


@needs(**LIST)
def pointwise_sigmoid(s: Scored, *, beta: float = 0.05, unit: float = 1.0) -> Loss:
    """Classify every response, its grade in [0, 1] being the probability that it is good.

    loss = mean_i [-psi_i logsigmoid(s_i) - (1 - psi_i) logsigmoid(-s_i)]

    Limits  optimum s_i = logit(psi_i); ln 2 at the reference
    Source  arXiv:2402.01878 (point-sigmoid)
    """
    positive("beta", beta, PULL)
    x = graded(s, beta * s.logratio, unit)
    if ((x.psi < 0) | (x.psi > 1)).any():
        raise PreftuneError(f"grades lie in [{float(x.psi.min()):g}, {float(x.psi.max()):g}], needed [0, 1]; choose unit accordingly")
    return Loss((x.here * (-logsigmoid(x.s) + (1 - x.psi) * x.s)).sum(1) / x.here.sum(1), x.metrics())
