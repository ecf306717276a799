"""Losses that train judges: worked numbers, invariances, derivatives, and where they end on a table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from facts import close
from preftune.objectives import pairwise
from preftune.objectives.judge_training import (
    attribute_regression,
    bradley_terry,
    general_preference,
    k_wise,
    pairwise_preference,
    skew,
)
from preftune.objectives.listwise import list_mle, pair_logistic
from preftune.policies.tabular import TableResponses
from preftune.types import Loss, PreftuneError, Rows, Scored, needs_of

all_pairs, plackett_luce = k_wise, partial(k_wise, form="plackett_luce")
DRAW = torch.Generator().manual_seed(0)
Objective = Callable[[Scored], Loss]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def judged(*, ranked: bool = True, score: Tensor | None = None, prefer: Tensor | None = None, present: Tensor | None = None,
           extra: dict[str, Tensor] | None = None, **heads: Tensor) -> Scored:  # fmt: skip
    """Rows with these head outputs [B, K, C]."""
    n, k = next(iter(heads.values())).shape[:2]
    rows = Rows(tuple(map(str, range(n))), tuple(range(n)), TableResponses(torch.arange(k).expand(n, k)), ranked=ranked,
                score=score, prefer=prefer, present=present, extra=extra or {})  # fmt: skip
    return Scored(rows, torch.zeros(n, k, dtype=torch.float64), heads=heads)


def rewards(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)[:, :, None]


def per_row(values: float | list[float]) -> Tensor:
    return torch.tensor(values if isinstance(values, list) else [values], dtype=torch.float64)


# --- Bradley-Terry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "settings", "labels", "expected"),
    [
        ((3.0, 2.0), {}, {}, 0.313262),  #                                            log(1 + e^-1)
        ((3.0, 2.0), {"margin": "subtract"}, {"margin": 2.0}, 1.313262),  #           log(1 + e^1)
        ((3.0, 2.0), {"margin": "scale"}, {"margin": 2.0}, 0.626523),  #              twice the first
        ((3.0, 2.0), {"margin": "scale"}, {"margin": 1.0}, 0.313262),
        ((3.0, 2.0), {"margin": "scale", "centring": 0.01}, {"margin": 2.0}, 0.876523),  # plus .01 (3 + 2)^2 = .25
        ((1.5, 0.0), {}, {}, 0.201413),  #                                            log(1 + e^-1.5)
        ((1.5, 0.0), {"margin": "subtract"}, {"margin": 0.7}, 0.371101),  #           log(1 + e^-.8)
        ((1.0, 0.0), {"label_smoothing": 0.2}, {}, 0.513262),  #                      .313262 + .2 * 1
        ((1.0, 0.0), {}, {"prefer": 0.8}, 0.513262),
        ((1.0, 0.0), {}, {"prefer": 0.0}, 1.313262),  #                               the flipped label
        ((0.3, 0.3), {}, {}, 0.693147),
    ],
)
def test_worked_numbers_of_a_reward_model(reward: tuple[float, ...], settings: dict, labels: dict, expected: float) -> None:
    extra = {"margin": per_row(labels["margin"])} if "margin" in labels else {}
    prefer = per_row(labels["prefer"]) if "prefer" in labels else None
    s = judged(reward=rewards(*reward), extra=extra, prefer=prefer)
    assert bradley_terry(s, **settings).row.item() == pytest.approx(expected, abs=1e-6)


def test_bradley_terry_is_dpo_on_rewards() -> None:
    """With r for beta times the log-ratio the two are one formula, soft labels and smoothing included."""
    r, p = normal(20, 2), torch.rand(20, generator=DRAW, dtype=torch.float64)
    s = judged(reward=r[:, :, None], prefer=p)
    policy = Scored(s.rows, r / 0.3, torch.zeros_like(r))
    close(bradley_terry(s, label_smoothing=0.1).row, pairwise.dpo(policy, beta=0.3, label_smoothing=0.1).row)


def test_rewards_are_known_up_to_a_constant_of_the_prompt_and_centring_takes_one() -> None:
    r, shift = normal(20, 2, 1), 5 * normal(20, 1, 1)
    for loss in (bradley_terry, plackett_luce, all_pairs):
        close(loss(judged(reward=r)).row, loss(judged(reward=r + shift)).row)
    centred = partial(bradley_terry, centring=0.01)
    assert not torch.allclose(centred(judged(reward=r)).row, centred(judged(reward=r + shift)).row)
    at_zero = r - r.mean(1, keepdim=True)
    assert (centred(judged(reward=at_zero)).row <= centred(judged(reward=r)).row).all()
    close(centred(judged(reward=at_zero)).row, bradley_terry(judged(reward=r)).row)


def test_a_margin_of_zero_and_a_scale_of_one_are_plain() -> None:
    r = normal(20, 2, 1)
    plain = bradley_terry(judged(reward=r)).row
    close(bradley_terry(judged(reward=r, extra={"margin": torch.zeros(20)}), margin="subtract").row, plain)
    close(bradley_terry(judged(reward=r, extra={"margin": torch.ones(20)}), margin="scale").row, plain)
    close(bradley_terry(judged(reward=r, extra={"margin": torch.full((20,), 9.0)})).row, plain)  # not read unless asked for


def test_a_margin_may_be_the_difference_of_what_two_responses_have() -> None:
    r, marks = normal(20, 2, 1), normal(20, 2)
    for margin, of_row in (("subtract", marks[:, 0] - marks[:, 1]), ("scale", (marks[:, 0] - marks[:, 1]).abs())):
        loss = partial(bradley_terry, margin=margin)
        close(loss(judged(reward=r, extra={"margin": marks})).row, loss(judged(reward=r, extra={"margin": of_row})).row)


def test_a_sure_soft_label_of_the_other_order_is_that_order() -> None:
    r = normal(20, 2, 1)
    close(bradley_terry(judged(reward=r, prefer=torch.zeros(20))).row, bradley_terry(judged(reward=r.flip(1))).row)


def test_accuracy_counts_a_tie_as_half_right() -> None:
    s = judged(reward=torch.cat([rewards(1.0, 0.0), rewards(0.2, 0.2), rewards(-1.0, 0.0)]))
    assert bradley_terry(s).metrics["accuracy"].tolist() == [1.0, 0.5, 0.0]


def test_the_loss_of_a_sure_pair_keeps_its_relative_accuracy() -> None:
    r = rewards(50.0, 0.0).requires_grad_()
    row = bradley_terry(judged(reward=r)).row
    (pull,) = torch.autograd.grad(row.sum(), r)
    assert math.isclose(row.item(), 1.9287498479639178e-22, rel_tol=1e-12)
    assert math.isclose(-pull[0, 0, 0].item(), 1.9287498479639178e-22, rel_tol=1e-12)


# --- general and pairwise preference ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("tau", "expected"), [(1.0, 0.313262), (0.1, 4.54e-5)])
def test_two_unit_vectors_at_a_right_angle_have_score_one(tau: float, expected: float) -> None:
    v = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    assert skew(v[:, 0], v[:, 1]).item() == 1
    assert general_preference(judged(embedding=v), tau=tau).row.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("tau", "p"), [(1.0, 0.703918), (0.1, 0.999827)])
def test_three_vectors_at_120_degrees_are_a_perfect_cycle(tau: float, p: float) -> None:
    """sin 120 = .866025 for each against the next."""
    angle = torch.arange(3).double() * 2 * math.pi / 3
    v = torch.stack([angle.cos(), angle.sin()], 1)
    pairs = v[torch.tensor([[0, 1], [1, 2], [2, 0]])]
    assert general_preference(judged(embedding=pairs), tau=tau).metrics["probability"].tolist() == pytest.approx([p] * 3, abs=1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_the_form_is_skew_and_probabilities_of_both_orders_add_up_to_one(gated: bool) -> None:
    v, gate = normal(20, 2, 6), normal(20, 2, 3)
    probability = lambda order: general_preference(judged(embedding=v[:, order], gate=gate[:, order]), gated=gated).metrics["probability"]
    close(probability([0, 1]) + probability([1, 0]), torch.ones(20, dtype=torch.float64))
    close(probability([0, 0]), torch.full((20,), 0.5, dtype=torch.float64))
    close(skew(v[:, 0], v[:, 1]), -skew(v[:, 1], v[:, 0]))


def test_exchanging_winner_and_loser_exchanges_their_gradients_with_the_other_label() -> None:
    v = normal(20, 2, 4).requires_grad_()
    loss = lambda v, p: general_preference(judged(embedding=v, prefer=torch.full((20,), p, dtype=torch.float64))).row.sum()
    (here,) = torch.autograd.grad(loss(v, 0.8), v)
    (there,) = torch.autograd.grad(loss(v.flip(1), 0.2), v)
    close(here, there)


def test_a_second_coordinate_of_one_is_bradley_terry() -> None:
    r = normal(20, 2, 1)
    v = torch.cat([r, torch.ones_like(r)], 2)
    close(general_preference(judged(embedding=v), tau=1.0).row, bradley_terry(judged(reward=r)).row)
    close(general_preference(judged(embedding=v), tau=0.1).row, bradley_terry(judged(reward=10 * r)).row)


def test_equal_gates_are_none_and_a_gate_can_choose_one_plane() -> None:
    v = normal(20, 2, 6)
    close(general_preference(judged(embedding=v, gate=torch.zeros(20, 2, 3)), gated=True).row, general_preference(judged(embedding=v)).row)
    chosen = torch.tensor([0.0, 800.0, 0.0]).expand(20, 2, 3)
    close(
        general_preference(judged(embedding=v, gate=chosen), gated=True).row,
        general_preference(judged(embedding=3**0.5 * v[:, :, 2:4])).row,
    )


def test_zero_embeddings_are_a_saddle() -> None:
    v = torch.zeros(5, 2, 4, dtype=torch.float64).requires_grad_()
    loss = general_preference(judged(embedding=v)).row
    assert not torch.autograd.grad(loss.sum(), v)[0].any() and torch.allclose(loss, torch.tensor(math.log(2)).double())


def test_a_pairwise_model_averages_both_orders() -> None:
    """Logits (1, -.5): the first shown wins with .731059, and with .377541 when the two are shown the other way round.

    P = (.731059 + 1 - .377541) / 2 = .676759; loss (log(1 + e^-1) + log(1 + e^-.5)) / 2 = (.313262 + .474077) / 2.
    """
    loss = pairwise_preference(judged(preference=rewards(1.0, -0.5)))
    assert loss.metrics["probability"].item() == pytest.approx(0.676759, abs=1e-6)
    assert loss.row.item() == pytest.approx(0.393669, abs=1e-6)
    close(loss.metrics["probability"] + pairwise_preference(judged(preference=rewards(-0.5, 1.0))).metrics["probability"], per_row(1.0))
    assert pairwise_preference(judged(preference=rewards(2.0, 2.0))).metrics["probability"].item() == 0.5  # only likes the first
    assert pairwise_preference(judged(preference=rewards(2.0, 2.0))).metrics["bias"].item() == pytest.approx(0.380797, abs=1e-6)


def test_an_antisymmetric_pairwise_model_is_bradley_terry() -> None:
    r = normal(20, 2, 1)
    gap = r[:, :1] - r[:, 1:]
    close(pairwise_preference(judged(preference=torch.cat([gap, -gap], 1))).row, bradley_terry(judged(reward=r)).row)


# --- attributes and lists ---------------------------------------------------------------------------------------------


def test_attributes_that_are_missing_count_nothing() -> None:
    """Marks (4, -, 2) against (3, 9, 2.5): 1 + .25 over two marks; the second response has none and the third is absent."""
    nan = math.nan
    marks = torch.tensor([[[4.0, nan, 2.0], [nan, nan, nan], [1.0, 1.0, 1.0]]])
    outputs = torch.tensor([[[3.0, 9.0, 2.5], [1.0, 1.0, 1.0], [7.0, 7.0, 7.0]]], dtype=torch.float64).requires_grad_()
    present = torch.tensor([[True, True, False]])
    loss = attribute_regression(judged(attributes=outputs, extra={"attributes": marks}, present=present, ranked=False))
    (pull,) = torch.autograd.grad(loss.row.sum(), outputs)
    assert loss.row.tolist() == [1.25] and loss.count.tolist() == [2.0]
    assert pull[0].tolist() == [[-2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_every_mark_counts_alike_whatever_row_it_stands_in() -> None:
    """The learner's quotient sum(row) / sum(count) is the mean over all marks: (1 + 4 + 9) / 3, not (1 + (4 + 9) / 2) / 2."""
    marks = torch.tensor([[[0.0, math.nan]], [[0.0, 0.0]]])
    outputs = torch.tensor([[[1.0, 5.0]], [[2.0, 3.0]]], dtype=torch.float64)
    loss = attribute_regression(judged(attributes=outputs, extra={"attributes": marks}, ranked=False))
    assert (loss.row.sum() / loss.count.sum()).item() == pytest.approx(14 / 3)


def test_lists_of_rewards_are_the_listwise_losses_of_a_policy() -> None:
    r, score = normal(20, 5), torch.rand(20, 5, generator=DRAW, dtype=torch.float64)
    s = judged(reward=r[:, :, None], score=score, ranked=False)
    policy = Scored(s.rows, 2 * r, torch.zeros_like(r))
    close(plackett_luce(s).row, list_mle(policy, beta=0.5).row)
    close(all_pairs(s).row, pair_logistic(policy, beta=0.5).row)


def test_lists_of_two_are_bradley_terry() -> None:
    r = normal(20, 2, 1)
    for loss in (plackett_luce, all_pairs):
        close(loss(judged(reward=r)).row, bradley_terry(judged(reward=r)).row)


def test_k_wise_comparison_is_one_element_with_all_its_pairs() -> None:
    """r = (2, 1, 0), best first: [2 log(1 + e^-1) + log(1 + e^-2)] / 3 = (.626523 + .126928) / 3."""
    s = judged(reward=rewards(2.0, 1.0, 0.0))
    assert all_pairs(s).row.item() == pytest.approx(0.251150, abs=1e-6)
    top = math.log(1 + math.exp(-1) + math.exp(-2))  # then the best of the other two
    assert plackett_luce(s).row.item() == pytest.approx(top + math.log1p(math.exp(-1)), rel=1e-12)


# --- derivatives, and what is read ------------------------------------------------------------------------------------

SOFT = torch.rand(4, generator=DRAW, dtype=torch.float64)
MARKS = normal(4, 3, 5)
MARKS[0, 1, 2] = math.nan
CASES: dict[str, tuple[Objective, dict[str, tuple[int, ...]], dict]] = {
    "bradley_terry": (
        partial(bradley_terry, margin="subtract", label_smoothing=0.1, centring=0.02),
        {"reward": (4, 2, 1)},
        dict(prefer=SOFT, extra={"margin": SOFT}),
    ),
    "bradley_terry scaled": (partial(bradley_terry, margin="scale"), {"reward": (4, 2, 1)}, dict(extra={"margin": SOFT})),
    "general_preference": (partial(general_preference, tau=0.7), {"embedding": (4, 2, 6)}, dict(prefer=SOFT)),
    "general_preference gated": (partial(general_preference, gated=True), {"embedding": (4, 2, 6), "gate": (4, 2, 3)}, {}),
    "pairwise_preference": (partial(pairwise_preference, label_smoothing=0.1), {"preference": (4, 2, 1)}, dict(prefer=SOFT)),
    "attribute_regression": (attribute_regression, {"attributes": (4, 3, 5)}, dict(extra={"attributes": MARKS}, ranked=False)),
    "plackett_luce": (plackett_luce, {"reward": (4, 5, 1)}, {}),
    "all_pairs": (all_pairs, {"reward": (4, 5, 1)}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_loss_and_of_nothing_but_the_heads(name: str) -> None:
    objective, shapes, labels = CASES[name]
    outputs = [normal(*shape).requires_grad_() for shape in shapes.values()]
    loss = lambda *heads: objective(judged(**dict(zip(shapes, heads, strict=True)), **labels))
    assert torch.autograd.gradcheck(lambda *heads: loss(*heads).row, outputs)
    found = loss(*outputs)
    assert found.row.shape == (4,) and all(metric.shape == (4,) and not metric.requires_grad for metric in found.metrics.values())
    assert not needs_of(objective).reference


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_judges_are_finite_far_out(name: str, dtype: torch.dtype) -> None:
    objective, shapes, labels = CASES[name]
    heads = {key: (1000 * normal(*shape)).to(dtype).requires_grad_() for key, shape in shapes.items()}
    row = objective(judged(**heads, **labels)).row
    assert row.isfinite().all() and all(g.isfinite().all() for g in torch.autograd.grad(row.sum(), list(heads.values())))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: bradley_terry(judged(other=rewards(1.0, 0.0))), "heads of sizes {'other': 1}, needed 'reward'"),
        (lambda: bradley_terry(judged(reward=normal(3, 2, 2))), "needed 'reward' of size 1"),
        (lambda: bradley_terry(judged(reward=rewards(1.0, 0.0)), margin="subtract"), r"rows \['0'\] have no margin"),
        (lambda: bradley_terry(judged(reward=rewards(1.0, 0.0)), margin="add"), "margin is 'add', needed one of none, subtract, scale"),
        (
            lambda: bradley_terry(judged(reward=rewards(1.0, 0.0), extra={"margin": per_row(math.nan)}), margin="scale"),
            r"rows \['0'\] have no margin",
        ),
        (lambda: bradley_terry(judged(reward=rewards(1.0, 0.0)), label_smoothing=0.5), "label_smoothing is 0.5"),
        (lambda: general_preference(judged(embedding=normal(3, 2, 5))), "needed an even count"),
        (lambda: general_preference(judged(embedding=normal(3, 2, 4)), gated=True), "needed 'gate' of size 2"),
        (lambda: general_preference(judged(embedding=normal(3, 2, 4)), tau=0.0), "tau is 0.0"),
        (lambda: attribute_regression(judged(attributes=normal(3, 2, 4))), r"rows .* have no attributes"),
        (lambda: attribute_regression(judged(attributes=normal(3, 2, 4), extra={"attributes": normal(3, 2, 5)})), "of size 5"),
        (lambda: all_pairs(judged(reward=normal(3, 4, 1), ranked=False)), "neither scores nor an order"),
        (lambda: k_wise(judged(reward=normal(3, 4, 1)), form="borda"), "form is 'borda'"),
    ],
)
def test_judges_refuse_what_they_cannot_read(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(PreftuneError, match=message):
        attempt()


# --- where they end on a table ----------------------------------------------------------------------------------------

R = torch.tensor([0.8, -0.3, 1.5, 0.0], dtype=torch.float64)
CYCLE = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]], dtype=torch.float64)


def fitted(start: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
    """The table that minimises a loss, by L-BFGS, and the loss there."""
    table = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([table], max_iter=1000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(table)
        value.backward()
        return value

    optimiser.step(closure)
    return table.detach(), loss(table).item()


def population(objective: Objective, head: str, P: Tensor) -> Callable[[Tensor], Tensor]:
    """Mean loss over all pairs i < j of a table [n, C], labelled P[i, j]."""
    index = torch.tensor(list(itertools.combinations(range(len(P)), 2)))
    prefer = P[index[:, 0], index[:, 1]]
    return lambda table: objective(judged(**{head: table[index]}, prefer=prefer)).row.mean()


def entropy(P: Tensor) -> float:
    p = P[tuple(torch.tensor(list(itertools.combinations(range(len(P)), 2))).T)]
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean().item()


def test_bradley_terry_recovers_the_rewards_from_exact_probabilities_up_to_a_constant() -> None:
    P = torch.sigmoid(R[:, None] - R[None, :])
    r, loss = fitted(torch.zeros(4, 1, dtype=torch.float64), population(bradley_terry, "reward", P))
    torch.testing.assert_close(r[:, 0] - r.mean(), R - R.mean(), rtol=0, atol=1e-6)
    assert loss == pytest.approx(entropy(P), abs=1e-12)


def test_centring_recovers_the_same_rewards_where_the_responses_are_balanced() -> None:
    """Rewards that add up to 0 in every pair, (a, -a): the centring costs nothing there and fixes the constant."""
    P = torch.sigmoid(torch.tensor([[0.0, 1.4], [-1.4, 0.0]], dtype=torch.float64))
    r, _ = fitted(torch.full((2, 1), 3.0, dtype=torch.float64), population(partial(bradley_terry, centring=0.01), "reward", P))
    torch.testing.assert_close(r[:, 0], torch.tensor([0.7, -0.7], dtype=torch.float64), rtol=0, atol=1e-6)


def test_plackett_luce_recovers_the_rewards_from_exact_orders() -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))))
    weight = torch.stack([sum(R[order[k:]].log_softmax(0)[0] for k in range(4)) for order in orders]).exp()
    loss = lambda table: (weight * plackett_luce(judged(reward=table[orders])).row).sum()
    r, _ = fitted(torch.zeros(4, 1, dtype=torch.float64), loss)
    torch.testing.assert_close(r[:, 0] - r.mean(), R - R.mean(), rtol=0, atol=1e-6)


def test_all_pairs_of_ranked_lists_recover_the_rewards_from_exact_orders() -> None:
    """Under Plackett-Luce each pair alone is Bradley-Terry, so the mean over pairs ends at the same rewards."""
    orders = torch.tensor(list(itertools.permutations(range(4))))
    weight = torch.stack([sum(R[order[k:]].log_softmax(0)[0] for k in range(4)) for order in orders]).exp()
    loss = lambda table: (weight * all_pairs(judged(reward=table[orders])).row).sum()
    r, _ = fitted(torch.zeros(4, 1, dtype=torch.float64), loss)
    torch.testing.assert_close(r[:, 0] - r.mean(), R - R.mean(), rtol=0, atol=1e-6)


def test_on_a_cycle_bradley_terry_stays_at_equal_rewards_and_ln_2() -> None:
    r, loss = fitted(torch.tensor([[1.0], [0.0], [-2.0]], dtype=torch.float64), cycle_loss(bradley_terry, "reward"))
    torch.testing.assert_close(r, r.mean().expand_as(r), rtol=0, atol=1e-6)
    assert loss == pytest.approx(math.log(2), abs=1e-12)


def test_on_a_cycle_a_general_preference_model_fits_exactly() -> None:
    """k = 1 is enough: the loss arrives at the labels' own entropy, .325083 nats, and P is the table."""
    v, loss = fitted(0.1 * normal(3, 2), cycle_loss(partial(general_preference, tau=0.1), "embedding"))
    assert loss == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)), abs=1e-9)
    found = torch.sigmoid(skew(v[:, None, :], v[None, :, :]) / 0.1)
    torch.testing.assert_close(found, CYCLE, rtol=0, atol=1e-4)


def test_on_a_cycle_a_pairwise_model_fits_exactly() -> None:
    """One logit for each ordered pair."""
    index = torch.tensor([[0, 1], [1, 2], [2, 0]])
    loss = lambda table: pairwise_preference(
        judged(preference=torch.stack([table[index[:, 0], index[:, 1]], table[index[:, 1], index[:, 0]]], 1)[:, :, None],
               prefer=torch.full((3,), 0.9, dtype=torch.float64))
    ).row.mean()  # fmt: skip
    table, value = fitted(torch.zeros(3, 3, dtype=torch.float64), loss)
    assert value == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)), abs=1e-9)
    torch.testing.assert_close(torch.sigmoid(table), CYCLE, rtol=0, atol=1e-5)


def cycle_loss(objective: Objective, head: str) -> Callable[[Tensor], Tensor]:
    """Rock, paper, scissors: each beats the next with .9."""
    index = torch.tensor([[0, 1], [1, 2], [2, 0]])
    return lambda table: objective(judged(**{head: table[index]}, prefer=torch.full((3,), 0.9, dtype=torch.float64))).row.mean()


def test_labels_flipped_with_a_known_rate_are_unflipped_by_no_smoothing_but_shrunk_by_it() -> None:
    """P = sigmoid(2) = .880797: plain r = 2; smoothing .1 regresses to .1 + .8 * .880797 = .804638, logit 1.415."""
    P = torch.sigmoid(torch.tensor([[0.0, 2.0], [-2.0, 0.0]], dtype=torch.float64))
    for smoothing in (0.0, 0.1):
        r, _ = fitted(torch.zeros(2, 1, dtype=torch.float64), population(partial(bradley_terry, label_smoothing=smoothing), "reward", P))
        target = (1 - smoothing) * P[0, 1] + smoothing * P[1, 0]
        assert (r[0] - r[1]).item() == pytest.approx(torch.logit(target).item(), abs=1e-6)


def test_an_adaptive_margin_adds_itself_to_the_rewards_gap() -> None:
    """With margin m on a pair of probability P the minimum of -P logsigmoid(D - m) - (1 - P) logsigmoid(m - D) is D = m + logit P."""
    P = torch.tensor([[0.5, 0.7], [0.3, 0.5]], dtype=torch.float64)
    index = torch.tensor([[0, 1]])
    loss = lambda table: bradley_terry(
        judged(reward=table[index], prefer=P[0, 1:], extra={"margin": per_row(0.6)}), margin="subtract"
    ).row.sum()
    r, _ = fitted(torch.zeros(2, 1, dtype=torch.float64), loss)
    assert (r[0] - r[1]).item() == pytest.approx(0.6 + math.log(0.7 / 0.3), abs=1e-6)


def test_bradley_terry_is_the_logistic_loss_of_the_gap() -> None:
    r = normal(20, 2, 1)
    close(bradley_terry(judged(reward=r)).row, -logsigmoid(r[:, 0, 0] - r[:, 1, 0]))
