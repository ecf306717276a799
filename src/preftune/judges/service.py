"""One judge for several trainers: a small HTTP service that answers questions in texts, and the judge that asks it.

    GET  /health   {"judge": name, "identity": ..., "kept": ..., "answers": ["prefer", "score"], "limit": bytes}
    POST /prefer   {"prompts": [B], "responses": [B][2]} -> {"identity": ..., "answers": [B]}   P(the first beats the second)
    POST /score    {"prompts": [B], "responses": [B][1]} -> the same                            its score, higher is better

A prompt is a text or a list of messages {"role", "content"}. null is "no answer". Errors are {"error": words}. Every request carries
"Authorization: Bearer TOKEN" where the service has a token. Nothing is encrypted: between machines put it behind a tunnel or in a network
of your own.
"""

from __future__ import annotations

import hmac
import json
import math
import os
import select
import socket
import socketserver
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from torch import Tensor

from ..client import Client, each, is_loopback
from ..data.columns import Record
from ..policies.text.characters import Characters
from ..policies.text.tokens import Said, encode
from ..types import Judge, Key, PreftuneError
from .asking import Answer, Asker, Comparing, Grading, Question
from .rubric import digest

TOKEN_ENV = "PREFTUNE_JUDGE_TOKEN"
PORT = 8600
LIMIT = 8 << 20  #  bytes of a request
MOST = 4096  #      questions of a request
WAITING = 64  #     requests that may wait for the judge; further ones are asked to come again
IDLE = 60.0  #      seconds without a byte after which a connection is closed
CHUNK = 32  #       questions that the asking judge sends at once
Kind = Literal["prefer", "score"]
SHOWN: dict[Kind, int] = {"prefer": 2, "score": 1}


# --- what a judge's answers depend on ---------------------------------------------------------------------------------


def identity_of(judge: Any) -> str | None:
    """All that the answers depend on, in words: what it calls its `identity`, or of our own judges what they are made of; None where
    that is not known."""
    own = getattr(judge, "identity", None)
    if isinstance(own, str):
        return own
    if isinstance(judge, Asker):
        return judge.answerer.identity
    if isinstance(judge, Tensor):
        return str(judge.tolist())
    if isinstance(judge, str | int | float | None):
        return repr(judge)
    if isinstance(judge, list | tuple):
        return joined(list(judge))
    if callable(judge):  # a question that the judge took over from one of its parts
        return ""
    inside = vars(judge) if type(judge).__module__.startswith("preftune.judges.") else None
    parts = None if inside is None else joined(list(inside.values()))
    return None if parts is None else f"{type(judge).__name__} {parts}"


def joined(parts: Sequence[Any]) -> str | None:
    """The identities of several parts; None where one is not known."""
    found = [identity_of(part) for part in parts]
    return None if any(part is None for part in found) else f"({'; '.join(map(str, found))})"


# --- the service ------------------------------------------------------------------------------------------------------


class Trouble(Exception):
    """A request that is not served: the status and what to say."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class Service(ThreadingHTTPServer):
    """Serves a judge, one request after the other; what the judge keeps on disk is asked for once by all trainers together."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, judge: Judge, name: str, host: str, port: int, token: str | None, limit: int = LIMIT) -> None:
        self.judge, self.token, self.limit = judge, token, limit
        self.turn, self.seats = threading.Lock(), threading.BoundedSemaphore(WAITING)
        self.tokenizer = Characters()
        known = identity_of(judge)
        self.identity = f"{name}" if known is None else f"{type(judge).__name__} {digest(known)}"
        kept = getattr(getattr(getattr(judge, "asker", None), "answerer", None), "kept", True)
        answers = [kind for kind in SHOWN if hasattr(judge, kind)]
        self.about: dict[str, Any] = {
            "judge": name,
            "identity": self.identity,
            "kept": known is not None and kept,
            "answers": answers,
            "limit": limit,
        }
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        """Without looking up the machine's name, which may take long and is not needed."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is nobody's error."""

    def answers(self, kind: Kind, questions: Sequence[Question]) -> list[float]:
        """The judge's answers; a row's draws derive from the texts, so equal questions have equal answers."""
        records = [Record(id=q.key("").hex(), prompt=given(q.prompt), responses=list(q.responses)) for q in questions]
        rows, _ = encode(records, self.tokenizer)
        a, key = rows.response.take(columns=[0]), Key.of(0)
        if kind == "score":
            return self.judge.score(rows, a, key).flatten().tolist()  # type: ignore[attr-defined, no-any-return]
        return self.judge.prefer(rows, a, rows.response.take(columns=[1]), key).flatten().tolist()  # type: ignore[no-any-return]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Service
    timeout = IDLE
    error_content_type, error_message_format = "application/json", '{"error": "%(message)s"}'  # of what is no sound HTTP

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: prompts and responses are not for a terminal."""

    def do_GET(self) -> None:
        """/health."""
        self.unread = 0
        self.serve(self.health)

    def do_POST(self) -> None:
        """/prefer and /score."""
        length = self.headers.get("Content-Length", "")
        self.unread = int(length) if length.isdigit() else 0  # bytes of the request's body that were not read yet
        self.serve(self.judged)

    def serve(self, what: Any) -> None:
        """Answer, or say in JSON why not."""
        try:
            self.check_token()
            status, told = 200, what()
        except Trouble as error:
            status, told = error.status, {"error": str(error)}
            self.discard()
            self.close_connection = True
        except PreftuneError as error:  # the judge's own: its endpoint is down after all retries, its model cannot read this
            status, told = 422, {"error": str(error)}
        except Exception as error:
            status, told = 500, {"error": f"{type(error).__name__}: {error}"}
        content = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)

    def check_token(self) -> None:
        """The right token, compared in constant time."""
        if self.server.token is None:
            return
        sent = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(sent, f"Bearer {self.server.token}".encode()):
            raise Trouble(401, "the token is missing or wrong")

    def health(self) -> dict[str, Any]:
        """Who answers here."""
        if self.path != "/health":
            raise Trouble(404, f"there is no {self.path[:80]} here, only /health, /prefer and /score")
        return self.server.about

    def judged(self) -> dict[str, Any]:
        """The answers to the questions of a request."""
        kind = self.path.removeprefix("/")
        if kind not in SHOWN:
            raise Trouble(404, f"there is no {self.path[:80]} here, only /health, /prefer and /score")
        if kind not in self.server.about["answers"]:
            raise Trouble(404, f"this judge has no {kind}, only {', '.join(self.server.about['answers'])}")
        questions = read_questions(self.body(), SHOWN[kind])
        if not self.server.seats.acquire(blocking=False):
            raise Trouble(503, f"{WAITING} requests wait for the judge already")
        try:
            with self.server.turn:
                found = [] if self.gone() else self.server.answers(kind, questions)
        finally:
            self.server.seats.release()
        return {"identity": self.server.identity, "answers": [value if math.isfinite(value) else None for value in found]}

    def body(self) -> Any:
        """The request's JSON."""
        length = self.unread
        if not length:
            raise Trouble(411, "a request needs a body and its Content-Length")
        if length > self.server.limit:
            raise Trouble(413, f"the request has {length} bytes, more than {self.server.limit}")
        if self.headers.get_content_type() != "application/json":  # also what keeps a page in a browser from asking here
            raise Trouble(415, f"the request is {self.headers.get_content_type()}, not application/json")
        content = self.rfile.read(length)
        self.unread = 0
        if len(content) < length:
            raise Trouble(400, f"the request has {len(content)} bytes of {length}")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise Trouble(400, "the request is no JSON") from None

    def discard(self) -> None:
        """Read the rest of a request that is not served, up to some size: who is still sending hears no answer."""
        left = min(self.unread, 16 * self.server.limit)
        while left > 0 and (part := self.rfile.read(min(left, 1 << 16))):
            left -= len(part)

    def gone(self) -> bool:
        """Whether whoever asked has hung up while waiting for the judge."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)


def read_questions(body: Any, shown: int) -> list[Question]:
    """The questions of a request, checked."""
    if not isinstance(body, dict) or not isinstance(body.get("prompts"), list) or not isinstance(body.get("responses"), list):
        raise Trouble(400, "the request has no lists prompts and responses")
    prompts, responses = body["prompts"], body["responses"]
    if len(prompts) != len(responses) or not 1 <= len(prompts) <= MOST:
        raise Trouble(400, f"the request has {len(prompts)} prompts and {len(responses)} lists of responses, not 1 to {MOST} of both alike")
    for row in responses:
        if not isinstance(row, list) or len(row) != shown or not all(isinstance(text, str) for text in row):
            raise Trouble(400, f"responses holds {str(row)[:60]}, not a list of {shown} {'text' if shown == 1 else 'texts'}")
    return [Question(read_prompt(prompt), tuple(row)) for prompt, row in zip(prompts, responses, strict=True)]


def read_prompt(prompt: Any) -> Said:
    """A text, or messages."""
    if isinstance(prompt, str):
        return prompt
    sound = isinstance(prompt, list) and bool(prompt) and all(isinstance(m, dict) and m.keys() == {"role", "content"} for m in prompt)
    if not sound or not all(isinstance(m["role"], str) and isinstance(m["content"], str) for m in prompt):
        raise Trouble(400, f"prompts holds {str(prompt)[:60]}, neither a text nor a list of messages with role and content")
    return tuple((m["role"], m["content"]) for m in prompt)


def given(prompt: Said) -> str | list[dict[str, str]]:
    """A prompt as JSON has it."""
    return prompt if isinstance(prompt, str) else [{"role": role, "content": content} for role, content in prompt]


def service(judge: Judge, name: str, host: str = "127.0.0.1", port: int = PORT, token_env: str = TOKEN_ENV, limit: int = LIMIT) -> Service:
    """A service that listens, with the token of an environment variable; `serve_forever` runs it. Port 0 takes a free one.

    Without a token it serves this machine alone.
    """
    token = os.environ.get(token_env, "").strip() or None
    if token is None and not is_loopback(host):
        raise PreftuneError(
            f"{token_env} is not set and host is {host}, where others can ask, needed a token; set the variable to a long random text"
        )
    if not 0 <= port <= 65535:
        raise PreftuneError(f"port is {port}, needed a number up to 65535; {PORT} is usual")
    try:
        return Service(judge, name, host, port, token, limit)
    except OSError as error:
        raise PreftuneError(
            f"{host}:{port} cannot be listened to ({error.strerror or error}), needed a free port; choose another"
        ) from None


# --- the judge that asks it -------------------------------------------------------------------------------------------


class Remote:
    """An answerer that sends questions of one kind to a service, some at once."""

    def __init__(self, client: Client, kind: Kind, about: dict[str, Any], concurrency: int) -> None:
        self.client, self.kind, self.concurrency = client, kind, concurrency
        self.limit = int(about["limit"])
        self.identity, self.kept = str(about["identity"]), bool(about["kept"])

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """One number for each question, as the service's answers come."""
        parts = list(self.parts(questions))

        def ask(part: range, stop: threading.Event) -> list[float | None]:
            return self.ask([questions[i] for i in part], stop)

        for at, values in each(ask, parts, self.concurrency):
            for i, value in zip(parts[at], values, strict=True):
                if value is not None:
                    yield i, (value,)

    def parts(self, questions: Sequence[Question]) -> Iterator[range]:
        """Consecutive questions that one request holds."""
        start, size = 0, 0
        for i, question in enumerate(questions):
            bytes_ = len(json.dumps([given(question.prompt), question.responses])) + 64
            if bytes_ > self.limit:
                raise PreftuneError(
                    f"{self.client.url} takes {self.limit} bytes in a request, but one question has {bytes_}, needed a shorter one; "
                    "shorten the responses (max_response) or leave that prompt out"
                )
            if i > start and (i - start == CHUNK or size + bytes_ > self.limit):
                yield range(start, i)
                start, size = i, 0
            size += bytes_
        if len(questions) > start:
            yield range(start, len(questions))

    def ask(self, questions: Sequence[Question], stop: threading.Event) -> list[float | None]:
        """One request."""
        body = {"prompts": [given(q.prompt) for q in questions], "responses": [list(q.responses) for q in questions]}
        found = self.client.post(f"/{self.kind}", body, stop)
        values = found.get("answers") if isinstance(found, dict) else None
        if not isinstance(values, list) or len(values) != len(questions) or not all(fit(value, self.kind) for value in values):
            raise PreftuneError(f"{self.client.url} answered {str(found)[:120]}, needed {len(questions)} numbers; is it a judge's service?")
        if found.get("identity") != self.identity:
            raise PreftuneError(
                f"{self.client.url} now serves {found.get('identity')}, needed the judge that this run began with, {self.identity}; "
                "serve that one again, or begin anew"
            )
        return values


def fit(value: Any, kind: Kind) -> bool:
    """Whether a value can be an answer: null, a score, or a probability."""
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and (kind == "score" or 0 <= value <= 1)


class Served:
    """The judge at an address; it has the questions that the served one has."""

    def __init__(self, client: Client, about: dict[str, Any], concurrency: int) -> None:
        self.client = client
        self.identity = str(about["identity"]) if about["kept"] else None
        comparing, grading = Comparing(Remote(client, "prefer", about, concurrency)), Grading(Remote(client, "score", about, concurrency))
        self.prefer, self.members = comparing.prefer, (comparing, grading)
        if "score" in about["answers"]:
            self.score = grading.score


def remote(url: str, token_env: str = TOKEN_ENV, timeout: float = 600.0, retries: int = 5, concurrency: int = 2) -> Served:
    """The judge that `preftune judge serve` serves at an address.

    token_env  the environment variable with its token; timeout: seconds a request may take, also while others are before it
    retries    after failures that may pass; concurrency: requests at once
    """
    if concurrency < 1:
        raise PreftuneError(f"concurrency is {concurrency}, needed 1 or more requests at once; 2 is usual")
    client = Client(url, key_env=token_env, timeout=timeout, retries=retries)
    about = client.get("/health")
    if (
        not isinstance(about, dict)
        or not {"judge", "identity", "kept", "answers", "limit"} <= about.keys()
        or "prefer" not in about["answers"]
    ):
        raise PreftuneError(f"{url} answered {str(about)[:120]}, needed a judge's service; start one with `preftune judge serve JUDGE`")
    return Served(client, about, concurrency)
