"""A run that is killed while it asks a judge about a round goes on where it was: the same weights, and no stored answer asked again.

The run is a real process and the kill is SIGKILL; the judge is a server in this process, which counts what it is asked.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import preftune.api as api
from chat_server import Chat, chat, said
from text_fixtures import tiny_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

IMPORTS = ["preftune.api", "transformers", "transformers.models.llama.modeling_llama", "preftune.policies.text.model", "datasets"]
AT_ONCE = 3  # requests
RUNS: dict[str, dict[str, Any]] = {
    "sppo": dict(method="sppo", responses=3, eta=1.0),
    "dno": dict(method="dno", responses=3, eta=1.0),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and six prompts."""
    folder = tmp_path_factory.mktemp("world")
    tiny_folder(folder / "model", layers=1)
    lines = [{"prompt": f"Say number {i}."} for i in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def child(world: Path, out: Path, url: str, settings: dict[str, Any]) -> None:
    """What a process runs: begin, or go on where a run has begun. Its cache is its run's own."""
    torch.set_num_threads(1)
    os.environ["PREFTUNE_CACHE"] = str(out.with_name(f"{out.name}-cache"))
    if (out / "config.json").exists():
        api.resume(out, progress=False)
        return
    given = {"rounds": 2, "batch": 3, "lr": 1e-3, "samples": 0, "max_response": 8, "progress": False, **settings}
    judge = f"endpoint,url={url},model=m,concurrency={AT_ONCE}"
    api.train(str(world / "model"), given.pop("method"), str(world / "prompts.jsonl"), judge=judge, out=out, **given)


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTS, "test_killed_round"])
    started: list[Any] = []

    def begin(*arguments: Any) -> Any:
        process = context.Process(target=child, args=arguments)
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


def opinion(body: dict[str, Any], n: int) -> Any:
    """A judge that takes its time and has the same opinion of the same two texts, whichever it is."""
    time.sleep(0.005)
    letter = "AB"[hashlib.blake2b(body["messages"][0]["content"].encode()).digest()[0] % 2]
    return said(letter)


def finish(process: Any) -> None:
    process.join(120)
    assert process.exitcode == 0


def kill_after(process: Any, server: Chat, requests: int) -> None:
    """SIGKILL while that many requests have come and more are on their way."""
    while process.is_alive() and len(server.bodies) < requests:
        time.sleep(0.0005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("name", ["sppo", pytest.param("dno", marks=pytest.mark.slow)])
def test_killed_while_the_judge_is_asked_a_run_ends_the_same_and_only_calls_in_flight_repeat(
    name: str, world: Path, start: Callable[..., Any], tmp_path: Path
) -> None:
    """Killed three times: early and late in the first round, and in the second."""
    with chat(opinion) as server:
        finish(start(world, tmp_path / "undisturbed", server.url, RUNS[name]))
        whole = Counter(server.shown())
        assert whole.total() == len(whole) > 40  # every question once, in two rounds
        last = json.loads((tmp_path / "undisturbed" / "metrics.jsonl").read_text().splitlines()[-1])
        assert (last["judge_tokens_in"], last["judge_tokens_out"]) == (100 * len(whole), 2 * len(whole))
        server.bodies.clear()
        moments = [5, whole.total() // 3, whole.total() * 3 // 4]
        for requests in moments:
            kill_after(start(world, tmp_path / "run", server.url, RUNS[name]), server, requests)
        finish(start(world, tmp_path / "run", server.url, RUNS[name]))
        asked = Counter(server.shown())
    assert asked.keys() == whole.keys()
    assert asked.total() - len(asked) <= AT_ONCE * len(moments)
    mine, theirs = weights(tmp_path / "run"), weights(tmp_path / "undisturbed")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[part], theirs[part]) for part in mine)
    for number in (0, 1):
        files = [tmp_path / run / "rounds" / f"round-{number:04d}.pt" for run in ("run", "undisturbed")]
        assert files[0].read_bytes() == files[1].read_bytes()
