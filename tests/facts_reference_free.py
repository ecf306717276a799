"""Facts of the reference-free methods: cpo, asft, alphapo, arpo, triple-po, and what simpo shares with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from facts import (
    DRAW,
    B,
    Facts,
    Limit,
    Refusal,
    Value,
    at,
    columns,
    equal_means,
    gradient,
    pairs,
    row,
    swapped,
)
from preftune import methods
from preftune.objectives import auxiliary, pairwise
from preftune.objectives.reference_free import alphapo, arpo, asft, cpo, gold_nll, odds_ratio, simpo
from preftune.policies.tabular import TableResponses
from preftune.probe import probe
from preftune.types import Objective, Scored

L = 20.0
cpo5 = partial(cpo, beta=0.5)
hinge5, squared5 = partial(cpo5, link="hinge"), partial(cpo5, link="squared")


def triples(*, gold: int | None = None, **labels: Tensor) -> Scored:
    """Pairs with a gold response behind them: one of its own, or a copy of column `gold`."""
    s, other = pairs(**labels), pairs()
    third = (s.logp, s.ref_logp, s.length) if gold is not None else (other.logp, other.ref_logp, other.length)
    column = 0 if gold is None else gold
    join = lambda own, more: torch.cat([own.detach(), more[:, column : column + 1].detach()], 1)
    rows = s.rows.replace(response=TableResponses(torch.arange(3).expand(B, 3)))
    logp, ref_logp, length = (join(own, more) for own, more in zip((s.logp, s.ref_logp, s.length), third, strict=True))
    return Scored(rows, logp.requires_grad_(), ref_logp, length)


def alike(s: Scored) -> Scored:
    """Under a reference to which both responses are equally likely."""
    return replace(s, ref_logp=s.ref_logp[:, :1].expand_as(s.ref_logp))


def lead(s: Scored) -> Tensor:
    return s.logp[:, 0] - s.logp[:, 1]


def means(s: Scored) -> tuple[Tensor, Tensor]:
    return s.mean_logp[:, 0], s.mean_logp[:, 1]


def far_means() -> Scored:
    """Mean log-probs of the two columns 3 nats apart or more: arpo's rejection is complete there."""
    s = pairs()
    apart = 3 + torch.rand(B, 1, generator=DRAW, dtype=torch.float64)
    sign = torch.tensor([[1.0, -1.0]] * (B // 2) + [[-1.0, 1.0]] * (B - B // 2))
    return at(s, s.length * (-6 + apart * sign / 2))


def near() -> Scored:
    """Leads within 2 nats: the hinge is inside its margin at beta .1."""
    s = pairs()
    return at(s, s.logp[:, :1] + torch.tensor([[0.0, -1.0]]) * (torch.rand(B, 1, generator=DRAW, dtype=torch.float64) * 4 - 2))


SHIPPED = {
    "cpo": Facts(methods.cpo(), steady=True),
    "cpo alone": Facts(methods.cpo(alpha=0.0), steady=True, shift=True),
    "cpo hinge": Facts(methods.cpo(link="hinge")),  # flat for the loser beyond the margin
    "cpo ipo": Facts(methods.cpo(link="squared", per_token=True)),  # turns back beyond its target
    "cpo smoothed": Facts(methods.cpo(label_smoothing=0.1)),  # turns back beyond logit(0.9)
    "simpo with a likelihood": Facts(methods.simpo(gamma_beta_ratio=0.5, sft_weight=1.0), steady=True),
    "simpo smoothed": Facts(methods.simpo(gamma_beta_ratio=0.5, label_smoothing=0.1)),
    "asft": Facts(methods.asft(), steady=True),
    "asft scaled": Facts(methods.asft(lam=0.1, beta=0.5, ce=0.7), steady=True),
    "alphapo": Facts(methods.alphapo(), steady=True),
    "alphapo steep": Facts(methods.alphapo(alpha=1.0), steady=True),
    "arpo": Facts(methods.arpo()),  # relaxes the rejection, see the facts below
    "triple-po": Facts(methods.triple_po(), steady=True),
    "triple-po tpo-l": Facts(methods.triple_po(per_token=True, gamma=0.5), steady=True),
}


# sentence: (left, right, rows)
LIMITS: dict[str, Limit] = {
    "cpo is dpo with a reference to which both responses are alike": (
        row(cpo5),
        lambda s: pairwise.dpo(alike(s), beta=0.5).row,
        pairs,
    ),
    "cpo's hinge is hinge with that reference": (row(hinge5), lambda s: pairwise.hinge(alike(s), beta=0.5).row, pairs),
    "cpo's square is ipo with that reference": (row(squared5), lambda s: pairwise.ipo(alike(s), beta=0.5).row, pairs),
    "cpo's square per token is ipo_avg without a reference": (
        row(partial(squared5, per_token=True)),
        lambda s: pairwise.ipo_avg(replace(s, ref_logp=torch.zeros_like(s.logp)), beta=0.5).row,
        pairs,
    ),
    "cpo smoothed is dpo smoothed with that reference": (
        row(partial(cpo5, label_smoothing=0.1)),
        lambda s: pairwise.dpo(alike(s), beta=0.5, label_smoothing=0.1).row,
        pairs,
    ),
    "cpo per token with a margin is simpo": (
        row(partial(cpo5, per_token=True, gamma=0.7)),
        row(partial(simpo, beta=0.5, gamma=0.7)),
        pairs,
    ),
    "cpo per token, smoothed, is simpo smoothed": (
        row(partial(cpo5, per_token=True, gamma=0.7, label_smoothing=0.2)),
        row(partial(simpo, beta=0.5, gamma=0.7, label_smoothing=0.2)),
        pairs,
    ),
    "cpo's hinge per token with a margin is that of SimPO's authors": (
        row(methods.cpo(beta=2.0, alpha=0.0, link="hinge", per_token=True, gamma=2.0 * 0.3).objective),
        lambda s: torch.relu(1 - 2.0 * (s.mean_logp[:, 0] - s.mean_logp[:, 1] - 0.3)),
        pairs,
    ),
    "cpo's hinge at beta 1 / delta is SLiC-HF's calibration over delta": (
        row(partial(cpo, beta=1 / 3, link="hinge")),
        lambda s: pairwise.hinge_free(s, delta=3.0).row / 3,
        pairs,
    ),
    "cpo: one token makes sums and means alike": (row(cpo5), row(partial(cpo5, per_token=True)), lambda: pairs(equal_length=1)),
    "cpo with equal lengths L: means at beta are sums at beta / L": (
        row(partial(cpo, beta=2.0, per_token=True)),
        row(partial(cpo, beta=2.0 / L)),
        lambda: pairs(equal_length=L),
    ),
    **{
        f"cpo smoothed mixes both orders under the {link} link": (
            row(partial(cpo5, link=link, label_smoothing=0.1)),
            lambda s, link=link: 0.9 * cpo5(s, link=link).row + 0.1 * cpo5(swapped(s), link=link).row,
            pairs,
        )
        for link in ("logistic", "hinge", "squared")
    },
    "cpo as a method is its pair plus the likelihood of the chosen": (
        row(methods.cpo(0.5, 0.3).objective),
        lambda s: cpo5(s).row + 0.3 * auxiliary.nll(s).row,
        pairs,
    ),
    "cpo with alpha 0 is dpo with that reference": (
        row(methods.cpo(0.5, 0.0).objective),
        lambda s: pairwise.dpo(alike(s), beta=0.5).row,
        pairs,
    ),
    "cpo with a small beta is its likelihood plus ln 2": (
        row(methods.cpo(1e-14, 1.0).objective),
        lambda s: auxiliary.nll(s).row + math.log(2),
        pairs,
    ),
    "simpo with sft_weight is simpo plus the likelihood of the chosen": (
        row(methods.simpo(2.0, gamma=1.0, sft_weight=0.3).objective),
        lambda s: simpo(s, beta=2.0, gamma=1.0).row + 0.3 * auxiliary.nll(s).row,
        pairs,
    ),
    "simpo smoothed mixes its margin's two signs": (
        row(partial(simpo, gamma=0.0, label_smoothing=0.1)),
        lambda s: 0.9 * simpo(s, gamma=0.0).row + 0.1 * simpo(swapped(s), gamma=0.0).row,
        pairs,
    ),
    "alphapo with alpha 0 is simpo": (
        row(partial(alphapo, beta=2.0, gamma=0.3, alpha=0.0)),
        row(partial(simpo, beta=2.0, gamma=0.3)),
        pairs,
    ),
    "alphapo with a small alpha is simpo": (
        row(partial(alphapo, beta=2.0, gamma=0.3, alpha=1e-13)),
        row(partial(simpo, beta=2.0, gamma=0.3)),
        pairs,
    ),
    "alphapo with a small negative alpha is simpo": (
        row(partial(alphapo, beta=2.0, gamma=0.3, alpha=-1e-13)),
        row(partial(simpo, beta=2.0, gamma=0.3)),
        pairs,
    ),
    "alphapo with alpha -1 compares probabilities": (
        row(partial(alphapo, beta=2.0, gamma=0.3, alpha=-1.0)),
        lambda s: -logsigmoid(2.0 * (means(s)[0].exp() - means(s)[1].exp()) - 0.3),
        pairs,
    ),
    "alphapo with alpha 1 compares inverse probabilities": (
        row(partial(alphapo, beta=2.0, gamma=0.3, alpha=1.0)),
        lambda s: -logsigmoid(2.0 * ((-means(s)[1]).exp() - (-means(s)[0]).exp()) - 0.3),
        pairs,
    ),
    "alphapo: three times the tokens at the same mean changes nothing": (
        row(alphapo),
        lambda s: alphapo(replace(s, logp=3 * s.logp, length=3 * s.length)).row,
        pairs,
    ),
    "arpo rejects like cpo where the two are far apart": (row(arpo), row(cpo), far_means),
    "arpo as a method is cpo as a method where the two are far apart": (
        row(methods.arpo(alpha=0.4).objective),
        row(methods.cpo(alpha=0.4).objective),
        far_means,
    ),
    "arpo with k1 = 2 is cpo": (row(partial(arpo, k1=2.0)), row(cpo), pairs),
    "arpo is its definition": (
        row(arpo),
        lambda s: -logsigmoid(0.1 * (s.logp[:, 0] - (0.9 * (0.4 * (means(s)[0] - means(s)[1]).abs()).exp() - 1) * s.logp[:, 1])),
        pairs,
    ),
    "asft at beta 1 is likelihood plus unlikelihood": (
        row(asft),
        lambda s: -means(s)[0] - torch.log(1 - means(s)[1].exp()),
        pairs,
    ),
    "asft classifies each response by beta times its log-odds": (
        row(partial(asft, beta=0.5)),
        lambda s: -sum(logsigmoid(sign * 0.5 * torch.log(m.exp() / (1 - m.exp()))) for sign, m in zip((1, -1), means(s), strict=True)),
        pairs,
    ),
    "asft minus orpo's odds ratio is -log of one of the two alone": (
        row(asft),
        lambda s: odds_ratio(s).row - torch.log(means(s)[0].exp() * (1 - means(s)[1].exp()) + means(s)[1].exp() * (1 - means(s)[0].exp())),
        pairs,
    ),
    "asft as a method is -(ce + lam) m_chosen - lam log(1 - p_rejected)": (
        row(methods.asft(lam=0.3, ce=0.7).objective),
        lambda s: -means(s)[0] - 0.3 * torch.log(1 - means(s)[1].exp()),
        pairs,
    ),
    "asft with lam 0 is the likelihood of the chosen": (row(methods.asft(0.0).objective), row(auxiliary.nll), pairs),
    "asft of a lost response is the likelihood of the chosen": (
        row(methods.asft(0.3).objective),
        lambda s: 1.3 * auxiliary.nll(s).row,
        lambda: at(pairs(), torch.tensor([[-30.0, -4000.0]] * B, dtype=torch.float64)),
    ),
    "triple_po with alpha 0 is cpo's pair": (row(methods.triple_po(0.5, 0.0).objective), row(cpo5), triples),
    "triple_po whose gold is the preferred response is cpo": (
        row(methods.triple_po(0.5, 0.3).objective),
        row(methods.cpo(0.5, 0.3).objective),
        lambda: triples(gold=0),
    ),
    "triple_po is a pair and the likelihood of the third": (
        row(methods.triple_po(0.5, 0.3).objective),
        lambda s: cpo5(s).row + 0.3 * auxiliary.nll(columns(s, [2, 0, 1])).row,
        triples,
    ),
    "triple_po per token with a margin is simpo and the likelihood of the third": (
        row(methods.triple_po(2.0, 0.3, per_token=True, gamma=0.5).objective),
        lambda s: simpo(s, beta=2.0, gamma=0.5).row + 0.3 * gold_nll(s).row,
        triples,
    ),
    "triple_po's hinge": (
        row(methods.triple_po(0.1, 0.0, link="hinge").objective),
        lambda s: (1 - 0.1 * lead(s)).clamp(min=0),
        triples,
    ),
}
VALUE_ONLY = {
    # copies of one response: the gradient reaches different columns
    "triple_po whose gold is the preferred response is cpo",
}
SAME_GRADIENT: dict[str, Limit] = {
    "cpo's hinge inside its margin only sees the lead": (row(partial(cpo, link="hinge")), lambda s: -0.1 * lead(s), near),
    "asft does not look at the rejected response to move the chosen": (
        lambda s: asft(replace(s, logp=torch.stack([s.logp[:, 0], s.logp[:, 1].detach()], 1))).row,
        lambda s: -means(s)[0],
        pairs,
    ),
}


# sentence: (formula, value of every row, rows)
VALUES: dict[str, Value] = {
    "cpo of equally likely responses is ln 2": (row(cpo), math.log(2), lambda: equal_sums()),
    "cpo's hinge of equally likely responses is 1": (row(partial(cpo, link="hinge")), 1.0, lambda: equal_sums()),
    "cpo's square of equally likely responses is 1 / (2 beta)^2": (row(partial(cpo, link="squared")), 25.0, lambda: equal_sums()),
    "cpo leaves 4.5e-5 after a lead of 100 nats": (row(cpo), math.log1p(math.exp(-10)), lambda: leading(100.0)),
    "cpo's hinge lets go after 1 / beta nats": (lambda s: gradient(row(partial(cpo, link="hinge")), s), 0.0, lambda: leading(10.5)),
    "alphapo of equal means is -logsigmoid(-gamma)": (row(alphapo), math.log1p(math.exp(0.1)), equal_means),
    "alphapo pulls an unlikely winner e^(-alpha m) times as hard": (
        lambda s: gradient(row(alphapo), s)[:, 0] / gradient(row(partial(simpo, beta=2.5, gamma=0.1)), s)[:, 0],
        math.exp(0.25 * 1.5),
        equal_means,
    ),
    "arpo's rejection of an equally likely response is k1 - 1": (lambda s: arpo(s).metrics["rejection"], -0.1, equal_means),
    "asft pulls the chosen at 1 / L whatever else there is": (lambda s: gradient(row(asft), s)[:, 0] * s.length[:, 0], -1.0, pairs),
    "asft as a method pulls the chosen at (ce + lam) / L": (
        lambda s: gradient(row(methods.asft(lam=0.3, ce=0.7).objective), s)[:, 0] * s.length[:, 0],
        -1.0,
        pairs,
    ),
    "asft at p = .3 and .2 is 1.427116": (row(asft), -math.log(0.3) - math.log(0.8), lambda: likely(0.3, 0.2)),
    "orpo's odds ratio at p = .3 and .2 is 0.459532": (row(odds_ratio), math.log1p((0.2 / 0.8) / (0.3 / 0.7)), lambda: likely(0.3, 0.2)),
    "gold_nll leaves the pair alone": (lambda s: gradient(row(gold_nll), s)[:, :2], 0.0, triples),
}


def equal_sums() -> Scored:
    s = pairs()
    return at(s, s.logp[:, :1].expand(-1, 2))


def leading(nats: float) -> Scored:
    s = pairs()
    return at(s, s.logp[:, :1] - torch.tensor([[0.0, nats]], dtype=torch.float64))


def likely(*p: float) -> Scored:
    """Geometric means of the tokens' probabilities."""
    s = pairs()
    return at(s, s.length * torch.tensor([p], dtype=torch.float64).log())


BETAS = {
    "cpo": lambda v: methods.cpo(beta=v),
    "asft": lambda v: methods.asft(beta=v),
    "alphapo": lambda v: methods.alphapo(beta=v),
    "arpo": lambda v: methods.arpo(beta=v),
    "triple-po": lambda v: methods.triple_po(beta=v),
}
FLIP_RATES = {
    "cpo": lambda e: methods.cpo(label_smoothing=e),
    "simpo": lambda e: methods.simpo(gamma=1.0, label_smoothing=e),
    "triple-po": lambda e: methods.triple_po(label_smoothing=e),
}
REFUSED: dict[str, Refusal] = {
    "a link that cpo does not have": (
        lambda: probe(methods.cpo(link="sigmoid")),
        "link is 'sigmoid'.*logistic, hinge, squared",
    ),
    "a NaN likelihood beside cpo": (lambda: probe(methods.cpo(alpha=math.nan)), "nan"),
    "a NaN alpha of alphapo": (lambda: probe(methods.alphapo(alpha=math.nan)), "alpha is nan"),
    "an infinite alpha of alphapo": (lambda: probe(methods.alphapo(alpha=math.inf)), "alpha is inf"),
    "a k1 of 0 in arpo": (lambda: probe(methods.arpo(k1=0.0)), "k1 is 0.0"),
    "a negative k2 in arpo": (lambda: probe(methods.arpo(k2=-1.0)), "k2 is -1.0"),
    "lengths that are missing for a gold response": (lambda: gold_nll(replace(triples(), length=None)), "lengths"),
}

# name in vectors.json -> the objective built from the case's parameters
VECTORS: dict[str, Callable[..., Objective]] = {
    "cpo_pref": lambda beta: partial(cpo, beta=beta),
    "cpo": lambda beta, alpha: methods.cpo(beta, alpha).objective,
    "alphapo": lambda beta, gamma, alpha: partial(alphapo, beta=beta, gamma=gamma, alpha=alpha),
    "asft_align": lambda: asft,
    "asft": lambda lam: methods.asft(lam).objective,
    "tpo_triple_pref": lambda beta: partial(cpo, beta=beta),
    "tpo_triple_l": lambda beta, gamma: partial(cpo, beta=beta, gamma=gamma, per_token=True),
}
