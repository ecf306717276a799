"""A judge behind a chat endpoint: what it is asked, how its verdict is read, and what happens when the server misbehaves."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from chat_server import CUT, HANG, chat, refusal, said
from preftune import client
from preftune.api import resolve_judge
from preftune.judges.asking import Comparing, Grading, Question
from preftune.judges.endpoint import endpoint
from preftune.judges.rubric import Rubric, rubric_of
from preftune.policies.text.tokens import encode
from preftune.types import Key, PreftuneError, Rows
from text_fixtures import Record, tiny_tokenizer

KEY = Key.of(0)


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, a key that must not be seen, and retries that come at once."""
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr(client, "FIRST", 0.001)


def rows_of(*responses: str, prompts: tuple[str, ...] = ("How?",)) -> Rows:
    return encode([Record(prompt, prompt, list(responses)) for prompt in prompts], tiny_tokenizer())[0]


def judge_at(url: str, model: str = "m", **options: Any) -> Any:
    """The judge that the name stands for."""
    return endpoint(url, model, **options)


def pair(judge: Any, *responses: str) -> float:
    """P(the first beats the second)."""
    rows = rows_of(*(responses or ("apple", "pear")))
    return float(judge.prefer(rows, rows.response.take(columns=[0]), rows.response.take(columns=[1]), KEY))


def grid(judge: Any) -> torch.Tensor:
    """Four questions: P(column beats column) [2, 2]."""
    rows, others = rows_of("apple", "pear"), rows_of("plum", "fig")
    found: torch.Tensor = judge.prefer(rows, rows.response, others.response, KEY)[0]
    return found


# --- reading verdicts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A", 1.0),
        (" **B** ", 0.0),
        ("tie", 0.5),
        ("Both are fine.\n[[B]]", 0.0),
        ("[[A]] it was, but then [[tie]]", 0.5),
        ("Verdict: A because it is right", 1.0),
        ("**Winner:** Response B", 0.0),
        ('{"reason": "A is short", "verdict": "B"}', 0.0),
        ("My answer is A.", 1.0),
        ("The answer is A good one", math.nan),
        ("Answer: A concise one is better", math.nan),
        ("Response B is better. A lacks detail", math.nan),
        ("I prefer a", math.nan),
        ("", math.nan),
    ],
)
def test_a_verdict_is_a_letter_alone_or_marked_and_nothing_else_counts(text: str, value: float) -> None:
    found = rubric_of("compare", None, None, None).parsed(text)
    assert found == value or math.isnan(found) and math.isnan(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4.0),
        ("4/5", 4.0),
        ("Relevant, useful. Score: 3", 3.0),
        ("score is 2.5", 2.5),
        ("Score: 1 at first, in the end Score: 5", 5.0),
        ('{"score": 2}', 2.0),
        ("Score: 45", math.nan),
        ("Score: -1", math.nan),
        ("10", math.nan),
        ("I give it 4 points", math.nan),
    ],
)
def test_a_grade_is_a_number_alone_or_marked_and_on_the_scale(text: str, value: float) -> None:
    found = rubric_of("grade", None, None, None).parsed(text)
    assert found == value or math.isnan(found) and math.isnan(value)


def test_log_probabilities_give_the_mean_over_the_verdicts() -> None:
    """P(A) = .3 + .1 with a space, P(B) = .1 with its sign: .4 / .5. Grades 2 and 4 at .2 and .6: (.4 + 2.4) / .8 = 3.5; 7 is no grade."""
    value, mass = rubric_of("compare", None, None, None).weighed(
        {"A": math.log(0.3), " A": math.log(0.1), "ĠB": math.log(0.1), "The": math.log(0.5)}
    )
    assert (value, mass) == pytest.approx((0.8, 0.5))
    value, mass = rubric_of("grade", None, None, None).weighed({"2": math.log(0.2), "4": math.log(0.6), "7": math.log(0.2)})
    assert (value, mass) == pytest.approx((3.5, 0.8))


def test_too_little_mass_on_verdicts_is_no_answer() -> None:
    rubric = rubric_of("compare", None, None, None)
    assert math.isnan(rubric.weighed({"A": math.log(0.1), "The": math.log(0.9)}, least_mass=0.2)[0])
    assert math.isnan(rubric.weighed({"The": 0.0})[0])


def test_texts_that_look_like_places_stay_what_they_are() -> None:
    rubric = Rubric("compare", "{prompt}|{a}|{b}|{else}")
    assert rubric.fill(Question("about {b}", ("{prompt} {a}", "x"))) == "about {b}|{prompt} {a}|x|{else}"


# --- asking -----------------------------------------------------------------------------------------------------------


def test_a_comparison_is_read_from_log_probabilities_where_the_answer_is_a_verdict_alone() -> None:
    with chat(lambda body, n: said("A", {"A": math.log(0.6), "B": math.log(0.2)})) as server:
        judge = judge_at(server.url, model="judge-1")
        assert pair(judge) == pytest.approx(0.75)
    body, text = server.bodies[0], server.shown()[0]
    assert (body["model"], body["temperature"], body["logprobs"]) == ("judge-1", 0.0, True)
    assert text.index("How?") < text.index("apple") < text.index("pear")
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"


def test_a_text_that_begins_with_a_letter_is_not_taken_for_that_verdict() -> None:
    """The first token of "A good start ... [[B]]" is A with certainty; the verdict is B."""
    with chat(lambda body, n: said("A good start, but [[B]]", {"A": 0.0})) as server:
        assert pair(judge_at(server.url)) == 0.0


@pytest.mark.parametrize("logprobs", [None, [], [1], {"content": None}, {"content": [{"token": "A"}]}, {"tokens": ["A"]}])
def test_log_probabilities_of_another_form_are_left_alone(logprobs: Any) -> None:
    with chat(lambda body, n: (200, {"choices": [{"message": {"content": "A"}, "logprobs": logprobs}]}, {})) as server:
        assert pair(judge_at(server.url)) == 1.0


def test_grades_become_probabilities_by_their_difference() -> None:
    grades = {"apple": "4", "pear": "2"}
    with chat(lambda body, n: said(next(g for text, g in grades.items() if text in body["messages"][0]["content"]))) as server:
        judge = resolve_judge(f"endpoint,url={server.url},model=m,mode=grade,slope=0.5")
        assert isinstance(judge, Grading)
        rows = rows_of("apple", "pear")
        assert judge.score(rows, rows.response, KEY).tolist() == [[4.0, 2.0]]
        assert pair(judge) == pytest.approx(1 / (1 + math.exp(-1)))
    assert len(server.bodies) == 2


def test_what_cannot_be_read_is_nan_is_not_kept_and_is_asked_again() -> None:
    with chat(lambda body, n: said("I cannot say.") if n == 1 else said("[[A]]")) as server:
        judge = judge_at(server.url)
        assert math.isnan(pair(judge))
        assert pair(judge) == 1.0
        assert pair(judge_at(server.url)) == 1.0
    assert (len(server.bodies), judge.asker.silent, judge.asker.answerer.silent["no verdict"]) == (2, 1, 1)


def test_another_rubric_or_model_is_asked_anew(tmp_path: Path) -> None:
    rubric = tmp_path / "mine.txt"
    rubric.write_text("{prompt} {a} {b}: A or B?")
    with chat(lambda body, n: said("B")) as server:
        for judge in (judge_at(server.url), judge_at(server.url, model="n"), judge_at(server.url, rubric=str(rubric))):
            assert pair(judge) == 0.0
    assert len(server.bodies) == 3 and server.shown()[2] == "How? apple pear: A or B?"


def test_votes_are_drawn_apart_and_those_without_a_verdict_are_left_out() -> None:
    votes = ["[[A]]", "no idea", "[[B]]", "[[A]]"]
    with chat(lambda body, n: said(votes[body["seed"]])) as server:
        judge = judge_at(server.url, votes=4, temperature=1.0)
        assert pair(judge) == pytest.approx(2 / 3)
    assert [body["seed"] for body in server.bodies] == [0, 1, 2, 3]


def test_the_bill_counts_calls_tokens_and_money() -> None:
    with chat(lambda body, n: said("A")) as server:
        judge = judge_at(server.url, price_in=2.0, price_out=10.0)
        grid(judge)
        bill = judge.asker.answerer.client.bill
    assert (bill.sent, bill.calls, bill.tokens_in, bill.tokens_out) == (4, 4, 400, 8)
    assert bill.money == pytest.approx((400 * 2 + 8 * 10) / 1e6)


def test_fields_of_a_file_join_the_request_and_null_takes_one_out(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"max_tokens": None, "max_completion_tokens": 50, "reasoning_effort": "low"}))
    with chat(lambda body, n: said("A")) as server:
        pair(judge_at(server.url, request=str(file)))
    assert "max_tokens" not in server.bodies[0]
    assert (server.bodies[0]["max_completion_tokens"], server.bodies[0]["reasoning_effort"]) == (50, "low")


# --- servers that misbehave -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(500),
        refusal(503, "overloaded"),
        refusal(429, "slow down", Retry_After="0.01"),
        (200, b"<html>a proxy's page</html>", {}),
        (CUT, {"choices": [], "padding": "x" * 1000}, {}),
    ],
    ids=["500", "503", "429", "no json", "cut off"],
)
def test_what_may_pass_is_tried_again(trouble: Any) -> None:
    with chat(lambda body, n: trouble if n < 3 else said("A")) as server:
        judge = judge_at(server.url)
        assert pair(judge) == 1.0
    assert len(server.bodies) == 3 and judge.asker.answerer.client.bill.calls == 1


def test_retries_are_bounded_and_the_error_says_what_was_found() -> None:
    with (
        chat(lambda body, n: refusal(503, "the model is loading")) as server,
        pytest.raises(PreftuneError, match=r"gave no answer in 3 tries \(the last: 503 the model is loading\), needed .*; start it again"),
    ):
        pair(judge_at(server.url, retries=2))
    assert len(server.bodies) == 3


def test_a_slow_server_is_given_up_after_the_timeout() -> None:
    begun = time.monotonic()
    with chat(lambda body, n: (HANG, {}, {})) as server, pytest.raises(PreftuneError, match="gave no answer in 2 tries.*timed out"):
        pair(judge_at(server.url, timeout=0.2, retries=1))
    assert 0.4 <= time.monotonic() - begun < 5


def test_a_server_that_is_not_there_is_said_to_be_so() -> None:
    with chat(lambda body, n: said("A")) as server:
        url = server.url
    with pytest.raises(PreftuneError, match="gave no answer in 2 tries.*refused"):
        pair(judge_at(url, retries=1))


def test_retry_after_is_waited_for_by_all_and_refused_where_it_is_long() -> None:
    """Two requests at once; the first 429 asks for 0.3 s, and nobody comes back before that."""
    with chat(lambda body, n: refusal(429, Retry_After="0.3") if n <= 2 else said("A")) as server:
        grid(judge_at(server.url, concurrency=2))
        assert len(server.times) == 6 and server.times[2] - server.times[0] >= 0.3
    with (
        chat(lambda body, n: refusal(429, Retry_After="7200")) as server,
        pytest.raises(PreftuneError, match="asks to come back in 7200 seconds"),
    ):
        pair(judge_at(server.url))
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("answer", "said_so"),
    [
        (refusal(401, "bad key"), "refuses the key .401 bad key.*OPENAI_API_KEY is set; set it"),
        (refusal(404, "no such model"), "does not serve this .404 no such model.*check url and model"),
        (refusal(429, "you exceeded your quota insufficient_quota"), "does not serve this .429"),
        (refusal(302, "", Location="/v2/chat/completions"), "does not serve this .302"),
        ((200, {"text": "A"}, {}), "needed a chat completion"),
    ],
    ids=["401", "404", "no quota", "redirection", "not chat"],
)
def test_what_will_not_pass_fails_at_once_and_never_shows_the_key(answer: Any, said_so: str) -> None:
    with chat(lambda body, n: answer) as server, pytest.raises(PreftuneError, match=said_so) as error:
        pair(judge_at(server.url))
    assert len(server.bodies) == 1 and "sk-secret" not in str(error.value)


def test_a_refused_question_is_silent_and_warned_of_once() -> None:
    with chat(lambda body, n: refusal(400, "context too long") if "endless" in body["messages"][0]["content"] else said("A")) as server:
        judge, rows, others = judge_at(server.url), rows_of("apple", "endless"), rows_of("pear")
        with pytest.warns(UserWarning, match="400 context too long"):
            answers = judge.prefer(rows, rows.response, others.response, KEY).flatten()
        assert answers[0] == 1.0 and answers[1].isnan()
        assert judge.prefer(rows, rows.response.take(columns=[1]), others.response, KEY).isnan().all()
        assert judge.asker.answerer.silent == {"refused": 2, "no verdict": 0}


def test_refusals_without_a_single_answer_are_an_error() -> None:
    """The eighth shows that it is the settings: four questions twice."""
    with chat(lambda body, n: refusal(400, "max_tokens is not supported")) as server:
        judge = judge_at(server.url)
        with pytest.warns(UserWarning, match="max_tokens is not supported"):
            assert grid(judge).isnan().all()
        with pytest.raises(PreftuneError, match="400 max_tokens is not supported"):
            grid(judge)
    assert len(server.bodies) == 8


def test_a_server_without_log_probabilities_is_asked_without_them_from_then_on() -> None:
    with chat(lambda body, n: refusal(400, "logprobs is not supported") if "logprobs" in body else said("[[A]]")) as server:
        assert grid(judge_at(server.url, concurrency=1)).eq(1).all()
    assert ["logprobs" in body for body in server.bodies] == [True, False, False, False, False]


def test_a_failure_for_good_loses_no_answer_that_came_or_is_under_way() -> None:
    """Of four requests at once the third is refused for good while the others are slow: their three answers are kept all the same."""

    def reply(body: dict[str, Any], n: int) -> Any:
        if n == 3:
            return refusal(403)
        time.sleep(0.2)
        return said("A")

    with chat(reply) as server:
        with pytest.raises(PreftuneError, match="refuses the key"):
            grid(judge_at(server.url, concurrency=4))
        assert len(server.bodies) == 4
        server.reply = lambda body, n: said("A")
        again = judge_at(server.url)
        assert grid(again).eq(1).all()
        assert (again.asker.known, again.asker.asked) == (3, 1)


@pytest.mark.parametrize(("limit", "sent"), [({"max_calls": 3}, 3), ({"budget": 1.5e-4, "price_in": 1.0}, 2)], ids=["calls", "money"])
def test_a_limit_ends_the_asking_and_what_was_answered_is_kept(limit: dict[str, Any], sent: int) -> None:
    """A call costs 100 tokens, 1e-4 in money: after the second the budget is spent."""
    with chat(lambda body, n: said("A")) as server:
        with pytest.raises(PreftuneError, match="raise it: what was answered is kept"):
            grid(judge_at(server.url, concurrency=1, **limit))
        assert len(server.bodies) == sent
        assert grid(judge_at(server.url)).eq(1).all()
    assert len(server.bodies) == 4


def test_requests_keep_to_the_rate() -> None:
    """1200 a minute are one every 50 ms, also from eight threads."""
    with chat(lambda body, n: said("A")) as server:
        grid(judge_at(server.url, rate=1200))
    assert server.times[-1] - server.times[0] >= 0.14  # three gaps, less what the clock rounds


def test_an_interrupt_waits_for_no_answer() -> None:
    begun = time.monotonic()
    with chat(lambda body, n: (HANG, {}, {})) as server:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            pair(judge_at(server.url))
    assert time.monotonic() - begun < 5


def test_an_interrupted_process_ends_while_requests_hang() -> None:
    program = (
        "import sys\nfrom preftune.client import Client, each\nclient = Client(sys.argv[1])\n"
        "print('asking', flush=True)\n"
        "list(each(lambda item, stop: client.chat([], stop=stop), range(3), 3))"
    )
    with chat(lambda body, n: (HANG, {}, {})) as server:
        process = subprocess.Popen([sys.executable, "-c", program, server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"asking\n"
        while len(server.bodies) < 3:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=10)
    assert b"KeyboardInterrupt" in complaint


@pytest.mark.parametrize(
    ("options", "said_so"),
    [
        ({"url": "ftp://x"}, "needed an address such as"),
        ({"url": "http://user:word@x"}, "put the key into an environment variable"),
        ({"votes": 3}, "draws the same verdict again"),
        ({"budget": 1.0}, "needed price_in or price_out"),
        ({"retries": -1}, "retries is -1"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"rubric": "grade"}, "the rubric grade is there to grade, but mode is compare"),
        ({"rubric": "nowhere.txt"}, "there is no rubric 'nowhere.txt'"),
        ({"concurrency": 0}, "needed 1 or more"),
        ({"low": 5}, "needed low < high"),
        ({"request": "nowhere.json"}, "cannot be read"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(options: dict[str, Any], said_so: str) -> None:
    with pytest.raises(PreftuneError, match=said_so):
        endpoint(**{"url": "http://127.0.0.1:1/v1", "model": "m", **options})


def test_a_rubric_without_a_place_for_the_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Which is better: {a} or the other?")
    with pytest.raises(PreftuneError, match="has no {prompt} and no {b}"):
        rubric_of("compare", str(tmp_path / "mine.txt"), None, None)


def test_an_empty_call_asks_nothing() -> None:
    judge = endpoint("http://127.0.0.1:1/v1", "m")
    assert isinstance(judge, Comparing)
    assert judge.asker.ask([], 1).shape == torch.Size([0, 1])
