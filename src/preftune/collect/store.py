"""Rows on disk: what a round collected, for a resumed run and for later rounds."""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from typing import Any

import torch

from ..types import Rows


def path(shelf: Path, number: int) -> Path:
    """The file of one round."""
    return shelf / f"round-{number:04d}.pt"


def save(rows: Rows, file: Path) -> None:
    """Write rows aside, then rename. Responses give their content through `state()`: tensors, numbers, strings, lists."""
    state: dict[str, Any] = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
    state |= {"id": list(rows.id), "prompt": [list(p) if isinstance(p, tuple) else p for p in rows.prompt], "extra": dict(rows.extra)}
    state["tuples"] = bool(len(rows)) and isinstance(rows.prompt[0], tuple)
    kind = type(rows.response)
    state["response"] = {"kind": f"{kind.__module__}:{kind.__qualname__}", "state": rows.response.state()}
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}")
    torch.save(state, aside)
    os.replace(aside, file)


def load(file: Path) -> Rows:
    """Read rows back; tensors and plain values only, nothing is unpickled."""
    state = torch.load(file, weights_only=True)
    tuples = state.pop("tuples")
    module, _, name = state["response"]["kind"].partition(":")
    kind = getattr(importlib.import_module(module), name)
    state["response"] = kind.from_state(state["response"]["state"])
    state |= {"id": tuple(state["id"]), "prompt": [tuple(p) if tuples else p for p in state["prompt"]]}
    return Rows(**state)
