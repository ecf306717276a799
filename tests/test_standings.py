"""Standings from verdicts whose law is known: planted judges, and how often intervals and tests are wrong about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preftune.standings import (
    Verdicts,
    circularity,
    counts,
    effective,
    elo,
    length_control,
    length_scale,
    mean_by,
    resamples,
    standings,
    strengths,
    sums,
)
from preftune.types import PreftuneError
from verdict_fixtures import bradley_terry_contest, circular_contest, same_in_both_orders, verdicts


def judged(first: np.ndarray, second: np.ndarray, length: np.ndarray | None = None) -> Verdicts:
    """Two models: P(a beats b | a first) and P(b beats a | b first), both [B, n]; lengths [2, B, n]."""
    beats = np.full((2, 2, *first.shape), np.nan)
    beats[0, 1], beats[1, 0] = first, second
    return verdicts(beats, length)


# --- numbers by hand ------------------------------------------------------------------------------------------------------------------


def test_bradley_terry_and_elo_of_a_table_worked_before() -> None:
    """W = [[0, 6, 8], [4, 0, 7], [2, 3, 0]]: the likelihood's maximum to five digits, Elo = 400 / ln 10 xi + 1000."""
    found, added = strengths(np.array([[[0, 6, 8], [4, 0, 7], [2, 3, 0]]], float))
    assert added == 0
    assert np.allclose(found[0], [0.59147, 0.14910, -0.74057], atol=5e-6)  # as many digits as the card has
    assert np.allclose(elo(found[0]), [1102.7, 1025.9, 871.3], atol=0.06)


def test_two_models_are_as_far_apart_as_the_log_odds_of_their_wins() -> None:
    found, _ = strengths(np.array([[[0, 7], [3, 0]]], float))
    assert found[0, 0] - found[0, 1] == pytest.approx(np.log(7 / 3), abs=1e-9)
    assert elo(found[0]).mean() == pytest.approx(1000)


def test_scale_and_argument_of_the_length_model_by_hand() -> None:
    """d = (-50, 0, 200, -500, 50) has mean -60 and squared distances 277000 in sum: s = sqrt(277000 / 4) = 263.154."""
    d = np.array([-50, 0, 200, -500, 50], float)
    assert length_scale(d) == pytest.approx(263.154, abs=5e-4)
    assert np.allclose(np.tanh(d / length_scale(d)), [-0.1877, 0, 0.6411, -0.9562, 0.1877], atol=5e-5)


def test_win_rate_and_spread_of_five_verdicts_by_hand() -> None:
    """Stored as 1 + q: (1.9, 1.2, 1.5, 2.0, 1.0), so 52 % with a standard error of 19.339; a bootstrap divides by n, not n - 1."""
    q = np.array([0.9, 0.2, 0.5, 1.0, 0.0])[:, None]
    found = standings(judged(q, 1 - q), draws=0)
    entry = found.winrate[0][1]
    assert entry is not None and entry.value == pytest.approx(0.52)
    drawn = mean_by(resamples(range(5), 4000, seed=0), *sums(q))[1:]
    assert drawn.std() == pytest.approx(0.19339 * np.sqrt(4 / 5), rel=0.04)  # 4000 draws know a deviation to 1.1 %


# --- length -----------------------------------------------------------------------------------------------------------------------


def test_swapping_model_and_baseline_turns_theta_round_and_leaves_phi() -> None:
    rng = np.random.default_rng(0)
    won, d = rng.random(40), rng.normal(size=40) * 100
    (theta,), (phi,) = length_control(won, d)
    (back,), (same,) = length_control(1 - won, -d)
    assert back == pytest.approx(-theta, abs=1e-10) and same == pytest.approx(phi, abs=1e-10)


def test_a_judge_of_shorter_answers_has_a_positive_phi() -> None:
    d = np.array([-100.0, -20, 20, 100])  # baseline minus model: the model is shorter in the last two
    assert length_control(np.array([0.1, 0.4, 0.6, 0.9]), d)[1][0] > 1
    assert length_control(np.array([0.9, 0.6, 0.4, 0.1]), d)[1][0] < -1


def test_at_equal_lengths_the_controlled_win_rate_is_the_plain_one() -> None:
    """But for the ridge, which at 200 comparisons moves a log-odds of .85 by .02 * .85 / (200 * .21) = .0004, a rate by .0001."""
    rng = np.random.default_rng(1)
    q = (rng.random((200, 1)) < 0.7).astype(float)
    found = standings(judged(q, 1 - q), draws=0)
    plain, fair = found.winrate[0][1], found.controlled[0][1]
    assert plain is not None and fair is not None and fair.value == pytest.approx(plain.value, abs=2e-4)


def test_the_fit_is_where_the_gradient_vanishes() -> None:
    rng = np.random.default_rng(2)
    won, d = (rng.random(60) < 0.6).astype(float), rng.normal(size=60)
    (theta,), (phi,) = length_control(won, d, ridge=0.3)
    parameters = torch.tensor([theta, phi], requires_grad=True, dtype=torch.float64)
    logits = parameters[0] + parameters[1] * torch.tensor(np.tanh(d / length_scale(d)))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(won), reduction="sum")
    (gradient,) = torch.autograd.grad(loss + 0.15 * (parameters**2).sum(), parameters)
    assert gradient.abs().max() < 1e-7


def test_verdicts_that_length_decides_alone_leave_the_fit_finite() -> None:
    d = np.array([-3.0, -1, 1, 3])
    (theta,), (phi,) = length_control((d < 0).astype(float), d)
    assert abs(theta) < 1e-6 and -20 < phi < -3


def length_contest(rng: np.random.Generator, hard: bool, prompts: int = 80) -> Verdicts:
    """a writes a third more than b, and the judge looks at nothing but length: for sure, or by sigmoid(difference / 40)."""
    length = np.stack([rng.gamma(9, 26, (prompts, 1)), rng.gamma(9, 20, (prompts, 1))]).round()
    more = length[0] - length[1]
    won = np.sign(more) / 2 + 0.5 if hard else 1 / (1 + np.exp(-more / 40))
    return judged(won, 1 - won, length)


@pytest.mark.parametrize("hard", [True, False], ids=["sure", "probabilities"])
def test_a_length_only_judge_gives_one_half_at_equal_length(hard: bool) -> None:
    """Of 100 contests the 95 % interval holds one half in at least 85, for a judge whose own curve is not the model's, and the plain win
    rate's interval in at most 2."""
    held = plain = 0
    for seed in range(100):
        found = standings(length_contest(np.random.default_rng(seed), hard), draws=200, seed=seed)
        fair, raw = found.controlled[0][1], found.winrate[0][1]
        assert fair is not None and raw is not None
        assert found.length_effect[0][1] is not None and found.length_effect[0][1] < 0  # rewards the longer one
        held += fair.low <= 0.5 <= fair.high
        plain += raw.low <= 0.5 <= raw.high
    assert held >= 85 and plain <= 2


def test_where_one_model_is_longer_throughout_the_extrapolation_is_said() -> None:
    q = np.full((6, 1), 0.8)
    found = standings(judged(q, 1 - q, np.stack([np.full((6, 1), 90.0), np.arange(6.0)[:, None]])), draws=0)
    assert any("every answer of a is longer than that of b" in said and "extrapolation" in said for said in found.warnings)


# --- the order of answers -----------------------------------------------------------------------------------------------------------------


def test_a_judge_that_always_takes_the_first_has_bias_one_and_gives_one_half() -> None:
    ones = np.ones((7, 2))
    found = standings(judged(ones, ones), draws=50)
    entry = found.winrate[0][1]
    assert entry is not None and tuple(entry) == (0.5, 0.5, 0.5)
    assert found.bias.value == 1 and found.consistency.value == 0


def test_an_order_bias_is_estimated_and_removed() -> None:
    """P(first wins) is .62 + .15 for the better and .38 + .15 for the worse model, so bias .3 and win rate .62. Of 100 contests of 100
    prompts the 95 % intervals hold them in at least 88 each, and judged in one order alone the win rate in at most 20."""
    bias = rate = one_order = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        first, second = (rng.random((100, 1)) < 0.77).astype(float), (rng.random((100, 1)) < 0.53).astype(float)
        found = standings(judged(first, second), draws=200, seed=seed)
        entry = found.winrate[0][1]
        assert entry is not None
        bias += found.bias.low <= 0.3 <= found.bias.high
        rate += entry.low <= 0.62 <= entry.high
        spread = 1.96 * np.sqrt(first.mean() * (1 - first.mean()) / 100)
        one_order += abs(first.mean() - 0.62) <= spread
    assert bias >= 88 and rate >= 88 and one_order <= 20


def test_consistency_counts_the_same_winner_and_two_ties() -> None:
    first, second = np.array([[0.9], [0.9], [0.5], [0.5], [np.nan]]), np.array([[0.2], [0.8], [0.5], [0.4], [0.1]])
    assert standings(judged(first, second), draws=0).consistency.value == 0.5  # yes, no, yes, no, unknown


def test_a_coin_flip_judge_is_told_from_one_half_as_rarely_as_intervals_promise() -> None:
    """Of 100 contests of 60 prompts the 95 % intervals miss one half in at most 12, plain and at equal length: percentile intervals of 60
    prompts are a little narrow."""
    missed = [0, 0]
    for seed in range(100):
        rng = np.random.default_rng(seed)
        first, second = ((rng.random((60, 1)) < 0.5).astype(float) for _ in range(2))
        found = standings(judged(first, second, rng.gamma(9, 20, (2, 60, 1))), draws=200, seed=seed)
        for which, table in enumerate((found.winrate, found.controlled)):
            entry = table[0][1]
            assert entry is not None
            missed[which] += not entry.low <= 0.5 <= entry.high
    assert max(missed) <= 12 and min(missed) >= 1


# --- circles --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", [3, 5])
def test_a_planted_circle_is_called_intransitive(models: int) -> None:
    """Each of three models beats the next with .65, two answers to each of 60 prompts: found in at least 180 of 200 contests (90 %)."""
    made = (circular_contest(models, 0.65, 60, 2, np.random.default_rng(seed)) for seed in range(200))
    assert sum(found.p_strength < 0.05 for v in made if (found := circularity(v, draws=200))) >= 180


@pytest.mark.parametrize("spread", [0.0, 0.7])
@pytest.mark.parametrize("models", [3, 5])
def test_a_bradley_terry_judge_is_not_called_intransitive(models: int, spread: float) -> None:
    """Verdicts by the quality of the answers, which several comparisons share: called in at most 4 of 200 contests (2 %)."""
    rngs = (np.random.default_rng(seed) for seed in range(200))
    made = (bradley_terry_contest(rng.normal(size=models) * spread, 60, 2, rng) for rng in rngs)
    assert sum(found.p_strength < 0.05 for v in made if (found := circularity(v, draws=200))) <= 4


def test_coin_flips_are_called_intransitive_as_rarely_as_the_level_says() -> None:
    """Independent flips of equal models, two alike answers to a prompt: called in 1 to 16 of 200 contests (level 5 %, 8 % at most)."""
    made = (circular_contest(4, 0.5, 60, 2, np.random.default_rng(seed)) for seed in range(200))
    assert 1 <= sum(found.p_strength < 0.05 for v in made if (found := circularity(v, draws=200))) <= 16


def test_the_mixture_of_a_circle_is_uniform_and_no_ranking_hides_it() -> None:
    """a beats b beats c beats a with .7 in every prompt's mean: thirds, equal Elo, the circle named."""
    wins = np.zeros((3, 3, 10, 1))
    for i, j in ((0, 1), (1, 2), (2, 0)):
        wins[i, j, :7], wins[j, i, 7:] = 1, 1
    found = standings(verdicts(same_in_both_orders(wins)), draws=100)
    for place in found.board:
        assert place.elo is not None and place.elo.value == pytest.approx(1000)
        assert place.lottery.value == pytest.approx(1 / 3) and place.worst == pytest.approx(0.3)
    assert found.condorcet is None and found.circle is not None and found.circle.names in (("a", "b", "c"),)
    assert found.circle.winrates == pytest.approx((0.7, 0.7, 0.7))


def test_the_best_of_an_order_is_the_whole_mixture() -> None:
    rng = np.random.default_rng(0)
    found = standings(bradley_terry_contest(np.array([0.0, 1.5, 0.7]), 300, 1, rng), draws=100)
    assert [place.name for place in found.board] == ["b", "c", "a"]
    assert found.condorcet == "b" and found.board[0].lottery.value == 1 and found.intransitive is False


def test_independent_comparisons_are_worth_their_number_alike_ones_less_and_probabilities_more() -> None:
    rng = np.random.default_rng(0)
    hard = (rng.random(400) < 0.6).astype(float)
    _, single = effective(hard, np.ones(400), range(400))
    _, alike = effective(4 * hard, np.full(400, 4.0), range(400))
    _, soft = effective(0.5 + 0.2 * (hard - 0.5), np.ones(400), range(400))
    assert effective(np.full(30, 0.5), np.ones(30), range(30)) == (15.5, 31)  # ties throughout, and the prompt that is added
    assert single == pytest.approx(400, rel=0.02) and alike == pytest.approx(400, rel=0.02) and soft > 5000


def test_counts_of_both_sides_sum_to_whole_comparisons() -> None:
    rng = np.random.default_rng(3)
    wins = counts(verdicts(same_in_both_orders(rng.random((4, 4, 30, 2)))))
    assert ((wins + wins.T) % 1 == 0).all() and (wins + wins.T)[0, 1] > 0


# --- what is missing ------------------------------------------------------------------------------------------------------------------


def test_answers_that_repeat_within_a_prompt_make_no_interval_narrower() -> None:
    rng = np.random.default_rng(4)
    q = rng.random((20, 1))
    once, four = (standings(judged(x, 1 - x), draws=100).winrate[0][1] for x in (q, np.repeat(q, 4, axis=1)))
    assert once is not None and four is not None and np.allclose(once, four, rtol=1e-12)


def test_prompts_of_one_cluster_are_drawn_together() -> None:
    weight = resamples(["x", "y", "x"], 50, seed=0)
    assert (weight[:, 0] == weight[:, 2]).all() and (weight[1:, :2].sum(1) == 2).all() and weight[0].tolist() == [1, 1, 1]


def test_comparisons_that_the_judge_left_open_are_counted_and_left_out() -> None:
    first, second = np.array([[1.0], [np.nan], [0.0]]), np.array([[0.0], [0.0], [np.nan]])
    found = standings(judged(first, second), draws=0)
    entry = found.winrate[0][1]
    assert found.open == 2 and found.compared[0][1] == 1 and entry is not None and entry.value == 1


def test_equal_answers_are_ties_and_say_nothing_about_order() -> None:
    beats = np.full((2, 2, 3, 1), np.nan)
    beats[0, 1, :2], beats[1, 0, :2] = 1, 1
    equal = np.zeros(beats.shape, bool)
    equal[:, :, 2] = True
    found = standings(verdicts(beats, equal=equal), draws=0)
    assert found.equal == 1 and found.open == 0 and found.compared[0][1] == 3 and found.bias.value == 1


def test_a_model_that_says_the_same_throughout_stands_at_exactly_one_half() -> None:
    beats = np.full((2, 2, 4, 1), np.nan)
    found = standings(verdicts(beats, equal=np.ones(beats.shape, bool)), draws=20)
    assert found.winrate[0][1] == (0.5, 0.5, 0.5) and found.controlled[0][1] == (0.5, 0.5, 0.5)
    assert [place.lottery.value for place in found.board] == pytest.approx([0.5, 0.5])
    assert any("one of several" in said for said in found.warnings)


def test_a_model_that_never_lost_has_a_finite_elo_and_a_warning() -> None:
    ones = np.ones((5, 1))
    found = standings(judged(ones, 1 - ones), draws=50)
    top = found.board[0]
    assert top.name == "a" and top.elo is not None and 1000 < top.elo.value < 1500
    assert any("a never lost" in said for said in found.warnings)


def test_models_that_no_comparison_joins_have_no_elo() -> None:
    beats = np.full((3, 3, 4, 1), np.nan)
    beats[0, 1], beats[1, 0] = 0.7, 0.3
    found = standings(verdicts(beats), draws=20)
    assert all(place.elo is None for place in found.board) and found.test is None and found.winrate[0][2] is None
    assert sum("their win rate is unknown" in said for said in found.warnings) == 2


def test_pairs_that_met_at_one_prompt_each_have_intervals_though_resamples_may_lack_them() -> None:
    beats = np.full((3, 3, 3, 1), np.nan)
    for prompt, (i, j) in enumerate(((0, 1), (1, 2), (0, 2))):
        beats[i, j, prompt], beats[j, i, prompt] = 0.7, 0.3
    found = standings(verdicts(beats), draws=100)
    assert [place.name for place in found.board] == ["a", "b", "c"] and found.winrate[0][1] == pytest.approx((0.7, 0.7, 0.7))
    assert all(place.elo is not None and np.isfinite(place.elo).all() for place in found.board)


def test_one_prompt_gives_numbers_without_intervals() -> None:
    found = standings(judged(np.array([[0.8, 0.4]]), np.array([[0.3, 0.6]])), draws=100)
    entry = found.winrate[0][1]
    assert entry is not None and entry.value == pytest.approx(0.575) and np.isnan(entry.low)
    assert any("there is one prompt" in said for said in found.warnings)


def test_what_is_no_table_of_verdicts_is_refused() -> None:
    half = np.full((2, 2, 3, 1), 0.5)
    with pytest.raises(PreftuneError, match="outside of"):
        verdicts(np.where(np.ones_like(half), 1.2, half))
    with pytest.raises(PreftuneError, match="at least two"):
        Verdicts(("a",), half[:1, :1], half[:1, :1] > 1, np.ones((1, 3, 1)))
    with pytest.raises(PreftuneError, match="have shape"):
        Verdicts(("a", "b"), half, half[..., :0] > 1, np.ones((2, 3, 1)))
    with pytest.raises(PreftuneError, match="left every comparison open"):
        standings(verdicts(np.full((2, 2, 3, 1), np.nan)))
