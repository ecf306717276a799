"""The judge that knows the win probabilities of a table."""

from __future__ import annotations

import torch
from torch import Tensor

from ..exact.games import validate
from ..policies.tabular import TableResponses
from ..types import Key, Rows


class PreferenceTable:
    """P(i beats j) for every pair of responses of every game: float64 [G, n, n] with P + P^T = 1."""

    def __init__(self, probabilities: Tensor):
        table = torch.as_tensor(probabilities, dtype=torch.float64)
        self.table = validate(table[None] if table.ndim == 2 else table)

    def prefer(self, rows: Rows, a: TableResponses, b: TableResponses, key: Key) -> Tensor:
        game = torch.tensor(list(rows.prompt))[:, None, None]
        return self.table[game, a.index[:, :, None], b.index[:, None, :]]
