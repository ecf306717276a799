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
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from all_facts import FAMILIES, merged
from facts import (
    B,
    Facts,
    Limit,
    Refusal,
    Value,
    at,
    at_ratio,
    at_reference,
    close,
    columns,
    gap_of,
    gradient,
    h,
    labelled,
    pairs,
    row,
    swapped,
    take,
)
from facts_core import dpo, dpo5, kto, rdpo, rdpo5
from preftune import methods
from preftune.objectives import auxiliary, pointwise, reference_free
from preftune.probe import probe, random_scored
from preftune.registry import resolve_method
from preftune.types import Method, Objective, PreftuneError, Scored, needs, needs_of

# --- the tables, one part per family of objectives (facts_*.py) -----------------------------------------------------

SHIPPED: dict[str, Facts] = merged("SHIPPED")
LIMITS: dict[str, Limit] = merged("LIMITS")
SAME_GRADIENT: dict[str, Limit] = merged("SAME_GRADIENT")  # left and right differ by a constant
VALUES: dict[str, Value] = merged("VALUES")
VALUE_ONLY = {name for family in FAMILIES for name in getattr(family, "VALUE_ONLY", ())}  # limits whose gradients differ
BETAS: dict[str, Callable[[float], Method]] = merged("BETAS")
FLIP_RATES: dict[str, Callable[..., Method]] = merged("FLIP_RATES")
REFUSED: dict[str, Refusal] = merged("REFUSED")
OUTSIDE = {name: Facts(resolve_method(name)()) for name in os.environ.get("PREFTUNE_TEST_METHODS", "").split()}

DESCENDING = {name: facts for name, facts in SHIPPED.items() if facts.method.objective is not None}  # the others have no loss
every = pytest.mark.parametrize("facts", (DESCENDING | OUTSIDE).values(), ids=(DESCENDING | OUTSIDE).keys())
shipped = pytest.mark.parametrize("facts", DESCENDING.values(), ids=DESCENDING.keys())


def data(facts: Facts, rows: int = 6) -> Scored:
    return random_scored(needs_of(facts.method.objective), rows, heads=facts.method.heads, seed=rows)


def trained_columns(s: Scored) -> int:
    """Labelled columns; further ones only estimate a constant."""
    return s.logp.shape[1] if s.rows.desirable is None else s.rows.desirable.shape[1]


def test_every_shipped_method_stands_in_the_table() -> None:
    assert {name.split()[0] for name in SHIPPED} == set(methods.METHODS)
    assert len(LIMITS) + len(SAME_GRADIENT) + len(VALUES) >= 100


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
    whole = at_ratio(data(facts, len(ratio)), ratio)
    coupled = needs_of(facts.method.objective).batch  # then also each row as a batch of its own
    for part in [whole] + [take(whole, [i]) for i in range(len(ratio)) if coupled]:
        assert facts.method.objective(part).row.dtype == dtype
        assert facts.method.objective(part).row.isfinite().all()
        assert gradient(row(facts.method.objective), part).isfinite().all()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beyond_a_domain_that_is_smaller_than_usual_there_is_an_error_that_names_the_rows(facts: Facts, dtype: torch.dtype) -> None:
    """Never an infinity, never a silent clamp. The chosen response falls, which is where the exponentials are."""
    if needs_of(facts.method.objective).domain >= 1000 or not facts.beyond:
        return
    s = data(facts, 3)
    ratio = torch.zeros(s.logp.shape, dtype=dtype)
    ratio[1, 0] = -1e5
    with pytest.raises(PreftuneError, match=s.rows.id[1]):
        facts.method.objective(at_ratio(s, ratio))


@shipped
def test_the_winner_is_pulled_up_and_the_loser_is_not(facts: Facts) -> None:
    """At the reference always; at any point for objectives that claim to be steady."""
    objective = facts.method.objective
    s = data(facts, 50)
    points = [s] * facts.steady if s.ref_logp is None else [at_reference(s)] * facts.apart + [s] * facts.steady
    for point in points:
        pull = gradient(row(objective), point)
        graded = s.rows.winrate if s.rows.winrate is not None else s.rows.score if not s.rows.ranked else None
        graded = s.rows.beats.mean(2) if s.rows.beats is not None else graded
        if graded is not None:
            best, worst = graded.argmax(1, keepdim=True), graded.argmin(1, keepdim=True)
            winner, loser = pull.gather(1, best), pull.gather(1, worst)
        elif s.rows.desirable is not None:
            labelled = pull[:, : trained_columns(s)]
            winner, loser = labelled[s.rows.desirable], labelled[~s.rows.desirable]
        else:  # a list's middle may go either way; what stands behind a pair is no loser of it
            winner, loser = pull[:, 0], pull[:, -1:] if needs_of(objective).columns == "K" else pull[:, 1:2]
        assert (winner < 0).all()
        assert (loser > 0).all()


@every
def test_the_gradient_is_that_of_the_loss(facts: Facts) -> None:
    """Finite differences in float64, over the columns that are trained."""
    if not facts.smooth:
        return
    s = data(facts, 3)
    k = trained_columns(s)
    rest = s.logp[:, k:].detach()
    names = list(s.heads)

    def loss(logp: Tensor, *heads: Tensor) -> Tensor:
        moved = at(s, torch.cat([logp, rest], 1), leaf=False)
        return facts.method.objective(replace(moved, heads=dict(zip(names, heads, strict=True)))).row

    heads = [s.heads[name].detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, (s.logp[:, :k].detach().clone().requires_grad_(), *heads))


@every
def test_no_gradient_reaches_the_reference(facts: Facts) -> None:
    s = data(facts)
    reference = torch.randn_like(s.logp).requires_grad_() if s.ref_logp is None else s.ref_logp
    constants = [reference] if s.segment_ref_logp is None else [reference, s.segment_ref_logp]
    loss = facts.method.objective(replace(s, ref_logp=reference)).row.sum()
    assert not any(found is not None and found.any() for found in torch.autograd.grad(loss, constants, allow_unused=True))


@every
def test_reference_free_objectives_ignore_the_reference(facts: Facts) -> None:
    if needs_of(facts.method.objective).reference:
        with pytest.raises(PreftuneError, match="reference"):
            facts.method.objective(replace(data(facts), ref_logp=None, segment_ref_logp=None))
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
    moved[1:] -= torch.linspace(1, 8, moved.shape[1])  # also where only the gap within a row counts; downwards, or p > 1
    here, there = facts.method.objective(s).row, facts.method.objective(at(s, moved)).row
    assert bool(here[0] != there[0]) == needs_of(facts.method.objective).batch
    leaves = [x for x in (s.logp, s.segment_logp, *s.heads.values()) if x is not None]
    found = [g for g in torch.autograd.grad(here[0], leaves, allow_unused=True) if g is not None]
    assert any(g[1:].any() for g in found) == facts.coupled


@shipped
def test_a_constant_on_all_log_ratios_changes_nothing_where_claimed_and_something_elsewhere(facts: Facts) -> None:
    s = data(facts)
    constant = torch.linspace(-9, -0.5, len(s.logp), dtype=torch.float64)[:, None]  # what is left are log-probabilities
    before, after = facts.method.objective(s).row, facts.method.objective(at(s, s.logp.detach() + constant)).row
    assert torch.allclose(before, after, rtol=1e-11, atol=1e-11) == facts.shift


@shipped
def test_columns_exchanged_with_their_labels_change_nothing_where_claimed(facts: Facts) -> None:
    s = data(facts)
    if not facts.swap:
        return
    if s.rows.ranked:
        prefer = torch.linspace(0, 1, len(s.logp), dtype=torch.float64)
        order, here, there = [1, 0], dict(prefer=prefer), dict(prefer=1 - prefer)
        there |= {"score": s.rows.score[:, order]} if s.rows.score is not None else {}
        there["extra"] = {name: x[:, order] for name, x in s.rows.extra.items()}
    elif s.rows.desirable is not None:
        order, here, there = [1, 0, 2, 3], {}, dict(desirable=s.rows.desirable[:, [1, 0]])
        good = torch.tensor([[True, False]] * len(s.logp))
        s = replace(s, logp=s.logp, rows=s.rows.replace(desirable=good))
        there = dict(desirable=~good)
    else:
        order = [2, 0, 3, 1][: s.logp.shape[1]] if s.logp.shape[1] == 4 else [1, 0]
        law = torch.rand(s.logp.shape, dtype=torch.float64).softmax(1)
        here = dict(law=law) if "law" in needs_of(facts.method.objective).optional else {}
        there = {name: x[:, order] for name, x in [*here.items(), ("winrate", s.rows.winrate), ("score", s.rows.score)] if x is not None}
        there |= {"beats": s.rows.beats[:, order][:, :, order]} if s.rows.beats is not None else {}
    left = replace(s, rows=s.rows.replace(**here))
    right = replace(columns(s, order), rows=s.rows.replace(**there))
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


@pytest.mark.parametrize("sentence", LIMITS)
def test_limit(sentence: str) -> None:
    left, right, make = LIMITS[sentence]
    s = make()
    close(left(s), right(s))
    if sentence not in VALUE_ONLY:
        close(gradient(left, s), gradient(right, s))


@pytest.mark.parametrize("sentence", SAME_GRADIENT)
def test_limit_up_to_a_constant(sentence: str) -> None:
    left, right, make = SAME_GRADIENT[sentence]
    s = make()
    close(gradient(left, s), gradient(right, s))


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


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
def test_a_beta_that_is_no_finite_number_above_zero_is_refused_by_its_value(name: str, value: float) -> None:
    with pytest.raises(PreftuneError, match=f"(beta|tau) is {value}"):
        probe(BETAS[name](value))


@pytest.mark.parametrize("value", [0.5, 0.9, 1.0, -0.1, math.nan])
@pytest.mark.parametrize("name", FLIP_RATES)
def test_a_flip_rate_of_one_half_or_more_is_refused(name: str, value: float) -> None:
    with pytest.raises(PreftuneError, match=f"label_smoothing is {value}"):
        probe(FLIP_RATES[name](value))


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
        (reduced, r"shape \(\) for 8 rows"),
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
