"""Responses made of steps: the column `steps` as boundaries in tokens, for methods that weigh steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..types import PreftuneError, Rows
from .columns import Record, several, text
from .labels import value_of


def steps_of(record: Record, kept: Sequence[int]) -> list[list[str]] | None:
    """The steps of the responses that are kept, or None without the column. Put together they must be the response."""
    value, where = value_of(record, "steps"), record.where or record.id
    if value is None:
        return None
    lists = several(value, where, "steps", lambda cell, at, column: several(cell, at, column, text), len(record.responses))
    found = [lists[record.order[k] if record.order else k] for k in kept]
    for k, parts in zip(kept, found, strict=True):
        if "".join(parts) != record.responses[k]:
            made, needed = "".join(parts)[:60], record.responses[k][:60]
            advice = "give every blank and line end to one of the steps"
            raise PreftuneError(f"{where}, column 'steps': found steps that make {made!r}, needed the response {needed!r}; {advice}")
    return found


def boundaries(steps: Sequence[str], starts: Sequence[int], tokens: int) -> list[int]:
    """Where each step begins in tokens, and the end: a token belongs to the step in which its first character stands.

    starts  the first character of every token of the text;  tokens  of the response, where the end of turn follows the text and
            a cut may have shortened it
    """
    border, out = 0, [0]
    for step in steps[:-1]:
        border += len(step)
        out.append(min(tokens, sum(start < border for start in starts)))
    return [*out, tokens]


def segments(records: Sequence[Record], kept: Sequence[Sequence[int]], rows: Rows, tokenizer: Any) -> Tensor | None:
    """Token boundaries int64 [B, K, S + 1]; a response with fewer steps repeats its end. None where no row has steps."""
    found = [steps_of(record, columns) for record, columns in zip(records, kept, strict=True)]
    if not any(found):
        return None
    length = rows.response.length.tolist()
    texts = [record.responses[k] for record, columns in zip(records, kept, strict=True) for k in columns]
    offsets = iter(tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"])
    table: list[list[list[int]]] = [[[0]] * len(row) for row in length]
    for b, columns in enumerate(kept):
        of_row = found[b]
        for k in range(len(columns)):
            starts = [start for start, _ in next(offsets)]
            table[b][k] = boundaries(of_row[k], starts, length[b][k]) if of_row and of_row[k] else [0, length[b][k]]
    width = max(len(cuts) for row in table for cuts in row)
    return torch.tensor([[cuts + cuts[-1:] * (width - len(cuts)) for cuts in row] for row in table])
