"""Facts of losses compiled from formulas: what they equal in the registry, and what they equal among themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from facts import Facts, Limit, Refusal, Value, equal_means, pairs, row
from preftune import methods
from preftune.logic.known import KNOWN
from preftune.logic.structure import compose, decompile
from preftune.objectives import auxiliary, modifiers, pairwise, reference_free
from preftune.objectives.logic import compiled
from preftune.types import Objective, Scored

logic = methods.logic

SHIPPED = {
    "logic": Facts(logic(), steady=True),
    "logic CE": Facts(logic("CE"), steady=True),
    "logic CE-unlikelihood": Facts(logic("CE-unlikelihood"), steady=True),
    "logic CPO sequence": Facts(logic("CPO", scale="sequence", beta=0.1), steady=True, shift=True),
    "logic ORPO": Facts(logic("ORPO"), steady=True),
    "logic cCPO": Facts(logic("cCPO"), steady=True),
    "logic SimPO": Facts(logic("SimPO", beta=2.5, margin=0.55), steady=True),
    "logic DPO": Facts(logic("DPO", scale="sequence", beta=0.1), steady=True, shift=True),
    "logic IPO": Facts(logic("DPO", link="squared", scale="sequence", beta=0.1), shift=True),
    # the kink of the hinge lies between finite differences where a row is near it; and it is flat beyond
    "logic hinge": Facts(logic("DPO", link="hinge", scale="sequence", beta=0.1), shift=True, smooth=False),
    "logic cCPO-ref": Facts(logic("cCPO-ref"), steady=True),
}


def known(name: str, **settings: object) -> Objective:
    return compiled(KNOWN[name].structure, **settings)  # type: ignore[arg-type]


def said(formula: str, **settings: object) -> Objective:
    return compiled(compose(formula), **settings)  # type: ignore[arg-type]


# (known loss, method and part of it): the compiled loss and the one written by hand. All that the registry is said to equal.
EQUAL: dict[tuple[str, str], tuple[Objective, Objective, Callable[[], Scored]]] = {
    ("CE", "sft (seq_mean)"): (known("CE"), auxiliary.nll, pairs),
    ("CE", "sft (seq_sum)"): (known("CE", scale="sequence"), partial(auxiliary.nll, aggregation="seq_sum"), pairs),
    ("CE-unlikelihood", "asft (alignment term)"): (known("CE-unlikelihood"), reference_free.asft, pairs),
    ("CPO", "cpo (preference term)"): (
        known("CPO", scale="sequence", beta=0.3),
        partial(reference_free.cpo, beta=0.3),
        pairs,
    ),
    ("CPO", "dpo-reference-free"): (
        known("CPO", scale="sequence", beta=0.3),
        partial(modifiers.dpo_reference_free, beta=0.3),
        pairs,
    ),
    ("CPO", "slic (ranking term, delta 1)"): (
        known("CPO", scale="sequence", link="hinge", beta=1.0),
        partial(pairwise.hinge_free, delta=1.0),
        pairs,
    ),
    ("CPO", "simpo (gamma 0)"): (known("CPO", beta=2.5), partial(reference_free.simpo, beta=2.5, gamma=0.0), pairs),
    ("ORPO", "orpo (odds-ratio term)"): (known("ORPO"), reference_free.odds_ratio, pairs),
    ("SimPO", "simpo"): (
        known("SimPO", beta=2.5, margin=1.375 / 2.5),
        partial(reference_free.simpo, beta=2.5, gamma=1.375),
        pairs,
    ),
    ("DPO", "dpo"): (known("DPO", scale="sequence", beta=0.3), partial(pairwise.dpo, beta=0.3), pairs),
    ("DPO", "tr-dpo"): (known("DPO", scale="sequence", beta=0.3), methods.tr_dpo(beta=0.3).objective, pairs),
    ("DPO", "hinge"): (known("DPO", scale="sequence", link="hinge", beta=0.3), partial(pairwise.hinge, beta=0.3), pairs),
    ("DPO", "ipo"): (known("DPO", scale="sequence", link="squared", beta=0.3), partial(pairwise.ipo, beta=0.3), pairs),
    ("DPO", "dpo-norm"): (known("DPO", beta=5.0), partial(modifiers.dpo_norm, beta=5.0), pairs),
    ("DPO", "ipo-avg"): (known("DPO", link="squared", beta=0.3), partial(pairwise.ipo_avg, beta=0.3), pairs),
}


def means(s: Scored) -> torch.Tensor:
    return s.mean_logp


def log(p: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[Scored], torch.Tensor]:
    """-log of a probability written by hand, of winner and loser at their mean log-probs."""
    return lambda s: -torch.log(p(means(s)[:, 0].exp(), means(s)[:, 1].exp()))


LIMITS: dict[str, Limit] = {
    **{f"logic: compiled {loss} is {part}": (row(left), row(right), make) for (loss, part), (left, right, make) in EQUAL.items()},
    "logic: with beta 1 the loss is -log P(formula)": (row(said("l -> w")), log(lambda p, q: 1 - q * (1 - p)), pairs),
    "logic: with beta 1 the loss is -log P(formula | given)": (
        row(said("l -> w given w | l")),
        log(lambda p, q: p / (p + q - p * q)),
        pairs,
    ),
    "logic: what is on both sides adds to the denominator": (
        row(said("l -> w given w | l both w & l")),
        log(lambda p, q: p / (p + q)),
        pairs,
    ),
    "logic: given the loser, only the winner counts": (row(known("given-loser")), row(known("CE")), pairs),
    "logic: a formula and its contrapositive are one loss": (row(said("l -> w")), row(said("~w -> ~l")), pairs),
    "logic: the shortened formula is the same loss": (
        row(said("(w | rw) & (w | ~rw) & (l | ~l)")),
        row(said("w")),
        pairs,
    ),
    "logic: a ratio compiles to its logarithm": (
        row(compiled(decompile("w*(1 - l) / (l*(1 - w))"))),
        row(reference_free.odds_ratio),
        pairs,
    ),
    "logic: ORPO-ref is the difference of log-odds minus the reference's log-ratio": (
        row(known("ORPO-ref", beta=0.7)),
        lambda s: -torch.nn.functional.logsigmoid(0.7 * (odds(s) - per_token(s, s.ref_logp))),
        pairs,
    ),
    "logic: the core formula with rl joined to its winning and rw to its losing side is DPO": (
        row(said("l & rw -> w & rl given l & rw | w & rl both l & rw & w & rl", scale="sequence", beta=0.1)),
        row(pairwise.dpo),
        pairs,
    ),
    "logic: exclusive or alone asks for one of the two": (
        row(said("w xor l")),
        log(lambda p, q: p * (1 - q) + q * (1 - p)),
        pairs,
    ),
    "logic: asft's alignment term less the odds ratio is -log P(one of the two)": (
        row(said("w xor l")),
        lambda s: reference_free.asft(s).row - reference_free.odds_ratio(s).row,
        pairs,
    ),
}


def odds(s: Scored) -> torch.Tensor:
    m = s.mean_logp
    o = m - torch.log1p(-m.exp())
    return o[:, 0] - o[:, 1]


def per_token(s: Scored, logp: torch.Tensor) -> torch.Tensor:
    m = logp / s.length
    return m[:, 0] - m[:, 1]


VALUES: dict[str, Value] = {
    "logic: CPO and ORPO of equal means are ln 2": (
        lambda s: torch.stack([known("CPO")(s).row, known("ORPO")(s).row]),
        math.log(2),
        equal_means,
    ),
    "logic: cCPO of equal means p is log(2 - p)": (row(known("cCPO")), math.log(2 - math.exp(-1.5)), equal_means),
    "logic: unCPO of equal means p is -log(1 - p + p^2)": (
        row(known("unCPO")),
        -math.log(1 - math.exp(-1.5) + math.exp(-3.0)),
        equal_means,
    ),
}

BETAS = {"logic": lambda v: logic(beta=v)}

REFUSED: dict[str, Refusal] = {
    "a formula that no world violates": (lambda: logic("w | ~w"), "tautology: true everywhere"),
    "a formula that no world satisfies": (lambda: logic("w & ~w"), "contradiction: false everywhere"),
    "a formula that its condition makes sure": (lambda: logic("l -> w", given="w"), "tautology: true wherever its condition 'w' holds"),
    "a formula that its condition rules out": (lambda: logic("w", given="~w"), "contradiction: false wherever its condition '~w' holds"),
    "a condition that never holds": (lambda: logic("w", given="l & ~l"), "condition of 'w' is a contradiction"),
    "a loss of the reference alone": (lambda: logic("rw"), "does not depend on the policy"),
    "a loss whose sides are one": (lambda: logic("w", given="w", both="w"), "does not depend on the policy"),
    "a loss from which the policy cancels": (lambda: logic("rw", given="w | l"), "does not depend on the policy"),
    "a margin that no formula reads": (lambda: logic("l -> w", margin=1.0), "names no m, but margin is 1.0"),
    "a formula with a margin that is not given": (lambda: logic("SimPO"), "no margin was given"),
    "a margin of nothing": (lambda: logic("SimPO", margin=0.0), "margin is 0.0"),
    "an unknown link of a formula": (lambda: logic(link="cubic"), "link is 'cubic', needed one of logistic, hinge, squared"),
    "an unknown scale of a formula": (lambda: logic(scale="token"), "scale is 'token', needed one of per_token, sequence"),
    "an atom of no policy": (lambda: compiled(compose("w & x", extra=("x",))), "no log-prob of training belongs to the atoms x"),
    "a name with a condition of its own": (lambda: logic("cpo", given="w"), "CPO is the name of a whole structure"),
    "lengths that are missing for a formula": (lambda: logic().objective(replace(pairs(), length=None)), "lengths"),
}
