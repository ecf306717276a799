"""Rows on disk: what a round collected, for a resumed run, for later rounds and for people; and what steps drew, where it is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..policies.tabular import TableResponses
from ..types import Policy, PreftuneError, Rows


def path(shelf: Path, number: int) -> Path:
    """The file of one round."""
    return shelf / f"round-{number:04d}.pt"


def step_path(shelf: Path, step: int, draw: int) -> Path:
    """The file of one draw of a step, both from 0."""
    return shelf / f"step-{step:06d}-{draw}.pt"


def files(shelf: Path) -> dict[int, list[Path]]:
    """What is on a shelf, by round or step: one file for a round, one for each draw of a step."""
    found: dict[int, list[Path]] = {}
    for file in shelf.glob("*.pt"):
        if re.fullmatch(r"round-\d{4,}|step-\d{6,}-\d+", file.stem):
            found.setdefault(int(file.stem.split("-")[1]), []).append(file)
    draw = lambda file: int(file.stem.split("-")[-1])  # the tenth after the ninth
    return {number: sorted(found[number], key=draw) for number in sorted(found)}


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
    """Read rows back; the policy rebuilds the responses of its domain."""
    return _load(file, policy.unpack)


def read(file: Path, tokenizer: Any) -> Rows:
    """Read rows of texts back without a model, to be shown by its tokenizer; of a table without one."""

    def unpack(packed: dict[str, Any]) -> Any:
        if "index" in packed:
            return TableResponses(packed["index"], packed.get("law"))
        from ..policies.text.tokens import TextResponses

        if tokenizer is None:
            raise PreftuneError(
                f"{file} holds tokens of a model that the run does not name, needed its tokenizer; name the model (--model)"
            )
        return TextResponses.unpack(packed, tokenizer)

    return _load(file, unpack)


def _load(file: Path, unpack: Callable[[dict[str, Any]], Any]) -> Rows:
    """Tensors and plain values only, nothing is unpickled."""
    content = file.read_bytes()
    if hashlib.blake2b(content[64:]).digest() != content[:64]:
        raise PreftuneError(
            f"{file} is corrupt: its checksum differs, needed the rows as they were collected; "
            "remove it with the checkpoints made after that round began, and resume"
        )
    state = torch.load(io.BytesIO(content[64:]), weights_only=True)
    tokens = state.pop("tokens")
    state["response"] = unpack(state["response"])
    state |= {"id": tuple(state["id"]), "prompt": [tuple(prompt) if tokens else prompt for prompt in state["prompt"]]}
    return Rows(**state)


def forget(shelf: Path, after: int) -> None:
    """Remove the rows of rounds later than `after`, collected by weights that no checkpoint holds, and interrupted writes."""
    for file in [*shelf.glob("round-*.pt"), *shelf.glob(".writing-*")]:
        if file.name.startswith(".") or file > path(shelf, after):
            file.unlink()


def forget_steps(shelf: Path, since: int) -> None:
    """Remove what steps from `since` on drew, after the last checkpoint, and interrupted writes."""
    for step, drawn in files(shelf).items():
        for file in drawn if step >= since else ():
            file.unlink()
    for file in shelf.glob(".writing-*"):
        file.unlink()
