"""A judge behind an OpenAI-compatible chat endpoint: a provider, or a server of one's own."""

from __future__ import annotations

import json
import math
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..client import Bill, Client, Refused, each
from ..types import PreftuneError
from .asking import Answer, Comparing, Grading, Question
from .rubric import Mode, Rubric, digest, rubric_of

MANY = 8  #  refused requests, and not one answered, by which we know that it is not the questions
TOP = 20  # alternatives of the first token that are asked for, the most that OpenAI gives


class Endpoint:
    """Asks a chat model with a rubric, several questions at once; every answer is given as soon as it is there.

    silent  why questions stayed without an answer: "no verdict" could be read, or the server "refused" this one request
    parsed  verdicts that were read from text, for want of log-probabilities
    """

    kept = True

    def __init__(
        self,
        client: Client,
        rubric: Rubric,
        model: str,
        *,
        request: Mapping[str, Any],
        votes: int = 1,
        concurrency: int = 8,
        least_mass: float = 0.0,
    ) -> None:
        self.client, self.rubric, self.model, self.request = client, rubric, model, dict(request)
        self.votes, self.concurrency, self.least_mass = votes, concurrency, least_mass
        self.logprobs = bool(rubric.values)  # switched off where the server does not know them
        self.silent: Counter[str] = Counter()
        self.parsed = 0
        settings = [rubric.mode, rubric.text, rubric.low, rubric.high, self.request, votes, least_mass]
        self.identity = f"{model} at {client.url}, {digest(settings)}"

    @property
    def bill(self) -> Bill:
        """What it cost so far."""
        return self.client.bill

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """P(the first is better), or the grade. The first refusal is warned of; `MANY` without any answer are an error."""
        refused: list[Refused] = []
        missing = 0

        def ask(question: Question, stop: threading.Event) -> float:
            try:
                return self.judged(question, stop)
            except Refused as error:
                refused.append(error)
                return math.nan

        for at, value in each(ask, questions, self.concurrency):
            missing += math.isnan(value)
            if not math.isnan(value):
                yield at, (value,)
        if refused and not self.silent["refused"]:
            warnings.warn(str(refused[0]), stacklevel=2)
        self.silent.update({"refused": len(refused), "no verdict": missing - len(refused)})
        if refused and self.silent["refused"] >= MANY and not self.bill.calls:
            raise refused[0]

    def judged(self, question: Question, stop: threading.Event) -> float:
        """The mean over the votes that have a verdict; NaN where none has."""
        values = [self.vote(question, vote, stop) for vote in range(self.votes)]
        found = [value for value in values if not math.isnan(value)]
        return sum(found) / len(found) if found else math.nan

    def vote(self, question: Question, vote: int, stop: threading.Event) -> float:
        """One request's verdict: from log-probabilities where the answer is a verdict alone and there are some, otherwise from its text."""
        messages = [{"role": "user", "content": self.rubric.fill(question)}]
        settings = {"model": self.model, **self.request, **({"seed": vote} if self.votes > 1 else {})}
        wanted = {"logprobs": True, "top_logprobs": TOP} if self.logprobs else {}
        try:
            reply = self.client.chat(messages, stop=stop, **settings, **wanted)
        except Refused as error:
            if not wanted or "logprob" not in str(error):
                raise
            self.logprobs = False
            reply = self.client.chat(messages, stop=stop, **settings)
        if reply.first and self.rubric.alone(reply.text):
            value, _ = self.rubric.weighed(reply.first, self.least_mass)
            if not math.isnan(value) or self.least_mass > 0:
                return value
        with self.client.lock:
            self.parsed += 1
        return self.rubric.parsed(reply.text)


def fields(file: str | None, temperature: float, max_tokens: int) -> dict[str, Any]:
    """The request's fields besides messages and model: ours, then those of a JSON file, in which null takes one out."""
    found: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    if file is not None:
        try:
            more = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PreftuneError(f"{file} cannot be read ({error}), needed a JSON object of fields of the request; correct it") from None
        if not isinstance(more, dict) or {"messages", "model"} & more.keys():
            raise PreftuneError(f"{file} holds {str(more)[:60]}, needed a JSON object without messages and model; correct it")
        found |= more
    return {name: value for name, value in found.items() if value is not None}


def endpoint(
    url: str,
    model: str,
    mode: Mode = "compare",
    rubric: str | None = None,
    low: int | None = None,
    high: int | None = None,
    slope: float = 1.0,
    key_env: str = "OPENAI_API_KEY",
    temperature: float = 0.0,
    votes: int = 1,
    max_tokens: int = 1024,
    request: str | None = None,
    least_mass: float = 0.0,
    concurrency: int = 8,
    timeout: float = 60.0,
    retries: int = 5,
    rate: float | None = None,
    max_calls: int | None = None,
    budget: float | None = None,
    price_in: float = 0.0,
    price_out: float = 0.0,
) -> Comparing | Grading:
    """A chat model as a judge.

    url, model   "https://api.openai.com/v1", "http://127.0.0.1:8000/v1"; the model's name there
    mode         compare two responses, or grade one; sigmoid(slope * difference of grades) is then how often the better one wins
    rubric       compare, compare-reasoned, grade, additive, or a text file with places {prompt} and {response}, or {prompt}, {a}, {b};
                 low and high are the ends of its scale
    key_env      the environment variable with the key: never the key itself. One that is not set sends none
    votes        verdicts a question whose mean counts, drawn at a temperature above 0
    request      a JSON file with further fields of the request (response_format, reasoning_effort, ...); null takes a field out
    least_mass   where verdicts are read from log-probabilities: below this probability of any verdict there is no answer
    concurrency  requests at once; rate: a minute; timeout: seconds; retries: after failures that may pass
    max_calls    requests at most; budget: money at most, by price_in and price_out per million tokens
    """
    if votes < 1 or concurrency < 1 or max_tokens < 1:
        raise PreftuneError(
            f"votes is {votes}, concurrency {concurrency} and max_tokens {max_tokens}, needed 1 or more of each; correct that"
        )
    if votes > 1 and not temperature > 0:
        raise PreftuneError(f"votes is {votes} at temperature {temperature:g}, which draws the same verdict again; give temperature=1")
    client = Client(
        url,
        key_env=key_env,
        timeout=timeout,
        retries=retries,
        rate=rate,
        max_calls=max_calls,
        budget=budget,
        price_in=price_in,
        price_out=price_out,
    )
    asked = Endpoint(
        client,
        rubric_of(mode, rubric, low, high),
        model,
        request=fields(request, temperature, max_tokens),
        votes=votes,
        concurrency=concurrency,
        least_mass=least_mass,
    )
    return Comparing(asked) if mode == "compare" else Grading(asked, slope)
