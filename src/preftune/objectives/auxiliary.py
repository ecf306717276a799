"""Terms that are added to others, and `add` and `scale` that combine objectives by calling them."""

from __future__ import annotations

from typing import Literal

from ..numerics import not_negative
from ..types import Loss, Needs, Objective, PreftuneError, Scored, needs, needs_of, parts_of

Aggregation = Literal["seq_mean", "seq_sum", "tok_mean"]


@needs(columns=1, labels=(), reference=False)
def nll(s: Scored, *, aggregation: Aggregation = "seq_mean") -> Loss:
    """Negative log-likelihood of column 0.

    seq_mean  -logp / length      every response counts alike
    seq_sum   -logp               every response counts as one sample of the sequence law
    tok_mean  -logp with count = length: the learner's quotient becomes a mean over all tokens of the global batch

    Limits  equal lengths: tok_mean equals seq_mean
    Source  the usual language-model loss; the three aggregations are three methods
    """
    logp = s.logp[:, 0]
    if aggregation == "seq_sum":
        return Loss(-logp, {"nll": -logp.detach()})
    per_token = -s.mean_logp[:, 0]
    if aggregation == "seq_mean":
        return Loss(per_token, {"nll": per_token.detach()})
    if aggregation == "tok_mean":
        assert s.length is not None
        return Loss(-logp, {"nll": per_token.detach()}, count=s.length[:, 0].to(logp.dtype))
    raise PreftuneError(f"aggregation is {aggregation!r}, needed one of seq_mean, seq_sum, tok_mean")


def scale(objective: Objective, weight: float) -> Objective:
    """The objective times a number of at least 0; its metrics stay as they are."""
    name = " + ".join(part.__name__ for part in parts_of(objective))
    not_negative(f"the weight of {name}", weight, "below 0 the term would be maximised")

    def scaled(s: Scored) -> Loss:
        loss = objective(s)
        return Loss(weight * loss.row, loss.metrics, loss.count, loss.running)

    scaled.needs, scaled.parts, scaled.weight = needs_of(objective), (objective,), weight  # type: ignore[attr-defined]
    return scaled


def add(*objectives: Objective) -> Objective:
    """The sum of objectives, row by row. All must count alike: a token mean cannot be added to a row mean."""

    def total(s: Scored) -> Loss:
        losses = [objective(s) for objective in objectives]
        if any(loss.count is not None for loss in losses):
            raise PreftuneError(
                "cannot add a loss averaged over tokens to one averaged over rows: their divisors differ; "
                "use aggregation='seq_mean' or 'seq_sum'"
            )
        row = sum((loss.row for loss in losses[1:]), losses[0].row)
        metrics = {name: value for loss in losses for name, value in loss.metrics.items()}
        running = {name: value for loss in losses for name, value in loss.running.items()}
        return Loss(row, metrics, running=running)

    total.parts = objectives  # type: ignore[attr-defined]
    parts = [needs_of(objective) for objective in objectives]
    numbers = [part.columns for part in parts if isinstance(part.columns, int)]
    total.needs = Needs(  # type: ignore[attr-defined]
        columns="K" if len(numbers) < len(parts) else max(numbers),
        labels=tuple(dict.fromkeys(label for part in parts for label in part.labels)),
        optional=tuple(dict.fromkeys(label for part in parts for label in part.optional)),
        reference=any(part.reference for part in parts),
        logp=any(part.logp for part in parts),
        wants=tuple(dict.fromkeys(want for part in parts for want in part.wants)),
        other=tuple(dict.fromkeys(role for part in parts for role in part.other)),
        batch=any(part.batch for part in parts),
        domain=min(part.domain for part in parts),
    )
    return total
