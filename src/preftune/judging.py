"""Training judges: one run, or an ensemble of runs that differ in their seed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import api
from .log import write_whole
from .types import PreftuneError, needs_of

CALL = "ensemble.json"  # in the folder of an ensemble: how its members are trained
SHIPPED = ("reward-model", "general-preference", "pairwise-preference", "attribute-regression", "k-wise")


@dataclass(frozen=True)
class TrainedJudge:
    """A judge and the runs that were made for it now; of a resumed ensemble those that were missing."""

    folder: Path
    runs: tuple[api.Run, ...]

    @property
    def judge(self) -> Path:
        """What `judge=` and --judge take."""
        return self.folder / "judge"

    @property
    def stopped(self) -> str:
        """ "finished", "interrupted", or the rule that ended a run."""
        return next((run.stopped for run in self.runs if run.stopped != "finished"), "finished")


def train_judge(
    model: Any,
    kind: str,
    data: Any,
    *,
    test: Any = None,
    ensemble: int = 1,
    out: str | Path | None = None,
    load: Mapping[str, Any] | None = None,
    read: Mapping[str, Any] | None = None,
    max_prompt: int | None = None,
    max_response: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> TrainedJudge:
    """Train a judge by the ordinary loop; RUN/judge holds it: an ordinary model folder with heads.safetensors and judge.json.

    kind      reward-model, general-preference, pairwise-preference, attribute-regression, k-wise, or "package.module:function"
    ensemble  so many judges with the seeds seed, seed + 1, ..: other orders of the data, other first heads and adapters. More than noise
              of training they do not tell: all have seen the same data
    The rest is that of `preftune.train`.
    """
    if needs_of(api.prepare(kind, settings).method.objective).logp:
        raise PreftuneError(f"{kind} trains a policy, needed a method that trains a judge: {', '.join(SHIPPED)}; use preftune train {kind}")
    if ensemble < 1 or (ensemble > 1 and not isinstance(model, str | Path)):
        found = "a model in memory" if ensemble > 1 else f"an ensemble of {ensemble}"
        raise PreftuneError(f"found {found}, needed at least one member, and a folder or name that each member starts from; give one")
    folder = Path(out) if out else Path("runs") / f"{kind.split(':')[-1]}-{time.strftime('%Y%m%d-%H%M%S')}"
    given = {"test": test, "load": dict(load or {}), "read": dict(read or {}), "max_prompt": max_prompt, "max_response": max_response}
    if ensemble == 1:
        run = api.train(model, kind, data, out=folder, samples=0, progress=progress, **given, **settings)
        return TrainedJudge(folder, (run,))
    if (folder / CALL).exists() or (folder / "config.json").exists():
        raise PreftuneError(f"{folder} holds a run already, needed a new folder; choose another --out, or go on with --resume {folder}")
    files = {name: api._source(value) or value for name, value in (("model", model), ("data", data), ("test", test))}
    call = {**given, **files, "method": kind, **settings}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(folder / CALL, json.dumps({"members": ensemble, "call": call}, indent=1))
    except TypeError as error:
        raise PreftuneError(
            f"an ensemble was given objects in Python ({error}), needed names or files, so that it can be resumed"
        ) from None
    return members(folder, progress)


def resume_judge(folder: str | Path, *, progress: bool = True) -> TrainedJudge:
    """Go on with an interrupted run or ensemble, with the settings that it has."""
    place = Path(folder)
    if (place / CALL).exists():
        return members(place, progress)
    return TrainedJudge(place, (api.resume(place, progress=progress),))


def members(folder: Path, progress: bool) -> TrainedJudge:
    """Train what of an ensemble is not there yet, then write its judge.json."""
    from .judges.trained import ENSEMBLE, FORMAT, write_json

    told = json.loads((folder / CALL).read_text(encoding="utf-8"))
    call, runs = dict(told["call"]), []
    seed, names = int(call.pop("seed", 0)), [str(i) for i in range(told["members"])]
    for i, name in enumerate(names):
        own = folder / name
        if (own / "judge" / "judge.json").exists():
            continue
        if (own / "config.json").exists():
            run = api.resume(own, progress=progress)
        else:
            run = api.train(**call, seed=seed + i, out=own, samples=0, progress=progress)
        runs.append(run)
        if run.stopped == "interrupted":
            return TrainedJudge(folder, tuple(runs))
    write_json(folder / "judge", {"format": FORMAT, "kind": ENSEMBLE, "members": [f"../{name}/judge" for name in names]})
    return TrainedJudge(folder, tuple(runs))
