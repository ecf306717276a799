"""From records to the rows of a text policy: which responses a method needs, encoded batch by batch as they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from ..policies.text.tokens import encode
from ..types import PreftuneError, Rows
from .columns import Record


@dataclass
class TextFeed:
    """Rows by position. Nothing is encoded ahead, so a million rows cost what a batch costs.

    columns  how many responses the objective reads: 1 the best, 2 the best and the worst, "K" all, 0 none (self-play)
    counts   what encoding truncated, left out or tokenised otherwise, added up over the run
    """

    data: Any  #        data.files.Dataset, or any sequence of Records with `records(positions)`
    tokenizer: Any
    columns: int | Literal["K"]
    max_prompt: int | None = None
    max_response: int | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, positions: Sequence[int]) -> Rows:
        records = [narrow(record, self.columns) for record in self.data.records(positions)]
        rows, counts = encode(records, self.tokenizer, max_prompt=self.max_prompt, max_response=self.max_response)
        self.counts.update(counts)
        if rows.prefer is not None:  # hard and soft labels mixed: an ordered pair without a number is a sure one
            rows = rows.replace(prefer=torch.nan_to_num(rows.prefer, nan=1.0))
        return rows


def narrow(record: Record, columns: int | Literal["K"]) -> Record:
    """The responses that an objective of so many columns reads; raises PreftuneError when there are too few."""
    if columns == "K":
        return record
    if columns == 0:
        return replace(record, responses=[], ranked=False, scores=None, prefer=None, desirable=None)
    found = len(record.responses)
    if found < columns:
        raise PreftuneError(
            f"{record.where or record.id}: found {found} response{'s' * (found != 1)}, needed {columns}; "
            + ("give a response" if columns == 1 else "use chosen and rejected columns, or kto for single labelled responses")
        )
    if columns == 1:
        kept = [0]
    elif record.ranked or found == columns:
        kept = list(range(found)) if found == columns else [0, found - 1]
    else:
        raise PreftuneError(f"{record.where or record.id}: found {found} unranked responses, needed a ranked pair; give scores or ranks")
    pick = lambda values: None if values is None else [values[i] for i in kept]
    return replace(
        record,
        responses=[record.responses[i] for i in kept],
        scores=pick(record.scores),
        desirable=pick(record.desirable),
        prefer=record.prefer if columns == 2 else None,
        ranked=record.ranked and columns > 1,
    )


def usable(data: Any, columns: int | Literal["K"]) -> tuple[Any, list[str]]:
    """The rows that an objective of so many columns can read, and what was left out, in words; before the first step."""
    if columns in (0, "K"):
        return data, []
    few, bad = data.columns < columns, (data.columns >= 1) & ~data.imitable if columns == 1 else np.zeros(len(data), bool)
    if few.all():
        narrow(data[0], columns)  # says what the first row has and what is needed
    notes = [f"{int(few.sum())} rows are left out: fewer than {columns} responses"] if few.any() else []
    notes += [f"{int(bad.sum())} rows are left out: an undesirable response is not imitated"] if bad.any() else []
    kept = np.flatnonzero(~few & ~bad)
    if not len(kept):
        raise PreftuneError(f"all {len(data)} rows are undesirable or too short, needed responses to imitate; use kto for labelled ones")
    return (data if len(kept) == len(data) else data.select(kept)), notes
