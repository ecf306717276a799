"""Policies over a few named responses, one softmax table per game: the domain where every quantity is exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..types import Head, Key, PreftuneError, Rows, Scored, Want


@dataclass(frozen=True)
class TableResponses:
    """Numbers of responses, int64 [B, K]; `law` [B, K] where the columns enumerate a distribution. All have so many tokens."""

    index: Tensor
    law: Tensor | None = None
    tokens: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        return self.index.shape[0], self.index.shape[1]

    @property
    def length(self) -> Tensor:
        return torch.full_like(self.index, self.tokens)

    def take(self, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None) -> TableResponses:
        def pick(x: Tensor) -> Tensor:
            x = x if rows is None else x[list(rows)]
            return x if columns is None else x[:, list(columns)]

        return replace(self, index=pick(self.index), law=None if self.law is None else pick(self.law))

    def join(self, other: TableResponses) -> TableResponses:
        return replace(self, index=torch.cat([self.index, other.index], dim=1), law=None)

    def pack(self) -> dict[str, Tensor]:
        return {"index": self.index} | ({} if self.law is None else {"law": self.law})

    def show(self) -> list[list[str]]:
        return [[str(i) for i in row] for row in self.index.tolist()]


@lru_cache(maxsize=16)
def _numbers(prompts: tuple[Any, ...]) -> Tensor:
    return torch.tensor(prompts)


def games_of(rows: Rows) -> Tensor:
    """Numbers of the games that the rows ask about, int64 [B]."""
    return _numbers(tuple(rows.prompt))


MANY = 100  # beyond so many games softmax goes over columns; fewer step bit for bit as each would alone


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the responses of [G, n]; of many small games over columns, which takes a third of the time."""
    return logits.T.log_softmax(0).T if logits.shape[0] > max(MANY, logits.shape[1]) else logits.log_softmax(1)


class TabularPolicy:
    """Softmax over n responses for each of G games: logits float64 [G, n]; rows.prompt is the number of the game.

    exact=True answers every request with the whole law (columns 0 .. n-1 and their probabilities) instead of draws, so
    that collectors, objectives and updates become exact without knowing it. logp is in nats; the length of a response is 1.

    `improving` makes a policy that also answers (prompt, draft): `revise` gives such prompts, number G + g n + y for draft y of game g.
    """

    uniform: Mapping[str, Any] = {"temperature": math.inf}
    independent = True

    def __init__(self, logits: Tensor, *, exact: bool = True):
        logits = torch.atleast_2d(torch.as_tensor(logits)).to(torch.float64)
        if logits.ndim != 2 or not torch.isfinite(logits).all():
            raise PreftuneError(f"logits have shape {tuple(logits.shape)} or are not finite, needed a finite table [games, responses]")
        self.logits = torch.nn.Parameter(logits.detach().clone())
        self.exact = exact
        self.games = len(logits)
        self.heads: dict[str, Tensor] = {}
        self.known: Tensor | None = None  # log-probabilities [G, n] of a frozen copy, once it was asked

    def rows(self, names: Sequence[str] | None = None) -> Rows:
        """One row per game without responses: the feed of a self-play method."""
        games = range(self.games)
        return Rows(id=tuple(names or (f"game {g}" for g in games)), prompt=tuple(games))

    def probabilities(self) -> Tensor:
        """float64 [G, n], without gradient."""
        return _log_softmax(self.logits.detach()).exp()

    def sample(self, rows: Rows, n: int, key: Key, *, temperature: float = 1.0) -> TableResponses:
        if not temperature > 0:
            raise PreftuneError(f"temperature is {temperature}, needed a number above 0; inf draws uniformly")
        games = games_of(rows)
        if temperature == math.inf:
            law = torch.full((len(games), self.logits.shape[1]), 1 / self.logits.shape[1], dtype=torch.float64)
        elif temperature == 1.0:
            law = self.log_law(games).detach().exp()
        else:
            law = (self.logits.detach()[games] / temperature).softmax(dim=1)
        if self.exact:
            return TableResponses(torch.arange(law.shape[1]).expand_as(law), law)
        draws = torch.from_numpy(key.uniform(rows.id, n))
        index = torch.searchsorted(law.cumsum(dim=1), draws, right=True)
        return TableResponses(index.clamp(max=law.shape[1] - 1))

    def score(self, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
        """A response is one token: it is its own only segment. A head is a table of its own, [games, responses, C]."""
        if "states" in wants:
            raise PreftuneError("this objective reads hidden states, which a table has none of; use a language model")
        games = games_of(rows)[:, None] if rows.prompts is None else _numbers(tuple(map(tuple, rows.prompts)))
        if rows.prompts is None:
            law = self.log_law(games[:, 0])
            logp = law.gather(1, rows.response.index)
        else:
            law = self.logits[games].log_softmax(dim=2)  # [B, K, n]
            logp = law.gather(2, rows.response.index[:, :, None])[:, :, 0]
        return Scored(
            rows,
            logp,
            length=torch.ones_like(logp),
            heads={name: table[games, rows.response.index] for name, table in self.heads.items()},
            segment_logp=logp[:, :, None] if "segments" in wants else None,
            collision=(2 * law.detach()).logsumexp(-1).reshape(len(rows), -1).expand_as(logp) if "collision" in wants else None,
        )

    def log_law(self, games: Tensor) -> Tensor:
        """log-probabilities [B, n] of all responses."""
        if self.logits.requires_grad:
            return _log_softmax(self.logits[games])
        if self.known is None:
            self.known = _log_softmax(self.logits)
        return self.known[games]

    def attach(self, heads: Mapping[str, Head], key: Key) -> None:
        for name, head in heads.items():
            drawn = key.fold(name).numpy().standard_normal((*self.logits.shape, head.size))
            table = torch.nn.Parameter((0.5**0.5 if head.std is None else head.std) * torch.from_numpy(drawn))  # states of width 1
            table.lr_scale = head.lr_scale  # type: ignore[attr-defined]
            self.heads[name] = table

    def copy(self) -> TabularPolicy:
        frozen = TabularPolicy(self.logits, exact=self.exact)
        frozen.games = self.games
        frozen.logits.requires_grad_(False)
        return frozen

    reference = copy

    def lerp(self, other: TabularPolicy, w: float) -> TabularPolicy:
        moved = self.copy()
        moved.logits.data.lerp_(other.logits.detach(), w)
        return moved

    def mix(self, other: TabularPolicy, w: float) -> TabularPolicy:
        """A response is one token, so this is the mixture of sequences as well."""
        return self.lerp(other, w)  # softmax of mixed logits: normalisers are constants of a game

    @classmethod
    def improving(cls, logits: Tensor, *, exact: bool = True) -> TabularPolicy:
        """A policy that starts with logits [G, n] for prompts and, whatever the draft, for prompts with a draft too."""
        logits = torch.atleast_2d(torch.as_tensor(logits))
        policy = cls(torch.cat([logits, logits.repeat_interleave(logits.shape[1], dim=0)]), exact=exact)
        policy.games = len(logits)
        return policy

    def revise(self, rows: Rows) -> tuple[tuple[int, ...], ...]:
        games, n = self.games, self.logits.shape[1]
        if len(self.logits) != games * (1 + n):
            raise PreftuneError("this table has no law for prompts with a draft; make it with TabularPolicy.improving(logits)")
        numbers = games + games_of(rows)[:, None] * n + rows.response.index
        return tuple(tuple(row) for row in numbers.tolist())

    def unpack(self, packed: dict[str, Tensor]) -> TableResponses:
        return TableResponses(packed["index"], packed.get("law"))

    def parameters(self) -> list[Tensor]:
        return [self.logits, *self.heads.values()]

    def state(self) -> dict[str, Tensor]:
        return {"logits": self.logits.detach().clone()} | {f"heads.{name}": table.detach().clone() for name, table in self.heads.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.known = None
        self.logits.data.copy_(state["logits"])
        for name, table in self.heads.items():
            table.data.copy_(state[f"heads.{name}"])
