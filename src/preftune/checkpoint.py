"""Checkpoints: everything the next step depends on, in one file, written aside, flushed to disk and renamed.

A folder `step-000050` either is complete or does not exist. Tensors, numbers, strings, lists and dicts only: loading
never unpickles an object, which torch's own sharded checkpoints ask for.

Where weights are in shards, every process writes its rows of each such tensor to a file of its own, and `state.pt` says where they
belong. Any number of processes can read them, each the rows that are its own then; one process, or several that hold whole weights,
read them all.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import processes
from .types import PreftuneError

STATE, SEAL = "state.pt", "seal.json"


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as folder/step-<step>. A step that is there already was made by the same run and is kept.

    Of several processes the first one writes what all hold.
    """
    final = path_of(folder, step)
    if processes.once(final.exists):
        return final
    aside = processes.once(lambda: _aside(final))
    shards: list[Tensor] = []
    plain = _without(state, shards)
    described = {}
    if shards:
        described = dict(processes.gather(_written(aside / _shard(processes.rank(), processes.size()), shards)))
    processes.once(lambda: _finish(aside, final, {**plain, "rng": rng_state()}, described))
    return final


def _aside(final: Path) -> Path:
    """A new folder beside the final one."""
    aside = final.parent / f".writing-{final.name}-{os.getpid()}"
    aside.mkdir(parents=True)
    return aside


def _written(file: Path, content: Any) -> tuple[str, dict[str, Any]]:
    """Write a file to the disk itself; its name and description."""
    torch.save(content, file)
    _flush(file)
    return file.name, _described(file)


def _finish(aside: Path, final: Path, state: dict[str, Any], shards: dict[str, Any]) -> None:
    """Write what is no shard, seal all, and give the folder its name."""
    name, description = _written(aside / STATE, state)
    (aside / SEAL).write_text(json.dumps({name: description, **shards} if shards else description), encoding="utf-8")
    _flush(aside / SEAL)
    _flush(aside)
    os.replace(aside, final)
    _flush(final.parent)


def load(path: Path) -> dict[str, Any]:
    """The state of one checkpoint folder; raises PreftuneError when it is incomplete or altered."""
    found = flaw(path)
    if found:
        raise PreftuneError(f"{path} {found}, needed {STATE} as it was written; remove {path} and resume from an older checkpoint")
    state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    names = sorted(name for name in _sealed(path) if name != STATE)
    pieces = [torch.load(path / name, map_location="cpu", weights_only=True, mmap=True) for name in names]
    return _with(state, pieces) if pieces else state  # type: ignore[no-any-return]


def flaw(path: Path) -> str:
    """What is wrong with a checkpoint folder; empty where it is sound. Several processes share the reading."""
    missing = [name for name in (STATE, SEAL) if not (path / name).is_file()]
    sealed = {} if missing else _sealed(path)
    missing += sorted(name for name in sealed if not (path / name).is_file())
    if missing:
        return f"lacks {' and '.join(missing)}"
    names = sorted(sealed)
    sound = processes.by_row([1.0] * len(names), lambda mine: [_described(path / names[i]) == sealed[names[i]] for i in mine])
    altered = [name for name, good in zip(names, sound, strict=True) if not good]
    return f"is corrupt: {' and '.join(altered)} is not the file that {SEAL} describes" if altered else ""


def _sealed(path: Path) -> dict[str, Any]:
    """What the seal says of each file; of a seal that cannot be read nothing is true."""
    try:
        found = json.loads((path / SEAL).read_bytes())
    except ValueError:
        return {STATE: None}
    return {STATE: found} if "bytes" in found else found


# --- shards ---------------------------------------------------------------------------------------------------------

HERE = "in shards"  # the key that says: this dict stands for a tensor


def _shard(rank: int, size: int) -> str:
    return f"shard-{rank:05d}-of-{size:05d}.pt"


def _without(state: Any, shards: list[Tensor]) -> Any:
    """The state with numbers in the places of tensors in shards, of which this process's rows are added to the list."""
    if isinstance(state, dict):
        return {name: _without(value, shards) for name, value in state.items()}
    if not processes.sharded(state):
        return state
    shards.append(processes.local(state))
    return {HERE: len(shards) - 1, "shape": list(state.shape)}


def _with(state: Any, pieces: Sequence[Sequence[Tensor]]) -> Any:
    """The state with its tensors back: those rows that belong to this process where weights are in shards, otherwise all."""
    if not isinstance(state, dict):
        return state
    if HERE not in state:
        return {name: _with(value, pieces) for name, value in state.items()}
    rows = partial(_rows, [piece[state[HERE]] for piece in pieces])
    return processes.cut(state["shape"], rows) if processes.sharding() else rows(0, state["shape"][0])


def _rows(pieces: Sequence[Tensor], first: int, last: int) -> Tensor:
    """Some rows of a tensor that lies in pieces, read from no other."""
    found, at = [pieces[0][:0]], 0
    for piece in pieces:
        found.append(piece[max(first - at, 0) : max(last - at, 0)])
        at += len(piece)
    return torch.cat(found)


def newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The state of the newest sound checkpoint, None where there is none, and what has to be told.

    The run is a function of its checkpoint, so an older one leads to the same weights: damaged ones are renamed, not removed.
    """
    found = {step: flaw(path_of(folder, step)) for step in processes.once(lambda: steps(folder))}
    sound = [step for step, what in found.items() if not what]
    if found and not sound:
        flaws = "; ".join(f"step {step} {what}" for step, what in found.items())
        raise PreftuneError(
            f"no checkpoint in {folder} is sound ({flaws}), needed one to go on from; "
            f"remove {folder} and resume again to start from the beginning"
        )
    notes = []
    for step in [step for step in found if step > sound[-1]]:
        damaged = path_of(folder, step)
        aside = damaged.with_name(f"damaged-{damaged.name}-{processes.same(time.time_ns())}")
        processes.once(partial(os.replace, damaged, aside))
        notes.append(f"{damaged} {found[step]}; it is now {aside.name}, and the run goes on from step {sound[-1]}, to the same weights")
    return (load(path_of(folder, sound[-1])), notes) if sound else (None, [])


def path_of(folder: Path, step: int) -> Path:
    """The folder of one step."""
    return folder / f"step-{step:06d}"


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints of a run, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def retain(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the last `keep` checkpoints and the best one."""
    for step in steps(folder)[:-keep]:
        if step != best:
            remove(path_of(folder, step))


def remove(path: Path) -> None:
    """Rename, then remove: a kill in between leaves no half checkpoint under its name."""
    aside = path.with_name(f".removing-{path.name}-{os.getpid()}")
    os.replace(path, aside)
    shutil.rmtree(aside)


def sweep(folder: Path) -> None:
    """Remove what interrupted writes and removals left."""
    for leftover in [*folder.glob(".writing-*"), *folder.glob(".removing-*")]:
        shutil.rmtree(leftover)


def check_room(folder: Path, once: int = 0, times: int = 1) -> None:
    """Fail before the first step when the folder cannot be written or cannot hold what the run will write.

    once   bytes of one checkpoint, allocated for a moment where the system can: quotas and limits of file size show only so
    times  how many of these the disk has to hold
    """
    trial = folder / f".trial-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(trial, "wb") as file:
            if once and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, once)
            else:
                file.write(b"preftune")
    except OSError as error:
        raise PreftuneError(
            f"cannot write {_size(once)} to {folder}: {error.strerror}; needed a writable folder with room for a checkpoint; "
            "choose another with --out, free some space, or raise the limit"
        ) from error
    finally:
        if trial.exists():
            trial.unlink()
    free = shutil.disk_usage(folder).free
    if free < once * times:
        raise PreftuneError(
            f"{folder} has {_size(free)} free, needed about {_size(once * times)} for checkpoints and the model; "
            "free some space, choose another --out, or lower keep"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


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


def seed_rng(seed: int) -> None:
    """Start the generators of all libraries, for code from outside that draws from them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def restore_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, second = state["python"]
    random.setstate((version, tuple(internal), second))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _described(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, as the seal states them."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()
    return {"bytes": path.stat().st_size, "blake2b": digest}


def _flush(path: Path) -> None:
    """To the disk itself; Windows does so for folders unasked, and cannot be asked."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
