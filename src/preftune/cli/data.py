"""preftune data: what is in a data set, before training on it; and data sets made of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..types import PreftuneError
from .options import Json, Read, Rename, pairs, reading
from .output import number, print_json, print_lines

if TYPE_CHECKING:
    from ..data import Record

Action = Literal["check", "goals", "show", "export"]
Form = Literal["preftune", "trl"]


def data(
    action: Annotated[
        Action,
        typer.Argument(
            help="check: count what matters before training. show: rows as they are read, or as a run collected them. "
            "export: the same as a data file. goals: scored pairs to pairs with a goal in their prompt."
        ),
    ],
    source: Annotated[
        str, typer.Argument(help="File, folder, hub id, or a mixture a.jsonl:0.7,b.jsonl:0.3; show, export: or a run's folder.")
    ],
    out: Annotated[Path | None, typer.Argument(help="goals, export: the JSONL file to write.")] = None,
    test: Annotated[str | None, typer.Option(help="Held-out data: how much of them is in the data as well.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model whose tokenizer counts the lengths in tokens. show, export: reads a run's rows back; "
            "export --format trl: chats where it has a chat template."
        ),
    ] = None,
    max_prompt: Annotated[int | None, typer.Option(help="With --model: count the prompts longer than this.")] = None,
    max_response: Annotated[int | None, typer.Option(help="With --model: count the responses longer than this.")] = None,
    goal: Annotated[float | None, typer.Option(help="goals: write the prompts alone, asked for this score; 10 is the top.")] = None,
    text: Annotated[str | None, typer.Option(help="goals: how a goal is said, with {goal} where the number goes.")] = None,
    place: Annotated[str, typer.Option(help="goals: system, or prompt for models without a system role.")] = "system",
    rejected: Annotated[str, typer.Option(help="goals: which response of a list the best is paired with, random or worst.")] = "random",
    seed: Annotated[int, typer.Option(help="goals: of that draw.")] = 0,
    rows: Annotated[int, typer.Option(help="show: how many.")] = 5,
    which: Annotated[
        int | None, typer.Option("--round", help="show, export: a run's round, or step with keep_rows. Shown is the last.")
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="export: rows that --data reads, or those of TRL's trainers.")] = "preftune",
    read: Read = None,
    rename: Rename = None,
    json: Json = False,
) -> None:
    """Look into a data set: formats, lengths, duplicates, ties, leakage, circles, and what to mend. Show rows, write them, set goals."""
    how = reading(pairs(read or [], "--read"), pairs(rename or [], "--rename"))
    if action == "goals":
        goals(source, out, goal, {} if text is None else {"text": text}, {"rejected": rejected, "seed": seed}, place, how, json)
        return
    if action == "export":
        export(source, out, form, which, model, how, json)
        return
    if out is not None and action == "show":
        raise PreftuneError(f"data show was given a second file, {out}, needed one file or run to show; `preftune data export` writes one")
    if action == "show":
        show(source, rows, which, model, how, json)
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


# --- rows ---------------------------------------------------------------------------------------------------------------


def shelf_of(source: str, which: int | None) -> Path | None:
    """Where a run's folder keeps rows; None where the source is no run's folder, of which no round can be asked."""
    folder = Path(source)
    if not folder.is_dir() or not (folder / "config.json").is_file():
        if which is not None:
            raise PreftuneError(f"--round was given for {source}, which is no run's folder, needed one; leave --round out for a data file")
        return None
    for name in ("rounds", "rows"):
        if any((folder / name).glob("*.pt")):
            return folder / name
    raise PreftuneError(
        f"{folder} keeps no rows, needed those of rounds, which are always kept, or of steps; train with --set keep_rows=true, or give a "
        "data file"
    )


def chosen(shelf: Path, which: int | None, last: bool) -> dict[int, list[Path]]:
    """The files of that round or step, otherwise of the last or of all."""
    from ..collect.store import files

    found = files(shelf)
    if which is None:
        return dict(list(found.items())[-1:]) if last else found
    if which not in found:
        raise PreftuneError(f"{shelf} has no rows of round {which}, needed one of {min(found)} to {max(found)}; see --round")
    return {which: found[which]}


def words(run: Path, model: str | None) -> Any:
    """The tokenizer that a run's rows are read back with: the one named, otherwise that of its model; None for a table's numbers."""
    from ..api import written
    from ..policies.text.model import find_source, has_tokenizer

    if model is not None:
        return tokenizer(find_source(model))
    if has_tokenizer(run / "model"):
        return tokenizer(str(run / "model"))
    name = (written(run) or {}).get("model")
    return tokenizer(find_source(name)) if isinstance(name, str) else None


def show(source: str, rows: int, which: int | None, model: str | None, how: dict[str, Any], json: bool) -> None:
    """Print the first rows of a file, or of a run's round."""
    from ..data.export import seen, seen_record

    if rows < 1:
        raise PreftuneError(f"--rows is {rows}, needed 1 or more: how many rows are shown")
    shelf = shelf_of(source, which)
    if shelf is None:
        if model is not None:
            raise PreftuneError(f"--model was given for {source}, whose texts need none, needed a run's folder; leave --model out")
        from ..data import load

        found = load(source, **how)
        shown, of = [seen_record(found[i]) for i in range(min(rows, len(found)))], len(found)
    else:
        from ..collect.store import read

        said, shown, of = words(Path(source), model), [], 0
        for at, files in chosen(shelf, which, last=True).items():
            for draw, file in enumerate(files):
                stored = read(file, said)
                few = stored.take(range(min(rows, len(stored))))
                shown += [{"round": at, **({"draw": draw} if shelf.name == "rows" else {}), **row} for row in seen(few)]
                of += len(stored)
    if json:
        print_json({"source": source, "of": of, "rows": shown})
        return
    print(f"{len(shown)} of {of} rows of {source}" + ("" if shelf is None else f", which keeps {kept_rows(shelf)}"))
    for row in shown:
        print_row(row)


def kept_rows(shelf: Path) -> str:
    """What is there to ask for."""
    from ..collect.store import files

    numbers, name = list(files(shelf)), "round" if shelf.name == "rounds" else "step"
    return f"{name} {numbers[0]}" if len(numbers) == 1 else f"{name}s {numbers[0]} to {numbers[-1]}"


def print_row(row: dict[str, Any]) -> None:
    """A row: what is known of all of it, the prompt, each response with what is known of it."""
    known = {name: value for name, value in row.items() if name not in ("id", "prompt", "responses", "beats")}
    lines = [("prompt", said(row["prompt"]))]
    for k, answer in enumerate(row["responses"]):
        facts = {name: value for name, value in answer.items() if name not in ("text", "column", "prompt")}
        if "beats" in row:
            facts["beats"] = " ".join(number(value) for value in row["beats"][answer["column"]])
        asked = [("asked", said(answer["prompt"]))] if "prompt" in answer else []
        lines += [*asked, (f"response {k + 1}", facts_of(facts)), ("", answer["text"])]
    print_lines(f"{row['id']}  {facts_of(known)}".rstrip(), lines)


def facts_of(facts: dict[str, Any]) -> str:
    """name value, name value"""
    return "  ".join(f"{name} {number(value)}" for name, value in facts.items())


def said(prompt: Any) -> str:
    """A prompt as one text: of a chat every message behind its role."""
    if isinstance(prompt, str | int):
        return str(prompt)
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


NOTES = {  # counts of an export -> what they say
    "empty response": "responses are left out: they are empty",
    "without an end": "responses were cut before their end: read again, they end there",
    "other tokens": "rows are other tokens when they are read again: cut prompts, or texts that tokenise differently",
    "tie": "rows are left out: ties",
    "no order": "rows are left out: nothing says which response is better",
}


def export(source: str, out: Path | None, form: Form, which: int | None, model: str | None, how: dict[str, Any], json: bool) -> None:
    """Write a run's rows, or a data file, as rows that --data reads or as TRL's."""
    from ..data import load
    from ..data.columns import to_row
    from ..data.export import spoken, trl

    counts: Counter[str] = Counter()
    shelf = shelf_of(source, which)
    if shelf is None:
        found = load(source, **how)
        out, voice = writable(out, "export", found.formats), tokenizer(model) if model else None
        some: Iterable[Record] = found
        chat = form == "trl" and any(map(spoken, found))  # a column of TRL's is of one type
    else:
        out, voice = writable(out, "export", ()), words(Path(source), model)
        some, chat = stored(shelf, which, voice, counts), False
    chat = chat or bool(getattr(voice, "chat_template", None))
    made = map(to_row, some) if form == "preftune" else trl(some, counts, chat=chat)
    written = write(made, out, f"{source}: found no row to write, needed rows with responses that are not all alike; see data show")
    told = {name: count for name, count in counts.items() if count}
    if json:
        print_json({"file": str(out), "rows": written, **told})
        return
    print(f"{written} rows in {out}")
    for name, count in told.items():
        print(f"{count} {NOTES.get(name) or 'rows are left out: ' + name.removeprefix('dropped: ')}")


def stored(shelf: Path, which: int | None, voice: Any, counts: Counter[str]) -> Iterator[Record]:
    """Records of the rows of that round or step, or of all."""
    from ..collect.store import read
    from ..data.export import records

    for at, files in chosen(shelf, which, last=False).items():
        for file in files:
            yield from records(read(file, voice), at, counts)


# --- goals --------------------------------------------------------------------------------------------------------------


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

    counts: Counter[str] = Counter()
    records = load(source, **how)
    out = writable(out, "goals", records.formats)
    where: Any = {**said, "place": place}
    made = rows_with_goals(records, counts, **where, **drawn) if goal is None else prompts_with_goal(records, goal, **where)
    nothing = f"{source}: found no row with two different scores, needed scores for chosen and rejected; see docs/data.md"
    facts = {"file": str(out), "rows": write(made, out, nothing)} | dict(counts)
    if json:
        print_json(facts)
        return
    print(f"{facts['rows']} rows in {out}")
    for reason in ("tie", "no scores"):
        if counts[reason]:
            print(f"{counts[reason]} of {counts['read']} rows are left out: {reason}")


def writable(out: Path | None, action: str, read: Iterable[str]) -> Path:
    """The file to write, which is none of those that are read."""
    if out is None:
        raise PreftuneError(
            f"data {action} was given no file to write, needed one; for instance preftune data {action} rows.jsonl {action}.jsonl"
        )
    if out.is_dir() or out.resolve() in {Path(name).resolve() for name in read}:
        found = "a folder" if out.is_dir() else "a file that is read"
        raise PreftuneError(
            f"data {action} was asked to write {out}, {found}, needed the name of another file; for instance {action}.jsonl"
        )
    return out


def write(rows: Iterable[dict[str, Any]], out: Path, nothing: str) -> int:
    """JSONL, whole or not at all; the number of rows. `nothing`: what to say where there is none."""
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
            raise PreftuneError(nothing)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return written
