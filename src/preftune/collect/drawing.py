"""`rows_against`, as update rules receive it: each call is a fresh draw against another opponent."""

from __future__ import annotations

import itertools
from typing import Any

from ..types import Collect, Context, Key, Policy, Roles, Rows, RowsAgainst


def drawing(collect: Collect, roles: Roles, feed: Rows, key: Key, **context: Any) -> RowsAgainst:
    """A function opponent -> rows: the same prompts every time, the n-th call with samples of its own."""
    calls = itertools.count()

    def rows_against(opponent: Policy) -> Rows:
        return collect(Context({**roles, "opponent": opponent}, feed, key=key.fold(next(calls)), **context))

    return rows_against
