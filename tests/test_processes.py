"""Two processes train what one does: the same rows, draws and decisions, and weights that are equal up to the order of sums.

The processes are real and meet over gloo; a fork server has their imports done once.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import preftune.api as api
import test_every_method_on_text as every
from preftune import checkpoint, processes
from preftune.collect.draw import given
from preftune.methods import METHODS
from preftune.objectives import pairwise
from preftune.reference import frozen
from preftune.types import Key, Loss, Method, PreftuneError, Rows, Scored, needs
from preftune.update import plain
from text_fixtures import tiny_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="starts forked processes")

OUTSIDE = Path(__file__).with_name("outside.py")
IMPORTS = ["preftune.api", "transformers", "transformers.models.llama.modeling_llama", "preftune.policies.text.model", "datasets", "peft"]
VOWELS = f"{OUTSIDE}:vowels"
RUNS: dict[str, dict[str, Any]] = {
    "dpo": dict(method="dpo", steps=4, batch=5, micro_batch=2, test=0.25, eval_every=2, samples=1),
    "a batch of one row": dict(method="dpo", steps=3, batch=1),
    "kto, which couples the batch": dict(method="kto", steps=3, batch=5, micro_batch=2),
    "bco, which keeps statistics": dict(method="bco", steps=3, batch=5, micro_batch=1),
    "online-ipo": dict(method="online-ipo", judge=VOWELS, steps=3, batch=5, micro_batch=2, test=0.25, eval_every=3, samples=1),
    "egpo": dict(method="egpo", judge=VOWELS, steps=2, batch=3),
    "nash-md": dict(method="nash-md", judge=VOWELS, steps=2, batch=3),
    "rounds": dict(method=f"{OUTSIDE}:by_rounds", judge=VOWELS, rounds=2, epochs=1, batch=4, prompts_per_round=6),
    "lora": dict(method="dpo", steps=4, batch=5, micro_batch=2, load={"train": "lora"}),
    "a reference that moves": dict(method="tr-dpo", every=1, steps=4, batch=5, micro_batch=2, save_every=1),
    "two learners in turn": dict(method="ofs-dpo", steps=4, batch=4, micro_batch=2, save_every=1),
    "last layer": dict(method="cpo", steps=3, batch=5, micro_batch=2, load={"train": 1}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and sixteen pairs of very different lengths."""
    folder = tmp_path_factory.mktemp("world")
    tiny_folder(folder / "model", layers=2)
    lines = [
        {"prompt": f"Say number {i}." * (1 + i % 3), "chosen": "good " * (1 + i * i % 11), "rejected": f"no {i * 3} it is"}
        for i in range(16)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def train(world: Path, out: Path, settings: Mapping[str, Any]) -> api.Run:
    given = {"lr": 1e-3, "progress": False, "load": {"train": "full"}, "samples": 0, "decoding": {"max_new_tokens": 4}, **settings}
    given["max_response"] = 12
    return api.train(str(world / "model"), given.pop("method"), str(world / "pairs.jsonl"), out=out, **given)


def train_all(world: Path, out: Path, names: list[str]) -> None:
    """What each of several processes does: one run after the other."""
    for name in names:
        train(world, out / name, RUNS[name])


Together = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def together() -> Iterator[Together]:
    """Calls a function of this module in so many processes at once, which find one another as a launcher lets them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTS, "test_processes"])
    started: list[Any] = []

    def call(count: int, function: Callable[..., None], *arguments: Any, environment: Mapping[str, str] | None = None) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        made = []
        for rank in range(count):
            own = {**told, "RANK": str(rank), "LOCAL_RANK": str(rank), **(environment or {})}
            made.append(context.Process(target=begin, args=(own, function, *arguments)))
            made[-1].start()
        started.extend(made)
        return made

    yield call
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


def begin(environment: Mapping[str, str], function: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def ended(made: list[Any], seconds: float = 120) -> list[int | None]:
    """Exit codes."""
    until = time.monotonic() + seconds
    for process in made:
        process.join(max(0.0, until - time.monotonic()))
    return [process.exitcode for process in made]


def weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    made = run / "judge" if (run / "judge").is_dir() else run / "model"  # what was trained
    return load_file(next(made.glob("*model.safetensors")))


def first_weights(world: Path, name: str) -> dict[str, torch.Tensor]:
    from preftune.policies.text.model import load

    policy = load(world / "model", **RUNS[name].get("load", {}))
    return {key.replace(".default", ""): value for key, value in policy.state().items()}


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Between two sets of weights, those that are in both."""
    return max(float((one[name] - other[name]).abs().max()) for name in one.keys() & other.keys())


def told(run: Path) -> list[dict[str, float]]:
    """The lines of a run without the time that they took, and without the accuracy of equals, which the last bit decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in {**line.pop("eval", {}), **line}.items() if name != "seconds" and "accuracy" not in name}
        for line in lines
    ]


def check_alike(one: Path, two: Path, start: Mapping[str, torch.Tensor]) -> None:
    """Equal to 1e-5, and to far less than the training moved them; the same numbers were told."""
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys() and distance(first, second) < 1e-5
    assert distance(first, start) > 100 * distance(first, second)
    for mine, theirs in zip(told(one), told(two), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
REPLICAS: dict[str, str] = {}
WHOLE = ("nash-md",)  # what needs whole weights


@pytest.fixture(scope="module")
def alone(world: Path) -> Callable[[str], Path]:
    """The folder of a run of one process; each is made once."""

    def get(name: str) -> Path:
        out = world / "alone" / name
        if not out.exists():
            train(world, out, RUNS[name])
        return out

    return get


@pytest.fixture(scope="module")
def doubled(world: Path, together: Together) -> Path:
    """Every run made by two processes that each hold all weights."""
    assert ended(together(2, train_all, world, world / "doubled", list(RUNS))) == [0, 0]
    return world / "doubled"


@pytest.fixture(scope="module")
def halved(world: Path, together: Together) -> Path:
    """The same with weights, gradients and moments in two halves."""
    names = [name for name in RUNS if name not in WHOLE]
    assert ended(together(2, train_all, world, world / "halved", names, environment=FSDP)) == [0, 0]
    return world / "halved"


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_the_weights_of_one(name: str, world: Path, alone: Callable[[str], Path], doubled: Path) -> None:
    check_alike(alone(name), doubled / name, first_weights(world, name))


@pytest.mark.parametrize("name", [name for name in RUNS if name not in WHOLE])
def test_weights_in_two_halves_become_those_of_one_process(name: str, world: Path, alone: Callable[[str], Path], halved: Path) -> None:
    check_alike(alone(name), halved / name, first_weights(world, name))


# --- going on in another world --------------------------------------------------------------------------------------

RESUMED = ("a reference that moves", "two learners in turn", "rounds")


def stop_early(world: Path, out: Path, names: Sequence[str]) -> None:
    """Two steps of each run, by as many processes as call this."""
    for name in names:
        assert train(world, out / name, {**RUNS[name], "callbacks": [lambda event: event.step == 2]}).steps == 2


def go_on(out: Path, names: Sequence[str]) -> None:
    for name in names:
        assert api.resume(out / name, progress=False).stopped == "finished"


@pytest.mark.parametrize("kind", [REPLICAS, FSDP], ids=["whole weights", "shards"])
@pytest.mark.parametrize("first", [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(
    kind: Mapping[str, str], first: int, world: Path, alone: Callable[[str], Path], together: Together
) -> None:
    out = world / f"{first} first, {len(kind)}"
    for work in (partial(stop_early, world, out, RESUMED), partial(go_on, out, RESUMED)):
        if (first == 1) == (work.func is stop_early):
            work()
        else:
            assert ended(together(2, work, environment=kind)) == [0, 0]
    for name in RESUMED:
        check_alike(alone(name), out / name, first_weights(world, name))


def die_at_three(world: Path, out: Path) -> None:
    def die(event: Any) -> None:
        if event.step == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    train(world, out, {**RUNS["a reference that moves"], "callbacks": [die]})


@pytest.mark.parametrize("kind", [REPLICAS, FSDP], ids=["whole weights", "shards"])
def test_the_death_of_one_process_ends_the_run_and_loses_no_checkpoint(
    kind: Mapping[str, str], world: Path, alone: Callable[[str], Path], together: Together
) -> None:
    out = world / f"dead, {len(kind)}"
    left, killed = ended(together(2, die_at_three, world, out, environment=kind), 60)
    assert killed == -signal.SIGKILL and left not in (0, None)
    assert [path.name for path in sorted((out / "checkpoints").glob("step-*"))] == ["step-000001", "step-000002"]
    go_on(out.parent, [out.name])
    check_alike(alone("a reference that moves"), out, first_weights(world, "dpo"))


def test_a_checkpoint_in_shards_is_whole_or_refused(world: Path, halved: Path) -> None:
    found = checkpoint.path_of(halved / "dpo" / "checkpoints", 4)
    shards = sorted(found.glob("shard-*"))
    assert [path.name for path in shards] == ["shard-00000-of-00002.pt", "shard-00001-of-00002.pt"]
    state = checkpoint.load(found)
    assert state["policy"]["model.embed_tokens.weight"].shape == (400, 32) and state["step"] == 4
    content = shards[1].read_bytes()
    try:
        shards[1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert checkpoint.flaw(found) == f"is corrupt: {shards[1].name} is not the file that seal.json describes"
        shards[1].unlink()
        assert checkpoint.flaw(found) == f"lacks {shards[1].name}"
    finally:
        shards[1].write_bytes(content)
    assert not checkpoint.flaw(found)


# --- what all refuse together ---------------------------------------------------------------------------------------


class Fussy:
    """A judge that has no answer to the first prompt."""

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> torch.Tensor:
        if "row 0" in rows.id:
            raise PreftuneError("no answer to row 0, needed one, ask another judge")
        return torch.full((*a.shape, b.shape[1]), 0.5, dtype=torch.float64)


def overflowing(beta: float = 0.1) -> Method:
    """dpo, whose loss of row 3 is infinite."""

    @needs(columns=2, labels=("ranked",))
    def objective(s: Scored) -> Loss:
        loss = pairwise.dpo(s, beta=beta)
        return Loss(loss.row * torch.tensor([math.inf if name == "row 3" else 1.0 for name in s.rows.id]))

    return Method(objective, given, frozen, plain)


def meet_refusals(world: Path, out: Path) -> None:
    """Three runs that cannot go on; what this process was told of each."""
    rank = os.environ["RANK"]
    rows = [{"id": f"row {i}", "prompt": f"Say {i}.", "chosen": f"{i} " * (1 + i), "rejected": "no"} for i in range(8)]
    options = {"lr": 1e-3, "progress": False, "samples": 0, "batch": 8, "steps": 2, "load": {"train": "full"}, "max_response": 6}
    runs: list[tuple[Any, Any, dict[str, Any]]] = [
        (overflowing, rows, {}),
        ("online-ipo", rows, {"judge": Fussy()}),
        ("dpo", [{**row, "chosen": "2"} for row in rows] if rank == "1" else rows, {}),
    ]
    said = []
    for number, (method, data, more) in enumerate(runs):
        with pytest.raises(PreftuneError) as refused:
            api.train(str(world / "model"), method, data, out=out / str(number), **options, **more)
        said.append(str(refused.value))
    (out / f"said-{rank}.json").write_text(json.dumps(said))


def test_what_one_process_refuses_all_refuse_with_the_same_words(world: Path, together: Together) -> None:
    out = world / "refused"
    out.mkdir()
    assert ended(together(2, meet_refusals, world, out)) == [0, 0]
    said = [json.loads((out / f"said-{rank}.json").read_text()) for rank in range(2)]
    assert said[0] == said[1]
    diverged, unanswered, different = said[0]
    assert diverged.startswith("the loss is not finite at step 1, caused by rows ['row 3']; needed finite numbers")
    assert unanswered == "no answer to row 0, needed one, ask another judge"
    assert different.startswith("the 2 processes have different data_fingerprint: ")


# --- shares ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("costs", [[1.0] * 7, [5, 1, 1, 1, 1, 1], [9, 7, 5, 4, 4, 3, 2, 2, 1, 0], [3.0], []])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_hold_every_row_once_and_differ_by_at_most_the_dearest_row(costs: list[float], count: int) -> None:
    taken = processes.shares(costs, count)
    assert sorted(row for rows in taken for row in rows) == list(range(len(costs))) and len(taken) == count
    load = [sum(costs[row] for row in rows) for rows in taken]
    assert max(load) - min(load) <= max(costs, default=0)
    assert min(map(len, taken)) >= min(1, len(costs) // count)
    assert taken == processes.shares(list(costs), count)


def test_shares_of_tokens_are_nearly_equal_where_shares_of_rows_are_not() -> None:
    """A hundred natural lengths in eight shares: within 1 % by tokens; in order, eight rows at a time, they differ by a third."""
    length = torch.exp(torch.randn(100, generator=torch.Generator().manual_seed(0)) * 0.8 + 4).tolist()

    def spread(shares: list[list[int]]) -> float:
        load = [sum(length[row] for row in rows) for rows in shares]
        return max(load) / (sum(load) / len(load)) - 1

    assert spread(processes.shares(length, 8)) < 0.01
    assert spread([list(range(first, 100, 8)) for first in range(8)]) > 0.1


def test_one_process_neither_imports_nor_starts_anything() -> None:
    """Alone every function is the identity."""
    assert (processes.size(), processes.rank(), processes.first(), processes.sharding()) == (1, 0, True, False)
    values = {"a": torch.arange(3), "b": None}
    assert processes.gathered([0, 1, 2], values) is values
    assert processes.gather(7) == [7] and processes.same(7) == 7 and processes.once(lambda: 7) == 7
    processes.start()
    assert not torch.distributed.is_initialized()


# --- the slow part --------------------------------------------------------------------------------------------------


def train_every_method(out: Path) -> None:
    """Two steps of every method; a method that is refused leaves its reason."""
    for name in METHODS:
        settings = {**every.CHOICES.get(name, {}), **every.SHORT.get(name, {})}
        rows, given = every.data_for(api.prepare(name, settings).method), {**every.STEPS, "steps": 2, "lr": 0.003, "optimiser": "sgd"}
        try:
            api.train(every.language(), name, rows, judge=every.judge(), out=out / name, **given, **settings)
        except PreftuneError as error:
            (out / name).with_suffix(".refused").write_text(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [REPLICAS, FSDP], ids=["whole weights", "shards"])
def test_every_method_learns_the_same_in_two_processes(kind: Mapping[str, str], world: Path, together: Together) -> None:
    one, two = world / "every, alone", world / f"every, {len(kind)}"
    assert ended(together(2, train_every_method, two, environment=kind), 1200) == [0, 0]
    if not one.exists():
        train_every_method(one)
    refused = {path.stem for path in two.glob("*.refused")}
    assert refused == ({"nash-md", "ipo-md", "nash-md-pg"} if kind else set())
    start = every.language().state()
    for name in METHODS.keys() - refused:
        first, second = weights(one / name), weights(two / name)
        apart, moved = distance(first, second), distance(first, start)
        assert apart < 1e-5 and apart < 0.01 * moved, f"{name}: {apart} apart, moved {moved}"


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "{port}"],
    "accelerate": ["accelerate.commands.launch", "--config_file", "{examples}/accelerate-8gpu.yaml", "--num_processes", "2"]
    + ["--main_process_port", "{port}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_start_the_command(name: str, world: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        places = {"port": free.getsockname()[1], "examples": Path(__file__).parents[1] / "examples"}
    launcher = [sys.executable, "-m", *(part.format(**places) for part in LAUNCHERS[name]), "-m", "preftune"]
    settings = ["--set", "steps=2", "--set", "batch=3", "--samples", "0", "--json"]
    given = ["--model", world / "model", "--data", world / "pairs.jsonl", "--out", tmp_path / "run", *settings]
    ran = subprocess.run([*map(str, [*launcher, "train", "dpo", *given])], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["steps"] == 2  # one object: one process speaks
    shards = list((tmp_path / "run" / "checkpoints").glob("step-000002/shard-*"))
    assert len(shards) == (2 if name == "accelerate" else 0)
    wrong = subprocess.run([*map(str, [*launcher, "train", "dpoo", *given])], capture_output=True, text=True, timeout=300)
    assert wrong.returncode != 0 and json.loads(wrong.stdout)["found"] == "there is no method 'dpoo'"
