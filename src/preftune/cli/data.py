"""preftune data: what is in a data set, before training on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from .options import Json, Read, Rename, pairs, reading
from .output import print_json


def data(
    action: Annotated[Literal["check"], typer.Argument(help="check: count what matters before training.")],
    source: Annotated[str, typer.Argument(help="File, folder, hub id, or a mixture a.jsonl:0.7,b.jsonl:0.3.")],
    test: Annotated[str | None, typer.Option(help="Held-out data: how much of them is in the data as well.")] = None,
    model: Annotated[str | None, typer.Option(help="A model whose tokenizer counts the lengths in tokens.")] = None,
    max_prompt: Annotated[int | None, typer.Option(help="With --model: count the prompts longer than this.")] = None,
    max_response: Annotated[int | None, typer.Option(help="With --model: count the responses longer than this.")] = None,
    read: Read = None,
    rename: Rename = None,
    json: Json = False,
) -> None:
    """Look into a data set: formats, lengths, duplicates, ties, leakage, circles, and what to mend."""
    how = reading(pairs(read or [], "--read"), pairs(rename or [], "--rename"))
    from ..data import load
    from ..data.check import check

    report = check(
        load(source, **how),
        tokenizer(model) if model else None,
        max_prompt=max_prompt,
        max_response=max_response,
        test=load(test, **how) if test else None,
    )
    if json:
        print_json({**asdict(report), "warnings": report.warnings()})
    else:
        print(report.table())


def tokenizer(model: str) -> object:
    """The tokenizer of a model, without its weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)
