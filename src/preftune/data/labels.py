"""Columns that one method alone reads, as tensors: `Rows.extra`.

A cell is a number, a list with a number for each response, or a list with a list of numbers for each response. Lists stand
in the order in which the file names the responses, and follow them when they are ranked, swapped or left out.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..types import PreftuneError
from .columns import Record, number

ADVICE = {"goal": "`preftune data goals IN OUT` writes it"}  # where a column comes from, if not from people
KINDS = ("a number", "a list of numbers", "a list of lists of numbers", "lists of one size")


def value_of(record: Record, name: str) -> Any:
    """What the column holds; lists stand as JSON in CSV."""
    value = record.meta.get(name)
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        at = f"{record.where or record.id}, column {name!r}"
        raise PreftuneError(f"{at}: found broken JSON ({error}), needed a JSON list; correct the cell") from None


def cell(record: Record, name: str, kept: Sequence[int]) -> Any:
    """The value of a row as a number, [K] or [K][J] for the responses that are kept, or None where the cell is empty."""
    value, where = value_of(record, name), record.where or record.id
    if value is None or not isinstance(value, list):
        return None if value is None else number(value, where, name)
    if len(value) != len(record.responses):
        raise PreftuneError(
            f"{where}, column {name!r}: found {len(value)} values, needed {len(record.responses)}, one for each response; "
            "make the lists equally long, or give one number for the row"
        )
    read = lambda item: [number(x, where, name) for x in item] if isinstance(item, list) else number(item, where, name)
    return [read(value[record.order[k] if record.order else k]) for k in kept]


Kind = tuple[int, int]  # 0 a number, 1 [K], 2 [K][J]; J


def kind_of(value: Any) -> Kind:
    """What a cell holds; (3, 0) where its lists are of different sizes."""
    if not isinstance(value, list):
        return 0, 0
    sizes = {len(item) if isinstance(item, list) else 0 for item in value}
    lists = sum(isinstance(item, list) for item in value)
    return (1, 0) if lists == 0 else (2, max(sizes)) if lists == len(value) and len(sizes) == 1 else (3, 0)


def label(
    records: Sequence[Record], kept: Sequence[Sequence[int]], name: str, *, required: bool, kind: Kind | None = None
) -> tuple[Tensor | None, Kind | None]:
    """float64 [B], [B, K] or [B, K, J], NaN where a row has no value or fewer responses; and its kind.

    kept  for each row the responses that the objective reads, by their place in the record
    kind  what other rows of the same data hold; where nobody knows yet and no row here has a value, there is no tensor
    """
    values = [cell(record, name, columns) for record, columns in zip(records, kept, strict=True)]
    for record, value in zip(records, values, strict=True):
        where = f"{record.where or record.id}, column {name!r}"
        if value is None and required:
            near = difflib.get_close_matches(name, record.meta, 1, 0.6)
            rename = f"rename with columns={{{near[0]!r}: {name!r}}}" if near else "fill it, or leave the row out"
            advice = ADVICE.get(name, rename)
            raise PreftuneError(f"{where}: found no value, needed {KINDS[0]} or {KINDS[1]}, one for each response; {advice}")
        if value is not None and value != []:
            kind = kind or kind_of(value)
            if kind_of(value) != kind or kind[0] == 3:
                size = f" of {kind[1]}" * (kind[0] == 2)
                raise PreftuneError(
                    f"{where}: found {json.dumps(value)[:80]}, needed {KINDS[kind[0]]}{size} as in the other rows; correct the column"
                )
    if kind is None:
        return None, None
    shape = (max(map(len, kept), default=0), kind[1])[: kind[0]]
    table = torch.full((len(records), *shape), math.nan, dtype=torch.float64)
    for row, value in enumerate(values):
        if kind[0] == 0 and value is not None:
            table[row] = value
        elif value:
            table[row, : len(value)] = torch.tensor(value, dtype=torch.float64)
    return table, kind
