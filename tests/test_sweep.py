"""A sweep: one run for each value, none touched by another, one reference cache, and a kill that costs no finished run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import preftune
from preftune import grid
from preftune.cli import main
from preftune.data import save
from preftune.data.synthetic import arithmetic
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.types import PreftuneError, Rows
from text_fixtures import tiny_folder, tiny_policy

SETTINGS: dict[str, Any] = {"lr": 1e-2, "batch": 4, "epochs": 1, "samples": 0, "progress": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, sixteen pairs, eight more held out."""
    folder = tmp_path_factory.mktemp("world")
    tiny_folder(folder / "model", layers=2)
    save(arithmetic(16), folder / "pairs.jsonl")
    save(arithmetic(8, seed=1), folder / "held-out.jsonl")
    return folder


def begin(world: Path, out: Path, over: dict[str, list[Any]], **more: Any) -> grid.Sweep:
    return preftune.sweep(
        str(world / "model"), "dpo", str(world / "pairs.jsonl"), test=str(world / "held-out.jsonl"), over=over, out=out, **SETTINGS | more
    )


@pytest.fixture(scope="module")
def swept(world: Path) -> grid.Sweep:
    return begin(world, world / "swept", {"beta": [0.05, 0.5, 5.0]})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same_weights(run: Path, other: Path) -> None:
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# --- what a sweep is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_a_run_of_a_sweep_equals_a_run_of_its_own_bit_for_bit(world: Path, swept: grid.Sweep, beta: float, tmp_path: Path) -> None:
    given = {**SETTINGS, "test": str(world / "held-out.jsonl"), "beta": beta}
    alone = preftune.train(str(world / "model"), "dpo", str(world / "pairs.jsonl"), out=tmp_path / "alone", **given)
    point = swept.points[swept.over["beta"].index(beta)]
    assert_same_weights(swept.folder / f"beta={beta}", alone.folder)
    assert point.after == alone.evaluation["after"] and point.steps == alone.steps == 4


def test_values_give_different_models(swept: grid.Sweep) -> None:
    first, *rest = [weights(swept.folder / point.folder) for point in swept.points]
    assert all(any(not torch.equal(first[name], other[name]) for name in first) for other in rest)


def test_all_runs_share_one_reference_cache(swept: grid.Sweep) -> None:
    """24 pairs have 48 responses, some of them alike: the first run computes each once, no later run computes any."""
    first, *rest = swept.points
    assert 0 < first.misses <= 48
    assert all(point.misses == 0 and point.hits == first.hits + first.misses for point in rest)


def test_the_best_run_has_the_highest_held_out_accuracy(swept: grid.Sweep) -> None:
    assert swept.criterion == "accuracy" and swept.best is not None
    assert swept.best.value("accuracy") == max(point.value("accuracy") for point in swept.points)  # type: ignore[type-var]
    low = swept.best.after["accuracy"]["low"]
    overlapping = [p for p in swept.points if p is not swept.best and p.after["accuracy"]["high"] >= low]  # type: ignore[operator]
    assert swept.rivals == overlapping


def test_several_sweeps_make_the_grid_in_folders_of_their_own(world: Path, tmp_path: Path) -> None:
    found = begin(world, tmp_path / "grid", {"beta": ["0.1", "1"], "label_smoothing": ["0", "0.2"]}, steps=1)
    names = [point.folder for point in found.points]
    assert names == [f"beta={b},label_smoothing={e}" for b in ("0.1", "1") for e in ("0", "0.2")]
    assert [point.values for point in found.points] == [{"beta": b, "label_smoothing": e} for b in (0.1, 1.0) for e in (0.0, 0.2)]
    for point in found.points:
        config = json.loads((found.folder / point.folder / "config.json").read_text())
        assert {name: config["hyperparameters"][name] for name in point.values} == point.values
    assert json.loads((found.folder / "sweep.json").read_text())["over"] == {"beta": ["0.1", "1"], "label_smoothing": ["0", "0.2"]}


def test_a_training_setting_can_be_swept_and_a_run_that_diverges_is_noted(world: Path, tmp_path: Path) -> None:
    settings = {name: value for name, value in SETTINGS.items() if name != "lr"}
    found = preftune.sweep(
        str(world / "model"), "dpo", str(world / "pairs.jsonl"), over={"lr": [1e12, 1e-3]}, out=tmp_path / "lr", steps=3, **settings
    )
    wild, tame = found.points
    assert wild.stopped.startswith("diverged") and wild.after == {}
    assert tame.stopped == "finished" and tame.steps == 3
    assert found.best is None  # without held-out data nothing says which is better


def test_a_policy_in_memory_is_copied_for_every_run(tmp_path: Path, world: Path) -> None:
    policy = tiny_policy()
    before = policy.state()
    found = preftune.sweep(policy, "dpo", str(world / "pairs.jsonl"), over={"beta": [0.1, 1.0]}, out=tmp_path / "a", **SETTINGS)
    assert all(torch.equal(before[name], value) for name, value in policy.state().items())
    alone = preftune.train(policy, "dpo", str(world / "pairs.jsonl"), out=tmp_path / "b", beta=1.0, **SETTINGS)
    assert_same_weights(found.folder / "beta=1.0", alone.folder)


def test_a_table_can_be_swept(tmp_path: Path) -> None:
    policy = TabularPolicy(torch.zeros(1, 3))
    rows = Rows(id=("a", "b"), prompt=(0, 0), response=TableResponses(torch.tensor([[0, 1], [1, 2]])), ranked=True)
    settings = {"steps": 50, "optimiser": "sgd", "lr": 0.1, "progress": False, "samples": 0}
    found = preftune.sweep(policy, "ipo", rows, over={"tau": [1.0, 0.5]}, out=tmp_path / "table", **settings)
    weak, strong = (json.loads((found.folder / point.folder / "model" / "policy.json").read_text())[0] for point in found.points)
    assert strong[0] > weak[0] > 1 / 3  # the smaller pull gives the larger gap
    assert torch.equal(policy.logits.detach(), torch.zeros(1, 3, dtype=torch.float64))


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"beta": ["0.1", "-1"]}, "beta is -1"),
        ({"beta": ["0.1", "much"]}, "beta is 'much', needed a number"),
        ({"betta": ["0.1"]}, "did you mean beta"),
        ({"beta": ["0.1", "0.10"]}, "twice"),
        ({"beta": []}, "needed a list of values"),
        ({"beta": "0.1"}, "needed a list of values"),
        ({"batch": [2]}, "batch is swept and also set to 4"),
        ({"data": ["x.jsonl"]}, "cannot be swept"),
        ({"seed": list(range(2000))}, "2000 runs"),
        ({}, "no setting"),
    ],
)
def test_a_wrong_value_is_refused_before_the_first_run(world: Path, tmp_path: Path, over: dict[str, list[Any]], said: str) -> None:
    with pytest.raises(PreftuneError, match=said):
        begin(world, tmp_path / "wrong", over)
    assert not (tmp_path / "wrong").exists()


def test_a_folder_holds_one_sweep(world: Path, swept: grid.Sweep) -> None:
    with pytest.raises(PreftuneError, match="holds a sweep already"):
        begin(world, swept.folder, {"beta": [0.05, 0.5, 5.0]})
    with pytest.raises(PreftuneError, match="was made with over"):
        begin(world, swept.folder, {"beta": [0.05]}, resume=True)
    with pytest.raises(PreftuneError, match="was made with lr = 0.01, but this asks for '0.1'"):
        grid.resume(swept.folder, lr="0.1", progress=False)
    with pytest.raises(PreftuneError, match="no sweep.json"):
        grid.resume(world, progress=False)


def test_objects_have_to_be_given_again(world: Path, tmp_path: Path) -> None:
    preftune.sweep(tiny_policy(), "dpo", str(world / "pairs.jsonl"), over={"beta": [0.1]}, out=tmp_path / "a", steps=1, **SETTINGS)
    with pytest.raises(PreftuneError, match="model as objects"):
        grid.resume(tmp_path / "a", progress=False)


# --- the command ----------------------------------------------------------------------------------------------------


def command(world: Path, out: Path, *more: str) -> list[str]:
    files = {"model": world / "model", "data": world / "pairs.jsonl", "test": world / "held-out.jsonl", "out": out}
    options = [part for name, value in files.items() for part in (f"--{name}", str(value))]
    return ["train", "dpo", *options, "--samples", "0", "--set", "lr=1e-2", "--set", "batch=4", *more]


def said(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_the_command_prints_a_table_and_the_hits(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, command(world, tmp_path / "s", "--sweep", "beta=0.05,0.5,5"))
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if re.match(r"(0\.05|0\.5|5) ", line)] == ["0.05", "0.5", "5"]
    assert len(re.findall(r"\bbest\b", out.split("reference log-probs")[0])) == 1
    hits, total = map(int, re.search(r"(\d+) of (\d+) reference log-probs came from the cache", out).groups())  # type: ignore[union-attr]
    assert hits / total >= 2 / 3 - 1e-9  # two runs of three compute none
    assert "beta=0.5  (2 of 3)" in err


def test_the_commands_json_is_one_object(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, command(world, tmp_path / "s", "--sweep", "beta=0.05,5", "--set", "steps=1", "--json"))
    facts = json.loads(out)
    assert code == 0 and facts["sweep"] == {"beta": [0.05, 5.0]} and facts["by"] == "accuracy"
    assert [run["values"] for run in facts["runs"]] == [{"beta": 0.05}, {"beta": 5.0}]
    assert facts["best"] in [run["values"] for run in facts["runs"]]
    assert all((Path(run["folder"]) / "report.html").exists() for run in facts["runs"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sweep", "beta"], "--sweep was given 'beta', needed name=value"),
        (["--sweep", "beta=0.1", "--sweep", "beta=1"], "--sweep beta was given twice"),
        (["--sweep", "beta=0.1,"], "needed a list of values"),
        (["--sweep", "beta=0.1,x"], "beta is 'x', needed a number"),
        (["--sweep", "lr=1,2"], "lr is swept and also set"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_mistake_is_answered_in_words(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str, dry: list[str]
) -> None:
    code, out, _ = said(capsys, command(world, tmp_path / "s", *arguments, *dry, "--json"))
    assert code == 3 and told in json.loads(out)["error"]
    assert not (tmp_path / "s").exists()


def test_a_dry_run_counts_the_runs(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, command(world, tmp_path / "s", "--sweep", "beta=0.1,1", "--sweep", "seed=0,1,2", "--dry-run", "--json"))
    assert code == 0 and json.loads(out)["runs"] == 6 and not (tmp_path / "s").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
def test_a_killed_sweep_goes_on_and_ends_like_an_undisturbed_one(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed inside the second of three runs; the first one's folder is not written again."""
    out = tmp_path / "killed"
    arguments = command(world, out, "--sweep", "beta=0.05,0.5,5.0", "--set", "save_every=1", "--set", "epochs=5")
    process = subprocess.Popen(
        [sys.executable, "-m", "preftune", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    )
    second = out / "beta=0.5" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not (second.exists() and second.read_text().count("\n") >= 1):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert second.read_text().count("\n") < 20 and not (out / "beta=5.0").exists()
    first = (out / "beta=0.05" / "evaluation.json").stat().st_mtime_ns
    code, printed, _ = said(capsys, [*arguments, "--resume", str(out)])
    assert code == 0 and "best" in printed
    assert (out / "beta=0.05" / "evaluation.json").stat().st_mtime_ns == first
    undisturbed = begin(world, tmp_path / "undisturbed", {"beta": [0.05, 0.5, 5.0]}, epochs=5)
    for point in undisturbed.points:
        assert_same_weights(out / point.folder, undisturbed.folder / point.folder)


def test_ctrl_c_ends_the_sweep_after_the_step_and_it_goes_on(world: Path, tmp_path: Path) -> None:
    def press(event: Any) -> None:
        if event.folder.name == "beta=0.5" and event.step == 2 and not (tmp_path / "pressed").exists():
            (tmp_path / "pressed").touch()
            os.kill(os.getpid(), signal.SIGINT)

    over = {"beta": [0.05, 0.5]}
    broken = begin(world, tmp_path / "s", over, callbacks=[press])
    assert broken.stopped == "interrupted" and [point.folder for point in broken.points] == ["beta=0.05"]
    whole = begin(world, tmp_path / "s", over, callbacks=[press], resume=True)
    assert whole.stopped == "finished" and [point.steps for point in whole.points] == [4, 4]
    alone = begin(world, tmp_path / "alone", {"beta": [0.5]})
    assert_same_weights(tmp_path / "s" / "beta=0.5", alone.folder / "beta=0.5")


def test_a_finished_sweep_resumed_prints_the_same_and_trains_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = command(world, tmp_path / "s", "--sweep", "beta=0.1,1", "--set", "steps=1")
    once = said(capsys, arguments)[1]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)  # the files are found from anywhere
    assert said(capsys, ["train", "--resume", str(tmp_path / "s")])[1] == once
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()} == written
