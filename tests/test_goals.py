"""Pairs with goals: the transform, its command, and what training on it learns."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import preftune
from preftune import training
from preftune.cli import main
from preftune.data import from_rows, load
from preftune.data.feed import TextFeed
from preftune.data.goals import TEXT, asked, prompts_with_goal, rows_with_goals, shown
from preftune.log import Log
from preftune.methods import dpo, reward_augmented
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.policies.text.tokens import render
from preftune.training import RowsFeed, TrainConfig
from preftune.types import Method, PreftuneError, Rows
from text_fixtures import tiny_folder, tiny_tokenizer

PAIR = {"id": "a", "prompt": "2 + 2 =", "chosen": "4", "rejected": "5", "score_chosen": 9, "score_rejected": 2.5}


def made(rows: list[dict[str, Any]], **how: Any) -> tuple[list[dict[str, Any]], Counter[str]]:
    counts: Counter[str] = Counter()
    return list(rows_with_goals(from_rows(rows), counts, **how)), counts


# --- the transform --------------------------------------------------------------------------------------------------


def test_a_pair_becomes_two_rows_with_the_answers_exchanged() -> None:
    rows, counts = made([PAIR])
    say = lambda goal: TEXT.format(goal=goal)
    assert rows == [
        {"id": "a+", "prompt": "2 + 2 =", "system": say("9"), "chosen": "4", "rejected": "5", "goal": 9.0},
        {"id": "a-", "prompt": "2 + 2 =", "system": say("2.5"), "chosen": "5", "rejected": "4", "goal": 2.5},
    ]
    assert counts == {"read": 1, "pairs": 1}
    assert [shown(goal) for goal in (8.0, 7.5, 10, 0.1)] == ["8", "7.5", "10", "0.1"]


def test_the_goal_stands_behind_an_own_system_message_or_in_front_of_the_users() -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "2 + 2 ="}]
    record = from_rows([PAIR | {"prompt": chat, "system": "Be brief."}])[0]
    assert asked(record, 9, "score {goal}").system == "Be brief.\n\nscore 9"
    front = asked(record, 9, "score {goal}", "prompt")
    assert front.system == "Be brief." and front.prompt == [{"role": "user", "content": "score 9\n\nHi"}, *chat[1:]]
    assert asked(from_rows([PAIR])[0], 9, "score {goal}", "prompt").prompt == "score 9\n\n2 + 2 ="


def test_a_model_without_a_chat_template_reads_the_goal_in_front_either_way() -> None:
    plain = tiny_tokenizer(template=False)
    record = from_rows([PAIR])[0]
    assert render(asked(record, 9), plain) == render(asked(record, 9, place="prompt"), plain) == f"{TEXT.format(goal=9)}\n\n2 + 2 ="


def test_ties_and_pairs_without_scores_are_left_out_and_counted() -> None:
    rows, counts = made([PAIR, PAIR | {"score_rejected": 9}, {"prompt": "x", "chosen": "a", "rejected": "b"}])
    assert len(rows) == 2 and counts == {"read": 3, "pairs": 1, "tie": 1, "no scores": 1}


def test_of_a_list_the_best_meets_another_drawn_by_its_id_or_the_worst() -> None:
    rows = [{"id": str(i), "prompt": "x", "responses": ["a", "b", "c", "d"], "scores": [3, 9, 5, 1]} for i in range(300)]
    drawn = [row["rejected"] for row in made(rows)[0][::2]]
    assert set(drawn) == {"a", "c", "d"} and all(70 < drawn.count(other) < 130 for other in "acd")  # 100 each, deviation 8
    assert drawn[7:9] == [row["rejected"] for row in made(rows[7:9])[0][::2]]
    assert drawn != [row["rejected"] for row in made(rows, seed=1)[0][::2]]
    assert {row["rejected"] for row in made(rows, rejected="worst")[0][::2]} == {"d"}


def test_weights_of_rows_stay() -> None:
    assert [row["weight"] for row in made([PAIR | {"weight": 1}, PAIR | {"weight": 3, "id": "b"}])[0]] == [0.5, 0.5, 1.5, 1.5]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=1, max_size=8), st.sampled_from(["system", "prompt"]))
def test_in_every_row_the_goal_is_the_score_of_the_chosen_and_its_prompt_says_so(scores: list[tuple[int, int]], place: Any) -> None:
    """Two rows a pair, one for each goal; never the worse one's goal with the better one chosen; one prompt for both answers."""
    assume(any(a != b for a, b in scores))  # a file of ties alone is refused when it is loaded
    rows = [PAIR | {"id": str(i), "prompt": f"say {i}", "score_chosen": a, "score_rejected": b} for i, (a, b) in enumerate(scores)]
    score_of = {str(i): {"4": a, "5": b} for i, (a, b) in enumerate(scores)}
    found, counts = made(rows, place=place)
    assert len(found) == 2 * counts["pairs"] and counts["pairs"] + counts["tie"] == len(scores)
    for row in found:
        pair = score_of[row["id"][:-1]]
        assert row["goal"] == pair[row["chosen"]] != pair[row["rejected"]]
        assert TEXT.format(goal=shown(row["goal"])) in row.get("system", "") + row["prompt"]
    for plus, minus in zip(found[::2], found[1::2], strict=True):
        assert {plus["goal"], minus["goal"]} == set(score_of[plus["id"][:-1]].values())
        assert (plus["chosen"], plus["rejected"]) == (minus["rejected"], minus["chosen"])


@pytest.mark.parametrize(
    ("row", "how", "message"),
    [
        ({"score_rejected": -2}, {}, r"row 1: found the scores 9 and -2, needed 1 to 10"),
        ({"score_chosen": 90}, {}, r"row 1: found the scores 90 and 2.5, needed 1 to 10"),
        ({}, {"text": "be good"}, r"'be good', needed one with {goal}"),
        ({}, {"place": "footer"}, r"place is 'footer', needed one of system, prompt"),
        ({}, {"rejected": "best"}, r"rejected is 'best', needed random or worst"),
    ],
)
def test_what_makes_no_sense_is_refused(row: dict[str, Any], how: dict[str, Any], message: str) -> None:
    with pytest.raises(PreftuneError, match=message):
        made([PAIR | row], **how)


def test_another_scale_needs_other_words() -> None:
    rows, _ = made([PAIR | {"score_chosen": 0.5, "score_rejected": -0.5}], text="Aim at {goal}.")
    assert [row["system"] for row in rows] == ["Aim at 0.5.", "Aim at -0.5."]


# --- the command ----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_command_writes_rows_that_reward_augmented_trains_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, goals, prompts = (tmp_path / name for name in ("scored.jsonl", "goals.jsonl", "prompts.jsonl"))
    pairs = [PAIR | {"id": str(i), "prompt": f"{i} + 2 ="} for i in range(3)] + [PAIR | {"id": "tie", "score_rejected": 9}]
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert command("data", "goals", str(source), str(goals)) == 0
    assert "6 rows in" in (said := capsys.readouterr().out) and "1 of 4 rows are left out: tie" in said
    data = load(str(goals))
    assert [record.meta["goal"] for record in data] == [9, 2.5] * 3 and all(record.ranked for record in data)
    rows = TextFeed(data, tiny_tokenizer(), 2, labels=("goal",)).rows(range(6))
    assert rows.extra["goal"].tolist() == [9, 2.5] * 3
    assert all(rows.prompt[i] != rows.prompt[i + 1] for i in (0, 2, 4))

    model = str(tiny_folder(tmp_path / "model"))
    run = preftune.train(model, "reward-augmented", str(goals), out=tmp_path / "run", samples=0, progress=False, batch=2, lr=1e-3)
    assert run.steps == 3
    with pytest.raises(PreftuneError, match=r"scored.jsonl, row 1, column 'goal': .*`preftune data goals IN OUT` writes it"):
        preftune.train(model, "reward-augmented", str(source), out=tmp_path / "refused", samples=0, progress=False)

    assert command("data", "goals", str(source), str(prompts), "--goal", "10") == 0
    asking = load(str(prompts))
    assert [len(record.responses) for record in asking] == [0] * 4
    assert {record.system for record in asking} == {TEXT.format(goal=10)}


def test_the_command_speaks_json_and_refuses_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    source, out = tmp_path / "scored.jsonl", tmp_path / "new" / "goals.jsonl"
    source.write_text(json.dumps(PAIR) + "\n")
    assert command("data", "goals", str(source), str(out), "--text", "Aim at {goal}.", "--place", "prompt", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(out), "rows": 2, "read": 1, "pairs": 1}
    assert json.loads(out.read_text().splitlines()[0])["prompt"] == "Aim at 9.\n\n2 + 2 ="
    for arguments, message in [
        (["data", "goals", str(source)], "no file to write"),
        (["data", "check", str(source), str(out)], "a second file"),
        (["data", "goals", str(source), str(tmp_path / "new" / ".." / "scored.jsonl")], "a file that is read"),
        (["data", "goals", str(source), str(tmp_path)], "a folder"),
    ]:
        assert command(*arguments) == 3
        assert message in " ".join(capsys.readouterr().err.split())
    assert source.read_text() == json.dumps(PAIR) + "\n"
    source.write_text(json.dumps({name: PAIR[name] for name in ("prompt", "chosen", "rejected")}) + "\n")
    before = out.read_text()
    assert command("data", "goals", str(source), str(out)) == 3
    assert "no row with two different scores" in " ".join(capsys.readouterr().err.split())
    assert out.read_text() == before and list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("goal", [float("nan"), float("inf"), 0, 11])
def test_a_goal_off_the_scale_of_its_text_is_refused(goal: float) -> None:
    with pytest.raises(PreftuneError, match="needed a number from 1 to 10"):
        list(prompts_with_goal(from_rows([PAIR]), goal))


def test_prompts_keep_their_ids_and_say_their_goal() -> None:
    found = list(prompts_with_goal(from_rows([PAIR]), 10))
    assert found == [{"id": "a", "prompt": "2 + 2 =", "system": TEXT.format(goal=10), "goal": 10}]


# --- what is learnt -------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]], games: dict[str, int]) -> Rows:
    """A game for each text of a prompt; answer 4 is response 0, answer 5 is response 1."""
    index = torch.tensor([[0, 1] if row["chosen"] == "4" else [1, 0] for row in rows])
    goal = torch.tensor([row["goal"] for row in rows], dtype=torch.float64)
    prompts = tuple(games[row["prompt"]] for row in rows)
    return Rows(tuple(row["id"] for row in rows), prompts, TableResponses(index), ranked=True, extra={"goal": goal})


def trained(method: Method, rows: Rows, games: int, folder: Path) -> torch.Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(steps=50, batch=len(rows), lr=0.5, optimiser="sgd", schedule="constant", warmup=0.0)
    outcome = training.run(TabularPolicy(torch.zeros(games, 2)), method, RowsFeed(rows), config, folder, Log(folder, 50, progress=False))
    return outcome.learner.policy.probabilities()


def test_asked_for_its_goal_the_policy_gives_the_answer_of_that_score(tmp_path: Path) -> None:
    """Under the better one's score it prefers the better answer, under the worse one's the worse; with equal strength."""
    rows, _ = made([PAIR], place="prompt")
    law = trained(reward_augmented(beta=1.0), table(rows, {row["prompt"]: i for i, row in enumerate(rows)}), 2, tmp_path)
    assert law[0, 0] > 0.7 and law[1, 1] > 0.7
    torch.testing.assert_close(law[0, 0], law[1, 1], rtol=1e-12, atol=0)


def test_without_the_goals_text_the_two_rows_cancel_and_nothing_is_learnt(tmp_path: Path) -> None:
    rows, _ = made([PAIR], place="prompt")
    same = table([row | {"prompt": "2 + 2 ="} for row in rows], {"2 + 2 =": 0})
    assert torch.equal(trained(reward_augmented(beta=1.0), same, 1, tmp_path / "same"), torch.full((1, 2), 0.5, dtype=torch.float64))
    plus = same.take([0])
    assert trained(dpo(beta=1.0), plus, 1, tmp_path / "plus")[0, 0] > 0.7
