"""The seven rows of vectors.json as rows of preftune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preftune.policies.tabular import TableResponses
from preftune.types import Rows, Scored

DATA = Path(__file__).parent / "data"
VECTORS = json.loads((DATA / "vectors.json").read_text())
ADDED = json.loads((DATA / "vectors_added.json").read_text())


def column(*names: str) -> Tensor:
    """[B, K]: one column per field of the rows of vectors.json."""
    return torch.tensor([[row[name] for name in names] for row in VECTORS["rows"]], dtype=torch.float64)


def table(responses: int, **labels: Any) -> Rows:
    ids = tuple(row["id"] for row in VECTORS["rows"])
    return Rows(ids, ids, TableResponses(torch.arange(responses).expand(len(ids), responses)), **labels)


def pairs() -> Scored:
    """The rows as ranked pairs [7, 2]."""
    return Scored(table(2, ranked=True), column("pc", "pr").requires_grad_(), column("rc", "rr"), column("Lc", "Lr"))


def labelled_with_baseline(z0: float) -> Scored:
    """The rows as one good and one bad response each; columns 2 and 3 are mismatched responses of log-ratio z0."""
    logp, reference = column("pc", "pr"), column("rc", "rr")
    rows = table(4, desirable=torch.tensor([[True, False]] * len(logp)))
    return Scored(rows, torch.cat([logp, reference + z0], 1).requires_grad_(), torch.cat([reference, reference], 1))
