"""Interleaved timing, ratios with their intervals, the machine's own rate of matrix products, and peak memory."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

Times = dict[str, list[tuple[float, float]]]  # contestant -> (processor seconds, wall seconds) of each repeat
LEVEL, DRAWS, SEED = 0.90, 10_000, 0


def race(
    steps: Mapping[str, Callable[[int], object]],
    repeats: int,
    clear: Callable[[], None] = lambda: None,
    fewer: Mapping[str, int] | None = None,
) -> Times:
    """Times of every step, one after the other in each repeat, so that a disturbance hits all of them; a step is told its repeat.

    Each repeat begins with another contestant. `clear` runs before every step, outside of what is timed. `fewer`: contestants that
    leave after so many repeats. A step of another process (`Apart`) says itself how long it took.
    """
    times: Times = {name: [] for name in steps}
    for repeat in range(repeats):
        names = [name for name in steps if repeat < (fewer or {}).get(name, repeats)]
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            clear()
            gc.collect()
            gc.disable()
            times[name].append(steps[name](repeat) if isinstance(steps[name], Turn) else timed(steps[name], repeat))
            gc.enable()
    return times


def timed(step: Callable[[int], object], repeat: int) -> tuple[float, float]:
    """(processor seconds, wall seconds)"""
    processor, wall = time.process_time(), time.perf_counter()
    step(repeat)
    return time.process_time() - processor, time.perf_counter() - wall


class Apart:
    """Steps that run in a process of their own, forked from this one: what one side does to its process, such as how the C library keeps
    freed memory, is not done to the other. Only one of the two runs at a time."""

    def __init__(self, steps: Mapping[str, Callable[[int], object]], clear: Callable[[], None]) -> None:
        self.line, theirs = multiprocessing.Pipe()
        self.turns = {name: Turn(self, name) for name in steps}
        self.child = os.fork()
        if self.child:
            theirs.close()
            return
        try:
            while (asked := theirs.recv()) is not None:
                clear()
                gc.collect()
                gc.disable()
                theirs.send(timed(steps[asked[0]], asked[1]))
                gc.enable()
        finally:
            os._exit(0)

    def close(self) -> None:
        """End the process."""
        self.line.send(None)
        os.waitpid(self.child, 0)


@dataclass(frozen=True)
class Turn:
    """One of the steps of `Apart`."""

    where: Apart
    name: str

    def __call__(self, repeat: int) -> tuple[float, float]:
        """Run it there; how long it took."""
        self.where.line.send((self.name, repeat))
        found: tuple[float, float] = self.where.line.recv()
        return found


def ratio(theirs: Sequence[float], ours: Sequence[float], *, paired: bool = True) -> tuple[float, float, float]:
    """The median of theirs / ours over the repeats that both made, and both ends of its 90 % bootstrap interval.

    paired=False: repeats that did other parts of the same work; then it is the quotient of the totals.
    """
    both = min(len(theirs), len(ours))
    a, b = numpy.asarray(theirs[:both], float), numpy.asarray(ours[:both], float)
    draws = numpy.random.default_rng(SEED).integers(len(a), size=(DRAWS, len(a)))
    if paired:
        value, resampled = numpy.median(a / b), numpy.median((a / b)[draws], axis=1)
    else:
        value, resampled = a.sum() / b.sum(), a[draws].sum(1) / b[draws].sum(1)
    low, high = numpy.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(value), float(low), float(high)


def large_product(dtype: torch.dtype, size: int = 2048) -> tuple[Callable[[int], object], float]:
    """A matrix product of the kind that a machine does best, to be timed beside the steps, and its FLOPs."""
    a, b = (torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    return lambda _: a @ b, 2.0 * size**3


# --- memory -------------------------------------------------------------------------------------------------------------


def extra_peak(step: Callable[[], object]) -> int:
    """Bytes of resident memory at the step's peak beyond what was there before it. Linux; use a process of its own."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier work has freed is given back, or it would hide the step's needs
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """A field of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
