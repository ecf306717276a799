"""From records to the rows of a text policy: which responses a method needs, encoded batch by batch as they are asked for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..policies.text.tokens import encode
from ..types import PreftuneError, Rows
from .columns import Record, with_gold
from .files import BATCH
from .labels import Kind, label
from .steps import segments, steps_of


@dataclass
class TextFeed:
    """Rows by position. Nothing is encoded ahead, so a million rows cost what a batch costs.

    columns  how many responses the objective reads: 1 the best, 2 the best and the worst, 3 a pair and its gold response,
             "K" all, 0 none (self-play)
    counts   what encoding truncated, left out or tokenised otherwise, added up over the run
    labels   columns of the file that go to `Rows.extra`, needed in every row;  optional: the same, NaN where a row has none
    """

    data: Any  #        data.files.Dataset, or any sequence of Records with `records(positions)`
    tokenizer: Any
    columns: int | Literal["K"]
    max_prompt: int | None = None
    max_response: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    labels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    steps: bool = False  #                                     boundaries of the column `steps` go to `Rows.segments`
    kinds: dict[str, Kind] = field(default_factory=dict)  # of the labels that were seen
    read: str = ""  #                                          hash of the extra labels and steps of all rows

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, positions: Sequence[int]) -> Rows:
        found = self.records(positions)
        records = [narrow(record, self.columns) for record in found]
        rows, counts = encode(records, self.tokenizer, max_prompt=self.max_prompt, max_response=self.max_response)
        self.counts.update(counts)
        if rows.prefer is not None:  # hard and soft labels mixed: an ordered pair without a number is a sure one
            rows = rows.replace(prefer=torch.nan_to_num(rows.prefer, nan=1.0))
        cuts = segments(found, [kept_of(record, self.columns) for record in found], rows, self.tokenizer) if self.steps else None
        return rows.replace(extra=self.extra(found), segments=cuts)

    def records(self, positions: Sequence[int]) -> list[Record]:
        """The records at these positions, with their gold response where three are read."""
        found: list[Record] = self.data.records(positions)
        return [with_gold(record) for record in found] if self.columns == 3 else found

    def extra(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """The labels that one method alone reads."""
        kept, extra = [kept_of(record, self.columns) for record in records], {}
        for name in (*self.labels, *self.optional):
            made, kind = label(records, kept, name, required=name in self.labels, kind=self.kinds.get(name))
            if made is not None and kind is not None:
                extra[name], self.kinds[name] = made, kind
        return extra

    def check(self) -> None:
        """Read the extra labels and steps of every row, so that the last row's mistake is found before training begins."""
        if self.labels or self.optional or self.steps or self.columns == 3:
            read = hashlib.blake2b(digest_size=16)
            for start in range(0, len(self), BATCH):
                records = self.records(range(start, min(start + BATCH, len(self))))
                for record in records if self.columns == 3 else ():
                    read.update(repr([record.responses[k] for k in kept_of(record, 3)]).encode())
                for name, values in self.extra(records).items():
                    read.update(name.encode() + values.numpy().tobytes())
                for record in records if self.steps else ():
                    read.update(repr(steps_of(record, kept_of(record, self.columns))).encode())
            self.read = read.hexdigest()

    @property
    def fingerprint(self) -> str | None:
        """A hash of what is trained on, with the extra labels that `check` has read; None for data without one."""
        data = getattr(self.data, "fingerprint", None)
        return data if data is None or not self.read else f"{data}-{self.read}"


ADVICE = {  # where there are too few
    1: "give a response",
    2: "use chosen and rejected columns, or kto for single labelled responses",
    3: "use the columns chosen, rejected and gold, or lists of three in this order",
}


def kept_of(record: Record, columns: int | Literal["K"]) -> list[int]:
    """Which responses an objective of so many columns reads; raises PreftuneError when there are too few."""
    found = len(record.responses)
    if columns == "K" or columns == found or columns == 0:
        return list(range(0 if columns == 0 else found))
    if found < columns:
        raise PreftuneError(
            f"{record.where or record.id}: found {found} response{'s' * (found != 1)}, needed {columns}; "
            + ADVICE.get(columns, "give the missing ones")
        )
    if columns == 1:
        return [0]
    if columns > 2:
        raise PreftuneError(
            f"{record.where or record.id}: found {found} responses, needed {columns}; {ADVICE[3]}, or use lipo for longer lists"
        )
    if not record.ranked:
        raise PreftuneError(f"{record.where or record.id}: found {found} unranked responses, needed a ranked pair; give scores or ranks")
    return [0, found - 1]


def narrow(record: Record, columns: int | Literal["K"]) -> Record:
    """The responses that an objective of so many columns reads; raises PreftuneError when there are too few."""
    if columns == "K":
        return record
    kept = kept_of(record, columns)
    if not kept:
        return replace(record, responses=[], ranked=False, scores=None, prefer=None, desirable=None)
    pick = lambda values: None if values is None else [values[i] for i in kept]
    return replace(
        record,
        responses=[record.responses[i] for i in kept],
        scores=pick(record.scores),
        desirable=pick(record.desirable),
        prefer=record.prefer if columns == 2 else None,
        ranked=record.ranked and columns > 1,
    )


NEEDED = {  # a label of every row -> what a row without it has, and the columns that give it
    "ranked": ("without ranks", "responses in an order: chosen and rejected, scores, ranks, or ranked: true"),
    "score": ("without scores", "scores (of a pair: score_chosen and score_rejected)"),
    "desirable": ("without desirable labels", "completion and label, desirable, or ranked responses in every row"),
}


def usable(data: Any, columns: int | Literal["K"], labels: Sequence[str] = (), optional: Sequence[str] = ()) -> tuple[Any, list[str]]:
    """The rows that an objective of so many columns and these labels can read, and what was left out, in words; before the
    first step, so that no row stops a run that has begun."""
    if columns == 0:
        return data, []
    few, least = np.zeros(len(data), bool), columns
    if columns == "K":
        few, least = (data.columns < 2 if "ranked" in labels else few), 2
    elif columns == 3:
        few = (data.columns < 3) & ~((data.columns == 2) & data.holding("gold"))
    else:
        few = data.columns < columns
    bad = (data.columns >= 1) & ~data.imitable if columns == 1 else np.zeros(len(data), bool)
    if few.all():
        kept_of(data[0], 2 if columns == "K" else columns)  # says what the first row has and what is needed
    notes = [f"{int(few.sum())} rows are left out: fewer than {least} responses"] if few.any() else []
    notes += [f"{int(bad.sum())} rows are left out: an undesirable response is not imitated"] if bad.any() else []
    kept = np.flatnonzero(~few & ~bad)
    if not len(kept):
        raise PreftuneError(f"all {len(data)} rows are undesirable or too short, needed responses to imitate; use kto for labelled ones")
    data = data if len(kept) == len(data) else data.select(kept)
    for name, (missing, needed) in NEEDED.items():
        there = data.holding(name)
        if name == "desirable" and not there.any():
            there = data.holding("ranked")  # of a ranked list the first is desirable
        if not there.all() and (name in labels or (name in optional and there.any())):
            record = data[int(np.flatnonzero(~there)[0])]
            k = len(record.responses)
            found = f"found {k} response{'s' * (k != 1)} {missing}" + " and other rows that have them" * bool(there.any())
            raise PreftuneError(f"{record.where or record.id}: {found}, needed {needed}; give them, or leave the row out")
    return data, notes
