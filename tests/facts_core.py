"""Facts of the first methods: dpo, ipo, simpo, kto, orpo, rdpo, rpo, tr-dpo, sft, online-ipo, egpo."""

from __future__ import annotations

import math
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
    at_gap,
    at_reference,
    equal_means,
    gap_of,
    gradient,
    h,
    judged_pairs,
    labelled,
    labels_off,
    law,
    normal,
    over_count,
    pairs,
    prefer,
    row,
    soft_pairs,
    swapped,
)
from preftune import methods
from preftune.objectives import auxiliary, games, pairwise, pointwise, reference_free
from preftune.probe import probe
from preftune.reference import frozen, soft
from preftune.types import Scored, needs_of

SHIPPED = {
    "sft": Facts(methods.sft(), steady=True),
    "sft seq_mean": Facts(methods.sft("seq_mean"), steady=True),
    "sft seq_sum": Facts(methods.sft("seq_sum"), steady=True),
    "dpo": Facts(methods.dpo(), steady=True, shift=True, swap=True),
    "dpo smoothed": Facts(methods.dpo(label_smoothing=0.1), shift=True, swap=True),
    "ipo": Facts(methods.ipo(), shift=True, swap=True),
    "ipo-avg": Facts(methods.ipo_avg(), swap=True),
    "simpo": Facts(methods.simpo(gamma_beta_ratio=0.5), steady=True),
    "kto": Facts(methods.kto(undesirable_weight=1.33), steady=True, swap=True),
    "orpo": Facts(methods.orpo(), steady=True),
    "rdpo": Facts(methods.rdpo(), steady=True, shift=True),
    "rpo": Facts(methods.rpo(), steady=True),
    "rpo-avg": Facts(methods.rpo_avg(), steady=True),
    "tr-dpo": Facts(methods.tr_dpo(), steady=True, shift=True, swap=True),
    "online-ipo": Facts(methods.online_ipo(), shift=True, swap=True),
    "egpo": Facts(methods.egpo(), shift=True, swap=True),
}
dpo, ipo, ipo_avg, rdpo = pairwise.dpo, pairwise.ipo, pairwise.ipo_avg, pairwise.rdpo
dpo5, rdpo5 = partial(dpo, beta=0.5), partial(rdpo, beta=0.5, label_smoothing=0.1)
online = partial(games.online_ipo, beta=0.3)
kto = partial(pointwise.kto, beta=0.2, desirable_weight=1.5, undesirable_weight=0.7)
L = 20.0

# sentence: (left, right, rows)
LIMITS: dict[str, Limit] = {
    "dpo: exchanging winner and loser adds h": (lambda s: dpo5(swapped(s)).row, lambda s: dpo5(s).row + h(s, 0.5), pairs),
    "rdpo with flip rate 0 is dpo": (row(partial(rdpo, label_smoothing=0.0)), row(dpo), pairs),
    "rpo with eta 0 is dpo": (row(methods.rpo(0.1, 0.0).objective), row(dpo), pairs),
    "rpo_avg with eta 0 is dpo": (row(methods.rpo_avg(0.1, 0.0).objective), row(dpo), pairs),
    "tr_dpo's loss is dpo": (row(methods.tr_dpo(beta=0.1).objective), row(dpo), soft_pairs),
    "orpo with lam 0 is the likelihood of the chosen": (row(methods.orpo(0.0).objective), row(auxiliary.nll), pairs),
    "cdpo is dpo plus eps h": (row(partial(dpo5, label_smoothing=0.1)), lambda s: dpo5(s).row + 0.1 * h(s, 0.5), pairs),
    "cdpo mixes both orders": (
        row(partial(dpo5, label_smoothing=0.1)),
        lambda s: 0.9 * dpo5(s).row + 0.1 * dpo5(swapped(s)).row,
        pairs,
    ),
    "rdpo is dpo minus eps h / (1 - 2 eps)": (row(rdpo5), lambda s: dpo5(s).row - 0.1 / 0.8 * h(s, 0.5), pairs),
    "rdpo under flips is dpo on clean labels": (lambda s: 0.9 * rdpo5(s).row + 0.1 * rdpo5(swapped(s)).row, row(dpo5), pairs),
    "dpo: a sure soft label is a hard one": (lambda s: dpo5(prefer(1.0, s)).row, row(dpo5), pairs),
    "dpo: a soft label of zero is the other order": (lambda s: dpo5(prefer(0.0, s)).row, lambda s: dpo5(swapped(s)).row, pairs),
    "dpo: a soft label is the mean over both orders": (
        row(dpo5),
        lambda s: s.rows.prefer * dpo5(labels_off(s)).row + (1 - s.rows.prefer) * dpo5(labels_off(swapped(s))).row,
        soft_pairs,
    ),
    "dpo: prefer = 0.9 is smoothing 0.1": (lambda s: dpo5(prefer(0.9, s)).row, row(partial(dpo5, label_smoothing=0.1)), pairs),
    "dpo: smoothing a soft label p is the soft label (1-e) p + e (1-p)": (
        lambda s: dpo5(prefer(0.8, s), label_smoothing=0.1).row,
        lambda s: dpo5(prefer(0.9 * 0.8 + 0.1 * 0.2, s)).row,
        pairs,
    ),
    "dpo: a soft label of one half is log(2 cosh(h/2))": (
        lambda s: dpo5(prefer(0.5, s)).row,
        lambda s: torch.logaddexp(h(s, 0.5) / 2, -h(s, 0.5) / 2),
        pairs,
    ),
    "ipo: a sure soft label is a hard one": (lambda s: ipo(prefer(1.0, s)).row, row(ipo), pairs),
    "ipo: a soft label is the mean over both orders": (
        row(ipo),
        lambda s: s.rows.prefer * ipo(labels_off(s)).row + (1 - s.rows.prefer) * ipo(labels_off(swapped(s))).row,
        soft_pairs,
    ),
    "ipo: a soft label of one half is g^2 + t^2": (lambda s: ipo(prefer(0.5, s)).row, lambda s: h(s, 1.0) ** 2 + 25, pairs),
    "ipo is symmetric about its target": (
        row(ipo),
        lambda s: ipo(at_gap(s, 2 * 5 - h(s, 1.0))).row,
        pairs,
    ),
    "ipo_avg: a sure soft label is a hard one": (lambda s: ipo_avg(prefer(1.0, s)).row, row(ipo_avg), pairs),
    "ipo_avg with equal lengths L is ipo with beta / L, divided by L^2": (
        row(ipo_avg),
        lambda s: ipo(s, beta=0.1 / L).row / L**2,
        lambda: pairs(equal_length=L),
    ),
    "ipo_avg with one token is ipo": (row(ipo_avg), row(ipo), lambda: pairs(equal_length=1)),
    "rpo is dpo plus eta beta times the summed likelihood": (
        row(methods.rpo(0.5, 0.2).objective),
        lambda s: dpo5(s).row + 0.2 * 0.5 * auxiliary.nll(s, aggregation="seq_sum").row,
        soft_pairs,
    ),
    "rpo with equal lengths L is rpo_avg with eta beta L": (
        row(methods.rpo(0.5, 0.2).objective),
        row(methods.rpo_avg(0.5, 0.2 * 0.5 * L).objective),
        lambda: pairs(equal_length=L),
    ),
    "sft: the token mean equals the row mean where lengths are alike": (
        lambda s: over_count(partial(auxiliary.nll, aggregation="tok_mean"), s),
        lambda s: over_count(auxiliary.nll, s),
        lambda: pairs(equal_length=L),
    ),
    "sft: with one token all aggregations agree": (
        row(partial(auxiliary.nll, aggregation="seq_sum")),
        row(auxiliary.nll),
        lambda: pairs(equal_length=1),
    ),
    "simpo with gamma 0 and equal lengths L is dpo without a reference at beta / L": (
        row(partial(reference_free.simpo, beta=2.0, gamma=0.0)),
        lambda s: dpo(replace(s, ref_logp=torch.zeros_like(s.logp)), beta=2.0 / L).row,
        lambda: pairs(equal_length=L),
    ),
    "simpo's ratio is gamma / beta": (
        row(methods.simpo(2.5, gamma_beta_ratio=0.4).objective),
        row(methods.simpo(2.5, gamma=1.0).objective),
        pairs,
    ),
    "simpo: three times the tokens at the same mean changes nothing": (
        row(reference_free.simpo),
        lambda s: reference_free.simpo(replace(s, logp=3 * s.logp, length=3 * s.length)).row,
        pairs,
    ),
    "orpo's odds of rare responses are simpo's with beta 1 and gamma 0": (
        row(reference_free.odds_ratio),
        row(partial(reference_free.simpo, beta=1.0, gamma=0.0)),
        lambda: pairs(per_token=-40.0),
    ),
    "odds_ratio is its definition": (
        row(reference_free.odds_ratio),
        lambda s: -logsigmoid(odds(s.mean_logp[:, 0]) - odds(s.mean_logp[:, 1])),
        pairs,
    ),
    "kto at the reference is half of each weight": (row(kto), lambda s: 0 * s.logp.sum(1) + (1.5 + 0.7) / 2, lambda: reference_labels()),
    "kto with a negative baseline takes 0": (
        row(kto),
        lambda s: 1.5 * torch.sigmoid(-0.2 * s.logratio[:, 0]) + 0.7 * torch.sigmoid(0.2 * s.logratio[:, 1]),
        lambda: labelled(-3.0),
    ),
    "kto with a positive baseline subtracts it": (
        row(kto),
        lambda s: 1.5 * torch.sigmoid(-0.2 * (s.logratio[:, 0] - 3)) + 0.7 * torch.sigmoid(0.2 * (s.logratio[:, 1] - 3)),
        lambda: labelled(3.0),
    ),
    "kto: a constant on all log-ratios moves the baseline with them": (
        row(kto),
        lambda s: kto(replace(s, logp=s.logp + 4.0)).row,
        lambda: labelled(3.0),
    ),
    "online_ipo over two draws is the squared pair loss": (
        row(online),
        lambda s: (h(s, 1.0) - (s.rows.winrate[:, 0] - s.rows.winrate[:, 1]) / 0.3) ** 2,
        judged_pairs,
    ),
    "online_ipo over pairs judged against one another aims at (p - 1/2) / beta": (
        row(online),
        lambda s: (h(s, 1.0) - (s.rows.prefer - 0.5) / 0.3) ** 2,
        judged_pairs,
    ),
    "online_ipo over a law of two equal atoms draws each pair half of the time": (
        lambda s: online(law(0.5, 0.5)(s)).row,
        lambda s: online(s).row / 2,
        judged_pairs,
    ),
    "online_ipo over a law of two atoms q, 1-q is 2 q (1-q) times the pair loss": (
        lambda s: online(law(0.2, 0.8)(s)).row,
        lambda s: 2 * 0.2 * 0.8 * online(s).row,
        judged_pairs,
    ),
    "online_ipo over a law of one atom is 0": (lambda s: online(law(1.0, 0.0)(s)).row, lambda s: 0 * s.logp.sum(1), judged_pairs),
    "scale times a number, add sums": (
        row(auxiliary.add(dpo5, auxiliary.scale(ipo, 0.3))),
        lambda s: dpo5(s).row + 0.3 * ipo(s).row,
        soft_pairs,
    ),
}


def odds(m: Tensor) -> Tensor:
    """log(e^m / (1 - e^m)) without any care."""
    return torch.log(m.exp() / (1 - m.exp()))


def reference_labels() -> Scored:
    """Policy and reference agree; the gradient of kto is not zero there, so only the value is compared."""
    s = labelled()
    return replace(s, logp=s.ref_logp.detach().requires_grad_())


VALUE_ONLY = {"kto at the reference is half of each weight"}


# sentence: (left, right, rows) where the two differ by a constant, so that their gradients agree
SAME_GRADIENT: dict[str, Limit] = {
    "ipo with soft label p regresses to (2p - 1) / (2 beta)": (
        row(partial(ipo, beta=0.3)),
        lambda s: (h(s, 1.0) - (2 * s.rows.prefer - 1) / 0.6) ** 2,
        soft_pairs,
    ),
    "online_ipo over a judged pair is ipo with that soft label": (row(online), row(partial(ipo, beta=0.3)), judged_pairs),
    "sums of likelihood differ from means by the length": (
        lambda s: auxiliary.nll(s).row,
        lambda s: auxiliary.nll(s, aggregation="seq_sum").row / L,
        lambda: pairs(equal_length=L),
    ),
}


# sentence: (formula, value of every row, rows)
VALUES: dict[str, Value] = {
    "dpo at the reference is ln 2": (row(dpo), math.log(2), lambda: at_reference(pairs())),
    "rdpo at the reference is ln 2": (row(rdpo), math.log(2), lambda: at_reference(pairs())),
    "cdpo at the reference is ln 2": (row(partial(dpo, label_smoothing=0.2)), math.log(2), lambda: at_reference(pairs())),
    "ipo at the reference is 1 / (2 beta)^2": (row(ipo), 25.0, lambda: at_reference(pairs())),
    "ipo is 0 at its target": (row(ipo), 0.0, lambda: gap_of(5.0)),
    "odds_ratio of equal means is ln 2": (row(reference_free.odds_ratio), math.log(2), lambda: equal_means()),
    "simpo of equal means is -logsigmoid(-gamma)": (row(reference_free.simpo), math.log1p(math.e), lambda: equal_means()),
    "online_ipo is 0 at the best response": (row(online), 0.0, lambda: best_response()),
    "dpo's gradient at the reference is -beta / 2": (lambda s: gradient(row(dpo), s)[:, 0], -0.05, lambda: at_reference(pairs())),
    "ipo pulls nothing at its target": (lambda s: gradient(row(ipo), s)[:, 0], 0.0, lambda: gap_of(5.0)),
    "ipo pulls a larger gap back": (lambda s: gradient(row(ipo), s)[:, 0].sign(), 1.0, lambda: gap_of(5.1)),
    "ipo with prefer 0.8 stops at 0.6 / (2 beta) = 3": (
        lambda s: gradient(row(ipo), prefer(0.8, s))[:, 0],
        0.0,
        lambda: gap_of(3.0),
    ),
    "cdpo stops at h = log((1 - e) / e)": (
        lambda s: gradient(row(partial(dpo, beta=1.0, label_smoothing=0.1)), s)[:, 0],
        0.0,
        lambda: gap_of(math.log(9)),
    ),
    "dpo with prefer 0.8 stops at h = logit(0.8)": (
        lambda s: gradient(row(partial(dpo, beta=1.0)), prefer(0.8, s))[:, 0],
        0.0,
        lambda: gap_of(math.log(4)),
    ),
}


def best_response() -> Scored:
    s = judged_pairs()
    return at(s, s.ref_logp + s.rows.winrate / 0.3 + normal(B, 1))


BETAS = {
    "dpo": lambda v: methods.dpo(beta=v),
    "ipo": lambda v: methods.ipo(tau=v),
    "ipo-avg": lambda v: methods.ipo_avg(tau=v),
    "kto": lambda v: methods.kto(beta=v),
    "rdpo": lambda v: methods.rdpo(beta=v),
    "rpo": lambda v: methods.rpo(beta=v),
    "rpo-avg": lambda v: methods.rpo_avg(beta=v),
    "tr-dpo": lambda v: methods.tr_dpo(beta=v),
    "online-ipo": lambda v: methods.online_ipo(tau=v),
    "egpo": lambda v: methods.egpo(beta=v),
    "simpo": lambda v: methods.simpo(beta=v, gamma=1.0),
    "simpo by ratio": lambda v: methods.simpo(beta=v, gamma_beta_ratio=0.5),
}


REFUSED: dict[str, Refusal] = {
    "both of simpo's margins": (lambda: methods.simpo(gamma=1.0, gamma_beta_ratio=0.5), "gamma=1.0 and gamma_beta_ratio=0.5"),
    "neither of simpo's margins": (lambda: methods.simpo(), "exactly one"),
    "a share above one": (lambda: methods.tr_dpo(alpha=1.5), "alpha is 1.5"),
    "a negative share": (lambda: soft(-0.1), "alpha is -0.1"),
    "a NaN share": (lambda: soft(math.nan), "alpha is nan"),
    "a period of no step": (lambda: methods.tr_dpo(every=0), "every is 0"),
    "an unknown aggregation": (lambda: probe(methods.sft("sum")), "aggregation is 'sum'"),
    "a NaN weight": (lambda: probe(methods.rpo(eta=math.nan)), "nan"),
    "a likelihood that is pushed down": (lambda: methods.slic(lam=-1.0), "weight of nll is -1.0"),
    "a NaN margin": (lambda: probe(methods.simpo(gamma=math.nan)), "nan"),
    "an objective that declares nothing": (lambda: needs_of(frozen), "declares no needs"),
    "token means beside row means": (lambda: auxiliary.add(partial(auxiliary.nll, aggregation="tok_mean"), dpo)(pairs()), "divisors"),
    "lengths that are missing": (lambda: reference_free.simpo(replace(pairs(), length=None)), "lengths"),
    "lengths that are missing, with a reference": (lambda: ipo_avg(replace(pairs(), length=None)), "lengths"),
    "labels of kto that are missing": (lambda: pointwise.kto(pairs()), "desirable"),
    "a baseline of kto that is missing": (
        lambda: pointwise.kto(replace(labelled(), logp=labelled().logp[:, :2], ref_logp=labelled().ref_logp[:, :2])),
        "mismatched",
    ),
    "win rates that are missing": (lambda: games.online_ipo(pairs()), "winrate"),
}


FLIP_RATES = {
    "dpo": lambda e: methods.dpo(label_smoothing=e),
    "rdpo": lambda e: methods.rdpo(label_smoothing=e),
    "rpo": lambda e: methods.rpo(label_smoothing=e),
    "rpo-avg": lambda e: methods.rpo_avg(label_smoothing=e),
}

SETTINGS = {"simpo": {"gamma_beta_ratio": 0.5}}  # methods that cannot be composed without a choice
