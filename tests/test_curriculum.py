"""The curriculum of pairs: which are trained on in which round, against which reference, on tables and on text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import preftune
from preftune import training
from preftune.collect.curriculum import best_against, easy_to_hard, mixed
from preftune.collect.store import load as stored
from preftune.log import Log
from preftune.methods import curry_dpo, dpo
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.training import RowsFeed, TrainConfig
from preftune.types import Context, Key, Method, PreftuneError, Rows
from text_fixtures import tiny_folder

SCORES = [[9.0, 6.0, 3.0, 1.0], [8.0, 7.0, 2.0, 0.0], [5.0, 5.0, 4.0, 2.0]]  # the last row's first two are a tie


def ranked(scores: list[list[float]] | None = None, **labels: Any) -> Rows:
    """Rows of four responses, one game each, best first."""
    scores = SCORES if scores is None else scores
    n, k = len(scores), len(scores[0])
    return Rows(
        id=tuple(f"row {i}" for i in range(n)),
        prompt=tuple(range(n)),
        response=TableResponses(torch.arange(k).expand(n, k)),
        ranked=True,
        score=torch.tensor(scores, dtype=torch.float64),
        **labels,
    )


def stage(rows: Rows, number: int, stages: int = 3) -> Rows:
    return easy_to_hard(Context({}, rows, round=number), stages=stages)


def train(folder: Path, method: Method, rows: Rows, **settings: Any) -> training.Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    extra = {name: settings.pop(name) for name in ("callbacks", "resume", "test") if name in settings}
    config = TrainConfig(
        **{"lr": 0.5, "batch": len(rows), "optimiser": "sgd", "schedule": "constant", "warmup": 0.0, **method.recipe, **settings}
    )
    policy = TabularPolicy(torch.zeros(len(rows), rows.response.shape[1]))
    return training.run(policy, method, RowsFeed(rows), config, folder, Log(folder, 1, progress=False), **extra)


# --- which pairs ----------------------------------------------------------------------------------------------------


def test_stages_pair_the_best_with_the_worst_first_and_the_second_best_last() -> None:
    for number, column in enumerate([3, 2, 1]):
        found = stage(ranked(), number)
        assert found.response.index[0].tolist() == [0, column] and found.ranked
        assert found.score is not None and found.score[0].tolist() == [SCORES[0][0], SCORES[0][column]]


def test_the_gap_does_not_grow_from_stage_to_stage_for_any_row() -> None:
    rows = ranked([sorted(row, reverse=True) for row in torch.rand(40, 5, generator=torch.Generator().manual_seed(0)).tolist()])
    gaps = torch.stack([(s := stage(rows, number, 4).score)[:, 0] - s[:, 1] for number in range(4)])  # type: ignore[index]
    assert (gaps[:-1] >= gaps[1:]).all() and (gaps[0] > gaps[-1]).any()


def test_ties_with_the_best_are_left_out_of_their_stage() -> None:
    assert [stage(ranked(), number).id for number in range(3)] == [("row 0", "row 1", "row 2")] * 2 + [("row 0", "row 1")]


def test_rows_with_fewer_responses_join_when_their_rank_comes() -> None:
    there = torch.tensor([[True] * 4, [True, True, True, False], [True, True, True, True]])
    assert [stage(ranked(present=there), number).id for number in range(2)] == [("row 0", "row 2"), ("row 0", "row 1", "row 2")]


def test_labels_of_the_row_stay_and_those_of_responses_follow() -> None:
    good = torch.tensor([[True, True, False, False]] * 3)
    weight = torch.tensor([0.5, 1.0, 1.5])
    found = best_against(ranked(desirable=good, weight=weight), 2)
    assert found.desirable is not None and found.desirable.tolist() == [[True, False]] * 3
    assert found.weight is not None and torch.equal(found.weight, weight)


def test_rounds_beyond_the_last_stage_repeat_it() -> None:
    assert stage(ranked(), 5).response.index.tolist() == stage(ranked(), 2).response.index.tolist()


def test_a_mixed_step_draws_no_rank_that_its_rows_lack() -> None:
    """Lists of two among longer ones: a batch of them alone has rank 2 only, and a tie with the best is no pair."""
    short, tie = ranked([[2.0, 1.0]]), ranked([[5.0, 5.0, 4.0, 2.0]])
    for seed in range(20):
        assert mixed(Context({}, short, key=Key.of(seed)), stages=3).score.tolist() == [[2.0, 1.0]]  # type: ignore[union-attr]
        assert mixed(Context({}, tie, key=Key.of(seed)), stages=3).score.tolist() in ([[5.0, 4.0]], [[5.0, 2.0]])  # type: ignore[union-attr]


def test_mixed_steps_take_one_rank_each_and_all_ranks_in_time() -> None:
    """300 draws of 3 ranks: about 100 each, with a standard deviation of 8."""
    columns = [int(mixed(Context({}, ranked(), key=Key.of(seed)), stages=3).response.index[0, 1]) for seed in range(300)]
    assert all(70 < columns.count(column) < 130 for column in (1, 2, 3))


def test_lists_that_are_too_short_or_unranked_are_refused() -> None:
    with pytest.raises(PreftuneError, match="no row has a response of rank 5 .* set stages to 3"):
        stage(ranked(), 0, stages=4)
    with pytest.raises(PreftuneError, match="needs ranked responses"):
        stage(ranked().replace(ranked=False), 0)


# --- training on tables ---------------------------------------------------------------------------------------------


def test_an_evaluation_at_a_stages_end_is_against_the_reference_of_that_stage(tmp_path: Path) -> None:
    """Two steps a stage, evaluated after each: the loss has fallen below ln 2 at the end of the first stage too."""
    outcome = train(tmp_path, curry_dpo(), ranked(), epochs=2, eval_every=2, test=RowsFeed(ranked()))
    seen = [line["eval"]["loss"] for line in outcome.history if "eval" in line]
    assert seen[0] == pytest.approx(math.log(2)) and all(loss < math.log(2) - 1e-4 for loss in seen[1:])


def test_two_responses_and_one_stage_are_dpo(tmp_path: Path) -> None:
    """Also where the label is soft. Rows come in another order, so the last digits of sums may differ."""
    for name, labels in (("hard", {}), ("soft", {"prefer": torch.tensor([0.9, 0.6, 0.7], dtype=torch.float64)})):
        rows = ranked([row[::3] for row in SCORES], **labels)
        plain = train(tmp_path / name / "dpo", dpo(), rows, steps=6)
        curry = train(tmp_path / name / "curry", curry_dpo(stages=1), rows, epochs=6)
        torch.testing.assert_close(plain.learner.policy.logits, curry.learner.policy.logits, rtol=1e-12, atol=1e-14)
        assert [line["loss"] for line in plain.history] == pytest.approx([line["loss"] for line in curry.history], rel=1e-12)


def test_each_stage_starts_at_ln_2_unless_the_reference_stays(tmp_path: Path) -> None:
    """Two steps a stage. With the first reference the second stage starts below ln 2: the best response has risen already."""
    moved = train(tmp_path / "moved", curry_dpo(), ranked(), epochs=2)
    fixed = train(tmp_path / "fixed", curry_dpo(variant="fixed-reference"), ranked(), epochs=2)
    assert moved.steps == fixed.steps == 6
    starts = [moved.history[step]["loss"] for step in (0, 2, 4)]
    assert starts == pytest.approx([math.log(2)] * 3, abs=1e-12)
    assert all(moved.history[step]["loss"] < math.log(2) - 1e-3 for step in (1, 3, 5))
    assert fixed.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert fixed.history[2]["loss"] < math.log(2) - 1e-3


def test_the_rows_of_each_stage_lie_on_disk(tmp_path: Path) -> None:
    outcome = train(tmp_path, curry_dpo(), ranked())
    kept = [stored(tmp_path / "rounds" / f"round-{number:04d}.pt", outcome.learner.policy) for number in range(3)]
    assert [rows.response.index[0].tolist() for rows in kept] == [[0, 3], [0, 2], [0, 1]]


def test_the_best_arm_of_four_wins_and_by_more_than_under_a_fixed_reference(tmp_path: Path) -> None:
    """The same 60 steps: after a stage the pull on the best is full again where the reference has moved."""
    shares = {}
    for variant in ("curriculum", "fixed-reference", "mixed"):
        steps = {"epochs": 60.0} if variant == "mixed" else {"epochs": 20.0}
        outcome = train(tmp_path / variant, curry_dpo(beta=1.0, variant=variant), ranked([SCORES[0]]), **steps)
        assert outcome.steps == 60
        law = outcome.learner.policy.probabilities()[0]
        assert law.argmax() == 0
        shares[variant] = float(law[0])
    assert shares["curriculum"] > shares["fixed-reference"] + 0.02


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(PreftuneError, match="stages is 0"):
        curry_dpo(stages=0)
    with pytest.raises(PreftuneError, match="variant is 'hard first'"):
        curry_dpo(variant="hard first")  # type: ignore[arg-type]


# --- training on text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["curriculum", "fixed-reference", "mixed"])
def test_text_trains_by_name_from_a_file_and_a_resumed_run_ends_in_the_same_place(variant: str, tmp_path: Path) -> None:
    """Four responses, three stages of two steps; broken off within the second stage, whose reference is the first one's end."""
    words = ["good", "fair", "poor", "bad"]
    rows = [{"prompt": f"say {i}", "responses": [f"{word} {i}" for word in words], "scores": [4, 3, 2, 1]} for i in range(4)]
    file = tmp_path / "lists.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(tiny_folder(tmp_path / "model"))
    how: dict[str, Any] = {"samples": 0, "progress": False, "batch": 2, "lr": 1e-3, "save_every": 1, "variant": variant}
    how |= {"load": {"device": "cpu", "tokens_per_batch": 0}}
    whole = preftune.train(model, "curry-dpo", str(file), out=tmp_path / "whole", **how)
    assert whole.steps == 6
    if variant == "curriculum":
        assert [whole.history[step]["loss"] for step in (0, 2, 4)] == pytest.approx([math.log(2)] * 3, abs=1e-9)
    broken = preftune.train(model, "curry-dpo", str(file), out=tmp_path / "broken", callbacks=[lambda event: event.step == 3], **how)
    assert broken.steps == 3
    again = preftune.train(model, "curry-dpo", str(file), out=tmp_path / "broken", resume=True, **how)
    assert again.steps == 6
    assert all(torch.equal(value, again.policy.state()[name]) for name, value in whole.policy.state().items())
