"""preftune evaluate: what a model prefers and what it says, with an interval for every number."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json, Load, Read, Rename, loading, pairs, reading
from .output import print_json, print_measures


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder, hub id, adapter folder or .gguf file.")],
    data: Annotated[str, typer.Option(help="Held-out data: file, folder or hub id.")],
    against: Annotated[str | None, typer.Option(help="The model to compare with, for instance the one training began from.")] = None,
    judge: Annotated[str | None, typer.Option(help="A judge's name or package.module:function, for samples.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Prompts to answer; the judge scores the answers.")] = 0,
    rows: Annotated[int | None, typer.Option(min=1, help="Held-out rows to use; all if left out.")] = None,
    beta: Annotated[float, typer.Option(help="Scale of the implicit reward in margin and calibration.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of samples and bootstrap.")] = 0,
    max_prompt: Annotated[int | None, typer.Option(help="Longest prompt in tokens.")] = None,
    max_response: Annotated[int | None, typer.Option(help="Longest response in tokens.")] = None,
    load: Load = None,
    read: Read = None,
    rename: Rename = None,
    json: Json = False,
) -> None:
    """Measure a model on held-out pairs and, with a judge, on samples; every number has a bootstrap interval."""
    how = pairs(load or [], "--load")
    read_as = reading(pairs(read or [], "--read"), pairs(rename or [], "--rename"))
    from ..api import evaluate as run

    found = run(
        model,
        data,
        against=against,
        judge=judge,
        load=loading(how),
        read=read_as,
        max_prompt=max_prompt,
        max_response=max_response,
        rows=rows,
        samples=samples,
        beta=beta,
        seed=seed,
    )
    if json:
        print_json(found)
    else:
        print_measures({"value": found})
