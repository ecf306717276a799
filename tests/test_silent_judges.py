"""A judge that says nothing about some rows: they leave the step, are named and counted, and the rest goes on as without them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import preftune
from all_facts import merged
from preftune.api import prepare
from preftune.collect.draw import against_opponent
from preftune.collect.label import heard
from preftune.exact.games import random_game
from preftune.judges.asking import Answer, Comparing, Grading, Question
from preftune.judges.combine import agreement, both_orders, mean
from preftune.judges.exact import PreferenceTable
from preftune.judges.shared import calls
from preftune.methods import METHODS
from preftune.policies.tabular import TabularPolicy
from preftune.types import Context, Key, PreftuneError, Rows
from text_fixtures import tiny_policy

SETTINGS: dict[str, dict[str, Any]] = {**merged("SETTINGS"), "dno-prct": {"least": -9.0, "margin": 1e-6, "own_margin": 1e-6}}
PLAYS = [name for name in METHODS if not prepare(name, SETTINGS.get(name, {})).method.offline]
GAMES, ANSWERS = 6, 4


class Quiet:
    """The judge of a table, silent about some games: about all of it, or only where one of their responses is the second of two."""

    def __init__(self, judge: PreferenceTable, games: Sequence[int], second: int | None = None) -> None:
        self.judge, self.games, self.second = judge, set(games), second

    def still(self, rows: Rows, answers: Tensor, shown: Tensor) -> Tensor:
        about = torch.tensor([game in self.games for game in rows.prompt]).reshape(-1, *[1] * (answers.ndim - 1))
        return torch.where(about & shown, torch.nan, answers)

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        shown = torch.tensor(True) if self.second is None else (b.index == self.second)[:, None, :]
        return self.still(rows, self.judge.prefer(rows, a, b, key), shown)

    def score(self, rows: Rows, y: Any, key: Key) -> Tensor:
        shown = torch.tensor(True) if self.second is None else y.index == self.second
        return self.still(rows, self.judge.score(rows, y, key), shown)


def table() -> PreferenceTable:
    g = torch.Generator().manual_seed(0)
    P = torch.stack([random_game(ANSWERS, game) for game in range(GAMES)]).clamp(0.05, 0.95)
    return PreferenceTable(P, rewards=torch.randn(GAMES, ANSWERS, generator=g, dtype=torch.float64))


def context(judge: Any, feed: Rows) -> Context:
    """Every role that a method of self-play asks for, of one policy that draws its responses."""
    policy = TabularPolicy(torch.zeros(GAMES, ANSWERS), exact=False)
    roles = dict.fromkeys(("current", "reference", "opponent", "previous", "twin", "slow", "hat", "magnet"), policy)
    return Context(roles, feed, [judge], key=Key.of(3))


def everything(rows: Rows) -> dict[str, Any]:
    """Rows as plain values."""
    found = {f.name: getattr(rows, f.name) for f in fields(rows)}
    found |= {"response": rows.response.index, **{f"extra {name}": value for name, value in rows.extra.items()}, "extra": None}
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in found.items()}


@pytest.mark.parametrize("name", PLAYS)
def test_rows_of_a_method_are_those_of_the_prompts_that_the_judge_answers_about(name: str) -> None:
    """Draws derive from the ids of rows, so that leaving two games out first or last makes the same rows of the other four."""
    collect = prepare(name, SETTINGS.get(name, {})).method.collect
    feed = TabularPolicy(torch.zeros(GAMES, ANSWERS)).rows()
    asked = context(Quiet(table(), (1, 4)), feed)
    found, alone = collect(asked), collect(context(table(), feed.take([0, 2, 3, 5])))
    assert everything(found) == everything(alone)
    assert set(asked.silent) and all(id_.split(" ")[1] in ("1", "4") for id_ in asked.silent)


def test_one_missing_answer_leaves_the_whole_row_out() -> None:
    """Of two draws of game 0 one may be response 2, about which nothing is said: both go, since win rates are means over all."""
    feed, quiet = TabularPolicy(torch.zeros(GAMES, ANSWERS)).rows(), Quiet(table(), range(GAMES), second=2)
    asked = context(quiet, feed)
    drawn = against_opponent(context(table(), feed), responses=2, opponents=0)
    rows = against_opponent(asked, responses=2, opponents=0)
    hold = [bool((row == 2).any()) for row in drawn.response.index]
    assert 0 < sum(hold) <= GAMES / 2  # otherwise the test shows nothing
    assert asked.silent == [name for name, gone in zip(drawn.id, hold, strict=True) if gone]
    assert rows.id == tuple(name for name, gone in zip(drawn.id, hold, strict=True) if not gone)
    assert rows.winrate is not None and not rows.winrate.isnan().any()


def test_half_of_a_batch_may_be_silent_and_no_more() -> None:
    feed = TabularPolicy(torch.zeros(GAMES, ANSWERS)).rows()
    assert len(against_opponent(context(Quiet(table(), (0, 1, 2)), feed))) == 3
    with pytest.raises(PreftuneError, match="no answer about 4 of 6 rows, game 0, game 1, game 2, game 3; needed all answers about half"):
        against_opponent(context(Quiet(table(), (0, 1, 2, 3)), feed))


def test_answers_of_any_shape_are_heard_and_nothing_is_touched_where_none_is_missing() -> None:
    feed = TabularPolicy(torch.zeros(GAMES, ANSWERS)).rows()
    asked, y = context(table(), feed), TabularPolicy(torch.zeros(GAMES, ANSWERS)).sample(feed, 1, Key.of(0))
    assert heard(asked, y, torch.ones(GAMES))[0] is asked
    flags, marks = torch.tensor([0.0, torch.nan, 0.0, 0.0, 0.0, 0.0]), torch.arange(GAMES)
    fewer, few, _, stay = heard(asked, y, flags, marks)
    assert stay.tolist() == [0, 2, 3, 4, 5] and fewer.feed.id == tuple(feed.id[i] for i in stay) and few.shape[0] == 5


def test_a_judge_need_not_compare_a_response_with_itself() -> None:
    """Agreement of judges is silent about equals: the mean over both orders of a response and itself is 1/2 all the same."""

    class Strict(PreferenceTable):
        def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
            return torch.where(a.index[:, :, None] == b.index[:, None, :], torch.nan, super().prefer(rows, a, b, key))

    feed = TabularPolicy(torch.zeros(GAMES, ANSWERS)).rows()
    strict = Strict(table().table)
    strict.winrate = None  # type: ignore[assignment, method-assign]  # so that it is asked pair by pair
    for name in ("online-dpo", "sppo"):
        collect = prepare(name, {"responses": 2}).method.collect
        drawn = collect(context(table(), feed)).response.index
        different = feed.take([i for i, row in enumerate(drawn.tolist()) if row[0] != row[1]])
        assert len(different) > 2
        assert everything(collect(context(strict, different))) == everything(collect(context(table(), different)))


# --- a run ---------------------------------------------------------------------------------------------------------------


def test_games_that_the_judge_is_silent_about_stay_where_they_are_and_the_others_move_as_ever(tmp_path: Path) -> None:
    moved = []
    for n, judge in enumerate((table(), Quiet(table(), (1, 4)))):
        policy = TabularPolicy(torch.zeros(GAMES, ANSWERS), exact=False)
        train = {"steps": 3, "lr": 0.3, "optimiser": "sgd", "out": tmp_path / str(n), "progress": False}
        run = preftune.train(policy, "egpo", policy.rows(), judge=judge, **train)
        moved.append(policy.logits.detach())
    assert torch.equal(moved[0][[0, 2, 3, 5]], moved[1][[0, 2, 3, 5]])
    assert (moved[0][[1, 4]] != 0).any() and (moved[1][[1, 4]] == 0).all()
    assert [line["silent"] for line in run.history] == [4.0] * 3  # two games in each of the two draws of a step


class Lengths:
    """Grades by length, or takes the longer one; about a prompt with a question mark it has nothing to say."""

    kept = False

    def __init__(self, name: str = "lengths") -> None:
        self.identity = name

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        for i, question in enumerate(questions):
            lengths = [len(text) for text in question.responses]
            if "?" not in question.prompt:
                yield i, ((lengths[0] / 10,) if len(lengths) == 1 else (1 / (1 + math.exp((lengths[1] - lengths[0]) / 10)),))


def prompts(*texts: str) -> list[dict[str, Any]]:
    return [{"id": text, "prompt": text} for text in texts]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


TRAIN: dict[str, Any] = {
    "lr": 0.02,
    "optimiser": "sgd",
    "max_response": 6,
    "samples": 0,
    "progress": False,
    "schedule": "constant",
    "warmup": 0,
}


@pytest.mark.parametrize(("name", "judge"), [("online-dpo", Comparing), ("grpo", Grading)])
def test_a_step_on_text_is_the_mean_over_the_rows_that_are_left(name: str, judge: Any, tmp_path: Path) -> None:
    """Three of four prompts are answered about: the same step as on a batch of those three, to the rounding of sums in another order."""
    weights = []
    for texts in (("one", "two?", "three", "four"), ("one", "three", "four")):
        policy = tiny_policy()
        out = tmp_path / str(len(texts))
        preftune.train(policy, name, prompts(*texts), judge=judge(Lengths()), steps=1, batch=len(texts), out=out, clip=0, **TRAIN)
        weights.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
        assert lines(out)[0]["silent"] == (len(texts) == 4)
    start = torch.cat([p.detach().flatten() for p in tiny_policy().parameters()])
    moved = float((weights[1] - start).norm())
    assert moved > 1e-4 and float((weights[0] - weights[1]).norm()) < 1e-4 * moved


def test_what_play_has_cost_stands_in_the_log(tmp_path: Path) -> None:
    """Two responses and one question in each order for each pair of different texts: at most two for each of three prompts a step."""
    judge = Comparing(Lengths())
    run = preftune.train(
        tiny_policy(), "online-dpo", prompts("one", "two", "three"), judge=judge, steps=3, batch=3, out=tmp_path / "run", **TRAIN
    )
    sampled = [line["tokens_sampled"] for line in run.history]
    assert [b - a for a, b in zip([0.0, *sampled], sampled, strict=False)] == [line["tokens"] for line in run.history]
    asked = [line["judge_asked"] for line in run.history]
    assert asked[-1] == judge.asker.asked and 0 < asked[0] <= 6 and asked == sorted(asked)
    assert {line["judge_known"] for line in run.history} == {0.0} and {line["silent"] for line in run.history} == {0.0}


def test_a_resumed_run_counts_on_from_its_log(tmp_path: Path) -> None:
    data, more = prompts("one", "two", "three"), {"steps": 4, "batch": 3, **TRAIN}
    whole = preftune.train(tiny_policy(), "online-dpo", data, judge=Comparing(Lengths()), out=tmp_path / "whole", **more)
    stops = [lambda event: event.step == 2]
    preftune.train(tiny_policy(), "online-dpo", data, judge=Comparing(Lengths()), out=tmp_path / "part", callbacks=stops, **more)
    preftune.train(tiny_policy(), "online-dpo", data, judge=Comparing(Lengths()), out=tmp_path / "part", resume=True, **more)
    last = lines(tmp_path / "part")[-1]
    for name in ("tokens_sampled", "judge_asked", "loss"):
        assert last[name] == pytest.approx(whole.history[-1][name], rel=1e-6)


def test_a_round_counts_its_silent_rows_once(tmp_path: Path) -> None:
    data = prompts("one", "two?", "three", "four")
    options = {"rounds": 2, "epochs": 2, "batch": 2, "responses": 2, "train_on": "all", **TRAIN}
    run = preftune.train(tiny_policy(), "sppo", data, judge=Comparing(Lengths()), out=tmp_path / "run", **options)
    assert [line["silent"] for line in run.history] == [1, 0, 0, 0, 1, 0, 0, 0]


def test_methods_that_read_given_responses_count_no_play(tmp_path: Path) -> None:
    pairs = [{"prompt": "one", "chosen": "two", "rejected": "three"}]
    run = preftune.train(tiny_policy(), "dpo", pairs, steps=1, out=tmp_path / "run", **TRAIN)
    assert not {"silent", "tokens_sampled", "judge_asked"} & run.history[0].keys()


# --- who counts ----------------------------------------------------------------------------------------------------------


def test_the_questions_of_judges_inside_judges_are_counted_each_once() -> None:
    first, second = Comparing(Lengths("a")), Comparing(Lengths("b"))
    first.asker.asked, second.asker.asked, second.asker.silent = 3, 4, 1
    assert calls(mean([first, both_orders(agreement([first, second]))])) == {"asked": 7, "known": 0, "silent": 1}
    odd = table()
    odd.judge = odd  # type: ignore[attr-defined]  # a judge of somebody else's may hold what it likes under these names
    assert calls(odd) == {}
