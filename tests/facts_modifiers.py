"""Facts of the small changes of dpo: lengths, margins, sides, weights, mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import vector_rows
from facts import (
    B,
    Facts,
    Limit,
    Refusal,
    Value,
    at,
    at_gap,
    at_reference,
    gap_of,
    gradient,
    h,
    labels_off,
    normal,
    pairs,
    prefer,
    row,
    soft_pairs,
    swapped,
)
from preftune import methods
from preftune.objectives import absolute, auxiliary, modifiers, pairwise, reference_free, transport
from preftune.probe import probe
from preftune.types import Objective, Scored

dpo, ipo = pairwise.dpo, pairwise.ipo
dpo5 = partial(dpo, beta=0.5)
L = 20.0

SHIPPED = {
    "dpo-norm": Facts(methods.dpo_norm(), steady=True, swap=True),
    "ld-dpo": Facts(methods.ld_dpo(), steady=True, shift=True, swap=True),
    "rdpo-length": Facts(methods.rdpo_length(), steady=True, shift=True, swap=True),
    "dpop": Facts(methods.dpop(), steady=True, swap=True),
    # not apart: rows whose scores do not favour the chosen response have loss 0
    "odpo": Facts(methods.odpo(), apart=False, shift=True),
    "odpo linear": Facts(methods.odpo(f="linear"), steady=True, shift=True, swap=True),
    "cal-dpo": Facts(methods.cal_dpo(), swap=True),
    "flex-dpo": Facts(methods.flex_dpo(), steady=True, swap=True),
    "flex-dpo with likelihood": Facts(methods.flex_dpo(lam=0.1), steady=True),
    "dpo-reference-free": Facts(methods.dpo_reference_free(), steady=True, shift=True, swap=True),
    "modpo": Facts(methods.modpo(), steady=True, shift=True, swap=True),
    "modpo hinge": Facts(methods.modpo(link="hinge"), shift=True, swap=True),
    # not smooth: the weights are constants of the gradient although they move with the policy
    "wpo": Facts(methods.wpo(), steady=True, swap=True, smooth=False),
    "wpo aligned without limit": Facts(methods.wpo(weights="aligned without limit"), steady=True, swap=True, smooth=False),
    "wpo plain": Facts(methods.wpo(weights="plain"), steady=True, swap=True, smooth=False),
    "osp": Facts(methods.osp(), shift=True, swap=True),
    "rlhf-secrets-2": Facts(methods.rlhf_secrets_2(), steady=True, shift=True, swap=True),
    "rlhf-secrets-2 flip": Facts(methods.rlhf_secrets_2(mode="flip"), steady=True, shift=True, swap=True),
    "rlhf-secrets-2 soft": Facts(methods.rlhf_secrets_2(mode="soft"), shift=True, swap=True),
    # not smooth: the shift of bco_pair is a constant of the gradient although it moves with the rewards
    "mpo-mixed": Facts(methods.mpo_mixed(), steady=True, smooth=False),
}


# --- rows -----------------------------------------------------------------------------------------------------------


def labelled(s: Scored, **labels: Tensor) -> Scored:
    return replace(s, rows=s.rows.replace(**labels))


def scored_pairs(difference: float | None = None) -> Scored:
    """Pairs with soft labels and a score each, differing at random or by this much."""
    score = (
        normal(B, 2)
        if difference is None
        else torch.stack([3 + (d := torch.full((B,), difference, dtype=torch.float64)), 3 + 0 * d], 1).double()
    )
    return labelled(soft_pairs(), score=score)


def hard(make: Callable[[], Scored]) -> Callable[[], Scored]:
    return lambda: labels_off(make())


def with_others(s: Scored, *columns: Tensor) -> Scored:
    """One more reward [B, 2] for each further objective; one as [B, 2] itself."""
    stacked = columns[0] if len(columns) == 1 else torch.stack(columns, 2)
    return labelled(s, extra={"other_scores": stacked})


def of_two_objectives() -> Scored:
    return with_others(soft_pairs(), normal(B, 2))


def segmented(share: float | None = None) -> Scored:
    """Soft pairs in a head and a tail: this share of each log-prob is the head's, or a random one, another for the reference."""
    s = soft_pairs()

    def cut(whole: Tensor) -> Tensor:
        head = (torch.rand(B, 2, dtype=torch.float64) if share is None else torch.full((B, 2), share, dtype=torch.float64)) * whole
        return torch.stack([head, whole - head], 2)

    return replace(s, segment_logp=cut(s.logp.detach()), segment_ref_logp=cut(s.ref_logp))


def heads_only(s: Scored) -> Scored:
    return replace(s, logp=s.segment_logp[:, :, 0], ref_logp=s.segment_ref_logp[:, :, 0])


def one_segment() -> Scored:
    s = soft_pairs()
    return replace(s, segment_logp=s.logp.detach()[:, :, None], segment_ref_logp=s.ref_logp[:, :, None])


def moved_to(sign: float, both: bool = False) -> Scored:
    """Pairs whose chosen response has (or both have) log-ratios of this sign."""
    s = soft_pairs()
    ratio = s.logratio.detach()
    ratio = torch.stack([sign * ratio[:, 0].abs(), sign * ratio[:, 1].abs() if both else ratio[:, 1]], 1)
    return at(s, s.ref_logp + ratio)


def alone(s: Scored, collision: Tensor) -> Scored:
    return replace(s, collision=collision)


def uniform_policy(vocabulary: int = 1000) -> Scored:
    """Every token has probability 1 / V, so that sum_v pi(v)^2 = 1 / V as well."""
    s = soft_pairs()
    even = -s.length * math.log(vocabulary)
    return alone(at(s, even), even)


def sure_policy() -> Scored:
    s = soft_pairs()
    return alone(at(s, 0 * s.logp), 0 * s.ref_logp)


def with_collision() -> Scored:
    """Collision terms between sum log pi = -2 nats a token and 0."""
    s = soft_pairs()
    return alone(s, -2 * s.length * torch.rand(B, 2, dtype=torch.float64))


def weight(s: Scored) -> Tensor:
    """Written once more, without logarithms."""
    per_token = torch.exp((s.logp - s.collision).detach() / s.length)
    return per_token[:, 0] * per_token[:, 1]


def exchanged(s: Scored) -> Scored:
    """Columns with all that belongs to them, but for the soft label."""
    flip = lambda x: None if x is None else x[:, [1, 0]]
    extra = {name: flip(x) for name, x in s.rows.extra.items()}
    return replace(swapped(s), rows=s.rows.replace(score=flip(s.rows.score), extra=extra))


# --- limits ---------------------------------------------------------------------------------------------------------

dpo_norm, ld_dpo, rdpo_length = modifiers.dpo_norm, modifiers.ld_dpo, modifiers.rdpo_length
odpo, odpo_log, modpo, dpop = modifiers.odpo, modifiers.odpo_log, modifiers.modpo, modifiers.dpop
cal, flex, free, spce = modifiers.cal_dpo, modifiers.flex_dpo, modifiers.dpo_reference_free, modifiers.spce
wpo, wpo_plain = modifiers.wpo, modifiers.wpo_plain

# objectives that read soft labels, with rows that have everything else they read
SOFT: dict[str, tuple[Objective, Callable[[], Scored]]] = {
    "dpo_norm": (dpo_norm, soft_pairs),
    "ld_dpo": (ld_dpo, segmented),
    "rdpo_length": (partial(rdpo_length, alpha=0.1), soft_pairs),
    "odpo": (partial(odpo, alpha=2.0), scored_pairs),
    "odpo clipped": (partial(odpo, alpha=2.0, clip=0.7), scored_pairs),
    "modpo": (partial(modpo, weights=(0.3, 0.7)), of_two_objectives),
    "modpo with a hinge": (partial(modpo, weights=(0.3, 0.7), link="hinge"), of_two_objectives),
    "dpop": (partial(dpop, beta=0.1, lam=5.0), soft_pairs),
    "cal_dpo": (partial(cal, beta=0.1, weight=0.5), soft_pairs),
    "flex_dpo": (flex, soft_pairs),
    "dpo_reference_free": (free, soft_pairs),
    "wpo of dpo": (wpo(dpo5), with_collision),
    "wpo_plain of ipo": (wpo_plain(ipo), soft_pairs),
}


def soft_label_facts() -> dict[str, Limit]:
    facts: dict[str, Limit] = {}
    for name, (objective, make) in SOFT.items():
        over_orders = lambda s, f=objective: s.rows.prefer * f(labels_off(s)).row + (1 - s.rows.prefer) * f(labels_off(exchanged(s))).row
        facts[f"{name}: a soft label is the mean over both orders"] = (row(objective), over_orders, make)
        sure = lambda s, f=objective: f(prefer(1.0, s)).row
        facts[f"{name}: a sure soft label is a hard one"] = (sure, lambda s, f=objective: f(labels_off(s)).row, make)
    return facts


LIMITS: dict[str, Limit] = soft_label_facts() | {
    "dpo_norm with equal lengths L is dpo with beta / L": (
        row(partial(dpo_norm, beta=5.0)),
        row(partial(dpo, beta=5.0 / L)),
        lambda: pairs(equal_length=L),
    ),
    "dpo_norm with one token is dpo": (row(partial(dpo_norm, beta=0.5)), row(dpo5), lambda: pairs(equal_length=1)),
    "dpo_norm: twice the tokens at the same log-ratios per token changes nothing": (
        row(dpo_norm),
        lambda s: dpo_norm(replace(s, logp=2 * s.logp, ref_logp=2 * s.ref_logp, length=2 * s.length)).row,
        pairs,
    ),
    "ld_dpo with alpha 1 is dpo": (row(partial(ld_dpo, beta=0.5, alpha=1.0)), row(dpo5), segmented),
    "ld_dpo with empty tails, as of equal lengths, is dpo": (row(partial(ld_dpo, beta=0.5)), row(dpo5), lambda: tails_empty()),
    "ld_dpo with one segment is dpo": (row(partial(ld_dpo, beta=0.5)), row(dpo5), one_segment),
    "ld_dpo with alpha 0 is dpo up to the common length": (
        row(partial(ld_dpo, beta=0.5, alpha=0.0)),
        lambda s: dpo5(heads_only(s)).row,
        segmented,
    ),
    "ld_dpo of log-probs that are half heads is dpo at beta (1 + alpha) / 2": (
        row(partial(ld_dpo, beta=0.5, alpha=0.3)),
        row(partial(dpo, beta=0.5 * 1.3 / 2)),
        lambda: segmented(0.5),
    ),
    "rdpo_length with alpha 0 is dpo": (row(partial(rdpo_length, alpha=0.0)), row(dpo), soft_pairs),
    "rdpo_length with equal lengths is dpo": (row(partial(rdpo_length, alpha=0.3)), row(dpo), lambda: pairs(equal_length=L)),
    "rdpo_length is odpo that scores a response by minus its length": (
        row(partial(rdpo_length, alpha=0.3)),
        lambda s: odpo(labelled(s, score=-s.length), alpha=0.3).row,
        soft_pairs,
    ),
    "rdpo_length: a longer winner acts as a gap wider by alpha / beta a token": (
        row(partial(rdpo_length, beta=0.5, alpha=0.3)),
        lambda s: dpo5(at_gap(s, h(s, 1.0) + 0.3 / 0.5 * (s.length[:, 0] - s.length[:, 1]))).row,
        pairs,
    ),
    "odpo with alpha 0 is dpo": (row(partial(odpo, alpha=0.0)), row(dpo), scored_pairs),
    "odpo with equal scores is dpo": (row(odpo), row(dpo), lambda: scored_pairs(0.0)),
    "odpo clipped to 0 is dpo": (row(partial(odpo, clip=0.0)), row(dpo), scored_pairs),
    "odpo clipped far out is odpo": (row(partial(odpo, clip=100.0)), row(odpo), scored_pairs),
    "odpo clipped asks for no more than the clip": (
        row(partial(odpo, alpha=2.0, clip=0.7)),
        row(partial(odpo, alpha=0.7)),
        lambda: scored_pairs(1.0),
    ),
    "odpo is dpo at a gap narrower by the margin over beta": (
        row(partial(odpo, beta=0.5, alpha=2.0)),
        lambda s: dpo5(at_gap(s, h(s, 1.0) - 2.0 / 0.5 * (s.rows.score[:, 0] - s.rows.score[:, 1]))).row,
        hard(scored_pairs),
    ),
    "odpo_log where scores differ by 1 is dpo": (row(odpo_log), row(dpo), hard(lambda: scored_pairs(1.0))),
    "odpo_log is odpo on the logarithm of the difference": (
        row(partial(odpo_log, alpha=0.5)),
        lambda s: odpo(labelled(s, score=torch.stack([0 * s.rows.score[:, 0] + math.log(7.0), 0 * s.rows.score[:, 1]], 1)), alpha=0.5).row,
        hard(lambda: scored_pairs(7.0)),
    ),
    "odpo_log leaves rows alone whose scores contradict the label": (
        row(odpo_log),
        lambda s: 0 * s.logp.sum(1),
        hard(lambda: scored_pairs(-0.3)),
    ),
    "modpo with weights 1, 0 is dpo": (row(partial(modpo, weights=(1.0, 0.0))), row(dpo), of_two_objectives),
    "modpo with equal other scores is dpo at beta over the weight": (
        row(partial(modpo, beta=0.1, weights=(0.4, 0.6))),
        row(partial(dpo, beta=0.1 / 0.4)),
        lambda: with_others(soft_pairs(), normal(B, 1).expand(B, 2)),
    ),
    "modpo divides odpo's margin by the weight": (
        row(partial(modpo, beta=0.1, weights=(0.4, 0.6))),
        lambda s: odpo(labelled(s, score=s.rows.extra["other_scores"]), beta=0.1 / 0.4, alpha=0.6 / 0.4).row,
        of_two_objectives,
    ),
    "modpo: two alike objectives share their weight": (
        lambda s: modpo(s, weights=(0.5, 0.2, 0.3)).row,
        lambda s: modpo(with_others(s, s.rows.extra["other_scores"][:, :, 0]), weights=(0.5, 0.5)).row,
        lambda: with_others(soft_pairs(), *[normal(B, 2)] * 2),
    ),
    "modpo against length is rdpo_length": (  # (beta g + 1/2 (length difference)) / (1/2)
        lambda s: modpo(with_others(s, -s.length), beta=0.1, weights=(0.5, 0.5)).row,
        row(partial(rdpo_length, beta=0.2, alpha=1.0)),
        soft_pairs,
    ),
    "modpo with a hinge and weights 1, 0 is hinge": (
        row(partial(modpo, weights=(1.0, 0.0), link="hinge")),
        row(pairwise.hinge),
        hard(of_two_objectives),
    ),
    "dpop with lam 0 is dpo": (row(partial(dpop, beta=0.5, lam=0.0)), row(dpo5), soft_pairs),
    "dpop is dpo where the chosen response has not fallen": (row(partial(dpop, beta=0.5)), row(dpo5), hard(lambda: moved_to(1.0))),
    "dpop under soft labels is dpo where neither response has fallen": (
        row(partial(dpop, beta=0.5)),
        row(dpo5),
        lambda: moved_to(1.0, both=True),
    ),
    "dpop counts the fall of a chosen response 1 + lam times": (
        row(partial(dpop, beta=0.5, lam=5.0)),
        lambda s: dpo5(at(s, s.ref_logp + s.logratio * torch.tensor([6.0, 1.0]), leaf=False)).row,
        hard(lambda: moved_to(-1.0)),
    ),
    "cal_dpo with weight 0 is dpo with beta 1": (row(partial(cal, weight=0.0)), row(partial(dpo, beta=1.0)), soft_pairs),
    "cal_dpo is dpo with beta 1 plus sppo_hard": (
        row(partial(cal, beta=0.1)),
        lambda s: dpo(s, beta=1.0).row + absolute.sppo_hard(s, beta=0.1).row,
        pairs,
    ),
    "cal_dpo fixes the sum of the log-ratios where ipo fixes their difference alone": (  # (a - t)^2 + (b + t)^2 at t = 5
        lambda s: cal(s, beta=0.1, weight=2.0).row - dpo(s, beta=1.0).row,
        lambda s: (h(s, 1.0) - 10) ** 2 + s.logratio.sum(1) ** 2,
        pairs,
    ),
    "flex_dpo with equal betas is dpo": (row(partial(flex, beta_w=0.5, beta_l=0.5)), row(dpo5), soft_pairs),
    "flex_dpo is dpo on log-ratios that are scaled apart": (
        row(partial(flex, beta_w=0.5, beta_l=0.2)),
        lambda s: dpo(at(s, s.ref_logp + s.logratio * torch.tensor([0.5, 0.2], dtype=torch.float64), leaf=False), beta=1.0).row,
        pairs,
    ),
    "flex_dpo's method with equal betas and a likelihood is rpo_avg": (
        row(methods.flex_dpo(0.5, 0.5, lam=0.2).objective),
        row(methods.rpo_avg(0.5, 0.2).objective),
        soft_pairs,
    ),
    "flex_dpo's method without likelihood is its loss": (
        row(methods.flex_dpo(0.5, 0.2).objective),
        row(partial(flex, beta_w=0.5, beta_l=0.2)),
        pairs,
    ),
    "dpo_reference_free is dpo where the reference finds both responses alike": (
        row(partial(free, beta=0.5, label_smoothing=0.1)),
        lambda s: dpo5(replace(s, ref_logp=torch.full_like(s.logp, -7.0)), label_smoothing=0.1).row,
        soft_pairs,
    ),
    "dpo_reference_free with one token is simpo with gamma 0": (
        row(partial(free, beta=0.5)),
        row(partial(reference_free.simpo, beta=0.5, gamma=0.0)),
        lambda: pairs(equal_length=1),
    ),
    "wpo of a uniform policy is the loss itself": (row(wpo(dpo5)), row(dpo5), uniform_policy),
    "wpo of a policy that is sure of both responses is the loss itself": (row(wpo(ipo)), row(ipo), sure_policy),
    "wpo_plain of a policy that is sure of both responses is the loss itself": (row(wpo_plain(dpo5)), row(dpo5), sure_policy),
    "wpo without limit multiplies by both weights, which are constants": (
        row(wpo(dpo5, limit=math.inf)),
        lambda s: weight(s) * dpo5(s).row,
        with_collision,
    ),
    "wpo multiplies by no more than its limit": (
        row(wpo(dpo5, limit=0.4)),
        lambda s: weight(s).clamp(max=0.4) * dpo5(s).row,
        with_collision,
    ),
    "wpo weighs any loss of a pair": (
        row(wpo(ipo, limit=math.inf)),
        lambda s: weight(s) * ipo(s).row,
        with_collision,
    ),
    "wpo_plain is wpo with a collision of certainty": (
        row(wpo_plain(dpo5)),
        lambda s: wpo(dpo5, limit=math.inf)(alone(s, 0 * s.ref_logp)).row,
        soft_pairs,
    ),
    "wpo's method without limit is wpo of dpo": (
        row(methods.wpo(0.5, "aligned without limit").objective),
        row(wpo(dpo5, limit=math.inf)),
        with_collision,
    ),
    "wpo's method stops at 1": (row(methods.wpo(0.5).objective), lambda s: weight(s).clamp(max=1) * dpo5(s).row, with_collision),
    "spce with sure labels is dpo": (lambda s: spce(prefer(1.0, s), beta=0.5).row, row(dpo5), pairs),
    "spce is its cross-entropy": (
        row(partial(spce, beta=0.5)),
        lambda s: (
            -(s.rows.prefer * torch.nn.functional.logsigmoid(h(s, 0.5)) + (1 - s.rows.prefer) * torch.nn.functional.logsigmoid(-h(s, 0.5)))
        ),
        soft_pairs,
    ),
    "spce with prefer 0.9 is cdpo with smoothing 0.1": (
        lambda s: spce(prefer(0.9, s), beta=0.5).row,
        row(partial(dpo5, label_smoothing=0.1)),
        pairs,
    ),
    "spce: responses exchanged with p for 1 - p changes nothing": (
        row(spce),
        lambda s: spce(labelled(swapped(s), prefer=1 - s.rows.prefer)).row,
        soft_pairs,
    ),
    "spce's gradient in h is sigmoid(h) - p": (
        lambda s: gradient(row(partial(spce, beta=0.5)), s)[:, 0],
        lambda s: 0.5 * (torch.sigmoid(h(s, 0.5)) - s.rows.prefer),
        soft_pairs,
    ),
    "rlhf_secrets_2: margins clipped to 0 are dpo": (row(methods.rlhf_secrets_2(0.5, largest=0.0).objective), row(dpo5), scored_pairs),
    "rlhf_secrets_2: the margin is the difference of mean rewards": (
        row(methods.rlhf_secrets_2(0.5).objective),
        lambda s: -torch.nn.functional.logsigmoid(h(s, 0.5) - 0.7),
        hard(lambda: scored_pairs(0.7)),
    ),
    "rlhf_secrets_2: all votes for the rejected response are a turned label": (
        lambda s: methods.rlhf_secrets_2(0.5, "soft").objective(prefer(0.0, s)).row,
        lambda s: dpo5(swapped(s)).row,
        pairs,
    ),
    "mpo_mixed is the sum of its parts": (
        row(methods.mpo_mixed(0.5, shift="none").objective),
        lambda s: 0.8 * dpo5(s).row + 0.2 * absolute.bco_pair(s, beta=0.5, shift="none").row + auxiliary.nll(s).row,
        soft_pairs,
    ),
    "mpo_mixed with dpo alone is dpo": (row(methods.mpo_mixed(0.5, 1.0, 0.0, 0.0).objective), row(dpo5), soft_pairs),
    "mpo_mixed without quality is rpo_avg times w_p": (
        row(methods.mpo_mixed(0.5, 0.8, 0.0, 1.0).objective),
        lambda s: 0.8 * methods.rpo_avg(0.5, 1.0 / 0.8).objective(s).row,
        soft_pairs,
    ),
    "mpo_mixed with quality alone is bco_pair with its running shift": (
        row(methods.mpo_mixed(0.5, 0.0, 1.0, 0.0).objective),
        row(partial(absolute.bco_pair, beta=0.5)),
        pairs,
    ),
}
VALUE_ONLY = {
    "spce's gradient in h is sigmoid(h) - p",  # both sides are gradients
    "ld_dpo with empty tails, as of equal lengths, is dpo",  # moving the policy moves both segments alike, and the tail is empty no more
}


def tails_empty() -> Scored:
    """Tails of no token."""
    return segmented(1.0)


VALUES: dict[str, Value] = {
    "dpo_norm at the reference is ln 2": (row(dpo_norm), math.log(2), lambda: at_reference(pairs())),
    "ld_dpo at the reference is ln 2": (row(ld_dpo), math.log(2), lambda: at_reference(segmented())),
    "flex_dpo at the reference is ln 2 whatever the betas": (
        row(partial(flex, beta_w=0.7, beta_l=0.01)),
        math.log(2),
        lambda: at_reference(pairs()),
    ),
    "dpop at the reference is ln 2": (row(dpop), math.log(2), lambda: at_reference(pairs())),
    "dpop's penalty pulls nothing at its kink: dpo's gradient at the reference": (
        lambda s: gradient(row(partial(dpop, beta=0.1)), s)[:, 0],
        -0.05,
        lambda: at_reference(pairs()),
    ),
    "odpo's margin of 2 at the reference costs log(1 + e^2)": (
        row(odpo),
        math.log1p(math.exp(2.0)),
        lambda: at_reference(labels_off(scored_pairs(2.0))),
    ),
    "odpo with soft label 0.8 and margin 2 stops at h = 2 + logit(0.8)": (
        lambda s: gradient(row(partial(odpo, beta=1.0)), prefer(0.8, labelled(s, score=scored_pairs(2.0).rows.score)))[:, 0],
        0.0,
        lambda: gap_of(2 + math.log(4)),
    ),
    "cal_dpo at the reference is ln 2 + 2 t^2": (
        row(partial(cal, beta=0.1)),
        math.log(2) + 2 * 25,
        lambda: at_reference(pairs()),
    ),
    "flex_dpo's push on the rejected is beta_l / beta_w of the pull on the chosen": (
        lambda s: (
            -gradient(row(partial(flex, beta_w=0.1, beta_l=0.03)), s)[:, 1] / gradient(row(partial(flex, beta_w=0.1, beta_l=0.03)), s)[:, 0]
        ),
        0.3,
        pairs,
    ),
    "spce with p = 1/2 pulls nothing at the reference": (
        lambda s: gradient(row(spce), prefer(0.5, s))[:, 0],
        0.0,
        lambda: at_reference(pairs()),
    ),
    "spce stops at h = logit(p)": (
        lambda s: gradient(row(partial(spce, beta=1.0)), prefer(0.8, s))[:, 0],
        0.0,
        lambda: gap_of(math.log(4)),
    ),
    "rlhf_secrets_2: h = 1.5 without margin is 0.20141": (
        lambda s: (dpo(s, beta=1.0).row * 1e5).round() / 1e5,
        0.20141,
        lambda: gap_of(1.5),
    ),
    "rlhf_secrets_2: h = 1.5 with margin 0.7 is 0.37110": (
        lambda s: (methods.rlhf_secrets_2(1.0).objective(labelled(s, score=scored_pairs(0.7).rows.score)).row * 1e5).round() / 1e5,
        0.37110,
        lambda: gap_of(1.5),
    ),
    "rlhf_secrets_2: h = 1 with a fifth of the votes against is 0.51326": (
        lambda s: (methods.rlhf_secrets_2(1.0, "soft").objective(prefer(0.8, s)).row * 1e5).round() / 1e5,
        0.51326,
        lambda: gap_of(1.0),
    ),
}


BETAS = {
    "dpo-norm": lambda v: methods.dpo_norm(beta=v),
    "ld-dpo": lambda v: methods.ld_dpo(beta=v),
    "rdpo-length": lambda v: methods.rdpo_length(beta=v),
    "dpop": lambda v: methods.dpop(beta=v),
    "odpo": lambda v: methods.odpo(beta=v),
    "odpo linear": lambda v: methods.odpo(beta=v, f="linear"),
    "cal-dpo": lambda v: methods.cal_dpo(beta=v),
    "dpo-reference-free": lambda v: methods.dpo_reference_free(beta=v),
    "modpo": lambda v: methods.modpo(beta=v),
    "wpo": lambda v: methods.wpo(beta=v),
    "osp": lambda v: methods.osp(beta=v),
    "rlhf-secrets-2": lambda v: methods.rlhf_secrets_2(beta=v),
    "rlhf-secrets-2 soft": lambda v: methods.rlhf_secrets_2(beta=v, mode="soft"),
    "mpo-mixed": lambda v: methods.mpo_mixed(beta=v),
}

FLIP_RATES = {
    "dpo-reference-free": lambda e: methods.dpo_reference_free(label_smoothing=e),
    "wpo": lambda e: methods.wpo(label_smoothing=e),
}

REFUSED: dict[str, Refusal] = {
    "weights that wpo does not have": (lambda: methods.wpo(weights="flat"), "weights is 'flat', needed one of aligned"),
    "an offset that odpo does not have": (lambda: methods.odpo(f="root"), "f is 'root', needed one of linear, log"),
    "a tail that counts more than the head": (lambda: probe(methods.ld_dpo(alpha=1.5)), "alpha is 1.5"),
    "a tail that counts less than nothing": (lambda: probe(methods.ld_dpo(alpha=-0.1)), "alpha is -0.1"),
    "ld_dpo without segments": (lambda: ld_dpo(pairs()), "segments"),
    "a reward for length": (lambda: probe(methods.rdpo_length(alpha=-0.01)), "length would be rewarded"),
    "a NaN price of a token": (lambda: probe(methods.rdpo_length(alpha=math.nan)), "alpha is nan"),
    "a penalty that rewards the fall": (lambda: probe(methods.dpop(lam=-1.0)), "lam is -1.0"),
    "squares of negative weight": (lambda: probe(methods.cal_dpo(weight=-1.0)), "weight is -1.0"),
    "a side without strength": (lambda: probe(methods.flex_dpo(beta_l=0.0)), "beta_l is 0.0"),
    "a chosen side without strength": (lambda: probe(methods.flex_dpo(beta_w=-1.0)), "beta_w is -1.0"),
    "odpo without scores": (lambda: odpo(pairs()), "odpo takes its margin from scores"),
    "odpo_log without scores": (lambda: odpo_log(pairs()), "odpo_log takes its margin from scores"),
    "odpo with a score that is missing": (lambda: odpo(labelled(pairs(), score=torch.tensor([[0.5, math.nan]] * B))), r"rows \['0', '1'"),
    "a logarithm that asks for less margin where scores differ more": (lambda: probe(methods.odpo(alpha=-1.0)), "alpha is -1.0"),
    "a trained objective of little weight": (lambda: probe(methods.modpo(weights="0.04,0.96")), "0.04, needed 0.05 or more"),
    "weights that do not add up": (lambda: probe(methods.modpo(weights="0.5,0.6")), "add up to 1"),
    "a negative weight of an objective": (lambda: probe(methods.modpo(weights="1.5,-0.5")), "at least 0"),
    "weights that are no numbers": (lambda: methods.modpo(weights="half,half"), "weights is 'half,half'"),
    "an unknown link": (lambda: probe(methods.modpo(link="probit")), "link is 'probit'"),
    "modpo without other scores": (lambda: modpo(pairs()), "found 0 other_scores"),
    "modpo with more weights than scores": (lambda: modpo(of_two_objectives(), weights=(0.5, 0.2, 0.3)), "found 1 other_scores"),
    "wpo without collision probabilities": (lambda: wpo(dpo)(pairs()), "collision"),
    "wpo of a loss that couples rows": (lambda: wpo(transport.aot), "the whole batch"),
    "wpo of single responses": (lambda: wpo_plain(auxiliary.nll), "1 responses"),
    "a weight of nothing": (lambda: wpo(dpo, limit=0.0), "limit is 0.0"),
    "a NaN limit": (lambda: wpo(dpo, limit=math.nan), "limit is nan"),
    "spce without soft labels": (lambda: spce(pairs()), "soft label prefer"),
    "one answer to compare": (lambda: methods.osp(responses=1), "responses is 1"),
    "a temper of nothing": (lambda: methods.osp(T=0.0), "T is 0.0"),
    "a share of all labels": (lambda: methods.rlhf_secrets_2(mode="flip", share=1.0), "share is 1.0"),
    "a share where nothing is turned": (lambda: methods.rlhf_secrets_2(share=0.1), "mode is margin and share"),
    "a negative clip": (lambda: methods.rlhf_secrets_2(largest=-1.0), "largest is -1.0"),
    "an unknown shift in a mixture": (lambda: probe(methods.mpo_mixed(shift="moving")), "shift is 'moving'"),
}


# --- vectors --------------------------------------------------------------------------------------------------------

VECTORS: dict[str, Callable[..., Objective]] = {
    "sigmoid_norm": lambda beta: partial(dpo_norm, beta=beta),
    "ld_dpo": lambda beta, alpha: partial(ld_dpo, beta=beta, alpha=alpha),
    "rdpo_length": lambda beta, alpha: partial(rdpo_length, beta=beta, alpha=alpha),
    "flex_dpo": lambda beta_w, beta_l: partial(flex, beta_w=beta_w, beta_l=beta_l),
    "dpop": lambda beta, lam: partial(dpop, beta=beta, lam=lam),
    "odpo_margin": lambda beta, scale: partial(odpo, beta=beta, alpha=scale),
    "modpo": lambda beta, w, w_other: partial(modpo, beta=beta, weights=(w, w_other)),
    "spce": lambda beta: partial(spce, beta=beta),
}


def vectors_cut(params: dict[str, Any]) -> Scored:
    """Rows whose tokens all have the same log-prob: the head has min(Lc, Lr) / L of what the response has."""
    s = vector_rows.pairs()
    head = s.length.min(1, keepdim=True).values / s.length
    share = torch.stack([head, 1 - head], 2)
    return replace(s, segment_logp=share * s.logp[:, :, None], segment_ref_logp=share * s.ref_logp[:, :, None])


def vectors_with(**labels: Any) -> Callable[[dict[str, Any]], Scored]:
    def make(params: dict[str, Any]) -> Scored:
        s = vector_rows.pairs()
        return replace(s, rows=s.rows.replace(**{name: value() for name, value in labels.items()}))

    return make


VECTOR_ROWS = {
    "ld_dpo": vectors_cut,
    "odpo_margin": vectors_with(score=lambda: vector_rows.column("mc", "mr")),
    "modpo": vectors_with(extra=lambda: {"other_scores": vector_rows.column("mc", "mr")}),
    "spce": vectors_with(prefer=lambda: vector_rows.column("soft")[:, 0]),
}
