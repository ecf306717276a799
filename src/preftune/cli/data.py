"""preftune data: what is in a data set, before training on it; and data sets made of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..types import PreftuneError
from .options import Json, Read, Rename, pairs, reading
from .output import print_json

Action = Literal["check", "goals"]


def data(
    action: Annotated[
        Action, typer.Argument(help="check: count what matters before training. goals: scored pairs to pairs with a goal in their prompt.")
    ],
    source: Annotated[str, typer.Argument(help="File, folder, hub id, or a mixture a.jsonl:0.7,b.jsonl:0.3.")],
    out: Annotated[Path | None, typer.Argument(help="goals: the JSONL file to write.")] = None,
    test: Annotated[str | None, typer.Option(help="Held-out data: how much of them is in the data as well.")] = None,
    model: Annotated[str | None, typer.Option(help="A model whose tokenizer counts the lengths in tokens.")] = None,
    max_prompt: Annotated[int | None, typer.Option(help="With --model: count the prompts longer than this.")] = None,
    max_response: Annotated[int | None, typer.Option(help="With --model: count the responses longer than this.")] = None,
    goal: Annotated[float | None, typer.Option(help="goals: write the prompts alone, asked for this score; 10 is the top.")] = None,
    text: Annotated[str | None, typer.Option(help="goals: how a goal is said, with {goal} where the number goes.")] = None,
    place: Annotated[str, typer.Option(help="goals: system, or prompt for models without a system role.")] = "system",
    rejected: Annotated[str, typer.Option(help="goals: which response of a list the best is paired with, random or worst.")] = "random",
    seed: Annotated[int, typer.Option(help="goals: of that draw.")] = 0,
    read: Read = None,
    rename: Rename = None,
    json: Json = False,
) -> None:
    """Look into a data set: formats, lengths, duplicates, ties, leakage, circles, and what to mend. Or make one with goals."""
    how = reading(pairs(read or [], "--read"), pairs(rename or [], "--rename"))
    if action == "goals":
        goals(source, out, goal, {} if text is None else {"text": text}, {"rejected": rejected, "seed": seed}, place, how, json)
        return
    if out is not None:
        raise PreftuneError(f"data check was given a second file, {out}, needed one to look into; held-out data go to --test")
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


def goals(
    source: str,
    out: Path | None,
    goal: float | None,
    said: dict[str, Any],
    drawn: dict[str, Any],
    place: str,
    how: dict[str, Any],
    json: bool,
) -> None:
    """Write the rows with goals, or the prompts with one goal, and say how many."""
    from ..data import load
    from ..data.goals import prompts_with_goal, rows_with_goals

    if out is None:
        raise PreftuneError("data goals was given no file to write, needed one; for instance preftune data goals scored.jsonl goals.jsonl")
    counts: Counter[str] = Counter()
    records = load(source, **how)
    if out.is_dir() or out.resolve() in {Path(name).resolve() for name in records.formats}:
        found = "a folder" if out.is_dir() else "a file that is read"
        raise PreftuneError(f"data goals was asked to write {out}, {found}, needed the name of another file; for instance goals.jsonl")
    where: Any = {**said, "place": place}
    made = rows_with_goals(records, counts, **where, **drawn) if goal is None else prompts_with_goal(records, goal, **where)
    facts = {"file": str(out), "rows": write(made, out, source)} | dict(counts)
    if json:
        print_json(facts)
        return
    print(f"{facts['rows']} rows in {out}")
    for reason in ("tie", "no scores"):
        if counts[reason]:
            print(f"{counts[reason]} of {counts['read']} rows are left out: {reason}")


def write(rows: Iterable[dict[str, Any]], out: Path, source: str) -> int:
    """JSONL, whole or not at all; the number of rows."""
    import json
    import os

    out.parent.mkdir(parents=True, exist_ok=True)
    aside, written = out.with_name(f".{out.name}.part-{os.getpid()}"), 0
    try:
        with aside.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                written += 1
        if not written:
            raise PreftuneError(
                f"{source}: found no row with two different scores, needed scores for chosen and rejected; see docs/data.md"
            )
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return written
