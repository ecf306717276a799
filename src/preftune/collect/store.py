"""Rows on disk: what a round collected, for a resumed run and for later rounds."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from ..types import Policy, Rows


def path(shelf: Path, number: int) -> Path:
    """The file of one round."""
    return shelf / f"round-{number:04d}.pt"


def save(rows: Rows, file: Path) -> None:
    """Write rows aside, then rename: plain values and the tensors that the responses pack themselves into."""
    state: dict[str, Any] = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
    state |= {"id": list(rows.id), "extra": dict(rows.extra), "response": rows.response.pack()}
    state["tokens"] = bool(len(rows)) and isinstance(rows.prompt[0], tuple)
    state["prompt"] = [list(prompt) if state["tokens"] else prompt for prompt in rows.prompt]
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}")
    torch.save(state, aside)
    os.replace(aside, file)


def load(file: Path, policy: Policy) -> Rows:
    """Read rows back; the policy rebuilds the responses of its domain. Tensors and plain values only, nothing is unpickled."""
    state = torch.load(file, weights_only=True)
    tokens = state.pop("tokens")
    state["response"] = policy.unpack(state["response"])
    state |= {"id": tuple(state["id"]), "prompt": [tuple(prompt) if tokens else prompt for prompt in state["prompt"]]}
    return Rows(**state)
