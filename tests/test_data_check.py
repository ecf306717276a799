"""The data check: each number on data made to have it."""

from __future__ import annotations

import json

import pytest

from preftune.data import Record, from_rows
from preftune.data.check import check
from preftune.data.synthetic import arithmetic, arithmetic_score, copying, copying_score
from preftune.types import PreftuneError

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


class Words:
    """A tokenizer of white space, as far as counting needs one: another family than ours, with the calls of the real ones."""

    chat_template = None

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0] * (len(text.split()) + add_special_tokens) for text in texts]}


def test_counts_labels_and_columns():
    rows = [{**PAIR, "id": str(i), "prompt": f"p{i % 3}", "source": "x"} for i in range(5)] + [
        {**PAIR, "rejected": "a"},
        {**PAIR, "prefer": 0.5},
    ]
    report = check(from_rows(rows))
    assert (report.rows, report.prompts, report.responses, report.ties) == (6, 4, {2: 6}, 1)
    assert report.counts["dropped"] == {"identical responses": 1} and report.files == {"rows": "preference"}
    assert report.columns["rows"] == {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "id": "id", "source": "meta"}
    assert report.labels == {"ranked": 6, "scores": 0, "prefer": 1, "desirable": 0}
    assert report.duplicates == 2  # p0 and p1 come twice


def test_a_misspelt_label_column_is_pointed_out():
    report = check(from_rows([{**PAIR, "perfer": 0.9, "source": "web"}]))
    assert (
        report.warnings()[0] == "column 'perfer' is passed through unread; if it is 'prefer', rename it with columns={'perfer': 'prefer'}"
    )


def test_duplicates_are_found_under_other_ids_and_swapped():
    rows = [{**PAIR, "id": "1"}, {**PAIR, "id": "2"}, {"prompt": "p", "chosen": "b", "rejected": "a"}, {**PAIR, "prompt": "q"}]
    assert check(from_rows(rows)).duplicates == 2


def test_label_balance_and_length_bias():
    labels = [{"prompt": str(i), "completion": "a", "label": i < 3} for i in range(4)]
    assert check(from_rows(labels)).desirable == 0.75
    pairs = [{"prompt": str(i), "chosen": "long" if i < 3 else "a", "rejected": "ab"} for i in range(4)]
    report = check(from_rows(pairs))
    assert report.longer_wins == 0.75 and any("longer response wins" in line for line in report.warnings())
    voted = [{"prompt": str(i), "response_a": "a", "response_b": "b", "prefer": p} for i, p in enumerate([0.9, 0.2, 0.5, 0.4])]
    report = check(from_rows(voted))
    assert report.named_first_wins == pytest.approx(1 / 3) and report.mean_prefer == pytest.approx((0.9 + 0.8 + 0.5 + 0.6) / 4)


def test_repeated_responses_echoes_and_contradictions():
    rows = [
        {"prompt": "say it", "responses": ["say it now", "b", "b"], "scores": [3, 2, 1]},
        {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2], "ranked": True},
    ]
    report = check(from_rows(rows))
    assert (report.repeated_responses, report.echoes, report.contradictions) == (1, 1, 1)


def test_lengths_in_characters_and_tokens_and_what_truncation_would_cut():
    rows = [{"prompt": "w " * (i + 1), "completion": "x " * 2 * (i + 1)} for i in range(4)]
    report = check(from_rows(rows), Words(), max_prompt=3, max_response=5)
    prompts, answers = report.lengths["prompt tokens"], report.lengths["response tokens"]
    assert (prompts.mean, prompts.median, prompts.longest) == (3.5, 3.5, 5)  # 2 3 4 5: words and one special token
    assert (answers.mean, answers.longest) == (6.0, 9)  # 3 5 7 9: words and the end of the turn
    assert report.truncated == {"prompt": 0.5, "response": 0.5}
    assert report.lengths["response characters"].histogram == {"4-7": 1, "8-15": 2, "16-31": 1}
    with pytest.raises(PreftuneError, match="found a limit in tokens and no tokenizer, needed both; pass"):
        check(from_rows(rows), max_prompt=3)


def test_leakage_between_parts_is_counted_and_a_split_has_none():
    long = "an answer that is long enough to be no chance"
    train = from_rows([{"prompt": "p", "completion": "a"}, {"prompt": "q", "completion": long}])
    test = from_rows([{"prompt": " p ", "completion": "b"}, {"prompt": "r", "completion": long}, {"prompt": "s", "completion": "a"}])
    report = check(train, test=test)
    assert report.leakage == {"prompts": 1, "responses": 1} and any("test shares" in line for line in report.warnings())
    parts = from_rows(arithmetic(100)).split(0.3)
    assert check(parts[0], test=parts[1]).leakage == {"prompts": 0, "responses": 0}


def test_circles_among_repeated_responses():
    def duels(pairs: list[str], prompt: str = "p") -> list[dict]:
        return [{"prompt": prompt, "chosen": c, "rejected": r} for c, r in pairs]

    assert (check(from_rows(duels(["ab", "bc", "ca"]))).triples, check(from_rows(duels(["ab", "bc", "ca"]))).intransitive) == (1, 1)
    assert check(from_rows(duels(["ab", "bc", "ac"]))).intransitive == 0
    assert check(from_rows(duels(["ab", "bc"]) + duels(["ca"], "q"))).intransitive == 0  # three prompts' duels are no circle
    assert check(from_rows(duels(["ab", "bc", "ca", "ac", "ac"]))).intransitive == 0  # the majority holds a over c
    # rock, paper, scissors, lizard, spock: all 10 triples compared; a regular tournament of 5 has (5^3 - 5) / 24 = 5 circles
    five = duels([f"{a}{chr(ord('a') + (ord(a) - ord('a') + step) % 5)}" for a in "abcde" for step in (1, 2)])
    assert (check(from_rows(five)).triples, check(from_rows(five)).intransitive) == (10, 5)
    lists = [{"prompt": "p", "responses": list("abc"), "ranked": True}, {"prompt": "p", "responses": list("abc"), "ranks": [3, 2, 1]}]
    assert check(from_rows(lists)).triples == 0  # each comparison is undone by the other list


def test_the_report_is_json_and_a_table_that_names_every_drop():
    rows = [{"prompt": "p", "completion": "a", "label": True}, {"prompt": "p", "completion": "", "label": True}]
    report = check(from_rows(rows))
    assert json.loads(report.to_json())["counts"]["dropped"] == {"empty response": 1}
    table = report.table()
    for piece in ("format unpaired", "empty response: 1", "1 of 2 rows were dropped", "all labels are desirable", report.fingerprint):
        assert piece in table


@pytest.mark.parametrize(("make", "score"), [(arithmetic, arithmetic_score), (copying, copying_score)])
def test_made_up_tasks_have_the_answer_they_claim(make, score):
    for record in make(50, seed=3):
        best, worse = record.responses
        assert score(record.prompt, best) > score(record.prompt, worse)
    for record in make(50, kind="ranked"):
        assert record.scores == [score(record.prompt, answer) for answer in record.responses] == sorted(record.scores, reverse=True)
    for record in make(50, kind="unpaired"):
        right = make(50, kind="ranked")[0].scores[0]
        assert record.desirable == [score(record.prompt, record.responses[0]) == right]
    assert all(0.5 < record.prefer <= 1 for record in make(20, kind="soft"))
    assert make(20, seed=1) == make(20, seed=1) != make(20, seed=2)
    assert isinstance(from_rows(make(5, kind="prompts"))[0], Record)
    with pytest.raises(PreftuneError, match="kind is 'triples', needed one of pairs, soft, .*; pairs is usual"):
        make(5, kind="triples")
