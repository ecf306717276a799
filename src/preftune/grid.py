"""A grid of settings: one run after another, each from the model as it was given, all on one cache of reference log-probs."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import processes
from .api import Composed, Run, prepare, train
from .evaluation import Evaluation
from .learner import Diverged
from .log import write_whole
from .types import Method, PreftuneError

RECORD = "sweep.json"
ARGUMENTS = frozenset(inspect.signature(train).parameters) - {"settings"}
CRITERIA = ("accuracy", "accuracy_raw", "judge")  # the first one that was measured says which run is the best
FILES = ("model", "data", "test")
LIMIT = 1000  # runs; more is a slip of the keyboard


@dataclass(frozen=True)
class Point:
    """One run of a sweep and what it measured."""

    values: dict[str, Any]  #     what was swept, as the settings read it
    folder: str
    steps: int
    stopped: str  #               "finished", "interrupted", "diverged: ...", or the rule that ended it
    loss: float | None  #         held out where the run evaluated while training, otherwise the mean over its last tenth
    after: Evaluation  #          of the trained model: name -> value, low, high
    hits: int  #                  reference log-probs that came from the cache
    misses: int  #                reference log-probs that were computed

    def value(self, measure: str) -> float | None:
        """A measure of the trained model."""
        return self.after.get(measure, {}).get("value")


@dataclass
class Sweep:
    """A finished or interrupted sweep."""

    folder: Path
    method: str
    over: dict[str, list[Any]]
    points: list[Point] = field(default_factory=list)
    stopped: str = "finished"

    @property
    def criterion(self) -> str | None:
        """What the best run is chosen by; None where nothing was measured."""
        return next((name for name in CRITERIA if any(point.value(name) is not None for point in self.points)), None)

    @property
    def best(self) -> Point | None:
        """The run with the highest criterion, the first of equals."""
        if self.criterion is None:
            return None
        known = [point for point in self.points if point.value(self.criterion) is not None]
        return max(known, key=lambda point: point.value(self.criterion))  # type: ignore[arg-type,return-value]

    @property
    def rivals(self) -> list[Point]:
        """Runs whose interval of the criterion overlaps with the best one's: the data do not tell them apart."""
        best, name = self.best, self.criterion
        if best is None or name is None or best.after[name]["low"] is None:
            return []
        high = ((point, point.after.get(name, {}).get("high")) for point in self.points if point is not best)
        return [point for point, top in high if top is not None and top >= best.after[name]["low"]]  # type: ignore[operator]


def sweep(
    model: Any,
    method: str | Method | Callable[..., Method],
    data: Any = None,
    *,
    over: Mapping[str, Sequence[Any]],
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> Sweep:
    """Train once for every combination of the values in `over`, for instance over={"beta": [0.03, 0.1, 0.3]}.

    model     as for train; it is loaded anew (a Policy is copied) for every run, so nothing leaks from one to the next
    out       the folder of the sweep; every run has a folder of its own in it, such as beta=0.03
    resume    go on in `out`: finished runs are kept, the one that was broken off continues
    options   everything else that train takes

    A run that diverges is noted and the sweep goes on; any other error ends it.
    """
    if processes.size() > 1:
        raise PreftuneError(
            f"a sweep was started in {processes.size()} processes, needed one: its runs are told apart by files; run the sweep in one "
            "process, or one training run after the other in several"
        )
    settings = {name: value for name, value in options.items() if name not in ARGUMENTS}
    points = prepared(method, settings, over)  # a wrong value is refused before the first run
    method_name = points[0].chosen.name
    folder = Path(out) if out else Path("runs") / f"{method_name.split(':')[-1]}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    asked = {
        "model": model,
        "method": method,
        "data": data,
        "over": {name: list(given) for name, given in over.items()},
        "options": options,
    }
    found = Sweep(folder, method_name, {name: list(dict.fromkeys(point.values[name] for point in points)) for name in over})
    record = _begin(folder, asked, resume)
    done = {point["folder"]: Point(**point) for point in record["points"]}
    for number, point in enumerate(points, 1):
        name, values = folder_name(point.given), point.values
        if name not in done:
            if progress:
                print(f"\n{name}  ({number} of {len(points)})", file=sys.stderr)
            here = folder / name
            start = model if isinstance(model, str | Path) else copy.deepcopy(model)
            again = resume and (here / "config.json").exists()
            try:
                run = train(start, method, data, out=here, resume=again, progress=progress, **{**options, **point.given})
            except Diverged as error:  # a result of the sweep: this value is too large
                done[name] = Point(values, name, 0, f"diverged: {error}", None, {}, 0, 0)
            else:
                if run.stopped == "interrupted":
                    found.stopped = "interrupted"
                    return found
                done[name] = _point(run, values, name)
            write_whole(folder / RECORD, json.dumps({**record, "points": [asdict(p) for p in done.values()]}, indent=1, default=str))
        found.points.append(done[name])
    return found


def resume(folder: str | Path, *, progress: bool = True, **asked: Any) -> Sweep:
    """Go on with an interrupted sweep, with what its sweep.json says. What is asked besides has to agree with it."""
    path = Path(folder) / RECORD
    if not path.exists():
        raise PreftuneError(f"{folder} has no {RECORD}, needed the folder of a sweep; `preftune train METHOD --sweep name=...` writes one")
    made = json.loads(path.read_text(encoding="utf-8"))
    if made["objects"]:
        raise PreftuneError(
            f"{folder} was started with {' and '.join(made['objects'])} as objects in Python, needed names or files; "
            "call preftune.sweep(..., out=..., resume=True) with the same objects"
        )
    known = {**made["options"], **{name: made[name] for name in ("model", "method", "data", "over")}}
    for name, value in _record(asked).items():
        if known.get(name) != value:
            raise PreftuneError(
                f"{folder} was made with {name} = {known.get(name)!r}, but this asks for {value!r}; "
                "a resumed sweep keeps its settings: leave them out, or start a new one in another folder"
            )
    call = {name: made[name] for name in ("model", "method", "data", "over")}
    return sweep(**call, out=folder, resume=True, progress=progress, **made["options"])


def folder_name(point: Mapping[str, Any]) -> str:
    """ "beta=0.03,lr=1e-06": the values as they were given."""
    return ",".join(f"{name}={re.sub(r'[^0-9A-Za-z_.+-]', '_', str(value))}" for name, value in point.items())


@dataclass(frozen=True)
class Prepared:
    """One combination of values before it runs."""

    given: dict[str, Any]
    values: dict[str, Any]  # as the settings read them
    chosen: Composed


def prepared(method: Any, settings: Mapping[str, Any], over: Mapping[str, Sequence[Any]]) -> list[Prepared]:
    """Every combination of the values, checked and probed; refused is what would make a grid empty, endless or ambiguous."""
    if not over:
        raise PreftuneError("a sweep was given no setting, needed at least one; for instance over={'beta': [0.03, 0.1, 0.3]}")
    for name, given in over.items():
        if isinstance(given, str) or not isinstance(given, Sequence) or not given or "" in given:
            raise PreftuneError(f"the sweep over {name} was given {given!r}, needed a list of values; for instance {name}=0.03,0.1,0.3")
        if name in ARGUMENTS:
            raise PreftuneError(
                f"{name!r} cannot be swept, needed a hyperparameter or a training setting; start one run for each {name} instead"
            )
        if name in settings:
            raise PreftuneError(f"{name} is swept and also set to {settings[name]}, needed one of them; leave the setting out")
    runs = math.prod(len(given) for given in over.values())
    if runs > LIMIT:
        raise PreftuneError(f"this sweep would be {runs} runs, needed at most {LIMIT}; sweep fewer values at once")
    found: list[Prepared] = []
    for combination in itertools.product(*over.values()):
        point = dict(zip(over, combination, strict=True))
        chosen = prepare(method, {**settings, **point})
        values = {name: chosen.hyperparameters.get(name, getattr(chosen.config, name, None)) for name in over}
        if any(each.values == values for each in found):
            raise PreftuneError(f"the sweep names {point} twice, also if spelt otherwise; needed different values, leave one out")
        found.append(Prepared(point, values, chosen))
    return found


def _begin(folder: Path, asked: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """The record of the sweep: what is there, to go on with, or a new one."""
    path = folder / RECORD
    plain = {**_record({part: asked[part] for part in ("model", "method", "data", "over")}), "options": _record(asked["options"])}
    if resume and path.exists():
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for part, value in plain.items():
            if made[part] != value:
                raise PreftuneError(
                    f"{folder} was made with {part} = {made[part]!r}, but this sweep has {value!r}; "
                    "resume with the same arguments, or start a new sweep in another folder"
                )
        return made
    if path.exists():
        raise PreftuneError(f"{folder} holds a sweep already, needed a new folder; choose another --out, or go on with --resume {folder}")
    objects = [name for name, value in _leaves(asked) if not isinstance(value, str | Path | float | int | None)]
    folder.mkdir(parents=True, exist_ok=True)
    record = {**plain, "objects": objects, "points": []}
    write_whole(path, json.dumps(record, indent=1))
    return record


def _leaves(asked: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a record has to name, by name: options and their values one by one."""
    for name in ("model", "method", "data"):
        yield name, asked[name]
    for name, value in asked["options"].items():
        yield from (((name, inner) for inner in value.values()) if isinstance(value, Mapping) else [(name, value)])


def _record(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as sweep.json keeps them: files by their full path, so that a sweep goes on from wherever it is resumed."""
    placed = {
        name: str(Path(value).resolve()) if name in FILES and isinstance(value, str | Path) and Path(value).exists() else value
        for name, value in given.items()
    }
    return {name: _told(value) for name, value in placed.items()}


def _told(value: Any) -> Any:
    """As JSON keeps it: names, numbers and lists of them as they are, any other object by its type."""
    if isinstance(value, Mapping):
        return {str(name): _told(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple) and all(isinstance(inner, str | Path | float | int | None) for inner in value):
        return [_told(inner) for inner in value]
    return value if isinstance(value, str | float | int | None) else str(value) if isinstance(value, Path) else type(value).__name__


def _point(run: Run, values: dict[str, Any], name: str) -> Point:
    return Point(
        values, name, run.steps, run.stopped, _loss(run.history), run.evaluation.get("after", {}), run.cache["hits"], run.cache["misses"]
    )


def _loss(history: Sequence[Mapping[str, Any]]) -> float | None:
    """The last held-out loss, or the mean training loss of the last tenth of the steps."""
    evaluated = [line["eval"]["loss"] for line in history if line.get("eval", {}).get("loss") is not None]
    if evaluated:
        return float(evaluated[-1])
    trained = [line["loss"] for line in history if line.get("loss") is not None]
    last = trained[-max(1, len(trained) // 10) :]
    return sum(last) / len(last) if last else None
