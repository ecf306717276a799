"""Facts of self-play around Nash-MD and by rounds: ipo-md, nash-md and its policy gradients, mpo, inpo, dno, gpo, apo-nesterov."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from facts import DRAW, B, Facts, Limit, Refusal, Value, at, judged_pairs, normal, pairs, row
from preftune import methods
from preftune.objectives import games, pairwise, pointwise
from preftune.policies.tabular import TableResponses
from preftune.probe import probe
from preftune.reference import ema, extrapolated
from preftune.types import Method, Rows, Scored

SHIPPED = {
    "ipo-md": Facts(methods.ipo_md(), shift=True, swap=True),
    "nash-md": Facts(methods.nash_md(), shift=True, swap=True),
    # smooth=False: win rates and KL are constants for the gradient, and parts of the value; apart=False: a response that wins less
    # than the others may still win more than half
    "nash-md-pg": Facts(methods.nash_md_pg(), apart=False, swap=True, smooth=False),
    "nash-md-pg leave one out": Facts(methods.nash_md_pg(responses=4, baseline="leave_one_out"), shift=True, swap=True, smooth=False),
    "nash-ema-pg": Facts(methods.nash_ema_pg(), apart=False, swap=True, smooth=False),
    "mpo": Facts(methods.mpo(), shift=True, swap=True),
    "inpo": Facts(methods.inpo(), shift=True, swap=True),
    "inpo sampled": Facts(methods.inpo(labels="sampled", responses=2), shift=True, swap=True),
    "dno": Facts(methods.dno(), shift=True, swap=True),
    "dno-prct": Facts(methods.dno_prct(), steady=True, shift=True, swap=True),
    "gpo": Facts(methods.gpo(), apart=False, swap=True),  # scores here are all above 0: every response is pulled up
    "gpo centred": Facts(methods.gpo(beta=0.3, centred=True), shift=True, swap=True),
    "apo-nesterov": Facts(methods.apo_nesterov(), shift=True, swap=True),
    "apo-nesterov ipo": Facts(methods.apo_nesterov(inner="ipo"), shift=True, swap=True),
    "apo-nesterov sppo": Facts(methods.apo_nesterov(inner="sppo"), shift=True, swap=True),
}

inpo, inpo_pairs = partial(games.inpo, beta=0.1, inertia=0.2), partial(games.inpo_pairs, beta=0.1, inertia=0.2)
dno5 = partial(games.dno, beta=0.5)


def rounds() -> Scored:
    """Pairs judged against one another, with a policy of the last round."""
    s = judged_pairs()
    return replace(s, other={"previous": s.ref_logp + normal(B, 2)})


def won() -> Scored:
    """The same, column 0 a sure winner."""
    s = rounds()
    sure = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64).expand(B, 2, 2)
    return replace(s, rows=s.rows.replace(beats=sure))


def anchored(s: Scored) -> Scored:
    """Nothing but the last round's policy: it is the reference."""
    return replace(s, other={"previous": s.ref_logp})


def h(s: Scored) -> Tensor:
    """The h of the paper with tau = .1 and eta = .3."""
    gap = lambda x: x[:, 0] - x[:, 1]
    return gap(s.logp) - (0.1 / 0.3) * gap(s.ref_logp) - (0.2 / 0.3) * gap(s.other["previous"])


def lists(K: int = 4) -> Scored:
    """Lists of K with a law, how each beats each, and how each beats the law."""
    law = torch.rand(B, K, generator=DRAW, dtype=torch.float64).softmax(1)
    lower = torch.rand(B, K, K, generator=DRAW, dtype=torch.float64).tril(-1)
    beats = lower + (1 - lower.mT).triu(1) + 0.5 * torch.eye(K, dtype=torch.float64)
    winrate = (beats @ law[:, :, None])[:, :, 0]
    response = TableResponses(torch.arange(K).expand(B, K), law)
    rows = Rows(tuple(map(str, range(B))), tuple(range(B)), response, law=law, beats=beats, winrate=winrate, score=winrate - 0.5)
    reference = normal(B, K)
    return Scored(rows, (reference + normal(B, K)).requires_grad_(), reference, other={"previous": normal(B, K)})


def labelled(**labels: Tensor) -> Scored:
    s = pairs()
    return replace(s, rows=s.rows.replace(**{name: value.expand(B, -1) for name, value in labels.items()}))


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LIMITS: dict[str, Limit] = {
    "inpo without inertia is online_ipo": (
        row(partial(games.inpo, beta=0.3, inertia=0.0)),
        row(partial(games.online_ipo, beta=0.3)),
        rounds,
    ),
    "inpo without a pull to the reference is online_ipo against the last round's policy": (
        row(partial(games.inpo, beta=0.0, inertia=0.3)),
        lambda s: games.online_ipo(replace(s, ref_logp=s.other["previous"]), beta=0.3).row,
        rounds,
    ),
    "inpo in the first round is online_ipo with the whole pull": (
        row(inpo),
        row(partial(games.online_ipo, beta=0.3)),
        lambda: anchored(rounds()),
    ),
    "inpo on a pair is the win-rate regression of the paper": (
        row(inpo),
        lambda s: (h(s) - (s.rows.winrate[:, 0] - s.rows.winrate[:, 1]) / 0.3) ** 2,
        rounds,
    ),
    "inpo_pairs on a won pair is (h - 1 / (2 eta))^2": (row(inpo_pairs), lambda s: (h(s) - 1 / 0.6) ** 2, won),
    "inpo by method has tau and eta of the paper": (row(methods.inpo(tau=0.1, eta=0.3).objective), row(inpo), rounds),
    "inpo's eta is three tau where none is given": (row(methods.inpo(tau=0.1).objective), row(inpo), rounds),
    "dno on draws is the mean over pairs": (
        lambda s: dno5(replace(s, rows=s.rows.replace(law=None))).row,
        lambda s: torch.stack([dno_pair(s, i, j) for i in range(4) for j in range(i)]).mean(0),
        lists,
    ),
    "dno over a law is the expectation over pairs of it": (
        row(dno5),
        lambda s: sum(s.rows.law[:, i] * s.rows.law[:, j] * dno_pair(s, i, j) for i in range(4) for j in range(4)),
        lists,
    ),
    "dno sees differences of win rates only": (
        row(dno5),
        lambda s: dno5(replace(s, rows=s.rows.replace(winrate=s.rows.winrate + 0.25))).row,
        lists,
    ),
    "dno with z = 1 is dpo": (row(dno5), row(partial(pairwise.dpo, beta=0.5)), lambda: labelled(winrate=vector(1000, 0))),
    "dno with z = 0 is dpo the other way round": (
        row(dno5),
        lambda s: pairwise.dpo(replace(s, rows=s.rows.replace(prefer=torch.zeros(B))), beta=0.5).row,
        lambda: labelled(winrate=vector(0, 1000)),
    ),
    "gpo with scores P - 1/2 is sppo": (row(partial(games.gpo, beta=0.3)), row(partial(pointwise.sppo, beta=0.3)), lists),
    "gpo is the mean square of its residuals": (
        row(partial(games.gpo, beta=0.3)),
        lambda s: (s.rows.law * (s.logratio - s.rows.score / 0.3) ** 2).sum(1),
        lists,
    ),
    "gpo centred over a law is half of online_ipo with scores": (
        row(partial(games.gpo, beta=0.3, centred=True)),
        lambda s: games.online_ipo(replace(s, rows=s.rows.replace(winrate=s.rows.score)), beta=0.3).row / 2,
        lists,
    ),
}


def dno_pair(s: Scored, i: int, j: int) -> Tensor:
    """-(z log sigmoid(D) + (1 - z) log sigmoid(-D)), eta = .5."""
    z = torch.sigmoid(s.rows.winrate[:, i] - s.rows.winrate[:, j])
    D = 0.5 * (s.logratio[:, i] - s.logratio[:, j])
    return -(z * torch.sigmoid(D).log() + (1 - z) * torch.sigmoid(-D).log())


SAME_GRADIENT: dict[str, Limit] = {
    "inpo_pairs in expectation over its labels is inpo": (row(inpo_pairs), row(inpo), lists),
    "apo-nesterov's ipo is online_ipo": (
        row(methods.apo_nesterov(beta=0.3, inner="ipo").objective),
        row(partial(games.online_ipo, beta=0.3)),
        lists,
    ),
    "apo-nesterov's sppo is half of online_ipo": (
        row(methods.apo_nesterov(beta=0.3, inner="sppo").objective),
        lambda s: games.online_ipo(s, beta=0.3).row / 2,
        lists,
    ),
}


def gaps(policy: float, reference: float, previous: float) -> Scored:
    """A won pair whose log-probs differ by so much under the three policies."""
    s, gap = won(), lambda x: torch.tensor([x, 0.0], dtype=torch.float64) + normal(B, 1)
    s = replace(s, ref_logp=gap(reference), other={"previous": gap(previous)})
    return at(s, gap(policy))


def dno_at(gap: float, **labels: Tensor) -> Scored:
    s = labelled(**labels)
    return at(s, s.ref_logp + torch.tensor([gap, 0.0], dtype=torch.float64))


VALUES: dict[str, Value] = {
    "inpo_pairs at gaps 1, .4, .7 with tau .1, eta .3 is (.4 - 1.6667)^2 = 1.604444": (
        row(inpo_pairs),
        (0.4 - 1 / 0.6) ** 2,
        lambda: gaps(1.0, 0.4, 0.7),
    ),
    "dno at a difference of win rates of .3 and D = .5 is .686856": (
        row(partial(games.dno, beta=1.0)),
        -math.log(1 / (1 + math.exp(-0.5))) + (1 - 1 / (1 + math.exp(-0.3))) * 0.5,
        lambda: dno_at(0.5, winrate=vector(0.7, 0.4)),
    ),
    "dno-prct at D = .5 is .474077": (row(methods.dno_prct(eta=0.1).objective), math.log1p(math.exp(-0.5)), lambda: dno_at(5.0)),
    "dno is least where log-ratios are win rates over eta": (
        lambda s: torch.autograd.grad(dno5(s).row.sum(), s.logp)[0].abs().sum(1),
        0.0,
        lambda: solved(),
    ),
    "gpo is 0 on its targets": (row(partial(games.gpo, beta=0.3)), 0.0, lambda: on_target()),
}


def solved() -> Scored:
    """pi_t exp(winrate / .5) / Z: the minimum of every pair, under any law."""
    s = lists()
    return at(s, s.ref_logp + s.rows.winrate / 0.5 + normal(B, 1))


def on_target() -> Scored:
    s = lists()
    return at(s, s.ref_logp + s.rows.score / 0.3)


def probed(method: Method) -> None:
    probe(method)


REFUSED: dict[str, Refusal] = {
    "a mixture of ipo-md beyond the reference": (lambda: methods.ipo_md(b=1.5), "mixture is 1.5"),
    "a negative mixture": (lambda: methods.nash_md(mixture=-0.1), "mixture is -0.1"),
    "a NaN mixture": (lambda: methods.nash_md_pg(mixture=math.nan), "mixture is nan"),
    "nash-md without an opponent": (lambda: methods.nash_md(opponents=0), "opponents is 0"),
    "nash-md-pg without an opponent": (lambda: methods.nash_md_pg(opponents=0), "opponents is 0"),
    "nash-ema-pg without an opponent": (lambda: methods.nash_ema_pg(opponents=0), "opponents is 0"),
    "a baseline of one response": (lambda: methods.nash_md_pg(baseline="leave_one_out"), "responses is 1"),
    "an average that grows": (lambda: methods.nash_ema_pg(decay=1.1), "decay is 1.1"),
    "an average that is no number": (lambda: ema(math.nan), "decay is nan"),
    "a magnet that never waits": (lambda: methods.mpo(K=0), "K is 0"),
    "a last policy that weighs less than nothing": (lambda: methods.inpo(tau=0.2, eta=0.1), "tau is 0.2 and eta 0.1"),
    "no pull of inpo at all": (lambda: probed(methods.inpo(tau=0.0)), "inertia is 0"),
    "labels of inpo that do not exist": (lambda: methods.inpo(labels="best"), "labels is 'best'"),
    "a tournament of six": (lambda: methods.inpo(labels="tournament", responses=6), "responses is 6"),
    "one response of inpo alone": (lambda: methods.inpo(responses=1), "responses is 1"),
    "inpo without the last policy": (lambda: games.inpo(judged_pairs()), "previous"),
    "win rates of dno that are missing": (lambda: games.dno(pairs()), "winrate"),
    "an eta of dno that is not above zero": (lambda: methods.dno(eta=0.0), "eta is 0.0"),
    "scores of gpo that are missing": (lambda: games.gpo(pairs()), "score"),
    "one response of gpo alone": (lambda: methods.gpo(responses=1), "responses is 1"),
    "a choice of gpo's responses that is unknown": (lambda: methods.gpo(train_on="best"), "train_on is 'best'"),
    "a margin that is none": (lambda: methods.dno_prct(margin=0.0), "margin is 0.0"),
    "pairs of the past that are half of all": (lambda: methods.dno_prct(past=0.5), "past is 0.5"),
    "grades of an unknown kind": (lambda: methods.dno_prct(reward="rank"), "reward is 'rank'"),
    "one response of dno-prct alone": (lambda: methods.dno_prct(responses=1), "responses is 1"),
    "momentum without end": (lambda: methods.apo_nesterov(alpha=1.0), "alpha is 1.0"),
    "momentum backwards": (lambda: extrapolated(-0.1), "alpha is -0.1"),
    "an inner loss that does not exist": (lambda: methods.apo_nesterov(inner="slic"), "inner is 'slic'"),
}

BETAS = {
    "ipo-md": lambda v: methods.ipo_md(tau=v),
    "nash-md": lambda v: methods.nash_md(tau=v),
    "mpo": lambda v: methods.mpo(tau=v),
    "gpo": lambda v: methods.gpo(beta=v),
    "apo-nesterov": lambda v: methods.apo_nesterov(beta=v),
}
