"""preftune judge train: a judge on comparisons, lists or marks, by the ordinary training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..types import PreftuneError
from .options import Json, Load, Read, Rename, Set, loading, pairs, reading, refuse
from .output import interval, print_json, print_table
from .train import OPTIONS, PYTHON_ONLY


def train(
    kind: Annotated[
        str | None,
        typer.Argument(help="reward-model, general-preference, pairwise-preference, attribute-regression, k-wise, or module:function."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder, hub id, adapter folder or .gguf file.")] = None,
    data: Annotated[str | None, typer.Option(help="File, folder, hub id, or a mixture a.jsonl:0.7,b.jsonl:0.3.")] = None,
    test: Annotated[str | None, typer.Option(help="Held-out data of the same kinds, or a share such as 0.1 to hold back.")] = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; runs/KIND-TIME if left out. The judge is its folder judge.")] = None,
    ensemble: Annotated[int, typer.Option(help="So many judges of different seeds, which are asked together.")] = 1,
    setting: Set = None,
    load: Load = None,
    read: Read = None,
    rename: Rename = None,
    max_prompt: Annotated[int | None, typer.Option(help="Longest prompt in tokens; longer ones are cut and counted.")] = None,
    max_response: Annotated[int | None, typer.Option(help="Longest response in tokens; longer ones are cut and counted.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run or ensemble, from its folder.")] = None,
    json: Json = False,
) -> None:
    """Train a judge on data. RUN/judge is what --judge takes."""
    from .. import judging

    settings = pairs(setting or [])
    refuse(settings, (*OPTIONS, *PYTHON_ONLY, "kind", "ensemble"), "--set")
    given: dict[str, Any] = {
        "test": test,
        "out": out,
        "load": loading(pairs(load or [], "--load")),
        "read": reading(pairs(read or [], "--read"), pairs(rename or [], "--rename")),
        "max_prompt": max_prompt,
        "max_response": max_response,
    }
    asked = {name: value for name, value in {**given, **settings}.items() if value not in (None, {})}
    what: dict[str, Any] = {"kind": kind, "model": model, "data": data}
    if resume is not None:
        changed = [name for name in (*what, *asked) if name in asked or what.get(name) is not None] + ["ensemble"] * (ensemble != 1)
        if changed:
            raise PreftuneError(
                f"--resume {resume} was given with {', '.join(changed)}, but a resumed run keeps its settings; "
                "leave them out, or start a new run"
            )
        _tell(judging.resume_judge(resume, progress=not json), json)
        return
    for name, value in what.items():
        if value is None:
            raise PreftuneError(
                f"no {name} was given, needed one; for instance preftune judge train reward-model --model FOLDER --data pairs.jsonl"
            )
    _tell(judging.train_judge(**what, ensemble=ensemble, progress=not json, **asked), json)


def _tell(trained: Any, json: bool) -> None:
    interrupted = next((run for run in trained.runs if run.stopped == "interrupted"), None)
    if json:
        told = lambda run: {"folder": str(run.folder), "steps": run.steps, "stopped": run.stopped, **run.evaluation}
        runs = [told(run) for run in trained.runs]
        print_json({"folder": str(trained.folder), "judge": str(trained.judge), "runs": runs})
    elif interrupted is None:
        measured = {run.folder.name: run.evaluation["after"] for run in trained.runs if run.evaluation.get("after")}
        names = list(dict.fromkeys(name for one in measured.values() for name in one))
        if names:
            rows = [[name.replace("_", " "), *(interval(one.get(name)) for one in measured.values())] for name in names]
            print_table(["held out", *(measured if len(trained.runs) > 1 else [""])], rows)
        print(f"\njudge   {trained.judge}")
        print(f"next    preftune train METHOD --judge {trained.judge} ...")
    if interrupted is not None:
        if not json:
            print(f"interrupted after step {interrupted.steps}, everything is saved; go on with")
            print(f"\n    preftune judge train --resume {trained.folder}")
        raise typer.Exit(130)
