"""What every objective has to be, and how objectives are related, as tables of facts.

The first tests run over every shipped method. A method from outside joins the tests of the first section with
PREFTUNE_TEST_METHODS="my_package.mine:method my_other:method" pytest tests/test_objective_facts.py
"""

from __future__ import annotations

import inspect
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune import methods
from preftune.objectives import auxiliary, games, pairwise, pointwise, reference_free
from preftune.policies.tabular import TableResponses
from preftune.probe import probe, random_scored
from preftune.reference import frozen, soft
from preftune.registry import resolve_method
from preftune.types import Method, Objective, PreftuneError, Rows, Scored, needs, needs_of

# --- the table of objectives ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """A method and what is claimed of its objective."""

    method: Method
    steady: bool = False  #  pulls the winner up and the loser not up at every point, not only at the reference
    shift: bool = False  #   a constant added to all log-ratios of a row changes nothing
    swap: bool = False  #    columns exchanged together with their labels change nothing


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
OUTSIDE = {name: Facts(resolve_method(name)()) for name in os.environ.get("PREFTUNE_TEST_METHODS", "").split()}

every = pytest.mark.parametrize("facts", (SHIPPED | OUTSIDE).values(), ids=(SHIPPED | OUTSIDE).keys())
shipped = pytest.mark.parametrize("facts", SHIPPED.values(), ids=SHIPPED.keys())


def data(facts: Facts, rows: int = 6) -> Scored:
    return random_scored(needs_of(facts.method.objective), rows, seed=rows)


def gradient(formula: Callable[[Scored], Tensor], s: Scored) -> Tensor:
    """d sum(formula) / d logp [B, K]."""
    (found,) = torch.autograd.grad(formula(s).sum(), s.logp, allow_unused=True, retain_graph=True)
    return torch.zeros_like(s.logp) if found is None else found


def at(s: Scored, logp: Tensor) -> Scored:
    """The same rows with other log-probabilities of the policy."""
    return replace(s, logp=logp.detach().requires_grad_())


def take(s: Scored, rows: list[int]) -> Scored:
    pick = lambda x: None if x is None else x[rows]
    return Scored(s.rows.take(rows), s.logp[rows].detach().requires_grad_(), pick(s.ref_logp), pick(s.length))


def row(objective: Objective) -> Callable[[Scored], Tensor]:
    return lambda s: objective(s).row


def close(a: Tensor, b: Tensor, rtol: float = 1e-11, atol: float = 1e-12) -> None:
    """Same shape, same numbers up to a few thousand roundings of float64."""
    torch.testing.assert_close(a.detach(), b.detach(), rtol=rtol, atol=atol)


def trained_columns(s: Scored) -> int:
    """Labelled columns; further ones only estimate a constant."""
    return s.logp.shape[1] if s.rows.desirable is None else s.rows.desirable.shape[1]


def test_every_shipped_method_stands_in_the_table() -> None:
    assert {name.split()[0] for name in SHIPPED} == set(methods.METHODS)


@every
def test_a_loss_is_one_finite_number_per_row_and_so_are_its_metrics(facts: Facts) -> None:
    s = data(facts)
    loss = facts.method.objective(s)
    assert loss.row.shape == (6,) and loss.row.isfinite().all()
    assert loss.count is None or (loss.count.shape == (6,) and not loss.count.requires_grad)
    assert all(metric.shape == (6,) and not metric.requires_grad for metric in loss.metrics.values())


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_are_finite_at_the_borders_of_the_declared_domain(facts: Facts, dtype: torch.dtype) -> None:
    """All combinations of log-ratios -domain, 0, +domain over the columns; for reference-free objectives the log-probs alone."""
    domain = needs_of(facts.method.objective).domain
    columns = data(facts).logp.shape[1]
    ratio = torch.tensor(list(itertools.product([-domain, 0.0, domain], repeat=columns)), dtype=dtype)
    s = data(facts, len(ratio))
    reference = torch.full_like(ratio, -domain - 1)
    s = replace(s, ref_logp=None if s.ref_logp is None else reference, length=s.length.to(dtype))
    whole = at(s, reference + ratio)
    coupled = needs_of(facts.method.objective).batch  # then also each row as a batch of its own
    for part in [whole] + [take(whole, [i]) for i in range(len(ratio)) if coupled]:
        assert facts.method.objective(part).row.dtype == dtype
        assert facts.method.objective(part).row.isfinite().all()
        assert gradient(row(facts.method.objective), part).isfinite().all()


@shipped
def test_the_winner_is_pulled_up_and_the_loser_is_not(facts: Facts) -> None:
    """At the reference always; at any point for objectives that claim to be steady."""
    objective = facts.method.objective
    s = data(facts, 50)
    points = [s] if s.ref_logp is None else [at(s, s.ref_logp)] + [s] * facts.steady
    for point in points:
        pull = gradient(row(objective), point)
        if s.rows.winrate is not None:
            best, worst = s.rows.winrate.argmax(1, keepdim=True), s.rows.winrate.argmin(1, keepdim=True)
            winner, loser = pull.gather(1, best), pull.gather(1, worst)
        elif s.rows.desirable is not None:
            labelled = pull[:, : trained_columns(s)]
            winner, loser = labelled[s.rows.desirable], labelled[~s.rows.desirable]
        else:
            winner, loser = pull[:, 0], pull[:, 1:]
        assert (winner < 0).all()
        assert (loser > 0).all()


@every
def test_the_gradient_is_that_of_the_loss(facts: Facts) -> None:
    """Finite differences in float64, over the columns that are trained."""
    s = data(facts, 3)
    k = trained_columns(s)
    rest = s.logp[:, k:].detach()

    def loss(logp: Tensor) -> Tensor:
        return facts.method.objective(replace(s, logp=torch.cat([logp, rest], 1))).row

    assert torch.autograd.gradcheck(loss, s.logp[:, :k].detach().requires_grad_())


@every
def test_no_gradient_reaches_the_reference(facts: Facts) -> None:
    s = data(facts)
    reference = torch.randn_like(s.logp).requires_grad_() if s.ref_logp is None else s.ref_logp
    loss = facts.method.objective(replace(s, ref_logp=reference)).row.sum()
    (found,) = torch.autograd.grad(loss, reference, allow_unused=True)
    assert found is None or not found.any()


@every
def test_reference_free_objectives_ignore_the_reference(facts: Facts) -> None:
    if needs_of(facts.method.objective).reference:
        with pytest.raises(PreftuneError, match="reference"):
            facts.method.objective(replace(data(facts), ref_logp=None))
    else:
        s = data(facts)
        with_reference = replace(s, ref_logp=torch.randn_like(s.logp))
        assert torch.equal(facts.method.objective(s).row, facts.method.objective(with_reference).row)


@every
def test_rows_in_another_order_give_the_same_losses_in_that_order(facts: Facts) -> None:
    s = data(facts)
    order = [4, 2, 0, 5, 1, 3]
    close(facts.method.objective(take(s, order)).row, facts.method.objective(s).row[order])


@every
def test_other_rows_matter_only_where_it_is_declared_and_never_for_the_gradient(facts: Facts) -> None:
    s = data(facts)
    moved = s.logp.detach().clone()
    moved[1:] += 5.0
    here, there = facts.method.objective(s).row[0], facts.method.objective(at(s, moved)).row[0]
    assert bool(here != there) == needs_of(facts.method.objective).batch
    assert not torch.autograd.grad(here, s.logp)[0][1:].any()


@shipped
def test_a_constant_on_all_log_ratios_changes_nothing_where_claimed_and_something_elsewhere(facts: Facts) -> None:
    s = data(facts)
    constant = torch.linspace(-7, 9, len(s.logp), dtype=torch.float64)[:, None]
    before, after = facts.method.objective(s).row, facts.method.objective(at(s, s.logp + constant)).row
    assert torch.allclose(before, after, rtol=1e-11, atol=1e-11) == facts.shift


@shipped
def test_columns_exchanged_with_their_labels_change_nothing_where_claimed(facts: Facts) -> None:
    s = data(facts)
    if not facts.swap:
        return
    if s.rows.ranked:
        prefer = torch.linspace(0, 1, len(s.logp), dtype=torch.float64)
        order, here, there = [1, 0], dict(prefer=prefer), dict(prefer=1 - prefer)
    elif s.rows.desirable is not None:
        order, here, there = [1, 0, 2, 3], {}, dict(desirable=s.rows.desirable[:, [1, 0]])
        good = torch.tensor([[True, False]] * len(s.logp))
        s = replace(s, logp=s.logp, rows=s.rows.replace(desirable=good))
        there = dict(desirable=~good)
    else:
        order = [2, 0, 3, 1]
        law = torch.rand(s.logp.shape, dtype=torch.float64).softmax(1)
        here, there = dict(law=law), dict(law=law[:, order], winrate=s.rows.winrate[:, order])
    left = replace(s, rows=s.rows.replace(**here))
    right = Scored(s.rows.replace(**there), s.logp[:, order], s.ref_logp[:, order], s.length[:, order])
    close(facts.method.objective(left).row, facts.method.objective(right).row)


@every
def test_hyperparameters_have_names_and_there_is_no_sink_for_misspelt_ones(facts: Facts) -> None:
    function = facts.method.objective
    while isinstance(function, partial):
        function = function.func
    kinds = {name: parameter.kind for name, parameter in inspect.signature(function).parameters.items()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds.values() and inspect.Parameter.VAR_POSITIONAL not in kinds.values()
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in list(kinds.values())[1:])


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_misspelt_hyperparameter_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="betta"):
        methods.METHODS[name](betta=0.1)


@every
def test_the_probe_accepts_every_method(facts: Facts) -> None:
    probe(facts.method)


# --- the table of limits: left equals right, in value and gradient ---------------------------------------------------

Formula = Callable[[Scored], Tensor]
DRAW = torch.Generator().manual_seed(0)
B = 50


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def pairs(*, equal_length: float | None = None, per_token: float = -1.5, **labels: Tensor) -> Scored:
    """B ranked pairs, log-ratios with standard deviation 8, lengths 5 to 40 or all alike."""
    length = torch.randint(5, 41, (B, 2), generator=DRAW).double() if equal_length is None else torch.full((B, 2), equal_length).double()
    logp = length * per_token * (1 + 0.3 * torch.rand(B, 2, generator=DRAW, dtype=torch.float64))
    rows = Rows(tuple(map(str, range(B))), tuple(range(B)), TableResponses(torch.arange(2).expand(B, 2)), ranked=True, **labels)
    return Scored(rows, logp.requires_grad_(), logp.detach() + 8 * normal(B, 2), length)


def soft_pairs() -> Scored:
    return pairs(prefer=torch.rand(B, generator=DRAW, dtype=torch.float64))


def judged_pairs() -> Scored:
    """Pairs judged against one another, themselves at 1/2: winrate = (1/2 + p) / 2 and (1/2 + 1 - p) / 2, p = prefer."""
    p = torch.rand(B, generator=DRAW, dtype=torch.float64)
    return pairs(prefer=p, winrate=torch.stack([0.25 + p / 2, 0.75 - p / 2], 1))


def at_reference(s: Scored) -> Scored:
    return at(s, s.ref_logp)


def labelled(z0: float = 0.0) -> Scored:
    """One good and one bad response each, and two mismatched ones at log-ratio z0 (plus a spread of mean zero)."""
    s = pairs()
    spread = normal(B, 2)
    mismatched = s.ref_logp + z0 + spread - spread.mean()
    rows = s.rows.replace(ranked=False, desirable=torch.tensor([[True, False]] * B))
    return Scored(rows, torch.cat([s.logp, mismatched], 1).detach().requires_grad_(), torch.cat([s.ref_logp, s.ref_logp], 1))


def h(s: Scored, beta: float) -> Tensor:
    return beta * (s.logratio[:, 0] - s.logratio[:, 1])


def swapped(s: Scored) -> Scored:
    """The other response preferred: columns exchanged, labels as they are."""
    return Scored(s.rows, s.logp[:, [1, 0]], s.ref_logp[:, [1, 0]], s.length[:, [1, 0]])


def labels_off(s: Scored) -> Scored:
    return replace(s, rows=s.rows.replace(prefer=None))


def prefer(p: float, s: Scored) -> Scored:
    return replace(s, rows=s.rows.replace(prefer=torch.full((B,), p, dtype=torch.float64)))


def law(*p: float) -> Callable[[Scored], Scored]:
    return lambda s: replace(s, rows=s.rows.replace(law=torch.tensor([p] * B, dtype=torch.float64)))


dpo, ipo, ipo_avg, rdpo = pairwise.dpo, pairwise.ipo, pairwise.ipo_avg, pairwise.rdpo
dpo5, rdpo5 = partial(dpo, beta=0.5), partial(rdpo, beta=0.5, label_smoothing=0.1)
online = partial(games.online_ipo, beta=0.3)
kto = partial(pointwise.kto, beta=0.2, desirable_weight=1.5, undesirable_weight=0.7)
L = 20.0

# sentence: (left, right, rows)
LIMITS: dict[str, tuple[Formula, Formula, Callable[[], Scored]]] = {
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


def at_gap(s: Scored, gap: Tensor) -> Scored:
    """Log-probabilities of column 0 moved so that the gap of log-ratios is `gap`; still a function of s.logp."""
    first = s.ref_logp[:, 0] + s.logratio[:, 1] + gap
    return replace(s, logp=torch.stack([first, s.logp[:, 1]], 1))


def over_count(objective: Objective, s: Scored) -> Tensor:
    """The learner's quotient sum(row) / sum(count), as [1]."""
    loss = objective(s)
    return loss.row.sum()[None] / (len(loss.row) if loss.count is None else loss.count.sum())


def odds(m: Tensor) -> Tensor:
    """log(e^m / (1 - e^m)) without any care."""
    return torch.log(m.exp() / (1 - m.exp()))


def reference_labels() -> Scored:
    """Policy and reference agree; the gradient of kto is not zero there, so only the value is compared."""
    s = labelled()
    return replace(s, logp=s.ref_logp.detach().requires_grad_())


VALUE_ONLY = {"kto at the reference is half of each weight"}


@pytest.mark.parametrize("sentence", LIMITS)
def test_limit(sentence: str) -> None:
    left, right, make = LIMITS[sentence]
    s = make()
    close(left(s), right(s))
    if sentence not in VALUE_ONLY:
        close(gradient(left, s), gradient(right, s))


# sentence: (left, right, rows) where the two differ by a constant, so that their gradients agree
SAME_GRADIENT: dict[str, tuple[Formula, Formula, Callable[[], Scored]]] = {
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


@pytest.mark.parametrize("sentence", SAME_GRADIENT)
def test_limit_up_to_a_constant(sentence: str) -> None:
    left, right, make = SAME_GRADIENT[sentence]
    s = make()
    close(gradient(left, s), gradient(right, s))


# sentence: (formula, value of every row, rows)
VALUES: dict[str, tuple[Formula, float, Callable[[], Scored]]] = {
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


def gap_of(g: float) -> Scored:
    s = pairs()
    return at(s, s.ref_logp + torch.tensor([g, 0.0], dtype=torch.float64) + normal(B, 1))


def equal_means() -> Scored:
    s = pairs()
    return at(s, -1.5 * s.length)


def best_response() -> Scored:
    s = judged_pairs()
    return at(s, s.ref_logp + s.rows.winrate / 0.3 + normal(B, 1))


@pytest.mark.parametrize("sentence", VALUES)
def test_value(sentence: str) -> None:
    formula, expected, make = VALUES[sentence]
    found = formula(make())
    close(found, torch.full_like(found, expected), rtol=1e-12, atol=1e-12)


# --- facts that fit no table ----------------------------------------------------------------------------------------


def test_flipped_labels_shrink_dpo_once_cdpo_twice_and_rdpo_not_at_all() -> None:
    """True P = .7, labels flipped with rate .3, both orders in the data: P(label) = .7 * .7 + .3 * .3 = .58.

    Optimal margins: rdpo logit(.7) = .8473; dpo logit(.58) = .3228; cdpo logit(.58 * .7 + .42 * .3 = .532) = .1282.
    """
    for objective, optimum in [
        (partial(rdpo, beta=1.0, label_smoothing=0.3), math.log(0.7 / 0.3)),
        (partial(dpo, beta=1.0), math.log(0.58 / 0.42)),
        (partial(dpo, beta=1.0, label_smoothing=0.3), math.log(0.532 / 0.468)),
    ]:
        s = gap_of(optimum)
        noisy = lambda s, objective=objective: 0.58 * objective(s).row + 0.42 * objective(swapped(s)).row
        close(gradient(noisy, s), torch.zeros(B, 2, dtype=torch.float64))


def test_rdpo_pulls_at_least_as_hard_as_dpo_and_its_loss_falls_without_bound() -> None:
    s = pairs()
    assert (gradient(row(rdpo5), s)[:, 0] <= gradient(row(dpo5), s)[:, 0]).all()
    assert rdpo(gap_of(30.0), beta=1.0).row.max() < -3.7  # -0.1 * 30 / 0.8 = -3.75
    assert rdpo(gap_of(1000.0), beta=1.0).row.max() < -124


def test_dpo_keeps_its_relative_accuracy_far_out() -> None:
    """-logsigmoid(50) = log(1 + e^-50) = 1.9287498479639178e-22."""
    s = gap_of(0.0)
    s = at(s, s.ref_logp + torch.tensor([50.0, 0.0]))
    exact = torch.log1p(torch.exp(-h(s, 1.0)))
    torch.testing.assert_close(dpo(s, beta=1.0).row, exact, rtol=1e-12, atol=0.0)
    assert dpo(s, beta=1.0).row.min() > 1.8e-22


def test_rpo_leaves_the_rejected_side_of_dpo_alone() -> None:
    s = pairs()
    plain, regular = gradient(row(dpo5), s), gradient(row(methods.rpo(0.5, 0.2).objective), s)
    close(regular[:, 1], plain[:, 1])
    close(regular[:, 0], plain[:, 0] - 0.2 * 0.5)


def test_simpo_moves_winner_and_loser_by_their_own_lengths() -> None:
    s = pairs()
    pull = gradient(row(reference_free.simpo), s) * s.length
    close(pull[:, 0], -pull[:, 1])


def test_kto_pulls_no_harder_than_a_quarter_of_weight_times_beta() -> None:
    s = labelled(3.0)
    pull = gradient(row(kto), s)[:, :2].abs()
    assert (pull <= torch.tensor([1.5, 0.7]) * 0.2 / 4 + 1e-15).all()
    assert not gradient(row(kto), s)[:, 2:].any()


def test_kto_takes_the_majority_and_calibrates_nothing() -> None:
    """A response labelled good with probability p is pushed up at every log-ratio if w_D p > w_U (1 - p), down otherwise."""
    s = labelled(0.0)
    only = lambda good: replace(s, rows=s.rows.replace(desirable=torch.full((B, 1), good)))
    for p, sign in [(0.3, 1.0), (0.35, -1.0)]:  # 1.5 * .3 < .7 * .7 = .49 < 1.5 * .35 = .525 and .7 * .65 = .455
        expected = p * gradient(row(kto), only(True))[:, 0] + (1 - p) * gradient(row(kto), only(False))[:, 0]
        assert (expected.sign() == sign).all()


def test_kto_counts_labelled_responses_and_leaves_absent_ones_out() -> None:
    s = labelled(3.0)
    present = torch.ones(B, 4, dtype=torch.bool)
    present[0, 1] = False
    part = replace(s, rows=s.rows.replace(present=present))
    assert kto(part).count.tolist() == [1.0] + [2.0] * (B - 1)
    close(kto(part).row[0], kto(replace(s, rows=s.rows.replace(desirable=torch.tensor([[True]] * B)), logp=first_of(s))).row[0])
    present[1, 2:] = False  # a mismatched response that is absent leaves the baseline to the others
    s.logp.data[1, 2:] = 1e6
    assert kto(part).row.isfinite().all() and kto(part).metrics["kl_baseline"].max() < 10


def first_of(s: Scored) -> Tensor:
    """Log-probs whose columns 1 .. 3 all are mismatched ones with the same mean as before."""
    return torch.cat([s.logp[:, :1], (s.ref_logp[:, 1:2] + 3.0), s.ref_logp[:, 2:] + 3.0], 1).detach()


# --- what is refused ------------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
def test_a_beta_that_is_no_finite_number_above_zero_is_refused_by_its_value(name: str, value: float) -> None:
    with pytest.raises(PreftuneError, match=f"(beta|tau) is {value}"):
        probe(BETAS[name](value))


@pytest.mark.parametrize("value", [0.5, 0.9, 1.0, -0.1, math.nan])
@pytest.mark.parametrize("method", [methods.dpo, methods.rdpo, methods.rpo, methods.rpo_avg])
def test_a_flip_rate_of_one_half_or_more_is_refused(method: Callable[..., Method], value: float) -> None:
    with pytest.raises(PreftuneError, match=f"label_smoothing is {value}"):
        probe(method(label_smoothing=value))


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "both of simpo's margins": (lambda: methods.simpo(gamma=1.0, gamma_beta_ratio=0.5), "gamma=1.0 and gamma_beta_ratio=0.5"),
    "neither of simpo's margins": (lambda: methods.simpo(), "exactly one"),
    "a share above one": (lambda: methods.tr_dpo(alpha=1.5), "alpha is 1.5"),
    "a negative share": (lambda: soft(-0.1), "alpha is -0.1"),
    "a NaN share": (lambda: soft(math.nan), "alpha is nan"),
    "a period of no step": (lambda: methods.tr_dpo(every=0), "every is 0"),
    "an unknown aggregation": (lambda: probe(methods.sft("sum")), "aggregation is 'sum'"),
    "a NaN weight": (lambda: probe(methods.rpo(eta=math.nan)), "nan"),
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


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what: str) -> None:
    attempt, message = REFUSED[what]
    with pytest.raises(PreftuneError, match=message):
        attempt()


def test_what_is_added_needs_what_its_parts_need() -> None:
    both = needs_of(auxiliary.add(auxiliary.nll, auxiliary.scale(dpo, 0.1), pointwise.kto))
    assert both.columns == "K" and both.reference and both.batch
    assert both.labels == ("ranked", "desirable") and both.optional == ("prefer",)
    assert not needs_of(methods.orpo().objective).reference


# --- the probe ------------------------------------------------------------------------------------------------------


@needs()
def reduced(s: Scored):
    return replace(dpo(s), row=dpo(s).row.mean())


@needs()
def constant(s: Scored):
    return replace(dpo(s), row=dpo(s).row.detach())


@needs()
def differentiates_the_reference(s: Scored):
    return replace(dpo(s), row=-logsigmoid((s.logp - s.ref_logp)[:, 0] - (s.logp - s.ref_logp)[:, 1]))


@needs()
def only_the_reference(s: Scored):
    return replace(dpo(s), row=(0 * s.logp + s.ref_logp).sum(1))


@needs()
def not_a_number(s: Scored):
    return replace(dpo(s), row=torch.log(-s.logp.abs()).sum(1))


@needs()
def infinite_slope(s: Scored):
    return replace(dpo(s), row=torch.sqrt((0 * s.logp).sum(1)))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (reduced, r"shape \(\) for 2 rows"),
        (constant, "no gradient of constant reaches logp"),
        (differentiates_the_reference, "reaches ref_logp"),
        (only_the_reference, "reaches ref_logp"),
        (not_a_number, "nan"),
        (infinite_slope, "gradient of infinite_slope"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_probe_catches(objective: Objective, message: str) -> None:
    with pytest.raises(PreftuneError, match=message):
        probe(replace(methods.dpo(), objective=objective))
