"""What a run tells: metrics.jsonl for programs, a progress bar for people, and trackers for those who ask."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from . import processes
from .types import PreftuneError

SHOWN = {
    "loss": "loss",
    "accuracy": "acc",
    "margin": "margin",
    "winrate": "win",
    "logp_chosen": "chosen",
    "logp_rejected": "rejected",
}
TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}  # name -> packages, one is enough


class Log:
    """Appends one JSON object a line to run/metrics.jsonl, moves the bar, and feeds a tracker when one is named. Of several
    processes only the first one does; the others remember what it writes.

    tracker: "tensorboard", "wandb" or "trackio", through accelerate; nothing is sent anywhere without one.
    """

    def __init__(
        self, folder: Path, total: int, *, tracker: str | None = None, progress: bool = True, config: dict[str, Any] | None = None
    ):
        self.path = folder / "metrics.jsonl"
        self.total, self.started, self.tokens = total, time.monotonic(), 0.0
        self.before = 0.0  # seconds that a resumed run had taken
        self.history: list[dict[str, Any]] = []
        self._tracker = _tracker(tracker, folder, config or {}) if tracker and processes.first() else None
        self._bar = _Bar(total) if progress and processes.first() else None

    def rewind(self, step: int) -> None:
        """Keep the lines up to the checkpoint at `step`, none at 0: what came after was not saved and will be made again."""
        self.history = processes.once(lambda: self._kept(step))
        self.before = max((line["seconds"] for line in self.history), default=0.0)

    def _kept(self, step: int) -> list[dict[str, Any]]:
        """The lines up to a step, which the file then holds alone."""
        if not self.path.exists():
            return []
        whole = [line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in map(json.loads, whole) if line["step"] <= step] if step else []
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        return kept

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """One line. Numbers that are not finite are written as null, which JSON knows."""
        seconds = round(self.before + time.monotonic() - self.started, 3)
        line = {"step": step, **{k: _finite(v) for k, v in metrics.items()}, "seconds": seconds}
        self.history.append(line)
        if processes.first():
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.tokens += metrics.get("tokens", 0.0)
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
        numbers |= {f"eval/{k}": v for k, v in line.get("eval", {}).items()}
        if self._tracker:
            self._tracker.log(numbers, step=step)
        if self._bar and "eval" not in metrics:
            self._bar.show(step, numbers, self.tokens / max(time.monotonic() - self.started, 1e-9))

    def say(self, text: str) -> None:
        """A sentence for people; printed above the bar."""
        if self._bar:
            self._bar.say(text)

    def warn(self, text: str) -> None:
        """A sentence that must not be missed: said without a bar too."""
        if self._bar:
            self._bar.say(text)
        elif processes.first():
            print(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar:
            self._bar.close()
        if self._tracker:
            self._tracker.finish()


class _Bar:
    """A rich progress bar on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        self.progress = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not sys.stderr.isatty(),
        )
        self.progress.start()
        self.task = self.progress.add_task("", total=total)
        self.total, self.last = total, 0.0

    def show(self, step: int, metrics: dict[str, Any], rate: float) -> None:
        parts = [f"{short} {metrics[name]:.3f}" for name, short in SHOWN.items() if isinstance(metrics.get(name), float)]
        text = "  ".join([*parts, f"{rate:.0f} tok/s"] if rate else parts)
        self.progress.update(self.task, completed=step, description=text)
        if self.progress.disable and (time.monotonic() - self.last > 10 or step == self.total):
            self.last = time.monotonic()
            self.console.print(f"step {step}/{self.total}  {text}", highlight=False)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def close(self) -> None:
        self.progress.stop()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: Path, text: str) -> None:
    """Write a file aside, flush it and rename: readers find the old text or the new, never a part."""
    aside = path.with_name(f".writing-{path.name}")  # always the same, so that the next write takes over what a killed one left
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def check_tracker(name: str) -> None:
    """Refuse a tracker that is unknown or not installed."""
    from importlib.util import find_spec

    if name not in TRACKERS:
        raise PreftuneError(f"tracker is {name!r}, needed one of {', '.join(TRACKERS)}; leave tracker out for none")
    if not any(find_spec(module) for module in TRACKERS[name]):
        raise PreftuneError(
            f"the tracker {name} was asked for and is not installed, needed the package {TRACKERS[name][0]}; "
            "install it with `pip install preftune[trackers]`, or leave tracker out"
        )


def _tracker(name: str, folder: Path, config: dict[str, Any]) -> Any:
    check_tracker(name)
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=name, project_dir=str(folder), cpu=True)
    accelerator.init_trackers("preftune", config={k: v for k, v in config.items() if isinstance(v, int | float | str | bool)})

    class _Accelerate:
        def log(self, values: dict[str, Any], step: int) -> None:
            accelerator.log(values, step=step)

        def finish(self) -> None:
            for each in accelerator.trackers:  # end_training would leave the other processes too
                each.finish()

    return _Accelerate()
