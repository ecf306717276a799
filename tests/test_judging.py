"""What a judge's test finds: planted judges with known accuracy, calibration, tastes and circles, and input that says nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import preftune as package
from conftest import Run
from preftune.data.columns import Record
from preftune.judge_quality import (
    COUNTS_AS,
    SECTIONS,
    JudgeTest,
    additive_test,
    circle_test,
    cross_entropy,
    length_weight_of,
    measure,
    truth,
    verdict_counts,
)
from preftune.judges.asking import Answer, Comparing, Question
from preftune.types import Key, PreftuneError, Rows

KEY = Key.of(0)
Verdict = Callable[[str, str], float]


class Comparer:
    """P(a beats b) by a rule of two texts, a shown first. Counts what it is asked."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict, self.count = verdict, 0

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        shown = [[[self.verdict(x, y) for y in ys] for x in xs] for xs, ys in zip(a.show(), b.show(), strict=True)]
        self.count += a.shape[1] * b.shape[1] * len(rows)
        return torch.tensor(shown, dtype=torch.float64)


class Scorer:
    """A scale: sigmoid of the difference of a text's value."""

    def __init__(self, value: Callable[[str], float]) -> None:
        self.value = value

    def score(self, rows: Rows, y: Any, key: Key) -> Tensor:
        return torch.tensor([[self.value(text) for text in row] for row in y.show()], dtype=torch.float64)

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        return (self.score(rows, a, key)[:, :, None] - self.score(rows, b, key)[:, None, :]).sigmoid()


def quality(text: str) -> float:
    """The number that a text begins with."""
    return float(text.split()[0])


def pairs(n: int = 40, *, prefer: Callable[[int], float] | None = None) -> list[Record]:
    """Pairs of which the first is better, and every other time the longer one."""
    texts = lambda i: [f"1 {i}" + " and more" * (i % 2), f"0 {i}" + " and more" * (1 - i % 2)]
    return [
        Record(id=f"row {i}", prompt=f"prompt {i}", responses=texts(i), ranked=True, prefer=None if prefer is None else prefer(i))
        for i in range(n)
    ]


def lists(n: int = 12, k: int = 4) -> list[Record]:
    """Lists with one right answer, the first."""
    good = [True] + [False] * (k - 1)
    return [Record(f"list {i}", f"prompt {i}", [f"{j} of {i}" for j in range(k)], desirable=good) for i in range(n)]


def value(found: JudgeTest, name: str) -> float:
    measured = found.measures[name]["value"]
    assert measured is not None
    return measured


def checked(judge: Any, records: list[Record], **options: Any) -> JudgeTest:
    return measure(judge, records, resamples=200, **options)


# --- accuracy -----------------------------------------------------------------------------------------------------------


def test_a_constant_judge_is_right_half_the_time_and_finds_a_quarter_of_the_best_of_four() -> None:
    for judge in (Scorer(lambda text: 1.0), Comparer(lambda a, b: 0.5)):
        assert value(checked(judge, pairs()), "accuracy") == 0.5
        assert value(checked(judge, lists()), "best_of_list") == 0.25


def test_an_oracle_is_right_everywhere_and_its_negation_never() -> None:
    oracle, negated = Scorer(quality), Scorer(lambda text: -quality(text))
    assert (value(checked(oracle, pairs()), "accuracy"), value(checked(negated, pairs()), "accuracy")) == (1.0, 0.0)
    found = checked(negated, lists())  # the right answer of these lists has the least number
    assert (value(found, "best_of_list"), value(found, "accuracy")) == (1.0, 1.0)


def test_a_negated_judge_without_ties_has_the_accuracy_that_is_left() -> None:
    noisy = lambda sign: Scorer(lambda text: sign * (quality(text) + 3 * math.sin(len(text) + 7 * int(text.split()[1]))))
    accuracies = [value(checked(noisy(sign), pairs()), "accuracy") for sign in (1, -1)]
    assert accuracies[0] + accuracies[1] == 1 and 0.2 < accuracies[0] < 0.9


def test_two_that_share_the_top_of_a_list_are_half_right() -> None:
    scores = {"a": 2.0, "b": 2.0, "c": 1.0, "d": 0.0}
    record = Record("list", "prompt", list(scores), desirable=[True, False, False, False])
    found = checked(Scorer(scores.__getitem__), [record])
    assert value(found, "best_of_list") == 0.5
    assert value(found, "accuracy") == pytest.approx((0.5 + 1 + 1) / 3)


def ties(tied: tuple[float, ...], wrong: float, ref: float, ref_wrong: float, number: int = 1) -> list[Record]:
    """A prompt of RewardBench 2 with several right answers, and its twin with one; texts are their values."""
    of = lambda name, right, bad: Record(
        f"{name}:{number}", f"{name} {number}", [*map(str, right), str(bad)], desirable=[True] * len(right) + [False],
        meta={"subset": "Ties"},
    )  # fmt: skip
    return [of("tied", tied, wrong), of("ref", (ref,), ref_wrong)]


def section(judge: Any, records: list[Record], name: str = "Ties") -> float | None:
    return checked(judge, records).sections[name]["value"]


def test_ties_are_scored_as_in_rewardbench_2() -> None:
    """By hand: both accurate; the gap .5 is below the spread 1, and so is the lesser gap."""
    scale = Scorer(quality)
    assert section(scale, ties((3.0, 2.0), 1.5, 3.0, 1.0)) == pytest.approx(0.6 + 0.01 * math.tanh(0.5 - 1))
    assert section(scale, ties((3.0, 2.5), 1.0, 3.0, 2.8)) == pytest.approx(0.6 + 0.2 + 0.01 * math.tanh(0.2 / 0.5 - 1))
    assert section(scale, ties((3.0, 2.0), 2.5, 3.0, 1.0)) == pytest.approx(0.3 + 0.01 * math.tanh(-0.5 - 1))
    assert section(scale, ties((3.0, 3.0), 1.0, 3.0, 1.0)) == pytest.approx(1.01)
    assert section(Scorer(lambda text: 0.0), ties((3.0, 2.0), 1.5, 3.0, 1.0)) == 0.0
    both = ties((3.0, 2.0), 1.5, 3.0, 1.0) + ties((3.0, 3.0), 1.0, 3.0, 1.0, 2)
    assert section(scale, both) == pytest.approx((0.6 + 0.01 * math.tanh(-0.5) + 1.01) / 2)


def test_rewardbench_2_is_read_and_its_overall_score_is_the_mean_of_six(tmp_path: Path) -> None:
    """Best of four in five subsets: the first right, the next wrong, and so on; the rows as its file has them."""
    rows = [
        {"id": str(i), "prompt": f"p {i}", "chosen": ["2 yes"], "rejected": [f"{1 + 2 * (i % 2)} a", "0 b", "1 c"], "subset": name}
        for i, name in enumerate(("Factuality", "Focus", "Math", "Precise IF", "Safety"))
    ]
    rows += [
        {"id": "ref:1", "prompt": "an even prime", "chosen": ["3 two"], "rejected": ["1 four"], "subset": "Ties"},
        {"id": "tied:1", "prompt": "an odd prime", "chosen": ["3 three", "3 five"], "rejected": ["1 nine"], "subset": "Ties"},
    ]
    (tmp_path / "rb2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = package.judge_test(Scorer(quality), str(tmp_path / "rb2.jsonl"))
    told = {name: measured["value"] for name, measured in found.sections.items()}
    assert told == pytest.approx(
        {"Factuality": 1.0, "Focus": 0.0, "Math": 1.0, "Precise IF": 0.0, "Safety": 1.0, "Ties": 1.01, "overall": 4.01 / 6}
    )


def test_a_list_counts_as_much_as_a_pair() -> None:
    """Six pairs of a list all right, one pair wrong: 1/2, not 6/7."""
    ranked = Record("list", "one", ["4 x", "3 x", "2 x", "1 x"], ranked=True)
    found = checked(Scorer(quality), [ranked, Record("pair", "two", ["0 x", "9 x"], ranked=True)])
    assert found.pairs == 7 and value(found, "accuracy") == pytest.approx(0.5)


def test_labels_come_from_prefer_scores_order_or_desirable_marks() -> None:
    record = lambda **labels: Record("r", "p", ["a", "b", "c"][: 2 if "prefer" in labels else 3], **labels)
    assert truth(record(prefer=0.7)).round(9).tolist()[0][1] == 0.7
    assert truth(record(scores=[2.0, 2.0, 1.0], ranked=True))[0, 1:].tolist() == [0.5, 1.0]
    assert truth(record(ranked=True))[2, :2].tolist() == [0.0, 0.0]
    assert truth(record(desirable=[False, True, False]))[0, 1:].tolist() == [0.0, 0.5]
    assert np.isnan(truth(record())).all()


def planted(subset: str, rows: int, accuracy: float) -> list[Record]:
    """So many rows of a subset that an oracle gets so many right of."""
    right = round(accuracy * rows * 2) / 2  # an odd half is a tie
    sign = lambda i: 1 if i + 1 <= right else 0.5 if i < right else 0
    texts = lambda i: [f"{sign(i)} {subset} {i}", f"{1 - sign(i)} {subset} {i}"]
    return [Record(f"{subset} {i}", f"{subset} {i}", texts(i), ranked=True, meta={"subset": subset}) for i in range(rows)]


def test_sections_are_means_weighted_by_rows() -> None:
    """The Chat section of RewardBench: (100 * .9 + 95 * .8 + 95 * .7 + 28 + 40 * .5) / 358 = .78352."""
    sizes = zip(SECTIONS["Chat"], (100, 95, 95, 28, 40), (0.9, 0.8, 0.7, 1.0, 0.5), strict=True)
    found = checked(Scorer(quality), [record for size in sizes for record in planted(*size)])
    assert found.sections["Chat"]["value"] == pytest.approx(0.78352, abs=5e-6)
    assert list(found.sections) == ["Chat"]  # the other three have no rows, so there is no overall score
    assert {g.name: (g.pairs, g.accuracy["value"]) for g in found.subsets}["mt-bench-med"] == (40, 0.5)


def test_mathematics_weighs_as_much_as_code_and_the_overall_score_is_the_mean_of_sections() -> None:
    rows = planted("math-prm", 10, 1.0) + planted("hep-go", 10, 0.0)
    assert checked(Scorer(quality), rows).sections["Reasoning"]["value"] == pytest.approx(
        COUNTS_AS["math-prm"] / (1 + COUNTS_AS["math-prm"])
    )
    rest = planted("alpacaeval-easy", 4, 1.0) + planted("mt-bench-hard", 8, 0.5) + planted("donotanswer", 4, 1.0)
    found = checked(Scorer(quality), rows + rest).sections
    assert found["overall"]["value"] == pytest.approx((1 + 0.5 + 1 + (found["Reasoning"]["value"] or 0)) / 4)


def test_accuracy_rises_with_the_difference_of_a_judge_whose_noise_does_not() -> None:
    noise = np.random.default_rng(0).normal(size=(400, 2))
    records = [Record(f"r{i}", f"p{i}", [f"{i} 0", f"{i} 1"], ranked=True) for i in range(400)]
    judge = Scorer(lambda text: (lambda i, k: (1 - k) + noise[i, k])(*map(int, text.split())))
    deciles = checked(judge, records).deciles
    assert [group.pairs for group in deciles] == [40] * 10
    first, last = (deciles[at].accuracy["value"] or 0 for at in (0, -1))
    assert first < 0.7 < 0.85 < last


# --- calibration --------------------------------------------------------------------------------------------------------


def test_a_judge_that_says_the_labels_own_law_has_its_entropy_as_log_loss_and_no_other_error() -> None:
    law = lambda i: 0.5 + 0.05 * (i % 10)
    known = {f"1 {i}" + " and more" * (i % 2): law(i) for i in range(40)}
    found = checked(Comparer(lambda a, b: known[a] if a in known else 1 - known[b]), pairs(prefer=law))
    assert value(found, "log_loss") == pytest.approx(value(found, "label_entropy"), abs=1e-12)
    assert value(found, "calibration_error") == pytest.approx(0, abs=1e-12)
    assert value(found, "brier") == pytest.approx(0, abs=1e-12)
    assert all(b.right == pytest.approx(b.confidence) for b in found.bins if b.pairs)


def test_a_judge_that_is_surer_than_right_has_the_difference_as_calibration_error() -> None:
    """It says .95 for the right response in 30 of 40 pairs, and for the wrong one in 10: .95 - .75."""
    wrong = {f"1 {i}" for i in range(0, 20, 2)}
    judge = Comparer(lambda a, b: 0.05 if a.split(" and")[0] in wrong or b[:1] == "1" and b.split(" and")[0] not in wrong else 0.95)
    found = checked(judge, pairs())
    assert value(found, "accuracy") == 0.75
    assert value(found, "calibration_error") == pytest.approx(0.2)
    assert [(b.pairs, b.right) for b in found.bins if b.pairs] == [(40, 0.75)]
    assert value(found, "log_loss") == pytest.approx(-0.75 * math.log(0.95) - 0.25 * math.log(0.05))


def test_a_judge_that_is_sure_of_what_did_not_happen_has_no_finite_log_loss_and_says_so() -> None:
    found = checked(Comparer(lambda a, b: float(quality(a) < quality(b))), pairs())
    assert found.measures["log_loss"]["value"] is None
    assert any("log loss is infinite" in note for note in found.notes)
    assert cross_entropy(np.array([1.0, 0.0]), np.array([1.0, 0.0])).tolist() == [0.0, 0.0]


# --- places and lengths -------------------------------------------------------------------------------------------------


def test_a_taste_for_the_first_place_is_measured_and_taken_out() -> None:
    """p = .5 + .3 for the better one + .15 for the first: p_ab + p_ba - 1 = .3, and the fair probability is .8."""
    found = checked(Comparer(lambda a, b: 0.5 + 0.3 * np.sign(quality(a) - quality(b)) + 0.15), pairs())
    assert value(found, "order_bias") == pytest.approx(0.3)
    assert (value(found, "accuracy"), value(found, "consistency")) == (1.0, 1.0)
    assert {round(b.confidence or 0, 9) for b in found.bins if b.pairs} == {0.8}


def test_whoever_always_takes_the_first_is_half_right_and_never_consistent() -> None:
    found = checked(Comparer(lambda a, b: 1.0), pairs())
    assert (value(found, "accuracy"), value(found, "order_bias"), value(found, "consistency")) == (0.5, 1.0, 0.0)


def test_a_judge_of_lengths_is_right_where_the_longer_one_is() -> None:
    found = checked(Scorer(len), pairs())
    assert (value(found, "accuracy_longer_right"), value(found, "accuracy_shorter_right")) == (1.0, 0.0)
    assert value(found, "length_baseline") == value(found, "accuracy") == 0.5
    assert (found.measures["length_weight"]["low"] or 0) > 1  # sigmoid of nine characters, and nothing of the label


def test_the_weight_of_length_is_that_of_a_penalised_logistic_regression() -> None:
    g = np.random.default_rng(1)
    longer, label, p = g.normal(size=60) * 30, g.integers(2, size=60).astype(float), g.uniform(size=60)
    d = np.tanh(longer / math.sqrt(float((longer**2).mean())))

    def loss(ab: np.ndarray) -> float:
        return float(cross_entropy(1 / (1 + np.exp(-(ab[0] * (2 * label - 1) + ab[1] * d))), p).sum() + (ab @ ab) / 2)

    expected = minimize(loss, np.zeros(2), tol=1e-12).x[1]
    assert length_weight_of(p, label, longer, np.ones(60))(np.ones((1, 60)))[0] == pytest.approx(expected, abs=1e-5)


def test_the_interval_of_the_weight_of_length_holds_zero_for_a_judge_that_reads_quality_alone() -> None:
    weight = checked(Scorer(quality), pairs(100)).measures["length_weight"]
    assert (weight["low"] or 0) <= 0 <= (weight["high"] or 0) or abs(weight["value"] or 1) < 1e-6


# --- circles ------------------------------------------------------------------------------------------------------------


def verdicts(chance: np.ndarray, g: np.random.Generator) -> Tensor:
    """Answers of 0 or 1 drawn in both orders, [L, K, K] from P of the same shape."""
    return torch.from_numpy((g.uniform(size=chance.shape) < chance).astype(float))


def bradley_terry(g: np.random.Generator, lists: int, k: int, spread: float) -> np.ndarray:
    v = g.normal(size=(lists, k)) * spread
    return 1 / (1 + np.exp(-(v[:, :, None] - v[:, None, :])))


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_strengths_and_noise_are_seldom_called_circular(spread: float) -> None:
    """False alarms at p <= .05 in 60 simulated judges of 20 lists of four; measured on 150: .07 for coin flips, .04 for spread 1."""
    g = np.random.default_rng(2)
    alarms = [circle_test([verdict_counts(verdicts(bradley_terry(g, 20, 4, spread), g))], KEY)[2] <= 0.05 for _ in range(60)]
    assert sum(alarms) <= 8  # more than 8 of 60 happens once in 500 at a rate of .05


def cycle(sure: float) -> np.ndarray:
    """Three that beat each other in a circle with this probability."""
    return np.array([[0.5, sure, 1 - sure], [1 - sure, 0.5, sure], [sure, 1 - sure, 0.5]])


def test_a_planted_cycle_is_found_nearly_always() -> None:
    """Power at p <= .05 with 20 lists of three, a step of the cycle won with .85: at least 18 of 20 simulated judges."""
    g = np.random.default_rng(3)
    found = [circle_test([verdict_counts(verdicts(np.repeat(cycle(0.85)[None], 20, 0), g))], KEY)[2] <= 0.05 for _ in range(20)]
    assert sum(found) >= 18


def noisy(odds: np.ndarray, g: np.random.Generator, noise: float, bias: float = 0.0) -> Tensor:
    """Probabilities whose log-odds are skew, with a liking for the first place and noise of their own in both orders."""
    return torch.from_numpy(odds + bias + noise * g.normal(size=odds.shape)).sigmoid()


def test_noise_between_orders_is_seldom_taken_for_preferences_off_a_scale() -> None:
    """False alarms at p <= .05 among 100 judges with strengths, noise and a strong taste for the first place."""
    g, alarms = np.random.default_rng(4), 0
    for _ in range(100):
        v = g.normal(size=(15, 4))
        alarms += additive_test([noisy(v[:, :, None] - v[:, None, :], g, 0.5, bias=0.7)], KEY)[2] <= 0.05
    assert alarms <= 12  # more than 12 of 100 happens three times in 1000 at a rate of .05


def test_a_cyclic_part_is_told_from_noise() -> None:
    g = np.random.default_rng(5)
    odds = np.log(cycle(0.7) / (1 - cycle(0.7)))[None].repeat(15, 0)
    unexplained, noise, p = additive_test([noisy(odds, g, 0.3)], KEY)
    assert p <= 0.01 and unexplained > 0.9 > 0.5 > noise  # strengths explain nothing of a perfect cycle


def test_a_judge_with_a_scale_is_transitive_and_one_of_styles_is_not() -> None:
    styles = Comparer(lambda a, b: cycle(0.8)[int(quality(a)) % 3, int(quality(b)) % 3])
    plain, circular = (checked(judge, lists(k=3)).transitivity for judge in (Scorer(quality), styles))
    assert plain is not None and circular is not None
    assert (plain.circles, plain.p_circles, plain.unexplained, plain.p_additive) == (0, 1.0, 0.0, 1.0)
    assert (circular.lists, circular.triples, circular.circles, circular.share["value"]) == (12, 12, 12, 1.0)
    assert circular.unexplained == pytest.approx(1.0) and circular.noise == pytest.approx(0.0)
    assert circular.verdicts == 12 > circular.expected
    assert circular.p_circles < 0.01 and (circular.p_additive or 1) < 0.01


def test_a_judge_who_takes_the_first_has_no_verdict_to_make_circles_of() -> None:
    """His two verdicts on a pair always split, though the means of both orders run in a circle by a hair."""
    hair = lambda a, b: 0.9 + 0.05 * (cycle(0.8)[int(quality(a)) % 3, int(quality(b)) % 3] - 0.5)
    found = checked(Comparer(hair), lists(k=3)).transitivity
    assert found is not None and (found.circles, found.verdicts, found.p_circles) == (12, 0, 1.0)


def test_lists_are_drawn_from_responses_to_one_prompt() -> None:
    """Twelve rows of one prompt have 24 texts: four lists of five, and one of four; ten were asked for."""
    rows = [Record(f"r{i}", "the prompt", [f"1 {i}", f"0 {i}"], ranked=True) for i in range(12)]
    found = checked(Scorer(quality), rows, lists=10)
    assert found.transitivity is not None and found.transitivity.lists == 5
    assert any("5 of 10 lists were drawn" in note for note in found.notes)
    assert found.asked == 12 * 2 + 4 * 20 + 12
    assert checked(Scorer(quality), pairs(), lists=3).transitivity is None  # two responses to each prompt make no list


# --- silence, cost and input that says nothing --------------------------------------------------------------------------


def test_pairs_without_both_orders_count_nowhere_and_are_told() -> None:
    """The judge is silent when a text with an odd number is shown first: 40 of 80 answers, 20 pairs have both orders."""
    silent = lambda a, b: math.nan if int(a.split()[1]) % 2 else float(quality(a) > quality(b))
    found = checked(Comparer(silent), pairs())
    assert (found.asked, found.silent, value(found, "accuracy")) == (80, 40, 1.0)
    assert any("40 of 80 answers are missing" in note for note in found.notes)
    assert sum(b.pairs for b in found.bins) == 20


def test_a_judge_that_only_compares_is_asked_about_two_different_responses_alone() -> None:
    judge = Comparer(lambda a, b: 0.6)
    assert checked(judge, lists(5) + pairs(3)).asked == judge.count == 5 * 4 * 3 + 3 * 2


class First:
    """An answerer that always takes the first."""

    identity, kept = "first", False

    def answer(self, questions: list[Question]) -> Any:
        yield from ((i, self.said(question)) for i, question in enumerate(questions))

    def said(self, question: Question) -> Answer:
        return (0.9,)


def test_what_a_judge_counts_is_told() -> None:
    judge = Comparing(First())
    checked(judge, pairs(4))
    assert checked(judge, pairs(6)).calls == {"asked": 12, "known": 0, "silent": 0}


def test_one_row_has_numbers_and_no_intervals() -> None:
    found = checked(Scorer(quality), pairs(1))
    assert found.measures["accuracy"] == {"value": 1.0, "low": None, "high": None}
    assert any("no intervals" in note for note in found.notes)


def test_labels_that_hold_all_pairs_equal_leave_the_calibration() -> None:
    found = checked(Comparer(lambda a, b: 0.5), pairs(prefer=lambda i: 0.5))
    assert found.measures["accuracy"]["value"] is None and found.deciles == []
    assert value(found, "log_loss") == pytest.approx(math.log(2))
    assert any("hold all answered pairs equal" in note for note in found.notes)


class Flat(Comparer):
    """Answers in one line."""

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        return super().prefer(rows, a, b, key).flatten()


@pytest.mark.parametrize(
    ("judge", "records", "options", "said"),
    [
        (Scorer(quality), [], {}, "none of 0 rows has two responses"),
        (Scorer(quality), [Record("r", "p", ["1 x"])], {}, "none of 1 rows has two responses"),
        (Scorer(quality), [Record("r", "p", ["1 x", "0 x"])], {}, "says which response is better"),
        (Comparer(lambda a, b: math.nan), pairs(3), {}, "no answer to 6 of 6 questions"),
        (Scorer(lambda text: math.nan), pairs(3), {}, "no answer to 6 of 6 questions"),
        (Flat(lambda a, b: 0.5), pairs(3), {}, "the judge Flat gave preferences of shape .3., needed .3, 1, 1."),
        (Comparer(lambda a, b: 2.0), pairs(3), {}, "Comparer gave 2, needed probabilities from 0 to 1"),
        (Scorer(quality), planted("here", 3, 1.0), {"subset_column": "there"}, "no row has a column 'there'.*the columns are subset"),
        (Scorer(quality), pairs(3), {"lists": -1}, "lists is -1"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(judge: Any, records: list[Record], options: dict[str, Any], said: str) -> None:
    with pytest.raises(PreftuneError, match=said):
        measure(judge, records, **options)


# --- the command --------------------------------------------------------------------------------------------------------

JUDGE = """
import torch

class Numbers:
    def score(self, rows, y, key):
        return torch.tensor([[float(text.split()[0]) for text in row] for row in y.show()])

    def prefer(self, rows, a, b, key):
        return (self.score(rows, a, key)[:, :, None] - self.score(rows, b, key)[:, None, :]).sigmoid()

def numbers():
    return Numbers()
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    tmp_path = tmp_path_factory.mktemp("judge")
    judge, data = tmp_path / "planted_numbers.py", tmp_path / "pairs.jsonl"
    judge.write_text(JUDGE, encoding="utf-8")
    rows = [
        {"prompt": r.prompt, "chosen": r.responses[0], "rejected": r.responses[1], "kind": f"k{i % 2}"} for i, r in enumerate(pairs(20))
    ]
    rows.append({"prompt": "p", "chosen": "1", "rejected": "1"})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"{judge}:numbers", str(data)


def test_the_command_prints_every_part_and_writes_a_page(preftune: Run, files: tuple[str, str], tmp_path: Path) -> None:
    judge, data = files
    page = tmp_path / "new" / "page.html"
    code, said, err = preftune("judge", "test", judge, "--data", data, "--subset-column", "kind", "--out", str(page))
    assert code == 0, err
    for part in ("20 rows", "accuracy", "length baseline", "k0", "chance of the favourite", "answers: 40 needed, 0 missing", "identical"):
        assert part in " ".join(said.split())
    html = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in html and "order bias" in html and not re.search(r'(src|href)="(?!data:)', html)


def test_the_command_as_json_says_what_the_function_returns(preftune: Run, files: tuple[str, str]) -> None:
    judge, data = files
    code, said, _ = preftune("judge", "test", judge, "--data", data, "--rows", "7", "--json")
    found = package.judge_test(judge, data, rows=7)
    assert code == 0 and json.loads(said)["measures"] == found.measures and found.rows == 7


def test_the_command_refuses_a_subset_column_that_is_not_there(preftune: Run, files: tuple[str, str]) -> None:
    code, _, said = preftune("judge", "test", files[0], "--data", files[1], "--subset-column", "style")
    assert code == 3 and "no row has a column 'style'" in " ".join(said.split()) and "kind" in said
