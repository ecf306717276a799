"""Mistakes of users: each is a sentence with what was found, what was needed and what to do, before the first step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import outside
import preftune.api as api
from preftune import checkpoint, training
from preftune.data.files import load
from preftune.methods import dpo
from preftune.types import PreftuneError
from text_fixtures import tiny_folder, tiny_model, tiny_tokenizer

PAIR = {"prompt": "Say a number.", "chosen": "one is good", "rejected": "no"}
KTO = {"prompt": "Say a number.", "completion": "one", "label": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "model", layers=1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Rows as a file."""

    def rows(*lines: dict[str, Any] | bytes, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
        return path

    return rows


@pytest.fixture
def refused(model: Path, tmp_path: Path) -> Callable[..., str]:
    """Train, be refused, and find that nothing was trained, written over or left behind."""

    def attempt(data: Any, method: str = "dpo", **settings: Any) -> str:
        out = settings.pop("out", tmp_path / "run")
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} if out.exists() else {}
        given = {"model": model, "samples": 0, "progress": False, "batch": 2, "out": out, **settings}
        with pytest.raises(PreftuneError) as error:
            api.train(given.pop("model"), method, data, **given)
        after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} if out.exists() else {}
        assert {path: after.get(path) for path in before} == before, "something was lost"
        assert not {path.name for path in after.keys() - before.keys()} & {"metrics.jsonl", checkpoint.STATE}, "a step was made"
        said = str(error.value)
        assert len(said.replace("; did you mean", ", did you mean")) > 40 and "; " in said, f"not three parts: {said}"
        return said

    return attempt


Rows = Callable[..., Path]
Refused = Callable[..., str]


def pairs(n: int = 4, **more: Any) -> list[dict[str, Any]]:
    return [{**PAIR, "prompt": f"Say number {i}.", **more} for i in range(n)]


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    assert "nowhere.jsonl" in refused(str(tmp_path / "nowhere.jsonl"))


def test_a_wrong_column(refused: Refused, write: Rows) -> None:
    said = refused(write({"prompt": "a", "choosen": "b", "rejected": "c"}))
    assert "choosen" in said and "chosen" in said


def test_an_empty_file(refused: Refused, write: Rows) -> None:
    said = refused(write())
    assert "data.jsonl" in said and ("empty" in said or "no row" in said)


def test_a_prompt_without_completion(refused: Refused, write: Rows) -> None:
    said = refused(write({"prompt": "a"}, {"prompt": "b"}))
    assert "0 responses" in said or "completion" in said


def test_bytes_that_are_not_utf8(refused: Refused, write: Rows) -> None:
    said = refused(write(PAIR, b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}\n'))
    assert "UTF-8" in said and "2" in said


def test_a_line_that_is_not_json(refused: Refused, write: Rows) -> None:
    said = refused(write(PAIR, b'{"prompt": "a", \n'))
    assert "JSON" in said and "2" in said


def test_a_number_where_a_text_is_needed(refused: Refused, write: Rows) -> None:
    assert "chosen" in refused(write(PAIR, {**PAIR, "chosen": 7}))


def test_one_row_is_enough(model: Path, write: Rows, tmp_path: Path) -> None:
    run = api.train(model, "dpo", write(PAIR), out=tmp_path / "run", samples=0, progress=False, epochs=2)
    assert (run.steps, run.stopped) == (2, "finished")


# --- labels ---------------------------------------------------------------------------------------------------------


def test_all_ties(refused: Refused, write: Rows) -> None:
    """Equal scores order nothing: no pair is left to learn from."""
    rows = [{"prompt": f"p {i}", "responses": ["a", "b"], "scores": [1.0, 1.0]} for i in range(4)]
    said = refused(write(*rows))
    assert "tie" in said or "equal scores" in said or "ranked" in said


def test_chosen_equal_to_rejected_everywhere(refused: Refused, write: Rows) -> None:
    said = refused(write(*pairs(chosen="same", rejected="same")))
    assert "identical" in said or "same" in said


def test_some_rows_where_chosen_equals_rejected_are_left_out_and_said(
    model: Path, write: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(*pairs(6), *pairs(2, chosen="same", rejected="same"))
    run = api.train(model, "dpo", data, out=tmp_path / "run", samples=0, batch=6)
    assert run.steps == 1
    assert "2 of 8 rows are left out: identical responses" in capsys.readouterr().err


def test_responses_that_are_cut_are_said(model: Path, write: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = api.train(model, "dpo", write(*pairs(2)), out=tmp_path / "run", samples=0, batch=2, max_response=2)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{run.counts['response_truncated']} times responses were cut to max_response tokens" in said


def test_labels_of_kto_do_not_fit_dpo(refused: Refused, write: Rows) -> None:
    said = refused(write(KTO, {**KTO, "prompt": "Another.", "label": False}))
    assert "kto" in said and "1 response" in said


def test_single_responses_do_not_fit_dpo(refused: Refused, write: Rows) -> None:
    said = refused(write({"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}))
    assert "found 1 response, needed 2" in said


def test_pairs_fit_kto(model: Path, write: Rows, tmp_path: Path) -> None:
    run = api.train(model, "kto", write(*pairs()), out=tmp_path / "run", samples=0, progress=False, batch=4)
    assert run.stopped == "finished"


def test_single_responses_without_label_do_not_fit_kto(refused: Refused, write: Rows) -> None:
    said = refused(write({"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}), "kto")
    assert "desirable" in said and "label" in said


def test_one_prompt_alone_does_not_fit_kto(refused: Refused, write: Rows) -> None:
    assert "same prompt" in refused(write(PAIR, {**PAIR, "chosen": "two"}), "kto")


# --- models ---------------------------------------------------------------------------------------------------------


def test_a_model_folder_without_tokenizer(refused: Refused, write: Rows, tmp_path: Path) -> None:
    tiny_model(layers=1).save_pretrained(tmp_path / "bare")
    said = refused(write(*pairs()), model=tmp_path / "bare")
    assert "bare" in said and "tokenizer" in said


def test_tokenizer_and_model_of_different_vocabularies(refused: Refused, write: Rows, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "mixed", layers=1, vocabulary=300, tokenizer=tiny_tokenizer())
    said = refused(write(*pairs()), model=folder)
    assert "tokens up to 399" in said and "300 rows" in said and "different models" in said


def test_a_model_that_is_not_there(refused: Refused, write: Rows, tmp_path: Path) -> None:
    assert "nowhere" in refused(write(*pairs()), model=str(tmp_path / "nowhere"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there(refused: Refused, write: Rows) -> None:
    said = refused(write(*pairs()), load={"device": "cuda"})
    assert "cuda" in said and "cpu" in said


# --- methods and settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["egpo", "online-ipo"])
def test_a_method_that_asks_a_judge_and_has_none(method: str, refused: Refused, write: Rows) -> None:
    assert "judge" in refused(write(*pairs()), method)


def test_a_judge_that_is_not_there(refused: Refused, write: Rows) -> None:
    assert "did you mean ratings" in refused(write(*pairs()), "egpo", judge="rating")


class Compares:
    """A judge without scores, whose preferences are those of another."""

    def __init__(self, shape: Callable[[torch.Tensor], torch.Tensor] = lambda p: p):
        self.shape = shape

    def prefer(self, rows: Any, a: Any, b: Any, key: Any) -> torch.Tensor:
        return self.shape(outside.VowelJudge().prefer(rows, a, b, key))


class Silent(outside.VowelJudge):
    """Has no score for the first response of a batch."""

    def score(self, rows: Any, y: Any, key: Any) -> torch.Tensor:
        return super().score(rows, y, key).index_fill(1, torch.tensor([0]), torch.nan)


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "copg", "dno-prct"])
@pytest.mark.parametrize(
    ("judge", "reward", "message"),
    [(Compares(), "score", "the judge Compares has no scores"), (Silent(), None, "the judge gave no answer about ")],
    ids=["none", "not all"],
)
def test_scores_of_a_judge_that_has_none_or_not_all(
    method: str, judge: Any, reward: str | None, message: str, refused: Refused, write: Rows
) -> None:
    assert message in refused(write(*pairs()), method, judge=judge, reward=reward)


@pytest.mark.parametrize("method", ["egpo", "online-dpo", "grpo"])
def test_preferences_of_another_shape_than_the_responses(method: str, refused: Refused, write: Rows) -> None:
    said = refused(write(*pairs()), method, judge=Compares(lambda p: p.flatten()[:1]))
    assert "the judge Compares gave preferences of shape [1], needed [2, " in said


def test_a_dry_run_finds_an_unknown_judge_too(model: Path, write: Rows) -> None:
    with pytest.raises(PreftuneError, match="did you mean ratings"):
        api.plan(model, "egpo", write(*pairs()), judge="rating")


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("dpo", {"beta": 0.0}),
        ("dpo", {"beta": -0.1}),
        ("ipo", {"tau": 0.0}),
        ("simpo", {"beta": 0.0, "gamma_beta_ratio": 0.5}),
        ("egpo", {"beta": 0}),
    ],
)
def test_a_pull_that_is_not_positive(method: str, setting: dict[str, float], refused: Refused, write: Rows) -> None:
    said = refused(write(*pairs()), method, judge=outside.VowelJudge(), **setting)
    assert "is 0" in said or "is -0.1" in said
    assert "needed a finite number above 0" in said


def test_an_unknown_method(refused: Refused, write: Rows) -> None:
    assert "did you mean dpo" in refused(write(*pairs()), "dpoo")


def test_an_unknown_setting(refused: Refused, write: Rows) -> None:
    assert "did you mean beta" in refused(write(*pairs()), "dpo", betta=0.1)


def test_a_setting_of_the_wrong_kind(refused: Refused, write: Rows) -> None:
    assert "batch is 'many', needed a whole number" in refused(write(*pairs()), batch="many")


def test_a_share_of_held_out_rows_that_leaves_none(refused: Refused, write: Rows) -> None:
    assert "test is 1.5, needed a share between 0 and 1" in refused(write(*pairs()), test=1.5)


def test_evaluations_without_held_out_rows(refused: Refused, write: Rows) -> None:
    assert "eval_every is set, but there are no held-out rows" in refused(write(*pairs()), eval_every=1)
    assert "eval_every is set" in refused(write(*pairs()), eval_every=1), "the folder of a refused run can be used again"


def test_an_unknown_tracker_leaves_no_folder(refused: Refused, write: Rows, tmp_path: Path) -> None:
    assert "tracker is 'wandbb'" in refused(write(*pairs()), tracker="wandbb")
    assert not (tmp_path / "run").exists()


# --- folders of runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after four steps of six."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(6)))

    def stop(event: training.Event) -> bool:
        return event.step == 4

    settings: dict[str, Any] = {"samples": 0, "progress": False, "batch": 2, "epochs": 2, "save_every": 1, "keep": 1}
    api.train(model, "dpo", folder / "data.jsonl", out=folder / "run", callbacks=[stop], **settings)
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "earlier"))


def test_a_folder_that_holds_a_run(refused: Refused, write: Rows, run: Path) -> None:
    said = refused(write(*pairs()), out=run)
    assert "holds a run already, needed a new folder" in said and f"--resume {run}" in said


def test_a_folder_that_holds_a_model(refused: Refused, write: Rows, model: Path, tmp_path: Path) -> None:
    """Its config.json would be written over, and the model could not be loaded again."""
    here = Path(shutil.copytree(model, tmp_path / "mine"))
    assert "holds a config.json that is no run's" in refused(write(*pairs()), model=here, out=here)
    with pytest.raises(PreftuneError, match="no run's, needed the folder of a run"):
        api.resume(here, progress=False)


@pytest.mark.parametrize("text", ["{}", "[]", "no json"])
def test_a_model_folder_whose_configuration_is_none(refused: Refused, write: Rows, model: Path, tmp_path: Path, text: str) -> None:
    here = Path(shutil.copytree(model, tmp_path / "mine"))
    (here / "config.json").write_text(text)
    assert "names no model_type" in refused(write(*pairs()), model=here)


def test_a_folder_that_cannot_be_written(refused: Refused, write: Rows, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "cannot write" in refused(write(*pairs()), out=tmp_path / "file" / "run")


def test_a_corrupt_checkpoint(run: Path) -> None:
    state = run / "checkpoints" / "step-000004" / checkpoint.STATE
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(PreftuneError, match="step 4 is corrupt: .*, needed one to go on from; remove .*checkpoints and resume again"):
        api.resume(run, progress=False)


def test_resume_with_another_method(run: Path) -> None:
    with pytest.raises(PreftuneError, match="was made with dpo, not with kto; resume without a method, or start a new run"):
        api.resume(run, method="kto", progress=False)


def test_resume_of_a_run_that_was_given_objects(model: Path, write: Rows, tmp_path: Path) -> None:
    """A judge can be given again; another object's name in config.json would not lead back to it."""

    def stop(event: training.Event) -> bool:
        return event.step == 1

    data = write(*pairs(6))
    settings: dict[str, Any] = {"samples": 0, "progress": False, "batch": 2, "callbacks": [stop]}
    api.train(model, "online-ipo", data, judge=outside.VowelJudge(), out=tmp_path / "judged", **settings)
    with pytest.raises(PreftuneError, match="was started with judge as objects in Python, needed names or files; call"):
        api.resume(tmp_path / "judged", progress=False)
    assert api.resume(tmp_path / "judged", judge=outside.VowelJudge(), progress=False).stopped == "finished"
    api.train(model, lambda: dpo(0.2), data, test=load(str(data)), out=tmp_path / "composed", **settings)
    with pytest.raises(PreftuneError, match="was started with method and test as objects in Python, needed names or files; call"):
        api.resume(tmp_path / "composed", progress=False)


def test_resume_of_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="has no config.json, needed the folder of a run; `preftune train --out` writes one"):
        api.resume(tmp_path, progress=False)


def test_resume_when_the_data_have_changed(run: Path) -> None:
    data = Path(json.loads((run / "config.json").read_text())["data"])
    text = data.read_text()
    data.write_text(text.replace("good", "bad"))
    try:
        with pytest.raises(PreftuneError, match="was made with data_fingerprint = .*, but this run has .*; resume with the same settings"):
            api.resume(run, progress=False)
    finally:
        data.write_text(text)
    assert api.resume(run, progress=False).steps == 6
