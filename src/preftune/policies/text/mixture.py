"""Two language models that answer as one: the geometric mixture of their laws of the next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from ...types import Key, PreftuneError, Rows, Scored, Want
from .generate import by_row, generate
from .logprob import CHUNK, Measured, assemble, pairs_of
from .tokens import Pair, TextResponses, Tokens

if TYPE_CHECKING:
    from .decode import Writer, Writing
    from .model import TextPolicy


class Pen:
    """What both models write with."""

    def __init__(self, mixture: TextMixture, writers: Sequence[Writer]) -> None:
        self.mixture, self.writers = mixture, writers

    def begin(self, prompts: Sequence[Tokens], n: int, steps: int) -> tuple[Tensor, Both]:
        """As Writer.begin."""
        each = [p.run(writer.begin, prompts, n, steps) for p, writer in zip(self.mixture.both, self.writers, strict=True)]
        logits, states = zip(*each, strict=True)
        return self.mixture.mixed(*logits), Both(self.mixture, states)


class Both:
    """Samples that two models write together: each line is a line of both."""

    def __init__(self, mixture: TextMixture, states: Sequence[Writing]) -> None:
        self.mixture, self.states = mixture, states

    def step(self, tokens: Tensor) -> Tensor:
        """As Writing.step."""
        return self.mixture.mixed(*(p.run(state.step, tokens) for p, state in zip(self.mixture.both, self.states, strict=True)))

    def select(self, lines: Tensor) -> None:
        """As Writing.select."""
        for state in self.states:
            state.select(lines)


class TextMixture:
    """A frozen policy pi(v | prefix) = first(v | prefix)^(1 - w) second(v | prefix)^w / Z(prefix): logits (1 - w) first + w second.

    Each token costs a pass of both models, which keep a cache each; frozen ones are shared, one that trains is copied as it is now.

    Not     the mixture of whole responses, which the theory of Nash-MD and IPO-MD means: that one has the normaliser of a response
            and favours beginnings after which the two agree. The two are one law where responses have one token (`sequence_mixture`
            in policies/language.py computes both)
    """

    independent = False

    def __init__(self, first: TextPolicy, second: TextPolicy, w: float) -> None:
        if first.network.shards is not None:
            raise PreftuneError(
                "a mixture of two models was asked for, token by token, and the weights are in shards (FSDP), needed both models whole in "
                "every process; use a configuration without FSDP, or a method without a mixture such as online-ipo or egpo"
            )
        sizes = [len(policy.network.lm.get_output_embeddings().weight) for policy in (first, second)]
        alike = first.tokenizer is second.tokenizer or first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
        if not alike or sizes[0] != sizes[1]:
            raise PreftuneError(
                f"a mixture of models with {sizes[0]} and {sizes[1]} logits and {'the same' if alike else 'different'} tokens was asked "
                "for, needed the same tokens in the same order; mix models of one family"
            )
        self.both = tuple(policy if policy.overlay is not None else policy.copy() for policy in (first, second))
        self.w = float(w)
        self.uniform: Mapping[str, Any] = first.uniform
        self.network, self.tokenizer, self.bos, self.stops = first.network, first.tokenizer, first.bos, first.stops
        self.max_new_tokens = first.max_new_tokens

    def sample(self, rows: Rows, n: int, key: Key, **decoding: Any) -> TextResponses:
        """As TextPolicy.sample: the same draws from the mixed law, whose log-probs are kept."""
        decoding = {"max_new_tokens": self.max_new_tokens, **decoding}
        self.both[1].network.check_length(max(map(len, rows.prompt), default=0) + decoding["max_new_tokens"])
        return by_row(rows, lambda part: generate(self, part, n, key, **decoding), self.tokenizer)

    def writer(self, lines: int, steps: int) -> Pen:
        """As TextPolicy.writer, of both."""
        return Pen(self, [policy.run(policy.writer, lines, steps) for policy in self.both])

    def mixed(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits [N, V], float32."""
        return torch.lerp(first.float(), second.float().to(first.device), self.w)

    @torch.no_grad()
    def score(self, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
        """As TextPolicy.score, without gradient; hidden states and collisions are refused."""
        if {"states", "collision"} & set(wants):
            raise PreftuneError(f"{', '.join(wants)} of a mixture of two models were asked for, needed one model; score either of them")
        return assemble(rows, Measured(self.token_logps(pairs_of(rows, self.bos, frozen=True))), wants)

    @torch.no_grad()
    def token_logps(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """float32 [T_i] for (prompt, response) pairs of token ids; logits are made in chunks."""
        if not pairs:
            return []
        for policy in self.both:
            policy.network.check_length(max(len(prompt) + len(response) for prompt, response in pairs))
        targets = torch.tensor([token for _, response in pairs for token in response], device=self.network.device)
        size = max(1, CHUNK // len(self.network.lm.get_output_embeddings().weight))
        hidden = [torch.cat(policy.run(policy.network.hidden, pairs)).split(size) for policy in self.both]
        found = []
        for *states, part in zip(*hidden, targets.split(size), strict=True):
            logits = self.mixed(*(policy.run(policy.network.logits, h) for policy, h in zip(self.both, states, strict=True)))
            found.append(logits.log_softmax(-1).gather(1, part[:, None])[:, 0])
        return list(torch.cat(found).split([len(response) for _, response in pairs]))

    def copy(self) -> TextMixture:
        """Itself: nothing in it moves."""
        return self

    reference = copy

    def parameters(self) -> list[Tensor]:
        """None that train."""
        return []

    def state(self) -> dict[str, Tensor]:
        """Nothing that trains."""
        return {}

    def unpack(self, packed: dict[str, Tensor]) -> TextResponses:
        """As TextPolicy.unpack."""
        return self.both[0].unpack(packed)

    def revise(self, rows: Rows) -> tuple[tuple[Tokens, ...], ...]:
        """As TextPolicy.revise."""
        return self.both[0].revise(rows)

    def refused(self, *_: Any, **__: Any) -> NoReturn:
        raise PreftuneError(
            "a mixture of two language models was asked to train or to be mixed again, needed a policy with weights of its own; "
            "mix the policies that it is made of, or take lerp of their weights"
        )

    attach = load = lerp = mix = refused
