"""Judges that read texts: questions, answers kept on disk, and the two kinds of judge that are made of them.

An answerer is anything that answers questions about texts: a trained model, a language model with a rubric, an endpoint, a rule. `Asker`
asks it about what is not known yet, each question once, and keeps every answer as it comes, so that a killed run asks for
no answer twice. `Comparing` and `Grading` are judges over that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..policies.text.cache import LogpCache, cache_folder
from ..policies.text.tokens import Inverse, Said
from ..types import Key, PreftuneError, Rows

Answer = tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """What a judge is shown: a prompt, and one response to grade or two to compare, in the order in which it sees them."""

    prompt: Said
    responses: tuple[str, ...]

    def key(self, answerer: str) -> bytes:
        """16 bytes of all that the answer depends on."""
        return hashlib.blake2b(json.dumps([answerer, asdict(self)]).encode(), digest_size=16).digest()


class Answerer(Protocol):
    """Answers questions. `identity` names everything that an answer depends on: model, weights, rubric, settings.

    `kept` says whether answers are worth keeping on disk: not where computing them costs less than looking them up.
    """

    identity: str
    kept: bool

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """(position, answer) as they come, in any order; a position that is left out has no answer, and is asked again another time."""


class Asker:
    """Questions to an answerer, and the answers so far.

    asked   questions that were put to the answerer; known  questions whose answers were on disk; silent  questions without an answer
    """

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer
        self.store = LogpCache(cache_folder() / "answers.sqlite") if answerer.kept else None
        self.asked = self.known = self.silent = 0

    def ask(self, questions: Sequence[Question], size: int) -> Tensor:
        """float32 [N, size]; NaN where there is no answer. Equal questions are asked once."""
        keys = [question.key(self.answerer.identity) for question in questions]
        found = self.store.get(keys) if self.store is not None else {}
        missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in found}
        order = list(missing)
        self.known += len(set(keys)) - len(missing)
        self.asked += len(missing)
        for at, answer in self.answerer.answer(list(missing.values())):
            if len(answer) != size:
                raise PreftuneError(
                    f"the judge {self.answerer.identity} answered with {len(answer)} numbers, needed {size}; use a judge that does"
                )
            if not any(map(math.isnan, answer)):
                found[order[at]] = torch.tensor(answer, dtype=torch.float32)
                if self.store is not None:
                    self.store.put({order[at]: found[order[at]]})
        self.silent += sum(key not in found for key in order)
        nothing = torch.full((size,), math.nan)
        return torch.stack([found.get(key, nothing) for key in keys]) if keys else torch.empty(0, size)

    def grade(self, rows: Rows, y: Any, size: int) -> Tensor:
        """float64 [B, K, size] about each response by itself."""
        prompts, responses = texts(rows, y)
        asked = [Question(prompt, (x,)) for prompt, xs in zip(prompts, responses, strict=True) for x in xs]
        return self.ask(asked, size).double().reshape(*y.shape, size)

    def compare(self, rows: Rows, a: Any, b: Any, size: int, alike: float) -> Tensor:
        """float64 [B, K, M, size] about each pair, a shown first; `alike` for equal texts, which are not asked about."""
        (prompts, first), second = texts(rows, a), b.show()
        asked = [Question(prompt, (x, y)) for prompt, xs, ys in zip(prompts, first, second, strict=True) for x in xs for y in ys]
        differ = torch.tensor([len(set(question.responses)) == 2 for question in asked], dtype=torch.bool)
        found = torch.full((len(asked), size), alike, dtype=torch.float64)
        found[differ] = self.ask([question for question in asked if len(set(question.responses)) == 2], size).double()
        return found.reshape(len(rows), a.shape[1], b.shape[1], size)


def texts(rows: Rows, y: Any) -> tuple[list[Said], list[list[str]]]:
    """The prompts [B] and the responses [B][K] as a person reads them."""
    if getattr(y, "tokenizer", None) is None:
        raise PreftuneError("this judge reads text, but these responses are none; use a judge of their domain, such as a preference table")
    said = Inverse(y.tokenizer)
    return [said(prompt) for prompt in rows.prompt], y.show()


class Comparing:
    """A judge whose answer to two responses is P(the first shown beats the second), in the order it is asked in."""

    def __init__(self, answerer: Answerer) -> None:
        self.asker = Asker(answerer)

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M], a shown first; NaN where there was no answer. Equal texts are not asked about: 1/2."""
        return self.asker.compare(rows, a, b, 1, alike=0.5)[..., 0]


class Grading:
    """A judge whose answer to one response is its grade; sigmoid(slope * difference) is how often the better one wins."""

    def __init__(self, answerer: Answerer, slope: float = 1.0) -> None:
        self.asker, self.slope = Asker(answerer), slope

    def score(self, rows: Rows, y: Any, key: Key) -> Tensor:
        """float64 [B, K]; NaN where there was no answer."""
        return self.asker.grade(rows, y, 1)[..., 0]

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M]."""
        return (self.slope * (self.score(rows, a, key)[:, :, None] - self.score(rows, b, key)[:, None, :])).sigmoid()
