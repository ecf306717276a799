"""Rules that can be verified: final answers, patterns, tests that run, lengths."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from preftune.api import resolve_judge
from preftune.judges import rules
from preftune.policies.text.tokens import encode
from preftune.types import Key, PreftuneError, Rows
from text_fixtures import Record, tiny_tokenizer

KEY = Key.of(0)
runs_code = pytest.mark.skipif(sys.platform != "linux", reason="needs limits as Linux has")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Rows as a JSONL file."""

    def rows(*lines: dict[str, Any]) -> Path:
        path = tmp_path / "expected.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return rows


def rows_of(prompt: Any, *responses: str) -> Rows:
    return encode([Record("a", prompt, list(responses))], tiny_tokenizer())[0]


def scores(judge: Any, rows: Rows) -> list[float]:
    return judge.score(rows, rows.response, KEY)[0].tolist()  # type: ignore[no-any-return]


# --- final answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("First \\boxed{1}, no: \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{3} and then \\boxed{4", "3"),
        ("Adding up.\n#### 42", "42"),
        ("The answer is 42. I hope so.", "42"),
        ("Answer: 7\nAnswer: 3.5", "3.5"),
        ("**Final answer:** 7 apples", "** 7 apples"),
        ("The answer is", None),
        ("It must be 42", None),
        ("", None),
    ],
)
def test_a_final_answer_is_boxed_or_marked_and_the_last_one_counts(response: str, found: str | None) -> None:
    assert rules.final_answer(response) == found


def test_a_marker_of_ones_own_replaces_the_others() -> None:
    assert rules.final_answer("\\boxed{1}\nResult -> 2\nResult -> 3", "Result ->") == "3"
    assert rules.final_answer("\\boxed{1}", "Result ->") is None


@pytest.mark.parametrize(
    ("found", "wanted", "equal"),
    [
        ("12", "12.0", True),
        ("1,234", "1234", True),
        ("12,34", "1234", False),
        ("** -3e2", "-300", True),
        ("\\dfrac{3}{4}", "0.75", True),
        ("$\\frac{1}{3}$", "0.333333333", True),
        ("1/3", "0.333", False),
        ("12%", "12", True),
        ("7 apples.", "7", True),
        ("5 km", "5 miles", False),
        ("2x", "2", False),
        ("3 or 4", "3", False),
        ("0.0000001", "0", False),
        ("1/0", "1", False),
        ("\\text{Paris}", "paris.", True),
        ("(B)", "( b )", False),
        ("nan", "NaN", True),
        ("9" * 5000, "9" * 5000, True),
        ("1e999", "inf", False),
    ],
)
def test_final_answers_are_compared_as_numbers_where_both_are_some(found: str, wanted: str, equal: bool) -> None:
    assert rules.same(found, wanted, 1e-6) == equal


def test_right_answers_beat_wrong_ones_almost_surely_and_equals_are_even(write: Any) -> None:
    """sigmoid(10) = 0.99995."""
    judge = resolve_judge(f"answer,data={write({'prompt': 'What is 6 * 7?', 'answer': 42})}")
    rows = rows_of("What is 6 * 7?", "The answer is 42.", "#### 42.0", "The answer is 41.", "42")
    assert scores(judge, rows) == [1.0, 1.0, 0.0, 0.0]
    p = judge.prefer(rows, rows.response, rows.response, KEY)[0]
    assert p[0, 1] == 0.5 and p[0, 2].item() == pytest.approx(0.9999546)


def test_a_reference_solution_is_read_by_its_mark(write: Any) -> None:
    judge = rules.answer(str(write({"prompt": "q", "answer": "6 * 7 = 42\n#### 42"})))
    assert scores(judge, rows_of("q", "\\boxed{42}", "\\boxed{6}")) == [1.0, 0.0]


def test_prompts_are_known_by_their_last_message_and_unknown_ones_have_no_answer(write: Any) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "And 2 + 2?"}]
    judge = rules.answer(str(write({"prompt": messages, "answer": "4"}, {"prompt": " 1 + 1?\n", "answer": "2"})))
    assert scores(judge, rows_of(messages, "#### 4")) == [1.0]
    assert scores(judge, rows_of([{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1?"}], "#### 2")) == [1.0]
    assert math.isnan(scores(judge, rows_of("3 + 3?", "#### 6"))[0])


@pytest.mark.parametrize(
    ("lines", "said_so"),
    [
        ([{"prompt": "q"}], "row 1: found prompt, needed prompt and answer"),
        ([{"question": "q", "answer": "1"}], "row 1: found question, answer, needed prompt"),
        ([{"prompt": "q", "answer": "1"}, {"prompt": "q", "answer": "2"}], "row 2: its prompt came before with another answer"),
    ],
)
def test_data_without_one_answer_for_each_prompt_are_refused(lines: list[dict[str, Any]], said_so: str, write: Any) -> None:
    with pytest.raises(PreftuneError, match=said_so):
        rules.answer(str(write(*lines)))


# --- patterns and lengths ---------------------------------------------------------------------------------------------


def test_patterns_count_as_the_share_that_is_found(tmp_path: Path) -> None:
    (tmp_path / "patterns.txt").write_text("^Dear\n\n(?i)regards\n")
    rows = rows_of("Write.", "Dear you,\nRegards", "Dear you", "Hello\nDear")
    assert scores(rules.regex(file=str(tmp_path / "patterns.txt")), rows) == [1.0, 0.5, 0.0]
    assert scores(resolve_judge("regex,pattern=^Hello"), rows) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("options", "said_so"),
    [
        ({}, "needed exactly one of them"),
        ({"pattern": "a", "file": "b"}, "needed exactly one of them"),
        ({"pattern": "("}, "'.' is no pattern"),
        ({"file": "nowhere.txt"}, "nowhere.txt is no file"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(options: dict[str, str], said_so: str) -> None:
    with pytest.raises(PreftuneError, match=said_so):
        rules.regex(**options)


def test_length_likes_what_is_near_its_target_or_longer() -> None:
    rows = rows_of("Write.", "four", "eight ch", "")
    assert scores(rules.length(target=5, width=1), rows) == [-1.0, -3.0, -5.0]
    assert scores(rules.length(width=4), rows) == [1.0, 2.0, 0.0]
    assert scores(rules.length(unit="words", width=1), rows) == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("options", [{"width": 0.0}, {"target": -1.0}, {"target": math.nan}])
def test_lengths_that_cannot_be_meant_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(PreftuneError, match="needed target >= 0 and width > 0"):
        rules.length(**options)


# --- tests that run ---------------------------------------------------------------------------------------------------

DOUBLE = "def f(x):\n    return 2 * x\n"
CHECKS = ["assert f(2) == 4", "assert f(3) == 7"]


@runs_code
def test_code_counts_by_the_share_of_tests_that_it_passes(write: Any) -> None:
    file = write({"prompt": "Double.", "tests": ["assert f(2) == 4", "assert f(0) == 0"]})
    judge = resolve_judge(f"tests,data={file},allow_code=true")
    rows = rows_of("Double.", f"Here:\n```python\n{DOUBLE}```\nDone.", "```\ndef f(x): return x + 2\n```", DOUBLE, "no code")
    assert scores(judge, rows) == [1.0, 0.5, 1.0, 0.0]


@runs_code
@pytest.mark.parametrize(
    ("code", "count"),
    [
        (DOUBLE, 1),
        ("import os\nos._exit(0)", 0),
        ("import sys\nsys.exit(0)", 0),
        ("print('passed 2')", 0),
        ("x = bytearray(10**10)", 0),
        ("while True: print('x' * 1000)", 0),
        ("def f(", 0),
        ("input()", 0),
        ("import os\nassert 'PREFTUNE_CACHE' not in os.environ\n" + DOUBLE, 1),
        ("'\ud800'\n" + DOUBLE, 0),
    ],
    ids=["sound", "ends itself", "exits", "claims", "memory", "prints", "syntax", "input", "environment", "half a character"],
)
def test_only_tests_that_were_reached_and_passed_count(code: str, count: int) -> None:
    assert rules.passed(code, CHECKS, 10.0, 256) == count


@runs_code
@pytest.mark.parametrize("code", ["while True: pass", "import os, time\nos.fork()\ntime.sleep(60)", "import time\ntime.sleep(60)"])
def test_code_that_does_not_end_is_ended_with_all_that_it_started(code: str) -> None:
    begun = time.monotonic()
    assert rules.passed(code, CHECKS, 0.5, 256) == 0
    assert time.monotonic() - begun < 10


def test_code_runs_only_where_that_was_said() -> None:
    with pytest.raises(PreftuneError, match="runs code that a model wrote, needed your word"):
        resolve_judge("tests,data=nowhere.jsonl")


@runs_code
def test_tests_that_are_no_text_are_refused(write: Any) -> None:
    with pytest.raises(PreftuneError, match="needed Python text or a list of such"):
        rules.tests(str(write({"prompt": "q", "tests": [1]})), allow_code=True)


def test_rules_are_not_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path))
    scores(rules.length(), rows_of("Write.", "one"))
    assert not list(tmp_path.iterdir())
