"""Self-rewarding on tables: what an oracle teaches, what chance teaches, and which answers make pairs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import preftune
from preftune.collect.graded import ends_law, graded_ends
from preftune.exact.games import bradley_terry
from preftune.judges.exact import PreferenceTable
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.types import Context, Key, PreftuneError, Rows

REWARD = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.5], dtype=torch.float64)
ORACLE = PreferenceTable(bradley_terry(REWARD), REWARD)


class Chance(PreferenceTable):
    """Grades by chance alone: a fresh one for every answer it is shown."""

    def score(self, rows: Rows, y: TableResponses, key: Key) -> Tensor:
        return torch.from_numpy(key.uniform(rows.id, y.shape[1]))


def trained(policy: TabularPolicy, judge: Any, out: Path, **settings: Any) -> preftune.api.Run:
    options = {"batch": 64, "lr": 0.5, "optimiser": "sgd", "schedule": "constant", "warmup": 0, "save_every": 0, "progress": False}
    return preftune.train(policy, "self-rewarding", policy.rows(), judge=judge, out=out, **{**options, **settings})


def context(judge: Any, policy: TabularPolicy, n: int = 1, seed: int = 0) -> Context:
    feed = Rows(tuple(f"row {i}" for i in range(n)), (0,) * n)
    return Context({"current": policy}, feed, [judge], key=Key.of(seed))


@pytest.mark.parametrize("exact", [True, False])
def test_an_oracle_raises_the_expected_reward_at_every_step(exact: bool, tmp_path: Path) -> None:
    """Five answers, six rounds of two steps; drawn, each step has 64 pairs, enough to hide the noise of which were drawn."""
    games = 1 if exact else 64  # games are problems of their own: the mean over them is what rises
    policy = TabularPolicy(torch.zeros(games, 5), exact=exact)
    seen = [float(REWARD.mean())]

    def look(event: Any) -> None:
        seen.append(float((policy.probabilities() @ REWARD).mean()))

    judge = ORACLE if exact else PreferenceTable(bradley_terry(REWARD.expand(games, 5)), REWARD.expand(games, 5))
    trained(policy, judge, tmp_path / "run", rounds=6, epochs=2, callbacks=[look])
    assert len(seen) == 13 and all(later > before for before, later in itertools.pairwise(seen))


def test_a_judge_by_chance_moves_the_expected_reward_nowhere_on_average(tmp_path: Path) -> None:
    """400 games of two rounds each; the mean move is within three of its standard errors of 0, though every game moves."""
    policy = TabularPolicy(torch.zeros(400, 5), exact=False)
    judge = Chance(bradley_terry(REWARD.expand(400, 5)), REWARD.expand(400, 5))
    trained(policy, judge, tmp_path / "run", rounds=2, epochs=1, batch=400, lr=4.0, judgements=1)
    moved = policy.probabilities() @ REWARD - REWARD.mean()
    assert float(moved.abs().mean()) > 0.01
    assert abs(float(moved.mean())) < 3 * float(moved.std()) / 20


def test_every_round_begins_at_log_two_since_its_first_policy_is_the_reference(tmp_path: Path) -> None:
    run = trained(TabularPolicy(torch.zeros(1, 5)), ORACLE, tmp_path / "run", rounds=3, epochs=2)
    log2 = float(torch.tensor(2.0).double().log())
    losses = [line["loss"] for line in run.history]
    assert losses[::2] == pytest.approx([log2] * 3, abs=1e-12) and all(loss < log2 - 1e-4 for loss in losses[1::2])


def test_the_best_and_the_worst_answer_make_the_pair() -> None:
    policy = TabularPolicy(torch.zeros(5), exact=False)
    asked = context(ORACLE, policy, n=40)
    drawn = policy.sample(asked.feed, 4, asked.key.fold("pair")).index
    rows = graded_ends(asked)
    differ = [row for row in drawn.tolist() if len(set(row)) > 1]  # the rewards rise with the number of the answer
    assert rows.ranked and rows.response.index.tolist() == [[max(row), min(row)] for row in differ]


def test_equal_grades_make_no_pair_and_a_round_of_nothing_else_is_refused() -> None:
    policy = TabularPolicy(torch.tensor([0.0, 0.0, -50.0, -50.0, -50.0]), exact=False)
    level = PreferenceTable(ORACLE.table, torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0]))
    for exact in (True, False):
        even = TabularPolicy(torch.zeros(2), exact=exact)
        with pytest.raises(PreftuneError, match="grades all responses alike in each of 3 prompts of round 0, needed different grades"):
            graded_ends(context(PreferenceTable(torch.full((2, 2), 0.5), torch.ones(2)), even, n=3))
    with pytest.raises(PreftuneError, match="grades all responses alike"):
        graded_ends(context(level, policy, n=3))


def test_one_judgement_is_the_score_itself_and_several_are_averaged() -> None:
    """A judge whose grades are chance: the ends of one judgement are those of its score, of many those of their mean."""
    policy, chance = TabularPolicy(torch.zeros(5), exact=False), Chance(ORACLE.table, REWARD)
    asked = context(chance, policy, n=20)
    y = policy.sample(asked.feed, 4, asked.key.fold("pair"))
    scores = [chance.score(asked.feed, y, asked.key.fold("judge", j)) for j in range(3)]
    for judgements, grade in ((1, scores[0]), (3, torch.stack(scores).mean(0))):
        ends = [[y.index[b, row.argmax()], y.index[b, row.argmin()]] for b, row in enumerate(grade)]
        assert graded_ends(asked, judgements=judgements).response.index.tolist() == [[int(i) for i in pair] for pair in ends]


class Partly(PreferenceTable):
    """Says nothing about the best answer, and nothing about the second best in its first judgement."""

    def score(self, rows: Rows, y: TableResponses, key: Key) -> Tensor:
        self.calls += 1
        quiet = (y.index == 4) | ((y.index == 3) & (self.calls == 1))
        return torch.where(quiet, torch.nan, super().score(rows, y, key))


def test_an_answer_without_a_grade_is_no_end_and_one_judgement_is_enough_for_a_grade() -> None:
    policy = TabularPolicy(torch.zeros(5), exact=False)
    asked = context(Partly(ORACLE.table, REWARD), policy, n=40)
    drawn = policy.sample(asked.feed, 4, asked.key.fold("pair")).index.tolist()
    rows = graded_ends(asked, judgements=2)
    graded = {f"row {i}": [answer for answer in row if answer != 4] for i, row in enumerate(drawn)}
    expected = [[max(row), min(row)] for row in graded.values() if len(row) > 1 and len(set(row)) > 1]
    assert rows.response.index.tolist() == expected and any(3 in pair for pair in expected)
    assert asked.silent == [name for name, row in graded.items() if len(row) < 2]


def test_the_law_of_the_ends_is_that_of_all_draws_also_among_equals() -> None:
    """Three draws of four answers, two of which share a grade: enumerated, the first drawn of equals is taken."""
    law = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    grade = torch.tensor([[1.0, 2.0, 2.0, 0.0]], dtype=torch.float64)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for drawn in itertools.product(range(4), repeat=3):
        values = [float(grade[0, i]) for i in drawn]
        best, worst = drawn[values.index(max(values))], drawn[values.index(min(values))]
        if max(values) > min(values):
            expected[best, worst] += law[0, list(drawn)].prod()
    assert torch.allclose(ends_law(law, grade, 3)[0], expected, atol=1e-14)


def test_win_rates_grade_where_a_judge_only_compares() -> None:
    rows = [graded_ends(context(ORACLE, TabularPolicy(torch.zeros(5), exact=False), n=30), reward=how) for how in ("score", "winrate")]
    assert torch.equal(rows[0].response.index, rows[1].response.index)
    compares = PreferenceTable(ORACLE.table)
    assert torch.equal(
        graded_ends(context(compares, TabularPolicy(torch.zeros(5), exact=False), n=30)).response.index, rows[0].response.index
    )
