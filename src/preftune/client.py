"""JSON over HTTP, for judges and teachers that sit elsewhere: bounded retries, a rate limit, a bill. Standard library only."""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import ipaddress
import json
import math
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from .types import Key, PreftuneError

T = TypeVar("T")
R = TypeVar("R")

LARGEST = 16 << 20  #  bytes of an answer
LONGEST = 120.0  #     seconds that one retry is put off, whatever the server asks for
FIRST = 0.5  #         seconds before the first retry; each further one waits twice as long
PASSING = (408, 409, 425, 429)  # and everything from 500 on: worth another try


class Refused(PreftuneError):
    """The server will not answer this one request: too long, filtered, malformed."""


class Passing(Exception):
    """A failure that another try may not meet; `after`: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Stopped(Exception):
    """Given up because another request failed for good, or because the work was interrupted."""


@dataclass
class Bill:
    """What requests cost so far. Prices are per million tokens; tokens are what the server says in `usage`, 0 where it says nothing."""

    price_in: float = 0.0
    price_out: float = 0.0
    sent: int = 0  #       requests, retries included
    calls: int = 0  #      requests that were answered
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def money(self) -> float:
        """In the unit of the prices."""
        return (self.price_in * self.tokens_in + self.price_out * self.tokens_out) / 1e6

    def __str__(self) -> str:
        priced = f", {self.money:.4g} in money" if self.price_in or self.price_out else ""
        return f"{self.calls} calls answered of {self.sent} sent, {self.tokens_in} tokens in, {self.tokens_out} out{priced}"


@dataclass(frozen=True)
class Reply:
    """A chat model's answer. first: log-probabilities of the first token's alternatives, as far as the server gives them."""

    text: str
    first: Mapping[str, float] = field(default_factory=dict)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an error: following it would hand the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """Requests to one server, from several threads.

    url        where paths are appended
    key_env    the environment variable that holds the bearer token; a variable that is not set sends none
    timeout    seconds that one try may take
    retries    further tries after a failure that may pass: no connection, no answer in time, 408, 429, 5xx, an answer that is no JSON
    rate       requests a minute at most; None: as many as there are
    max_calls  requests in all, retries included; budget: money in all, which the requests under way may pass
    """

    def __init__(
        self,
        url: str,
        *,
        key_env: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        rate: float | None = None,
        max_calls: int | None = None,
        budget: float | None = None,
        price_in: float = 0.0,
        price_out: float = 0.0,
    ) -> None:
        self.url = checked_url(url)
        least = {"timeout": timeout, "rate": rate, "budget": budget, "max_calls": max_calls}
        for name, value in least.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise PreftuneError(f"{name} is {value}, needed a number above 0; leave it out for the default")
        for name, value in {"retries": retries, "price_in": price_in, "price_out": price_out}.items():
            if not (math.isfinite(value) and value >= 0):
                raise PreftuneError(f"{name} is {value}, needed a number of at least 0; leave it out for the default")
        if budget is not None and not (price_in or price_out):
            raise PreftuneError(f"budget is {budget}, but no price is known, needed price_in or price_out, per million tokens; give them")
        self.key_env, self.timeout, self.retries = key_env, timeout, retries
        self.max_calls, self.budget = max_calls, budget
        self.bill = Bill(price_in, price_out)
        self.gap = 60.0 / rate if rate else 0.0
        self.free = 0.0  # the time at which the next request may go
        self.lock = threading.Lock()
        # a server on this machine is not asked for through a proxy
        proxies = [urllib.request.ProxyHandler({})] if is_loopback(urlsplit(self.url).hostname or "") else []
        self.opener = urllib.request.build_opener(NoRedirect, *proxies)

    def post(self, path: str, body: Any, stop: threading.Event | None = None) -> Any:
        """What the server answers to a JSON body, read from JSON. `stop` ends waiting and retries."""
        return self.request(path, json.dumps(body).encode(), stop)

    def get(self, path: str) -> Any:
        """What the server has at a path, read from JSON."""
        return self.request(path, None, None)

    def send(self, path: str, body: Any) -> None:
        """As `post`, where the answer says no more than that it was done."""
        self.request(path, json.dumps(body).encode(), None, lambda _: None)

    def request(self, path: str, body: bytes | None, stop: threading.Event | None, reads: Callable[[bytes], Any] = json.loads) -> Any:
        """One request and its retries. Errors: `Refused` for this request alone, otherwise PreftuneError."""
        stop = stop or threading.Event()
        jitter = Key.of(0).fold(path, hashlib.blake2b(body or b"", digest_size=16).hexdigest())
        for attempt in range(self.retries + 1):
            self.turn(stop)
            try:
                found = self.once(path, body, reads)
            except Passing as error:
                reason = error
            else:
                with self.lock:
                    self.bill.calls += 1
                return found
            if attempt < self.retries:
                self.back_off(reason, attempt, jitter, stop)
        raise PreftuneError(
            f"{self.url} gave no answer in {self.retries + 1} {'try' if not self.retries else 'tries'} (the last: {reason}), "
            "needed a server that answers; start it again, or raise timeout or retries: what was answered so far is kept"
        )

    def turn(self, stop: threading.Event) -> None:
        """Wait for this request's turn under the rate limit, within the budget."""
        with self.lock:
            if self.max_calls is not None and self.bill.sent >= self.max_calls:
                raise PreftuneError(
                    f"{self.url}: {self.bill}, needed max_calls = {self.max_calls} to suffice; raise it: what was answered is kept"
                )
            if self.budget is not None and self.bill.money >= self.budget:
                raise PreftuneError(f"{self.url}: {self.bill}, needed a budget above {self.budget:g}; raise it: what was answered is kept")
            self.bill.sent += 1
            now = time.monotonic()
            at = max(now, self.free)
            self.free = at + self.gap
        if at > now and stop.wait(at - now):
            with self.lock:
                self.bill.sent -= 1
            raise Stopped

    def back_off(self, reason: Passing, attempt: int, jitter: Key, stop: threading.Event) -> None:
        """Wait before another try: as long as the server asks, all threads then, otherwise twice as long as the last time."""
        if reason.after is not None and reason.after > LONGEST:
            raise PreftuneError(
                f"{self.url} asks to come back in {reason.after:.0f} seconds ({reason}), needed at most {LONGEST:.0f}; "
                "go on then: what was answered so far is kept"
            )
        seconds = min(FIRST * 2**attempt, LONGEST) * (0.5 + 0.5 * float(jitter.fold(attempt).numpy().random()))
        if reason.after is not None:
            seconds = max(seconds, reason.after)
            with self.lock:
                self.free = max(self.free, time.monotonic() + reason.after)
        if stop.wait(seconds):
            raise Stopped

    def once(self, path: str, body: bytes | None, reads: Callable[[bytes], Any]) -> Any:
        """One try."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "preftune"}
        token = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            with self.opener.open(urllib.request.Request(self.url + path, body, headers), timeout=self.timeout) as answer:
                content = read(answer, time.monotonic() + self.timeout)
        except urllib.error.HTTPError as error:
            self.fail(error)
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut off
            raise Passing(f"{getattr(error, 'reason', error) or type(error).__name__}") from error
        try:
            return reads(content)
        except ValueError:
            raise Passing(f"an answer that is no JSON: {content[:80]!r}") from None

    def fail(self, error: urllib.error.HTTPError) -> NoReturn:
        """Tell failures that may pass from those of one request and those for good."""
        with error:
            try:
                said = message_of(error.read(1 << 16))
            except (OSError, http.client.HTTPException):
                said = ""
        told = f"{error.code} {said or error.reason}"
        if error.code in (401, 403):
            known = f"{self.key_env} is {'set' if os.environ.get(self.key_env) else 'not set'}" if self.key_env else "none was sent"
            raise PreftuneError(
                f"{self.url} refuses the key ({told}), needed a valid one in an environment variable, and {known}; set it"
            ) from None
        if error.code in (400, 413, 422):
            raise Refused(f"{self.url} refuses a request ({told}), needed one that it takes; change the settings or leave the row out")
        if error.code not in PASSING and error.code < 500 or "insufficient_quota" in said:
            raise PreftuneError(f"{self.url} does not serve this ({told}), needed an address and a model that it has; check url and model")
        raise Passing(told, seconds_of(error.headers.get("Retry-After")))

    def chat(self, messages: Sequence[Mapping[str, str]], *, stop: threading.Event | None = None, **settings: Any) -> Reply:
        """The answer of an OpenAI-compatible chat endpoint; `settings` are further fields of the request, the model among them."""
        found = self.post("/chat/completions", {"messages": list(messages), **settings}, stop)
        try:
            choice = found["choices"][0]
            text = choice["message"].get("content") or ""
            usage = found.get("usage") or {}
            with self.lock:
                self.bill.tokens_in += int(usage.get("prompt_tokens") or 0)
                self.bill.tokens_out += int(usage.get("completion_tokens") or 0)
            return Reply(str(text), first_token(choice.get("logprobs")))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise PreftuneError(
                f"{self.url} answered {str(found)[:120]}, needed a chat completion with choices; is this address OpenAI-compatible?"
            ) from None


def checked_url(url: str) -> str:
    """An address of a server, without the slash at its end."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound:
        raise PreftuneError(f"url is {url!r}, needed an address such as http://127.0.0.1:8000/v1; correct it")
    if parts.username or parts.password:
        raise PreftuneError(f"url names a password for {parts.hostname}, needed an address alone; put the key into an environment variable")
    return url.rstrip("/")


def is_address(name: Any) -> bool:
    """Whether a model, a judge or a sampler is asked over HTTP."""
    return isinstance(name, str) and name.startswith(("http://", "https://"))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read(answer: Any, deadline: float) -> bytes:
    """All of an answer that comes in time and is not too large."""
    parts, size = [], 0
    while part := answer.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise Passing(f"an answer of more than {LARGEST} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("timed out while reading")
    if answer.length:  # the server promised more
        raise http.client.IncompleteRead(b"", answer.length)
    return b"".join(parts)


def message_of(content: bytes) -> str:
    """What an error's body says, in one line; the kind of an OpenAI error behind it."""
    text = content.decode("utf-8", "replace")
    try:
        found = json.loads(text)
        error = found.get("error", found)
        if isinstance(error, dict):
            text = " ".join(str(error[name]) for name in ("message", "code") if error.get(name)) or text
        else:
            text = str(error)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300]


def seconds_of(header: str | None) -> float | None:
    """Retry-After, in seconds or as a date; None where it says neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def first_token(logprobs: Any) -> dict[str, float]:
    """token -> log-probability of the first token's alternatives, itself among them; empty where the server gives none in this form."""
    try:
        first = logprobs["content"][0]
        return {str(one["token"]): float(one["logprob"]) for one in [first, *(first.get("top_logprobs") or [])]}
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return {}


def each(call: Callable[[T, threading.Event], R], items: Sequence[T], workers: int) -> Iterator[tuple[int, R]]:
    """(position, what `call` gives for the item) as they come, from `workers` threads.

    No more than `workers` calls are under way or given and not yet taken in: a killed process loses no others. After an error nothing
    new is begun, retries end, what is under way is still given, and then the error is raised. The threads are daemons: whoever interrupts
    waits for no socket.
    """
    running = min(workers, len(items))
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None] | None] = queue.SimpleQueue()
    stop, lock, todo, free = threading.Event(), threading.Lock(), iter(range(len(items))), threading.Semaphore(running)

    def work() -> None:
        while True:
            free.acquire()
            with lock:
                at = None if stop.is_set() else next(todo, None)
            if at is None:
                break
            try:
                done.put((at, call(items[at], stop), None))
            except BaseException as error:
                done.put((at, None, error))  # before the others hear of it, so that theirs come later
                stop.set()
        free.release()
        done.put(None)

    for _ in range(running):
        threading.Thread(target=work, daemon=True).start()
    failed: BaseException | None = None
    try:
        while running:
            try:
                found = done.get(timeout=1)  # without an end it could not be interrupted on Windows
            except queue.Empty:
                continue
            if found is None:
                running -= 1
                continue
            if found[2] is None:
                yield found[0], found[1]
            elif failed is None:
                failed = found[2]
            free.release()
    finally:
        stop.set()
        free.release(len(items) + 1)
    if failed is not None:
        raise failed
