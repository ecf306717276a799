"""A policy's own implicit reward as a judge: what DPO and its relatives have trained, read back (arXiv:2305.18290, eq. 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..policies.text.logprob import engine
from ..policies.text.model import TextPolicy, load
from ..types import Key, PreftuneError, Rows
from .asking import Answer, Asker, Question
from .headed import even, passes, words_of


@dataclass
class LogRatios:
    """An answerer: log pi(y|x) - log pi_ref(y|x) in nats, and the tokens of y."""

    policy: TextPolicy
    reference: TextPolicy
    identity: str
    name: str
    kept: bool = True

    @torch.no_grad()
    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """Two numbers for each question; prompts and responses are never cut."""
        for part, some in passes(self.policy, questions, self.name):
            ratio = self.policy.score(some).logp - self.reference.score(some).logp
            for i, nats, tokens in zip(part, ratio[:, 0].tolist(), some.response.length[:, 0].tolist(), strict=True):
                yield i, (nats, float(tokens))


@dataclass(frozen=True)
class ImplicitReward:
    """r(x, y) = beta (log pi(y|x) - log pi_ref(y|x)), with per_token divided by the tokens of y; P(a beats b) = sigmoid(r_a - r_b).

    Beta matters to the probabilities alone, not to the order. Like every reward of comparisons, it is known up to a function of the
    prompt. Length enters the sum: `per_token` is the variant of RewardBench that takes it out.
    """

    asker: Asker
    beta: float
    per_token: bool

    def score(self, rows: Rows, y: Any, key: Key) -> Tensor:
        """float64 [B, K]."""
        nats, tokens = self.asker.grade(rows, y, 2).unbind(-1)
        return self.beta * (nats / tokens if self.per_token else nats)

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M]."""
        return even(self.score(rows, a, key)[:, :, None] - self.score(rows, b, key)[:, None, :])


def implicit(
    policy: str,
    reference: str | None = None,
    beta: float = 0.1,
    per_token: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    tokens_per_batch: int | None = None,
    keep: bool = True,
) -> ImplicitReward:
    """The implicit reward of a policy that was trained from a reference.

    policy     a model folder, hub id, adapter folder or GGUF file;  reference  what it was trained from; of an adapter without one its base
    beta       of the training, by which the probabilities are those of its loss
    per_token  the mean over a response's tokens instead of their sum
    keep       answers are kept on disk under the hash of both models
    """
    if not beta > 0:
        raise PreftuneError(f"beta is {beta}, needed a number above 0: the one that the policy was trained with")
    opened = lambda model: load(model, device=device, dtype=dtype, tokens_per_batch=tokens_per_batch, masters=False, trunk_bytes=0)
    own = opened(policy)
    if reference is not None:
        start = opened(reference)
    elif hasattr(own.network.module, "peft_config"):
        start = own.frozen(own.clones(), adapter=False)
    else:
        raise PreftuneError(f"{policy} is a whole model and no reference was given, needed what it was trained from; pass reference=...")
    if words_of(own) != words_of(start):
        raise PreftuneError(
            f"{policy} and {reference} have different tokenizers or chat templates, needed the same: their log-probabilities are of "
            "different texts; give the model that the policy was trained from"
        )
    identity = " ".join(["implicit", own.fingerprint(), start.fingerprint(), words_of(own), engine(own.network), engine(start.network)])
    return ImplicitReward(Asker(LogRatios(own, start, identity, policy, keep)), beta, per_token)
