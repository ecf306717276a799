"""Facts of the losses of pairs beside dpo and ipo: hinge, slic, exo, discopop, nca, apo, bco-pair, sppo-hard, f-dpo, aot."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import vector_rows
from facts import (
    B,
    Facts,
    Limit,
    Refusal,
    Value,
    at,
    at_reference,
    gap_of,
    gradient,
    h,
    labelled,
    labels_off,
    normal,
    over_count,
    pairs,
    prefer,
    row,
    soft_pairs,
    swapped,
)
from preftune import methods
from preftune.objectives import absolute, auxiliary, divergences, pairwise, pointwise, transport
from preftune.probe import probe
from preftune.types import Objective, Scored

hinge, hinge_free, exo, discopop = pairwise.hinge, pairwise.hinge_free, pairwise.exo, pairwise.discopop
dpo, ipo = pairwise.dpo, pairwise.ipo
nca, apo_zero, apo_down = absolute.nca, absolute.apo_zero, absolute.apo_down
bco, sppo_hard = absolute.bco_pair, absolute.sppo_hard
f_dpo, under = divergences.f_dpo, divergences.under
aot, aot_unpaired = transport.aot, transport.aot_unpaired

unshifted = partial(bco, beta=0.5, shift="none")
nca5, exo5, sppo5 = partial(nca, beta=0.5), partial(exo, beta=0.5, label_smoothing=0.1), partial(sppo_hard, beta=0.5)
forward, js = partial(f_dpo, divergence="forward_kl"), partial(f_dpo, divergence="js")
LOGIT_EXO = math.log(0.999 / 0.001)  # where exo is 0 at its default smoothing

SHIPPED = {
    "hinge": Facts(methods.hinge(), shift=True),
    "slic": Facts(methods.slic()),
    # not beyond: the js and reverse-KL scores are finite everywhere; the domain is that of the exponential ones
    "f-dpo": Facts(methods.f_dpo(), steady=True, swap=True, beyond=False),
    "f-dpo reverse_kl": Facts(methods.f_dpo(divergence="reverse_kl"), steady=True, shift=True, swap=True, beyond=False),
    "f-dpo forward_kl": Facts(methods.f_dpo(divergence="forward_kl"), steady=True, swap=True),
    "f-dpo alpha": Facts(methods.f_dpo(divergence="alpha", alpha=0.3), steady=True, swap=True),
    "f-dpo alpha_trl smoothed": Facts(methods.f_dpo(divergence="alpha", alpha_trl=0.3, label_smoothing=0.1), swap=True),
    "exo": Facts(methods.exo(), shift=True),
    "nca": Facts(methods.nca()),
    "apo-zero": Facts(methods.apo_zero(), steady=True),
    # not apart: at the reference its two terms cancel for the preferred response
    "apo-down": Facts(methods.apo_down(), apart=False),
    # not smooth: the shift is a constant of the gradient although it moves with the rewards; held still in test_losses_facts.py
    "bco-pair": Facts(methods.bco_pair(), steady=True, smooth=False),
    "sppo-hard": Facts(methods.sppo_hard(), swap=True),
    # not apart: at the reference the first step lowers the margin, as its note says
    "discopop": Facts(methods.discopop(), apart=False, shift=True),
    "aot": Facts(methods.aot(), steady=True, shift=True),
    "aot smoothed": Facts(methods.aot(label_smoothing=0.1), shift=True),
    "aot-unpaired": Facts(methods.aot_unpaired(), steady=True, coupled=True),
}


# --- rows -----------------------------------------------------------------------------------------------------------


def rewards(r0: float, r1: float) -> Scored:
    """Pairs at these log-ratios."""
    s = pairs()
    return at(s, s.ref_logp + torch.tensor([r0, r1], dtype=torch.float64))


def shifted_by(delta: float, s: Scored) -> Scored:
    """Rows that come after so many rewards of this mean that their own do not move it."""
    number = partial(torch.tensor, dtype=torch.float64)
    return replace(s, running={"bco_mean": number(delta), "bco_count": number(1e30)})


def both_labels(s: Scored) -> Scored:
    """Each pair as one desirable and one undesirable response."""
    good = torch.tensor([[True, False]] * B)
    return replace(s, rows=s.rows.replace(ranked=False, desirable=good))


def with_winrates(s: Scored) -> Scored:
    """A soft label p as the win rates p and 1 - p."""
    p = s.rows.prefer
    return replace(s, rows=s.rows.replace(winrate=torch.stack([p, 1 - p], 1)))


def ordered_margins() -> Scored:
    """The policy's margins are in the order of the reference's, the rows are not."""
    s = pairs()
    margin = s.ref_logp[:, 0] - s.ref_logp[:, 1]
    return at(s, torch.stack([s.ref_logp[:, 1] + 1.5 * margin + 3, s.ref_logp[:, 1]], 1))


def ordered_columns() -> Scored:
    """Log-ratios of the preferred responses are in the order of those of the others."""
    s = pairs()
    ratio = normal(B)
    return at(s, s.ref_logp + torch.stack([3 * ratio + 0.5, ratio], 1))


def alone(objective: Objective) -> Callable[[Scored], Tensor]:
    """Each row as a batch of one."""

    def one(s: Scored, i: int) -> Tensor:
        part = slice(i, i + 1)
        return objective(replace(s, rows=s.rows.take([i]), logp=s.logp[part], ref_logp=s.ref_logp[part], length=s.length[part])).row

    return lambda s: torch.cat([one(s, i) for i in range(B)])


def margins(s: Scored) -> tuple[Tensor, Tensor]:
    """Of the policy and of the reference."""
    return s.logp[:, 0] - s.logp[:, 1], s.ref_logp[:, 0] - s.ref_logp[:, 1]


def in_order(u: Tensor, v: Tensor, beta: float) -> Tensor:
    """The sum over quantiles of two samples, [1]."""
    return -logsigmoid(beta * (u.sort().values - v.sort().values)).sum()[None]


def q(s: Scored, beta: float) -> Tensor:
    return torch.sigmoid(h(s, beta))


def slope(objective: Objective, column: int = 0) -> Callable[[Scored], Tensor]:
    return lambda s: gradient(row(objective), s)[:, column]


def f_gap(score: Callable[[Tensor], Tensor]) -> Callable[[Scored], Tensor]:
    """-logsigmoid of half the difference of two scores of u = pi / pi_ref, written down without any care."""
    u = lambda s: s.logratio.exp()
    return lambda s: -logsigmoid(0.5 * (score(u(s))[:, 0] - score(u(s))[:, 1]))


def near() -> Scored:
    """Pairs a few nats from the reference, where nothing needs care."""
    s = pairs()
    return at(s, s.ref_logp + normal(B, 2))


# --- identities -----------------------------------------------------------------------------------------------------

# sentence: (left, right, rows)
LIMITS: dict[str, Limit] = {
    "hinge is beta max(0, 1/beta - gap)": (row(hinge), lambda s: 0.1 * torch.relu(10.0 - h(s, 1.0)), pairs),
    "hinge is hinge_free on log-ratios with delta 1/beta, times beta": (
        row(partial(hinge, beta=0.2)),
        lambda s: 0.2 * hinge_free(replace(s, logp=s.logratio), delta=5.0).row,
        pairs,
    ),
    "hinge of a pair inside the margin falls by h": (row(hinge), lambda s: 1 - h(s, 0.1), lambda: gap_of(9.0)),
    "slic is max(0, delta - lead) - lam logp(chosen)": (
        row(methods.slic(2.0, 0.3).objective),
        lambda s: torch.relu(2.0 - s.logp[:, 0] + s.logp[:, 1]) - 0.3 * s.logp[:, 0],
        pairs,
    ),
    "slic with lam 0 is its hinge": (row(methods.slic(2.0, 0.0).objective), row(partial(hinge_free, delta=2.0)), pairs),
    "slic's hinge sees the lead only": (row(hinge_free), lambda s: hinge_free(replace(s, logp=s.logp - 7.0)).row, pairs),
    "slic beyond the margin is the likelihood alone": (
        row(methods.slic(lam=0.3).objective),
        lambda s: 0.3 * auxiliary.nll(s, aggregation="seq_sum").row,
        lambda: ahead_by(5.0),
    ),
    "exo is the KL divergence from the policy's two-point law to the smoothed labels": (
        row(exo5),
        lambda s: q(s, 0.5) * (q(s, 0.5) / 0.9).log() + (1 - q(s, 0.5)) * ((1 - q(s, 0.5)) / 0.1).log(),
        near,
    ),
    "exo: exchanging winner and loser adds (2q - 1) log((1-e)/e)": (
        lambda s: exo5(swapped(s)).row,
        lambda s: exo5(s).row + (2 * q(s, 0.5) - 1) * math.log(9),
        pairs,
    ),
    "exo's slope is beta q (1-q) (h - log((1-e)/e))": (
        slope(exo5),
        lambda s: 0.5 * q(s, 0.5) * torch.sigmoid(-h(s, 0.5)) * (h(s, 0.5) - math.log(9)),
        pairs,
    ),
    "discopop with tau 1 is sigmoid(-h) (1 - logsigmoid(h))": (
        row(partial(discopop, beta=0.5, tau=1.0)),
        lambda s: torch.sigmoid(-h(s, 0.5)) * (1 - logsigmoid(h(s, 0.5))),
        pairs,
    ),
    "discopop blends the logistic and the exponential loss": (
        row(partial(discopop, beta=0.5, tau=0.2)),
        lambda s: torch.lerp(-logsigmoid(h(s, 0.5)), torch.exp(-h(s, 0.5)), torch.sigmoid(h(s, 2.5))),
        near,
    ),
    "discopop of a badly ordered pair is dpo": (row(discopop), row(partial(dpo, beta=0.05)), lambda: gap_of(-100.0)),
    "discopop of a well ordered pair is e^-h": (row(discopop), lambda s: torch.exp(-h(s, 0.05)), lambda: gap_of(100.0)),
    "nca is half of bco without shift plus half of both logistic losses of the chosen response": (
        row(nca5),
        lambda s: (unshifted(s).row - logsigmoid(0.5 * s.logratio[:, 0]) - logsigmoid(-0.5 * s.logratio[:, 0])) / 2,
        pairs,
    ),
    "nca: the rejected response is pushed half as hard as by bco without shift": (
        slope(nca5, 1),
        lambda s: gradient(row(unshifted), s)[:, 1] / 2,
        pairs,
    ),
    "apo_zero is kto with baseline 0": (row(apo_zero), row(pointwise.kto), lambda: labelled(-3.0)),
    "apo_zero sums what its unpaired form averages": (
        lambda s: over_count(apo_zero, s),
        lambda s: 2 * over_count(pointwise.apo_zero_unpaired, s),
        lambda: both_labels(pairs()),
    ),
    "apo_zero: exchanging winner and loser turns it around 1": (lambda s: apo_zero(swapped(s)).row, lambda s: 2 - apo_zero(s).row, pairs),
    "apo_down is sigmoid(r0) + sigmoid(-h)": (
        row(partial(apo_down, beta=0.5)),
        lambda s: torch.sigmoid(0.5 * s.logratio[:, 0]) + torch.sigmoid(-h(s, 0.5)),
        pairs,
    ),
    "apo_down and apo_down of the other order add up to 1 and both sigmoids": (
        lambda s: apo_down(s).row + apo_down(swapped(s)).row,
        lambda s: 1 + torch.sigmoid(0.1 * s.logratio).sum(1),
        pairs,
    ),
    "bco_pair without shift is two logistic losses": (
        row(unshifted),
        lambda s: -logsigmoid(0.5 * s.logratio[:, 0]) - logsigmoid(-0.5 * s.logratio[:, 1]),
        pairs,
    ),
    "bco_pair remembering a mean of 0 is bco_pair without shift": (
        lambda s: bco(shifted_by(0.0, s), beta=0.5).row,
        row(unshifted),
        pairs,
    ),
    "bco_pair's first shift is the mean reward of the batch": (
        row(partial(bco, beta=0.5)),
        lambda s: bco(shifted_by(0.5 * float(s.logratio.detach().mean()), s), beta=0.5).row,
        pairs,
    ),
    "bco_pair: a constant on all log-ratios moves the shift with them": (row(bco), lambda s: bco(replace(s, logp=s.logp + 4.0)).row, pairs),
    "bco_pair: the same constant on rewards and shift changes nothing": (
        lambda s: bco(shifted_by(0.7, s), beta=0.5).row,
        lambda s: bco(shifted_by(0.7 + 0.5 * 4.0, replace(s, logp=s.logp + 4.0)), beta=0.5).row,
        pairs,
    ),
    "bco_pair: exchanging winner and loser adds h": (
        lambda s: bco(swapped(s), beta=0.5).row,
        lambda s: bco(s, beta=0.5).row + h(s, 0.5),
        pairs,
    ),
    "bco_pair is unpaired bco on both responses": (row(bco), row(pointwise.bco), lambda: both_labels(pairs())),
    "sppo_hard is ipo at half the beta plus the squared sum of log-ratios, halved": (
        row(sppo5),
        lambda s: (ipo(s, beta=0.25).row + s.logratio.sum(1) ** 2) / 2,
        pairs,
    ),
    "sppo_hard is twice sppo with win rates p and 1 - p": (
        row(sppo5),
        lambda s: 2 * pointwise.sppo(s, beta=0.5).row,
        lambda: with_winrates(soft_pairs()),
    ),
    "sppo_hard: a sure soft label is a hard one": (lambda s: sppo5(prefer(1.0, s)).row, row(sppo5), pairs),
    "sppo_hard: a soft label of zero is the other order": (lambda s: sppo5(prefer(0.0, s)).row, lambda s: sppo5(swapped(s)).row, pairs),
    "sppo_hard: a soft label of one half is the squared log-ratios": (
        lambda s: sppo5(prefer(0.5, s)).row,
        lambda s: (s.logratio**2).sum(1),
        pairs,
    ),
    "f_dpo under the reverse KL is dpo": (row(partial(f_dpo, divergence="reverse_kl")), row(dpo), soft_pairs),
    "f_dpo under the reverse KL with smoothing is cdpo": (
        row(methods.f_dpo(0.3, "reverse_kl", label_smoothing=0.1).objective),
        row(partial(dpo, beta=0.3, label_smoothing=0.1)),
        pairs,
    ),
    # (1 - e^(-alpha a)) / alpha = a - alpha a^2 / 2 + ..: at alpha = 1e-15 the second term is below a rounding
    "f_dpo with alpha -> 0 is dpo": (row(partial(f_dpo, divergence="alpha", alpha=1e-15)), row(dpo), pairs),
    "f_dpo with alpha -> 1 is the forward KL": (row(partial(f_dpo, divergence="alpha", alpha=1 - 2**-53)), row(forward), pairs),
    "f_dpo with TRL's alpha -> 1 is dpo": (row(methods.f_dpo(divergence="alpha", alpha_trl=1 - 2**-53).objective), row(dpo), pairs),
    "f_dpo with TRL's alpha .3 is the paper's .7": (
        row(methods.f_dpo(divergence="alpha", alpha_trl=0.3).objective),
        row(methods.f_dpo(divergence="alpha", alpha=0.7).objective),
        pairs,
    ),
    "f_dpo with alpha .5 is the same in the paper and in TRL": (
        row(methods.f_dpo(divergence="alpha", alpha_trl=0.5).objective),
        row(methods.f_dpo(divergence="alpha", alpha=0.5).objective),
        pairs,
    ),
    "f_dpo under the forward KL compares -1/u": (row(partial(forward, beta=0.5)), f_gap(lambda u: -1 / u), near),
    "f_dpo under Jensen-Shannon compares log(2u/(1+u))": (row(partial(js, beta=0.5)), f_gap(lambda u: torch.log(2 * u / (1 + u))), near),
    "f_dpo under alpha .5 compares -2/sqrt(u)": (
        row(partial(f_dpo, beta=0.5, divergence="alpha", alpha=0.5)),
        f_gap(lambda u: -2 / u.sqrt()),
        near,
    ),
    "f_dpo: a soft label is the mean over both orders": (
        row(js),
        lambda s: s.rows.prefer * js(labels_off(s)).row + (1 - s.rows.prefer) * js(labels_off(swapped(s))).row,
        soft_pairs,
    ),
    "f_dpo under Jensen-Shannon is dpo where both responses are far below the reference": (row(js), row(dpo), lambda: lost(60.0)),
    "any loss of log-ratios under the reverse KL is itself": (
        lambda s: exo5(under(s, divergence="reverse_kl")).row,
        row(exo5),
        pairs,
    ),
    "ipo under Jensen-Shannon regresses the gap of its scores": (
        lambda s: ipo(under(s, divergence="js")).row,
        lambda s: (torch.log(s.logp.exp() / (s.ref_logp.exp() + s.logp.exp())).diff(dim=1)[:, 0] + 5) ** 2,
        near,
    ),
    "aot in batches of one is dpo": (alone(partial(aot, beta=0.3)), row(partial(dpo, beta=0.3)), pairs),
    "aot_unpaired in batches of one is dpo": (alone(partial(aot_unpaired, beta=0.3)), row(partial(dpo, beta=0.3)), pairs),
    "aot in batches of one with smoothing is cdpo": (
        alone(partial(aot, beta=0.3, label_smoothing=0.1)),
        row(partial(dpo, beta=0.3, label_smoothing=0.1)),
        pairs,
    ),
    "aot of margins in the reference's order is dpo": (row(partial(aot, beta=0.3)), row(partial(dpo, beta=0.3)), ordered_margins),
    "aot_unpaired of columns in one order is dpo": (row(partial(aot_unpaired, beta=0.3)), row(partial(dpo, beta=0.3)), ordered_columns),
    "aot's rows add up to the sum over quantiles": (
        lambda s: aot(s, beta=0.3).row.sum()[None],
        lambda s: in_order(*margins(s), 0.3),
        pairs,
    ),
    "aot_unpaired's rows add up to the sum over quantiles": (
        lambda s: aot_unpaired(s, beta=0.3).row.sum()[None],
        lambda s: in_order(s.logratio[:, 0], s.logratio[:, 1], 0.3),
        pairs,
    ),
    "aot_unpaired does not care who was paired with whom": (
        lambda s: aot_unpaired(s, beta=0.3).row.sum()[None],
        lambda s: aot_unpaired(other_partners(s), beta=0.3).row.sum()[None],
        pairs,
    ),
    "aot with smoothing mixes both orders of every quantile": (
        row(partial(aot, beta=0.3, label_smoothing=0.1)),
        lambda s: -0.9 * logsigmoid(quantile_gap(s, 0.3)) - 0.1 * logsigmoid(-quantile_gap(s, 0.3)),
        pairs,
    ),
}


def ahead_by(nats: float) -> Scored:
    """The policy prefers the chosen response by these nats."""
    s = pairs()
    return at(s, torch.stack([s.logp[:, 1] + nats, s.logp[:, 1]], 1))


def lost(nats: float) -> Scored:
    """Both responses lie this far below the reference: log 2 + logsigmoid(a) is log 2 + a up to e^-nats."""
    s = near()
    return at(s, s.logp - nats)


def other_partners(s: Scored) -> Scored:
    """Every rejected response moved to the next row."""
    moved = lambda x: torch.stack([x[:, 0], x[:, 1].roll(1)], 1)
    return replace(s, logp=moved(s.logp), ref_logp=moved(s.ref_logp))


def quantile_gap(s: Scored, beta: float) -> Tensor:
    """beta times a row's margin less the reference's of the same rank, by counting."""
    u, v = margins(s)
    below = [int((u < x).sum()) for x in u.detach()]
    return beta * (u - v.sort().values[below])


# the left side is a derivative already
VALUE_ONLY = {
    "exo's slope is beta q (1-q) (h - log((1-e)/e))",
    "nca: the rejected response is pushed half as hard as by bco without shift",
}

# --- numbers --------------------------------------------------------------------------------------------------------


def at_ref() -> Scored:
    return at_reference(pairs())


def noisy(objective: Objective, p: float) -> Callable[[Scored], Tensor]:
    """The expected loss where column 0 is preferred with probability p."""
    return lambda s: p * objective(s).row + (1 - p) * objective(swapped(s)).row


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# sentence: (formula, value of every row, rows)
VALUES: dict[str, Value] = {
    "hinge at the reference is 1": (row(hinge), 1.0, at_ref),
    "hinge pulls with beta inside its margin": (slope(hinge), -0.1, lambda: gap_of(9.9)),
    "hinge pushes the loser with beta inside its margin": (slope(hinge, 1), 0.1, lambda: gap_of(-300.0)),
    "hinge pulls nothing outside": (slope(hinge), 0.0, lambda: gap_of(10.1)),
    "slic's hinge pulls with 1 whatever delta is": (slope(partial(hinge_free, delta=7.0)), -1.0, lambda: ahead_by(6.9)),
    "slic pulls with lam beyond the margin": (slope(methods.slic(lam=0.3).objective), -0.3, lambda: ahead_by(1.1)),
    "exo at the reference is -log(4 e (1-e)) / 2 = 2.761231": (row(exo), -math.log(4 * 0.001 * 0.999) / 2, at_ref),
    "exo is 0 at h = log((1-e)/e)": (row(partial(exo, beta=1.0)), 0.0, lambda: gap_of(LOGIT_EXO)),
    "exo pulls nothing there": (slope(partial(exo, beta=1.0)), 0.0, lambda: gap_of(LOGIT_EXO)),
    "exo's ceiling is -log e = 6.907755": (row(partial(exo, beta=1.0)), -math.log(0.001), lambda: gap_of(-300.0)),
    "exo's floor far above its target is -log(1-e)": (row(partial(exo, beta=1.0)), -math.log(0.999), lambda: gap_of(300.0)),
    "exo hardly moves a pair at h = -20": (
        slope(partial(exo, beta=1.0)),
        sigmoid(-20) * sigmoid(20) * (-20 - LOGIT_EXO),  # -5.5e-8
        lambda: gap_of(-20.0),
    ),
    "discopop at the reference is (1 + ln 2) / 2": (row(discopop), (1 + math.log(2)) / 2, at_ref),
    "discopop lowers the winner at the reference": (slope(discopop), 0.05 * ((1 - math.log(2)) / (4 * 0.05) - 0.75), at_ref),
    "discopop with tau (1 - ln 2) / 3 has no slope at the reference": (slope(partial(discopop, tau=(1 - math.log(2)) / 3)), 0.0, at_ref),
    "discopop's slope tends to -beta for badly ordered pairs": (slope(discopop), -0.05 * sigmoid(15), lambda: gap_of(-300.0)),
    "nca at the reference is 2 ln 2": (row(nca), 2 * math.log(2), at_ref),
    "nca leaves the chosen response at beta logratio = ln 2": (slope(partial(nca, beta=1.0)), 0.0, lambda: rewards(math.log(2), 3.0)),
    "nca's infimum is -log(2/3) - log(1/3) / 2 = 0.954771": (
        row(partial(nca, beta=1.0)),
        math.log(1.5) + math.log(3) / 2,
        lambda: rewards(math.log(2), -300.0),
    ),
    "apo_zero at the reference is 1": (row(apo_zero), 1.0, at_ref),
    "apo_down at the reference is 1": (row(apo_down), 1.0, at_ref),
    "apo_zero raises the winner at the reference with beta / 4": (slope(apo_zero), -0.025, at_ref),
    "apo_down leaves the winner alone at the reference": (slope(apo_down), 0.0, at_ref),
    "apo_down lowers the loser at the reference with beta / 4": (slope(apo_down, 1), 0.025, at_ref),
    "apo_down lowers both where the gap is right": (slope(apo_down), 0.1 * sigmoid(1) * sigmoid(-1), lambda: rewards(10.0, -1000.0)),
    "bco_pair at the reference is 2 ln 2": (row(bco), 2 * math.log(2), at_ref),
    "bco_pair without shift at the reference is 2 ln 2": (row(unshifted), 2 * math.log(2), at_ref),
    "bco_pair with P = .8 stops at r - delta = logit(.8)": (
        lambda s: gradient(noisy(partial(bco, beta=1.0), 0.8), shifted_by(2.0, s))[:, 0],
        0.0,
        lambda: rewards(2 + math.log(4), -1.0),
    ),
    "sppo_hard at the reference is 1 / (2 beta^2)": (row(partial(sppo_hard, beta=0.1)), 50.0, at_ref),
    "sppo_hard pulls with 1 / beta at the reference": (slope(sppo_hard), -1000.0, at_ref),
    "sppo_hard is 0 on its targets": (row(sppo5), 0.0, lambda: rewards(1.0, -1.0)),
    "sppo_hard with prefer .8 is 0 at +-.3 / beta": (lambda s: sppo5(prefer(0.8, s)).row, 0.0, lambda: rewards(0.6, -0.6)),
    "f_dpo at the reference is ln 2 under the forward KL": (row(forward), math.log(2), at_ref),
    "f_dpo at the reference is ln 2 under Jensen-Shannon": (row(js), math.log(2), at_ref),
    "f_dpo under the forward KL starts like dpo": (slope(forward), -0.05, at_ref),
    "f_dpo under alpha starts like dpo": (slope(partial(f_dpo, divergence="alpha", alpha=0.3)), -0.05, at_ref),
    "f_dpo under Jensen-Shannon starts half as steep": (slope(js), -0.025, at_ref),
    "f_dpo under Jensen-Shannon leaves a winner that has won": (slope(js), 0.0, lambda: rewards(40.0, 0.0)),
    "f_dpo under the forward KL pulls a lost winner with e^-a": (slope(forward), -0.1 * math.exp(20), lambda: rewards(-20.0, 0.0)),
    "the scores of all divergences are 0 at the reference": (
        lambda s: torch.stack([score(s.logratio, 0.3).abs() for score in divergences.SCORES.values()]).sum((0, 2)),
        0.0,
        at_ref,
    ),
    "aot at the reference is ln 2": (row(aot), math.log(2), at_ref),
    "aot_unpaired at the reference is ln 2": (row(aot_unpaired), math.log(2), at_ref),
    "aot_unpaired with every winner g nats above every quantile of the losers is dpo at g": (
        row(partial(aot_unpaired, beta=1.0)),
        math.log1p(math.exp(-2.0)),
        lambda: raised_by(2.0),
    ),
}


def raised_by(g: float) -> Scored:
    """Log-ratios of the winners are those of the losers plus g, in another order of rows."""
    s = pairs()
    ratio = normal(B)
    return at(s, s.ref_logp + torch.stack([ratio + g, ratio.roll(7)], 1))


# --- refusals -------------------------------------------------------------------------------------------------------

BETAS = {
    "hinge": lambda v: methods.hinge(beta=v),
    "f-dpo": lambda v: methods.f_dpo(beta=v),
    "f-dpo forward_kl": lambda v: methods.f_dpo(beta=v, divergence="forward_kl"),
    "exo": lambda v: methods.exo(beta=v),
    "nca": lambda v: methods.nca(beta=v),
    "apo-zero": lambda v: methods.apo_zero(beta=v),
    "apo-down": lambda v: methods.apo_down(beta=v),
    "bco-pair": lambda v: methods.bco_pair(beta=v),
    "sppo-hard": lambda v: methods.sppo_hard(beta=v),
    "discopop": lambda v: methods.discopop(beta=v),
    "aot": lambda v: methods.aot(beta=v),
    "aot-unpaired": lambda v: methods.aot_unpaired(beta=v),
}

FLIP_RATES = {
    "exo": lambda e: methods.exo(label_smoothing=e),
    "f-dpo": lambda e: methods.f_dpo(label_smoothing=e),
    "aot": lambda e: methods.aot(label_smoothing=e),
    "aot-unpaired": lambda e: methods.aot_unpaired(label_smoothing=e),
}

REFUSED: dict[str, Refusal] = {
    "exo without smoothing": (lambda: probe(methods.exo(label_smoothing=0.0)), "label_smoothing is 0.0.*logarithm"),
    "a margin of slic that is not above zero": (lambda: probe(methods.slic(delta=0.0)), "delta is 0.0"),
    "a NaN likelihood of slic": (lambda: probe(methods.slic(lam=math.nan)), "nan"),
    "a width of discopop that is not above zero": (lambda: methods.discopop(tau=0.0), "tau is 0.0"),
    "a width of discopop above one": (lambda: probe(methods.discopop(tau=1.5)), "tau is 1.5, needed at most 1"),
    "a shift of bco_pair that is unknown": (lambda: probe(methods.bco_pair(shift="batch")), "shift is 'batch'.*running, none"),
    "a divergence that is unknown": (lambda: probe(methods.f_dpo(divergence="chi2")), "divergence is 'chi2'.*forward_kl, js, alpha"),
    "the divergence alpha without its alpha": (lambda: methods.f_dpo(divergence="alpha"), "needed exactly one of the alphas"),
    "both alphas": (lambda: methods.f_dpo(divergence="alpha", alpha=0.3, alpha_trl=0.7), "alpha=0.3 and alpha_trl=0.7"),
    "an alpha beside another divergence": (lambda: methods.f_dpo(divergence="js", alpha=0.3), "divergence=js, alpha=0.3"),
    "TRL's alpha beside another divergence": (lambda: methods.f_dpo(divergence="forward_kl", alpha_trl=0.3), "alpha_trl=0.3"),
    "an alpha of the objective beside another divergence": (lambda: js(pairs(), alpha=0.3), "divergence is js and alpha is 0.3"),
    "the objective's divergence alpha without its alpha": (lambda: f_dpo(pairs(), divergence="alpha"), "alpha is None"),
    "an alpha of one": (lambda: probe(methods.f_dpo(divergence="alpha", alpha=1.0)), "alpha is 1.0.*forward_kl"),
    "a TRL alpha of one": (lambda: probe(methods.f_dpo(divergence="alpha", alpha_trl=1.0)), "alpha is 0.0.*reverse_kl"),
    "a NaN alpha": (lambda: probe(methods.f_dpo(divergence="alpha", alpha=math.nan)), "alpha is nan"),
}


# --- vectors --------------------------------------------------------------------------------------------------------

VECTORS: dict[str, Callable[..., Objective]] = {
    "hinge_norm": lambda beta: partial(hinge, beta=beta),
    "slic_hf": lambda delta, lam: methods.slic(delta, lam).objective,
    "exo_pair": lambda beta, eps: partial(exo, beta=beta, label_smoothing=eps),
    "nca_pair": lambda beta: partial(nca, beta=beta),
    "bco_pair": lambda beta, delta: partial(bco, beta=beta),
    "sppo_hard": lambda beta: partial(sppo_hard, beta=beta),
    "apo_zero": lambda beta: partial(apo_zero, beta=beta),
    "apo_down": lambda beta: partial(apo_down, beta=beta),
    "discopop": lambda beta, tau: partial(discopop, beta=beta, tau=tau),
    "fdpo_forward_kl": lambda beta: partial(forward, beta=beta),
    "fdpo_js": lambda beta: partial(js, beta=beta),
    "fdpo_alpha_paper": lambda beta, alpha: methods.f_dpo(beta, "alpha", alpha=alpha).objective,
    "fdpo_alpha_trl": lambda beta, alpha: methods.f_dpo(beta, "alpha", alpha_trl=alpha).objective,
}
VECTOR_ROWS = {"bco_pair": lambda params: shifted_by(params["delta"], vector_rows.pairs())}
