"""Small made-up tasks whose better answer is known: for tests, examples and first steps without a download."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Literal

from ..types import PreftuneError
from .columns import Record

Kind = Literal["pairs", "soft", "unpaired", "ranked", "demonstrations", "prompts"]


def arithmetic(n: int = 200, *, seed: int = 0, kind: Kind = "pairs", largest: int = 20) -> list[Record]:
    """Sums such as "7 + 5 ="; an answer is the better the nearer it is."""
    rng = random.Random(f"arithmetic {seed}")
    prompts = [f"{rng.randint(0, largest)} + {rng.randint(0, largest)} =" for _ in range(n)]

    def candidates(prompt: str) -> list[str]:
        right = answer_of(prompt)
        return [str(value) for value in [right, *rng.sample([right + step for step in (-10, -3, -2, -1, 1, 2, 3, 10)], 3)]]

    return records(prompts, candidates, arithmetic_score, kind, rng)


def answer_of(prompt: str) -> int:
    """The sum that a prompt of `arithmetic` asks for."""
    first, _, second, _ = prompt.split()
    return int(first) + int(second)


def arithmetic_score(prompt: str, response: str) -> float:
    """Minus the distance from the sum, at most 10 away; -10 for what is no number."""
    said = response.strip()
    return -float(min(10, abs(int(said) - answer_of(prompt)))) if said.lstrip("-").isdecimal() else -10.0


def copying(n: int = 200, *, seed: int = 0, kind: Kind = "pairs", length: int = 5, letters: str = "abcd") -> list[Record]:
    """Repeat the letters of "copy: badca"; an answer is the better the more letters stand where they should."""
    rng = random.Random(f"copying {seed}")
    prompts = [f"copy: {''.join(rng.choices(letters, k=length))}" for _ in range(n)]

    def candidates(prompt: str) -> list[str]:
        word = prompt.removeprefix("copy: ")
        out = [word]
        for wrong in (1, 2, length):
            places = set(rng.sample(range(length), min(wrong, length)))
            out.append("".join(rng.choice([c for c in letters if c != letter]) if i in places else letter for i, letter in enumerate(word)))
        return out

    return records(prompts, candidates, copying_score, kind, rng)


def copying_score(prompt: str, response: str) -> float:
    """Share of the letters that are right, those too many counted as wrong."""
    word, said = prompt.removeprefix("copy: "), response.strip()
    return sum(a == b for a, b in zip(word, said, strict=False)) / max(len(word), len(said))


def records(
    prompts: Sequence[str], candidates: Callable[[str], list[str]], score: Callable[[str, str], float], kind: Kind, rng: random.Random
) -> list[Record]:
    """Records of one kind. Soft labels follow Bradley-Terry: P(a beats b) = sigmoid(score a - score b)."""
    kinds = ("pairs", "soft", "unpaired", "ranked", "demonstrations", "prompts")
    if kind not in kinds:
        raise PreftuneError(f"kind is {kind!r}, needed one of {', '.join(kinds)}; pairs is usual")
    out = []
    for i, prompt in enumerate(prompts):
        answers = sorted(dict.fromkeys(candidates(prompt)), key=lambda answer: -score(prompt, answer))
        scores = [score(prompt, answer) for answer in answers]
        name, other = f"{kind}-{i}", rng.randrange(1, len(answers))
        one = rng.choice([0, other])
        made = {
            "pairs": Record(name, prompt, [answers[0], answers[other]], ranked=True),
            "soft": Record(name, prompt, [answers[0], answers[other]], ranked=True, prefer=1 / (1 + math.exp(scores[other] - scores[0]))),
            "unpaired": Record(name, prompt, [answers[one]], desirable=[one == 0]),
            "ranked": Record(name, prompt, answers, ranked=True, scores=scores),
            "demonstrations": Record(name, prompt, answers[:1]),
            "prompts": Record(name, prompt, []),
        }
        out.append(made[kind])
    return out
