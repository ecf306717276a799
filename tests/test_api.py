"""The public functions on a tiny model: what a user of Python would call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock

import preftune
from preftune.api import load_data
from preftune.data.synthetic import arithmetic
from preftune.types import PreftuneError
from text_fixtures import tiny_folder

SMALL = {"load": {"train": 1}, "samples": 2, "decoding": {"max_new_tokens": 6}, "batch": 8, "lr": 1e-3, "progress": False}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny_folder(tmp_path / "tiny"))


def test_rows_in_memory_are_data(tmp_path: Path, model: str) -> None:
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No."} for i in range(12)]
    import datasets

    assert load_data(rows).fingerprint == load_data(datasets.Dataset.from_list(rows)).fingerprint
    run = preftune.train(model, "dpo", rows, test=0.25, out=tmp_path / "run", **SMALL)
    assert run.stopped == "finished" and run.evaluation["before"]["accuracy"]["value"] == 0.5
    with pytest.raises(PreftuneError, match="the data are int, needed"):
        load_data(3)


def test_a_run_folder_holds_all_that_was_promised(tmp_path: Path, model: str) -> None:
    run = preftune.train(model, "rpo", arithmetic(24, kind="soft"), test=0.25, out=tmp_path / "run", **SMALL)
    names = {"config.json", "metrics.jsonl", "evaluation.json", "samples.jsonl", "report.html", "model", "checkpoints"}
    assert names <= {path.name for path in run.folder.iterdir()}
    config = json.loads((run.folder / "config.json").read_text())
    assert config["method"] == "rpo" and config["hyperparameters"]["eta"] == 0.005 and config["train"]["batch"] == 8
    assert "logsigmoid(h)" in config["formula"] and "seq_sum" in config["formula"] and config["versions"]["torch"]
    assert len((run.folder / "samples.jsonl").read_text().splitlines()) == 2
    again = preftune.generate(run.model, ["What is 2 + 2?"], n=2, max_new_tokens=5)
    assert len(again) == 1 and len(again[0]) == 2
    found = preftune.evaluate(run.model, arithmetic(8, seed=1), against=model)
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]


def test_a_judge_without_samples_to_read_is_refused(model: str) -> None:
    class Idle:
        def prefer(self, rows, a, b, key):  # type: ignore[no-untyped-def]
            raise AssertionError("there is nothing to judge")

    with pytest.raises(PreftuneError, match="a judge was given but no prompts to sample from"):
        preftune.evaluate(model, arithmetic(8), judge=Idle())


def test_the_likelihood_of_undesirable_answers_is_not_raised(tmp_path: Path, model: str) -> None:
    run = preftune.train(model, "sft", arithmetic(20, kind="unpaired"), out=tmp_path / "run", **SMALL)
    assert run.stopped == "finished"
    good = sum(bool((record.desirable or [])[0]) for record in arithmetic(20, kind="unpaired"))
    assert 0 < good < 20 and run.counts["rows"] <= good + 2 * 8  # encoded: the rows of each batch and of the samples


def test_methods_without_a_reference_take_no_copy_of_a_model_that_trains_whole(tmp_path: Path, model: str) -> None:
    run = preftune.train(model, "orpo", arithmetic(12), test=0.25, out=tmp_path / "run", **{**SMALL, "load": {"train": "full"}})
    assert "kl" not in run.evaluation["after"] and "accuracy_raw" in run.evaluation["after"]


def test_two_processes_do_not_write_one_run(tmp_path: Path, model: str) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(PreftuneError, match="is written by another process"):
        preftune.train(model, "dpo", arithmetic(12), out=tmp_path / "run", **SMALL)


def test_self_play_writes_no_longer_than_asked(tmp_path: Path, model: str) -> None:
    import torch

    seen: list[int] = []

    class Longer:
        def prefer(self, rows, a, b, key):  # type: ignore[no-untyped-def]
            seen.extend(len(tokens) for row in a.tokens for tokens in row)
            length = [torch.tensor([[float(len(tokens)) for tokens in row] for row in side.tokens]) for side in (a, b)]
            return torch.sigmoid(length[0][:, :, None] - length[1][:, None, :])

    preftune.train(model, "egpo", arithmetic(8, kind="prompts"), judge=Longer(), max_response=5, out=tmp_path / "run", **SMALL)
    assert seen and max(seen) == 5


def test_a_dry_run_changes_nothing_and_writes_nothing(tmp_path: Path, model: str) -> None:
    plan = preftune.plan(model, "dpo", arithmetic(16), load={"train": 1}, batch=8, beta=0.2)
    assert plan.steps == 2 and plan.hyperparameters["beta"] == 0.2 and plan.seconds > 0 and plan.parameters > 0
    with pytest.raises(PreftuneError, match="compares responses with a judge"):
        preftune.plan(model, "egpo", arithmetic(8))
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}


def test_with_early_stop_the_model_is_the_best_one(tmp_path: Path, model: str) -> None:
    """A metric of the test's own falls from the first evaluation on, so the best step is the first that was looked at."""
    import torch

    from preftune import checkpoint

    def falling(policy: object, step: int) -> dict[str, float]:
        return {"mine": -float(step)}

    options = {**SMALL, "batch": 4, "eval_every": 1, "early_stop": "mine", "patience": 2}
    run = preftune.train(model, "dpo", arithmetic(32), test=0.25, out=tmp_path / "run", metrics=[falling], **options)
    assert run.steps == 3 and "best at step 1" in run.stopped
    kept = [checkpoint.load(checkpoint.path_of(run.folder / "checkpoints", step))["policy"] for step in (1, 3)]
    assert all(torch.equal(kept[0][name], value) for name, value in run.policy.state().items())
    assert any(not torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
