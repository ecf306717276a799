"""preftune generate: a model's answers."""

from __future__ import annotations

from typing import Annotated

import typer

from ..types import PreftuneError
from .options import Json, Load, Read, Rename, asking, loading, pairs, reading
from .output import print_json


def generate(
    model: Annotated[str, typer.Argument(help="Folder, hub id, adapter folder or .gguf file, or the http address of a chat endpoint.")],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")] = None,
    data: Annotated[str | None, typer.Option(help="Take the prompts of this data instead.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among the k likeliest tokens; 0: among all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens that hold this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Draw among tokens with at least this share of the likeliest one's probability.")] = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends an answer; may be repeated.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed; equal seeds give equal answers.")] = 0,
    load: Load = None,
    read: Read = None,
    rename: Rename = None,
    json: Json = False,
) -> None:
    """Answer prompts with a model."""
    if bool(prompt) == bool(data):
        raise PreftuneError("generate takes --prompt or --data, needed exactly one of them; for instance --prompt 'Hello!'")
    how = pairs(load or [], "--load")
    read_as = reading(pairs(read or [], "--read"), pairs(rename or [], "--rename"))
    from ..api import generate as run
    from ..api import load_data
    from ..client import is_address

    prompts = [record.prompt for record in load_data(data, **read_as)] if data else list(prompt or [])
    answers = run(
        model,
        prompts,
        n=n,
        seed=seed,
        load=asking(how) if is_address(model) else loading(how),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop=stop or (),
        max_new_tokens=max_new_tokens,
    )
    if json:
        print_json({"answers": [{"prompt": asked, "responses": given} for asked, given in zip(prompts, answers, strict=True)]})
        return
    for asked, given in zip(prompts, answers, strict=True):
        print(f"> {asked if isinstance(asked, str) else asked[-1]['content']}")
        print("\n\n".join(given), end="\n\n")
