"""Objectives of pairs that are drawn while training: each pair of a list with the judge's preference between its two responses.

`beats` [B, K, K] holds P(column i beats column j). How often a pair is drawn is said by the rows: `pairs` [B, K, K] where the two
responses come from different laws, otherwise law x law where the columns enumerate one, otherwise every pair of the list alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, relu

from ..numerics import logsigmoid, not_negative, one_of, positive, sigmoid
from ..types import Loss, PreftuneError, Scored, needs
from .pairwise import PULL, dpo, gap

Link = Literal["dpo", "ipo", "hinge"]
LINKS: dict[str, Callable[[Tensor, float], Tensor]] = {  # what a pair costs at a gap g of log-ratios, winner minus loser
    "dpo": lambda g, beta: -logsigmoid(beta * g),
    "ipo": lambda g, beta: (g - 1 / (2 * beta)) ** 2,
    "hinge": lambda g, beta: relu(1 - beta * g),
}


def frequency(s: Scored) -> Tensor:
    """How often each ordered pair of columns is drawn, [B, K, K]; over a row it adds up to 1."""
    if "pairs" in s.rows.extra:
        return s.rows.extra["pairs"].to(s.logp)
    if s.rows.law is not None:
        law = s.rows.law.to(s.logp)
        return law[:, :, None] * law[:, None, :]
    here = torch.ones_like(s.logp) if s.rows.present is None else s.rows.present.to(s.logp)
    both = (here[:, :, None] * here[:, None, :]).triu(1)
    return both / both.sum((1, 2), keepdim=True).clamp(min=1)


def tilt(s: Scored, name: str) -> Tensor:
    """The rows' weights [B, K] of that name, for a sum over columns."""
    weights = s.rows.label(name)
    if weights is None:
        raise PreftuneError(f"this objective reads {name}, one weight for each response, but the rows carry none; let a collector add it")
    return weights.to(s.logp)  # type: ignore[no-any-return]


@needs(columns="K", labels=("beats",), optional=("law", "pairs"))
def judged_pairs(s: Scored, *, beta: float = 0.1, loss: Link = "dpo") -> Loss:
    """A pair loss over responses just drawn, in both orders as the judge prefers them.

    loss = E_{i, j} [P_ij l(g_ij) + P_ji l(-g_ij)],   g_ij = logratio_i - logratio_j,   P = beats
    l(g) = -logsigmoid(beta g) | (g - 1 / (2 beta))^2 | max(0, 1 - beta g) for loss = dpo | ipo | hinge

    Reads   beats [B, K, K]; P_ij = P_ji = 0 leaves a pair out. The laws of the pair are constants: no gradient through the sampling
    Limits  K = 2 drawn: `pairwise.dpo`, `ipo` and, under sure labels, `hinge` with prefer = P_01. Over law x law at the reference
            the gradient of logit i is 2 beta pi_i (1/2 - (P pi)_i), so that a response at 1/2 stays
    Not     a solver of the preference game: it ends beside its regularised equilibrium unless symmetry joins the two, under
            Bradley-Terry preferences at pi_ref exp(r / beta). loss="ipo" on drawn pairs is the game's loss up to a constant
    Source  arXiv:2402.04792 (OAIF: the three losses of offline methods on online pairs)
    """
    positive("beta", beta, PULL)
    one_of("loss", loss, LINKS, ": what is done with a pair's gap of log-ratios")
    if s.rows.beats is None:
        raise PreftuneError("judged_pairs reads beats, but the rows carry none; collect responses and let a judge compare them")
    drawn, P = frequency(s), s.rows.beats.to(s.logp)
    both = drawn + drawn.mT
    g = s.logratio[:, :, None] - s.logratio[:, None, :]
    wins = torch.where(both > 0, P, 0.0)
    decided = (drawn * (wins + wins.mT)).sum((1, 2))
    apart = (both * wins * g).sum((1, 2)).detach()
    return Loss((both * wins * LINKS[loss](g, beta)).sum((1, 2)), {"margin": beta * apart, "decided": decided})


@needs(columns=1, labels=("calibration",), reference=False)
def value(s: Scored, *, alpha: float = 1.0, sign: Literal[1, -1] = 1) -> Loss:
    """What the best policy of the implicit reward would earn: sought with sign 1 (optimism), avoided with -1 (pessimism).

    loss = sign alpha E_{y ~ pi_cal}[log pi(y)]

    From min_r NLL(r) - sign alpha' max_pi (E_pi r - beta KL), the reward fixed by E_{pi_cal} r = 0: the maximum is then
    -beta E_{pi_cal} log pi / pi_ref, so that alpha here is alpha' beta.

    Reads   calibration [B, K], the law of pi_cal over the columns; columns of weight 0 are not touched
    Limits  the gradient in the logits is sign alpha (pi_cal - pi): optimism repels from pi_cal, a response rises where pi > pi_cal.
            sign -1: the likelihood of pi_cal, and with one response `nll` of its sum
    Not     bounded for sign 1: beside dpo it has a minimum only while alpha pi_cal(y) stays below beta times the weight of the wins
            of y, and under one-sided labels none. It grows with the length of a response
    Source  arXiv:2405.19320 (VPO), re-derived; arXiv:2405.21046 (XPO: pi_cal = pi_ref)
    """
    not_negative("alpha", alpha, "its sign is said by `sign`")
    if sign not in (1, -1):
        raise PreftuneError(f"sign is {sign}, needed 1 (optimism, for data being collected) or -1 (pessimism, for given data)")
    mean = (tilt(s, "calibration") * s.logp).sum(1)
    return Loss(sign * alpha * mean, {"calibration_logp": mean.detach()})


@needs(columns="K", labels=("worse",))
def lowered(s: Scored, *, floor: float = 10.0) -> Loss:
    """Pushes responses down until they are `floor` nats rarer than under the reference: a negative gradient that ends.

    loss = sum_j worse_j max(0, floor + logratio_j)

    Reads   worse [B, K], weights
    Not     log pi(worse) itself, which has no minimum
    Source  arXiv:2404.14367 (its bandits' negative gradients, there without a floor)
    """
    positive("floor", floor, "it is how far a response is pushed down, in nats")
    worse = tilt(s, "worse")
    pushed = relu(floor + s.logratio)
    return Loss((worse * pushed).sum(1), {"pushed": (worse * (pushed.detach() > 0)).sum(1)})


# --- two learners of different speed --------------------------------------------------------------------------------


@needs(columns=2, labels=("ranked",), optional=("prefer",), other=("twin",))
def chasing(s: Scored, *, beta: float = 0.1) -> Loss:
    """DPO with the other learner as the reference.

    loss = -logsigmoid(beta [log pi(w) / pi_twin(w) - log pi(l) / pi_twin(l)])

    Limits  ln 2 where the two agree, with the gradient of dpo at margin 0, however sure both are
    Source  arXiv:2406.05534 as its summaries tell it; the formula is a reading
    """
    loss = dpo(replace(s, ref_logp=s.other["twin"]), beta=beta)
    return Loss(loss.row, {"chase": loss.metrics["margin"]})


@needs(columns=2, labels=("ranked",), other=("twin",))
def apart(s: Scored, *, beta: float = 0.1) -> Loss:
    """The squared difference of the two learners' probabilities that the winner wins.

    loss = (sigmoid(m) - sigmoid(m_twin))^2,   m = beta (logratio_w - logratio_l) of each

    Limits  0 where the two agree; flat where both are sure
    Source  arXiv:2406.05534 as its summaries tell it; the formula is a reading
    """
    positive("beta", beta, PULL)
    twin = gap(replace(s, logp=s.other["twin"].detach().to(s.logp)))
    difference = sigmoid(beta * gap(s)) - sigmoid(beta * twin)
    return Loss(difference**2, {"chase": difference.detach()})
