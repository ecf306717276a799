"""What a user brings along: judges, and a method that collects by rounds. Named in tests as `outside.py:function`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preftune.judges.asking import Answer, Comparing, Question
from preftune.objectives import pairwise
from preftune.reference import soft
from preftune.types import Context, Key, Method, Rows
from preftune.update import plain


class VowelJudge:
    """Likes vowels: the score is their share among the characters."""

    def score(self, rows: Rows, y: Any, key: Key) -> Tensor:
        share = [[sum(text.count(v) for v in "aeiou") / max(len(text), 1) for text in row] for row in y.show()]
        return torch.tensor(share, dtype=torch.float64)

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        return torch.sigmoid(10 * (self.score(rows, a, key)[:, :, None] - self.score(rows, b, key)[:, None, :]))


def vowels() -> VowelJudge:
    return VowelJudge()


class Slow:
    """Answers of a judge that is paid by the question: each is written to a file of the cache's folder before it is thought about."""

    identity, kept = "vowels, slowly", True

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        for at, question in enumerate(questions):
            with open(Path(os.environ["PREFTUNE_CACHE"]) / "asked", "ab", buffering=0) as file:
                file.write(question.key("").hex().encode() + b"\n")
            time.sleep(0.004)
            first, second = (sum(text.count(v) for v in "aeiou") / max(len(text), 1) for text in question.responses)
            yield at, (1 / (1 + 2.0 ** (10 * (second - first))),)


def slow() -> Comparing:
    return Comparing(Slow())


def judged_pairs(ctx: Context) -> Rows:
    """Two samples of the policy for every prompt, with the judge's probability as a soft label."""
    y = ctx.roles["current"].sample(ctx.feed, 2, ctx.key.fold("pair"), max_new_tokens=8)
    prefer = ctx.judge.prefer(ctx.feed, y.take(columns=[0]), y.take(columns=[1]), ctx.key.fold("judge"))[:, 0, 0]
    rounds = torch.full((len(ctx.feed),), float(len(ctx.past)), dtype=torch.float64)
    return ctx.feed.replace(response=y, ranked=True, prefer=prefer, extra={"rounds before": rounds})


def by_rounds(beta: float = 0.1) -> Method:
    """DPO on pairs that the policy of each round drew; the reference is the policy that ended the round before."""
    return Method(partial(pairwise.dpo, beta=beta), judged_pairs, soft(1.0), plain, collect_every="round")
