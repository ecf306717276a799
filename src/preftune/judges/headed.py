"""Judges that are language models with heads: what one is asked, and what follows from its numbers.

A head reads the state of a response's last token. So a response is run once, whatever it is compared with, except where a judge is shown
two responses at once. Every number goes through `Asker`, which keeps it on disk.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.columns import Record
from ..objectives.judge_training import skew
from ..policies.text.logprob import consecutive
from ..policies.text.model import TextPolicy
from ..types import Key, PreftuneError, Rows
from .asking import Answer, Asker, Question
from .comparison import shown

AT_ONCE = 16384  # tokens that are run between two writes to the disk


@dataclass
class Headed:
    """An answerer: the outputs of a model's heads at the end of a response, in the order of `names`; with several draws of heads that lie
    side by side, the outputs of the first draw, then those of the second ...

    A question with two responses is one comparison. `name` stands in errors; `identity` names the weights.
    """

    policy: TextPolicy
    names: tuple[str, ...]
    identity: str
    name: str
    draws: int = 1
    kept: bool = True

    @property
    def size(self) -> int:
        """Numbers of an answer."""
        return sum(self.policy.heads[name].linear.out_features for name in self.names)

    @torch.no_grad()
    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """[size] numbers for each question; prompts and responses are never cut."""
        for part, rows in passes(self.policy, questions, self.name):
            scored = self.policy.score_heads(rows)
            outputs = torch.cat([scored.heads[name][:, 0].unflatten(1, (self.draws, -1)) for name in self.names], 2)
            for i, values in zip(part, outputs.flatten(1).tolist(), strict=True):
                if not all(map(math.isfinite, values)):
                    raise PreftuneError(
                        f"the judge {self.name} answered {values} about the response {questions[i].responses[0][:60]!r}, needed finite "
                        "numbers; its training went wrong: train it again at a lower lr"
                    )
                yield i, tuple(values)


def passes(policy: TextPolicy, questions: Sequence[Question], name: str) -> Iterator[tuple[Sequence[int], Rows]]:
    """(positions, their rows) of what is run between two writes to the disk."""
    if not questions:
        return
    rows = encoded(policy, questions, name)
    for part in consecutive(policy.tokens(rows), AT_ONCE):
        yield part, rows.take(part)


def encoded(policy: TextPolicy, questions: Sequence[Question], name: str) -> Rows:
    """A row for each question, by the template of the judge's own tokenizer; what does not fit into the model is refused, never cut."""
    records = [Record(id=str(i), prompt=asked(q), responses=[answered(q)]) for i, q in enumerate(questions)]
    rows, _ = policy.encode(records)
    limit = getattr(policy.network.lm.config, "max_position_embeddings", None)
    sizes = [len(rows.prompt[i]) + len(rows.response.tokens[i][0]) for i in range(len(rows))]
    if limit is not None and max(sizes, default=0) > limit:
        raise PreftuneError(
            f"the judge {name} was asked about {max(sizes)} tokens of prompt and response, needed at most the {limit} positions that its "
            "model knows; shorten prompts or responses, or take a judge with a longer context"
        )
    return rows


def words_of(policy: TextPolicy) -> str:
    """A hash of the tokenizer: its template and its tokens decide what the weights read."""
    tokenizer = policy.tokenizer
    said = json.dumps([tokenizer.chat_template, sorted(tokenizer.get_vocab().items())], default=str)
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def asked(question: Question) -> str | list[dict[str, str]]:
    """The prompt as data files have it."""
    if isinstance(question.prompt, str):
        return question.prompt
    return [{"role": role, "content": content} for role, content in question.prompt]


def answered(question: Question) -> str:
    """The response, or the two as one comparison."""
    return question.responses[0] if len(question.responses) == 1 else shown(*question.responses)


@dataclass(frozen=True)
class Member:
    """One model of a judge. With dropout its answer holds `draws` answers, one of each thinned head."""

    asker: Asker
    size: int  #      numbers of an answer
    draws: int = 1

    def ask(self, rows: Rows, y: Any) -> Tensor:
        """float64 [draws, B, K, C] about each response by itself."""
        found = self.asker.grade(rows, y, self.size)
        return found.unflatten(-1, (self.draws, self.size // self.draws)).permute(2, 0, 1, 3)

    def compare(self, rows: Rows, a: Any, b: Any) -> Tensor:
        """float64 [draws, B, K, M]: the logit that the first shown of a comparison wins, a shown first; 0 for equal texts, unasked."""
        return self.asker.compare(rows, a, b, self.size, alike=0.0).permute(3, 0, 1, 2)


def even(z: Tensor) -> Tensor:
    """sigmoid(z), with even(z) + even(-z) = 1 to the last bit: 1 - p is exact for p in [1/2, 1]."""
    p = z.abs().sigmoid()
    return torch.where(z < 0, 1 - p, p)


@dataclass(frozen=True)
class Rewards:
    """A judge with a scale: the weighted sum of its models' outputs, averaged over models and draws.

    weights    [C] of the outputs: one for a reward model
    centre     [E] and scale [E]: score = (r - centre) / scale of each model
    pessimism  this many standard deviations over models and draws are taken off
    slope      prefer is sigmoid(slope * difference of scores)
    """

    members: tuple[Member, ...]
    weights: Tensor
    centre: Tensor
    scale: Tensor
    pessimism: float
    slope: float

    def score(self, rows: Rows, y: Any, key: Key) -> Tensor:
        """float64 [B, K], higher is better."""
        raw = [member.ask(rows, y) @ self.weights for member in self.members]
        each = torch.cat([(r - c) / s for r, c, s in zip(raw, self.centre, self.scale, strict=True)])  # [E * draws, B, K]
        found = each.mean(0)
        return found - self.pessimism * each.std(0, correction=0) if self.pessimism else found

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M]."""
        return even(self.slope * (self.score(rows, a, key)[:, :, None] - self.score(rows, b, key)[:, None, :]))


@dataclass(frozen=True)
class GeneralPreference:
    """P(a beats b) = sigmoid(skew(v_a, v_b) / tau), averaged over models and draws: every response is run once, and P + P^T = 1 exactly.

    planes  k: an answer is 2k numbers, followed by k gates where the form is gated
    """

    members: tuple[Member, ...]
    planes: int
    gated: bool
    tau: float

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M]."""
        together = a.join(b)  # one round of questions, so that equal responses of both sides are run once
        k = a.shape[1]
        found = torch.cat([member.ask(rows, together) for member in self.members])  # [E, B, K + M, C]
        v, gate = found[..., : 2 * self.planes], found[..., 2 * self.planes :]
        v, w = v[:, :, :k, None], v[:, :, None, k:]
        weight: Tensor | float = 1.0
        if self.gated:
            weight = self.planes * ((gate[:, :, :k, None] + gate[:, :, None, k:]) / 2).softmax(-1)
        return even(skew(v, w, weight) / self.tau).mean(0)


@dataclass(frozen=True)
class BothShown:
    """P(a beats b) of a model that reads both, averaged over models and draws, and over both orders unless that is switched off."""

    members: tuple[Member, ...]
    both_orders: bool

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M]."""
        first = torch.cat([member.compare(rows, a, b) for member in self.members]).sigmoid().mean(0)
        if not self.both_orders:
            return first
        second = torch.cat([member.compare(rows, b, a) for member in self.members]).sigmoid().mean(0)
        return (first + 1 - second.mT) / 2
