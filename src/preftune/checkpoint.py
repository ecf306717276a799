"""Checkpoints: everything the next step depends on, in one file, written aside, flushed to disk and renamed.

A folder `step-000050` either is complete or does not exist. Tensors, numbers, strings, lists and dicts only: loading
never unpickles an object.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .types import PreftuneError

STATE, SEAL = "state.pt", "seal.json"


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as folder/step-<step>; an existing one of the same step is replaced."""
    final = folder / f"step-{step:06d}"
    aside = folder / f".writing-{final.name}-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    torch.save({**state, "rng": rng_state()}, aside / STATE)
    (aside / SEAL).write_text(json.dumps({"step": step, "bytes": (aside / STATE).stat().st_size, "blake2b": _digest(aside / STATE)}))
    for name in (STATE, SEAL):
        _flush(aside / name)
    _flush(aside)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    _flush(folder)
    return final


def load(path: Path) -> dict[str, Any]:
    """The state of one checkpoint folder; raises PreftuneError when it is incomplete or altered."""
    seal = path / SEAL
    if not seal.exists() or not (path / STATE).exists():
        raise PreftuneError(f"{path} is not a complete checkpoint, needed {STATE} and {SEAL}; resume from another one")
    found = _digest(path / STATE)
    if found != json.loads(seal.read_text())["blake2b"]:
        raise PreftuneError(f"{path / STATE} is corrupt: its checksum differs from {SEAL}; remove {path} and resume from an older checkpoint")
    return torch.load(path / STATE, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if (path / SEAL).exists())


def retain(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the last `keep` checkpoints and the best one, and whatever an interrupted write left."""
    for step in steps(folder)[:-keep]:
        if step != best:
            shutil.rmtree(folder / f"step-{step:06d}")
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover)


def check_room(folder: Path, needed: int) -> None:
    """Fail before the first step when the folder cannot be written or the disk cannot hold what the run will write."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".trial-{os.getpid()}"
        trial.write_bytes(b"preftune")
        trial.unlink()
    except OSError as error:
        raise PreftuneError(f"cannot write to {folder}: {error.strerror}; needed a writable folder; choose another with --out") from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PreftuneError(
            f"{folder} has {free / 1e9:.1f} GB free, needed about {needed / 1e9:.1f} GB for checkpoints and the model; "
            "free some space, choose another --out, or lower keep"
        )


def rng_state() -> dict[str, Any]:
    """The generators of all libraries. preftune draws from keys; these serve dropout and code from outside."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, second = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(internal), second],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, second = state["python"]
    random.setstate((version, tuple(internal), second))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
