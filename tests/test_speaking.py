"""A local language model as a judge: its verdicts are the probabilities of its first token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.api import resolve_judge
from preftune.judges.asking import Comparing, Grading, Question
from preftune.judges.rubric import Rubric
from preftune.judges.speaking import CUE, Speaking
from preftune.policies.text.tokens import encode
from preftune.types import Key, PreftuneError, Rows
from text_fixtures import Record, tiny_folder, tiny_policy, tiny_tokenizer

KEY = Key.of(0)
SHORT = Rubric("compare", "{prompt} {a} {b}")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))


def law(policy: Any, text: str) -> torch.Tensor:
    """The probabilities [V] of the first token after a user said this, from the model as it is."""
    rows, _ = policy.encode([Record("a", text, [])])
    with torch.no_grad():
        logits: torch.Tensor = policy.network.lm(torch.tensor([rows.prompt[0]])).logits[0, -1]
    return logits.double().softmax(0)


def values(judge: Speaking, questions: Sequence[Question]) -> dict[int, float]:
    return {at: answer[0] for at, answer in judge.answer(questions)}


def rows_of(*responses: str) -> Rows:
    return encode([Record(prompt, prompt, list(responses)) for prompt in ("How?", "Why?")], tiny_tokenizer())[0]


@pytest.mark.parametrize("template", [True, False])
def test_a_comparison_is_the_share_of_a_among_a_and_b_with_and_without_a_space(template: bool) -> None:
    """To 1e-5: packs and the model's own forward pass round otherwise in float32."""
    policy = tiny_policy(tokenizer=tiny_tokenizer(template=template))
    judge = Speaking(policy, SHORT)
    p = law(policy, "How? one two" + ("" if template else CUE))
    a, b = (sum(float(p[token]) for token, text in judge.tokens.items() if text.strip() == letter) for letter in "AB")
    found = values(judge, [Question("How?", ("one", "two"))])
    assert found[0] == pytest.approx(a / (a + b), abs=1e-5)
    assert judge.mass == pytest.approx(a + b, abs=1e-5)


def test_a_grade_is_the_mean_of_the_digits_by_their_probabilities() -> None:
    policy = tiny_policy()
    judge = Speaking(policy, Rubric("grade", "{prompt} {response}"))
    p = law(policy, "How? one")
    mass = {grade: sum(float(p[t]) for t, text in judge.tokens.items() if text.strip() == str(grade)) for grade in range(1, 6)}
    expected = sum(grade * share for grade, share in mass.items()) / sum(mass.values())
    assert values(judge, [Question("How?", ("one",))])[0] == pytest.approx(expected, abs=1e-5)
    assert 1 < expected < 5


def test_little_mass_on_verdicts_and_long_questions_have_no_answer_and_are_counted() -> None:
    """The tiny model puts less than a tenth on A and B; its context has 512 tokens."""
    judge = Speaking(tiny_policy(), SHORT, least_mass=0.5)
    assert values(judge, [Question("How?", ("one", "two"))]) == {} and judge.unsure == 1
    judge = Speaking(tiny_policy(), SHORT)
    assert list(values(judge, [Question("How?", ("one " * 600, "two")), Question("How?", ("one", "two"))])) == [1]
    assert (judge.too_long, judge.asked) == (1, 1)


def test_many_questions_have_the_answers_that_each_has_alone() -> None:
    judge = Speaking(tiny_policy(), SHORT)
    questions = [Question(f"How {i}?", ("one " * (i % 5), "two")) for i in range(40)]
    together, alone = values(judge, questions), [values(judge, [question])[0] for question in questions]
    assert [together[i] for i in range(40)] == pytest.approx(alone, abs=1e-5)


def test_a_folder_judges_in_both_orders_and_its_answers_are_kept(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", layers=1)
    rows = rows_of("one", "two three")
    plain: Any = resolve_judge(f"speaking,model={folder}")
    both: Any = resolve_judge(f"speaking,model={folder},both=true")
    assert isinstance(plain, Comparing)
    p, mean = (judge.prefer(rows, rows.response, rows.response, KEY) for judge in (plain, both))
    assert torch.allclose(mean, (p + 1 - p.mT) / 2) and not torch.allclose(p, mean)
    assert (both.judge.asker.asked, both.judge.asker.known) == (0, 4 * 2)  # two pairs of two rows, looked up for either order


def test_a_folder_grades(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", layers=1)
    judge: Any = resolve_judge(f"speaking,model={folder},mode=grade,low=0,high=9,slope=2")
    rows = rows_of("one", "two three")
    assert isinstance(judge, Grading)
    score = judge.score(rows, rows.response, KEY)
    assert ((score > 0) & (score < 9)).all() and len(judge.asker.answerer.tokens) >= 10  # type: ignore[attr-defined]
    p = judge.prefer(rows, rows.response, rows.response, KEY)[0, 0, 1]
    assert float(p) == pytest.approx(1 / (1 + math.exp(-2 * float(score[0, 0] - score[0, 1]))))


def test_nothing_of_the_judge_trains(tmp_path: Path) -> None:
    judge: Any = resolve_judge(f"speaking,model={tiny_folder(tmp_path / 'model', layers=1)}")
    assert not judge.asker.answerer.policy.parameters()


@pytest.mark.parametrize(
    ("options", "said_so"),
    [
        ("rubric=compare-reasoned", "asks for reasons first"),
        ("mode=grade,rubric=additive", "asks for reasons first"),
        ("mode=grade,high=10", "are no single digits"),
        ("least_mass=2", "needed a probability from 0 to 1"),
    ],
)
def test_what_a_first_token_cannot_say_is_refused(options: str, said_so: str, tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match=said_so):
        resolve_judge(f"speaking,model={tiny_folder(tmp_path / 'model', layers=1)},{options}")
