"""Judges made of judges, on tables of win probabilities and on texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import outside
from preftune.api import resolve_judge
from preftune.exact.games import rps
from preftune.judges import rules
from preftune.judges.combine import agreement, both_orders, mean, route, vote
from preftune.judges.exact import PreferenceTable
from preftune.policies.tabular import TabularPolicy
from preftune.policies.text.characters import Characters
from preftune.policies.text.tokens import encode
from preftune.types import Key, PreftuneError, Rows
from text_fixtures import Record

KEY, NAN = Key.of(0), math.nan


class Told:
    """Says what a table says, in the order it is asked in: [K, M] for every row, from a's and b's lengths. Counts the pairs."""

    def __init__(self, table: list[list[float]]) -> None:
        self.table, self.pairs, self.calls = torch.tensor(table, dtype=torch.float64), 0, 0

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        self.calls += 1
        self.pairs += len(rows) * a.shape[1] * b.shape[1]
        lengths = [torch.tensor([[len(text) for text in row] for row in y.show()]) for y in (a, b)]
        return self.table[lengths[0][:, :, None], lengths[1][:, None, :]]


def rows_of(responses: int = 2, prompts: int = 3) -> Rows:
    """Response k has k characters."""
    return encode([Record(str(i), f"p{i}", ["x" * k for k in range(responses)]) for i in range(prompts)], Characters())[0]


def answer(judge: Any, rows: Rows | None = None) -> list[list[float]]:
    """P [K, K] of the first row; all rows are alike."""
    rows = rows_of() if rows is None else rows
    found: Tensor = judge.prefer(rows, rows.response, rows.response, KEY)
    assert found.dtype == torch.float64 and torch.equal(found[0].nan_to_num(-1), found[-1].nan_to_num(-1))
    return found[0].tolist()  # type: ignore[no-any-return]


def test_both_orders_cancel_a_taste_for_the_first_place() -> None:
    """p(a, b) = .9 and p(b, a) = .7: (.9 + 1 - .7) / 2 = .6, and the other way round .4."""
    assert answer(both_orders(Told([[0.8, 0.9], [0.7, 0.8]]))) == [[0.5, pytest.approx(0.6)], [pytest.approx(0.4), 0.5]]


def test_both_orders_of_a_silent_judge_are_silent() -> None:
    found = answer(both_orders(Told([[0.5, NAN], [0.7, 0.5]])))
    assert math.isnan(found[0][1]) and math.isnan(found[1][0]) and found[0][0] == 0.5


def test_a_mean_weighs_the_judges_that_answer() -> None:
    """.25 * .8 + .75 * .4 = .5; where one is silent the other's answer stands; where both are there is none."""
    one, other = Told([[0.8, NAN], [NAN, 0.8]]), Told([[0.4, 0.3], [NAN, 0.4]])
    found = answer(mean([one, other], [1.0, 3.0]))
    assert found[0] == pytest.approx([0.5, 0.3]) and math.isnan(found[1][0])


def test_a_judge_of_weight_nothing_says_nothing() -> None:
    found = answer(mean([Told([[0.8, NAN], [0.5, 0.5]]), Told([[0.4, 0.3], [0.5, 0.5]])], [1.0, 0.0]))
    assert found[0][0] == pytest.approx(0.8) and math.isnan(found[0][1])


def test_a_mean_of_scores_where_all_have_some_and_none_where_one_has_not() -> None:
    rows = rows_of(3)
    both = mean([rules.length(width=1.0), rules.length(target=0, width=1.0)], [3.0, 1.0])
    assert both.score(rows, rows.response, KEY)[0].tolist() == pytest.approx([0.0, 0.5, 1.0])  # 3/4 k - 1/4 k
    assert not hasattr(mean([rules.length(), Told([[0.5]])]), "score")


def test_a_vote_is_the_share_of_judges_and_a_half_counts_half() -> None:
    judges = [Told([[0.9, 0.6], [0.1, 0.5]]), Told([[0.51, 0.4], [0.2, 0.5]]), Told([[0.2, NAN], [0.3, 0.9]])]
    assert answer(vote(judges)) == [[pytest.approx(2 / 3), 0.5], [0.0, pytest.approx(2 / 3)]]


def test_agreement_is_the_mean_where_enough_agree_and_silence_agrees_with_nobody() -> None:
    judges = [Told([[0.9, 0.9], [0.9, 0.1]]), Told([[0.6, 0.6], [NAN, 0.2]]), Told([[0.9, 0.2], [0.9, 0.3]])]
    found = answer(agreement(judges))
    assert found[0][0] == pytest.approx(0.8) and found[1][1] == pytest.approx(0.2)
    assert math.isnan(found[0][1]) and math.isnan(found[1][0])
    found = answer(agreement(judges, least=2 / 3))
    assert (found[0][1], found[1][0]) == (pytest.approx(1.7 / 3), pytest.approx(0.9))


def test_a_route_asks_the_dear_judge_about_unsure_pairs_alone() -> None:
    """Unsure within .2 of one half, its end included, and where the cheap judge is silent."""
    cheap, dear = Told([[0.71, 0.6], [NAN, 0.1]]), Told([[0.0, 0.01], [0.02, 0.03]])
    judge = route(cheap, dear)
    assert answer(judge) == [[0.71, 0.01], [0.02, 0.1]]
    assert (dear.pairs, judge.pairs, judge.passed_on) == (6, 12, 6)


def test_a_route_that_is_never_unsure_does_not_ask_the_dear_judge() -> None:
    dear = Told([[0.5]])
    assert answer(route(Told([[0.9, 0.9], [0.1, 0.1]]), dear))[0] == [0.9, 0.9]
    assert dear.calls == 0


def test_a_route_gives_the_dear_judge_the_right_rows() -> None:
    """Of rows with different texts each unsure one gets its own answer."""
    rows = encode([Record(str(i), f"p{i}", ["x" * i, "x" * (3 - i)]) for i in range(4)], Characters())[0]
    table = [[0.1 * i + 0.01 * j for j in range(4)] for i in range(4)]
    a, b = rows.response.take(columns=[0]), rows.response.take(columns=[1])
    unsure = [[0.5 if i % 2 else 0.9 for _ in range(4)] for i in range(4)]
    found = route(Told(unsure), Told(table)).prefer(rows, a, b, KEY).flatten().tolist()
    assert found == pytest.approx([0.9, 0.12, 0.9, 0.30])


def test_combinations_work_on_tables_of_games() -> None:
    """Of two equal judges the mean is the judge, and a route from a game without an opinion to rock-paper-scissors is the latter."""
    policy, game = TabularPolicy(torch.zeros(1, 3, dtype=torch.float64)), PreferenceTable(rps())
    rows, blank = policy.rows(), PreferenceTable(torch.full((3, 3), 0.5))
    y = policy.sample(rows, 2, KEY)
    expected = game.prefer(rows, y, y, KEY)
    for judge in (both_orders(game), mean([game, game]), route(blank, game)):
        assert torch.allclose(judge.prefer(rows, y, y, KEY), expected)


# --- on the command line ----------------------------------------------------------------------------------------------


def test_both_orders_by_name() -> None:
    judge: Any = resolve_judge("both(length,target=3,width=2)")
    rows = rows_of(4)
    assert answer(judge, rows) == [pytest.approx(row) for row in answer(rules.length(target=3, width=2), rows)]
    assert judge.score(rows, rows.response, KEY)[0].tolist() == [-1.5, -1.0, -0.5, 0.0]


def test_a_file_describes_judges_inside_judges(tmp_path: Path) -> None:
    file = tmp_path / "panel.yaml"
    file.write_text(
        f"combine: mean\njudges:\n  - length,width=1\n  - judge: {Path(outside.__file__)}:vowels\n    weight: 3\n"
        "  - combine: both\n    judges: ['length,target=0,width=1']\n"
    )
    rows = rows_of(3)
    parts = [rules.length(width=1.0), outside.vowels(), both_orders(rules.length(target=0, width=1.0))]
    expected = answer(mean(parts, [1.0, 3.0, 1.0]), rows)
    assert answer(resolve_judge(str(file)), rows) == [pytest.approx(row) for row in expected]


def test_a_file_routes_and_asks_for_agreement(tmp_path: Path) -> None:
    file = tmp_path / "panel.yml"
    file.write_text("combine: route\nunsure: 0.4\njudges: ['length,width=1', 'length,target=0,width=1']\n")
    judge: Any = resolve_judge(file)
    assert (judge.unsure, judge.dear.asker.answerer.kept) == (0.4, False)
    file.write_text("combine: agreement\nleast: 0.6\njudges: ['length', 'length', 'length,target=0']\n")
    assert answer(resolve_judge(file))[0][1] < 0.5  # two of three prefer the longer


@pytest.mark.parametrize(
    ("text", "said_so"),
    [
        ("combine: median\njudges: [length]", "needed combine .both, mean, vote, agreement, route. and a list of judges"),
        ("just words: [", "cannot be read"),
        ("- length", "needed combine"),
        ("combine: mean\njudges: []", "a panel was given no judges"),
        ("combine: mean\nunsure: 0.2\njudges: [length]", "mean was given unsure, needed a setting that it has .none.; remove it"),
        ("combine: route\njudges: [length]", "route was given 1 judges, needed 2"),
        ("combine: route\nunsure: high\njudges: [length, length]", "unsure is 'high', needed a number"),
        ("combine: route\nunsure: 0.7\njudges: [length, length]", "needed 0 <= unsure < 0.5"),
        ("combine: agreement\nleast: 0.5\njudges: [length]", "needed a share of the judges above 0.5"),
        ("combine: mean\njudges: [{judge: length, weight: -1}]", "needed one of at least 0 for each and not all 0"),
        ("combine: mean\njudges: [{judge: length, weight: .nan}]", "needed one of at least 0 for each"),
        ("combine: mean\njudges: [{judge: length, wieght: 1}]", "needed judge and a number as weight"),
        ("combine: both\njudges: [{judge: length, weight: 2}]", "weighs no judges"),
        ("combine: mean\njudges: [lenght]", "there is no judge 'lenght'.*did you mean length"),
        ("combine: mean\njudges: ['length,taget=3']", "there is no option of the judge length 'taget'.*did you mean target"),
    ],
)
def test_files_that_cannot_be_meant_are_refused(text: str, said_so: str, tmp_path: Path) -> None:
    (tmp_path / "panel.yaml").write_text(text)
    with pytest.raises(PreftuneError, match=said_so):
        resolve_judge(tmp_path / "panel.yaml")


def test_a_file_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(PreftuneError, match="there is no file nowhere.yaml"):
        resolve_judge("nowhere.yaml")
