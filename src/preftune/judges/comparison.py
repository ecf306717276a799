"""How two responses are shown to a judge that reads both at once. It is trained on the same words."""

from __future__ import annotations


def shown(first: str, second: str) -> str:
    """Both responses as one text, in this order."""
    return f"First response:\n{first}\n\nSecond response:\n{second}"
