"""One judge for several trainers, over HTTP: the same answers, asked once, and clear words when something is wrong."""

from __future__ import annotations

import http.client
import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import outside
import preftune.api as api
from preftune import checkpoint, client
from preftune.api import resolve_judge
from preftune.judges import combine, rules, service
from preftune.judges.asking import Answer, Comparing, Question
from preftune.policies.text.characters import Characters
from preftune.policies.text.tokens import encode
from preftune.types import Key, PreftuneError, Rows
from text_fixtures import Record, tiny_folder

KEY = Key.of(0)
CONVERSATION = [{"role": "user", "content": "How\n?"}, {"role": "assistant", "content": "So."}, {"role": "user", "content": "Why?"}]


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, no token, and retries that come at once."""
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(service.TOKEN_ENV, raising=False)
    monkeypatch.setattr(client, "FIRST", 0.001)


class Longer:
    """Prefers the longer of two texts, has no answer where one is empty, and remembers what it is asked."""

    identity, kept = "longer", True

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.seen = seconds, list[Question]()

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        for i, question in enumerate(questions):
            time.sleep(self.seconds)
            self.seen.append(question)
            a, b = question.responses
            if a and b:
                yield i, (1 / (1 + math.exp(len(b) - len(a))),)


@contextmanager
def serving(judge: Any, port: int = 0, **options: Any) -> Iterator[tuple[str, service.Service]]:
    """The judge at an address, while it runs."""
    with service.service(judge, "the judge", port=port, **options) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", server
        server.shutdown()


def rows_of(*responses: str, prompts: Sequence[Any] = ("How?", CONVERSATION)) -> Rows:
    return encode([Record(str(i), prompt, list(responses)) for i, prompt in enumerate(prompts)], Characters())[0]


def compared(judge: Any, rows: Rows) -> torch.Tensor:
    """Each response with each."""
    found: torch.Tensor = judge.prefer(rows, rows.response, rows.response, KEY)
    return found


def raw(url: str, body: bytes, path: str = "/prefer", method: str = "POST", **headers: str) -> tuple[int, dict[str, Any]]:
    """A request as it stands; the status and the JSON of the answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


# --- the same answers -------------------------------------------------------------------------------------------------


def test_a_served_judge_answers_as_it_does_at_home() -> None:
    """To 1e-6, for answers travel through the trainer's float32."""
    rows = rows_of("a vowel", "rhythm", "", "éa\n")
    for judge in (outside.vowels(), rules.length(target=4), combine.both_orders(rules.length())):
        with serving(judge) as (url, _):
            there = resolve_judge(url)
            torch.testing.assert_close(compared(there, rows), compared(judge, rows), atol=1e-6, rtol=0)
            torch.testing.assert_close(there.score(rows, rows.response, KEY), judge.score(rows, rows.response, KEY), atol=1e-6, rtol=1e-6)


def test_a_judge_without_a_score_is_served_without_one() -> None:
    with serving(Comparing(Longer())) as (url, _):
        assert not hasattr(resolve_judge(url), "score")
        assert raw(url, b"{}", "/score") == (404, {"error": "this judge has no score, only prefer"})


def test_the_judge_is_shown_texts_and_conversations_as_they_are() -> None:
    asked = Longer()
    with serving(Comparing(asked)) as (url, _):
        compared(resolve_judge(url), rows_of("one", " two\n"))
    said = tuple((m["role"], m["content"]) for m in CONVERSATION)
    assert Question("How?", ("one", " two\n")) in asked.seen and Question(said, (" two\n", "one")) in asked.seen


def test_no_answer_travels_as_null_and_is_asked_again() -> None:
    asked, rows = Longer(), rows_of("one", "", prompts=["How?"])
    with serving(Comparing(asked)) as (url, _):
        assert raw(url, json.dumps({"prompts": ["p"], "responses": [["", "x"]]}).encode())[1]["answers"] == [None]
        there = resolve_judge(url)
        for _ in range(2):
            found = compared(there, rows)
            assert found[0, 0, 0] == 0.5 and found.isnan().sum() == 2
    assert Counter(asked.seen)[Question("How?", ("one", ""))] == 2


# --- asked once -------------------------------------------------------------------------------------------------------


def test_two_trainers_at_once_ask_every_question_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their caches are their own, as on two machines; the service keeps the answers for both."""
    asked, rows, found = Longer(seconds=0.005), rows_of("one", "three", "seven"), {}
    with serving(Comparing(asked)) as (url, _):
        trainers = []
        for name in ("a", "b"):
            monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / name))
            trainers.append(resolve_judge(url))
        threads = [threading.Thread(target=lambda i=i: found.update({i: compared(trainers[i], rows)})) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(found[0], found[1]) and found[0].shape == (2, 3, 3)
    assert len(asked.seen) == len(set(asked.seen)) == 12


def test_answers_that_came_once_are_known_when_the_service_is_gone() -> None:
    rows = rows_of("one", "three")
    with serving(Comparing(Longer())) as (url, _):
        there = resolve_judge(f"{url},retries=0")
        before = compared(there, rows)
    assert torch.equal(compared(there, rows), before)
    with pytest.raises(PreftuneError, match="gave no answer in 1 try"):
        compared(there, rows_of("other", "texts"))


def test_answers_whose_origin_is_not_known_are_not_kept() -> None:
    """The vowels of outside.py may be another program tomorrow."""
    with serving(outside.vowels()) as (url, _):
        assert raw(url, b"", "/health", "GET")[1]["kept"] is False
    with serving(Comparing(Longer())) as (url, _):
        assert raw(url, b"", "/health", "GET")[1]["kept"] is True


def test_judges_made_of_the_same_judges_are_told_apart() -> None:
    long, short = rules.length(), rules.length(target=0)
    made = [
        long,
        short,
        rules.length(slope=2.0),
        combine.both_orders(long),
        combine.mean([long, short]),
        combine.mean([long, short], [0.2, 0.8]),
        combine.vote([long, short]),
        combine.agreement([long, short]),
        combine.agreement([long, short], least=0.6),
        combine.route(long, short),
        combine.route(short, long),
    ]
    names = [service.identity_of(judge) for judge in made]
    assert None not in names and len(set(names)) == len(names)
    assert service.identity_of(combine.mean([long, outside.vowels()])) is None


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_token_is_asked_for_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(service.TOKEN_ENV, "a long random text")
    with serving(Comparing(Longer())) as (url, _):
        rows = rows_of("one", "three")
        assert compared(resolve_judge(url), rows).shape == (2, 2, 2)
        assert raw(url, b"{}" + b" " * 1_000_000) == (401, {"error": "the token is missing or wrong"})
        monkeypatch.setenv("OTHER", "a wrong text")
        with pytest.raises(PreftuneError, match="refuses the key .401 .*OTHER is set") as error:
            resolve_judge(f"{url},token_env=OTHER")
        assert "a wrong text" not in str(error.value)
        monkeypatch.delenv(service.TOKEN_ENV)
        with pytest.raises(PreftuneError, match=f"{service.TOKEN_ENV} is not set; set it"):
            resolve_judge(url)


def test_without_a_token_only_this_machine_is_served() -> None:
    with pytest.raises(PreftuneError, match="is not set and host is 0.0.0.0.*needed a token"):
        service.service(Comparing(Longer()), "the judge", host="0.0.0.0", port=0)


def test_a_port_that_is_taken_is_said_to_be() -> None:
    with serving(Comparing(Longer())) as (url, server), pytest.raises(PreftuneError, match="cannot be listened to.*choose another"):
        service.service(Comparing(Longer()), "the judge", port=server.server_port)


@pytest.mark.parametrize(
    ("body", "status", "said_so"),
    [
        (b"{", 400, "no JSON"),
        (b"[]", 400, "no lists prompts and responses"),
        (b'{"prompts": ["x"], "responses": []}', 400, "1 prompts and 0 lists"),
        (b'{"prompts": [], "responses": []}', 400, "not 1 to 4096"),
        (b'{"prompts": ["x"], "responses": [["a"]]}', 400, "not a list of 2 texts"),
        (b'{"prompts": ["x"], "responses": [["a", 1]]}', 400, "not a list of 2 texts"),
        (b'{"prompts": [[{"role": "user"}]], "responses": [["a", "b"]]}', 400, "neither a text nor a list of messages"),
        (b" " * 2000, 413, "2000 bytes, more than 1000"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused_in_json(body: bytes, status: int, said_so: str) -> None:
    with serving(Comparing(Longer()), limit=1000) as (url, _):
        found = raw(url, body)
        assert found[0] == status and said_so in found[1]["error"]
        assert raw(url, b"{}", Content_Type="text/plain")[0] == 415
        assert raw(url, b"{}", "/elsewhere")[0] == 404
        assert raw(url, b"")[0] == 411
        assert raw(url, b"", method="DELETE")[0] == 501
        assert compared(resolve_judge(url), rows_of("one", "three")).shape == (2, 2, 2)  # it serves on


def test_a_question_that_is_too_large_is_refused_before_it_is_sent() -> None:
    asked = Longer()
    with serving(Comparing(asked), limit=1000) as (url, _), pytest.raises(PreftuneError, match="takes 1000 bytes .*shorten the responses"):
        compared(resolve_judge(url), rows_of("x" * 2000, "y"))
    assert not asked.seen


def test_many_questions_are_sent_in_parts_that_fit() -> None:
    asked, rows = Longer(), rows_of(*(f"{i} " + "x" * i for i in range(12)), prompts=["How?"])
    with serving(Comparing(asked), limit=1000) as (url, _):
        assert compared(resolve_judge(url), rows).shape == (1, 12, 12)
    assert len(asked.seen) == 132


class Failing(Longer):
    """Fails instead of answering."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        self.seen += questions
        raise self.error
        yield


def test_what_the_judge_says_is_wrong_reaches_the_trainer_at_once() -> None:
    asked = Failing(PreftuneError("the model is too small, needed a larger one; take it"))
    with (
        serving(Comparing(asked)) as (url, _),
        pytest.raises(PreftuneError, match="422 the model is too small, needed a larger one; take it"),
    ):
        compared(resolve_judge(url), rows_of("one", "two", prompts=["How?"]))
    assert len(asked.seen) == 2


def test_a_judge_that_breaks_is_asked_again_a_bounded_number_of_times() -> None:
    asked = Failing(RuntimeError("out of memory"))
    with serving(Comparing(asked)) as (url, _), pytest.raises(PreftuneError, match="in 3 tries .the last: 500 RuntimeError: out of memory"):
        compared(resolve_judge(f"{url},retries=2"), rows_of("one", "two", prompts=["How?"]))
    assert len(asked.seen) == 6


def test_a_slow_judge_is_given_up_after_the_timeout() -> None:
    with serving(Comparing(Longer(seconds=1.0))) as (url, _), pytest.raises(PreftuneError, match="in 1 try .*timed out"):
        compared(resolve_judge(f"{url},timeout=0.2,retries=0"), rows_of("one", "two", prompts=["How?"]))


def test_another_judge_at_the_same_address_is_noticed() -> None:
    with serving(rules.length()) as (url, server):
        there, port = resolve_judge(url), server.server_port
    with (
        serving(rules.length(target=3), port=port),
        pytest.raises(PreftuneError, match="now serves .*needed the judge that this run"),
    ):
        compared(there, rows_of("one", "three"))


def test_who_hung_up_while_waiting_is_not_judged() -> None:
    asked = Longer(seconds=0.3)
    body = lambda word: json.dumps({"prompts": ["p"], "responses": [[word, "x"]]}).encode()
    with serving(Comparing(asked)) as (url, server):
        slow = threading.Thread(target=raw, args=(url, body("first")))
        slow.start()
        while not asked.seen and not server.turn.locked():
            time.sleep(0.001)
        with socket.create_connection(server.server_address[:2]) as impatient:
            head = f"POST /prefer HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body('second'))}\r\n\r\n"
            impatient.sendall(head.encode() + body("second"))
            time.sleep(0.05)
        slow.join()
        raw(url, body("third"))
    assert [question.responses[0] for question in asked.seen] == ["first", "third"]


def test_too_many_who_wait_are_asked_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "WAITING", 1)
    asked = Longer(seconds=0.3)
    with serving(Comparing(asked)) as (url, server):
        slow = threading.Thread(target=raw, args=(url, b'{"prompts": ["p"], "responses": [["a", "x"]]}'))
        slow.start()
        while not server.turn.locked():
            time.sleep(0.001)
        status, told = raw(url, b'{"prompts": ["p"], "responses": [["b", "x"]]}')
        slow.join()
    assert (status, told) == (503, {"error": "1 requests wait for the judge already"}) and len(asked.seen) == 1


def test_what_is_no_judges_service_is_refused() -> None:
    with serving(Comparing(Longer())) as (url, server):
        server.about = {"status": "ok"}
        with pytest.raises(PreftuneError, match="needed a judge's service; start one with `preftune judge serve JUDGE`"):
            resolve_judge(url)
    with pytest.raises(PreftuneError, match="gave no answer in 2 tries"):
        resolve_judge(f"{url},retries=1")


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "preftune", "judge", "serve", "length,target=3", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("length,target=3 answers at http://127.0.0.1:")
        rows = rows_of("abc", "abcdefghij")
        there: Any = resolve_judge(first.split()[-1])
        assert there.score(rows, rows.response, KEY).flatten().tolist() == pytest.approx([0.0, -0.07] * 2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130


# --- a judge that fails while a run trains ----------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A tiny model and eight prompts."""
    tiny_folder(tmp_path / "model", layers=1)
    lines = [{"prompt": f"Say number {i}."} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def train(world: Path, out: Path, url: str, **more: Any) -> api.Run:
    given = {"steps": 6, "batch": 2, "save_every": 0, "lr": 1e-3, "samples": 0, "max_response": 8, "progress": False, "beta1": 0.0}
    return api.train(str(world / "model"), "egpo", str(world / "prompts.jsonl"), judge=f"{url},retries=1", out=out, **{**given, **more})


def counting(server: service.Service, seen: list[Question], last: int | None = None) -> Callable[..., list[float]]:
    """The service's answers, counted; after `last` questions it listens no more, and what is asked then fails."""
    answers = server.answers

    def answer(kind: Any, questions: Sequence[Question]) -> list[float]:
        if last is not None and len(seen) >= last:
            server.socket.close()
            raise RuntimeError("the machine goes down")
        seen.extend(questions)
        return answers(kind, questions)

    return answer


def test_a_run_whose_judge_dies_keeps_its_state_and_goes_on_when_it_is_back(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights as of an undisturbed run, and no question asked again whose answer had come."""
    seen: list[Question] = []
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "undisturbed"))
    with serving(Comparing(Longer())) as (url, server):
        server.answers = counting(server, seen)  # type: ignore[method-assign]
        train(world, tmp_path / "other", url)
    asked, questions = Longer(), len(seen)
    seen.clear()
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "disturbed"))
    with serving(Comparing(asked)) as (url, server):
        port = server.server_port
        server.answers = counting(server, seen, last=questions // 2)  # type: ignore[method-assign]
        with pytest.raises(PreftuneError, match="gave no answer in 2 tries .*start it again.*what was answered so far is kept"):
            train(world, tmp_path / "run", url)
    saved = checkpoint.steps(tmp_path / "run" / "checkpoints")
    assert saved and 0 < saved[-1] < 6
    with serving(Comparing(asked), port=port) as (_, server):
        server.answers = counting(server, seen)  # type: ignore[method-assign]
        assert api.resume(tmp_path / "run", progress=False).stopped == "finished"
    assert not [question for question, times in Counter(seen).items() if times > 1]
    assert len(seen) == questions
    from safetensors.torch import load_file

    mine, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "other"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
