"""preftune train: a method on a model and data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..types import PreftuneError
from .options import Json, Load, Read, Rename, Set, loading, pairs, reading, refuse
from .output import interval, number, print_json, print_measures, print_table, say_interrupted

OPTIONS = ("method", "model", "data", "test", "judge", "out", "load", "read", "decoding", "max_prompt", "max_response", "samples")
UNPLANNED = ("out", "samples", "decoding")  # what a dry run does not look at
TABULATED = ("margin", "logp_chosen", "logp_rejected", "judge")  # beside what the best run is chosen by
PYTHON_ONLY = ("callbacks", "metrics", "progress", "resume")  # arguments of preftune.train that no file sets


def train(
    method: Annotated[str | None, typer.Argument(help="A method's name, package.module:function or file.py:function.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder, hub id, adapter folder or .gguf file.")] = None,
    data: Annotated[str | None, typer.Option(help="File, folder, hub id, or a mixture a.jsonl:0.7,b.jsonl:0.3.")] = None,
    test: Annotated[str | None, typer.Option(help="Held-out data of the same kinds, or a share such as 0.1 to hold back.")] = None,
    judge: Annotated[str | None, typer.Option(help="A judge's name or package.module:function.")] = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; runs/METHOD-TIME if left out.")] = None,
    setting: Set = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="name=value,value,...: one run for each value, on one reference cache; several make the grid."),
    ] = None,
    load: Load = None,
    read: Read = None,
    rename: Rename = None,
    max_prompt: Annotated[int | None, typer.Option(help="Longest prompt in tokens; longer ones are cut and counted.")] = None,
    max_response: Annotated[int | None, typer.Option(help="Longest response in tokens; longer ones are cut and counted.")] = None,
    samples: Annotated[int | None, typer.Option(help="Texts drawn before and after, for the report; 0 draws none.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file with the same names; the command line wins.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run or sweep, from its folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, estimate memory and time, train nothing.")] = False,
    json: Json = False,
) -> None:
    """Train a model with a method on data. The result is an ordinary model folder, and a report."""
    given: dict[str, Any] = {
        "method": method,
        "model": model,
        "data": data,
        "test": test,
        "judge": judge,
        "out": out,
        "max_prompt": max_prompt,
        "max_response": max_response,
        "samples": samples,
        "load": pairs(load or [], "--load"),
        "read": reading(pairs(read or [], "--read"), pairs(rename or [], "--rename")),
    }
    settings = pairs(setting or [])
    refuse(settings, (*OPTIONS, *PYTHON_ONLY), "--set")
    request = {name: value for name, value in {**given, **settings}.items() if value not in (None, {})}
    over = {name: [value.strip() for value in values.split(",")] for name, values in pairs(sweep or [], "--sweep").items()}
    if resume is not None and (over or (resume / "sweep.json").exists()):
        from ..grid import resume as go_on_sweeping

        asked = _asked(config, request, given["load"])
        asked.pop("out", None)
        _tell_sweep(go_on_sweeping(resume, progress=not json, **asked, **({"over": over} if over else {})), json)
        return
    if resume is not None:
        changed = [name for name in request if name not in ("method", "judge")]
        if changed:
            raise PreftuneError(
                f"--resume {resume} was given with {', '.join(changed)}, but a resumed run keeps its settings; "
                "leave them out, or start a new run"
            )
        from ..api import resume as go_on

        _tell(go_on(resume, method=method, judge=judge, progress=not json), json)
        return
    asked = _asked(config, request, given["load"])
    for name in ("method", "model", "data"):
        if name not in asked:
            raise PreftuneError(f"no {name} was given, needed one; for instance preftune train dpo --model FOLDER --data pairs.jsonl")
    from .. import api

    what = [asked.pop(name) for name in ("model", "method", "data")]
    if over and not dry_run:
        from ..grid import sweep as run_sweep

        _tell_sweep(run_sweep(*what, over=over, **asked, progress=not json), json)
    elif dry_run:
        points: list[dict[str, Any]] = [{}]
        if over:
            from ..grid import prepared

            settings = {name: value for name, value in asked.items() if name not in OPTIONS}
            points = [point.given for point in prepared(what[1], settings, over)]
        planned = {name: value for name, value in {**asked, **points[0]}.items() if name not in UNPLANNED}
        _tell_plan(api.plan(*what, **planned), json, runs=len(points))
    else:
        _tell(api.train(*what, **asked, progress=not json), json)


def _asked(config: Path | None, request: dict[str, Any], load: dict[str, Any]) -> dict[str, Any]:
    """What file and command line say together; the command line wins."""
    written = read_yaml(config) if config else {}
    loads = loading({**written.get("load", {}), **load})
    return {**written, **request, **({"load": loads} if loads else {})}


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a file: names of options, hyperparameters and training settings side by side."""
    import yaml

    if not path.is_file():
        raise PreftuneError(f"there is no file {path}, needed YAML with settings; write lines such as `method: dpo`")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise PreftuneError(f"{path} is not YAML: {' '.join(str(error).split())}, needed lines `name: value`; correct that line") from error
    if not isinstance(found, dict):
        raise PreftuneError(f"{path} holds {type(found).__name__}, needed lines `name: value`; see docs/cli.md for an example")
    if not isinstance(found.get("load", {}), dict):
        raise PreftuneError(f"{path} has load: {found['load']!r}, needed names and values below it; for instance load: {{train: lora}}")
    refuse(found, PYTHON_ONLY, str(path))
    return {str(name): value for name, value in found.items()}


def _tell(run: Any, json: bool) -> None:
    facts = {
        "folder": str(run.folder),
        "model": str(run.model),
        "report": str(run.report),
        "steps": run.steps,
        "stopped": run.stopped,
        "evaluation": run.evaluation,
    }
    if json:
        print_json(facts)
    elif run.stopped != "interrupted":
        if any(run.evaluation.values()):
            print_measures(run.evaluation)
        print(f"\n{run.steps} steps, {run.stopped}\nmodel   {run.model}\nreport  {run.report}")
        after = f"train METHOD --judge {run.model} ..." if run.judge else f"generate {run.model} --prompt TEXT"
        print(f"next    preftune {after}")
    if run.stopped == "interrupted":
        if not json:
            say_interrupted(run)
        raise typer.Exit(130)


def _tell_sweep(sweep: Any, json: bool) -> None:
    """One line a run; the best one is marked, and said is which others the data cannot tell from it."""
    best, criterion = sweep.best, sweep.criterion
    hits, misses = (sum(getattr(point, name) for point in sweep.points) for name in ("hits", "misses"))
    if json:
        facts = {"folder": str(sweep.folder), "method": sweep.method, "sweep": sweep.over, "stopped": sweep.stopped}
        runs = [{**asdict(point), "folder": str(sweep.folder / point.folder)} for point in sweep.points]
        chosen = {"best": best and best.values, "by": criterion, "not told apart": [point.values for point in sweep.rivals]}
        print_json({**facts, **chosen, "runs": runs, "cache": {"hits": hits, "misses": misses}})
    else:
        told = [name for name in TABULATED if name != criterion and any(point.value(name) is not None for point in sweep.points)]
        columns = {name: [point.value(name) for point in sweep.points] for name in told}
        if criterion is not None:
            columns = {f"{criterion}  [95 %]": [interval(point.after.get(criterion)) for point in sweep.points], **columns}
        columns["loss"] = [point.loss for point in sweep.points]
        columns[""] = [
            "best" if point is best else "" if point.stopped == "finished" else point.stopped.partition(":")[0] for point in sweep.points
        ]
        rows = zip(sweep.points, zip(*columns.values(), strict=True), strict=True)
        print_table(
            [*sweep.over, *(name.replace("_", " ") for name in columns)],
            [[*map(number, point.values.values()), *row] for point, row in rows],
        )
        print(f"\n{hits} of {hits + misses} reference log-probs came from the cache\nruns    {sweep.folder}")
        if best is None and sweep.points:
            print("no run is marked as the best: nothing was measured on held-out data; give --test")
        elif sweep.rivals:
            others = ", ".join(point.folder for point in sweep.rivals)
            print(f"best    by {(criterion or '').replace('_', ' ')}; its interval overlaps with that of {others}")
        elif best is not None:
            print(f"best    by {(criterion or '').replace('_', ' ')}: {best.folder}")
    if sweep.stopped == "interrupted":
        if not json:
            print(
                f"interrupted after {len(sweep.points)} runs, everything is saved; go on with\n\n    preftune train --resume {sweep.folder}"
            )
        raise typer.Exit(130)


def _memory(plan: dict[str, Any]) -> list[list[str]]:
    """The lines of a memory plan: what is held in any case, what a micro-batch adds, and the peak against the device."""
    from .doctor import size

    held = ("weights", "gradients", "optimiser", "copies", "states", "passing", "activations", "holes")
    lines = [[name, size(plan[name])] for name in held if plan[name]]
    return [
        *lines,
        ["expected peak", f"{size(plan['peak'])} of {size(plan['available'])} on {plan['device']}"],
        ["micro-batch", f"up to {plan['tokens']} tokens; the data fill {plan['expected']}"],
        ["a token keeps", f"{size(plan['per_token'])} until the backward pass"],
        ["computed again", f"activations of {plan['checkpointed']} of {plan['layers']} layers"],
    ]


def _tell_plan(plan: Any, json: bool, runs: int = 1) -> None:
    facts = {**({"runs": runs} if runs > 1 else {}), **asdict(plan)}  # of a sweep: the first run, and how many there are
    if json:
        print_json(facts)
        return
    settings = {**facts.pop("train"), **facts.pop("hyperparameters")}
    notes, memory = facts.pop("notes"), facts.pop("memory")
    print_table(["dry run", ""], [[name.replace("_", " "), number(value)] for name, value in facts.items()])
    if memory is not None:
        print()
        print_table(["memory", ""], _memory(memory))
    print()
    print_table(["setting", "value"], [[name, number(value)] for name, value in settings.items()])
    for note in notes:
        print(f"note: {note}")
