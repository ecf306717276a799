"""Worse copies of the responses that people preferred."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..data import phrases
from ..data.phrases import Remove
from ..types import Collect, Context, Key, PreftuneError, Rows


def degraded_copies(ctx: Context, *, degrees: int, remove: Remove = "keyphrases", replace: bool = False, shuffle: bool = False) -> Rows:
    """The pair as the data have it, then degrees - 1 copies of the preferred text from which ever more is taken away.

    Columns chosen, rejected, z_1 .. z_{degrees - 1}; label `degree` [B, K]: 0 for the chosen, d for z_d, -1 for what has none.
    A copy that equals an earlier one is absent. `shuffle` deals a row's degrees out anew, by chance. Copies end their turn,
    also where the chosen response was cut. Draws derive from the key and the row's id.
    """
    rows, policy = ctx.feed, ctx.roles["current"]
    if not hasattr(policy, "answer"):
        raise PreftuneError("degraded copies are made of text, but this policy answers with none; use a language model")
    key = ctx.key.fold("degrade")
    texts = [shown[0] for shown in rows.response.take(columns=[0]).show()]
    draws = [key.fold(name).numpy() for name in rows.id]
    copies = [phrases.degraded(text, degrees, draw, remove=remove, replace=replace) for text, draw in zip(texts, draws, strict=True)]
    given = rows.response.shape[1]
    degree = [[0, *[-1] * (given - 1), *(-1 if copy is None else d for d, copy in enumerate(row, 1))] for row in copies]
    if shuffle:
        degree = [dealt(row, key.fold("shuffle", name)) for row, name in zip(degree, rows.id, strict=True)]
    present = torch.ones(len(rows), given, dtype=torch.bool) if rows.present is None else rows.present
    there = torch.tensor([[copy is not None for copy in row] for row in copies], dtype=torch.bool)
    answers: Any = policy.answer(copies)
    return rows.replace(
        response=rows.response.join(answers),
        present=torch.cat([present, there], dim=1),
        extra={**rows.extra, "degree": torch.tensor(degree, dtype=torch.float64)},
    )


degraded_copies.makes = ("degree",)  # type: ignore[attr-defined]  # no column of the file


def dealt(degrees: list[int], key: Key) -> list[int]:
    """The same degrees in a random order, where there is one."""
    places = [k for k, degree in enumerate(degrees) if degree >= 0]
    order = key.numpy().permutation(len(places))
    out = list(degrees)
    for place, other in zip(places, order, strict=True):
        out[place] = degrees[places[other]]
    return out


def degraded(*, degrees: int, remove: Remove, replace: bool, shuffle: bool) -> Collect:
    """`degraded_copies` with its settings checked when a method is composed."""
    if degrees < 2:
        raise PreftuneError(f"degrees is {degrees}, needed 2 or more: the preferred text itself and at least one copy")
    if remove not in ("keyphrases", "random"):
        raise PreftuneError(f"remove is {remove!r}, needed 'keyphrases' or 'random'; random removal is the control")
    return partial(degraded_copies, degrees=degrees, remove=remove, replace=replace, shuffle=shuffle)
