"""A local server that speaks like a chat endpoint, and misbehaves when told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG, CUT = 0, -1  # instead of a status: no answer for half a minute; a connection closed in the middle of one


@dataclass
class Chat:
    """What was asked, when, and how it is answered: `reply` gives (status, body, headers) for a request's body and its number."""

    reply: Callable[[dict[str, Any], int], tuple[int, Any, dict[str, str]]]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def shown(self) -> list[str]:
        """The last message of every request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


def said(text: str, first: dict[str, float] | None = None) -> tuple[int, Any, dict[str, str]]:
    """An ordinary answer, with log-probabilities of its first token or without; it cost 100 tokens and 2."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if first is not None:
        top = [{"token": token, "logprob": value} for token, value in first.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 2}}, {}


def refusal(status: int, message: str = "no", **headers: str) -> tuple[int, Any, dict[str, str]]:
    """An error as OpenAI writes it."""
    return status, {"error": {"message": message}}, {name.replace("_", "-"): value for name, value in headers.items()}


@contextmanager
def chat(reply: Callable[[dict[str, Any], int], tuple[int, Any, dict[str, str]]]) -> Iterator[Chat]:
    """The server, while it runs."""
    state = Chat(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.bodies.append(body)
                state.headers.append(dict(self.headers))
                state.times.append(time.monotonic())
                number = len(state.bodies)
            status, told, headers = state.reply(body, number)
            if status == HANG:
                time.sleep(30)
                return
            content = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(200 if status == CUT else status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if status == CUT else content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with served(Handler) as url:
        state.url = f"{url}/v1"
        yield state


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on this machine, while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
