"""Facts of pairs that are drawn while training: online-dpo, xpo, vpo, hypo."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from facts import (
    DRAW,
    B,
    Facts,
    Limit,
    Refusal,
    Value,
    at,
    at_gap,
    at_reference,
    columns,
    gradient,
    h,
    labels_off,
    normal,
    pairs,
    row,
    soft_pairs,
    swapped,
)
from preftune import methods
from preftune.objectives import auxiliary, games, pairwise
from preftune.objectives.online import apart, chasing, judged_pairs, value
from preftune.objectives.self_improvement import generate, improve
from preftune.policies.tabular import TableResponses
from preftune.types import Context, Rows, Scored

SHIPPED = {
    "online-dpo": Facts(methods.online_dpo(), shift=True, swap=True),
    "online-dpo ipo": Facts(methods.online_dpo(loss="ipo"), shift=True, swap=True),
    "online-dpo hinge": Facts(methods.online_dpo(loss="hinge"), shift=True, swap=True),
    "xpo": Facts(methods.xpo(), swap=False),
    "vpo": Facts(methods.vpo()),
    "vpo chosen": Facts(methods.vpo(calibration="chosen"), steady=False, apart=False),  # probed with weights on all columns
    "hypo": Facts(methods.hypo(), apart=False, smooth=False),  # its last columns are samples; value and gradient of a KL by two formulas
}
SHIPPED |= {
    "ofs-dpo": Facts(methods.ofs_dpo(), steady=True, shift=True),
    "ofs-dpo gap": Facts(methods.ofs_dpo(g="gap"), shift=True),
    "srpo": Facts(methods.srpo(), apart=False, shift=True),  # at the reference the generator has nothing to follow yet
    "on-policy": Facts(methods.on_policy(), shift=True, swap=True),
    "on-policy none": Facts(methods.on_policy(negative_gradient="none"), steady=True),
    "on-policy worst": Facts(methods.on_policy(negative_gradient="worst"), apart=False),  # probed with both weights on every column
    "zo-ranksgd": Facts(methods.zo_ranksgd()),
    "egpo-optimistic": Facts(methods.egpo_optimistic(), shift=True, swap=True),
}
dpo5 = partial(pairwise.dpo, beta=0.5)
online5 = partial(judged_pairs, beta=0.5)


def compared() -> Scored:
    """Pairs with soft labels, and what is the same as a list of two that a judge compared."""
    s = soft_pairs()
    p = s.rows.prefer
    half = torch.full_like(p, 0.5)
    beats = torch.stack([torch.stack([half, p], 1), torch.stack([1 - p, half], 1)], 1)
    return replace(s, rows=s.rows.replace(beats=beats))


def listed(K: int = 4, law: bool = False) -> Scored:
    """Lists with a random preference matrix, log-ratios with standard deviation 8; law: under which the columns are enumerated."""
    lower = torch.rand(B, K, K, generator=DRAW, dtype=torch.float64).tril(-1)
    beats = lower + (1 - lower.mT).triu(1) * (1 - torch.eye(K, dtype=torch.float64)).triu(1) + 0.5 * torch.eye(K, dtype=torch.float64)
    logp = (2 * normal(B, K)).log_softmax(1)
    rows = Rows(tuple(map(str, range(B))), tuple(range(B)), TableResponses(torch.arange(K).expand(B, K)), beats=beats)
    if law:
        rows = rows.replace(law=logp.exp(), winrate=(beats @ logp.exp()[:, :, None])[:, :, 0])
    return Scored(rows, logp.requires_grad_(), logp.detach() + 8 * normal(B, K), torch.ones(B, K))


def calibrated(*weights: float) -> Scored:
    s = compared()
    return replace(s, rows=s.rows.replace(extra={"calibration": torch.tensor([weights] * B, dtype=torch.float64)}))


def crossed(s: Scored) -> Scored:
    """The list's first response belongs to the policy, its second to the reference."""
    one = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]] * B, dtype=torch.float64)
    return replace(s, rows=s.rows.replace(extra={**s.rows.extra, "pairs": one}))


def hard(s: Scored, first_wins: bool) -> Scored:
    beats = torch.tensor([[[0.5, 1.0], [0.0, 0.5]]] * B, dtype=torch.float64)
    return replace(s, rows=s.rows.replace(beats=beats if first_wins else beats.mT))


def one_by_one(s: Scored, objective: partial[object]) -> Tensor:
    """The mean over i < j of the pair objective with soft labels."""
    total, K = torch.zeros(B, dtype=torch.float64), s.logp.shape[1]
    for i in range(K):
        for j in range(i + 1, K):
            labels = Rows(s.rows.id, s.rows.prompt, ranked=True, prefer=s.rows.beats[:, i, j])
            total = total + objective(replace(s, rows=labels, logp=s.logp[:, [i, j]], ref_logp=s.ref_logp[:, [i, j]])).row
    return total / (K * (K - 1) / 2)


def at_probability(s: Scored, p: float) -> Scored:
    """Two actions with uniform reference, the policy's first with probability p."""
    reference = torch.full_like(s.logp, 0.5).log().detach()
    return at(replace(s, ref_logp=reference), torch.tensor([[p, 1 - p]] * B, dtype=torch.float64).log())


def in_logits(formula, s: Scored) -> Tensor:
    """d formula / d logit of the first of two actions [B]."""
    g = gradient(formula, s)
    p = s.logp[:, 0].detach().exp()
    return g[:, 0] * (1 - p) - g[:, 1] * p


def stationary(cal: float, alpha: float, p: float) -> Value:
    """Three wins of four for the first of two actions, beta .5: the optimistic loss has its minimum at pi(a) = p.

    d/dg of 4 (-3/4 logsigmoid(g/2) - 1/4 logsigmoid(-g/2)) + alpha beta (cal log pi(a) + (1 - cal) log pi(b)): the sum over four pairs
    has weight alpha once, a row's mean alpha / 4. p is given to 4 digits: the slope changes its sign within 6e-5 about it.
    """
    objective = methods.vpo(0.5, alpha / 4).objective
    slope = lambda s, p: in_logits(row(objective), at_probability(s, p)).sign()

    def rows() -> Scored:
        s = calibrated(cal, 1 - cal)
        beats = torch.tensor([[[0.5, 0.75], [0.25, 0.5]]] * B, dtype=torch.float64)
        return replace(s, rows=s.rows.replace(beats=beats))

    return (lambda s: slope(s, p + 6e-5) - slope(s, p - 6e-5), 2.0, rows)


LIMITS: dict[str, Limit] = {
    "online-dpo over two draws is dpo with soft labels": (row(online5), row(dpo5), compared),
    "online-dpo over two draws with loss ipo is ipo with soft labels": (
        row(partial(judged_pairs, beta=0.5, loss="ipo")),
        row(partial(pairwise.ipo, beta=0.5)),
        compared,
    ),
    "online-dpo with loss hinge under sure labels is hinge": (
        lambda s: judged_pairs(hard(s, True), loss="hinge").row,
        row(pairwise.hinge),
        compared,
    ),
    "online-dpo under sure labels is dpo": (lambda s: online5(hard(s, True)).row, lambda s: dpo5(labels_off(s)).row, compared),
    "online-dpo: labels follow their responses": (
        lambda s: online5(hard(s, False)).row,
        lambda s: dpo5(labels_off(swapped(s))).row,
        compared,
    ),
    "online-dpo over a list is the mean over its pairs": (row(online5), lambda s: one_by_one(s, dpo5), listed),
    "online-dpo over a list with loss ipo is the mean over its pairs": (
        row(partial(judged_pairs, loss="ipo")),
        lambda s: one_by_one(s, partial(pairwise.ipo)),
        listed,
    ),
    "online-dpo: a pair that nobody wins is left out": (
        lambda s: online5(replace(s, rows=s.rows.replace(beats=s.rows.beats * only_first_pair(s)))).row,
        lambda s: dpo5(first_two(s)).row / 6,
        listed,
    ),
    "vpo online with alpha 0 is online-dpo": (row(methods.vpo(0.5, 0.0).objective), row(online5), lambda: calibrated(0.3, 0.7)),
    "vpo offline with alpha 0 is dpo": (row(methods.vpo(0.5, 0.0, "chosen").objective), row(dpo5), lambda: calibrated(1.0, 0.0)),
    "xpo with alpha 0 is dpo on pairs of policy and reference": (
        lambda s: methods.xpo(0.5, 0.0).objective(crossed(s)).row,
        row(dpo5),
        lambda: calibrated(0.0, 1.0),
    ),
    "xpo is vpo with optimism, calibrated by the reference, at alpha / beta": (
        lambda s: methods.xpo(0.5, 0.03).objective(crossed(s)).row,
        lambda s: methods.vpo(0.5, 0.03 / 0.5).objective(crossed(s)).row,
        lambda: calibrated(0.0, 1.0),
    ),
    "xpo is dpo plus alpha log pi of the reference's response": (
        lambda s: methods.xpo(0.5, 0.03).objective(crossed(s)).row,
        lambda s: dpo5(s).row + 0.03 * s.logp[:, 1],
        lambda: calibrated(0.0, 1.0),
    ),
    "vpo offline, calibrated by the chosen, is rpo with eta = alpha": (
        row(methods.vpo(0.5, 0.2, "chosen").objective),
        row(methods.rpo(0.5, 0.2).objective),
        lambda: calibrated(1.0, 0.0),
    ),
    "pessimism and optimism differ by the sign of one term": (
        lambda s: value(s, alpha=0.3, sign=-1).row,
        lambda s: -value(s, alpha=0.3, sign=1).row,
        lambda: calibrated(0.3, 0.7),
    ),
    "pessimism about one response is its likelihood": (
        row(partial(value, sign=-1)),
        row(partial(auxiliary.nll, aggregation="seq_sum")),
        lambda: calibrated(1.0, 0.0),
    ),
    "ofs-dpo with gamma 0 is dpo": (row(methods.ofs_dpo(0.5, 0.0).objective), row(dpo5), lambda: twins(3.0, 1.0)),
    "ofs-dpo's chase is dpo with the other learner as the reference": (
        row(partial(chasing, beta=0.5)),
        lambda s: dpo5(replace(s, ref_logp=s.other["twin"])).row,
        lambda: twins(3.0, 1.0),
    ),
    "ofs-dpo's gap is the squared difference of two probabilities": (
        row(partial(apart, beta=0.5)),
        lambda s: (torch.sigmoid(h(s, 0.5)) - torch.sigmoid(torch.tensor(0.5 * 1.0, dtype=torch.float64))) ** 2,
        lambda: twins(3.0, 1.0),
    ),
    "srpo: the generator's loss is the same for both orders of a pair": (
        row(generate),
        lambda s: generate(columns(s, [1, 0, 4, 5, 2, 3])).row,
        lambda: drafts(0.5),
    ),
    "srpo: the improver's loss is the same for both orders of a pair with its label": (
        row(improve),
        lambda s: improve(replace(columns(s, [1, 0, 4, 5, 2, 3]), rows=s.rows.replace(prefer=1 - s.rows.prefer))).row,
        lambda: drafts(0.3),
    ),
    "srpo: ranked without a soft label is a sure one": (
        lambda s: improve(replace(s, rows=s.rows.replace(prefer=None))).row,
        row(improve),
        lambda: drafts(1.0),
    ),
    "srpo is the weighted sum of its two losses": (
        row(methods.srpo(0.3, 0.9, 0.2).objective),
        lambda s: 0.9 * improve(s, beta=0.3).row + 0.2 * generate(s, beta=0.3).row,
        lambda: drafts(0.3),
    ),
    "on-policy with all knobs off is sft on the chosen, summed": (
        lambda s: offline(s, negative_gradient="none"),
        row(methods.sft("seq_sum").objective),
        soft_pairs,
    ),
    "on-policy without fresh responses is dpo": (lambda s: offline(s, beta=0.5), row(dpo5), soft_pairs),
    "on-policy without fresh responses, loss ipo, is ipo": (
        lambda s: offline(s, beta=0.5, loss="ipo"),
        row(partial(pairwise.ipo, beta=0.5)),
        soft_pairs,
    ),
    "on-policy without fresh responses pushes the rejected down to a floor": (
        lambda s: offline(s, negative_gradient="worst", push=0.3, floor=2.0),
        lambda s: -s.logp[:, 0] + 0.3 * torch.relu(2 + s.logratio[:, 1]),
        soft_pairs,
    ),
    "hypo with lam 0 is dpo": (row(methods.hypo(0.5, 0.0).objective), row(dpo5), lambda: sampled(0.0, 3.0)),
    "hypo with two samples of equal log-ratio has the gradient of dpo": (
        lambda s: methods.hypo(0.5, 0.7).objective(s).row - 0.7 * 3.0,
        row(dpo5),
        lambda: sampled(3.0, 3.0),
    ),
}


def twins(m: float, m_twin: float) -> Scored:
    """Pairs at margins m of the policy and m_twin of the other learner, in units of log-ratio."""
    s = pairs()
    first = s.logp[:, 0].detach()
    at_margin = lambda margin: torch.stack([s.ref_logp[:, 0] + (first - s.ref_logp[:, 1]) + margin, first], 1)
    return replace(at(s, at_margin(m)), other={"twin": at_margin(m_twin)})


def drafts(p: float) -> Scored:
    """The six columns of pairs after drafts, P(y1 beats y2) = p, log-ratios with standard deviation 8."""
    rows = Rows(tuple(map(str, range(B))), tuple(range(B)), TableResponses(torch.arange(6).expand(B, 6)), ranked=True)
    logp = -30 + normal(B, 6)
    soft = torch.full((B,), p, dtype=torch.float64)
    return Scored(rows.replace(prefer=soft), logp.requires_grad_(), logp.detach() + 8 * normal(B, 6), torch.ones(B, 6))


def offline(s: Scored, **knobs: object) -> Tensor:
    """on-policy's loss of given pairs, which its collector prepares."""
    method = methods.on_policy(fraction=0.0, **knobs)
    return method.objective(replace(s, rows=method.collect(Context({}, s.rows)))).row


def sampled(*ratios: float) -> Scored:
    """Pairs, joined by responses of the policy with these log-ratios."""
    s, more = soft_pairs(), torch.tensor([ratios] * B, dtype=torch.float64)
    logp = torch.cat([s.logp.detach(), more - 30], 1).requires_grad_()
    return Scored(s.rows, logp, torch.cat([s.ref_logp, torch.full_like(more, -30.0)], 1), torch.ones(B, 4))


def only_first_pair(s: Scored) -> Tensor:
    keep = torch.zeros_like(s.rows.beats)
    keep[:, 0, 1] = keep[:, 1, 0] = 1
    return keep


def first_two(s: Scored) -> Scored:
    labels = Rows(s.rows.id, s.rows.prompt, ranked=True, prefer=s.rows.beats[:, 0, 1])
    return replace(s, rows=labels, logp=s.logp[:, :2], ref_logp=s.ref_logp[:, :2])


SAME_GRADIENT: dict[str, Limit] = {
    "online-dpo over a law with loss ipo is online ipo against itself": (
        row(partial(judged_pairs, beta=0.3, loss="ipo")),
        row(partial(games.online_ipo, beta=0.3)),
        lambda: listed(law=True),
    ),
    "online-dpo over a law at the reference: 2 beta pi (1/2 - P pi)": (
        row(online5),
        lambda s: (2 * 0.5 * s.rows.law * (0.5 - s.rows.winrate) * s.logp).sum(1),
        lambda: at_reference(listed(law=True)),
    ),
    "the value of the best policy, with optimism, repels from the calibration": (
        lambda s: value(replace(s, logp=s.logp.log_softmax(1)), alpha=0.3).row,
        lambda s: (0.3 * (s.rows.extra["calibration"] - s.logp.detach().softmax(1)) * s.logp).sum(1),
        lambda: calibrated(0.3, 0.7),
    ),
}


def minus_twelve() -> Scored:
    """A log-ratio gap of .8 won by the policy's response, the reference's at log pi = -12."""
    s = at_gap(calibrated(0.0, 1.0), torch.tensor(0.8))
    shift = -12 - s.logp[:, 1:].detach()
    return crossed(hard(replace(s, logp=s.logp + shift, ref_logp=s.ref_logp + shift), True))


def micro(x: Tensor) -> Tensor:
    """In millionths, rounded: numbers that are known to six digits."""
    return (x * 1e6).round()


VALUES: dict[str, Value] = {
    "xpo: at a gap of .8 the pair costs .653947": (
        lambda s: (methods.xpo(0.1, 0.0).objective(s).row * 1e6).round(),
        653947.0,
        minus_twelve,
    ),
    "xpo: with alpha 1e-5 and log pi -12 it costs .653827": (
        lambda s: (methods.xpo(0.1, 1e-5).objective(s).row * 1e6).round(),
        653827.0,
        minus_twelve,
    ),
    **{
        f"vpo: calibrated by {cal}, alpha {alpha} ends at {p}": stationary(cal, alpha, p)
        for cal, ends in {0.7: (0.9098, 0.9248, 0.9397), 0.9: (0.9, 0.9, 0.9), 0.3: (0.9274, 0.9612, 0.9840)}.items()
        for alpha, p in zip((0.2, 0.5, 0.8), ends, strict=True)
    },
    **{
        f"xpo: where the reference's response {word}, log pi of it has the slope {sign} beta sigmoid(-m) + alpha": (
            lambda s, wins=wins: slope_of_reference(s, wins),
            0.0,
            lambda: calibrated(0.0, 1.0),
        )
        for word, sign, wins in (("loses", "+", False), ("wins", "-", True))
    },
}


VALUES |= {
    "srpo at the reference with even labels is 0": (row(methods.srpo().objective), 0.0, lambda: at_reference(drafts(0.5))),
    "srpo at the reference with sure labels: the improver is off by one half": (row(improve), 0.25, lambda: at_reference(drafts(1.0))),
    "ofs-dpo: the gap of two that agree is 0": (row(partial(apart, beta=0.5)), 0.0, lambda: twins(3.0, 3.0)),
    "ofs-dpo: the chase of two that agree costs ln 2": (row(partial(chasing, beta=0.5)), math.log(2), lambda: twins(3.0, 3.0)),
    "ofs-dpo: at margin 20 dpo pulls with beta 2.06e-9": (
        lambda s: (gradient(row(dpo5), s)[:, 0] * 1e11).round() / 1e11,
        -0.5 * 2.06e-9,
        lambda: twins(40.0, 40.0),
    ),
    "ofs-dpo: at margin 20 the chase pulls with beta / 2": (
        lambda s: gradient(row(partial(chasing, beta=0.5)), s)[:, 0],
        -0.25,
        lambda: twins(40.0, 40.0),
    ),
}


def slope_of_reference(s: Scored, wins: bool) -> Tensor:
    """What remains of d loss / d log pi(b) when beta sigmoid(-m) of the right sign and alpha are taken away; m the winner's margin."""
    s = crossed(hard(s, not wins))
    m = h(s, 0.5) * (-1 if wins else 1)
    found = gradient(row(methods.xpo(0.5, 0.03).objective), s)[:, 1]
    return (found - ((-1 if wins else 1) * 0.5 * torch.sigmoid(-m) + 0.03)).detach()


BETAS = {
    "online-dpo": lambda beta: methods.online_dpo(beta),
    "xpo": lambda beta: methods.xpo(beta),
    "vpo": lambda beta: methods.vpo(beta),
    "hypo": lambda beta: methods.hypo(beta),
    "srpo": lambda beta: methods.srpo(beta),
}

REFUSED: dict[str, Refusal] = {
    "online-dpo: one response": (lambda: methods.online_dpo(responses=1), "responses is 1, needed 2 or more"),
    "online-dpo: an unknown label": (lambda: methods.online_dpo(label="hard"), "label is 'hard', needed one of soft, sampled, threshold"),
    "online-dpo: an unknown loss": (lambda: judged_pairs(compared(), loss="slic"), "loss is 'slic', needed one of dpo, ipo, hinge"),
    "online-dpo: rows without comparisons": (lambda: judged_pairs(pairs()), "reads beats, but the rows carry none"),
    "vpo: an unknown calibration": (lambda: methods.vpo(calibration="uniform"), "calibration is 'uniform'"),
    "vpo: a partner for given pairs": (lambda: methods.vpo(calibration="chosen", partner="reference"), "given pairs bring both"),
    "vpo: a negative alpha": (lambda: value(calibrated(1.0, 0.0), alpha=-1.0), "alpha is -1.0"),
    "vpo: a third sign": (lambda: value(calibrated(1.0, 0.0), sign=0), "sign is 0, needed 1"),
    "vpo: rows without calibration": (lambda: value(pairs()), "reads calibration"),
    "srpo: rows that are plain pairs": (lambda: methods.srpo().objective(pairs()), "the rows have 2 columns, needed six"),
    "on-policy: an unknown negative gradient": (lambda: methods.on_policy(negative_gradient="best"), "negative_gradient is 'best'"),
    "on-policy: a knob that the kind does not read": (
        lambda: methods.on_policy(negative_gradient="none", loss="ipo", push=1.0),
        "loss and push were given, which negative_gradient='none' does not read",
    ),
    "on-policy: a share above 1": (lambda: methods.on_policy(2.0), "fraction is 2.0"),
    "on-policy: a part of rows that are not there": (
        lambda: methods.on_policy(0.0).collect(Context({}, pairs().rows.replace(ranked=False))),
        "no ranked pairs",
    ),
    "hypo: one sample": (lambda: methods.hypo(responses=1), "responses is 1, needed 2 or more"),
}
