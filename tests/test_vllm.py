"""Samples by vLLM: weights arrive and are in force, seeds are the rows', log-probs are compared.

With a server that speaks its protocol, and, where PREFTUNE_VLLM names a Python that has vLLM, with vLLM itself (`-m slow`).
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import preftune.api as api
from preftune.policies.text import vllm
from preftune.policies.text.model import load
from preftune.types import Key, PreftuneError, Rows
from text_fixtures import tiny_folder
from vllm_server import serving

REAL = os.environ.get("PREFTUNE_VLLM")


def asked(count: int = 6) -> Rows:
    return Rows(id=tuple(f"r{i}" for i in range(count)), prompt=[(5, 6, 7 + i, 30) for i in range(count)])


def moved(policy: Any, scale: float = 0.1, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))


def worst(policy: Any, rows: Rows, found: Any) -> float:
    """How far returned log-probs are from scored ones."""
    scored = policy.score_tokens(rows.replace(response=found))
    each = zip((x for row in found.logp for x in row), (x for row in scored for x in row), strict=True)
    return max(float((torch.tensor(a) - b.detach()).abs().max()) for a, b in each)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("vllm") / "model", layers=2)


def follows(policy: Any) -> Iterator[Any]:
    """The policy before its weights move, after, and the copy of before again: each is what the server writes with."""
    rows, key = asked(), Key.of(3)
    start = policy.sample(rows, 2, key, max_new_tokens=8)
    assert worst(policy, rows, start) < 5e-4
    again = policy.sample(rows.take([4, 1]), 3, key, max_new_tokens=8)
    assert [row[:2] for row in again.tokens] == [start.tokens[4], start.tokens[1]]
    yield start
    before = policy.copy()
    moved(policy)
    after = policy.sample(rows, 2, key, max_new_tokens=8)
    assert worst(policy, rows, after) < 5e-4 < worst(before, rows, after)
    yield after
    back = before.sample(rows, 2, key, max_new_tokens=8)
    assert back.tokens == start.tokens and worst(before, rows, back) < 5e-4


@pytest.mark.parametrize("train", ["lora", 1, "full"])
def test_the_server_writes_with_the_policys_weights(model: Path, train: Any) -> None:
    """Adapters, last layers and whole models, and frozen copies of them; nothing travels while nothing has moved."""
    with serving(model) as server:
        policy = load(model, device="cpu", train=train, lora_r=4, sampler=server.url)
        carried = lambda: len(server.sent("/v1/load_lora_adapter" if train == "lora" else "/collective_rpc"))
        counts = [carried() for _ in follows(policy)] + [carried()]
        assert counts == [1, 2, 2 if train == "lora" else 3]  # of adapters the older one is still there
        assert len(server.sent("/reset_prefix_cache")) == len(server.sent("/collective_rpc"))
        assert {"sampler_gap", "sampler_gap_max"} == policy.network.sampler.gap.keys()


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="PREFTUNE_VLLM names no Python that has vLLM")
@pytest.mark.parametrize("train", ["lora", 1, "full"])
def test_vllm_itself(tmp_path: Path, train: Any) -> None:
    """The same with vLLM, which has to write the responses that it wrote before in whatever company."""
    folder = tiny_folder(tmp_path / "model", width=64, tied=train != "full")  # heads of 32, the least that vLLM has on a CPU
    options = "--enforce-eager --max-model-len 64"
    list(follows(load(folder, device="cpu", train=train, lora_r=4, sampler=REAL, sampler_args=options)))


def test_an_adapter_that_is_switched_off_is_the_base_model(model: Path) -> None:
    with serving(model) as server:
        policy = load(model, device="cpu", train="lora", lora_r=4, sampler=server.url)
        reference = policy.reference()
        moved(policy, 0.3)
        rows, key = asked(), Key.of(0)
        drawn, still = (p.sample(rows, 1, key, max_new_tokens=6) for p in (policy, reference))
        assert worst(policy, rows, drawn) < 5e-4 and worst(reference, rows, still) < 5e-4 < worst(policy, rows, still)
        assert [body["model"] == str(model) for body in server.sent("/v1/completions")] == [False] * 6 + [True] * 6


def test_the_server_keeps_few_adapters(model: Path) -> None:
    with serving(model) as server:
        policy = load(model, device="cpu", train="lora", lora_r=4, sampler=server.url)
        for step in range(vllm.ADAPTERS + 2):
            moved(policy, 0.01, step)
            policy.sample(asked(2), 1, Key.of(0), max_new_tokens=2)
        assert len(server.models) == 1 + vllm.ADAPTERS and len(server.sent("/v1/unload_lora_adapter")) == 2
        assert all(folder.is_dir() for folder in policy.network.sampler.adapters.values())


def test_decoding_means_what_it_means_here(model: Path) -> None:
    """Greedy decoding, of which there is one response however many are asked for, and stops, as the loop of this package has them."""
    with serving(model) as server:
        theirs, ours = load(model, device="cpu", train=1, sampler=server.url), load(model, device="cpu", train=1)
        greedy = [p.sample(asked(), 3, Key.of(0), temperature=0, max_new_tokens=8).tokens for p in (theirs, ours)]
        assert greedy[0] == greedy[1]
        policy = theirs.sample(asked(1), 1, Key.of(0), top_k=5, top_p=0.9, min_p=0.1, stop=("e",), max_new_tokens=6)
        assert policy.kept is None  # vLLM does not say
        [body] = server.sent("/v1/completions")[-1:]
        assert (body["top_k"], body["top_p"], body["min_p"], body["stop"]) == (5, 0.9, 0.1, ["e"])
        assert body["stop_token_ids"] == sorted(theirs.stops) and body["repetition_penalty"] == 1.0


def test_a_run_tells_how_far_the_two_engines_are_apart(model: Path, tmp_path: Path) -> None:
    """Self-play against a half-step policy, through the ordinary loop."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(4)))
    with serving(model) as server:
        load_as = {"train": "lora", "lora_r": 4, "device": "cpu", "sampler": server.url}
        run = api.train(
            str(model), "egpo", str(tmp_path / "prompts.jsonl"), judge="length", out=tmp_path / "run", load=load_as, steps=2,
            batch=2, lr=1e-3, max_response=4, samples=0, progress=False,
        )  # fmt: skip
        gaps = [line["sampler_gap"] for line in run.history if "sampler_gap" in line]
        assert len(gaps) == 2 and max(gaps) < 1e-4
        assert len(server.sent("/v1/load_lora_adapter")) >= 3  # the start, half steps, the first step


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes that meet over gloo")
def test_two_processes_share_a_server(model: Path, tmp_path: Path) -> None:
    """The weights of one process, and weights are handed over by one of them."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(4)))
    code = (
        "import sys, preftune.api as api\n"
        "load = {'train': 'lora', 'lora_r': 4, 'device': 'cpu', 'sampler': sys.argv[1]}\n"
        "api.train(sys.argv[2], 'egpo', sys.argv[3], judge='length', out=sys.argv[4], load=load, steps=2, batch=4, lr=1e-3,"
        " max_response=4, samples=0, progress=False)\n"
    )
    carried = []
    for count in (1, 2):
        with serving(model) as server, socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
            free.close()
            command = [sys.executable, "-c", code, server.url, str(model), str(tmp_path / "prompts.jsonl"), str(tmp_path / f"run{count}")]
            told = [{**meet, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {} for rank in range(count)]
            runs = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **one}) for one in told]
            assert [run.wait(timeout=120) for run in runs] == [0] * count
            carried.append(len(server.sent("/v1/load_lora_adapter")))
    assert carried[0] == carried[1]
    alone, both = (load_file(tmp_path / f"run{count}" / "model" / "adapter_model.safetensors") for count in (1, 2))
    assert all(torch.allclose(alone[name], both[name], atol=1e-5) for name in alone)


def test_other_weights_than_the_policys_are_found_out(model: Path, tmp_path: Path) -> None:
    """A server that goes on with old weights, or has another model, is an error once it shows, and a number in the log before."""
    with serving(model, deaf=True) as server:
        policy = load(model, device="cpu", train="full", sampler=server.url)
        policy.sample(asked(), 1, Key.of(0), max_new_tokens=4)
        assert policy.network.sampler.gap["sampler_gap"] < 1e-4
        moved(policy, 0.01)
        policy.sample(asked(), 1, Key.of(0), max_new_tokens=4)
        assert policy.network.sampler.gap["sampler_gap"] > 1e-3
        moved(policy, 1.0)
        with pytest.raises(PreftuneError, match="nats a token from the policy's, needed at most 0.5; does it serve"):
            policy.sample(asked(), 1, Key.of(0), max_new_tokens=4)


def test_what_does_not_suit_is_refused(model: Path) -> None:
    def sample(server: Any, **options: Any) -> None:
        load(model, device="cpu", sampler=server.url, **options).sample(asked(2), 1, Key.of(0), max_new_tokens=2)

    with serving(model, device="cpu") as server:
        with pytest.raises(PreftuneError, match="goes on with the old output layer.*train=lora"):
            sample(server)  # all weights, embeddings tied
        with pytest.raises(PreftuneError, match="which takes none; needed train=lora"):
            sample(server, train="dora")
        sample(server, train=1)
    with serving(model, rank=2) as server, pytest.raises(PreftuneError, match="up to rank 2, needed 4; start it with .* --max-lora-rank 8"):
        sample(server, train="lora", lora_r=4)
    with serving(model, logprobs="processed_logprobs") as server, pytest.raises(PreftuneError, match="needed raw_logprobs"):
        sample(server)
    with serving(model) as server:
        with pytest.raises(PreftuneError, match="maximum context length"):
            server.longest = 5
            sample(server, train=1)
        with pytest.raises(PreftuneError, match="needed a vLLM that is started here"):
            load(model, sampler=server.url, sampler_args="--max-model-len 64")
        server.get = lambda path: (404, {"detail": "Not Found"})  # type: ignore[method-assign]
        with pytest.raises(PreftuneError, match="does not answer as a server of vLLM that takes weights.*VLLM_SERVER_DEV_MODE=1"):
            sample(server)


# --- a server that is started here ------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """An interpreter whose vLLM is the server of these tests."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("vllm_server.py")} "$@"\n')
    script.chmod(0o755)
    return str(script)


def gone(process: int, seconds: float = 20) -> bool:
    """Whether a process ends in time."""
    for _ in range(int(seconds / 0.1)):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="vLLM is started through a POSIX shell")
def test_a_server_started_here_ends_with_a_run_that_is_killed(tmp_path: Path, stand_in: str) -> None:
    folder = tiny_folder(tmp_path / "model", layers=1)
    code = (
        "import sys, time\nfrom preftune.policies.text.model import load\nfrom preftune.types import Key, Rows\n"
        "policy = load(sys.argv[1], device='cpu', train='lora', sampler=sys.argv[2])\n"
        "print(policy.sample(Rows(id=('a',), prompt=[(5, 6)]), 1, Key.of(0), max_new_tokens=2).tokens, flush=True)\n"
        "time.sleep(100)\n"
    )
    command = [sys.executable, "-c", code, str(folder), stand_in]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as run:
        assert run.stdout is not None and run.stdout.readline().startswith("((")
        server = int((folder / "server").read_text())
        os.kill(server, 0)
        run.send_signal(signal.SIGKILL)
    assert gone(server)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="vLLM is started through a POSIX shell")
def test_a_server_started_here_ends_with_its_policy(tmp_path: Path, stand_in: str) -> None:
    """An arena opens one model after the other."""
    folder = tiny_folder(tmp_path / "model", layers=1)
    policy = load(folder, device="cpu", train="lora", sampler=stand_in)
    policy.sample(asked(1), 1, Key.of(0), max_new_tokens=2)
    server, scratch = int((folder / "server").read_text()), policy.network.sampler.folder
    assert (scratch / "vllm.log").is_file()
    del policy
    gc.collect()
    assert gone(server) and not scratch.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="vLLM is started through a POSIX shell")
def test_a_server_that_does_not_start_says_why(model: Path, stand_in: str) -> None:
    for sampler, options, said in ((sys.executable, "", "No module named 'vllm'"), (stand_in, "--refuse", "no memory for the cache")):
        policy = load(model, device="cpu", train="lora", sampler=sampler, sampler_args=options)
        with pytest.raises(PreftuneError, match=f"ended: .*{said}.*docs/vllm.md"):
            policy.sample(asked(1), 1, Key.of(0), max_new_tokens=2)
