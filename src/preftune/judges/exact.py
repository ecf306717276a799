"""The judge that knows the win probabilities of a table."""

from __future__ import annotations

import torch
from torch import Tensor

from ..exact.games import validate
from ..numerics import average
from ..policies.tabular import TableResponses, games_of
from ..types import Key, PreftuneError, Rows


class PreferenceTable:
    """P(i beats j) for every pair of responses of every game: float64 [G, n, n] with P + P^T = 1.

    rewards   [G, n], what `score` answers; without them it refuses
    calls     how often win rates were asked for so far: a step's oracle calls
    """

    def __init__(self, probabilities: Tensor, rewards: Tensor | None = None):
        table = torch.as_tensor(probabilities, dtype=torch.float64)
        self.table = validate(table[None] if table.ndim == 2 else table)
        self.rewards = None if rewards is None else torch.atleast_2d(torch.as_tensor(rewards, dtype=torch.float64))
        self.calls = 0

    def prefer(self, rows: Rows, a: TableResponses, b: TableResponses, key: Key) -> Tensor:
        self.calls += 1
        game = games_of(rows)[:, None, None]
        return self.table[game, a.index[:, :, None], b.index[:, None, :]]

    def winrate(self, rows: Rows, y: TableResponses, z: TableResponses, key: Key) -> Tensor:
        """Both enumerated: one product of matrix and vector a game; otherwise the mean over what was drawn."""
        if y.law is None or z.law is None or y.shape[1] != self.table.shape[2] or z.shape[1] != self.table.shape[2]:
            return average(self.prefer(rows, y, z, key), z.law)
        self.calls += 1
        games = games_of(rows)
        table = self.table if torch.equal(games, torch.arange(len(self.table))) else self.table[games]
        return average(table, z.law)

    def score(self, rows: Rows, y: TableResponses, key: Key) -> Tensor:
        if self.rewards is None:
            raise PreftuneError("this judge compares responses and has no rewards, needed a score of each; give rewards=[games, responses]")
        return self.rewards[games_of(rows)[:, None], y.index]
