"""Facts about evaluation: estimators against enumeration, intervals against known distributions, a judge with a bias."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from preftune.evaluation import (
    bootstrap,
    brier_of,
    calibration_error_of,
    draw,
    evaluate,
    held_out,
    intervals,
    kl_estimate,
    mean_of,
    on_samples,
    preference_metrics,
    sample_lines,
    win_rate,
)
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.types import Key, PreftuneError, Rows, Scored


def pairs(*columns: tuple[int, int], prompt: int = 0, **labels: object) -> Rows:
    """Ranked pairs of responses of one game."""
    ids = tuple(f"row {i}" for i in range(len(columns)))
    return Rows(id=ids, prompt=(prompt,) * len(columns), response=TableResponses(torch.tensor(columns)), ranked=True, **labels)  # type: ignore[arg-type]


def scored(logp: list[list[float]], ref_logp: list[list[float]] | None = None, **fields: object) -> Scored:
    rows = fields.pop("rows", None) or Rows(id=tuple(map(str, range(len(logp)))), prompt=(0,) * len(logp), ranked=True)
    ref = None if ref_logp is None else torch.tensor(ref_logp, dtype=torch.float64)
    return Scored(rows, torch.tensor(logp, dtype=torch.float64), ref, **fields)  # type: ignore[arg-type]


class TableJudge:
    """prefer[i, j] = P(i beats j), plus a liking for whatever stands first; scores a response by its number."""

    def __init__(self, prefer: list[list[float]], first: float = 0.0):
        self.table, self.first = torch.tensor(prefer, dtype=torch.float64), first

    def prefer(self, rows: Rows, a: TableResponses, b: TableResponses, key: Key) -> torch.Tensor:
        return self.table[a.index[:, :, None], b.index[:, None, :]] + self.first

    def score(self, rows: Rows, y: TableResponses, key: Key) -> torch.Tensor:
        return y.index.double()


# --- pairs


def test_preference_metrics_by_hand() -> None:
    """Row 0: drift (1, -1), margin 0.5 (1 + 1) = 1. Row 1: drift (-1, 1), so the reference-relative order is wrong, the raw one right."""
    m = preference_metrics(
        scored([[-2.0, -4.0], [-3.0, -3.5]], [[-3.0, -3.0], [-2.0, -4.5]], length=torch.tensor([[2, 4], [3, 7]])), beta=0.5
    )
    assert m["accuracy_raw"].tolist() == [1.0, 1.0]
    assert m["accuracy"].tolist() == [1.0, 0.0]
    assert m["accuracy_per_token"].tolist() == [0.5, 0.0]  # -1 against -1; -1 against -0.5
    assert m["margin"].tolist() == [1.0, -1.0]
    assert m["logp_chosen"].tolist() == [1.0, -1.0]
    assert m["logp_rejected"].tolist() == [-1.0, 1.0]
    assert m["reward_chosen"].tolist() == [0.5, -0.5]
    assert m["length_rejected"].tolist() == [4.0, 7.0]
    assert m["probability"][0].item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_a_policy_equal_to_its_reference_is_at_chance() -> None:
    logp = [[-2.0, -4.0], [-3.0, -3.5]]
    assert preference_metrics(scored(logp, logp))["accuracy"].tolist() == [0.5, 0.5]


def test_without_reference_only_raw_numbers_appear() -> None:
    assert set(preference_metrics(scored([[-1.0, -2.0]]))) == {"accuracy_raw"}


def test_soft_labels_turn_the_order_and_ties_have_none() -> None:
    rows = Rows(id=("a", "b", "c"), prompt=(0, 0, 0), prefer=torch.tensor([0.9, 0.2, 0.5]))
    m = preference_metrics(scored([[-1.0, -2.0]] * 3, [[-1.0, -1.0]] * 3, rows=rows))
    assert m["accuracy"].tolist()[:2] == [1.0, 0.0] and m["accuracy"][2].isnan()
    assert m["label"].tolist() == pytest.approx([0.9, 0.2, 0.5])


def test_a_row_with_one_response_counts_nowhere() -> None:
    rows = Rows(id=("a", "b"), prompt=(0, 0), ranked=True, present=torch.tensor([[True, True], [True, False]]))
    m = preference_metrics(scored([[-1.0, -2.0]] * 2, [[-1.0, -1.0]] * 2, rows=rows))
    assert not m["margin"][0].isnan() and all(value[1].isnan() for value in m.values())


def test_rows_that_are_no_labelled_pairs_are_refused() -> None:
    with pytest.raises(PreftuneError, match="have 1"):
        preference_metrics(scored([[-1.0]]))
    with pytest.raises(PreftuneError, match="neither"):
        preference_metrics(scored([[-1.0, -2.0]], rows=Rows(id=("a",), prompt=(0,))))


# --- calibration


def test_calibration_error_by_hand() -> None:
    """Two bins. Confidence .8 (twice, one right): |1.6 - 1| / 4; confidence .6 (twice, both right): |1.2 - 2| / 4; sum .35."""
    error = calibration_error_of([0.8, 0.2, 0.6, 0.6], [1.0, 1.0, 1.0, 1.0], bins=2)
    assert error(np.ones((1, 4)))[0] == pytest.approx(0.35)
    assert brier_of([0.8, 0.2], [1.0, 1.0])(np.ones((1, 2)))[0] == pytest.approx((0.04 + 0.64) / 2)


def test_a_calibrated_predictor_has_no_calibration_error_whichever_column_stands_first() -> None:
    """Column 0 always wins in files; swapping a pair with its probability and label changes nothing."""
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    y = (rng.random(p.size) < p).astype(float)
    chosen_first = np.where(y == 1, p, 1 - p)
    weight = np.ones((1, p.size))
    error = calibration_error_of(chosen_first, np.ones_like(p))(weight)[0]
    assert error < 0.01
    assert error == pytest.approx(calibration_error_of(p, y)(weight)[0])


# --- intervals


def test_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    """400 data sets of 60 exponential draws: the count of covering intervals is 93.5 % (skew costs some) within 4 standard errors."""
    rng = np.random.default_rng(1)
    covered = [low <= 1.0 <= high for _, low, high in (bootstrap(rng.exponential(size=60), n=600, seed=i) for i in range(400))]
    assert abs(np.mean(covered) - 0.935) < 4 * math.sqrt(0.935 * 0.065 / 400)


def test_bootstrap_width_is_the_standard_error() -> None:
    x = np.random.default_rng(2).normal(size=400)
    _, low, high = bootstrap(x, n=4000)
    assert (high - low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.06)  # 4000 draws know a quantile to about 3 %


def test_clusters_widen_the_interval_by_the_root_of_the_copies() -> None:
    """Nine copies of each value say no more than one: clustered, the interval is that of the distinct values."""
    x = np.random.default_rng(3).normal(size=80)
    once, copies, clustered = bootstrap(x), bootstrap(np.repeat(x, 9)), bootstrap(np.repeat(x, 9), np.repeat(np.arange(80), 9).tolist())

    def width(interval: tuple[float, float, float]) -> float:
        return interval[2] - interval[1]

    assert width(clustered) == pytest.approx(width(once), rel=1e-12)
    assert width(clustered) / width(copies) == pytest.approx(3.0, rel=0.12)


def test_pairs_that_share_texts_get_a_wider_interval_than_independent_ones() -> None:
    """Each pair's value is the difference of two texts' values: 190 pairs of 20 texts know far less than 190 numbers."""
    texts = np.random.default_rng(4).normal(size=20)
    i, j = np.triu_indices(20, 1)
    value = np.abs(texts[i] - texts[j])
    plain = bootstrap(value)
    by_text = bootstrap(value, [frozenset((int(a), int(b))) for a, b in zip(i, j, strict=True)])
    assert by_text.value == plain.value
    assert by_text.high - by_text.low > 2 * (plain.high - plain.low)


def test_bootstrap_is_the_same_for_the_same_seed_and_leaves_missing_values_out() -> None:
    x = np.random.default_rng(5).normal(size=50)
    assert bootstrap(x, seed=5) == bootstrap(x, seed=5) != bootstrap(x, seed=6)
    assert bootstrap([1.0, 2.0, math.nan, 6.0]).value == 3.0


def test_one_cluster_gives_a_value_without_an_interval() -> None:
    value, low, high = bootstrap([1.0, 2.0], ["same", "same"])
    assert value == 1.5 and math.isnan(low) and math.isnan(high)


def test_chunks_of_resamples_do_not_change_the_kind_of_answer() -> None:
    """30,000 rows are resampled a few at a time: width of the standard error within the noise of 200 draws."""
    x = np.random.default_rng(6).normal(size=30_000)
    found = intervals({"mean": mean_of(x)}, x.size, n=200)["mean"]
    assert (found.high - found.low) / 2 == pytest.approx(1.96 / math.sqrt(30_000), rel=0.25)


def test_cluster_names_must_match_the_rows() -> None:
    with pytest.raises(PreftuneError, match="3 cluster names for 2 rows"):
        bootstrap([1.0, 2.0], ["a", "b", "c"])


# --- KL


def test_both_kl_estimators_are_unbiased_by_enumeration() -> None:
    policy, reference = TabularPolicy(torch.tensor([0.3, -1.0, 2.0, 0.0])), TabularPolicy(torch.tensor([1.0, 0.5, -0.5, 0.2]))
    p, q = policy.probabilities()[0], reference.probabilities()[0]
    exact = (p * (p.log() - q.log())).sum().item()
    estimates = kl_estimate(p.log(), q.log())
    assert (p * estimates["kl"]).sum().item() == pytest.approx(exact, rel=1e-12)
    assert (p * estimates["kl_k3"]).sum().item() == pytest.approx(exact, rel=1e-12)
    assert (estimates["kl_k3"] >= 0).all() and (estimates["kl"] < 0).any()


def test_the_low_variance_estimator_has_less_variance_where_the_policies_are_close() -> None:
    q = torch.full((5,), 0.2, dtype=torch.float64)
    p = (q.log() + 0.1 * torch.arange(5.0, dtype=torch.float64)).softmax(0)
    found = kl_estimate(p.log(), q.log())

    def variance(x: torch.Tensor) -> float:
        return ((p * x**2).sum() - (p * x).sum() ** 2).item()

    assert variance(found["kl_k3"]) < 0.05 * variance(found["kl"])


def test_sampled_kl_meets_the_exact_one() -> None:
    logits, ref_logits = torch.tensor([0.3, -1.0, 2.0, 0.0]), torch.tensor([1.0, 0.5, -0.5, 0.2])
    exact = on_samples(TabularPolicy(logits), draw(TabularPolicy(logits), one_game(1)), reference=TabularPolicy(ref_logits))
    policy, reference = TabularPolicy(logits, exact=False), TabularPolicy(ref_logits, exact=False)
    found = on_samples(policy, draw(policy, one_game(400), 8, Key.of(1)), reference=reference)
    for name in ("kl", "kl_k3"):
        low, high = found[name]["low"], found[name]["high"]
        assert low is not None and high is not None
        assert low < exact["kl"]["value"] < high  # type: ignore[operator]


def one_game(rows: int) -> Rows:
    return Rows(id=tuple(f"draw {i}" for i in range(rows)), prompt=(0,) * rows)


def test_a_tempered_sample_estimates_no_kl() -> None:
    policy = TabularPolicy(torch.tensor([0.3, -1.0]), exact=False)
    tempered = draw(policy, one_game(3), decoding={"temperature": 2.0})
    assert "kl" not in on_samples(policy, tempered, reference=policy)
    assert "kl" in on_samples(policy, draw(policy, one_game(3), decoding={"temperature": 1.0}), reference=policy)


# --- win rate


def test_win_rate_in_both_orders_takes_out_the_liking_for_the_first() -> None:
    rows = one_game(1)
    a, b = TableResponses(torch.tensor([[0, 1]])), TableResponses(torch.tensor([[1]]))
    prefer = [[0.5, 0.8], [0.2, 0.5]]
    for first in (0.0, 0.15):
        assert win_rate(TableJudge(prefer, first), rows, a, b, Key.of(0)).item() == pytest.approx((0.8 + 0.5) / 2)


def test_a_comparison_without_an_answer_in_one_order_is_left_out() -> None:
    a, b = TableResponses(torch.tensor([[0, 1]])), TableResponses(torch.tensor([[1]]))
    judge = TableJudge([[0.5, 0.8], [math.nan, 0.5]])
    assert win_rate(judge, one_game(1), a, b, Key.of(0)).item() == 0.5


def test_win_rate_of_exact_laws_is_the_bilinear_form() -> None:
    prefer = [[0.5, 0.9, 0.3], [0.1, 0.5, 0.6], [0.7, 0.4, 0.5]]
    policy, other = TabularPolicy(torch.tensor([0.0, 1.0, 2.0])), TabularPolicy(torch.tensor([1.0, 0.0, -1.0]))
    a, b = policy.sample(one_game(1), 1, Key.of(0)), other.sample(one_game(1), 1, Key.of(0))
    exact = policy.probabilities()[0] @ torch.tensor(prefer, dtype=torch.float64) @ other.probabilities()[0]
    assert win_rate(TableJudge(prefer), one_game(1), a, b, Key.of(0)).item() == pytest.approx(exact.item(), rel=1e-12)


# --- the whole


def test_evaluate_writes_valid_json_and_knows_the_better_policy() -> None:
    policy, reference = TabularPolicy(torch.tensor([0.0, 0.5, 1.5]), exact=False), TabularPolicy(torch.zeros(3), exact=False)
    batches = [pairs((2, 1), (2, 0), (1, 0)), pairs((2, 0), (1, 0), (0, 2))]
    judge = TableJudge([[0.5, 0.2, 0.1], [0.8, 0.5, 0.2], [0.9, 0.8, 0.5]])
    found = evaluate(policy, reference, batches, judge=judge, sample_rows=one_game(60), n=2)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["accuracy"]["value"] == pytest.approx(5 / 6)
    assert {"margin", "brier", "calibration_error", "kl", "kl_k3", "length", "judge", "judge_sd", "winrate"} <= set(found)
    assert found["winrate"]["low"] > 0.5  # type: ignore[operator]
    assert all(i["low"] <= i["value"] <= i["high"] for i in (found["accuracy"], found["winrate"], found["judge"]))  # type: ignore[operator]


def test_batches_do_not_change_the_evaluation() -> None:
    policy, reference = TabularPolicy(torch.tensor([0.0, 0.5, 1.5])), TabularPolicy(torch.zeros(3))
    rows = pairs((2, 1), (2, 0), (1, 0), (0, 2))
    assert held_out(policy, reference, rows) == held_out(policy, reference, [rows.take([0]), rows.take([1, 2, 3])])


def test_pairs_of_one_prompt_are_a_cluster() -> None:
    """Two games, each pair repeated: two clusters, so the interval spans both games' values; one game alone is not sampled."""
    policy, reference = TabularPolicy(torch.tensor([[0.0, 1.0], [1.0, 0.0]])), TabularPolicy(torch.zeros(2, 2))
    batches = [pairs(*[(1, 0)] * 30), pairs(*[(1, 0)] * 30, prompt=1)]
    found = held_out(policy, reference, batches)["accuracy"]
    assert (found["value"], found["low"], found["high"]) == (0.5, 0.0, 1.0)
    alone = held_out(policy, reference, batches[0])["accuracy"]
    assert (alone["low"], alone["high"]) == (1.0, 1.0)


def test_an_evaluation_without_reference_says_what_it_can() -> None:
    found = evaluate(TabularPolicy(torch.tensor([0.0, 1.0])), None, pairs((1, 0), (0, 1)))
    assert found["accuracy_raw"]["value"] == 0.5 and "accuracy" not in found


def test_evaluating_nothing_is_refused() -> None:
    policy = TabularPolicy(torch.tensor([0.0, 1.0]))
    with pytest.raises(PreftuneError, match="neither held-out rows nor prompts"):
        evaluate(policy, None, None)
    with pytest.raises(PreftuneError, match="no held-out rows"):
        evaluate(policy, None, [])
    with pytest.raises(PreftuneError, match="no prompts to sample from"):
        evaluate(policy, None, pairs((1, 0)), judge=TableJudge([[0.5, 0.5], [0.5, 0.5]]))


def test_sample_lines_stand_side_by_side() -> None:
    policy = TabularPolicy(torch.tensor([[0.0, 30.0]]), exact=False)
    before = draw(TabularPolicy(torch.tensor([[30.0, 0.0]]), exact=False), one_game(2), judge=TableJudge([[0.5, 0.5], [0.5, 0.5]]))
    lines = sample_lines(["p", "q"], before, draw(policy, one_game(2)))
    assert lines == [{"prompt": p, "before": "0", "after": "1", "judge_before": 0.0, "judge_after": None} for p in ("p", "q")]
