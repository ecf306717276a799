"""Rejection sampling by reward and the best of n, against their laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune import methods, training
from preftune.collect.rejection import acceptance, best_of, independent, resampled, survivors
from preftune.exact.games import bradley_terry
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.log import Log
from preftune.policies.tabular import TabularPolicy
from preftune.training import RowsFeed, TrainConfig
from preftune.types import Context, Key, Method, PreftuneError, Rows

REWARD = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
SOUGHT = (2 * REWARD).softmax(0)  # ref * exp(r / beta) / Z at beta = .5, uniform reference


def context(logits: Tensor, judge: Any, n: int = 1, exact: bool = False, key: int = 0) -> Context:
    """n rows of one prompt; the reference is the policy."""
    policy = TabularPolicy(logits, exact=exact)
    feed = Rows(tuple(f"row {i}" for i in range(n)), (0,) * n)
    return Context({"current": policy, "reference": policy.copy()}, feed, (judge,), key=Key.of(key))


def judge_of(reward: Tensor, scores: bool = True) -> PreferenceTable:
    return PreferenceTable(bradley_terry(reward), reward if scores else None)


# --- the survivors --------------------------------------------------------------------------------------------------


def test_acceptance_is_that_of_the_card_and_its_mean_over_the_proposal_is_the_expected_rate() -> None:
    """exp(-4), exp(-2), 1 for rewards 0, 1, 2 at beta = .5; their mean under a uniform proposal is .3846."""
    found = acceptance(REWARD, 0.5)
    assert found.tolist() == pytest.approx([0.0183156, 0.1353353, 1.0], abs=1e-7)
    assert float(found.mean()) == pytest.approx(0.3845503, abs=1e-7)
    assert (found / found.sum()).tolist() == pytest.approx(SOUGHT.tolist(), abs=1e-15)
    assert SOUGHT.tolist() == pytest.approx([0.0158763, 0.1173104, 0.8668133], abs=1e-7)
    assert torch.equal(acceptance(REWARD + 3, 0.5), found)


def frequencies(sample: Any, n: int, place: int) -> Tensor:
    """How often each response stands at that place among what is kept of 32 uniform candidates; the best is absent from 2e-6 of them."""
    drawn = torch.from_numpy(Key.of(1).numpy().integers(0, 3, size=(n, 32)))
    kept = [int(drawn[i][sample(REWARD[drawn[i]], 8, 0.5, Key.of(2).fold(i))[place]]) for i in range(n)]
    return torch.bincount(torch.tensor(kept), minlength=3) / n


@pytest.mark.parametrize(("sample", "place"), [(survivors, 0), (independent, 0), (independent, 7)])
def test_the_first_survivor_and_every_independent_draw_has_the_law_that_is_sought(sample: Any, place: int) -> None:
    """4,000 prompts, 4.5 standard errors. Power: the error is below .006, the best of them all would be off by .13.

    Candidates drawn again by weights see 32 of them alone: the ratio of two means of 32 is off by less than .006.
    """
    n = 4000
    error = (SOUGHT * (1 - SOUGHT) / n).sqrt()
    assert error.max() < 0.006
    slack = 0.0 if sample is survivors else 0.006
    assert ((frequencies(sample, n, place) - SOUGHT).abs() < 4.5 * error + slack).all()


def test_later_survivors_are_what_is_left() -> None:
    """Of few candidates, those that follow the first are poorer: draws without replacement are not independent."""
    few = torch.tensor([2.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    kept = [survivors(few, 4, 0.5, Key.of(i)) for i in range(200)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in kept)
    means = few[torch.tensor(kept)].mean(0)
    assert means[0] > 1.5 and means[3] < 0.3


def test_without_greed_the_first_candidates_stay_and_with_much_the_best() -> None:
    reward = torch.tensor([0.3, -1.0, 2.0, 0.9, 0.1], dtype=torch.float64)
    assert survivors(reward, 3, float("inf"), Key.of(0)) == [0, 1, 2]
    assert survivors(reward, 3, 1e-6, Key.of(0)) == [2, 3, 0]
    assert survivors(reward, 9, 0.5, Key.of(0)) and len(survivors(reward, 9, 0.5, Key.of(0))) == 5, "what exists, where fewer exist"


# --- rows -----------------------------------------------------------------------------------------------------------


def test_pairs_are_of_neighbours_or_of_all_the_winner_first() -> None:
    for pairing, count in (("first_round", 2), ("all", 6)):
        ctx = context(torch.zeros(40), judge_of(torch.linspace(-3, 3, 40, dtype=torch.float64)), n=5)
        rows = resampled(ctx, candidates=16, responses=4, pairing=pairing)  # type: ignore[arg-type]
        assert 4 * count <= len(rows) <= 5 * count and rows.ranked and rows.prefer is None and rows.weight is None
        assert (rows.response.index[:, 0] > rows.response.index[:, 1]).all(), "later numbers have the higher reward"
        assert len(set(rows.id)) == len(rows)


def test_equals_make_no_pair_unless_labels_are_soft() -> None:
    ctx = context(torch.zeros(1, 4), judge_of(torch.zeros(4, dtype=torch.float64)), n=3)
    with pytest.raises(PreftuneError, match="finds the responses of every pair alike, needed a winner; .* label=soft"):
        resampled(ctx, candidates=4, responses=2)
    assert resampled(ctx, candidates=4, responses=2, label="soft").prefer.tolist() == [0.5] * 3  # type: ignore[union-attr]


def test_log_odds_against_one_more_draw_give_the_law_that_scores_give() -> None:
    """Under Bradley-Terry they differ by the reward of that draw, which no acceptance sees."""
    reward = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = [resampled(context(torch.zeros(60), judge_of(reward, scores)), beta=0.5) for scores in (True, False)]
    assert torch.equal(kept[0].response.index, kept[1].response.index)
    asked = [resampled(context(torch.zeros(60), judge_of(reward, scores), exact=True), beta=0.5) for scores in (True, False)]
    torch.testing.assert_close(asked[0].weight, asked[1].weight, rtol=1e-12, atol=0)


def test_a_judge_that_is_sure_has_no_log_odds() -> None:
    P = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
    with pytest.raises(PreftuneError, match="sure of an answer for rows .'row 0'., needed probabilities between 0 and 1"):
        resampled(context(torch.zeros(2), PreferenceTable(P)), candidates=16, responses=2)
    rows = resampled(context(torch.zeros(2), PreferenceTable(P), n=40), candidates=16, responses=2, beta=5.0, eps=0.01, label="soft")
    assert {tuple(pair) for pair in rows.response.index.tolist()} == {(0, 0), (0, 1), (1, 1)}


def test_a_pair_of_an_enumerated_law_weighs_what_two_draws_of_the_sought_law_make_of_it() -> None:
    """p_i p_j for i < j, over their mean: (.0018625, .0137619, .1016862) / .0391035 for the law of the card."""
    rows = resampled(context(torch.zeros(3), judge_of(REWARD), exact=True), beta=0.5)
    assert rows.response.index.tolist() == [[1, 0], [2, 0], [2, 1]]
    p = SOUGHT
    drawn = torch.stack([p[0] * p[1], p[0] * p[2], p[1] * p[2]])
    assert rows.weight is not None and rows.weight.tolist() == pytest.approx((drawn / drawn.mean()).tolist(), rel=1e-12)


def trained(method: Method, logits: Tensor, judge: Any, folder: Path, **settings: Any) -> TabularPolicy:
    policy = TabularPolicy(logits)
    folder.mkdir()
    config = TrainConfig(schedule="constant", warmup=0.0, save_every=0, **settings)
    training.run(policy, method, RowsFeed(policy.rows()), config, folder, Log(folder, 1, progress=False), judges=(judge,))
    return policy


def test_with_soft_labels_of_bradley_terry_the_optimum_is_the_reference_tilted_by_the_reward_over_gamma(tmp_path: Path) -> None:
    """At the closed form the gradient of every pair vanishes, wherever beta puts the pairs; and descent goes there."""
    reference = torch.tensor([0.5, 0.0, -0.5, 0.3], dtype=torch.float64)
    reward = torch.tensor([1.0, -0.5, 0.2, 0.0], dtype=torch.float64)
    expected = (reference + reward / 0.7).log_softmax(0)
    for beta in (0.5, float("inf")):
        method = methods.rso(beta=beta, gamma=0.7, label="soft")
        there = TabularPolicy(expected)
        roles = {"current": there, "reference": TabularPolicy(reference).copy()}
        learner = GradientLearner(there, method, roles, optimiser="sgd", lr=0.0)
        rows = method.collect(Context(roles, there.rows(), (judge_of(reward),)))
        assert learner.descend(rows)["grad_norm"] < 1e-12
        moved = trained(method, reference, judge_of(reward), tmp_path / f"{beta}", epochs=3000, batch=6, lr=2.0, optimiser="sgd")
        assert (moved.logits.detach()[0].log_softmax(0) - expected).abs().max() < 1e-6


# --- the best of n --------------------------------------------------------------------------------------------------


def law_of_best(law: Tensor, reward: Tensor, n: int) -> Tensor:
    """P(nothing better)^n - P(all worse)^n, for rewards that are all different."""
    upto = ((reward <= reward[:, None]) * law).sum(1)
    return upto**n - (upto - law) ** n


def test_a_round_of_best_of_n_trained_to_its_end_has_the_law_of_the_best_of_n_draws(tmp_path: Path) -> None:
    """And a second round that of the best of n^2; it is at most log n - (n - 1) / n nats from where it began.

    Log-probabilities of what becomes rare fall by less and less: 1,500 steps leave 4e-4 of what should be 4e-7 in the second round.
    """
    start = torch.tensor([0.2, 0.0, 0.8, -0.4], dtype=torch.float64)
    reward = torch.tensor([2.0, -1.0, 0.5, 7.0], dtype=torch.float64)
    law = start.softmax(0)
    for rounds in (1, 2):
        moved = trained(
            methods.best_of_n(n=3), start, judge_of(reward), tmp_path / str(rounds), epochs=1500, rounds=rounds, lr=1.0, optimiser="sgd"
        )
        expected = law_of_best(law, reward, 3**rounds)
        assert (moved.probabilities()[0] - expected).abs().max() < {1: 1e-6, 2: 1e-3}[rounds]
    best = law_of_best(law, reward, 3)
    assert 0 < float((best * (best / law).log()).sum()) < torch.tensor(3.0).log() - 2 / 3


def test_the_best_of_drawn_responses_is_the_one_that_is_trained_on() -> None:
    reward = torch.tensor([0.0, 3.0, 1.0, 2.0], dtype=torch.float64)
    rows = best_of(context(torch.zeros(4), judge_of(reward), n=6), n=3)
    assert rows.score is not None and rows.present is not None
    assert (rows.present.sum(1) == 1).all()
    best = rows.score[rows.present]
    assert torch.equal(best, rows.score.amax(1)) and torch.equal(rows.extra["calibration"] > 0, rows.present)


def test_without_scores_the_best_wins_most_often_among_the_draws() -> None:
    P = bradley_terry(torch.tensor([0.0, 3.0, 1.0, 2.0], dtype=torch.float64))
    both = [
        best_of(context(torch.zeros(4), judge, n=6), n=3) for judge in (PreferenceTable(P), judge_of(torch.tensor([0.0, 3.0, 1.0, 2.0])))
    ]
    chosen = [one.response.index[one.present] for one in both]
    assert torch.equal(chosen[0], chosen[1])
