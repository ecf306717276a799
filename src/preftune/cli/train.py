"""preftune train: a method on a model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..types import PreftuneError
from .options import Json, Load, Read, Rename, Set, loading, pairs, reading, refuse
from .output import number, print_json, print_measures, print_table, say_interrupted

OPTIONS = ("method", "model", "data", "test", "judge", "out", "load", "read", "decoding", "max_prompt", "max_response", "samples")
UNPLANNED = ("out", "samples", "decoding")  # what a dry run does not look at
PYTHON_ONLY = ("callbacks", "metrics", "progress", "resume")  # arguments of preftune.train that no file sets


def train(
    method: Annotated[str | None, typer.Argument(help="A method's name, package.module:function or file.py:function.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder, hub id, adapter folder or .gguf file.")] = None,
    data: Annotated[str | None, typer.Option(help="File, folder, hub id, or a mixture a.jsonl:0.7,b.jsonl:0.3.")] = None,
    test: Annotated[str | None, typer.Option(help="Held-out data of the same kinds, or a share such as 0.1 to hold back.")] = None,
    judge: Annotated[str | None, typer.Option(help="A judge's name or package.module:function.")] = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; runs/METHOD-TIME if left out.")] = None,
    setting: Set = None,
    load: Load = None,
    read: Read = None,
    rename: Rename = None,
    max_prompt: Annotated[int | None, typer.Option(help="Longest prompt in tokens; longer ones are cut and counted.")] = None,
    max_response: Annotated[int | None, typer.Option(help="Longest response in tokens; longer ones are cut and counted.")] = None,
    samples: Annotated[int | None, typer.Option(help="Texts drawn before and after, for the report; 0 draws none.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file with the same names; the command line wins.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run, from its folder.")] = None,
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
    written = read_yaml(config) if config else {}
    asked: dict[str, Any] = {**written, **request, "load": loading({**written.get("load", {}), **given["load"]})}
    for name in ("method", "model", "data"):
        if name not in asked:
            raise PreftuneError(f"no {name} was given, needed one; for instance preftune train dpo --model FOLDER --data pairs.jsonl")
    from .. import api

    what = [asked.pop(name) for name in ("model", "method", "data")]
    if dry_run:
        _tell_plan(api.plan(*what, **{name: value for name, value in asked.items() if name not in UNPLANNED}), json)
    else:
        _tell(api.train(*what, **asked, progress=not json), json)


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
        print(f"next    preftune generate {run.model} --prompt TEXT")
    if run.stopped == "interrupted":
        if not json:
            say_interrupted(run)
        raise typer.Exit(130)


def _tell_plan(plan: Any, json: bool) -> None:
    from dataclasses import asdict

    facts = asdict(plan)
    if json:
        print_json(facts)
        return
    settings = {**facts.pop("train"), **facts.pop("hyperparameters")}
    notes = facts.pop("notes")
    print_table(["dry run", ""], [[name.replace("_", " "), number(value)] for name, value in facts.items()])
    print()
    print_table(["setting", "value"], [[name, number(value)] for name, value in settings.items()])
    for note in notes:
        print(f"note: {note}")
