"""The judge that knows the win probabilities of a table."""

from __future__ import annotations

import torch
from torch import Tensor

from ..policies.tabular import TableResponses
from ..types import Key, PreftuneError, Rows


class PreferenceTable:
    """P(i beats j) for every pair of responses of every game: float64 [G, n, n] with P + P^T = 1."""

    def __init__(self, probabilities: Tensor):
        table = torch.as_tensor(probabilities, dtype=torch.float64)
        table = table[None] if table.ndim == 2 else table
        if table.ndim != 3 or table.shape[1] != table.shape[2]:
            raise PreftuneError(f"the preference table has shape {tuple(table.shape)}, needed [n, n] or [games, n, n]")
        if not torch.allclose(table + table.mT, torch.ones_like(table), atol=1e-12):
            raise PreftuneError("the preference table is not antisymmetric: needed P + P^T = 1; average both orders of the judge")
        self.table = table

    def prefer(self, rows: Rows, a: TableResponses, b: TableResponses, key: Key) -> Tensor:
        game = torch.tensor(list(rows.prompt))[:, None, None]
        return self.table[game, a.index[:, :, None], b.index[:, None, :]]
