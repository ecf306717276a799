"""Objectives of a pair that need no reference. All read logp and length [B, 2]; column 0 is preferred."""

from __future__ import annotations

from torch import Tensor

from ..numerics import log1mexp, logsigmoid, positive
from ..types import Loss, Scored, needs

SCALE = "it scales SimPO's mean log-probabilities"


def _ordered(value: Tensor) -> dict[str, Tensor]:
    value = value.detach()
    return {"margin": value[:, 0] - value[:, 1], "accuracy": (value[:, 0] > value[:, 1]).to(value.dtype)}


@needs(columns=2, labels=("ranked",), reference=False)
def simpo(s: Scored, *, beta: float = 2.0, gamma: float = 1.0) -> Loss:
    """Simple preference optimisation: mean log-probs, with a margin gamma in reward units.

    loss = -logsigmoid(beta (m0 - m1) - gamma),   m = logp / length

    Limits  scaling logp and length together changes nothing; gamma 0 and equal lengths L: DPO's form without a reference at beta / L
    Not     gamma / beta: authors and HALOs give that ratio, TRL and LLaMA-Factory give gamma
    Source  arXiv:2405.14734 eq. 6
    """
    positive("beta", beta, SCALE)
    m = s.mean_logp
    return Loss(-logsigmoid(beta * (m[:, 0] - m[:, 1]) - gamma), _ordered(beta * m))


@needs(columns=2, labels=("ranked",), reference=False)
def odds_ratio(s: Scored) -> Loss:
    """The odds-ratio term of ORPO.

    loss = -logsigmoid(o0 - o1),   o = m - log(1 - e^m),   m = logp / length < 0

    Limits  m0 = m1 gives ln 2; both m far below 0: SimPO with beta 1, gamma 0. A mean log-prob of exactly 0 has infinite odds
    Source  arXiv:2403.07691 eq. 7
    """
    m = s.mean_logp
    odds = m - log1mexp(m)
    return Loss(-logsigmoid(odds[:, 0] - odds[:, 1]), _ordered(odds))
