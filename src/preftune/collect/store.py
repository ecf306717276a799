"""Rows on disk: what a round collected, for a resumed run and for later rounds."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from ..types import Policy, PreftuneError, Rows


def path(shelf: Path, number: int) -> Path:
    """The file of one round."""
    return shelf / f"round-{number:04d}.pt"


def save(rows: Rows, file: Path) -> None:
    """Write rows aside, flush and rename: 64 bytes of checksum, plain values, the tensors that the responses pack themselves into."""
    state: dict[str, Any] = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
    state |= {"id": list(rows.id), "extra": dict(rows.extra), "response": rows.response.pack()}
    state["tokens"] = bool(len(rows)) and isinstance(rows.prompt[0], tuple)
    state["prompt"] = [list(prompt) if state["tokens"] else prompt for prompt in rows.prompt]
    written = io.BytesIO()
    torch.save(state, written)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".writing-{file.name}-{os.getpid()}")
    with open(aside, "wb") as out:
        out.write(hashlib.blake2b(written.getbuffer()).digest() + written.getbuffer())
        out.flush()
        os.fsync(out.fileno())
    os.replace(aside, file)


def load(file: Path, policy: Policy) -> Rows:
    """Read rows back; the policy rebuilds the responses of its domain. Tensors and plain values only, nothing is unpickled."""
    content = file.read_bytes()
    if hashlib.blake2b(content[64:]).digest() != content[:64]:
        raise PreftuneError(
            f"{file} is corrupt: its checksum differs, needed the rows as they were collected; "
            "remove it with the checkpoints made after that round began, and resume"
        )
    state = torch.load(io.BytesIO(content[64:]), weights_only=True)
    tokens = state.pop("tokens")
    state["response"] = policy.unpack(state["response"])
    state |= {"id": tuple(state["id"]), "prompt": [tuple(prompt) if tokens else prompt for prompt in state["prompt"]]}
    return Rows(**state)


def forget(shelf: Path, after: int) -> None:
    """Remove the rows of rounds later than `after`, collected by weights that no checkpoint holds, and interrupted writes."""
    for file in [*shelf.glob("round-*.pt"), *shelf.glob(".writing-*")]:
        if file.name.startswith(".") or file > path(shelf, after):
            file.unlink()
