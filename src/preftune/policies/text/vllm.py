"""Samples written by vLLM: a server on its own that is handed the policy's weights whenever they have moved.

It is started here, or is one that runs at an address. Weights travel by a folder, in the format in which `save` writes a result: an adapter
becomes one more adapter of the server, a whole model is read over the one it has. Responses come back as token ids with their
log-probabilities, and the first of every sample are scored here as well: how far the two engines are apart stands in the log.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ... import processes
from ...client import Client, each, is_address
from ...types import Key, Metrics, PreftuneError, Rows
from .cache import CHECKED
from .generate import checked
from .tokens import TextResponses, Tokens

if TYPE_CHECKING:
    from .model import TextPolicy

KEY = "VLLM_API_KEY"  #    of the environment: what vLLM itself reads
TOGETHER = 64  #           prompts under way
PATIENCE = 600.0  #        seconds for a server to start, and for one request
FAR = 0.5  #               nats a token, in the mean over these, beyond which the server has other weights
ADAPTERS = 4  #            that the server keeps: the policy's, a half step's, an opponent's
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
# a shell that ends the server when this process, at the other end of its standard input, is gone in whatever way
GUARD = 'exec 3<&0; "$@" 3<&- & server=$!; (cat <&3 >/dev/null; kill $server) & wait $server; code=$?; kill $!; exit $code'


class Vllm:
    """A server and what it holds. `where`: an address, "vllm", or a Python interpreter that has vLLM; `arguments` are for starting it."""

    def __init__(self, where: str, base: str, dtype: torch.dtype, arguments: str = "") -> None:
        self.where, self.base, self.dtype, self.arguments = where, base, dtype, arguments
        self.client: Client | None = None
        self.folder = Path()  #                by which weights travel
        self.handed = 0  #                     how often
        self.name = ""  #                      of the base model, at the server
        self.cpu = False  #                    whether the server computes on one
        self.held: str | None = None  #        fingerprint of the whole model that the server was handed
        self.adapters: dict[str, Path] = {}  # name at the server -> folder, oldest first
        self.gap: Metrics = {}  #              of the last sample

    def sample(
        self,
        policy: TextPolicy,
        model: str,
        rows: Rows,
        n: int,
        key: Key,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: Sequence[str] = (),
        max_new_tokens: int = 64,
    ) -> TextResponses:
        """As `generate.generate`, from what `hold` called `model`; the log of the kept mass is not known.

        The seed of sample s of a row depends on (key, row id, s) only; equal seeds give equal samples as far as vLLM's rounding allows,
        which depends on what is computed together. Where min_p comes with top_k or top_p, vLLM lets it act first.
        """
        prompts = checked(policy, rows, n, temperature, top_k, top_p, min_p, stop, max_new_tokens)
        copies = n if temperature == 0 else 1  # of the one response that greedy decoding has: vLLM refuses to write it twice
        seeds = (key.fold("vllm").uniform(rows.id, 1)[:, 0] * 2**53).astype(int).tolist()
        settings = {
            "model": model, "n": n // copies, "max_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
            "min_p": min_p, "repetition_penalty": 1.0, "stop": list(stop), "stop_token_ids": sorted(policy.stops), "logprobs": 0,
            "return_token_ids": True, "skip_special_tokens": False,
        }  # fmt: skip

        def ask(at: int, halt: threading.Event) -> list[tuple[Tokens, tuple[float, ...]]]:
            body = {**settings, "prompt": list(prompts[at]), "seed": seeds[at]}
            return [written(choice, self.asked().url) for choice in chosen(self.asked().post("/v1/completions", body, halt), n // copies)]

        found: list[list[tuple[Tokens, tuple[float, ...]]]] = [[] for _ in prompts]
        for at, some in each(ask, range(len(prompts)), TOGETHER):
            found[at] = some * copies
        policy.network.drawn += sum(len(tokens) for row in found for tokens, _ in row)
        self.compare(policy, [(prompt, *one) for prompt, row in zip(prompts, found, strict=True) for one in row][:CHECKED])
        tokens, logp = (tuple(tuple(one[i] for one in row) for row in found) for i in (0, 1))
        return TextResponses(tokens, logp, policy.tokenizer)  # type: ignore[arg-type]

    def compare(self, policy: TextPolicy, some: Sequence[tuple[Tokens, Tokens, tuple[float, ...]]]) -> None:
        """Score some of the responses here; `gap` is how far the server's log-probs are from these."""
        if not some:
            return
        ours = torch.cat([x.cpu() for x in policy.token_logps([(prompt, tokens) for prompt, tokens, _ in some])])
        far = (ours - torch.tensor([x for *_, logp in some for x in logp])).abs()
        mean = float(far.mean())
        self.gap = {"sampler_gap": mean, "sampler_gap_max": float(far.max())}
        if not mean <= FAR:
            raise PreftuneError(
                f"{self.asked().url}: its log-probs differ by {mean:.2g} nats a token from the policy's, needed at most {FAR:g}; "
                f"does it serve {self.base}, in a precision like {self.dtype}?"
            )

    # --- the weights ------------------------------------------------------------------------------------------------

    def hold(self, policy: TextPolicy) -> str:
        """See to it that the server has this policy's weights; what it calls them. All processes of a run call it."""
        module, mark = policy.network.module, policy.fingerprint()
        config = getattr(module, "peft_config", None)
        rank = max(rank_of(one) for one in config.values()) if config else 0
        self.connect(policy, rank)
        if config and not policy.adapter:
            return self.name
        if not config:
            if mark != self.held:
                self.replace(policy)
                self.held = mark
            return self.name
        name = f"preftune-{mark}"
        if name not in self.adapters:
            self.add(policy, name)
        self.adapters[name] = self.adapters.pop(name)
        return name

    def add(self, policy: TextPolicy, name: str) -> None:
        """Hand over an adapter, and take the oldest away."""
        folder = self.write(policy)
        processes.once(lambda: self.asked().send("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}))
        self.adapters[name] = folder
        while len(self.adapters) > ADAPTERS:
            old = next(iter(self.adapters))
            processes.once(lambda old=old: self.asked().send("/v1/unload_lora_adapter", {"lora_name": old}))  # type: ignore[misc]
            shutil.rmtree(self.adapters.pop(old), ignore_errors=True)

    def replace(self, policy: TextPolicy) -> None:
        """Hand over a whole model; what the server had computed of prompts is void then."""
        embedding = policy.network.lm.get_input_embeddings().weight
        tied = policy.network.lm.get_output_embeddings().weight is embedding
        if self.cpu and tied and embedding.requires_grad:
            raise PreftuneError(
                "a whole model whose embeddings are tied to its output layer was to be handed to vLLM on a CPU, which goes on with the old "
                "output layer (vLLM 0.32); needed a GPU, or weights that it takes: train=lora, or the last layers (train=4)"
            )
        folder = self.write(policy)

        def swap() -> None:
            self.asked().send("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
            self.asked().send("/reset_prefix_cache", {})
            shutil.rmtree(folder, ignore_errors=True)

        processes.once(swap)

    def write(self, policy: TextPolicy) -> Path:
        """The policy as a folder that the server reads."""
        from .model import save

        self.handed += 1
        return save(policy, self.folder / str(self.handed), "")

    # --- the server -------------------------------------------------------------------------------------------------

    def asked(self) -> Client:
        """The server's address with what is to be known of requests."""
        assert self.client is not None, "`hold` connects"
        return self.client

    def connect(self, policy: TextPolicy, rank: int) -> None:
        """Once: start the server where none runs, and look at what it is."""
        if self.client is not None:
            return
        self.folder = Path(processes.once(lambda: tempfile.mkdtemp(prefix="preftune-vllm-")))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        url = self.where if is_address(self.where) else processes.once(lambda: self.start(rank))
        self.client = Client(url, key_env=KEY, timeout=PATIENCE)
        told = processes.once(lambda: about(self.asked()))
        self.name, self.cpu = told["name"], told["device"] == "cpu"
        if told["logprobs"] != "raw_logprobs":
            raise PreftuneError(f"{url} gives {told['logprobs']}, needed raw_logprobs; start it with --logprobs-mode raw_logprobs")
        if rank and not told["rank"] >= rank:
            raise PreftuneError(
                f"{url} takes adapters up to rank {told['rank']}, needed {rank}; start it with --enable-lora --max-lora-rank {room(rank)}"
            )

    def start(self, rank: int) -> str:
        """The address of a server that is started here, on this machine alone, and ends with this sampler or this process."""
        python = sys.executable if self.where == "vllm" else self.where
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        lora = ("--enable-lora", "--max-lora-rank", str(room(rank))) if rank else ()
        command = [
            *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", self.base, "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", str(self.dtype).removeprefix("torch."), "--generation-config", "vllm", *lora, *self.arguments.split()),
        ]
        said = self.folder / "vllm.log"
        with said.open("wb") as out:
            server = subprocess.Popen(
                ["sh", "-c", GUARD, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
                start_new_session=True,  # Ctrl-C is for the run, which still has to finish a step
            )
        weakref.finalize(self, end, server)
        deadline = time.monotonic() + PATIENCE
        while server.poll() is None and time.monotonic() < deadline:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}"
            time.sleep(0.2)
        how = "ended" if server.poll() is not None else "does not answer"
        last = " / ".join(said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
        raise PreftuneError(
            f"vLLM, started by {python}, {how}: {last}; needed vLLM 0.32 or later: install it (docs/vllm.md), name a Python that has it, "
            "sampler=/path/to/python, or give the address of a server"
        )


def about(client: Client) -> dict[str, Any]:
    """What a server says of itself."""
    try:
        name = client.get("/v1/models")["data"][0]["id"]
        config = client.get("/server_info?config_format=json")["vllm_config"]
        lora = config.get("lora_config") or {}
        return {
            "name": name, "device": (config.get("device_config") or {}).get("device_type"),
            "logprobs": config["model_config"]["logprobs_mode"], "rank": int(lora.get("max_lora_rank") or 0),
        }  # fmt: skip
    except (PreftuneError, KeyError, IndexError, TypeError) as error:
        raise PreftuneError(
            f"{client.url} does not answer as a server of vLLM that takes weights ({error}), needed one that was started with "
            "VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment; see docs/vllm.md"
        ) from None


def rank_of(config: Any) -> int:
    """The largest rank of an adapter's matrices."""
    if config.use_dora:
        raise PreftuneError("an adapter with magnitudes (train=dora) was to be handed to vLLM, which takes none; needed train=lora")
    return max([config.r, *(config.rank_pattern or {}).values()])


def room(rank: int) -> int:
    """The least of vLLM's sizes that an adapter fits into."""
    return next((size for size in RANKS if size >= rank), rank)


def chosen(answer: Any, n: int) -> list[Any]:
    """The n choices of an answer, in their order."""
    choices = sorted(answer["choices"], key=lambda choice: choice["index"]) if isinstance(answer, dict) and "choices" in answer else []
    if len(choices) != n:
        raise PreftuneError(f"the server answered {str(answer)[:120]}, needed {n} choices; is it vLLM 0.32 or later?")
    return choices


def written(choice: Any, url: str) -> tuple[Tokens, tuple[float, ...]]:
    """Token ids and their log-probs."""
    tokens, logp = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if not tokens or not logp or len(tokens) != len(logp) or any(x is None for x in logp):
        raise PreftuneError(f"{url} gave no token ids with log-probs: {str(choice)[:120]}, needed both; is it vLLM 0.32 or later?")
    return tuple(tokens), tuple(map(float, logp))


def end(server: subprocess.Popen[bytes]) -> None:
    """Let the server go."""
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(timeout=20)
    except subprocess.TimeoutExpired:
        server.kill()
