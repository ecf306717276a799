"""preftune judge train: a judge on comparisons or marks, by the ordinary training loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from .options import Json, Load, Read, Rename, Set, loading, pairs, reading, refuse
from .train import OPTIONS, PYTHON_ONLY, _tell

Kind = Literal["reward-model"]
METHODS = {"reward-model": "preftune.methods.reward_model:reward_model"}


def train(
    kind: Annotated[Kind, typer.Argument(help="What is trained.")],
    model: Annotated[str, typer.Option(help="Folder, hub id, adapter folder or .gguf file.")],
    data: Annotated[str, typer.Option(help="File, folder, hub id, or a mixture a.jsonl:0.7,b.jsonl:0.3.")],
    test: Annotated[str | None, typer.Option(help="Held-out data of the same kinds, or a share such as 0.1 to hold back.")] = None,
    out: Annotated[str | None, typer.Option(help="The run's folder.")] = None,
    setting: Set = None,
    load: Load = None,
    read: Read = None,
    rename: Rename = None,
    json: Json = False,
) -> None:
    """Train a judge on data."""
    settings = pairs(setting or [])
    refuse(settings, (*OPTIONS, *PYTHON_ONLY), "--set")
    given: dict[str, Any] = {
        "test": test,
        "out": out,
        "load": loading(pairs(load or [], "--load")),
        "read": reading(pairs(read or [], "--read"), pairs(rename or [], "--rename")),
    }
    from .. import api

    asked = {name: value for name, value in {**given, **settings}.items() if value not in (None, {})}
    _tell(api.train(model, METHODS[kind], data, samples=0, progress=not json, **asked), json)
