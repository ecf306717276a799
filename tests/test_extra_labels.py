"""Columns that one method alone reads: from the file into the rows, beside the response that they speak of."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import preftune
from preftune.collect.draw import given
from preftune.data import load
from preftune.data.feed import TextFeed, usable
from preftune.data.files import from_rows, save
from preftune.objectives import pairwise
from preftune.reference import frozen
from preftune.types import Loss, Method, PreftuneError, Scored, needs
from preftune.update import plain
from text_fixtures import tiny_folder, tiny_policy, tiny_tokenizer

NAN = float("nan")


def feed(rows: list[dict[str, Any]] | Any, columns: Any = 2, *, labels: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> TextFeed:
    data = from_rows(rows) if isinstance(rows, list) else rows
    return TextFeed(data, tiny_tokenizer(), columns, labels=labels, optional=optional)


def extra(rows: list[dict[str, Any]] | Any, columns: Any = 2, **names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    made = feed(rows, columns, **names)
    return dict(made.rows(range(len(made))).extra)


def same(found: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0, equal_nan=True)


def texts(made: TextFeed) -> list[list[str]]:
    return made.rows(range(len(made))).response.show()


def test_a_number_is_one_for_the_row_a_list_one_for_each_response_and_lists_several() -> None:
    rows = [
        {"prompt": "x", "chosen": "good", "rejected": "bad", "margin": 2, "length_bias": [0.5, -1], "aspects": [[1, 2, 3], [4, 5, 6]]},
        {"prompt": "y", "chosen": "yes", "rejected": "no", "margin": 0.5, "length_bias": [1, 2], "aspects": [[7, 8, 9], [0, 0, 1]]},
    ]
    found = extra(rows, labels=("margin", "length_bias"), optional=("aspects", "unknown"))
    same(found["margin"], [2, 0.5])
    same(found["length_bias"], [[0.5, -1], [1, 2]])
    same(found["aspects"], [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [0, 0, 1]]])
    assert set(found) == {"margin", "length_bias", "aspects"}


def test_columns_that_nobody_asks_for_stay_in_meta() -> None:
    rows = [{"prompt": "x", "chosen": "good", "rejected": "bad", "margin": "a word"}]
    assert extra(rows) == {}


# each file names "worst" first; whatever turns the responses round turns the list with them
LAYOUTS: dict[str, dict[str, Any]] = {
    "preference, swapped": {"chosen": "worst", "rejected": "best", "prefer": 0.2},
    "pair by winner": {"response_a": "worst", "response_b": "best", "winner": "b"},
    "pair by scores": {"response_a": "worst", "response_b": "best", "score_a": 1, "score_b": 5},
    "responses by scores": {"responses": ["worst", "best"], "scores": [1, 5]},
    "responses by ranks": {"responses": ["worst", "best"], "ranks": [2, 1]},
    "responses by prefer": {"responses": ["worst", "best"], "prefer": 0.1},
    "completions": {"completions": [{"response": "worst", "overall_score": 1}, {"response": "best", "overall_score": 5}]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_list_follows_the_responses_when_they_are_ordered_or_swapped(layout: str) -> None:
    row = {"prompt": "x", "words": [10, 20]} | LAYOUTS[layout]
    made = feed([row], labels=("words",))
    assert texts(made) == [["best", "worst"]]
    same(made.rows([0]).extra["words"], [[20, 10]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_saved_file_keeps_the_list_beside_its_responses(layout: str, tmp_path: Path) -> None:
    data = from_rows([{"prompt": "x", "words": [10, 20]} | LAYOUTS[layout]])
    save(data, tmp_path / "saved.jsonl")
    for again in (load(str(tmp_path / "saved.jsonl")), from_rows([data[0]])):
        made = feed(again, labels=("words",))
        assert texts(made) == [["best", "worst"]]
        same(made.rows([0]).extra["words"], [[20, 10]])


def test_a_list_follows_the_responses_that_are_kept() -> None:
    """Order by score: third, first, fourth, second."""
    row = {"prompt": "x", "responses": ["a", "b", "c", "d"], "scores": [3, 1, 4, 2], "words": [10, 20, 30, 40]}
    for columns, answers, words in [("K", ["c", "a", "d", "b"], [30, 10, 40, 20]), (2, ["c", "b"], [30, 20]), (1, ["c"], [30])]:
        made = feed([row], columns, labels=("words",))
        assert texts(made) == [answers]
        same(made.rows([0]).extra["words"], [words])


def test_a_prompt_alone_keeps_the_numbers_of_its_row() -> None:
    row = {"prompt": "x", "responses": ["a", "b"], "scores": [1, 2], "goal": 7, "words": [1, 2]}
    found = extra([row], 0, labels=("goal",), optional=("words",))
    same(found["goal"], [7])
    assert "words" not in found


def test_rows_without_a_value_are_nan_where_it_is_optional_in_every_batch() -> None:
    """Also in a batch where no row has one, once the data were read through."""
    rows = [{"prompt": p, "chosen": "good", "rejected": "bad"} for p in "abc"]
    rows[1] |= {"margin": 3, "words": [1, 2]}  # type: ignore[dict-item]
    made = feed(rows, optional=("margin", "words"))
    same(made.rows([0, 1]).extra["margin"], [NAN, 3])
    same(made.rows([0, 1]).extra["words"], [[NAN, NAN], [1, 2]])
    made = feed(rows, optional=("margin", "words"))
    made.check()
    same(made.rows([2]).extra["margin"], [NAN])
    same(made.rows([2]).extra["words"], [[NAN, NAN]])


def test_shorter_rows_of_a_list_are_filled_with_nan() -> None:
    rows = [
        {"prompt": "x", "responses": ["a", "b", "c"], "ranked": True, "words": [1, 2, 3]},
        {"prompt": "y", "responses": ["a", "b"], "ranked": True, "words": [4, 5]},
    ]
    same(extra(rows, "K", labels=("words",))["words"], [[1, 2, 3], [4, 5, NAN]])


def test_cells_of_csv_are_read_as_numbers_and_lists(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text('prompt,chosen,rejected,margin,words\nx,good,bad,2.5,"[1, 2]"\ny,yes,no,,\n')
    found = extra(load(str(file)), optional=("margin", "words"))
    same(found["margin"], [2.5, NAN])
    same(found["words"], [[1, 2], [NAN, NAN]])


PAIR = {"prompt": "x", "chosen": "good", "rejected": "bad"}
BROKEN: dict[str, tuple[list[dict[str, Any]], str]] = {
    "absent": ([PAIR], r"rows, row 1, column 'margin': found no value, needed a number or a list.*fill it"),
    "absent in one row": ([PAIR | {"margin": 1}, PAIR], r"row 2, column 'margin': found no value"),
    "under another name": ([PAIR | {"margins": 1}], r"rename with columns={'margins': 'margin'}"),
    "text": ([PAIR | {"margin": "much"}], r"row 1, column 'margin': found 'much', needed a number"),
    "too large": ([PAIR | {"margin": 10**400}], r"row 1, column 'margin': found inf, needed a finite number"),
    "not finite": ([PAIR | {"margin": [1, float("inf")]}], r"row 1, column 'margin': found inf, needed a finite number"),
    "too long": ([PAIR | {"margin": [1, 2, 3]}], r"found 3 values, needed 2, one for each response"),
    "broken JSON": ([PAIR | {"margin": "[1, 2"}], r"row 1, column 'margin': found broken JSON"),
    "of two kinds": ([PAIR | {"margin": 1}, PAIR | {"margin": [1, 2]}], r"row 2, column 'margin': found \[1.0, 2.0\], needed a number"),
    "of two sizes": (
        [PAIR | {"margin": [[1], [2]]}, PAIR | {"margin": [[1, 2], [3, 4]]}],
        r"row 2, column 'margin': .*needed a list of lists of numbers of 1 as in the other rows",
    ),
    "ragged": ([PAIR | {"margin": [[1], [2, 3]]}], r"row 1, column 'margin': found \[\[1.0\], \[2.0, 3.0\]\], needed lists of one size"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_cell_that_is_not_as_it_should_be_is_named(case: str) -> None:
    rows, message = BROKEN[case]
    with pytest.raises(PreftuneError, match=message):
        feed(rows, labels=("margin",)).check()


def test_a_goal_says_which_command_makes_it() -> None:
    with pytest.raises(PreftuneError, match="preftune data goals"):
        feed([PAIR], labels=("goal",)).check()


@needs(columns=2, labels=("ranked", "margin"))
def with_margin(s: Scored) -> Loss:
    loss = pairwise.dpo(s)
    return Loss(loss.row, {"margin_seen": s.rows.label("margin")[:, 0]})


def test_training_reads_the_column_and_finds_the_last_row_without_it_before_it_begins(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {i}", "chosen": "good", "rejected": "bad", "margin": [2, 1]} for i in range(4)]
    method = lambda: Method(with_margin, given, frozen, plain)
    run = partial(preftune.train, str(tiny_folder(tmp_path / "model")), method, samples=0, progress=False, batch=2, lr=1e-3)
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(str(file), out=tmp_path / "run")
    assert [line["margin_seen"] for line in done.history] == [2.0, 2.0]
    file.write_text("".join(json.dumps(row | {"margin": [3, 1]}) + "\n" for row in rows))
    with pytest.raises(PreftuneError, match="data_fingerprint"):  # the same texts with other labels are other data
        run(str(file), out=tmp_path / "run", resume=True)
    del rows[-1]["margin"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(PreftuneError, match=r"data.jsonl, row 4, column 'margin': found no value"):
        run(str(file), out=tmp_path / "refused")
    assert not (tmp_path / "refused" / "metrics.jsonl").exists()


# --- steps ----------------------------------------------------------------------------------------------------------

STEPS = {"prompt": "2 + 2 + 1 =", "responses": ["2 + 2 = 5", "2 + 2 = 4, 4 + 1 = 5"], "scores": [1, 9]}


def cuts(row: dict[str, Any], columns: Any = "K", **options: Any) -> tuple[list[Any], list[list[str]]]:
    made = TextFeed(from_rows([row]), tiny_tokenizer(), columns, steps=True, **options)
    rows = made.rows([0])
    return [] if rows.segments is None else rows.segments[0].tolist(), rows.response.show()


def test_steps_become_boundaries_in_tokens_beside_their_response() -> None:
    """The better answer stands second in the file. Its tokens up to a border, decoded, are the steps up to there."""
    row = STEPS | {"steps": [["2 + 2 = 5"], ["2 + 2 = 4,", " 4 + 1", " = 5"]]}
    made = TextFeed(from_rows([row]), tokenizer := tiny_tokenizer(), "K", steps=True)
    rows = made.rows([0])
    assert rows.segments is not None and rows.segments.shape == (1, 2, 4)
    best, other = rows.segments[0].tolist()
    tokens = rows.response.tokens[0]
    assert best[0] == 0 and best[-1] == len(tokens[0]) and other == [0, *[len(tokens[1])] * 3]
    texts = [tokenizer.decode(list(tokens[0][:end]), skip_special_tokens=True) for end in best]
    assert texts == ["", "2 + 2 = 4,", "2 + 2 = 4, 4 + 1", "2 + 2 = 4, 4 + 1 = 5"]
    assert made.rows([0]).extra == {}


def test_a_token_belongs_to_the_step_in_which_it_begins() -> None:
    """The tokenizer has a token for " the" and "the"; a border within it leaves it to the step of its first character."""
    tokenizer = tiny_tokenizer()
    assert len(tokenizer(" the", add_special_tokens=False)["input_ids"]) == 1
    whole = {"prompt": "x", "responses": ["is the", "no"], "ranked": True}
    inside, _ = cuts(whole | {"steps": [["is t", "he"], ["no"]]})
    before, _ = cuts(whole | {"steps": [["is", " the"], ["no"]]})
    n = len(tokenizer("is", add_special_tokens=False)["input_ids"])
    assert before[0] == [0, n, n + 2] and inside[0] == [0, n + 1, n + 2]  # the end of turn belongs to the last step


def test_empty_steps_and_a_cut_response_have_boundaries_too() -> None:
    row = STEPS | {"steps": [["2 + 2 = 5"], ["2 + 2 = 4,", "", " 4 + 1 = 5"]]}
    full, _ = cuts(row, 2)
    assert full[0][1] == full[0][2]
    short, _ = cuts(row, 2, max_response=3)
    assert short == [[0, 3, 3, 3], [0, 3, 3, 3]]


def test_rows_without_steps_are_one_segment_and_data_without_have_none() -> None:
    made = TextFeed(from_rows([STEPS | {"steps": [["2 + 2 ", "= 5"], ["2 + 2 = 4, 4 + 1 = 5"]]}, STEPS]), tiny_tokenizer(), "K", steps=True)
    rows = made.rows([0, 1])
    length = rows.response.length
    assert rows.segments is not None and rows.segments[1].tolist() == [[0, n, n] for n in length[1].tolist()]
    assert cuts(STEPS)[0] == []


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([["2 + 2 = 5"], ["2 + 2 = 4,", "4 + 1 = 5"]], r"row 1, column 'steps': found steps that make '2 \+ 2 = 4,4 \+ 1 = 5', needed"),
        ([["2 + 2 = 5"]], r"found 1 values, needed 2"),
        (["2 + 2 = 5", "2 + 2 = 4, 4 + 1 = 5"], r"column 'steps': found 2 \+ 2 = 5, needed a list"),
        ([["2 + 2 = 5"], [1]], r"column 'steps': .* needed text"),
    ],
)
def test_steps_that_do_not_make_the_response_are_refused_before_training(steps: Any, message: str) -> None:
    with pytest.raises(PreftuneError, match=message):
        TextFeed(from_rows([STEPS | {"steps": steps}]), tiny_tokenizer(), "K", steps=True).check()


def test_tpo_trains_on_the_steps_of_a_file(tmp_path: Path) -> None:
    rows = [STEPS | {"prompt": f"{i} + 1 =", "steps": [["2 + 2 = 5"], ["2 + 2 = 4,", " 4 + 1 = 5"]]} for i in range(4)]
    file = tmp_path / "trees.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = partial(preftune.train, str(tiny_folder(tmp_path / "model")), "tpo", samples=0, progress=False, batch=2, lr=1e-3)
    assert run(str(file), out=tmp_path / "run").steps == 2
    file.write_text("".join(json.dumps(STEPS | {"prompt": f"{i} + 1 ="}) + "\n" for i in range(4)))
    with pytest.raises(PreftuneError, match="segments"):
        run(str(file), out=tmp_path / "without")


# --- a gold response beside the pair --------------------------------------------------------------------------------

GOLDEN = PAIR | {"gold": "best"}
USER, SAID = {"role": "user", "content": "x"}, lambda text: {"role": "assistant", "content": text}
GOLDS: dict[str, dict[str, Any]] = {
    "gold": GOLDEN,
    "TRL's name": PAIR | {"reference": "best"},
    "gold before TRL's name": GOLDEN | {"reference": "another"},
    "pair that is swapped": {"prompt": "x", "chosen": "bad", "rejected": "good", "prefer": 0.2, "gold": "best"},
    "pair by scores": {"prompt": "x", "response_a": "bad", "response_b": "good", "score_a": 1, "score_b": 2, "gold": "best"},
    "message": PAIR | {"gold": [SAID("best")]},
    "chats": {"chosen": [USER, SAID("good")], "rejected": [USER, SAID("bad")], "gold": [USER, SAID("best")]},
    "list of three": {"prompt": "x", "responses": ["good", "bad", "best"], "ranked": True},
}


@pytest.mark.parametrize("layout", GOLDS)
def test_three_responses_are_the_pair_and_its_gold_one(layout: str, tmp_path: Path) -> None:
    save(from_rows([GOLDS[layout]]), tmp_path / "saved.jsonl")
    for data in (from_rows([GOLDS[layout]]), load(str(tmp_path / "saved.jsonl"))):
        assert len(usable(data, 3, ["ranked"])[0]) == 1
        assert texts(feed(data, 3)) == [["good", "bad", "best"]]


def test_methods_of_pairs_and_lists_leave_the_gold_response_alone() -> None:
    for columns in (2, "K"):
        assert texts(feed([GOLDEN], columns)) == [["good", "bad"]]


def test_a_prompt_that_all_three_texts_begin_with_is_taken_off_all_three() -> None:
    made = feed([{"chosen": "a b good", "rejected": "a b bad", "gold": "a b best"}], 3)
    assert texts(made) == [[" good", " bad", " best"]]


def test_lists_of_the_pair_and_its_gold_response_follow_a_swap() -> None:
    row = GOLDS["pair that is swapped"] | {"words": [20, 10, 30]}
    same(extra([row], 3, labels=("words",))["words"], [[10, 20, 30]])


def test_rows_without_a_gold_response_are_left_out_and_counted() -> None:
    rows = [GOLDEN, PAIR, PAIR | {"gold": None}, PAIR | {"gold": " "}, PAIR | {"reference": 7}]
    data, notes = usable(from_rows(rows), 3, ["ranked"])
    assert len(data) == 1 and notes == ["4 rows are left out: fewer than 3 responses"]


def test_another_gold_response_makes_other_data() -> None:
    seen = []
    for said in ("best", "better"):
        made = feed([PAIR | {"gold": said}], 3)
        made.check()
        seen.append(made.fingerprint)
    assert None not in seen and seen[0] != seen[1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PAIR | {"gold": 7}, r"row 1, column 'gold': found int 7, needed text"),
        (GOLDS["chats"] | {"gold": [SAID("y"), SAID("best")]}, r"column 'gold': found a chat that begins otherwise than the prompt"),
        (
            {"prompt": "x", "responses": list("abcd"), "scores": [4, 3, 2, 1]},
            r"row 1: found 4 responses, needed 3; .*chosen, rejected and gold",
        ),
    ],
)
def test_what_is_no_gold_response_is_refused_before_training(row: dict[str, Any], said: str) -> None:
    with pytest.raises(PreftuneError, match=said):
        feed([GOLDEN, row][1:], 3).check()
    with pytest.raises(PreftuneError, match=r"row 1: found 2 responses, needed 3; use the columns chosen, rejected and gold"):
        usable(from_rows([PAIR]), 3)


# --- labels that every row needs ------------------------------------------------------------------------------------

LIST = {"prompt": "x", "responses": ["a", "b", "c"]}
LACKING: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "no scores": ("odpo", [PAIR | {"score_chosen": 2, "score_rejected": 1}] * 2 + [PAIR], "row 3: found 2 responses without scores"),
    "scores of some": ("lipo", [LIST | {"scores": [1, 2, 3]}, LIST | {"ranked": True}], "row 2: found 3 responses without scores"),
    "no order": ("dpo", [LIST | {"ranked": True}, LIST | {"ranked": False}], "row 2: found 3 responses without ranks"),
    "no label": ("bco", [LIST | {"desirable": [1, 0, 0]}, LIST | {"ranked": True}], "row 2: found 3 responses without desirable labels"),
}


@pytest.mark.parametrize("name", LACKING)
def test_a_row_without_a_label_that_the_method_needs_is_found_before_the_first_step(name: str, tmp_path: Path) -> None:
    method, rows, said = LACKING[name]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(PreftuneError, match=f"data.jsonl, {said}"):
        preftune.train(tiny_policy(), method, str(file), out=tmp_path / "run", progress=False, samples=0)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_list_of_one_response_is_left_out_where_lists_are_compared() -> None:
    rows = [LIST | {"scores": [1, 2, 3]}, {"prompt": "x", "responses": ["a"], "scores": [1]}]
    data, notes = usable(from_rows(rows), "K", ["ranked"], ["score"])
    assert len(data) == 1 and notes == ["1 rows are left out: fewer than 2 responses"]
    assert len(usable(from_rows([{"prompt": "x", "completion": "a", "label": True}]), "K", ["desirable"])[0]) == 1
