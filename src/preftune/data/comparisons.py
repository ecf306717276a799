"""Comparisons among a fixed set of items: a table of win probabilities or of win counts, or a list of pairs.

| what                | how it looks in a file                                                                                      |
|---------------------|-------------------------------------------------------------------------------------------------------------|
| `probabilities`     | square table, names in the first row and column (or the first row alone): P[row, column], P + P^T = 1       |
| `counts`            | the same with how often the row was preferred to the column; a tie is half a win for each                   |
| `pairs`             | a row per comparison: winner, loser; or two items and who won; or two items and the wins of each            |

Tables: .csv, .tsv, or .json as {"names": [...], "probabilities" | "counts": [[...]]}. Pair lists: these, .jsonl and .parquet.
"""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..exact.games import validate
from ..exact.voting import components, smoothed
from ..numerics import not_negative
from ..types import PreftuneError
from .files import LINE, check_encoding, open_table

SMOOTHING = 0.5  # added to both sides of every pair: Jeffreys' prior of a coin
SHOWN = 6  #      names in a message
MOST = 1e15  #    wins of one pair; whole numbers beyond 2^53 are no longer exact
FORMATS = ("probabilities", "counts", "pairs")
SIDES = (("winner", "loser"), ("a", "b"), ("left", "right"), ("item_a", "item_b"), ("model_a", "model_b"))
OUTCOMES = ("winner", "preferred")
WINS = ("wins_a", "wins_b", "ties")
TIES = ("tie", "draw", "tie (bothbad)")
LAYOUTS = (
    "winner and loser (and count), or two items and who won: a, b and winner (and count), or two items and their wins: item_a, item_b, "
    "wins_a and wins_b (and ties); the items' columns may also be left and right or model_a and model_b, the winner's preferred"
)


@dataclass(frozen=True)
class Comparisons:
    """Names and win probabilities of n items, with the counts where the data are counts."""

    names: tuple[str, ...]
    P: Tensor  #                       [n, n] float64, P[i, j] = P(i is preferred to j); from counts: smoothed
    wins: Tensor | None = None  #      [n, n] how often i was preferred to j, a tie as half a win for each
    smoothing: float = 0.0  #          what was added to both sides of every pair
    source: str = "the table"

    @property
    def never(self) -> list[tuple[str, str]]:
        """Pairs that were never compared; their probability is 1/2 by smoothing alone."""
        if self.wins is None:
            return []
        empty = torch.triu(self.wins + self.wins.mT == 0, 1).nonzero().tolist()
        return [(self.names[i], self.names[j]) for i, j in empty]


def load(path: str | Path, *, format: str | None = None, smoothing: float = SMOOTHING) -> Comparisons:
    """Read a file of comparisons. `format` says what it holds where that cannot be seen; `smoothing` only acts on counts."""
    if format not in (None, *FORMATS):
        raise PreftuneError(f"the format is {format!r}, needed one of {', '.join(FORMATS)}")
    name, suffix = str(path), Path(path).suffix.lower()
    if suffix not in READERS:
        raise PreftuneError(f"{name}: found the ending {suffix or 'none'!r}, needed {', '.join(READERS)}; rename or convert the file")
    open_table_errors(name)
    return READERS[suffix](name, format, smoothing)


def from_probabilities(P: Tensor | Sequence[Sequence[float]], names: Sequence[str] | None = None, source: str = "the table") -> Comparisons:
    """A game P [n, n] with P + P^T = 1."""
    P = torch.as_tensor(P, dtype=torch.float64)
    labels = _names(names, P, source)
    for i, j in (P.isnan() | (P < 0) | (P > 1)).nonzero()[:1].tolist():
        raise PreftuneError(
            f"{source}, row {labels[i]!r}, column {labels[j]!r}: found {P[i, j].item():g}, needed a probability in [0, 1]; "
            "give win rates, not scores or per cent, and 0.5 for a tie"
        )
    for i, j in ((P + P.mT - 1).abs() > 1e-6).nonzero()[:1].tolist():
        if i == j:
            raise PreftuneError(f"{source}, row {labels[i]!r}: found {P[i, i].item():g} on the diagonal, needed 0.5 or an empty cell")
        raise PreftuneError(
            f"{source}, rows {labels[i]!r} and {labels[j]!r}: found P = {P[i, j].item():g} one way and {P[j, i].item():g} the other, "
            "needed a sum of 1; average both orders, or say --format counts if these are counts"
        )
    return Comparisons(labels, validate(P), source=source)


def from_wins(
    wins: Tensor | Sequence[Sequence[float]], names: Sequence[str] | None = None, *, smoothing: float = SMOOTHING, source: str = "the table"
) -> Comparisons:
    """Counts wins [n, n]; refused where no chain of comparisons joins some items, since nothing then says how they stand."""
    not_negative("smoothing", smoothing, "it is the number of wins added to both sides of every pair")
    wins = torch.as_tensor(wins, dtype=torch.float64)
    labels = _names(names, wins, source)
    for i, j in (~wins.isfinite() | (wins < 0) | (wins > MOST)).nonzero()[:1].tolist():
        raise PreftuneError(
            f"{source}, row {labels[i]!r}, column {labels[j]!r}: found {wins[i, j].item():g}, needed a count from 0 to {MOST:g}; correct it"
        )
    for i in wins.diagonal().nonzero()[:1, 0].tolist():
        raise PreftuneError(
            f"{source}, row {labels[i]!r}: found {wins[i, i].item():g} wins of {labels[i]!r} against itself, needed 0; leave them out"
        )
    parts = components(wins)
    if len(parts) > 1:
        groups = " | ".join(some([labels[i] for i in part]) for part in parts[:4]) + " | .." * (len(parts) > 4)
        raise PreftuneError(
            f"{source}: found {len(parts)} groups of items with no comparison between them ({groups}), needed comparisons that join them, "
            "since nothing else says how they stand and Bradley-Terry has no finite fit; add some, or solve each group by itself "
            "(smoothing would only call all these pairs ties)"
        )
    found = Comparisons(labels, smoothed(wins, smoothing), wins, smoothing, source)
    if smoothing == 0 and found.never:
        pairs = some([f"{a} and {b}" for a, b in found.never])
        raise PreftuneError(
            f"{source}: found {len(found.never)} pairs that were never compared ({pairs}), needed at least one comparison of each "
            "without smoothing; a smoothing above 0 puts them at 1/2"
        )
    return replace(found, P=validate(found.P))


def some(names: Sequence[str]) -> str:
    """The first few names of a list."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _names(names: Sequence[str] | None, table: Tensor, source: str) -> tuple[str, ...]:
    """The names of a square table, checked against it."""
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise PreftuneError(
            f"{source}: found a table of shape {list(table.shape)}, needed a square one; give every item a row and a column"
        )
    labels = tuple(str(i) for i in range(len(table))) if names is None else tuple(str(name).strip() for name in names)
    double = next((name for i, name in enumerate(labels) if name in labels[:i]), None)
    if double is not None:
        raise PreftuneError(f"{source}: found the name {double!r} twice, needed different names; rename one")
    if "" in labels:
        raise PreftuneError(f"{source}: found no name for item {labels.index('') + 1}, needed a name for each; fill it in")
    if len(labels) != len(table):
        raise PreftuneError(f"{source}: found {len(labels)} names for {len(table)} rows, needed as many; correct the list")
    if len(labels) < 2:
        only = f" ({labels[0]})" if labels else ""
        raise PreftuneError(f"{source}: found {len(labels)} item{only}, needed at least two; one item wins by itself")
    return labels


# --- square tables ----------------------------------------------------------------------------------------------------


def table(cells: Sequence[Sequence[Any]], names: Sequence[str] | None, format: str | None, smoothing: float, source: str) -> Comparisons:
    """Rows of numbers or texts [n][n] as probabilities or counts; an empty diagonal is filled."""
    labels = _names(names, torch.empty(len(cells), len(cells)), source)
    for i, row in enumerate(cells):
        if len(row) != len(cells):
            raise PreftuneError(f"{source}, row {labels[i]!r}: found {len(row)} numbers, needed {len(cells)}, one for each item")
    at = lambda i, j: f"{source}, row {labels[i]!r}, column {labels[j]!r}"
    values = [[_number(cell, at(i, j), i == j) for j, cell in enumerate(row)] for i, row in enumerate(cells)]
    counts = torch.tensor([[0.0 if x is None else x for x in row] for row in values], dtype=torch.float64)
    empty = torch.tensor([[x is None for x in row] for row in values])
    if (format or _kind(counts, empty, source)) == "counts":
        return from_wins(counts, labels, smoothing=smoothing, source=source)
    return from_probabilities(torch.where(empty, 0.5, counts), labels, source)


def _kind(values: Tensor, empty: Tensor, source: str) -> str:
    """Probabilities or counts? 0.5 on the diagonal or values between the halves say probabilities, values above 1 say counts."""
    off = values[~torch.eye(len(values), dtype=torch.bool)]
    halves = bool((off == (2 * off).round() / 2).all())
    if not empty.any() and (values.diagonal() == 0.5).all():
        return "probabilities"
    if (off > 1).any() and not halves:
        raise PreftuneError(
            f"{source}: found values above 1 that are no whole or half counts, such as {off[off != off.round()][0].item():g}, needed "
            "probabilities up to 1, or counts; divide per cent by 100, or say --format counts"
        )
    if (off > 1).any() or (off < 0).any():
        return "counts"
    if halves and ((values + values.mT - 1)[~torch.eye(len(values), dtype=torch.bool)] == 0).all():
        raise PreftuneError(
            f"{source}: found only 0, 0.5 and 1 with a sum of 1 for every pair, needed to know whether these are certain wins or one "
            "comparison of each pair; say --format probabilities (or enter 0.5 on the diagonal), or --format counts"
        )
    return "counts" if halves else "probabilities"


def _number(cell: Any, where: str, diagonal: bool) -> float | None:
    """A cell as a number; None for an empty diagonal."""
    if cell is None or (isinstance(cell, str) and cell.strip() in ("", "-")):
        if diagonal:
            return None
        raise PreftuneError(f"{where}: found an empty cell, needed a number; enter 0 wins for a pair never compared, 0.5 for a tie")
    try:
        value = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        hint = "; write decimals with a point" if isinstance(cell, str) and "," in cell else "; correct the cell"
        raise PreftuneError(f"{where}: found {str(cell)[:40]!r}, needed a finite number{hint}")
    return value


# --- lists of pairs ---------------------------------------------------------------------------------------------------

Row = Mapping[str, Any]
Result = tuple[str, str, float, float]  # two items, the wins of each


def layout(columns: Sequence[str]) -> Callable[[Row, str], Result] | None:
    """How to read the rows of a pair list, by its columns; None if these are not the columns of one."""
    own = set(columns)
    for one, other in SIDES:
        outcome = next((name for name in OUTCOMES if name in own - {one, other}), None)
        if not {one, other} <= own:
            continue
        if one == "winner":
            return _winner if own <= {one, other, "count"} else None
        if {*WINS[:2]} <= own:
            return _wins(one, other) if own <= {one, other, *WINS} else None
        if outcome:
            return _outcome(one, other, outcome) if own <= {one, other, outcome, "count"} else None
    return None


def _winner(row: Row, where: str) -> Result:
    return _item(row, "winner", where), _item(row, "loser", where), _count(row, "count", where, 1.0), 0.0


def _wins(one: str, other: str) -> Callable[[Row, str], Result]:
    def read(row: Row, where: str) -> Result:
        ties = _count(row, "ties", where, 0.0) / 2
        won = (_count(row, "wins_a", where) + ties, _count(row, "wins_b", where) + ties)
        return _item(row, one, where), _item(row, other, where), *won

    return read


def _outcome(one: str, other: str, outcome: str) -> Callable[[Row, str], Result]:
    sides = [] if one == "a" else [(one, 1.0), (other, 0.0)]  # where the columns are a and b the winner stands by its name
    named = lambda *items: ", ".join(map(repr, (*items, *(word for word, _ in sides))))

    def read(row: Row, where: str) -> Result:
        a, b, won = _item(row, one, where), _item(row, other, where), _item(row, outcome, where)
        own = [(a, 1.0), (b, 0.0)]  # items have the case that they have
        words = [*sides, *((tie, 0.5) for tie in TIES)]
        shares = {share for word, share in own if word == won} | {share for word, share in words if word == won.lower()}
        if len(shares) != 1:
            found = "which could mean two results" if shares else "which is neither of the two"
            raise PreftuneError(f"{where}, column {outcome!r}: found {won!r}, {found}, needed {named(a, b)} or 'tie'; correct it")
        share, count = shares.pop(), _count(row, "count", where, 1.0)
        return a, b, share * count, (1 - share) * count

    return read


def _item(row: Row, column: str, where: str) -> str:
    text = "" if row.get(column) is None else str(row[column]).strip()
    if not text:
        raise PreftuneError(f"{where}, column {column!r}: found an empty cell, needed a name; fill it, or leave the row out")
    return text


def _count(row: Row, column: str, where: str, default: float | None = None) -> float:
    if column not in row and default is not None:
        return default
    value = _number(row.get(column), f"{where}, column {column!r}", True)
    if value is None or value < 0:
        raise PreftuneError(
            f"{where}, column {column!r}: found {row.get(column) or 'an empty cell'}, needed a number of at least 0; correct it"
        )
    return value


def pair_list(rows: Iterable[tuple[str, Row]], columns: Sequence[str], smoothing: float, source: str) -> Comparisons:
    """Rows of a pair list, each with its place in the file, added up; items stand in the order in which they first appear."""
    read = layout(columns)
    if read is None:
        raise PreftuneError(f"{source}: found the columns {some(list(columns))}, needed {LAYOUTS}; leave other columns out")
    place: dict[str, int] = {}
    total: defaultdict[tuple[int, int], float] = defaultdict(float)
    for where, row in rows:
        a, b, won, lost = read(row, where)
        if a == b:
            raise PreftuneError(f"{where}: found {a!r} compared with itself, needed two different items; leave the row out")
        i, j = place.setdefault(a, len(place)), place.setdefault(b, len(place))
        total[i, j] += won
        total[j, i] += lost
    if not place:
        raise PreftuneError(f"{source}: found no rows, needed at least one comparison; check what wrote it")
    wins = torch.zeros(len(place), len(place), dtype=torch.float64)
    if total:
        wins[tuple(torch.tensor(list(total)).T)] = torch.tensor(list(total.values()), dtype=torch.float64)
    return from_wins(wins, tuple(place), smoothing=smoothing, source=source)


# --- files ------------------------------------------------------------------------------------------------------------


def open_table_errors(name: str) -> None:
    """The refusals that all readers of data share: no such file, an empty one, bytes that are not text."""
    path = Path(name).expanduser()
    if path.is_dir():
        raise PreftuneError(f"{name}: found a folder, needed a file of comparisons; name the file")
    if not path.exists() or path.stat().st_size == 0:
        open_table(name, None, LINE, {})


def header(columns: Iterable[Any]) -> list[str]:
    """Column names as we compare them: "Item A " -> item_a."""
    return ["_".join(str(column).lower().split()) for column in columns]


def read_csv(name: str, format: str | None, smoothing: float, delimiters: str = ",;\t") -> Comparisons:
    """A table or a pair list, told apart by the header. The separator is the first of comma, semicolon, tab that splits the header."""
    path = Path(name).expanduser()
    check_encoding(path, name)
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        while first and not first.strip():
            first = file.readline()
        file.seek(0)
        delimiter = next((mark for mark in delimiters if len(next(csv.reader([first], delimiter=mark), [])) > 1), delimiters[0])
        lines = filled(csv.reader(file, delimiter=delimiter), name)
        at, top = next(lines, ("", []))
        if not top:
            raise PreftuneError(f"{name}: found only blank lines, needed comparisons; check what wrote it")
        columns = header(top)
        if format == "pairs" or (format is None and layout(columns)):
            return pair_list(as_rows(lines, columns), columns, smoothing, name)
        return square(at, top, list(lines), format, smoothing, name)


def filled(reader: Iterator[list[str]], name: str) -> Iterator[tuple[str, list[str]]]:
    """The lines that are not blank, each with its place."""
    number = 0
    try:
        for cells in reader:
            number = reader.line_num  # type: ignore[attr-defined]
            if any(cell.strip() for cell in cells):
                yield f"{name}, line {number}", cells
    except csv.Error as error:
        raise PreftuneError(f"{name}, line {number + 1}: found broken CSV ({error}), needed quoted cells; correct the line") from None


def as_rows(lines: Iterable[tuple[str, list[str]]], columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    for where, cells in lines:
        if len(cells) != len(columns):
            raise PreftuneError(
                f"{where}: found {len(cells)} cells, needed {len(columns)} ({', '.join(columns)}); quote cells with separators"
            )
        yield where, dict(zip(columns, cells, strict=True))


def square(at: str, top: list[str], lines: list[tuple[str, list[str]]], format: str | None, smoothing: float, name: str) -> Comparisons:
    """A table with names in the first row and column, in the first row alone, or without any."""
    if top[0].strip() and all(numeric(cell) for cell in top) and len(top) == len(lines) + 1:
        return table([top, *(cells for _, cells in lines)], None, format, smoothing, name)
    names = [cell.strip() for cell in top]
    named = any(cells[0].strip() in names[1:] for _, cells in lines)
    if named:
        names = names[1:]
        rows = {}
        for where, cells in lines:
            own = cells[0].strip()
            if own not in names or own in rows:
                found = "a second time" if own in rows else "which is no column"
                raise PreftuneError(
                    f"{where}: found a row named {own!r} {found}, needed one row for each of {some(names)}; correct its name"
                )
            if len(cells) != len(names) + 1:
                raise PreftuneError(f"{where}: found {len(cells) - 1} numbers, needed {len(names)}, one for each item; fill the row")
            rows[own] = cells[1:]
        _names(names, torch.empty(len(names), len(names)), name)
        missing = [item for item in names if item not in rows]
        if missing:
            raise PreftuneError(f"{name}: found no row for {some(missing)}, needed a square table; give every item a row and a column")
        return table([rows[item] for item in names], names, format, smoothing, name)
    if len(lines) == len(names) and all(len(cells) == len(names) for _, cells in lines):
        return table([cells for _, cells in lines], names, format, smoothing, name)
    raise PreftuneError(
        f"{at}: found the columns {some(names)} and {len(lines)} rows, needed a square table with names, or a pair list: "
        f"{LAYOUTS}; leave other columns out"
    )


def numeric(cell: str) -> bool:
    try:
        float(cell or "0")
    except ValueError:
        return False
    return True


def read_json(name: str, format: str | None, smoothing: float) -> Comparisons:
    """{"names": [...], "probabilities" | "counts": [[...]]}, a list of rows, or a list of objects, which is a pair list."""
    path = Path(name).expanduser()
    check_encoding(path, name)
    try:
        held = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise PreftuneError(
            f"{name}: found broken JSON ({error}), needed an object or a list; correct it, or call lines of JSON .jsonl"
        ) from None
    if isinstance(held, dict):
        known = {"probabilities": "probabilities", "counts": "counts", "P": "probabilities", "wins": "counts"}
        tables = [key for key in held if key in known]
        if len(tables) != 1 or not set(held) <= {"names", *tables}:
            raise PreftuneError(f"{name}: found the keys {some(list(held))}, needed names and one of {', '.join(known)}; rename them")
        said = known[tables[0]]
        if format not in (None, said):
            raise PreftuneError(
                f"{name}: found {tables[0]!r} with --format {format}, needed one word for what it holds; leave --format out"
            )
        cells, names, format = held[tables[0]], held.get("names"), said
        if names is not None and not isinstance(names, list):
            raise PreftuneError(f"{name}: found names that are {type(names).__name__}, needed a list of names")
    else:
        cells, names = held, None
    if not isinstance(cells, list) or not cells:
        raise PreftuneError(f"{name}: found {str(cells)[:40]}, needed a list of rows or of objects; check what wrote it")
    if all(isinstance(row, list) for row in cells):
        if format == "pairs":
            raise PreftuneError(
                f'{name}: found a table with --format pairs, needed a list of objects such as {{"winner": "a", "loser": "b"}}'
            )
        return table(cells, names, format, smoothing, name)
    return _objects(((f"{name}, row {i + 1}", row) for i, row in enumerate(cells)), format, smoothing, name)


def read_rows(name: str, format: str | None, smoothing: float) -> Comparisons:
    """A pair list in JSON lines or Parquet."""
    opened = open_table(str(Path(name).expanduser()), None, LINE, {})
    batches = (range(start, min(start + 1000, len(opened))) for start in range(0, len(opened), 1000))
    rows = ((f"{name}, row {i + 1}", row) for batch in batches for i, row in zip(batch, opened.rows(batch), strict=True) if row)
    return _objects(rows, format, smoothing, name)


def _objects(rows: Iterable[tuple[str, Any]], format: str | None, smoothing: float, name: str) -> Comparisons:
    """A pair list whose rows are objects with the same keys."""
    if format in ("probabilities", "counts"):
        raise PreftuneError(f"{name}: found a list of objects with --format {format}, needed a table; leave --format out")
    first = next(iter(rows := iter(rows)), None)
    if first is None:
        raise PreftuneError(f"{name}: found no rows, needed at least one comparison; check what wrote it")
    columns = header(_object(*first))

    def same() -> Iterator[tuple[str, Row]]:
        for where, row in chain([first], rows):
            own = dict(zip(header(_object(where, row)), row.values(), strict=True))
            if own.keys() != set(columns):
                raise PreftuneError(
                    f"{where}: found the columns {some(list(own))}, needed {some(columns)} as in the first row; fill the row"
                )
            yield where, own

    return pair_list(same(), columns, smoothing, name)


def _object(where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise PreftuneError(f'{where}: found {str(row)[:40]}, needed an object such as {{"winner": "a", "loser": "b"}}; correct it')
    return row


READERS: dict[str, Callable[[str, str | None, float], Comparisons]] = {
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiters="\t"),
    ".json": read_json,
    ".jsonl": read_rows,
    ".parquet": read_rows,
}


def weights(path: str | Path, names: Sequence[str]) -> Tensor:
    """A weight above 0 for every name [n], summing to 1, from a CSV file with the columns name and weight."""
    name = str(path)
    open_table_errors(name)
    check_encoding(Path(name).expanduser(), name)
    with Path(name).expanduser().open(encoding="utf-8-sig", newline="") as file:
        lines = filled(csv.reader(file), name)
        columns = header(next(lines, ("", []))[1])
        if sorted(columns) != ["name", "weight"]:
            raise PreftuneError(f"{name}: found the columns {some(columns)}, needed name and weight; rename them")
        found: dict[str, float] = {}
        for where, row in as_rows(lines, columns):
            item, weight = _item(row, "name", where), _count(row, "weight", where)
            if item not in names or item in found or weight == 0:
                wrong = "a weight of 0 for" if weight == 0 else "a second weight for" if item in found else "a weight for the unknown"
                raise PreftuneError(f"{where}: found {wrong} {item!r}, needed one above 0 for each of {some(names)}; correct the row")
            found[item] = weight
    missing = [item for item in names if item not in found]
    if missing:
        raise PreftuneError(f"{name}: found no weight for {some(missing)}, needed one for every item; add rows")
    given = torch.tensor([found[item] for item in names], dtype=torch.float64)
    return given / given.sum()
