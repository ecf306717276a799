"""The objective of preference trees: graded lists of responses made of steps, each step with a weight of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..numerics import positive
from ..ranking import Ranks, Reduction, choose, lambda_rows
from ..types import Loss, PreftuneError, Scored, needs
from .listwise import graded
from .pairwise import PULL

Weight = Literal["similarity", "distance", "none"]
WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of cos(e_it, e_0t) and of whether both have step t
    "similarity": lambda cos, both: both * (1 + cos),
    "distance": lambda cos, both: both * (1 - cos),  # 2 - (1 + cos)
    "none": lambda cos, both: torch.ones_like(cos),
}


@needs(columns="K", labels=("ranked",), optional=("score",), wants=("segments", "states"))
def tpo(
    s: Scored,
    *,
    beta: float = 0.5,
    weight: Weight = "similarity",
    step: Reduction = "sum",
    ranks: Ranks = "model",
    reduction: Reduction = "sum",
    unit: float = 100.0,
) -> Loss:
    """Tree preference optimisation: LiPO-lambda whose scores weigh the steps of a response (adaptive step reward).

    loss = lambda loss of (s, psi),   s_i = beta sum_t w_it l_it,   l_it = segment log-ratio of step t, or its mean per token
    w = 1 + c ("similarity") | 1 - c ("distance") | 1 ("none"),   c_it = cos(e_it, e_0t), e the mean hidden state of a step

    Response 0 is the one of the highest grade. Weights carry no gradient. Where a response, or response 0, has no step t,
    there is nothing to compare and the step is skipped ("none" keeps it).

    Reads   segment_logp, segment_ref_logp [B, K, S], states [B, K, S, d], rows.segments [B, K, S + 1]: equal boundaries are
            an absent step; grades, unit, ranks and reduction as in `lipo`: marks of a judge lie in 0 .. unit
    Limits  "none" is lipo, however the steps are cut. Steps that responses share cancel in every pair.
            "distance" gives response 0 itself no weight: it is never raised, the others are only lowered
    Not     the released code, which differs in four ways: it descends on -logsigmoid(beta * rank loss), which FALLS as the
            order gets worse; it has no gain or discount; it divides by sum_t w; its log-probs are those of each token given
            itself. Nor Triple Preference Optimisation, TRL's TPO (see `cpo` with `gold_nll`)
    Source  arXiv:2410.12854; github MrBlankness/TPO loss.py for the weights
    """
    positive("beta", beta, PULL)
    best = graded(s, s.logratio, unit).extreme(1)[:, :, None]  # [B, 1, 1]
    tokens = _tokens(s)
    both = (tokens > 0) & (tokens.take_along_dim(best, 1) > 0)
    assert s.states is not None
    states = s.states.detach()
    cos = cosine_similarity(states, states.take_along_dim(best[..., None], 1), dim=3)
    w = choose("weight", WEIGHTS, weight)(torch.where(both, cos, 0.0), both)
    nats = choose("step", {"sum": s.segment_logratio, "mean": s.segment_logratio / tokens.clamp(min=1)}, step)
    x = graded(s, beta * (w * nats).sum(2), unit)
    return Loss(lambda_rows(x, ranks=ranks, reduction=reduction), {**x.metrics(), "weight": w.mean((1, 2))})


def _tokens(s: Scored) -> Tensor:
    """Tokens of every step [B, K, S], 0 where a response has no such step."""
    if s.rows.segments is None:
        raise PreftuneError(
            "tpo weighs the steps of a response, but the rows carry no segments, so that each response is one; needed rows.segments "
            "[B, K, S + 1], where the steps begin and end in tokens; give the data a column steps, or use lipo, which reads whole responses"
        )
    return s.rows.segments.diff(dim=2).to(s.logp)
