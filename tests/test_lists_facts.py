"""Facts of lists and trees that fit no table: worked vectors, ties, order, and where the losses end on a table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from facts import B, at, at_reference, close, columns, gradient, row
from facts_lists import LOSSES, K, absent, best_first, like, lists, one_step, ranked, relabelled, shortened, tree, trees
from preftune import methods
from preftune.learner import GradientLearner
from preftune.objectives import pairwise
from preftune.objectives.listwise import (
    graded,
    lipo,
    list_mle,
    list_softmax,
    pair_hinge,
    pair_logistic,
    pointwise_mse,
    pointwise_sigmoid,
)
from preftune.objectives.tree import tpo
from preftune.policies.tabular import TableResponses
from preftune.policies.text.tokens import encode
from preftune.ranking import rank
from preftune.types import Objective, PreftuneError, Rows, Scored
from text_fixtures import Record, tiny_policy, tiny_tokenizer
from vector_rows import VECTORS

LISTWISE = VECTORS["listwise"]
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "lambda_sum": lipo,
    "pair_logistic_mean": pair_logistic,
    "pair_hinge_mean": pair_hinge,
    "list_mle": list_mle,
    "softmax": list_softmax,
    "pointwise_mse": pointwise_mse,
    "pointwise_sigmoid": pointwise_sigmoid,
    "dpo_best_vs_worst": lambda s, beta: pairwise.dpo(columns(replace(s, rows=s.rows.replace(ranked=True)), [0, 3]), beta=beta),
}


def one_list(logp: list[float], ref_logp: list[float], psi: list[float]) -> Scored:
    tensor = lambda values: torch.tensor([values], dtype=torch.float64)
    table = TableResponses(torch.arange(len(psi))[None])
    return Scored(Rows(("list",), (0,), table, score=tensor(psi)), tensor(logp).requires_grad_(), tensor(ref_logp))


@pytest.mark.parametrize("case", LISTWISE["losses"], ids=lambda case: case["name"])
def test_losses_and_derivatives_of_a_list_are_those_of_the_vectors(case: dict[str, object]) -> None:
    given = LISTWISE["inputs"]
    s = one_list(given["policy"], given["ref"], given["psi"])
    loss = OBJECTIVES[case["name"]](s, beta=given["beta"]).row
    (found,) = torch.autograd.grad(loss.sum(), s.logp)
    torch.testing.assert_close(loss.detach(), torch.tensor([case["loss"]], dtype=torch.float64), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found, torch.tensor([case["d_policy"]], dtype=torch.float64), rtol=1e-12, atol=1e-15)


def test_ranks_gains_and_weights_are_those_of_the_vectors() -> None:
    given = LISTWISE["inputs"]
    x = graded(one_list(given["policy"], given["ref"], given["psi"]), torch.tensor([LISTWISE["scores"]], dtype=torch.float64))
    tau = rank(x.s, x.here)[0].tolist()
    assert tau == LISTWISE["model_rank"]
    for pair in LISTWISE["lambda_weights"]:
        gain = 2 ** given["psi"][pair["i"]] - 2 ** given["psi"][pair["j"]]
        assert math.isclose(gain * (1 / math.log1p(tau[pair["i"]]) - 1 / math.log1p(tau[pair["j"]])), pair["w"], rel_tol=1e-12)


def test_lipo_by_labels_is_the_worked_example_of_rankdpo() -> None:
    """phi = (.75, .5, .25), image scores (-.02, 0, .01) at beta 10, that is s = (.2, 0, -.1).

    Gains 2^phi: 1.681793, 1.414214, 1.189207; discounts 1 / ln 2, 1 / ln 3, 1 / ln 4 = 1.442695, .910239, .721348.
    Weights .142474 = .267579 * .532456, .355325, .042502; loss .142474 * .598139 + .355325 * .554355 + .042502 * .644397.
    """
    s = one_list([0.2, 0.0, -0.1], [0.0, 0.0, 0.0], [0.75, 0.5, 0.25])
    loss = lipo(s, beta=1.0, ranks="labels").row
    by_hand = 0.142474 * math.log1p(math.exp(-0.2)) + 0.355325 * math.log1p(math.exp(-0.3)) + 0.042502 * math.log1p(math.exp(-0.1))
    assert abs(loss.item() - by_hand) < 1e-6 and abs(loss.item() - 0.309584) < 1e-6  # six printed digits


# --- order ----------------------------------------------------------------------------------------------------------


def test_ranks_begin_with_one_and_equal_values_keep_the_order_of_their_columns() -> None:
    values = torch.tensor([[0.1, 0.7, 0.7, -1.0], [0.0, 0.0, 0.0, 0.0]])
    here = torch.tensor([[True, True, True, True], [False, True, True, False]])
    assert rank(values, here)[0].tolist() == [3, 1, 2, 4]
    assert rank(values, here)[1, 1:3].tolist() == [1, 2]  # absent ones come behind


def test_at_the_reference_the_columns_order_decides_lipo_and_under_labels_the_grades_do() -> None:
    s = at_reference(lists())
    order = [3, 1, 4, 0, 2]
    assert not torch.allclose(lipo(s).row, lipo(relabelled(s, order)).row)
    close(lipo(s, ranks="labels").row, lipo(relabelled(s, order), ranks="labels").row)


def test_weights_of_lipo_carry_no_gradient() -> None:
    """Each pair's pull is its weight times beta sigmoid(s_j - s_i): the gradient of a loss with these weights as numbers."""
    s = lists(2, score=torch.tensor([[0.9, 0.3]] * B, dtype=torch.float64))
    weight = (2**0.9 - 2**0.3) * (1 / math.log(2) - 1 / math.log(3))
    gap = 0.5 * (s.logratio[:, 0] - s.logratio[:, 1]).detach()
    close(gradient(row(partial(lipo, beta=0.5)), s)[:, 0], -weight * 0.5 * torch.sigmoid(-gap))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "lipo"])
def test_exchanging_two_neighbours_in_the_wrong_order_lowers_the_loss(name: str) -> None:
    """Grades (.9, .5, .1); scores start in the reverse order and are sorted step by step."""
    s = like(0.9, 0.5, 0.1)()
    worse = [torch.tensor([[*order]] * B, dtype=torch.float64) for order in [(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 1, 0)]]
    values = [LOSSES[name](at(s, s.ref_logp + u)).row for u in worse]
    assert all((after < before).all() for before, after in itertools.pairwise(values))


def test_lipo_by_model_ranks_is_lowest_in_the_right_order() -> None:
    s = like(0.9, 0.5, 0.1)()
    found = {u: lipo(at(s, s.ref_logp + torch.tensor([u] * B).double()), beta=0.5).row[0].item() for u in itertools.permutations((0, 1, 2))}
    assert min(found, key=found.get) == (2, 1, 0)
    assert max(found, key=found.get) == (0, 1, 2)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_down_raises_the_best_response_against_the_worst(name: str) -> None:
    s = at_reference(lists())
    pull = gradient(row(LOSSES[name]), s)
    best, worst = s.rows.score.argmax(1, keepdim=True), s.rows.score.argmin(1, keepdim=True)
    assert (pull.gather(1, best) < pull.gather(1, worst)).all()
    if "pointwise" not in name:  # which raise and lower each response by its own grade
        assert (pull.gather(1, best) < 0).all() and (pull.gather(1, worst) > 0).all()


# --- what is absent, tied, large --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_an_absent_response_has_no_gradient_and_no_number_of_it_matters(name: str) -> None:
    s = absent()
    wild = s.logp.detach().clone()
    wild[:, 2] = 900.0
    close(LOSSES[name](s).row, LOSSES[name](at(s, wild)).row)
    pull = gradient(row(LOSSES[name]), s)
    assert not pull[:, 2].any() and pull.isfinite().all()


def test_ranked_lists_of_unequal_length_are_graded_over_their_own_length() -> None:
    s = best_first()
    present = torch.ones(B, K, dtype=torch.bool)
    present[0, 2:], present[1, 1:] = False, False
    s = replace(s, rows=s.rows.replace(present=present))
    psi = graded(s, s.logp).psi
    assert psi[0].tolist() == [1, 0, 0, 0, 0] and psi[2].tolist() == [1, 0.75, 0.5, 0.25, 0]
    loss = pair_logistic(s, beta=0.5)
    close(loss.row[0], pairwise.dpo(columns(s, [0, 1]), beta=0.5).row[0])
    assert loss.row[1] == 0 and gradient(row(pair_logistic), s).isfinite().all()  # one response: nothing to compare


def test_list_mle_keeps_its_relative_accuracy_far_out() -> None:
    """A lead of 50: -log P = log(1 + e^-50) = 1.9287498479639178e-22, and so is the pull."""
    s = one_list([50.0, 0.0], [0.0, 0.0], [1.0, 0.0])
    loss = list_mle(s, beta=1.0).row
    (pull,) = torch.autograd.grad(loss.sum(), s.logp)
    assert math.isclose(loss.item(), 1.9287498479639178e-22, rel_tol=1e-12)
    assert math.isclose(-pull[0, 0].item(), 1.9287498479639178e-22, rel_tol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lists_of_64_are_finite_out_to_1000_nats(name: str, dtype: torch.dtype) -> None:
    s = lists(64)
    ratio = torch.linspace(-1000, 1000, 64, dtype=dtype).expand(B, 64)
    wide = Scored(s.rows, (ratio - 2000).requires_grad_(), torch.full_like(ratio, -2000))
    assert LOSSES[name](wide).row.isfinite().all() and LOSSES[name](wide).row.dtype == dtype
    assert gradient(row(LOSSES[name]), wide).isfinite().all()


def test_metrics_name_the_best_and_the_worst_and_count_pairs_in_order() -> None:
    s = one_list([-20.0, -25.0, -31.0, -28.0], [-24.0, -26.0, -30.0, -25.0], [0.3, 0.9, 0.1, 0.6])  # scores .4, .1, -.1, -.3
    found = {name: value.item() for name, value in pair_logistic(s, beta=0.1).metrics.items()}
    assert found["reward_chosen"] == pytest.approx(0.1) and found["reward_rejected"] == pytest.approx(-0.1)
    assert found["margin"] == pytest.approx(0.2)
    assert found["accuracy"] == pytest.approx(3 / 6)  # wrong: .9 under .3; .6 under .3; .6 under .1


# --- where they end on a table ----------------------------------------------------------------------------------------

MU = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
R = torch.tensor([0.3, 1.0, -0.5, 0.1], dtype=torch.float64)
BETA = 0.5


def minimised(population: Callable[[Tensor], Tensor]) -> Tensor:
    """log pi [4] at the minimum of a convex loss of log pi / mu, by L-BFGS from mu."""
    logits = MU.log().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits], lr=1.0, max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = population(logits.log_softmax(0))
        loss.backward()
        return loss

    optimiser.step(closure)
    return logits.detach().log_softmax(0)


def on(logp: Tensor, orders: list[tuple[int, ...]], score: list[list[float]] | None = None) -> Scored:
    """Lists of the table's responses in these orders."""
    index = torch.tensor(orders)
    n = len(orders)
    rows = Rows(tuple(map(str, range(n))), (0,) * n, TableResponses(index), ranked=score is None)
    if score is not None:
        rows = rows.replace(score=torch.tensor(score, dtype=torch.float64))
    return Scored(rows, logp[index], MU.log()[index])


def test_list_mle_under_plackett_luce_labels_ends_at_the_optimum_of_rlhf() -> None:
    """All 24 orders with their probabilities under true rewards R: pi is proportional to mu e^(R / beta)."""
    orders = list(itertools.permutations(range(4)))
    weight = torch.stack([sum(R[list(order[k:])].log_softmax(0)[0] for k in range(4)) for order in orders]).exp()
    assert math.isclose(weight.sum().item(), 1.0, rel_tol=1e-12)
    found = minimised(lambda logp: (weight * list_mle(on(logp, orders), beta=BETA).row).sum())
    torch.testing.assert_close(found, (MU.log() + R / BETA).log_softmax(0), rtol=0, atol=1e-6)


def test_pair_logistic_under_bradley_terry_labels_ends_at_the_optimum_of_rlhf() -> None:
    """Lists of two in both orders with their probabilities: the same optimum as DPO's."""
    pairs = list(itertools.permutations(range(4), 2))
    weight = torch.tensor([torch.sigmoid(R[i] - R[j]) for i, j in pairs], dtype=torch.float64)
    found = minimised(lambda logp: (weight * pair_logistic(on(logp, pairs), beta=BETA).row).sum())
    torch.testing.assert_close(found, (MU.log() + R / BETA).log_softmax(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [None, 0.7])
def test_list_softmax_ends_at_the_shares_to_the_power_of_one_over_beta(alpha: float | None) -> None:
    """softmax(beta log pi / mu) = t, so pi is proportional to mu t^(1 / beta); under InfoNCA t = softmax(R / alpha)."""
    psi = R + 1
    t = psi / psi.sum() if alpha is None else (psi / alpha).softmax(0)
    found = minimised(lambda logp: list_softmax(on(logp, [(0, 1, 2, 3)], [psi.tolist()]), beta=BETA, alpha=alpha).row.sum())
    torch.testing.assert_close(found, (MU.log() + t.log() / BETA).log_softmax(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", [lipo, list_mle, pair_logistic])
def test_with_one_fixed_order_there_is_no_optimum(loss: Callable[..., object]) -> None:
    """Along the right order the loss falls to 0 and never arrives: only early stopping or beta's clipping holds it."""
    falling = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    values = [loss(on(MU.log() + c * falling, [(0, 1, 2, 3)], [[0.9, 0.6, 0.3, 0.1]]), beta=1.0).row.item() for c in (0, 1, 3, 10, 30)]
    assert all(after < before for before, after in itertools.pairwise(values)) and 0 < values[-1] < 1e-11


def test_pair_hinge_is_over_once_all_pairs_lead_by_one_over_beta() -> None:
    falling = torch.tensor([6.0, 4.0, 2.0, 0.0], dtype=torch.float64)
    assert pair_hinge(on(MU.log() + falling, [(0, 1, 2, 3)], [[0.9, 0.6, 0.3, 0.1]]), beta=BETA).row.item() == 0


# --- trees ------------------------------------------------------------------------------------------------------------


def test_steps_that_siblings_share_do_not_matter() -> None:
    """Step 0 is the same text for all: same states, same log-ratio. Whatever that log-ratio is, it cancels in every pair."""
    s = trees()
    states = s.states.clone()
    states[:, :, 0] = states[:, :1, 0]
    cuts = s.rows.segments.clone()
    cuts[:, :, 1] = 1
    moved = lambda shift: replace(
        s,
        rows=s.rows.replace(segments=cuts),
        states=states,
        segment_logp=torch.cat([torch.full((B, 4, 1), shift).double(), s.segment_logp[:, :, 1:]], 2),
        segment_ref_logp=torch.cat([torch.zeros(B, 4, 1).double(), s.segment_ref_logp[:, :, 1:]], 2),
    )
    for weight in ("similarity", "distance", "none"):
        close(tpo(moved(-1.0), weight=weight, unit=1.0).row, tpo(moved(7.0), weight=weight, unit=1.0).row)


def test_tpo_weighs_each_step_by_its_cosine_with_the_same_step_of_the_best() -> None:
    """Two paths of two steps. Step 0: states (1, 0) and (0, 2), cos 0. Step 1: (3, 0) and (-1, 0), cos -1.

    Best path: w = 2, 2. Other path: w = 1 and 0. With log-ratios (1, 2) and (3, 4) and beta .5: s = (3, 1.5).
    """
    s = two_paths()
    loss = tpo(s, beta=0.5, unit=1.0)
    weight = 1 / math.log(2) - 1 / math.log(3)
    assert loss.row.item() == pytest.approx(weight * math.log1p(math.exp(-1.5)), rel=1e-12)
    assert loss.metrics["margin"].item() == pytest.approx(1.5) and loss.metrics["weight"].item() == pytest.approx(5 / 4)
    distance = tpo(s, beta=0.5, weight="distance", unit=1.0)  # best: 0, 0; other: 1 and 2, s = (0, 5.5)
    assert distance.row.item() == pytest.approx(weight * math.log1p(math.exp(5.5)), rel=1e-12)
    mean = tpo(s, beta=0.5, step="mean", unit=1.0)  # tokens (2, 4) and (1, 5): s = .5 (2/2 * 1 + 2/4 * 2), .5 (1/1 * 3)
    assert mean.metrics["margin"].item() == pytest.approx(1.0 - 1.5)


def two_paths() -> Scored:
    tensor = lambda values: torch.tensor([values], dtype=torch.float64)
    rows = Rows(("tree",), (0,), TableResponses(torch.arange(2)[None]), ranked=True, segments=torch.tensor([[[0, 2, 6], [0, 1, 6]]]))
    states = tensor([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [-1.0, 0.0]]])
    segment_logp = tensor([[1.0, 2.0], [3.0, 4.0]]).requires_grad_()
    return Scored(
        rows, segment_logp.sum(2), tensor([0.0, 0.0]), tensor([6.0, 6.0]),
        segment_logp=segment_logp, segment_ref_logp=torch.zeros(1, 2, 2).double(), states=states,
    )  # fmt: skip


def test_tpo_skips_what_the_best_path_does_not_have() -> None:
    """The best path ends after step 0: the others' later steps have nothing to be compared with, and carry no gradient."""
    s = two_paths()
    s = replace(s, rows=s.rows.replace(segments=torch.tensor([[[0, 2, 2], [0, 1, 6]]])))
    s.states[0, 0, 1] = torch.nan  # the mean over no tokens
    loss = tpo(s, beta=0.5, unit=1.0).row
    (pull,) = torch.autograd.grad(loss.sum(), s.segment_logp)
    assert loss.isfinite().all() and pull[0, :, 0].all() and not pull[0, :, 1].any()


def test_tpo_skips_a_step_that_only_the_best_path_has() -> None:
    """The other path ends after step 0, whose cosine is 0: s = .5 (2 * 1 + 2 * 2), .5 (1 * 3)."""
    s = two_paths()
    s = replace(s, rows=s.rows.replace(segments=torch.tensor([[[0, 2, 6], [0, 1, 1]]])))
    s.states[0, 1, 1] = torch.nan
    s = replace(s, segment_logp=s.segment_logp * torch.tensor([[[1.0, 1.0], [1.0, 0.0]]]))
    assert tpo(s, beta=0.5, unit=1.0).metrics["margin"].item() == pytest.approx(3.0 - 1.5)


def test_descent_on_tpo_raises_the_best_path_where_the_released_code_lowers_it() -> None:
    """Released: -logsigmoid(beta rank), rank = mean_{i, j} -logsigmoid((R_i - R_j) sign(v_i - v_j)): its pull on the best is positive."""
    s = at_reference(one_step(3))
    s = replace(ranked(s), segment_logp=s.segment_logp)
    assert (gradient(row(tree), s)[:, 0] < 0).all() and (gradient(row(tree), s)[:, 2] > 0).all()
    r = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    sign = torch.tensor([[0.0, 1.0, 1.0], [-1.0, 0.0, 1.0], [-1.0, -1.0, 0.0]], dtype=torch.float64)
    rank_loss = -torch.nn.functional.logsigmoid((r[:, None] - r[None, :]) * sign).sum() / 6
    (pull,) = torch.autograd.grad(-torch.nn.functional.logsigmoid(0.5 * rank_loss), r)
    assert pull[0] > 0 > pull[2] and abs(pull[0].item() - 0.0621) < 1e-4


def test_tpo_falls_when_the_order_is_put_right() -> None:
    s = ranked(one_step(2))
    wrong, right = (at(s, s.ref_logp + torch.tensor([order] * B).double()) for order in ((0, 2), (2, 0)))
    assert (tree(right).row < tree(wrong).row).all()


def test_absent_paths_take_no_part_in_tpo() -> None:
    s = shortened(trees())
    present = torch.ones(B, 4, dtype=torch.bool)
    present[:, 3] = False
    score = s.rows.score.clone()
    score[:, 3] = torch.nan
    cuts = s.rows.segments.clone()
    cuts[:, 3] = 0
    s = replace(s, rows=s.rows.replace(present=present, score=score, segments=cuts))
    rest = replace(relabelled(s, [0, 1, 2]), rows=s.rows.replace(present=None, score=score[:, :3], segments=cuts[:, :3]))
    close(tree(s).row, tree(rest).row)
    assert not gradient(row(tree), s)[:, 3].any()


# --- on a language model ------------------------------------------------------------------------------------------------


def paths() -> Rows:
    """Two prompts with three paths of up to three steps, the second prompt with two paths; boundaries cut the tokens in thirds."""
    steps = ["the sum is a list", "the list has names", "so the value is a name"]
    texts = [["; ".join(steps), "; ".join(steps[:2]), "; ".join(reversed(steps))], ["; ".join(steps[1:]), steps[2]]]
    records = [Record(f"tree {i}", "what is the value", found, ranked=True, scores=[100.0, 60.0, 5.0][: len(found)])
               for i, found in enumerate(texts)]  # fmt: skip
    rows, _ = encode(records, tiny_tokenizer())
    length = rows.response.length[:, :, None]
    return rows.replace(segments=torch.cat([0 * length, (length + 2) // 3, (2 * length + 2) // 3, length], 2))


@pytest.mark.parametrize("name", ["tpo", "lipo"])
def test_lists_of_unequal_length_train_a_language_model_whatever_the_micro_batch(name: str) -> None:
    method, rows = methods.METHODS[name](unit=100.0), paths()
    losses = {}
    for micro_batch in (1, 2):
        policy = tiny_policy()
        roles = {"current": policy, "reference": policy.reference()}
        learner = GradientLearner(policy, method, roles, optimiser="sgd", lr=0.05, micro_batch=micro_batch)
        losses[micro_batch] = [learner.descend(rows)["loss"] for _ in range(6)]
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)  # float32 passes
    assert all(after < before for before, after in itertools.pairwise(losses[1]))


def test_tpo_on_rows_without_marked_steps_says_what_is_missing() -> None:
    policy = tiny_policy()
    learner = GradientLearner(policy, methods.tpo(), {"current": policy, "reference": policy.reference()})
    with pytest.raises(PreftuneError, match="carry no segments"):
        learner.descend(paths().replace(segments=None))
