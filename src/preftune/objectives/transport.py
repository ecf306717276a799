"""Alignment of distributions by optimal transport, which in one dimension is sorting: the objectives look at the whole batch.

Row i pays for its own quantile: it is compared with what has the same rank in the other sample. So the rows add up to the
batch's loss and rows in another order give the same losses in that order; rows with exactly equal values share their
quantiles in the batch's order. A row's weight multiplies that row's quantile: it is not a mass of the transport.
"""

from __future__ import annotations

from torch import Tensor

from ..numerics import logsigmoid, positive
from ..types import Loss, Scored, needs
from .pairwise import PULL, flip_rate, pair_metrics


def quantile_of(values: Tensor, other: Tensor) -> Tensor:
    """For each of `values` [B] the one of `other` [B] with the same rank."""
    rank = values.detach().argsort(stable=True).argsort()
    return other.sort().values[rank]


@needs(columns=2, labels=("ranked",), batch=True)
def aot(s: Scored, *, beta: float = 0.01, label_smoothing: float = 0.0) -> Loss:
    """Alignment via optimal transport, paired: the policy's margins dominate the reference's, quantile by quantile.

    loss = -logsigmoid(h) + e h,   h = beta (u_(k) - v_(k)),   u = logp[:, 0] - logp[:, 1],   v the same under the reference

    u_(k), v_(k) are the k-th smallest of the whole batch; label_smoothing e as in `dpo`.

    Limits  a batch of one, or margins in the same order under both: dpo
    Not     what micro-batches of their own would give: TRL sorts within each device's
    Source  arXiv:2406.05882, paired form; TRL's loss_type "aot"
    """
    metrics = pair_metrics(s, beta)  # refuses rows without a reference
    assert s.ref_logp is not None
    reference = s.ref_logp.detach()
    u, v = s.logp[:, 0] - s.logp[:, 1], reference[:, 0] - reference[:, 1]
    return _dominate(u, v, metrics, beta, label_smoothing)


@needs(columns=2, labels=("ranked",), batch=True)
def aot_unpaired(s: Scored, *, beta: float = 0.01, label_smoothing: float = 0.0) -> Loss:
    """Alignment via optimal transport, unpaired: log-ratios of preferred responses dominate those of the others.

    loss = -logsigmoid(h) + e h,   h = beta (u_(k) - v_(k)),   u = logratio[:, 0],   v = logratio[:, 1]

    Who was paired with whom does not matter: the two columns are two pools of the same size. A row's loss belongs to its
    preferred response; the other response in it may come from another row, and so does its gradient.

    Limits  a batch of one, or both columns in the same order: dpo
    Source  arXiv:2406.05882, unpaired form; TRL's loss_type "aot_unpaired" ("aot_pair" before 2026)
    """
    return _dominate(s.logratio[:, 0], s.logratio[:, 1], pair_metrics(s, beta), beta, label_smoothing)


def _dominate(u: Tensor, v: Tensor, metrics: dict[str, Tensor], beta: float, label_smoothing: float) -> Loss:
    positive("beta", beta, PULL)
    flip_rate(label_smoothing)
    h = beta * (u - quantile_of(u, v))
    return Loss(-logsigmoid(h) + label_smoothing * h, metrics)
