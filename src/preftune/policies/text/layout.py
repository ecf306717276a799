"""Packs: several prompts back to back in one row, each followed by its responses, [prompt | y_1 | ... | y_K | prompt | ...].

A prompt is computed once however many responses follow it, nothing is padded, and every response is scored once however many
pairs it is in. A response sees its prompt and itself; its positions go on from the prompt's end, as if it stood alone there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .tokens import Pair, Prompt, Shifted, Tokens

Group = tuple[int, tuple[int, ...]]  # P tokens of a prompt, and of each response behind it those that are fed


@dataclass(frozen=True, eq=False)
class Segments:
    """Who sees whom in a pack. The attention of every layer reads it, and keeps in `made` what it derives from it."""

    groups: tuple[Group, ...]
    made: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def lengths(self) -> list[int]:
        """Of all pieces in their order; a response of one token feeds nothing and has no piece."""
        return [length for prompt, responses in self.groups for length in (prompt, *responses) if length]

    def __len__(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True, eq=False)
class Branch:
    """A prompt and the distinct responses that follow it in a pack, with the place of each among all distinct responses."""

    prompt: Prompt
    responses: list[Tokens]
    places: list[int]


@dataclass(frozen=True, eq=False)
class Pack:
    """One forward pass: N tokens, of which M predict a response's token. `whole`: the last token of each response is fed too."""

    branches: tuple[Branch, ...]
    whole: bool = False

    @cached_property
    def segments(self) -> Segments:
        """The lengths alone."""
        fed = [(len(branch.prompt), tuple(len(r) - (not self.whole) for r in branch.responses)) for branch in self.branches]
        return Segments(tuple(fed))

    @property
    def places(self) -> list[int]:
        """Of the responses in the order of the pack."""
        return [place for branch in self.branches for place in branch.places]

    @property
    def lengths(self) -> list[int]:
        """T_i of the responses in the order of the pack."""
        return [len(response) for branch in self.branches for response in branch.responses]

    def bodies(self, branch: Branch) -> list[Tokens]:
        """What is fed of each response: nothing reads what its last token gives, unless the states are wanted."""
        return branch.responses if self.whole else [response[:-1] for response in branch.responses]

    def ids(self) -> list[int]:
        """[N] token ids; those of a moved prompt are its tokens."""
        found: list[int] = []
        for branch in self.branches:
            found.extend(branch.prompt.tokens if isinstance(branch.prompt, Shifted) else branch.prompt)
            for body in self.bodies(branch):
                found.extend(body)
        return found

    def positions(self) -> Tensor:
        """[N] int64, counted from the start of the prompt that a token belongs to."""
        parts = []
        for prompt, responses in self.segments.groups:
            parts += [torch.arange(prompt), *(torch.arange(prompt, prompt + length) for length in responses)]
        return torch.cat(parts)

    def reads(self) -> Tensor:
        """[M] where the tokens of each response are predicted: the first by the last token of the prompt, whichever response it is."""
        parts, at = [], 0
        for prompt, responses in self.segments.groups:
            end = at + prompt
            at = end
            for length in responses:
                parts += [torch.tensor([end - 1]), torch.arange(at, at + length - self.whole)]
                at += length
        return torch.cat(parts)

    def own(self) -> Tensor:
        """[M] where the tokens of each response stand, in a pack that is `whole`."""
        parts, at = [], 0
        for prompt, responses in self.segments.groups:
            at += prompt
            for length in responses:
                parts.append(torch.arange(at, at + length))
                at += length
        return torch.cat(parts)

    def targets(self) -> list[int]:
        """[M] the tokens themselves."""
        return [token for branch in self.branches for response in branch.responses for token in response]


def pack(pairs: Sequence[Pair], budget: int, *, whole: bool = False) -> tuple[list[Pack], list[int]]:
    """Packs of at most `budget` tokens over the distinct pairs, and for each pair the place of its response among them.

    First fit, longest first. A prompt whose responses do not fit has a pack of its own, and only beyond twice the budget, or twice its
    length, is it repeated in front of the rest: with gradients all packs of a batch are held anyway, so cutting saves nothing. One
    response that is longer still has a pack of its own. budget 0 is one response a pack: no value depends on what else is scored.
    """
    by_prompt: dict[Prompt, dict[Tokens, int]] = {}
    count, places = 0, []
    for prompt, response in pairs:
        known = by_prompt.setdefault(prompt, {})
        if response not in known:
            known[response] = count
            count += 1
        places.append(known[response])
    branches = [branch for prompt, known in by_prompt.items() for branch in split(prompt, known, budget, whole)]
    sizes = [tokens_of(branch, whole) for branch in branches]
    bins: list[list[Branch]] = []
    room: list[int] = []
    for i in sorted(range(len(branches)), key=lambda i: (-sizes[i], i)):
        at = next((b for b, free in enumerate(room) if free >= sizes[i]), None) if budget > 0 else None
        if at is None:
            bins.append([])
            room.append(budget)
            at = len(bins) - 1
        bins[at].append(branches[i])
        room[at] -= sizes[i]
    return [Pack(tuple(one), whole) for one in bins], places


def lines(packs: Sequence[Pack], places: Sequence[int]) -> list[int]:
    """For each pair the number of its response in the order of all packs."""
    number = {place: i for i, place in enumerate(place for one in packs for place in one.places)}
    return [number[place] for place in places]


def split(prompt: Prompt, known: dict[Tokens, int], budget: int, whole: bool) -> list[Branch]:
    """The responses to one prompt, in parts."""
    parts: list[Branch] = []
    free = 0
    for response, place in known.items():
        size = len(response) - (not whole)
        if not parts or size > free:
            parts.append(Branch(prompt, [], []))
            free = max(2 * budget - len(prompt), len(prompt)) if budget > 0 else 0
        parts[-1].responses.append(response)
        parts[-1].places.append(place)
        free = free - size if budget > 0 else -1
    return parts


def tokens_of(branch: Branch, whole: bool = False) -> int:
    """Tokens of a branch in a pack."""
    return len(branch.prompt) + sum(len(response) - (not whole) for response in branch.responses)
