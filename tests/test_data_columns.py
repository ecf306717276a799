"""Converters: every format gives the record it should, every bad cell an error with its place, every useless row a reason."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.columns import FORMATS, Dropped, Record, convert, identify, prompt_digest, recognise, to_row
from preftune.types import PreftuneError

USER = {"role": "user", "content": "2 + 2 ="}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(row: dict) -> Record:
    """The record of a row whose format is recognised."""
    found = convert(row, "file.jsonl, row 17", recognise(row, "file.jsonl, row 17"))
    assert isinstance(found, Record), found
    return found


def dropped(row: dict) -> str:
    """The reason for which a row is dropped."""
    found = convert(row, "file.jsonl, row 17", recognise(row, "file.jsonl, row 17"))
    assert isinstance(found, Dropped), found
    return found.reason


def fields(record: Record) -> tuple:
    return record.prompt, record.responses, record.ranked, record.scores, record.prefer, record.desirable


PAIR = ["4", "5"]
CASES = {  # row, format, prompt, responses, ranked, scores, prefer, desirable
    "explicit prompt": ({"prompt": "2 + 2 =", "chosen": "4", "rejected": "5"}, "preference", "2 + 2 =", PAIR, True, None, None, None),
    "implicit prompt": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        "preference", "The sky is", [" blue.", " black."], True, None, None, None,
    ),
    "one text begins the other": ({"chosen": "a b", "rejected": "a b c"}, "preference", "a", [" b", " b c"], True, None, None, None),
    "chat, explicit prompt": (
        {"prompt": [USER], "chosen": [said("4")], "rejected": [said("5")]}, "preference", [USER], PAIR, True, None, None, None,
    ),
    "chat, implicit prompt": (
        {"chosen": [USER, said("4")], "rejected": [USER, said("5")]}, "preference", [USER], PAIR, True, None, None, None,
    ),
    "chat, prompt as text besides": (
        {"prompt": "2 + 2 =", "chosen": [USER, said("4")], "rejected": [USER, said("5")], "score_chosen": 8.0, "score_rejected": 3},
        "preference", [USER], PAIR, True, [8.0, 3.0], None, None,
    ),
    "chat, text prompt, answers alone": (
        {"prompt": "2 + 2 =", "chosen": [said("4")], "rejected": [said("5")]}, "preference", [USER], PAIR, True, None, None, None,
    ),
    "chat in parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "2 + 2 ="}]}], "chosen": "4", "rejected": "5"},
        "preference", [USER], PAIR, True, None, None, None,
    ),
    "soft label": (
        {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5", "prefer": 0.75}, "preference", "2 + 2 =", PAIR, True, None, 0.75, None,
    ),
    "soft label below a half": (
        {"prompt": "2 + 2 =", "chosen": "5", "rejected": "4", "prefer": 0.25}, "preference", "2 + 2 =", PAIR, True, None, 0.75, None,
    ),
    "votes": (
        {"prompt": "2 + 2 =", "chosen": "5", "rejected": "4", "votes_chosen": 1, "votes_rejected": 3},
        "preference", "2 + 2 =", PAIR, True, None, 0.75, None,
    ),
    "wins": (
        {"prompt": "2 + 2 =", "response_a": "4", "response_b": "5", "wins_a": 3, "wins_b": 1},
        "pair", "2 + 2 =", PAIR, True, None, 0.75, None,
    ),
    "win rate": (
        {"prompt": "2 + 2 =", "response_a": "5", "response_b": "4", "winrate": 0.0}, "pair", "2 + 2 =", PAIR, True, None, 1.0, None,
    ),
    "winner": (
        {"prompt": "2 + 2 =", "response_a": "4", "response_b": "5", "winner": "tie"}, "pair", "2 + 2 =", PAIR, True, None, 0.5, None,
    ),
    "two scores": (
        {"prompt": "2 + 2 =", "response_a": "5", "response_b": "4", "score_a": 1, "score_b": 9},
        "pair", "2 + 2 =", PAIR, True, [9.0, 1.0], None, None,
    ),
    "scored list": (
        {"prompt": "2 + 2 =", "responses": ["5", "4", "7"], "scores": [2, 9, 1]},
        "responses", "2 + 2 =", ["4", "5", "7"], True, [9.0, 2.0, 1.0], None, None,
    ),
    "ranked list": (
        {"prompt": "2 + 2 =", "responses": ["5", "4", "7"], "ranks": [2, 1, 3]},
        "responses", "2 + 2 =", ["4", "5", "7"], True, None, None, None,
    ),
    "list in order": (
        {"prompt": "2 + 2 =", "responses": ["4", "5", "7"], "ranked": True},
        "responses", "2 + 2 =", ["4", "5", "7"], True, None, None, None,
    ),
    "list of nothing known": (
        {"prompt": "2 + 2 =", "responses": ["4", "5"], "ranked": False}, "responses", "2 + 2 =", PAIR, False, None, None, None,
    ),
    "list of labels": (
        {"prompt": "2 + 2 =", "responses": ["4", "5"], "desirable": [True, False]},
        "responses", "2 + 2 =", PAIR, False, None, None, [True, False],
    ),
    "list of win rates": (
        {"prompt": "2 + 2 =", "responses": ["5", "4"], "winrate": [0.2, 0.9]}, "responses", "2 + 2 =", PAIR, True, [0.9, 0.2], None, None,
    ),
    "probability below a half turns labels too": (
        {"prompt": "2 + 2 =", "responses": ["5", "4"], "prefer": 0.25, "desirable": [False, True], "scores": [1, 3]},
        "responses", "2 + 2 =", PAIR, True, [3.0, 1.0], 0.75, [True, False],
    ),
    "UltraFeedback": (
        {"instruction": "2 + 2 =", "completions": [{"response": "5", "overall_score": 2}, {"response": "4", "overall_score": 9.5}]},
        "completions", "2 + 2 =", PAIR, True, [9.5, 2.0], None, None,
    ),
    "UltraFeedback, single ratings": (
        {
            "instruction": "2 + 2 =",
            "completions": [
                {"response": "5", "annotations": {"truth": {"Rating": "1"}, "help": {"Rating": "N/A"}}},
                {"response": "4", "annotations": {"truth": {"Rating": "5"}, "help": {"Rating": "4"}}},
            ],
        },
        "completions", "2 + 2 =", PAIR, True, [4.5, 1.0], None, None,
    ),
    "HH transcript": (
        {"chosen": "\n\nHuman: 2 + 2 =\n\nAssistant: 4", "rejected": "\n\nHuman: 2 + 2 =\n\nAssistant: 5"},
        "transcript", [USER], PAIR, True, None, None, None,
    ),
    "unpaired": ({"prompt": "2 + 2 =", "completion": "4", "label": True}, "unpaired", "2 + 2 =", ["4"], False, None, None, [True]),
    "unpaired chat": (
        {"prompt": [USER], "completion": [said("5")], "label": 0}, "unpaired", [USER], ["5"], False, None, None, [False],
    ),
    "labelled messages": ({"messages": [USER, said("5")], "label": False}, "messages", [USER], ["5"], False, None, None, [False]),
    "demonstration": ({"prompt": "2 + 2 =", "completion": "4"}, "prompt-completion", "2 + 2 =", ["4"], False, None, None, None),
    "messages": ({"messages": [USER, said("4")]}, "messages", [USER], ["4"], False, None, None, None),
    "ShareGPT messages": (
        {"messages": [{"from": "human", "value": "2 + 2 ="}, {"from": "gpt", "value": "4"}]},
        "messages", [USER], ["4"], False, None, None, None,
    ),
    "prompt alone": ({"prompt": "2 + 2 ="}, "prompts", "2 + 2 =", [], False, None, None, None),
    "steps": (
        {"prompt": "2 + 2 =", "completions": ["2 + 2", "= 4"], "labels": [True, True]},
        "stepwise", "2 + 2 =", ["2 + 2\n= 4"], False, None, None, [True],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_format_gives_its_record(name: str):
    row, form, *expected = CASES[name]
    assert recognise(row, "x") == form
    assert fields(read(row)) == tuple(expected)


@pytest.mark.parametrize("name", CASES)
def test_a_record_written_in_the_schema_is_read_back_as_itself(name: str):
    record = read(CASES[name][0])
    record = replace(record, id=identify(record)[0])
    again = read(json.loads(json.dumps(to_row(record))))
    assert replace(again, swapped=record.swapped) == record
    assert identify(again) == identify(record)


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.example])
def test_the_example_of_each_format_is_recognised_as_that_format(name: str):
    row = json.loads(FORMATS[name].example)
    assert recognise(row, "x") == name
    read(row)


def test_system_messages_unknown_columns_weights_and_ids_are_kept():
    record = read(
        {"messages": [{"role": "system", "content": "Be brief."}, USER, said("4")], "id": 7, "weight": "2", "source": "exam", "x": None}
    )
    assert (record.system, record.id, record.weight, record.meta) == ("Be brief.", "7", 2.0, {"source": "exam"})
    assert record.where == "file.jsonl, row 17" and record.prompt == [USER]
    assert read({"prompt": "a", "system": "Be kind."}).system == "Be kind."


def test_earlier_turns_and_the_answers_before_the_last_belong_to_the_prompt():
    head = [USER, said("4"), {"role": "user", "content": "and + 1?"}]
    assert read({"chosen": [*head, said("5")], "rejected": [*head, said("6")]}).prompt == head
    text = "\n\nHuman: 2 + 2 =\n\nAssistant: 4\n\nHuman: and + 1?\n\nAssistant:"
    assert read({"chosen": f"{text} 5", "rejected": f"{text} 6"}).prompt == head


DROPS = {
    "identical responses": [
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"chosen": "a b", "rejected": "a b"},
        {"chosen": [USER, said("4")], "rejected": [USER, said("4")]},
        {"prompt": "a", "responses": ["b", "b", "b"], "scores": [1, 2, 3]},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: b"},
    ],
    "empty response": [
        {"prompt": "a", "chosen": "b", "rejected": ""},
        {"prompt": "a", "completion": " \n"},
        {"prompt": "a", "response_a": "", "response_b": "b", "winner": "b"},
        {"prompt": "a", "responses": ["", "b"], "ranks": [1, 2]},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: "},
    ],
    "missing completion": [{"prompt": "a", "completion": None}],
    "missing rejected": [{"prompt": "a", "chosen": "b", "rejected": None}],
    "missing label": [{"prompt": "a", "completion": "b", "label": None}],
    "missing response": [{"prompt": "a", "responses": ["b", None], "scores": [1, 2]}],
    "missing score": [{"instruction": "a", "completions": [{"response": "b", "overall_score": 1}, {"response": "c"}]}],
    "empty prompt": [{"prompt": " ", "chosen": "a", "rejected": "b"}, {"prompt": "", "completion": "a"}],
    "no label": [{"prompt": "a", "response_a": "b", "response_b": "c"}],
    "no votes": [{"prompt": "a", "response_a": "b", "response_b": "c", "wins_a": 0, "wins_b": 0}],
    "all scores equal": [
        {"prompt": "a", "responses": ["b", "c"], "scores": [1, 1]},
        {"prompt": "a", "response_a": "b", "response_b": "c", "score_a": 2, "score_b": 2.0},
        {"prompt": "a", "completions": [{"response": "b", "overall_score": 1}, {"response": "c", "overall_score": 1}]},
    ],
    "dialogues differ before the last answer": [
        {"chosen": [USER, said("4")], "rejected": [{"role": "user", "content": "hi"}, said("5")]},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
    ],
    "no answer at the end of the dialogue": [{"messages": [USER]}, {"messages": [USER, said("4"), USER]}],
}


@pytest.mark.parametrize(("reason", "row"), [(reason, row) for reason, rows in DROPS.items() for row in rows])
def test_rows_that_say_nothing_are_dropped_with_a_reason(reason: str, row: dict):
    assert dropped(row) == reason


NAN = float("nan")
ERRORS = [  # row, column, found, needed
    ({"prompt": "a", "chosen": "b", "rejected": 5}, "rejected", "int 5", "chat messages"),
    ({"prompt": 3, "chosen": "b", "rejected": "c"}, "prompt", "int 3", "chat messages"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "prefer": NAN}, "prefer", "nan", "a number in [0, 1]"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "prefer": 1.2}, "prefer", "1.2", "a number in [0, 1]"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "prefer": "many"}, "prefer", "many", "a number"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "prefer": 0.5, "winrate": 0.5}, "winrate", "two labels", "one of them"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "weight": -1}, "weight", "-1", "a number in [0, inf]"),
    ({"prompt": "a", "response_a": "b", "response_b": "c", "winner": "c"}, "winner", "'c'", "a, b or tie"),
    ({"prompt": "a", "response_a": "b", "response_b": "c", "wins_a": -1, "wins_b": 2}, "wins_a", "-1", "a number in [0, inf]"),
    ({"prompt": "a", "responses": ["b", "c"], "scores": [1, NAN]}, "scores", "nan", "a finite number"),
    ({"prompt": "a", "responses": ["b", "c"], "scores": [1, None]}, "scores", "null", "a number"),
    ({"prompt": "a", "responses": ["b", "c"], "scores": [1, 2, 3]}, "scores", "3 values", "2, one for each response"),
    ({"prompt": "a", "responses": ["b", "c"]}, "responses", "without scores", "a label"),
    ({"prompt": "a", "responses": ["b", "c", "d"], "prefer": 0.7}, "prefer", "3 responses", "two responses"),
    ({"prompt": "a", "responses": "b"}, "responses", "b", "a list"),
    ({"prompt": "a", "responses": ["b", "c"], "scores": [1, 2], "winrate": [0.1, 0.2]}, "winrate", "both", "one of them"),
    ({"prompt": "a", "completion": "b", "label": "maybe"}, "label", "maybe", "true or false"),
    ({"prompt": "a", "completion": "b", "label": 2}, "label", "2", "true or false"),
    ({"prompt": "a", "completion": [USER, said("b")]}, "completion", "2 messages by user, assistant", "one message of the assistant"),
    ({"messages": "hi"}, "messages", "hi", "chat messages"),
    ({"messages": [{"role": "user"}]}, "messages", "user", "a message"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages", "tool_calls", "of text"),
    ({"prompt": [USER, said("4")], "completion": "b"}, "prompt", "ends with assistant", "comes from the user"),
    ({"prompt": [{"role": "system", "content": "x"}], "completion": "b"}, "prompt", "without any turn", "comes from the user"),
    ({"prompt": [{"role": "system", "content": "x"}, USER], "system": "y"}, "system", "another system message", "one of them"),
    ({"chosen": "yes", "rejected": "no"}, "chosen", "begin differently", "a shared beginning"),
    ({"chosen": [said("4")], "rejected": [said("5")]}, "chosen", "no prompt column", "turns before the answer"),
    ({"prompt": "x", "chosen": [USER, said("4")], "rejected": [USER, said("5")]}, "prompt", "'x'", "the same prompt"),
    ({"prompt": "a", "chosen": "b \ud800", "rejected": "c"}, "chosen", "surrogate", "Unicode text"),
    ({"text": "once upon a time"}, "text", "text without prompt", "a prompt with responses"),
    ({"prompt": "a", "completions": ["s", "t"], "labels": [True]}, "labels", "1 values", "2, one for each"),
    ({"completions": [{"response": "s", "overall_score": 1}]}, "instruction", "only completions", "instruction or prompt"),
    ({"prompt": "a", "completions": [{"response": "s", "overall_score": "NaN"}]}, "completions.overall_score", "NaN", "a number"),
]


@pytest.mark.parametrize(("row", "column", "found", "needed"), ERRORS)
def test_a_malformed_cell_names_row_column_found_and_needed(row: dict, column: str, found: str, needed: str):
    with pytest.raises(PreftuneError) as caught:
        read(row)
    message = str(caught.value)
    head, _, tail = message.partition(", needed ")
    assert head.startswith(f"file.jsonl, row 17, column {column!r}: found ") and found in head
    assert tail.startswith(needed) or needed in tail.partition(";")[0]
    assert tail.partition(";")[2].strip(), f"no advice in {message}"


@pytest.mark.parametrize(
    ("row", "nearest", "advice"),
    [
        ({"question": "a", "preferred": "b", "dispreferred": "c"}, "chosen and rejected", "{'question': 'prompt', 'preferred': 'chosen'"),
        ({"prompt": "a", "chosen": "b", "rejceted": "c"}, "chosen and rejected", "{'rejceted': 'rejected'}"),
        ({"instruction": "a", "output": "b"}, "prompt and completion", "{'instruction': 'prompt', 'output': 'completion'}"),
        ({"conversations": []}, "messages", "{'conversations': 'messages'}"),
        (
            {"prompt": "a", "response": "b"},
            "prompt and completion",
            "{'response': 'completion'} or, if prompts alone are meant, say format=",
        ),
        ({"nothing": "known"}, "prompt", "{'theirs': 'ours'}"),
    ],
)
def test_wrong_columns_are_listed_with_the_nearest_that_would_do(row: dict, nearest: str, advice: str):
    with pytest.raises(PreftuneError) as caught:
        recognise(row, "f.csv, row 1")
    assert f"found the columns {', '.join(row) or 'none'}, needed {nearest} " in str(caught.value)
    assert advice in str(caught.value)


def test_the_id_is_a_hash_of_content_alone():
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    here, there = read(row), replace(read({**row, "source": "web"}), where="other.csv, row 3")
    assert identify(here) == identify(there)
    for other in ({"prompt": "A"}, {"chosen": "d"}, {"prefer": 0.9}, {"weight": 2}, {"system": "s"}):
        assert identify(read({**row, **other}))[0] != identify(here)[0]
    assert identify(read({**row, "id": "x"}))[0] == "x" and identify(read({**row, "id": "x"}))[1] != identify(here)[1]


def test_one_prompt_under_several_spellings_is_one_prompt():
    spellings = [
        "a  b ",
        "a b",
        [{"role": "user", "content": "a\nb"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "a b"}],
    ]
    assert len({prompt_digest(read({"prompt": prompt})) for prompt in spellings}) == 1
    assert prompt_digest(read({"prompt": "ab"})) != prompt_digest(read({"prompt": "a b"}))


@given(st.floats(0, 1), st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_swapping_the_pair_with_its_label_changes_nothing(p: float, a: str, b: str):
    row = {"prompt": "x", "response_a": a, "response_b": b, "prefer": p}
    mirror = {"prompt": "x", "response_a": b, "response_b": a, "prefer": 1 - p}
    one, two = (convert(each, "f", "pair") for each in (row, mirror))
    if isinstance(one, Record) and isinstance(two, Record):
        assert one.prefer == pytest.approx(two.prefer) and one.prefer is not None and one.prefer >= 0.5
        assert one.tied or two.tied or one.responses == two.responses
    else:
        assert one == two == Dropped("identical responses")


@given(st.lists(st.sampled_from("ab \n"), min_size=1, max_size=12).map("".join), st.text("ab ", max_size=6), st.text("ab ", max_size=6))
def test_an_implicit_prompt_and_its_responses_join_to_the_texts(head: str, a: str, b: str):
    row = {"chosen": "x " + head + a, "rejected": "x " + head + b}
    found = convert(row, "f", "preference")
    if isinstance(found, Record):
        assert [found.prompt + response for response in found.responses] == [row["chosen"], row["rejected"]]
    else:
        assert found.reason in ("identical responses", "empty response")


def test_the_page_shows_two_rows_of_every_format_that_are_read_as_that_format():
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^### ([a-z-]+)\n.*?```jsonl\n(.*?)```", page, re.MULTILINE | re.DOTALL))
    assert set(shown) == set(FORMATS) - {"text"}
    for name, block in shown.items():
        rows = [json.loads(line) for line in block.splitlines()]
        assert len(rows) == 2 and [recognise(row, "x") for row in rows] == [name, name]
        for row in rows:
            read(row)
