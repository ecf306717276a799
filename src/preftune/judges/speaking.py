"""A local language model as a judge: what it would answer to a rubric, read from the probabilities of its first token.

Nothing is generated, so no verdict can fail to be read. All verdicts cost one pass, and the pass computes the rubric once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..data.columns import Record
from ..policies.text.logprob import engine
from ..policies.text.model import TextPolicy, load
from ..policies.text.tokens import token_ids
from ..types import Judge, PreftuneError
from .asking import Answer, Comparing, Grading, Question
from .combine import both_orders
from .rubric import REASONED, Mode, Rubric, digest, rubric_of

CHUNK = 32  # questions whose answers are kept together
CUE = "\n\nAnswer:"  # what the rubric ends with where no chat template says whose turn it is


class Speaking:
    """Shows a frozen policy the rubric and weighs the verdicts' tokens, with and without the space before them.

    mass      the mean probability of any verdict so far, over all questions
    too_long  questions that do not fit into the model's context; unsure: those with less than `least_mass` on verdicts. Neither is answered
    """

    kept = True

    def __init__(self, policy: TextPolicy, rubric: Rubric, least_mass: float = 0.0) -> None:
        self.policy, self.rubric, self.least_mass = policy, rubric, least_mass
        self.tokens = verdict_tokens(policy.tokenizer, rubric)
        self.context: int | None = getattr(policy.network.lm.config, "max_position_embeddings", None)
        self.asked = self.too_long = self.unsure = 0
        self.total = 0.0
        settings = [rubric.mode, rubric.text, rubric.low, rubric.high, least_mass]
        self.identity = f"language model {policy.fingerprint()}, {engine(policy.network)}, {digest(settings)}"

    @property
    def mass(self) -> float:
        """NaN before the first question."""
        return self.total / self.asked if self.asked else math.nan

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """P(the first is better), or the expected grade."""
        for at in range(0, len(questions), CHUNK):
            for i, value in enumerate(self.values(questions[at : at + CHUNK]), at):
                if not math.isnan(value):
                    yield i, (value,)

    @torch.no_grad()
    def values(self, questions: Sequence[Question]) -> list[float]:
        """One number a question; NaN where there is no answer."""
        cue = "" if self.policy.tokenizer.chat_template else CUE
        records = [Record(id=str(i), prompt=self.rubric.fill(question) + cue, responses=[]) for i, question in enumerate(questions)]
        prompts = self.policy.encode(records)[0].prompt
        fits = [self.context is None or len(prompt) < self.context for prompt in prompts]
        pairs = [(prompt, (token,)) for prompt, fit in zip(prompts, fits, strict=True) if fit for token in self.tokens]
        logp = iter(float(values[0]) for values in self.policy.token_logps(pairs))
        self.too_long += fits.count(False)
        return [self.value([next(logp) for _ in self.tokens]) if fit else math.nan for fit in fits]

    def value(self, logp: Sequence[float]) -> float:
        """The rubric's value of the verdict tokens' log-probabilities."""
        value, mass = self.rubric.weighed(dict(zip(self.tokens.values(), logp, strict=True)), self.least_mass)
        self.asked += 1
        self.total += mass
        self.unsure += math.isnan(value)
        return value


def verdict_tokens(tokenizer: Any, rubric: Rubric) -> dict[int, str]:
    """token id -> text of every verdict's tokens, alone and after a space."""
    found: dict[int, str] = {}
    for verdict in rubric.values:
        texts = [verdict, f" {verdict}"]
        single = {ids[0]: text for text, ids in zip(texts, token_ids(tokenizer, texts, False), strict=True) if len(ids) == 1}
        if not single:
            raise PreftuneError(f"this model's tokenizer has no token for the verdict {verdict!r}, needed one each; choose another rubric")
        found |= single
    if not found:
        raise PreftuneError(f"grades from {rubric.low} to {rubric.high} are no single digits, needed 0 to 9; choose another scale")
    return found


def speaking(
    model: str,
    mode: Mode = "compare",
    rubric: str | None = None,
    low: int | None = None,
    high: int | None = None,
    slope: float = 1.0,
    both: bool = False,
    least_mass: float = 0.0,
    device: str = "auto",
    dtype: str = "auto",
) -> Judge:
    """A language model from a folder, hub id or .gguf file as a judge.

    mode        compare two responses, or grade one; sigmoid(slope * difference of grades) is then how often the better one wins
    rubric      compare, grade, or a text file with places {prompt} and {response}, or {prompt}, {a} and {b}, that asks for a verdict
                alone: A or B, or one digit from low to high
    both        compare in both orders and take the mean, which cancels a taste for the first place
    least_mass  below this probability of any verdict there is no answer
    """
    asked = rubric_of(mode, rubric, low, high)
    if rubric in REASONED:
        raise PreftuneError(f"the rubric {rubric} asks for reasons first, needed one whose answer begins with the verdict; give {mode}")
    if not 0 <= least_mass <= 1:
        raise PreftuneError(f"least_mass is {least_mass}, needed a probability from 0 to 1; 0.5 is strict for a small model")
    policy = load(model, device=device, dtype=dtype, train="auto", masters=False)
    policy.network.module.requires_grad_(False)
    answerer = Speaking(policy, asked, least_mass)
    if mode == "grade":
        return Grading(answerer, slope)
    return both_orders(Comparing(answerer)) if both else Comparing(answerer)
