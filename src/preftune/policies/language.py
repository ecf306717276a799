"""Policies over all answers of two tokens, one softmax at every prefix: the smallest language, and everything about it exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..types import Head, Key, PreftuneError, Rows, Scored, Want
from .tabular import TableResponses

TOKENS = 2  # of a response


class LanguagePolicy:
    """Answers ab of two tokens out of V, number a V + b: logits float64 [G, 1 + V, V], the law of a first token and, for each, of a second.

    log pi(ab) = log pi(a) + log pi(b | a), in nats per response; its length is 2. rows.prompt is the number of the game, responses are
    those of a table of V^2, so that the same judges compare them. exact=True answers every request with the whole law.
    """

    uniform: Mapping[str, Any] = {"temperature": math.inf}
    independent = True

    def __init__(self, logits: Tensor, *, exact: bool = True):
        logits = torch.as_tensor(logits).to(torch.float64)
        logits = logits[None] if logits.ndim == 2 else logits
        if logits.ndim != 3 or logits.shape[1] != logits.shape[2] + 1 or not torch.isfinite(logits).all():
            raise PreftuneError(
                f"logits have shape {tuple(logits.shape)} or are not finite, needed finite ones [games, 1 + V, V]: "
                "a row for the first token and one for the second after each first token"
            )
        self.logits = torch.nn.Parameter(logits.detach().clone())
        self.exact = exact
        self.games, _, self.vocabulary = logits.shape
        self.heads: dict[str, Tensor] = {}

    def rows(self, names: Sequence[str] | None = None) -> Rows:
        """One row per game without responses: the feed of a self-play method."""
        games = range(self.games)
        return Rows(id=tuple(names or (f"game {g}" for g in games)), prompt=tuple(games))

    def probabilities(self) -> Tensor:
        """float64 [G, V^2] of whole answers, without gradient."""
        return sequence_logp(self.logits.detach()).exp()

    def sample(self, rows: Rows, n: int, key: Key, *, temperature: float = 1.0) -> TableResponses:
        """Every token is tempered by itself, as in text: not the tempered law of whole answers."""
        if not temperature > 0:
            raise PreftuneError(f"temperature is {temperature}, needed a number above 0; inf draws uniformly")
        logits, V = self.logits.detach()[torch.tensor(list(rows.prompt))] / temperature, self.vocabulary  # [B, 1 + V, V]
        if self.exact:
            law = sequence_logp(logits).exp()
            return TableResponses(torch.arange(V * V).expand_as(law), law, TOKENS)
        steps = logits.softmax(-1).cumsum(-1)
        draws = torch.from_numpy(key.uniform(rows.id, n, TOKENS))
        first = torch.searchsorted(steps[:, 0].contiguous(), draws[:, :, 0].contiguous(), right=True).clamp(max=V - 1)  # [B, n]
        after = steps.gather(1, (1 + first)[:, :, None].expand(-1, -1, V))  # [B, n, V]
        second = torch.searchsorted(after, draws[:, :, 1:].contiguous(), right=True)[:, :, 0].clamp(max=V - 1)
        return TableResponses(first * V + second, tokens=TOKENS)

    def score(self, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
        """Segments are those of rows.segments, or the two tokens. A head is a table of its own, [games, responses, C]."""
        if "states" in wants:
            raise PreftuneError("this objective reads hidden states, which a table has none of; use a language model")
        games = torch.tensor(list(rows.prompt))[:, None] if rows.prompts is None else torch.tensor([list(row) for row in rows.prompts])
        index, law = rows.response.index, self.logits.log_softmax(-1)
        a, b = index // self.vocabulary, index % self.vocabulary
        tokens = torch.stack([law[games, 0, a], law[games, 1 + a, b]], 2)  # [B, K, 2]
        again = (2 * law.detach()).logsumexp(-1)  # [G, 1 + V]
        return Scored(
            rows,
            tokens.sum(2),
            length=torch.full_like(tokens[:, :, 0], TOKENS).detach(),
            heads={name: table[games, index] for name, table in self.heads.items()},
            segment_logp=by_segment(tokens, rows.segments) if "segments" in wants else None,
            collision=again[games, torch.zeros_like(a)] + again[games, 1 + a] if "collision" in wants else None,
        )

    def attach(self, heads: Mapping[str, Head], key: Key) -> None:
        for name, head in heads.items():
            drawn = key.fold(name).numpy().standard_normal((self.games, self.vocabulary**TOKENS, head.size))
            table = torch.nn.Parameter((0.5**0.5 if head.std is None else head.std) * torch.from_numpy(drawn))  # states of width 1
            table.lr_scale = head.lr_scale  # type: ignore[attr-defined]
            self.heads[name] = table

    def copy(self) -> LanguagePolicy:
        frozen = LanguagePolicy(self.logits, exact=self.exact)
        frozen.logits.requires_grad_(False)
        return frozen

    reference = copy

    def lerp(self, other: LanguagePolicy, w: float) -> LanguagePolicy:
        moved = self.copy()
        moved.logits.data.lerp_(other.logits.detach(), w)
        return moved

    def mix(self, other: LanguagePolicy, w: float) -> LanguagePolicy:
        """The mixture of the laws of every next token, as in text: not `sequence_mixture`, which the theory of Nash-MD and IPO-MD means."""
        return self.lerp(other, w)  # softmax of mixed logits: normalisers are constants of a prefix

    def revise(self, rows: Rows) -> Sequence[Sequence[Any]]:
        raise PreftuneError("a language of two tokens has no prompts with a draft; use TabularPolicy.improving or a language model")

    def unpack(self, packed: dict[str, Tensor]) -> TableResponses:
        return TableResponses(packed["index"], packed.get("law"), TOKENS)

    def parameters(self) -> list[Tensor]:
        return [self.logits, *self.heads.values()]

    def state(self) -> dict[str, Tensor]:
        return {"logits": self.logits.detach().clone()} | {f"heads.{name}": table.detach().clone() for name, table in self.heads.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.logits.data.copy_(state["logits"])
        for name, table in self.heads.items():
            table.data.copy_(state[f"heads.{name}"])


def sequence_logp(logits: Tensor) -> Tensor:
    """log pi(ab) = log pi(a) + log pi(b | a) of all answers, [G, 1 + V, V] -> [G, V^2]."""
    law = logits.log_softmax(-1)
    return (law[:, 0, :, None] + law[:, 1:]).flatten(1)


def sequence_mixture(policy: LanguagePolicy, other: LanguagePolicy, w: float) -> Tensor:
    """policy^(1 - w) * other^w / Z over whole answers, a law [G, V^2].

    (1 - w) log pi(ab) + w log pi'(ab) = log m(a) + log m(b | a) + log Z_a + const,   m = policy.mix(other, w)
    Z_a = sum_b pi(b | a)^(1 - w) pi'(b | a)^w

    The second token follows the first as under m, but first tokens after which the two policies agree (Z_a near 1) are likelier here.
    Limits  the law of m where Z_a is the same after every a: second tokens that do not depend on the first, answers of one token, w = 0, 1
    """
    mine, theirs = sequence_logp(policy.logits.detach()), sequence_logp(other.logits.detach())
    return torch.lerp(mine, theirs, w).softmax(-1)


def by_segment(tokens: Tensor, segments: Tensor | None) -> Tensor:
    """Log-probs of tokens [B, K, 2] summed between the boundaries [B, K, S + 1], [B, K, S]; without boundaries each by itself."""
    if segments is None:
        return tokens
    if segments.min() < 0 or segments.max() > TOKENS:
        raise PreftuneError(f"segments reach from {segments.min()} to {segments.max()}, needed boundaries from 0 to the {TOKENS} tokens")
    until = torch.cat([torch.zeros_like(tokens[:, :, :1]), tokens.cumsum(2)], 2)
    return until.gather(2, segments).diff(dim=2)
