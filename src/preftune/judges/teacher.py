"""A chat model behind an OpenAI-compatible address as a teacher: it answers prompts, in texts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ..client import Client, each
from ..types import Key, PreftuneError

NAMES = {"max_new_tokens": "max_tokens"}  # of decoding options that endpoints call otherwise
NEUTRAL = {"top_k": 0, "min_p": 0.0, "stop": ()}  # what endpoints do unless told; not all of them know these names


class Teacher:
    """Answers prompts, several at once; what it costs is in `client.bill`."""

    def __init__(self, client: Client, model: str, concurrency: int = 8) -> None:
        self.client, self.model, self.concurrency = client, model, concurrency

    def answers(self, prompts: Sequence[str | Sequence[Mapping[str, str]]], n: int, key: Key, **decoding: Any) -> list[list[str]]:
        """n answers to each prompt, a text or messages: [prompts][n]. Every request has a seed of its own; whether equal seeds give equal
        answers is the server's affair."""
        settings = {NAMES.get(name, name): value for name, value in decoding.items() if NEUTRAL.get(name) != value}
        asked = [(b, s) for b in range(len(prompts)) for s in range(n)]

        def ask(at: tuple[int, int], stop: threading.Event) -> str:
            prompt = prompts[at[0]]
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            seed = key.fold(*at).seed % 2**31
            return self.client.chat(messages, stop=stop, model=self.model, seed=seed, **settings).text

        found = [[""] * n for _ in prompts]
        for i, text in each(ask, asked, self.concurrency):
            found[asked[i][0]][asked[i][1]] = text
        return found


def teacher(
    url: str,
    model: str,
    key_env: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    timeout: float = 60.0,
    retries: int = 5,
    rate: float | None = None,
    max_calls: int | None = None,
) -> Teacher:
    """url, model  "https://api.openai.com/v1", "http://127.0.0.1:8000/v1"; the model's name there. The rest is as of `endpoint`."""
    if concurrency < 1:
        raise PreftuneError(f"concurrency is {concurrency}, needed 1 or more requests at once; 8 is usual")
    return Teacher(Client(url, key_env=key_env, timeout=timeout, retries=retries, rate=rate, max_calls=max_calls), model, concurrency)
