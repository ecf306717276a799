"""The tables of facts, one part per family of objectives (facts_*.py), merged."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

FAMILIES = [import_module(path.stem) for path in sorted(Path(__file__).parent.glob("facts_*.py"))]


def merged(name: str) -> dict[str, Any]:
    """One table out of the families' parts; a sentence stands in one of them only."""
    parts = [getattr(family, name, {}) for family in FAMILIES]
    table = {key: value for part in parts for key, value in part.items()}
    assert len(table) == sum(map(len, parts)), f"an entry of {name} stands in two families"
    return table
