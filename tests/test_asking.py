"""Questions to judges that read texts: what they are shown, and that no answer is asked for twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from preftune.api import resolve_judge
from preftune.judges.asking import Answer, Comparing, Grading, Question
from preftune.policies.text.tokens import Inverse, TextResponses, encode
from preftune.types import Key, PreftuneError, Rows
from text_fixtures import Record, tiny_tokenizer

KEY = Key.of(0)
CONVERSATION = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two\n\n"}, {"role": "user", "content": "three?"}]


class Lengths:
    """Grades a response by its characters, or compares two by them; "?" has no answer. Counts what it is asked."""

    identity, kept = "lengths", True

    def __init__(self) -> None:
        self.seen: list[Question] = []

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        for i, question in reversed(list(enumerate(questions))):
            self.seen.append(question)
            lengths = [len(text) for text in question.responses]
            if "?" not in question.responses:
                yield i, (float(lengths[0]) if len(lengths) == 1 else float(lengths[0] > lengths[1]),)


class Cut(Lengths):
    """Is interrupted when it has given two answers."""

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        for count, found in enumerate(super().answer(questions)):
            if count == 2:
                raise KeyboardInterrupt
            yield found


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path))


def rows_of(*responses: str) -> Rows:
    tokenizer = tiny_tokenizer()
    return encode([Record("a", "How?", list(responses)), Record("b", "Why?", list(responses))], tokenizer)[0]


@pytest.mark.parametrize("prompt", ["Hello\n there <b> 3", "", CONVERSATION, [{"role": "system", "content": "Be good."}, *CONVERSATION]])
def test_a_prompt_is_read_back_from_what_the_template_made_of_it(prompt: object) -> None:
    tokenizer = tiny_tokenizer()
    rows, _ = encode([Record("a", prompt, ["x"])], tokenizer)
    expected = prompt if isinstance(prompt, str) else tuple((m["role"], m["content"]) for m in prompt)  # type: ignore[attr-defined]
    assert Inverse(tokenizer)(rows.prompt[0]) == expected


def test_a_prompt_without_a_template_or_cut_on_the_left_is_its_text() -> None:
    plain, chat = tiny_tokenizer(template=False, bos=True), tiny_tokenizer()
    assert Inverse(plain)(encode([Record("a", "How now?", ["x"])], plain)[0].prompt[0]) == "How now?"
    cut = encode([Record("a", "How now?", ["x"])], chat)[0].prompt[0][2:]
    assert Inverse(chat)(cut).endswith("How now?\nassistant\n")  # type: ignore[union-attr]


def test_every_pair_is_shown_in_the_order_asked_for_and_equal_texts_are_not_asked_about() -> None:
    rows, judge = rows_of("aa", "b"), Comparing(Lengths())
    p = judge.prefer(rows, rows.response, rows.response.take(columns=[1, 0]), KEY)
    assert p.tolist() == [[[1.0, 0.5], [0.5, 0.0]]] * 2
    seen = judge.asker.answerer.seen  # type: ignore[attr-defined]
    assert Question("Why?", ("aa", "b")) in seen and all(len(set(question.responses)) == 2 for question in seen)


def test_grades_and_the_preferences_that_follow_from_them() -> None:
    rows, judge = rows_of("aa", "b"), Grading(Lengths(), slope=0.5)
    assert judge.score(rows, rows.response, KEY).tolist() == [[2.0, 1.0]] * 2
    assert torch.allclose(judge.prefer(rows, rows.response, rows.response, KEY)[0, 0, 1], torch.tensor(0.5).double().sigmoid())


def test_no_question_is_asked_twice_by_anyone() -> None:
    """Equal questions of one call are one; a second judge finds the answers of the first on disk."""
    rows, first, second = rows_of("aa", "b", "b"), Lengths(), Lengths()
    scores = [Grading(answerer).score(rows, rows.response, KEY).tolist() for answerer in (first, second)]
    assert scores == [[[2.0, 1.0, 1.0]] * 2] * 2
    assert (len(first.seen), len(second.seen)) == (4, 0)


def test_a_question_without_an_answer_is_nan_and_asked_again() -> None:
    rows, judge = rows_of("?", "b"), Grading(Lengths())
    for _ in range(2):
        assert judge.score(rows, rows.response, KEY)[:, 0].isnan().all()
    assert (judge.asker.asked, judge.asker.known, judge.asker.silent) == (6, 2, 4)


def test_what_was_answered_before_an_interrupt_is_kept() -> None:
    rows, after = rows_of("aaa", "b", "cc"), Lengths()
    with pytest.raises(KeyboardInterrupt):
        Grading(Cut()).score(rows, rows.response, KEY)
    assert Grading(after).score(rows, rows.response, KEY).tolist() == [[3.0, 1.0, 2.0]] * 2
    assert len(after.seen) == 4


def test_responses_that_are_no_text_are_refused() -> None:
    rows = rows_of("a", "b")
    with pytest.raises(PreftuneError, match="reads text"):
        Grading(Lengths()).score(rows, TextResponses(rows.response.tokens), KEY)


def test_a_judge_is_named_with_its_options() -> None:
    with pytest.raises(PreftuneError, match="direction is 'mild', needed one of harsh, kind"):
        resolve_judge("ratings,direction=mild")
    with pytest.raises(PreftuneError, match="there is no judge 'rating', needed one of .*did you mean ratings"):
        resolve_judge("rating")
    with pytest.raises(PreftuneError, match="the judge ratings was given 'kind', needed name=value"):
        resolve_judge("ratings,kind")
