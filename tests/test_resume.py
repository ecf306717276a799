"""A run that is killed at any moment and resumed ends with the weights of an undisturbed run, bit for bit.

Runs are real processes (a fork server has the imports done once); kills are SIGKILL.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import preftune.api as api
from preftune import checkpoint, training
from preftune.collect import store
from preftune.log import Log
from preftune.types import PreftuneError
from text_fixtures import tiny_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

OUTSIDE = Path(__file__).with_name("outside.py")
IMPORTS = ["preftune.api", "transformers", "transformers.models.llama.modeling_llama", "preftune.policies.text.model", "datasets"]
RUNS: dict[str, dict[str, Any]] = {
    "dpo": dict(method="dpo", epochs=3, batch=4, save_every=1),
    "tr-dpo": dict(method="tr-dpo", every=3, epochs=3, batch=4, save_every=2),
    "egpo": dict(method="egpo", judge=f"{OUTSIDE}:vowels", samples=0, steps=5, batch=2, save_every=1),
    "rounds": dict(method=f"{OUTSIDE}:by_rounds", judge=f"{OUTSIDE}:vowels", rounds=3, epochs=1, batch=4, save_every=3),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and sixteen pairs."""
    folder = tmp_path_factory.mktemp("world")
    tiny_folder(folder / "model", layers=2)
    lines = [{"prompt": f"Say number {i}.", "chosen": f"number {i} is good", "rejected": f"no {i * 3} it is"} for i in range(16)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def begin(world: Path, out: Path, settings: dict[str, Any], **more: Any) -> api.Run:
    """One run of this module, in this process."""
    given = {"lr": 1e-3, "progress": False, "load": {"train": "full"}, "samples": 0, **settings, **more}
    return api.train(str(world / "model"), given.pop("method"), str(world / "pairs.jsonl"), out=out, **given)


def child(world: Path, out: Path, settings: dict[str, Any]) -> None:
    """What a process runs: begin, or go on where a run has begun."""
    torch.set_num_threads(1)
    settings = dict(settings)
    if "cache" in settings:
        os.environ["PREFTUNE_CACHE"] = settings.pop("cache")
    if (out / "config.json").exists():
        api.resume(out, progress=False)
    else:
        begin(world, out, settings)


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[..., Any]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTS, "test_resume"])
    warm = context.Process(target=time.sleep, args=(0,))  # the first one waits for the imports
    warm.start()
    warm.join()
    started: list[Any] = []

    def start(world: Path, out: Path, settings: dict[str, Any]) -> Any:
        process = context.Process(target=child, args=(world, out, settings))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


@pytest.fixture(scope="module")
def undisturbed(world: Path, processes: Callable[..., Any]) -> Callable[[str], Path]:
    """The folder of an undisturbed run; each is made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            out = world / f"undisturbed-{name}"
            process = processes(world, out, RUNS[name])
            process.join(120)
            assert process.exitcode == 0
            made[name] = out
        return made[name]

    return get


def weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "model" / "model.safetensors")


# what a resumed run does in another time, knows from before, or had from a process that was killed before it could count
OTHERWISE = ("seconds", "judge_asked", "judge_known", "tokens_sampled")


def steps_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in OTHERWISE} for line in lines]


def assert_same_run(run: Path, other: Path) -> None:
    """Weights, optimiser, reference and every line of the metrics, each step once."""
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert steps_of(run) == steps_of(other)
    assert [line["step"] for line in steps_of(run)] == list(range(1, len(steps_of(run)) + 1))
    last = checkpoint.path_of(Path(), checkpoint.steps(run / "checkpoints")[-1]).name
    a, b = (checkpoint.load(folder / "checkpoints" / last) for folder in (run, other))
    for state in (a, b):
        state["rng"] = state["rng"]["torch"].tolist()
    differ = [name for name in {*a, *b} if repr(a.get(name)) != repr(b.get(name))]  # names alone: the states are long
    assert not differ
    assert not list((run / "checkpoints").glob(".*")) and not list(run.glob(".writing-*"))


def last_step(run: Path) -> int:
    """The last step that is written in full."""
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1] if (run / "metrics.jsonl").exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def kill_and_go_on(start: Callable[[], Any], run: Path, moments: list[tuple[int, float]]) -> int:
    """Kill so many seconds after a step is seen, for every moment, then let the run end; how many kills hit a living process."""
    hits = 0
    for step, seconds in moments:
        process = start()
        while process.is_alive() and last_step(run) < step:
            time.sleep(0.001)
        process.join(seconds)
        hits += process.is_alive()
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    process = start()
    process.join(120)
    assert process.exitcode == 0
    return hits


def moments(name: str, kills: int, steps: int) -> list[tuple[int, float]]:
    """Random steps in order, each with a random fraction of a second; the first kill is blind, so it may hit the start-up."""
    draw = random.Random(name)
    seen = sorted(draw.choices(range(1, steps), k=kills))
    return [(0, draw.uniform(0, 0.6)), *((step, draw.uniform(0, 0.05)) for step in seen)]


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_random_moments_a_run_ends_with_the_same_weights(
    name: str, world: Path, processes: Callable[..., Any], undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    run, other = tmp_path / "run", undisturbed(name)
    assert kill_and_go_on(lambda: processes(world, run, RUNS[name]), run, moments(name, 2, len(steps_of(other)))) > 0
    assert_same_run(run, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("seed", range(6))
def test_many_kills_in_a_row(
    name: str, seed: int, world: Path, processes: Callable[..., Any], undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    run, other = tmp_path / "run", undisturbed(name)
    kill_and_go_on(lambda: processes(world, run, RUNS[name]), run, moments(f"{name} {seed}", 7, len(steps_of(other))))
    assert_same_run(run, other)


def test_killed_while_a_checkpoint_is_written_a_run_ends_with_the_same_weights(
    world: Path, processes: Callable[..., Any], undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    """The killer watches for the folder that is being written; what it leaves is half a checkpoint."""
    other = undisturbed("dpo")
    saved, halves = tmp_path / "run" / "checkpoints", 0
    for _ in range(12):
        if halves == 3:
            break
        process = processes(world, tmp_path / "run", RUNS["dpo"])
        known = set(saved.glob(".writing-*"))
        while process.is_alive() and not set(saved.glob(".writing-*")) - known:
            time.sleep(0.0002)
        process.kill()
        process.join()
        halves += bool(set(saved.glob(".writing-*")) - known)
    assert halves == 3
    kill_and_go_on(lambda: processes(world, tmp_path / "run", RUNS["dpo"]), tmp_path / "run", [])
    assert_same_run(tmp_path / "run", other)


# --- a judge that is paid by the question -----------------------------------------------------------------------------

ASKING: dict[str, dict[str, Any]] = {
    "sppo": dict(method="sppo", rounds=2, epochs=1, batch=4, responses=4, prompts_per_round=4, save_every=1),
    "egpo": dict(method="egpo", steps=4, batch=4, responses=4, opponents=2, save_every=3),
}


def asked(cache: Path) -> list[str]:
    """Every question that the judge was asked, once for each time."""
    return (cache / "asked").read_text().split() if (cache / "asked").exists() else []


@pytest.mark.parametrize("name", ASKING)
def test_killed_while_it_judges_a_run_asks_no_stored_answer_again(
    name: str, world: Path, processes: Callable[..., Any], tmp_path: Path
) -> None:
    """Killed three times in the middle of judging: the question under way may be asked again, no other; the weights are the same."""
    start = {}
    for run in ("whole", "killed"):
        (tmp_path / f"{run} cache").mkdir()
        settings = {**ASKING[name], "judge": f"{OUTSIDE}:slow", "max_response": 8, "cache": str(tmp_path / f"{run} cache")}
        start[run] = partial(processes, world, tmp_path / run, settings)
    kill_and_go_on(start["whole"], tmp_path / "whole", [])
    questions = asked(tmp_path / "whole cache")
    assert len(questions) == len(set(questions)) > 40
    draw = random.Random(name)
    for share in (0.2, 0.5, 0.8):  # of the questions that are asked before the process is killed
        process = start["killed"]()
        wanted = int((share + draw.uniform(-0.1, 0.1)) * len(questions))
        while process.is_alive() and len(asked(tmp_path / "killed cache")) < wanted:
            time.sleep(0.0005)
        assert process.is_alive(), "the kill came too late"
        process.kill()
        process.join()
    kill_and_go_on(start["killed"], tmp_path / "killed", [])
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    again = asked(tmp_path / "killed cache")
    assert set(again) == set(questions)
    assert len(again) - len(questions) <= 3, "one question under way at each kill"


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(
    asked: signal.Signals, world: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"

    def interrupt(event: training.Event) -> None:
        if event.step == 5:
            os.kill(os.getpid(), asked)

    before = signal.getsignal(asked)
    run = begin(world, out, {**RUNS["dpo"], "save_every": 0}, callbacks=[interrupt])
    assert (run.stopped, run.steps) == ("interrupted", 5)
    assert signal.getsignal(asked) is before
    assert checkpoint.steps(out / "checkpoints") == [5] and not (out / "model").exists()
    assert api.resume(out, progress=False).stopped == "finished"
    mine, theirs = weights(out), weights(undisturbed("dpo"))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# --- one process: what resume makes of what it finds ----------------------------------------------------------------


def stop_at(step: int) -> training.Callback:
    def stop(event: training.Event) -> bool:
        return event.step == step

    return stop


def test_a_damaged_newest_checkpoint_is_put_aside_and_the_one_before_leads_to_the_same_weights(
    world: Path, undisturbed: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    begin(world, out, RUNS["dpo"], callbacks=[stop_at(7)])
    state = out / "checkpoints" / "step-000007" / checkpoint.STATE
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    api.resume(out, progress=False)
    said = capsys.readouterr().err
    assert "step-000007 is corrupt" in said and "goes on from step 6" in said
    assert (next((out / "checkpoints").glob("damaged-step-000007-*")) / checkpoint.STATE).read_bytes() == content
    assert_same_run(out, undisturbed("dpo"))


@pytest.mark.parametrize("lost", [checkpoint.STATE, checkpoint.SEAL])
def test_without_any_sound_checkpoint_resume_refuses_and_touches_nothing(lost: str, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(world, out, {**RUNS["dpo"], "save_every": 0}, callbacks=[stop_at(2)])
    (out / "checkpoints" / "step-000002" / lost).unlink()
    before = sorted(out.rglob("*"))
    with pytest.raises(PreftuneError, match=f"no checkpoint in .* is sound .step 2 lacks {lost}.*, needed one to go on from; remove"):
        api.resume(out, progress=False)
    assert sorted(out.rglob("*")) == before


def test_a_run_without_a_checkpoint_starts_from_the_beginning(world: Path, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "run"

    def fail(event: training.Event) -> None:
        if event.step == 3:
            raise RuntimeError("a callback failed")

    with pytest.raises(RuntimeError, match="a callback failed"):
        begin(world, out, {**RUNS["dpo"], "save_every": 0}, callbacks=[fail])
    assert checkpoint.steps(out / "checkpoints") == []
    api.resume(out, progress=False)
    mine, theirs = weights(out), weights(undisturbed("dpo"))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert steps_of(out) == steps_of(undisturbed("dpo"))


@pytest.mark.parametrize("name", ["dpo", "rounds"])
def test_resuming_a_finished_run_changes_nothing(name: str, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = begin(world, out, RUNS[name])
    before = weights(out), (out / "metrics.jsonl").read_bytes(), checkpoint.steps(out / "checkpoints")
    again = api.resume(out, progress=False)
    assert (again.steps, again.stopped) == (run.steps, "finished")
    after = weights(out), (out / "metrics.jsonl").read_bytes(), checkpoint.steps(out / "checkpoints")
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0]) and before[1:] == after[1:]


def test_a_run_that_a_rule_ended_stays_ended(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rule = {**RUNS["dpo"], "test": str(world / "pairs.jsonl"), "eval_every": 2, "kl_budget": 1e-9, "lr": 0.01}
    run = begin(world, out, rule)
    assert run.stopped.startswith("stopped: KL") and run.steps < 12
    assert (api.resume(out, progress=False).steps, api.resume(out, progress=False).stopped) == (run.steps, run.stopped)


def test_resume_keeps_to_what_the_run_began_with(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(world, out, RUNS["dpo"], callbacks=[stop_at(3)])
    with pytest.raises(PreftuneError, match="was made with dpo, not with ipo; resume without a method, or start a new run"):
        api.resume(out, method="ipo")
    with pytest.raises(PreftuneError, match="method = 'dpo', but this run has 'ipo'; resume with the same settings"):
        begin(world, out, {**RUNS["dpo"], "method": "ipo"}, resume=True)
    for change, name in (
        ({"beta": 0.2}, "hyperparameters"),
        ({"batch": 5}, "batch"),
        ({"seed": 1}, "seed"),
        ({"optimiser": "sgd"}, "optimiser"),
    ):
        with pytest.raises(PreftuneError, match=f"was made with {name} = .*, but this run has .*; resume with the same settings"):
            begin(world, out, {**RUNS["dpo"], **change}, resume=True)
    (world / "other.jsonl").write_text((world / "pairs.jsonl").read_text().replace("good", "bad"))
    with pytest.raises(PreftuneError, match="data_fingerprint = .*, but this run has"):
        api.train(str(world / "model"), "dpo", str(world / "other.jsonl"), out=out, resume=True, progress=False, samples=0, batch=4)
    tiny_folder(world / "other model", layers=2, seed=1)
    with pytest.raises(PreftuneError, match="model = .*, but this run has"):
        api.train(str(world / "other model"), "dpo", str(world / "pairs.jsonl"), out=out, resume=True, progress=False, samples=0, batch=4)
    assert checkpoint.steps(out / "checkpoints") == [2, 3]
    assert api.resume(out, progress=False).steps == 12


@pytest.mark.parametrize(("load", "weights"), [({"train": "lora", "lora_r": 2}, "adapter_model"), ({"train": 1}, "model")])
def test_adapters_and_last_layers_are_resumed_with_their_moving_reference(
    load: dict[str, Any], weights: str, world: Path, tmp_path: Path
) -> None:
    settings = {**RUNS["tr-dpo"], "load": load}
    begin(world, tmp_path / "whole", settings)
    begin(world, tmp_path / "parts", settings, callbacks=[stop_at(5)])
    api.resume(tmp_path / "parts", progress=False)
    a, b = ((tmp_path / run / "model" / f"{weights}.safetensors").read_bytes() for run in ("whole", "parts"))
    assert a == b
    assert steps_of(tmp_path / "whole") == steps_of(tmp_path / "parts")


def test_rows_of_rounds_that_no_checkpoint_leads_to_are_collected_again(world: Path, tmp_path: Path) -> None:
    """Resumed with another learning rate, a later round's rows would come from weights that this run never had."""
    out = tmp_path / "run"
    begin(world, out, RUNS["rounds"], callbacks=[stop_at(10)])
    shelf, saved = out / "rounds", out / "checkpoints"
    assert sorted(path.name for path in shelf.iterdir()) == ["round-0000.pt", "round-0001.pt", "round-0002.pt"]
    kept, lost = ((shelf / f"round-000{n}.pt").read_bytes() for n in (1, 2))
    for step in checkpoint.steps(saved)[1:]:
        checkpoint.remove(checkpoint.path_of(saved, step))
    (shelf / ".writing-round-0002.pt-1").write_bytes(b"half")
    assert checkpoint.steps(saved) == [9] or checkpoint.steps(saved) == [8]
    checkpoint.remove(checkpoint.path_of(saved, checkpoint.steps(saved)[0]))
    begin(world, out, RUNS["rounds"], resume=True, lr=5e-3)
    assert (shelf / "round-0001.pt").read_bytes() != kept and (shelf / "round-0002.pt").read_bytes() != lost
    assert not list(shelf.glob(".*"))


def test_rows_of_a_round_that_were_altered_are_refused(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(world, out, RUNS["rounds"], callbacks=[stop_at(6)])
    file = store.path(out / "rounds", 1)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(
        PreftuneError, match="round-0001.pt is corrupt: its checksum differs, needed the rows as they were collected; remove it"
    ):
        api.resume(out, progress=False)


# --- the parts ------------------------------------------------------------------------------------------------------


def test_the_last_checkpoints_and_the_best_one_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        checkpoint.save(tmp_path, step, {"step": step})
        checkpoint.retain(tmp_path, keep=2, best=3 if step >= 3 else None)
    assert checkpoint.steps(tmp_path) == [3, 6, 7]
    assert checkpoint.load(checkpoint.path_of(tmp_path, 6))["step"] == 6


def test_what_interrupted_writes_left_is_swept(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"step": 1})
    for name in (".writing-step-000002-1", ".removing-step-000000-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / checkpoint.STATE).write_bytes(b"half")
    checkpoint.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_checkpoint_holds_the_generators_of_all_libraries(tmp_path: Path) -> None:
    import numpy

    before = checkpoint.rng_state()
    checkpoint.save(tmp_path, 1, {})
    drawn = torch.rand(3), numpy.random.rand(3), random.random()
    checkpoint.restore_rng(checkpoint.load(tmp_path / "step-000001")["rng"])
    again = torch.rand(3), numpy.random.rand(3), random.random()
    assert torch.equal(drawn[0], again[0]) and (drawn[1] == again[1]).all() and drawn[2] == again[2]
    checkpoint.restore_rng(before)


def test_a_checkpoint_runs_no_code_when_it_is_read(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"trap": Trap(tmp_path / "sprung")})
    with pytest.raises(Exception, match="weights_only|Unsupported|unpickl"):
        checkpoint.load(tmp_path / "step-000001")
    assert not (tmp_path / "sprung").exists()


class Trap:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_log_cut_in_the_middle_of_a_line_is_rewound(tmp_path: Path) -> None:
    """`{"step": 4, "eval": {"kl": 0.1}` ends in a brace and is no line."""
    log = Log(tmp_path, 9, progress=False)
    for step in range(1, 4):
        log.step(step, {"loss": 1.0 / step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "eval": {"kl": 0.1}')
    (tmp_path / ".writing-metrics.jsonl").write_text("half")  # a process killed while it rewound
    again = Log(tmp_path, 9, progress=False)
    again.rewind(2)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    again.step(3, {"loss": 0.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 0.0)]
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
