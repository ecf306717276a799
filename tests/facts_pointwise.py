"""Facts of objectives on single responses: kto's options, bco, apo-zero-unpaired, sppo."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from facts import (
    B,
    Facts,
    Limit,
    Refusal,
    Value,
    at,
    at_reference,
    gradient,
    h,
    judged_pairs,
    labelled,
    law,
    normal,
    over_count,
    pairs,
    row,
)
from preftune import methods
from preftune.collect import draw, select
from preftune.objectives import games, pointwise
from preftune.policies.tabular import TableResponses
from preftune.probe import probe
from preftune.types import Context, Rows, Scored

kto, apo, bco, sppo = pointwise.kto, pointwise.apo_zero_unpaired, pointwise.bco, pointwise.sppo
kto5 = partial(kto, beta=0.5)
weighted = partial(kto, beta=0.2, desirable_weight=1.5, undesirable_weight=0.7)
sppo3 = partial(sppo, beta=0.3)

SHIPPED = {
    "kto running": Facts(methods.kto(baseline="running"), steady=True, swap=True),
    "kto balanced": Facts(methods.kto(balanced=True), steady=True, swap=True),
    "apo-zero-unpaired": Facts(methods.apo_zero_unpaired(), steady=True, swap=True),
    # not smooth: delta is a constant of the gradient although it moves with the rewards; held still in test_pointwise_facts.py
    "bco": Facts(methods.bco(), steady=True, swap=True, smooth=False),
    # not apart: a response whose win rate is below one half is pushed down, also where it is the best of its row
    "sppo": Facts(methods.sppo(), apart=False, swap=True),
    "sppo centred": Facts(methods.sppo(eta=1.0, centred=True), shift=True, swap=True),
}


# --- rows -----------------------------------------------------------------------------------------------------------


def lists(K: int = 5) -> Scored:
    """Rows of K responses with win rates of their own."""
    logp = -20 + 3 * normal(B, K)
    winrate = torch.sigmoid(2 * normal(B, K))
    rows = Rows(tuple(map(str, range(B))), tuple(range(B)), TableResponses(torch.arange(K).expand(B, K)), winrate=winrate)
    return Scored(rows, logp.detach().requires_grad_(), logp.detach() + 2 * normal(B, K), torch.ones(B, K, dtype=torch.float64))


def lists_with_law() -> Scored:
    s = lists(4)
    return replace(s, rows=s.rows.replace(law=normal(B, 4).softmax(1)))


def first_two(s: Scored) -> Scored:
    """Lists of which the columns beyond the second are absent."""
    present = torch.zeros_like(s.logp, dtype=torch.bool)
    present[:, :2] = True
    return replace(s, rows=s.rows.replace(present=present))


def uneven(z0: float = 3.0) -> Scored:
    """Labelled rows of which four in five hold two desirable responses, the rest two undesirable ones."""
    s = labelled(z0)
    good = (torch.arange(B) % 5 != 0)[:, None].expand(B, 2)
    return replace(s, rows=s.rows.replace(desirable=good))


def remembering(mean: float, count: float, name: str, make: Callable[[], Scored]) -> Callable[[], Scored]:
    """Rows that come after `count` values of this mean."""
    tensor = partial(torch.tensor, dtype=torch.float64)
    return lambda: replace(make(), running={f"{name}_mean": tensor(mean), f"{name}_count": tensor(count)})


def hard(s: Scored) -> Scored:
    """Column 0 beats the policy always, column 1 never."""
    return replace(s, rows=s.rows.replace(winrate=torch.tensor([[1.0, 0.0]] * B, dtype=torch.float64)))


def residual(s: Scored, beta: float) -> Tensor:
    return s.logratio - (s.rows.winrate - 0.5) / beta


def on_target() -> Scored:
    """Every log-ratio where sppo with beta 0.3 wants it."""
    s = lists()
    return at(s, s.ref_logp + (s.rows.winrate - 0.5) / 0.3)


def one_step() -> Scored:
    """The policy after the step of multiplicative weights, which lets log-ratios differ from the win rates by a constant."""
    s = lists()
    return at(s, s.ref_logp + s.rows.winrate / 0.3 + normal(B, 1))


def two_by_hand(policy: tuple[float, float], winrate: tuple[float, float]) -> Scored:
    """One row at these log-ratios and win rates, B times."""
    s = pairs()
    rows = s.rows.replace(ranked=False, winrate=torch.tensor([winrate] * B, dtype=torch.float64))
    return at(replace(s, rows=rows), s.ref_logp + torch.tensor(policy, dtype=torch.float64))


def every_second_good() -> Scored:
    """One good and one bad response each, nothing mismatched."""
    s = labelled()
    return replace(s, logp=s.logp[:, :2].detach().requires_grad_(), ref_logp=s.ref_logp[:, :2])


def reward(s: Scored, beta: float) -> Tensor:
    return beta * s.logratio[:, :2]


def two_sided(x: Tensor) -> Tensor:
    """-logsigmoid of a good response's margin and of a bad one's negative."""
    return -logsigmoid(x[:, 0]) - logsigmoid(-x[:, 1])


# sentence: (left, right, rows)
LIMITS: dict[str, Limit] = {
    "kto without a baseline is apo_zero_unpaired": (row(kto5), row(partial(apo, beta=0.5)), lambda: labelled(-3.0)),
    "apo_zero_unpaired is its definition": (
        row(partial(apo, beta=0.5)),
        lambda s: torch.sigmoid(-reward(s, 0.5)[:, 0]) + torch.sigmoid(reward(s, 0.5)[:, 1]),
        every_second_good,
    ),
    "apo_zero_unpaired reads no further columns": (
        row(apo),
        lambda s: apo(replace(s, logp=s.logp[:, :2], ref_logp=s.ref_logp[:, :2])).row,
        lambda: labelled(7.0),
    ),
    "apo_zero_unpaired: exchanging good and bad turns each sigmoid around": (
        lambda s: apo(flipped(s)).row,
        lambda s: 2 - apo(s).row,
        every_second_good,
    ),
    "kto's first running baseline is the batch's": (row(partial(weighted, baseline="running")), row(weighted), lambda: labelled(3.0)),
    "kto's running baseline after the same batches is the batch's": (
        row(partial(weighted, baseline="running")),
        row(weighted),
        remembering(3.0, 1000.0, "kl", lambda: labelled(3.0)),
    ),
    "kto's running baseline fades by 0.9 a step": (
        # 100 values of mean 0 count as 90, beside 100 of mean 3.8: z0 = 380 / 190 = 2
        row(partial(weighted, baseline="running")),
        lambda s: weighted(baseline_at(s, 2.0)).row,
        remembering(0.0, 2 * B, "kl", lambda: labelled(3.8)),
    ),
    "kto's running baseline is cut at 0 after the mean": (
        # (90 * -5 + 100 * 3) / 190 < 0
        row(partial(weighted, baseline="running")),
        lambda s: weighted(baseline_at(s, -1.0)).row,
        remembering(-5.0, 2 * B, "kl", lambda: labelled(3.0)),
    ),
    "kto with the batch's baseline ignores what is remembered": (
        row(weighted),
        lambda s: weighted(replace(s, running={})).row,
        remembering(9.0, 1e6, "kl", lambda: labelled(3.0)),
    ),
    "kto balanced on as many good as bad responses is kto": (row(partial(weighted, balanced=True)), row(weighted), lambda: labelled(3.0)),
    "kto balanced takes half of each class's mean": (
        lambda s: over_count(partial(weighted, balanced=True), s),
        lambda s: class_means(s).sum()[None] / 2,
        uneven,
    ),
    "kto balanced with one class is kto": (
        row(partial(weighted, balanced=True)),
        row(weighted),
        lambda: replace(labelled(3.0), rows=labelled().rows.replace(desirable=torch.ones(B, 2, dtype=torch.bool))),
    ),
    "bco on a first batch is logistic regression on rewards less their mean": (
        row(partial(bco, beta=0.5)),
        lambda s: two_sided(reward(s, 0.5) - reward(s, 0.5).mean().detach()),
        every_second_good,
    ),
    "bco: a constant on all log-ratios moves delta with them": (
        row(bco),
        lambda s: bco(replace(s, logp=s.logp + 4.0)).row,
        every_second_good,
    ),
    "bco's delta counts every value of every step alike": (
        # 300 values of mean 2 and this batch's 100
        row(partial(bco, beta=0.5)),
        lambda s: two_sided(reward(s, 0.5) - (3 * 2.0 + reward(s, 0.5).mean().detach()) / 4),
        remembering(2.0, 6 * B, "delta", every_second_good),
    ),
    "bco reads no further columns": (
        row(bco),
        lambda s: bco(replace(s, logp=s.logp[:, :2], ref_logp=s.ref_logp[:, :2])).row,
        lambda: labelled(7.0),
    ),
    "bco: exchanging good and bad adds the margins": (
        lambda s: bco(flipped(s), beta=0.5).row,
        lambda s: bco(s, beta=0.5).row + reward(s, 0.5)[:, 0] - reward(s, 0.5)[:, 1],
        every_second_good,
    ),
    "sppo is the mean square of its residuals": (row(sppo3), lambda s: (residual(s, 0.3) ** 2).mean(1), lists),
    "sppo over a law is the expectation under it": (row(sppo3), lambda s: (s.rows.law * residual(s, 0.3) ** 2).sum(1), lists_with_law),
    "sppo over a uniform law is sppo over as many draws": (lambda s: sppo3(law(0.5, 0.5)(s)).row, row(sppo3), judged_pairs),
    "sppo leaves out what is absent": (
        lambda s: sppo3(first_two(s)).row,
        lambda s: (residual(s, 0.3)[:, :2] ** 2).mean(1),
        lists,
    ),
    "sppo on two responses with win rates 1 and 0 is half of the sum of (a - 1/(2 beta))^2 and (b + 1/(2 beta))^2": (
        lambda s: sppo3(hard(s)).row,
        lambda s: ((s.logratio[:, 0] - 1 / 0.6) ** 2 + (s.logratio[:, 1] + 1 / 0.6) ** 2) / 2,
        pairs,
    ),
    "sppo where no response is better is half of the squared log-ratios, whatever beta": (
        lambda s: sppo(replace(s, rows=s.rows.replace(winrate=torch.full((B, 2), 0.5)))).row,
        lambda s: (s.logratio**2).sum(1) / 2,
        pairs,
    ),
    "sppo centred is sppo less the squared mean residual": (
        row(partial(sppo3, centred=True)),
        lambda s: sppo3(s).row - residual(s, 0.3).mean(1) ** 2,
        lists,
    ),
    "sppo centred over a law is half of online_ipo": (
        row(partial(sppo3, centred=True)),
        lambda s: games.online_ipo(s, beta=0.3).row / 2,
        lists_with_law,
    ),
    "sppo centred over K draws is (K - 1) / (2 K) of online_ipo": (
        row(partial(sppo3, centred=True)),
        lambda s: games.online_ipo(s, beta=0.3).row * 4 / 10,
        lists,
    ),
    "sppo centred on a pair is a quarter of the squared difference": (
        row(partial(sppo3, centred=True)),
        lambda s: (h(s, 1.0) - (s.rows.winrate[:, 0] - s.rows.winrate[:, 1]) / 0.3) ** 2 / 4,
        judged_pairs,
    ),
    "sppo with eta is sppo with beta = 1 / eta": (row(methods.sppo(eta=4.0).objective), row(partial(sppo, beta=0.25)), lists),
}


def flipped(s: Scored) -> Scored:
    return replace(s, rows=s.rows.replace(desirable=~s.rows.desirable))


def baseline_at(s: Scored, z0: float) -> Scored:
    """The same labelled responses beside mismatched ones of log-ratio z0, nothing remembered."""
    moved = torch.cat([s.logp[:, :2], s.ref_logp[:, 2:] + z0], 1)
    return replace(s, logp=moved, running={})


def class_means(s: Scored) -> Tensor:
    """Mean loss of the good and of the bad responses under `weighted`, [2]; the baseline is 3."""
    good = s.rows.desirable
    value = torch.where(good, 1.5 * torch.sigmoid(-0.2 * (s.logratio[:, :2] - 3)), 0.7 * torch.sigmoid(0.2 * (s.logratio[:, :2] - 3)))
    return torch.stack([value[good].mean(), value[~good].mean()])


# sentence: (formula, value of every row, rows)
VALUES: dict[str, Value] = {
    "sppo at log-ratios .5 and -.2, win rates .8 and .3, beta .1 is ((.5 - 3)^2 + (-.2 + 2)^2) / 2 = 4.745": (
        row(partial(sppo, beta=0.1)),
        4.745,
        lambda: two_by_hand((0.5, -0.2), (0.8, 0.3)),
    ),
    "sppo there with win rates 1 and 0 is half of 43.29": (
        row(partial(sppo, beta=0.1)),
        43.29 / 2,
        lambda: two_by_hand((0.5, -0.2), (1.0, 0.0)),
    ),
    "sppo is 0 on its targets": (row(sppo3), 0.0, on_target),
    "sppo centred is 0 at the step of multiplicative weights": (row(partial(sppo3, centred=True)), 0.0, one_step),
    "sppo pulls nothing on its targets": (lambda s: gradient(row(sppo3), s)[:, 0], 0.0, on_target),
    "sppo's gradient at the reference is -(winrate - 1/2) / beta for each of two": (
        lambda s: gradient(row(partial(sppo, beta=0.1)), s)[:, 0],
        -3.0,
        lambda: two_by_hand((0.0, 0.0), (0.8, 0.3)),
    ),
    "apo_zero_unpaired at the reference is 1 for one good and one bad": (row(apo), 1.0, lambda: at_reference(every_second_good())),
    "bco at the reference is 2 ln 2 for one good and one bad": (row(bco), 2 * math.log(2), lambda: at_reference(every_second_good())),
    "bco with P(good) = .8 stops at beta r - delta = logit(.8)": (
        # four of five rows good: the mean gradient over rows at equal rewards, delta = 1 remembered of many values
        lambda s: gradient(row(partial(bco, beta=1.0)), s).sum()[None],
        0.0,
        remembering(1.0, 1e18, "delta", lambda: at_logit(0.8)),
    ),
}


def at_logit(p: float) -> Scored:
    """Rows with the share p of good responses, all at the same log-ratio 1 + logit(p)."""
    s = uneven()
    s = replace(s, logp=s.logp[:, :2], ref_logp=s.ref_logp[:, :2])
    return at(s, s.ref_logp + 1 + math.log(p / (1 - p)))


BETAS = {
    "kto running": lambda v: methods.kto(beta=v, baseline="running"),
    "apo-zero-unpaired": lambda v: methods.apo_zero_unpaired(beta=v),
    "bco": lambda v: methods.bco(beta=v),
}

SILENT = Context({}, pairs().rows.replace(ranked=False))

REFUSED: dict[str, Refusal] = {
    "a baseline of kto that is unknown": (lambda: probe(methods.kto(baseline="all")), "baseline is 'all'"),
    "a weight of kto that is no number": (lambda: probe(methods.kto(desirable_weight=math.nan)), "desirable_weight is nan"),
    "labels of bco that are missing": (lambda: bco(pairs()), "bco reads the label desirable"),
    "labels of apo_zero_unpaired that are missing": (lambda: apo(pairs()), "apo_zero_unpaired reads the label desirable"),
    "win rates of sppo that are missing": (lambda: sppo(pairs()), "winrate"),
    "an eta of sppo that is not above zero": (lambda: methods.sppo(eta=0.0), "eta is 0.0"),
    "one response of sppo alone": (lambda: methods.sppo(responses=1), "responses is 1"),
    "a choice of sppo's responses that is unknown": (lambda: methods.sppo(train_on="best"), "train_on is 'best'"),
    "unlabelled rows where labels are made": (lambda: draw.labelled(SILENT), "neither desirable labels nor ranked pairs"),
    "extremes of rows that nobody judged": (lambda: select.extremes(pairs().rows), "no win rates"),
}
