"""A chat endpoint that writes answers."""

from __future__ import annotations

from typing import Any

import pytest

import preftune
from chat_server import chat, refusal, said
from preftune import client
from preftune.cli import main
from preftune.types import PreftuneError


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST", 0.001)


def echo(body: dict[str, Any], number: int) -> Any:
    """Says what it was asked, and under which seed; every second request is put off once."""
    return said(f"{body['messages'][-1]['content']} {body['seed']}") if number % 2 else refusal(503, retry_after="0")


def test_every_prompt_is_answered_n_times_under_seeds_of_their_own() -> None:
    conversation = [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}]
    with chat(echo) as server:
        ask = lambda seed: preftune.generate(
            server.url, ["a", conversation], n=2, seed=seed, load={"model": "m"}, max_new_tokens=9, top_k=0
        )
        first, again, other = ask(0), ask(0), ask(1)
    assert [[text.split()[0] for text in row] for row in first] == [["a", "a"], ["b", "b"]]
    assert len({text for row in first for text in row}) == 4
    assert first == again != other
    assert all(body["max_tokens"] == 9 and body["model"] == "m" and "top_k" not in body for body in server.bodies)


def test_an_endpoint_is_named_like_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    with chat(lambda body, number: said("yes")) as server, pytest.raises(SystemExit) as ended:
        main(["generate", server.url, "--load", "model=m", "--prompt", "Well?", "--temperature", "0.5"])
    assert ended.value.code == 0 and capsys.readouterr().out == "> Well?\nyes\n\n"
    assert server.bodies[0]["temperature"] == 0.5


def test_a_wrong_key_or_option_is_told_at_once() -> None:
    with chat(lambda body, number: refusal(401, "bad key")) as server:
        with pytest.raises(PreftuneError, match="bad key"):
            preftune.generate(server.url, ["a"], load={"model": "m"})
        assert len(server.bodies) == 1
    with pytest.raises(PreftuneError, match="concurrency is 0, needed 1 or more"):
        preftune.generate("http://127.0.0.1:1/v1", ["a"], load={"model": "m", "concurrency": 0})
