"""Facts of the losses of pairs that fit no table: inequalities, stationary points, sorting, running means, domains."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from facts import B, at, close, gap_of, gradient, normal, pairs, row, take
from facts_losses import rewards, shifted_by
from preftune import methods
from preftune.learner import GradientLearner
from preftune.objectives import absolute, divergences, pairwise, transport
from preftune.objectives.running import running_mean
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.training import check_labels, unread
from preftune.types import Method, Objective, PreftuneError, Rows, Scored
from vector_rows import VECTORS
from vector_rows import pairs as vector_pairs

MORE = 200  # rows or rounds of an inequality


def exactly(*gaps: float) -> Scored:
    """Pairs whose gap of log-ratios and of log-probs is this without any rounding."""
    n = len(gaps)
    rows = Rows(tuple(f"row {i}" for i in range(n)), tuple(range(n)), TableResponses(torch.arange(2).expand(n, 2)), ranked=True)
    reference = torch.full((n, 2), -8.0, dtype=torch.float64)
    return at(Scored(rows, reference, reference), reference + torch.tensor([[gap, 0.0] for gap in gaps], dtype=torch.float64))


# --- hinges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [partial(pairwise.hinge, beta=0.25), partial(pairwise.hinge_free, delta=4.0)])
def test_hinges_pull_nothing_at_the_kink_and_say_how_many_rows_pull(objective: Objective) -> None:
    s = exactly(3.5, 4.0, 4.5)
    slope = 0.25 if objective.func is pairwise.hinge else 1.0
    assert gradient(row(objective), s).tolist() == [[-slope, slope], [0, 0], [0, 0]]
    assert objective(s).row.tolist() == [slope * 0.5, 0, 0]
    assert objective(s).metrics["active"].tolist() == [1, 0, 0]


def test_slic_ignores_the_reference_and_hinge_does_not() -> None:
    s = pairs()
    moved = replace(s, ref_logp=s.ref_logp + normal(B, 2))
    assert torch.equal(methods.slic().objective(s).row, methods.slic().objective(moved).row)
    assert not torch.equal(pairwise.hinge(s).row, pairwise.hinge(moved).row)


# --- losses that are bounded, and losses that turn back -------------------------------------------------------------


def test_exo_turns_back_above_its_target_and_lies_between_its_floor_and_its_ceiling() -> None:
    """Target log(.999 / .001) = 6.907; dpo pulls on for ever."""
    assert (gradient(row(partial(pairwise.exo, beta=1.0)), gap_of(8.0))[:, 0] > 0).all()
    assert (gradient(row(partial(pairwise.dpo, beta=1.0)), gap_of(8.0))[:, 0] < 0).all()
    s = exactly(*torch.linspace(-60, 60, MORE).tolist())
    found = pairwise.exo(s, beta=1.0).row
    assert found.min() >= -1e-15 and found.max() <= -math.log(0.001) + 1e-15


def test_discopop_has_a_valley_below_the_reference_and_a_ridge_above_it() -> None:
    """Newton steps on its own derivative, from both sides of 0, at beta = tau = .05 (h = .05 gap)."""
    objective = pairwise.discopop
    found = []
    for h in (-0.1, 0.1):
        for _ in range(30):
            s = exactly(h / 0.05)
            first = gradient(row(objective), s)[0, 0] / 0.05
            ahead, behind = (gradient(row(objective), exactly((h + d) / 0.05))[0, 0] / 0.05 for d in (1e-5, -1e-5))
            h -= float(first / ((ahead - behind) / 2e-5))
        found.append((h, objective(exactly(h / 0.05)).row[0].item(), bool(ahead > behind)))
    (valley, low, convex), (ridge, high, concave) = found
    assert valley == pytest.approx(-0.118570, abs=1e-6) and low == pytest.approx(0.785924, abs=1e-6) and convex
    assert ridge == pytest.approx(0.072006, abs=1e-6) and high == pytest.approx(0.878290, abs=1e-6) and not concave


@pytest.mark.parametrize(("tau", "wrong"), [(0.05, True), (0.1, True), (0.11, False), (1.0, False)])
def test_discopop_says_that_its_first_step_lowers_the_margin_exactly_where_it_does(tau: float, wrong: bool) -> None:
    method = methods.discopop(tau=tau)
    start = TabularPolicy(torch.zeros(1, 3))
    rows = Rows(("a",), (0,), TableResponses(torch.tensor([[1, 2]])), ranked=True)
    learner = GradientLearner(start, method, {"current": start, "reference": start.reference()}, optimiser="sgd", lr=1.0, clip=0.0)
    learner.descend(rows)
    margin = start.logits[0, 1] - start.logits[0, 2]
    assert (margin < 0) == wrong and bool(method.notes) == wrong
    assert not wrong or "LOWERS the margin" in method.notes[0]


def test_nca_is_above_its_infimum_and_never_lets_go_of_the_loser() -> None:
    infimum = -math.log(2 / 3) - math.log(1 / 3) / 2
    s = at(pairs(), pairs().ref_logp)
    s = at(s, s.ref_logp + 5 * normal(B, 2))
    assert (absolute.nca(s, beta=1.0).row > infimum).all()
    assert absolute.nca(rewards(math.log(2), -30.0), beta=1.0).row.max() < infimum + 1e-13
    assert (gradient(row(partial(absolute.nca, beta=1.0)), rewards(0.0, -700.0))[:, 1] > 0).all()


@pytest.mark.parametrize("objective", [absolute.apo_zero, absolute.apo_down])
def test_apo_pulls_no_harder_than_beta_over_four_on_each_side_of_each_term(objective: Objective) -> None:
    """apo_down's winner stands in both of its terms, which pull in opposite directions."""
    pull = gradient(row(partial(objective, beta=0.4)), pairs()).abs()
    assert (pull <= 0.4 / 4 + 1e-15).all() and (pull > 0).any()
    assert gradient(row(objective), rewards(200.0, -200.0)).abs().max() < 1e-9


def test_bco_pair_is_never_below_dpo_and_meets_it_nowhere() -> None:
    """sigmoid(r0 - d) sigmoid(d - r1) < sigmoid(r0 - r1), whatever the shift d."""
    for delta in torch.linspace(-20, 20, 21).tolist():
        s = at(pairs(), pairs().ref_logp)
        s = at(s, s.ref_logp + 5 * normal(B, 2))
        assert (absolute.bco_pair(shifted_by(delta, s), beta=1.0).row > pairwise.dpo(s, beta=1.0).row).all()


def test_bco_pair_falls_for_ever_with_hard_labels_and_sppo_hard_does_not() -> None:
    bco, sppo = partial(absolute.bco_pair, beta=1.0, shift="none"), partial(absolute.sppo_hard, beta=1.0)
    assert bco(rewards(30.0, -30.0)).row.max() < 1e-12
    assert (gradient(row(sppo), rewards(30.0, -30.0))[:, 0] > 0).all() and (gradient(row(sppo), rewards(30.0, -30.0))[:, 1] < 0).all()


# --- f-divergences --------------------------------------------------------------------------------------------------


def test_the_score_of_jensen_shannon_is_below_log_2_and_becomes_the_log_ratio_plus_log_2() -> None:
    a = torch.linspace(-700, 30, MORE, dtype=torch.float64)
    score = divergences.SCORES["js"](a, 1.0)
    assert (score < math.log(2)).all()
    close(score[a < -40], a[a < -40] + math.log(2))


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha", "js"])
def test_a_winner_that_has_won_is_pulled_less_than_by_dpo_and_a_lost_one_under_exponentials_more(divergence: str) -> None:
    objective = methods.f_dpo(1e-3, divergence, alpha=0.5 if divergence == "alpha" else None).objective
    pull = lambda r0: gradient(row(objective), rewards(r0, 0.0))[:, 0].abs()
    dpo = lambda r0: gradient(row(partial(pairwise.dpo, beta=1e-3)), rewards(r0, 0.0))[:, 0].abs()
    assert (pull(5.0) < dpo(5.0)).all()
    assert (pull(-5.0) > dpo(-5.0)).all() == (divergence != "js")


@pytest.mark.parametrize("alpha", [1e-6, 1 - 1e-6])
def test_alpha_divergences_tend_to_both_kl_divergences(alpha: float) -> None:
    near = at(pairs(), pairs().ref_logp)
    near = at(near, near.ref_logp + normal(B, 2))
    limit = methods.f_dpo(divergence="reverse_kl" if alpha < 0.5 else "forward_kl").objective
    close(methods.f_dpo(divergence="alpha", alpha=alpha).objective(near).row, limit(near).row, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("divergence", "alpha", "dtype", "holds", "breaks"),
    [
        ("forward_kl", None, torch.float32, 80, 90),  #   float32 ends at e^88.72
        ("forward_kl", None, torch.float64, 700, 720),  # float64 ends at e^709.78
        ("alpha", 0.5, torch.float32, 160, 180),
        ("alpha", 0.5, torch.float64, 1400, 1440),
    ],
)
def test_exponential_scores_hold_as_far_as_their_dtype_and_name_the_rows_beyond(
    divergence: str, alpha: float | None, dtype: torch.dtype, holds: float, breaks: float
) -> None:
    """A rejected response that far below is refused as well: its score is no number either."""
    objective = methods.f_dpo(divergence=divergence, alpha=alpha).objective
    ratios = torch.tensor([[-holds, 0.0], [0.0, -holds], [-holds, -holds], [holds, -holds]], dtype=dtype)
    s = exactly(0.0, 0.0, 0.0, 0.0)
    s = at(replace(s, ref_logp=torch.zeros_like(ratios)), ratios)
    assert objective(s).row.isfinite().all() and gradient(row(objective), s).isfinite().all()
    ratios[2, 0] = -breaks
    with pytest.raises(PreftuneError, match=rf"row 2'\] is beyond what {str(dtype)[6:]} holds.* fell to -{breaks} nats.*learning rate"):
        objective(at(s, ratios))


def test_a_row_500_nats_down_has_the_loss_of_float64() -> None:
    """forward KL at log-ratios -500 and +500, beta .1: .1 e^500 = 1.4e216, slope the same, no infinity and no clamp."""
    s = rewards(-500.0, 500.0)
    exact = torch.full((B,), 0.1 * math.exp(500), dtype=torch.float64)
    objective = methods.f_dpo(divergence="forward_kl").objective
    close(objective(s).row, exact, rtol=1e-12, atol=0.0)
    close(gradient(row(objective), s)[:, 0], -exact, rtol=1e-12, atol=0.0)


# --- optimal transport ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["batch"], ids=[case["name"] for case in VECTORS["batch"]])
def test_batches_of_the_vectors(case: dict[str, Any]) -> None:
    """The mean over the batch and its derivatives by row."""
    objective = {"aot_paired": transport.aot, "aot_unpaired": transport.aot_unpaired}[case["name"]]
    whole = vector_pairs()
    s = take(whole, [whole.rows.id.index(name) for name in case["row_ids"]])
    loss = lambda s: objective(s, **case["params"]).row.mean()[None]
    expected = torch.tensor([case["d_chosen"], case["d_rejected"]], dtype=torch.float64).T
    torch.testing.assert_close(loss(s), torch.tensor([case["mean_loss"]], dtype=torch.float64), rtol=1e-12, atol=1e-15, check_dtype=True)
    torch.testing.assert_close(gradient(loss, s), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("objective", [transport.aot, transport.aot_unpaired])
def test_no_other_coupling_of_the_two_samples_costs_less(objective: Objective) -> None:
    """The cost is convex in the difference, so pairing equal quantiles is the optimal transport; dpo is one other coupling."""
    s = pairs()
    best = objective(s, beta=0.2).row.sum()
    u, v = (s.logratio[:, 0], s.logratio[:, 1]) if objective is transport.aot_unpaired else (s.logp.diff()[:, 0], s.ref_logp.diff()[:, 0])
    sign = 1 if objective is transport.aot_unpaired else -1  # diff is the loser less the winner
    draw = torch.Generator().manual_seed(0)
    for _ in range(MORE):
        other = -torch.nn.functional.logsigmoid(0.2 * sign * (u - v[torch.randperm(B, generator=draw)])).sum()
        assert best <= other + 1e-12
    assert best < pairwise.dpo(s, beta=0.2).row.sum()


def test_rows_with_equal_values_share_their_quantiles_in_the_order_of_the_batch() -> None:
    """Margins 1, 3, 1 of the policy against the quantiles 0, 2, 4 of the reference: h = 1 - 0, 3 - 4, 1 - 2."""
    table = Rows(("a", "b", "c"), (0, 1, 2), TableResponses(torch.arange(2).expand(3, 2)), ranked=True)
    policy = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    reference = torch.tensor([[4.0, 0.0], [0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    found = transport.aot(at(Scored(table, policy, reference), policy), beta=1.0).row
    close(found, -torch.nn.functional.logsigmoid(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)))


# --- through the learner --------------------------------------------------------------------------------------------

TABLE = torch.tensor([[0.3, -0.1, 0.5], [0.0, 1.0, -0.4], [2.0, 0.5, 0.1], [-1.0, 0.4, 0.2]], dtype=torch.float64)
ROWS = Rows(
    tuple("abcdefg"),
    (0, 1, 2, 3, 0, 1, 2),
    TableResponses(torch.tensor([[0, 1], [1, 0], [2, 0], [0, 1], [2, 1], [2, 0], [1, 2]])),
    ranked=True,
)


def on_table(method: Method, micro_batch: int, **settings: Any) -> GradientLearner:
    policy = TabularPolicy(TABLE)
    roles = {"current": policy, "reference": TabularPolicy(0.3 * TABLE.flip(1)).reference()}
    return GradientLearner(policy, method, roles, micro_batch=micro_batch, **{"optimiser": "sgd", "lr": 0.5, "clip": 0.0} | settings)


@pytest.mark.parametrize("method", [methods.aot(1.0), methods.aot_unpaired(1.0), methods.bco_pair(1.0)], ids=["aot", "aot-unpaired", "bco"])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
def test_micro_batches_change_no_step_of_a_loss_that_sees_the_batch(method: Method, micro_batch: int) -> None:
    """Three steps, so that what is remembered counts too; taken alone, micro-batches would give other steps."""
    whole, parts, alone = on_table(method, 100), on_table(method, micro_batch), on_table(method, 100)
    for _ in range(3):
        whole.descend(ROWS)
        parts.descend(ROWS)
        for start in range(0, len(ROWS), micro_batch):
            alone.descend(ROWS.take(range(start, min(start + micro_batch, len(ROWS)))))
    close(parts.policy.logits, whole.policy.logits)
    assert parts.running.keys() == whole.running.keys()
    for name in whole.running:
        close(parts.running[name], whole.running[name])
    assert (alone.policy.logits - whole.policy.logits).abs().max() > 1e-3


def test_bco_remembers_the_mean_of_all_rewards_it_has_seen() -> None:
    """Batches of 2, 4 and 1 rows: 14 rewards, each counting alike; delta is already the mean with this step's own."""
    learner = on_table(methods.bco_pair(0.5), 2)
    seen: list[Tensor] = []
    for part in ([0, 1], [2, 3, 4, 5], [6]):
        with torch.no_grad():
            seen.append(0.5 * learner.score(ROWS.take(part)).logratio.flatten())
        metrics = learner.descend(ROWS.take(part))
        assert metrics["shift"] == pytest.approx(float(torch.cat(seen).mean()), rel=1e-13)
    assert float(learner.running["bco_mean"]) == pytest.approx(float(torch.cat(seen).mean()), rel=1e-13)
    assert float(learner.running["bco_count"]) == 14


def test_what_bco_remembers_goes_back_with_a_snapshot_and_without_shift_it_remembers_nothing() -> None:
    learner = on_table(methods.bco_pair(0.5), 3)
    learner.descend(ROWS)
    snapshot = learner.snapshot()
    first = [learner.descend(ROWS) for _ in range(2)]
    learner.restore(snapshot)
    assert [learner.descend(ROWS) for _ in range(2)] == first
    bare = on_table(methods.bco_pair(0.5, shift="none"), 3)
    assert bare.descend(ROWS)["shift"] == 0.0 and not bare.running


def test_bco_pair_takes_its_shift_for_a_constant() -> None:
    """With the shift held still, finite differences give the gradient."""
    s = shifted_by(0.4, take(pairs(), [0, 1, 2]))

    def loss(logp: Tensor) -> Tensor:
        return absolute.bco_pair(at(s, logp, leaf=False)).row

    assert torch.autograd.gradcheck(loss, (s.logp.detach().requires_grad_(),))


# --- the running mean -----------------------------------------------------------------------------------------------


def test_the_running_mean_counts_every_value_alike_and_leaves_out_what_is_absent() -> None:
    draw = torch.Generator().manual_seed(3)
    s, seen = exactly(0.0), []
    for size in (3, 1, 7):
        values = torch.randn(size, 2, generator=draw, dtype=torch.float64).requires_grad_()
        present = torch.rand(size, 2, generator=draw) < 0.7
        mean, new = running_mean(s, "x", values, present)
        seen.append(values.detach()[present])
        assert not mean.requires_grad and new["x_mean"] is mean
        assert float(mean) == pytest.approx(float(torch.cat(seen).mean()), rel=1e-14)
        assert int(new["x_count"]) == len(torch.cat(seen))
        s = replace(s, running=new)


def test_the_running_mean_of_nothing_is_0_and_nothing_new_leaves_it_alone() -> None:
    values, absent = torch.ones(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.bool)
    mean, new = running_mean(exactly(0.0), "x", values, absent)
    assert float(mean) == 0.0 and float(new["x_count"]) == 0.0
    _, new = running_mean(exactly(0.0), "x", 5 * values)
    again, _ = running_mean(replace(exactly(0.0), running=new), "x", values, absent)
    assert float(again) == 5.0


def test_two_statistics_of_different_names_do_not_meet() -> None:
    _, new = running_mean(exactly(0.0), "x", torch.ones(2))
    mean, _ = running_mean(replace(exactly(0.0), running=new), "y", torch.zeros(2))
    assert float(mean) == 0.0


def test_paired_and_unpaired_bco_step_alike_on_the_same_pairs() -> None:
    """Two terms per row against two responses counted: the unpaired step is half of the paired one."""
    paired, unpaired = on_table(methods.bco_pair(0.5), 3), on_table(methods.bco(0.5), 3, lr=1.0)
    labelled = ROWS.replace(desirable=torch.tensor([[True, False]] * len(ROWS)), ranked=False)
    for part in ([0, 1, 2], [3, 4, 5, 6]):
        paired.descend(ROWS.take(part))
        unpaired.descend(labelled.take(part))
    close(unpaired.policy.logits, paired.policy.logits)


# --- what is said about labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "blind"),
    [
        (methods.dpo(), None),
        (methods.rpo(), None),  # its likelihood looks at no order
        (methods.wpo(), None),
        (methods.nca(), "nca"),
        (methods.mpo_mixed(), "bco_pair"),
        (methods.triple_po(), "cpo + gold_nll"),
    ],
)
def test_a_soft_label_is_said_to_be_unread_also_where_one_term_of_a_sum_reads_it(method: Method, blind: str | None) -> None:
    n = 3 if blind == "cpo + gold_nll" else 2
    y = TableResponses(torch.arange(n).expand(1, n))
    told = check_labels(method, Rows(("a",), (0,), y, ranked=True, prefer=torch.tensor([0.7])))
    assert told == (
        [] if blind is None else [f"the data carry prefer, which {blind} does not read: only the order of the responses is used"]
    )


@pytest.mark.parametrize("method", [methods.kto(), methods.bco(), methods.apo_zero_unpaired()])
def test_methods_that_take_pairs_apart_say_that_they_leave_a_soft_label_unread(method: Method) -> None:
    pair = Rows(("a",), (0,), TableResponses(torch.arange(2).expand(1, 2)), ranked=True, prefer=torch.tensor([0.7]))
    assert len(unread(method, pair)) == 1 and "carry prefer" in unread(method, pair)[0]
    assert unread(method, pair.replace(prefer=None)) == []
