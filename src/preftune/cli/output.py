"""What the verbs print: errors in three parts, tables, a plot made of characters."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..types import PreftuneError


def parts(message: str) -> dict[str, str]:
    """An error's three parts: what was found, what was needed, what to do. A part that the message lacks is left out."""
    found, *rest = re.split(r"; |, (?=needed )", message)
    needed = [clause.removeprefix("needed ") for clause in rest if clause.startswith("needed ")]
    todo = [clause for clause in rest if not clause.startswith("needed ")]
    return {name: "; ".join(text) for name, text in (("found", [found]), ("needed", needed), ("do", todo)) if text}


def write(file: Path, text: str) -> None:
    """A file, and its folder where there is none yet."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PreftuneError(
            f"{file} cannot be written ({error.strerror}), needed a file in a folder that you may write to; choose another"
        ) from None


def complain(message: str) -> None:
    """Print an error on stderr, one part a line."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, text in parts(message).items():
        table.add_row(f"[bold red]{name}[/]" if name == "found" else f"[bold]{name}[/]", _plain(text))
    Console(stderr=True, highlight=False).print(table)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def print_json(value: Any) -> None:
    """One JSON object on stdout; numbers that JSON has no word for become null."""
    print(json.dumps(_finite(value), ensure_ascii=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: Any) -> str:
    """Four digits, whatever the size."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None, header: bool = True) -> None:
    """A table on stdout; numbers stand to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold", show_header=header)
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], int | float) for row in rows if row[i] is not None)
        table.add_column(column, justify="right" if rows and numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else _plain(number(cell)) for cell in row))
    Console(highlight=False).print(table)


def print_lines(title: str, lines: Sequence[tuple[str, str]]) -> None:
    """Texts on stdout beside their names, wrapped to the width of the terminal, under a title."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, text in lines:
        table.add_row(f"[bold]{_plain(name)}[/]", _plain(text))
    console = Console(highlight=False)
    console.print(f"\n[bold]{_plain(title)}[/]")
    console.print(table)


def print_list(kind: str, sentences: Sequence[str]) -> None:
    """Sentences on stdout, each behind the same word, wrapped to the width of the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for sentence in sentences:
        table.add_row(f"[bold]{kind}[/]", _plain(sentence))
    if sentences:
        Console(highlight=False).print(table)


MARKS = "*o+x#@%&"  # of one curve after the other


def curves(lines: Mapping[str, Sequence[float]], *, width: int = 72, height: int = 12) -> str:
    """Curves of positive values on a logarithmic axis, drawn with characters; a column spans the lowest and highest of its values."""
    floor = min((v for values in lines.values() for v in values if v > 0), default=1e-16)
    logs = [[math.log10(max(v, floor)) for v in values] for values in lines.values()]
    steps = max(map(len, logs))
    width = min(width, steps)
    low = math.floor(min(map(min, logs)))
    high = max(math.ceil(max(map(max, logs))), low + 1)
    cells = [[" "] * width for _ in range(height)]
    for mark, values in reversed(list(zip(itertools.cycle(MARKS), logs, strict=False))):  # the first lies on top
        level = [round((x - low) / (high - low) * (height - 1)) for x in values]
        for i in range(width):
            column = level[i * steps // width : (i + 1) * steps // width]
            for row in range(min(column), max(column) + 1) if column else ():
                cells[row][i] = mark
    drawn = []
    for row in reversed(range(height)):
        label = {0: f"1e{low}", height - 1: f"1e{high}"}.get(row, "")
        drawn.append(f"{label:>7} |" + "".join(cells[row]).rstrip())
    legend = [f"{'':9}" + "   ".join(f"{mark} {name}" for mark, name in zip(itertools.cycle(MARKS), lines, strict=False))] * (
        len(lines) > 1
    )
    return "\n".join([*drawn, " " * 8 + "+" + "-" * width, f"{'':9}0{steps - 1:>{max(width - 1, 1)}}", *legend])


def say_interrupted(run: Any) -> None:
    """How to go on with a run that Ctrl-C or SIGTERM ended."""
    print(f"interrupted after step {run.steps}, everything is saved; go on with\n\n    preftune train --resume {run.folder}")


def print_measures(evaluation: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> None:
    """Columns such as before and after, a row per measure: the value and its 95 % interval."""
    columns = list(evaluation)
    names = list(dict.fromkeys(name for column in columns for name in evaluation[column]))
    print_table(
        ["", *columns], [[name.replace("_", " "), *(interval(evaluation[column].get(name)) for column in columns)] for name in names]
    )


def interval(measure: Mapping[str, float | None] | None) -> str:
    """A number with its 95 % interval; nothing where it was not measured."""
    if measure is None or measure["value"] is None:
        return ""
    low, high = measure.get("low"), measure.get("high")
    return number(measure["value"]) + ("" if low is None or high is None else f"  [{low:.3g}, {high:.3g}]")
