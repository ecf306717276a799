"""A server that speaks as much of vLLM's protocol as sampling uses, and computes with this package: where the weights that it was handed
are whole and in force, its log-probs are the policy's. `python vllm_server.py -m ... --model M --port P` is started as vLLM is."""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from chat_server import served
from preftune.policies.text.model import load
from preftune.types import Key, Rows


@dataclass
class Server:
    """What it serves and what it was sent. `deaf` leaves the weights as they are, whatever it is told."""

    base: str
    device: str = "cuda"
    logprobs: str = "raw_logprobs"
    rank: int = 16
    longest: int = 512
    deaf: bool = False
    url: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    models: dict[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, path: str) -> list[Any]:
        """The bodies that came to a path."""
        return [body for at, body in self.calls if at == path]

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in self.models]}
        if path == "/server_info?config_format=json":
            told = {"device_config": {"device_type": self.device}, "model_config": {"logprobs_mode": self.logprobs}}
            return 200, {"vllm_config": told | {"lora_config": {"max_lora_rank": self.rank} if self.rank else None}}
        return 404, {"detail": "Not Found"}

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        with self.lock:
            self.calls.append((path, body))
            if path == "/v1/completions":
                return self.complete(body)
            if path == "/v1/load_lora_adapter":
                self.models[body["lora_name"]] = load(body["lora_path"], device="cpu")
                return 200, "Success: added"
            if path == "/v1/unload_lora_adapter":
                del self.models[body["lora_name"]]
                return 200, "Success: removed"
            if path == "/collective_rpc" and body["method"] == "reload_weights":
                if not self.deaf:
                    self.models[self.base] = load(body["kwargs"]["weights_path"], device="cpu")
                return 200, {"results": [None]}
            if path == "/reset_prefix_cache":
                return 200, {"success": True}
        return 404, {"detail": "Not Found"}

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        policy, prompt = self.models[body["model"]], tuple(body["prompt"])
        if len(prompt) + body["max_tokens"] > self.longest:
            return 400, {"error": {"message": f"maximum context length is {self.longest} tokens"}}
        if body["temperature"] == 0 and body["n"] > 1:
            return 400, {"error": {"message": "n must be 1 when using greedy sampling"}}
        choices = []
        for s in range(body["n"]):  # as vLLM does: sample s has the seed + s
            rows = Rows(id=(f"{body['seed'] + s}",), prompt=[prompt])
            asked = {name: body[name] for name in ("temperature", "top_k", "top_p", "min_p", "stop")}
            found = policy.sample(rows, 1, Key.of(0), max_new_tokens=body["max_tokens"], **asked)
            told = {"token_logprobs": list(found.logp[0][0])}
            choices.append({"index": s, "token_ids": list(found.tokens[0][0]), "logprobs": told})
        return 200, {"choices": choices[::-1]}


def handler(state: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, told: Any) -> None:
            content = told.encode() if isinstance(told, str) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.answer(*state.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(*state.post(self.path, body))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def serving(base: str | Path, **settings: Any) -> Iterator[Server]:
    """The server, while it runs."""
    state = Server(str(base), **settings)
    state.models[state.base] = load(base, device="cpu")
    with served(handler(state)) as state.url:
        yield state


def main() -> None:
    """Serve as vLLM is asked to; says its process number in a file beside the model."""
    parser = argparse.ArgumentParser()
    for name in ("-m", "--model", "--host", "--dtype", "--generation-config", "--max-lora-rank"):
        parser.add_argument(name)
    parser.add_argument("--port", type=int)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--refuse", action="store_true", help="end with an error, as where there is no memory")
    options = parser.parse_args()
    if options.refuse:
        raise SystemExit("ValueError: no memory for the cache")
    torch.set_num_threads(1)
    Path(options.model, "server").write_text(str(os.getpid()))
    state = Server(options.model)
    state.models[state.base] = load(options.model, device="cpu")
    ThreadingHTTPServer((options.host, options.port), handler(state)).serve_forever()


if __name__ == "__main__":
    main()
