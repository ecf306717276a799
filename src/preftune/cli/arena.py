"""preftune arena: models against each other, by a judge; who wins, how sure that is, and whether a ranking can say it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..types import PreftuneError
from .options import Json, Load, Read, Rename, loading, pairs, reading
from .output import print_json, print_list, print_table

if TYPE_CHECKING:
    from ..contest import Arena


def arena(
    models: Annotated[list[str], typer.Argument(help="Folders, hub ids, adapter folders or .gguf files; NAME=MODEL gives a name.")],
    prompts: Annotated[str, typer.Option(help="Data whose prompts are asked: file, folder or hub id.")],
    judge: Annotated[str, typer.Option(help="A judge's name or package.module:function.")],
    samples: Annotated[int, typer.Option(min=1, help="Answers of each model to each prompt.")] = 1,
    rows: Annotated[int | None, typer.Option(min=1, help="Prompts to ask; all if left out.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among the k likeliest tokens; 0: among all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens that hold this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of answers, verdicts and intervals.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The contest's folder; runs/arena-TIME if left out. An unfinished one goes on.")] = None,
    train_data: Annotated[
        list[str] | None, typer.Option("--train-data", help="Data a model was trained on, whose prompts are left out; may be repeated.")
    ] = None,
    keep_overlap: Annotated[bool, typer.Option("--keep-overlap", help="Ask prompts that were trained on as well.")] = False,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples of the prompts; 0 leaves intervals and test out.")] = 1000,
    max_prompt: Annotated[int | None, typer.Option(help="Longest prompt in tokens; longer ones are cut and counted.")] = None,
    load: Load = None,
    read: Read = None,
    rename: Rename = None,
    json: Json = False,
) -> None:
    """Compare models on prompts that none was trained on: win rates, length-controlled ones, Elo, the Nash mixture, circles, cost."""
    how = pairs(load or [], "--load")
    read_as = reading(pairs(read or [], "--read"), pairs(rename or [], "--rename"))
    from ..contest import arena as run
    from ..contest import plain

    try:
        found = run(
            named(models),
            prompts,
            judge,
            samples=samples,
            rows=rows,
            decoding={"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p},
            seed=seed,
            out=out,
            train_data=train_data or (),
            keep_overlap=keep_overlap,
            load=loading(how),
            read=read_as,
            max_prompt=max_prompt,
            bootstrap=bootstrap,
        )
    except KeyboardInterrupt:
        typer.echo("interrupted; every answer and verdict so far is saved, and the same command with the same --out goes on", err=True)
        raise typer.Exit(130) from None
    if json:
        print_json(plain(found))
    else:
        tell(found)


def named(models: list[str]) -> Any:
    """NAME=MODEL gives a model a name, where no path is meant; without any name the list as it is."""
    given: dict[str, str] = {}
    for text in models:
        name, equals, model = text.partition("=")
        if not equals or Path(text).exists() or not re.fullmatch(r"[\w.-]+", name):
            name, model = text, text
        if name in given:
            raise PreftuneError(f"{name} is given twice, needed different models under different names; leave one out or name it otherwise")
        given[name] = model
    return list(given.values()) if all(name == model for name, model in given.items()) else given


def tell(found: Arena) -> None:
    """Print the leaderboard, who beats whom, what that means, and where everything lies."""
    from ..contest import plain
    from ..report.arena import findings

    result = plain(found)
    standings = result["standings"]
    board, names = standings["board"], standings["names"]
    print_table(
        ["model", "Elo", "win rate", "at equal length", "Nash mixture", "worst", "characters"],
        [
            [
                place["name"],
                points(place["elo"]),
                percent(place["winrate"]),
                percent(place["controlled"]),
                f"{100 * place['lottery']['value']:.1f}",
                "" if place["worst"] is None else f"{100 * place['worst']:.1f} {place['worst_against']}",
                points(place["length"]),
            ]
            for place in board
        ],
    )
    order = [names.index(place["name"]) for place in board]
    print("\nrow against column, per cent, both orders averaged; 95 % intervals over prompts")
    print_table(["", *(names[j] for j in order)], [[names[i], *(percent(standings["winrate"][i][j]) for j in order)] for i in order])
    print()
    for kind, attention in (("found", False), ("look", True)):
        print_list(kind, [text for text, asks in findings(result) if asks == attention])
    print_list("note", result["notes"])
    tokens = sum(model["tokens"] for model in result["models"].values())
    print(
        f"\n{found.judge_calls:,} comparisons asked in {found.seconds['judging']:.1f} s, {tokens:,} tokens sampled in "
        f"{found.seconds['sampling']:.1f} s\nreport  {found.report}"
    )


def percent(entry: dict[str, Any] | None) -> str:
    """63.1 [55, 70], in per cent."""
    if entry is None or entry["value"] is None:
        return ""
    interval = "" if entry["low"] is None else f" [{100 * entry['low']:.0f}, {100 * entry['high']:.0f}]"
    return f"{100 * entry['value']:.1f}{interval}"


def points(entry: dict[str, Any] | None) -> str:
    """1013 [990, 1040], without decimals."""
    if entry is None or entry["value"] is None:
        return ""
    return f"{entry['value']:.0f}" + ("" if entry["low"] is None else f" [{entry['low']:.0f}, {entry['high']:.0f}]")
