"""Files to data sets: index, scan once, convert again on each access. Nothing but a few numbers per row stays in memory.

Text files (JSONL, JSON, CSV) are read in place through an index of byte positions, so that no type is guessed: "NA" and
"2024-05-01" stay what they were. Parquet, Arrow folders and hub ids are memory-mapped through `datasets`.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import difflib
import hashlib
import io
import json
import os
import pickle
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..types import Key, PreftuneError
from .columns import FORMATS, HOLDS, Dropped, Record, Row, bits, convert, identify, prompt_digest, recognise, to_row

Spec = str | os.PathLike[str] | Sequence[str | os.PathLike[str] | tuple[str | os.PathLike[str], float]]

LINE = 50_000_000  # bytes in a row of a text file, unless max_line_bytes says otherwise
ARRAY = 1_000_000_000  # bytes in a .json file that is one array
BATCH = 1000  #      rows read at once while scanning
STRETCH = 50 * BATCH  # rows after which a scan lets the memory-mapped pages go


class Table(Protocol):
    """Rows of one file in their order. A row is None where the file has a blank line."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def rows(self, indices: Sequence[int]) -> list[Row | None]:
        """The rows at these positions, as dicts of columns."""

    def stretch(self) -> Table:
        """The same rows to read one stretch of: memory it takes on the way is free when it is let go."""


# --- text files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextTable:
    """Rows that lie at known byte positions of a UTF-8 file."""

    name: str
    path: Path
    starts: np.ndarray  # [rows] int64
    ends: np.ndarray  #   [rows] int64
    parse: Callable[[str, str], Row | None]
    stamp: tuple[int, int]  # size and time of the file that was indexed

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, indices: Sequence[int]) -> list[Row | None]:
        out = []
        with self.path.open("rb") as file:
            if stamp_of(file.fileno()) != self.stamp:
                raise PreftuneError(f"{self.name}: found a file changed since it was loaded, needed the same bytes; load it again")
            for i in indices:
                file.seek(self.starts[i])
                out.append(self.parse(file.read(int(self.ends[i] - self.starts[i])).decode(), f"{self.name}, row {i + 1}"))
        return out

    def stretch(self) -> Table:
        return self


def stamp_of(file: int | Path) -> tuple[int, int]:
    """Size and time of last change."""
    about = os.stat(file)
    return about.st_size, about.st_mtime_ns


def check_encoding(path: Path, name: str) -> int:
    """Raise unless the file is UTF-8; the length of its byte order mark."""
    decoder, read, lines, mark = codecs.getincrementaldecoder("utf-8")(), 0, 1, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            if read == 0:
                mark = 3 * block.startswith(codecs.BOM_UTF8)
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                at = read + len(block) - len(error.object) + error.start
                line = lines + error.object[: error.start].count(b"\n")
                raise PreftuneError(
                    f"{name}, line {line}: found a byte that is not UTF-8 at offset {at} (0x{error.object[error.start]:02x}), "
                    "needed UTF-8; convert the file, for example with iconv -f latin1 -t utf-8"
                ) from None
            read, lines = read + len(block), lines + block.count(b"\n")
        if decoder.getstate()[0]:
            raise PreftuneError(f"{name}, line {lines}: found a character cut off at offset {read}, needed UTF-8; is the file complete?")
    return mark


def too_long(name: str, place: str, limit: int) -> PreftuneError:
    """The refusal of a row that is probably no row."""
    return PreftuneError(
        f"{name}, {place}: found more than {limit:,} bytes, needed at most max_line_bytes = {limit:,}; "
        f"is this one row? If it is, raise the limit (--read max_line_bytes={4 * limit})"
    )


def parse_object(cell: str, where: str) -> Row | None:
    """A JSON object; None for white space."""
    if not cell.strip():
        return None
    try:
        row = json.loads(cell)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PreftuneError(f"{where}: found broken JSON ({error}), needed one JSON object a line; correct or remove the line") from None
    if not isinstance(row, dict):
        raise PreftuneError(
            f"{where}: found {type(row).__name__} {cell.strip()[:60]}, needed a JSON object such as "
            '{"prompt": "...", "chosen": "...", "rejected": "..."}; if the file is one array, call it .json'
        )
    return row


def jsonl(path: Path, name: str, limit: int) -> TextTable:
    """One JSON object a line; row and line numbers agree."""
    stamp, at = stamp_of(path), check_encoding(path, name)
    starts, ends = array("q"), array("q")
    with path.open("rb") as file:
        file.seek(at)
        while line := file.readline(limit + 1):
            if len(line) > limit:
                raise too_long(name, f"line {len(starts) + 1}", limit)
            starts.append(at)
            at += len(line)
            ends.append(at)
    return TextTable(name, path, np.asarray(starts, "i8"), np.asarray(ends, "i8"), parse_object, stamp)


BLANK = re.compile(r"[ \t\r\n]*")


def json_array(path: Path, name: str, limit: int) -> TextTable:
    """One array of objects, indexed with the whole text in memory; or one object a line under this ending."""
    stamp, at = stamp_of(path), check_encoding(path, name)
    with path.open("rb") as file:
        file.seek(at)
        while (block := file.read(4096)) and not block.strip():
            pass
    if not block.lstrip().startswith(b"["):
        return jsonl(path, name, limit)
    if stamp[0] > ARRAY:
        raise PreftuneError(f"{name}: found an array of {stamp[0]:,} bytes, needed at most {ARRAY:,}; write one object a line (.jsonl)")
    text = path.read_bytes()[at:].decode()
    skip = BLANK.match
    starts, ends, done = array("q"), array("q"), 0  # `at` bytes are `done` characters

    def blank(position: int) -> int:
        return skip(text, position).end()  # type: ignore[union-attr]

    def broken(found: str, position: int) -> PreftuneError:
        line = text.count("\n", 0, position) + 1
        return PreftuneError(f"{name}, line {line}: found {found} in row {len(starts) + 1}, needed an array of JSON objects; correct it")

    position = blank(text.index("[") + 1)
    while text[position : position + 1] != "]":
        if starts:
            if text[position : position + 1] != ",":
                raise broken(f"{text[position : position + 20]!r}" if position < len(text) else "the end of the file", position)
            position = blank(position + 1)
        try:
            _, end = json.JSONDecoder().raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise broken(f"broken JSON ({error.msg})", error.pos) from None
        at += len(text[done:position].encode())
        starts.append(at)
        at += len(text[position:end].encode())
        ends.append(at)
        if ends[-1] - starts[-1] > limit:
            raise too_long(name, f"row {len(starts)}", limit)
        done, position = end, blank(end)
    if blank(position + 1) < len(text):
        raise broken(f"{text[blank(position + 1) :][:20]!r} after the array", position)
    return TextTable(name, path, np.asarray(starts, "i8"), np.asarray(ends, "i8"), parse_object, stamp)


LISTS = ("responses", "scores", "ranks", "winrate", "desirable", "messages", "completions", "labels")  # JSON inside CSV cells


def parse_csv(cell: str, where: str, header: tuple[str, ...], delimiter: str, lists: frozenset[str]) -> Row | None:
    """The columns of one CSV row as text; empty cells are missing; lists stand as JSON."""
    cells = next(csv.reader(io.StringIO(cell, newline=""), delimiter=delimiter), [])
    if not cells:
        return None
    if len(cells) != len(header):
        raise PreftuneError(
            f"{where}: found {len(cells)} cells, needed {len(header)} ({', '.join(header)}); put cells that hold a {delimiter!r} in quotes"
        )
    row: dict[str, Any] = {}
    for name, value in zip(header, cells, strict=True):
        row[name] = value or None
        if name in lists and value.lstrip().startswith("["):
            try:
                row[name] = json.loads(value)
            except json.JSONDecodeError as error:
                at = f"{where}, column {name!r}"
                raise PreftuneError(f"{at}: found broken JSON ({error}), needed a JSON list; correct the cell") from None
    return row


def csv_rows(path: Path, name: str, limit: int, delimiter: str = ",", rename: Mapping[str, str] | None = None) -> TextTable:
    """A header line, then rows whose quoted cells may hold line ends. Rows are counted from 1 after the header."""
    stamp, begun = stamp_of(path), check_encoding(path, name)
    position, starts, ends = begun, array("q"), array("q")
    csv.field_size_limit(max(limit, csv.field_size_limit()))  # the limit on a row is ours

    def lines(file: io.BufferedReader) -> Iterator[str]:
        nonlocal position
        file.seek(position)
        while line := file.readline(limit + 1):
            position += len(line)
            if position - begun > limit:
                raise too_long(name, f"row {len(starts) + 1}", limit)
            yield line.decode()

    with path.open("rb") as file:
        reader = csv.reader(lines(file), delimiter=delimiter)
        header = next(reader, [])
        begun = position
        if len(set(header)) < len(header):
            raise PreftuneError(f"{name}, line 1: found the columns {', '.join(header)}, needed different names; rename one")
        try:
            for _ in reader:
                starts.append(begun)
                ends.append(position)
                begun = position
        except csv.Error as error:
            at = f"{name}, row {len(starts) + 1}"
            raise PreftuneError(f"{at}: found broken CSV ({error}), needed quoted cells; correct the row") from None
    lists = frozenset(LISTS) | {theirs for theirs, ours in (rename or {}).items() if ours in LISTS}
    parse = partial(parse_csv, header=tuple(header), delimiter=delimiter, lists=lists)
    return TextTable(name, path, np.asarray(starts, "i8"), np.asarray(ends, "i8"), parse, stamp)


# --- columnar files and rows in memory --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArrowTable:
    """A memory-mapped `datasets.Dataset`."""

    name: str
    table: Any

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, indices: Sequence[int]) -> list[Row | None]:
        if isinstance(indices, range) and indices.step == 1:
            return list(self.table[indices.start : indices.stop].to_pylist())
        return list(self.table[list(indices)].to_pylist())

    def stretch(self) -> Table:
        return ArrowTable(self.name, pickle.loads(pickle.dumps(self.table)))  # pickled as the file's path, so this maps it anew


@dataclass(frozen=True)
class MemoryTable:
    """Rows that a program made."""

    name: str
    held: Sequence[Row]

    def __len__(self) -> int:
        return len(self.held)

    def rows(self, indices: Sequence[int]) -> list[Row | None]:
        return [self.held[i] for i in indices]

    def stretch(self) -> Table:
        return self


def cache_folder() -> str | None:
    """Where Arrow copies lie: under PREFTUNE_CACHE, else where HF_DATASETS_CACHE says (None), else ~/.cache/preftune."""
    if "PREFTUNE_CACHE" not in os.environ and "HF_DATASETS_CACHE" in os.environ:
        return None
    return str(Path(os.environ.get("PREFTUNE_CACHE", "~/.cache/preftune")).expanduser() / "datasets")


def parquet(path: Path, name: str) -> ArrowTable:
    """A Parquet file, copied once to Arrow in the cache."""
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(-min(4, path.stat().st_size), os.SEEK_END)
        tail = file.read(4)
    if head != b"PAR1" or tail != b"PAR1":
        raise PreftuneError(f"{name}: found a file that does not begin and end with PAR1, needed Parquet; is the file complete?")
    import datasets

    table = datasets.Dataset.from_parquet(str(path), cache_dir=cache_folder(), batch_size=10 * BATCH)
    return ArrowTable(name, table.with_format("arrow"))


def arrow_folder(path: Path, name: str, split: str | None) -> ArrowTable:
    """What `datasets.save_to_disk` wrote."""
    parts = sorted(item.name for item in path.iterdir())
    if not {"dataset_dict.json", "state.json"} & set(parts):
        raise PreftuneError(
            f"{name}: found a folder with {', '.join(parts[:8]) or 'nothing in it'}, needed an Arrow folder written by save_to_disk; "
            "name the files themselves, with commas between them"
        )
    import datasets

    found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        wanted = split or "train"
        if wanted not in found:
            raise PreftuneError(f"{name}: found the splits {', '.join(found)}, needed {wanted!r}; choose one with split=")
        found = found[wanted]
    elif split is not None:
        raise PreftuneError(f"{name}: found a folder without splits, needed splits for split={split!r}; leave split out")
    return ArrowTable(name, found.with_format("arrow"))


def hub(name: str, split: str | None) -> ArrowTable:
    """A data set of the Hugging Face hub. No code of the data set is run."""
    import datasets

    try:
        found = datasets.load_dataset(name, split=split or "train", cache_dir=cache_folder())
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise PreftuneError(
            f"{name}: found neither a file or folder of this name nor a reachable hub data set ({error}), needed one of them; "
            "check the spelling and the connection (HF_HUB_OFFLINE forbids downloads), or give a local path"
        ) from error
    return ArrowTable(name, found.with_format("arrow"))


TEXT_READERS: dict[str, Callable[..., TextTable]] = {
    ".jsonl": jsonl, ".ndjson": jsonl, ".json": json_array, ".csv": csv_rows, ".tsv": partial(csv_rows, delimiter="\t"),
}  # fmt: skip
UNSAFE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib", ".ckpt")
PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def open_table(spec: str, split: str | None, limit: int, rename: Mapping[str, str]) -> Table:
    """The reader that fits a path or hub id."""
    path = Path(spec).expanduser()
    suffix = path.suffix.lower()
    if suffix in UNSAFE:
        raise PreftuneError(f"{spec}: found {suffix}, which may run code when it is read, needed JSONL, JSON, CSV or Parquet; export it")
    if path.is_dir():
        return arrow_folder(path, spec, split)
    if not path.exists():
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", spec) and suffix not in (*TEXT_READERS, ".parquet", *PACKED) and not path.parent.exists():
            return hub(spec, split)
        folder = path.parent if path.parent.is_dir() else Path()
        near = difflib.get_close_matches(path.name, [item.name for item in folder.iterdir()], 1, 0.6)
        advice = f"did you mean {folder / near[0]}?" if near else f"looked in {path.parent.resolve()}; check the path"
        raise PreftuneError(f"{spec}: found no such file, needed a file, an Arrow folder or a hub id; {advice}")
    if suffix in PACKED:
        raise PreftuneError(f"{spec}: found an archive, needed JSONL, JSON, CSV or Parquet; unpack it first")
    if split is not None:
        raise PreftuneError(f"{spec}: found a single file, needed an Arrow folder or hub id for split={split!r}; leave split out")
    if path.stat().st_size == 0:
        raise PreftuneError(f"{spec}: found an empty file, needed at least one row; check what wrote it")
    if suffix == ".parquet":
        return parquet(path, spec)
    if suffix not in TEXT_READERS:
        known = ", ".join((*TEXT_READERS, ".parquet"))
        raise PreftuneError(f"{spec}: found the ending {suffix or 'none'!r}, needed {known}; rename or convert the file")
    more = {"rename": rename} if suffix in (".csv", ".tsv") else {}
    return TEXT_READERS[suffix](path, spec, limit, **more)


# --- scanning ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One table with the format and the column names that its rows are read by."""

    table: Table
    format: str
    rename: Mapping[str, str]  # theirs -> ours
    columns: Mapping[str, str]  # each column of the first row -> what it is read as, or "meta"

    def records(self, indices: Sequence[int]) -> list[Record | Dropped]:
        """Converted rows, without the suffix of repeated ids and with weights as the file has them."""
        out: list[Record | Dropped] = []
        for i, row in zip(indices, self.table.rows(indices), strict=True):
            if row is None:
                out.append(Dropped("blank line"))
                continue
            where = f"{self.table.name}, row {i + 1}"
            out.append(convert(renamed(row, self.rename, where), where, self.format))
        return out


def renamed(row: Row, rename: Mapping[str, str], where: str) -> Row:
    """The row under our column names."""
    if not rename:
        return row
    out = {rename.get(name, name): value for name, value in row.items()}
    if len(out) < len(row):
        double = next(ours for theirs, ours in rename.items() if theirs in row and ours in row)
        raise PreftuneError(f"{where}, column {double!r}: found it in the file already, needed a free name; rename that column as well")
    return out


def source_of(table: Table, form: str | None, rename: Mapping[str, str]) -> Source:
    """Recognise a table by its first row that is not blank."""
    first = next(((i, row) for i in range(len(table)) for row in table.rows([i]) if row is not None), None)
    if first is None:
        raise PreftuneError(f"{table.name}: found an empty file or a header alone, needed at least one row; check what wrote it")
    row, where = renamed(first[1], rename, f"{table.name}, row {first[0] + 1}"), f"{table.name}, row {first[0] + 1}"
    if form is not None and form not in FORMATS:
        near = difflib.get_close_matches(form, FORMATS, 1)
        advice = f"did you mean {near[0]!r}?" if near else "leave format out to have it recognised"
        raise PreftuneError(f"format is {form!r}, needed one of {', '.join(FORMATS)}; {advice}")
    name = form or recognise(row, where)
    read = {*FORMATS[name].needs, *FORMATS[name].reads, "id", "prompt", "system", "weight"}
    back = {ours: theirs for theirs, ours in rename.items()}
    return Source(table, name, rename, {back.get(column, column): column if column in read else "meta" for column in row})


@dataclass(frozen=True)
class Scan:
    """What one pass over a source found; all arrays [kept]."""

    row: np.ndarray  #      int64, position in the table
    identity: np.ndarray  # uint64, hash of the id
    prompt: np.ndarray  #   uint64, hash of the prompt
    content: np.ndarray  #  uint64, hash of id, prompt, responses and labels
    weight: np.ndarray  #   float64
    columns: np.ndarray  #  uint16, number of responses
    imitable: np.ndarray  # bool, the first response is not labelled undesirable
    labels: np.ndarray  #   uint8, columns.bits
    counts: Counter[str]
    dropped: Counter[str]


def hash8(value: str) -> bytes:
    """8 bytes of a string."""
    return hashlib.blake2b(value.encode(errors="replace"), digest_size=8).digest()


def scan(source: Source, strict: bool) -> Scan:
    """Convert every row once, so that the last row's mistake is found before training begins."""
    kept, weight, identity, prompt, content = array("q"), array("d"), bytearray(), bytearray(), bytearray()
    columns, imitable, labels = array("H"), bytearray(), bytearray()
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    part = source
    for start in range(0, len(source.table), BATCH):
        if start % STRETCH == 0:
            part = dataclasses.replace(source, table=source.table.stretch())
        indices = range(start, min(start + BATCH, len(source.table)))
        for i, record in zip(indices, part.records(indices), strict=True):
            if isinstance(record, Record) and record.tied and strict:
                record = Dropped("tie")
            if isinstance(record, Dropped):
                dropped[record.reason] += 1
                continue
            name, digest = identify(record)
            kept.append(i)
            weight.append(record.weight)
            columns.append(min(len(record.responses), 65535))
            imitable.append((record.desirable or [True])[0])
            labels.append(bits(record))
            identity += hash8(name)
            content += digest
            prompt += prompt_digest(record)
            counts["ties"] += record.tied
            counts["swapped"] += record.swapped
            counts["with_choice"] += len(record.responses) > 1
    names, prompts, contents = (np.frombuffer(bytes(part), "<u8") for part in (identity, prompt, content))
    reads = np.asarray(columns, "u2"), np.frombuffer(bytes(imitable), bool), np.frombuffer(bytes(labels), np.uint8)
    return Scan(np.asarray(kept, "i8"), names, prompts, contents, np.asarray(weight), *reads, counts, dropped)


def repeated(identity: np.ndarray) -> dict[int, int]:
    """Positions whose id came before, with how often it did (1, 2, ...)."""
    order = np.argsort(identity, kind="stable")
    again = np.flatnonzero(identity[order][1:] == identity[order][:-1]) + 1
    out: dict[int, int] = {}
    for at in again.tolist():
        out[int(order[at])] = out.get(int(order[at - 1]), 0) + 1
    return out


# --- the data set -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """Records that are converted when they are asked for. `counts` speaks of loading and stays as it is in selections."""

    sources: tuple[Source, ...]
    source: np.ndarray  #  [N] uint16, number of the source
    row: np.ndarray  #     [N] int64, row of that source's table
    prompt: np.ndarray  #  [N] uint64, equal where prompts are equal
    content: np.ndarray  # [N] uint64, equal where id, prompt, responses and labels are equal
    weight: np.ndarray  #  [N] float64, as in the files
    columns: np.ndarray  # [N] uint16, number of responses
    imitable: np.ndarray  # [N] bool, the first response is not labelled undesirable
    labels: np.ndarray  #  [N] uint8, what else a row holds: columns.bits
    suffix: Mapping[tuple[int, int], str]  # (source, row) -> what makes a repeated id unique
    counts: Mapping[str, Any]  # read, kept, dropped {reason: rows}, ties, swapped, repeated_ids, left_out

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.records([index % len(self)])[0]

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), BATCH):
            yield from self.records(range(start, min(start + BATCH, len(self))))

    def records(self, indices: Sequence[int]) -> list[Record]:
        """Some records in the order asked for; weights with mean one over this data set."""
        where = np.asarray(indices, dtype=np.int64)
        out: list[Record] = [None] * len(where)  # type: ignore[list-item]
        for number in np.unique(self.source[where]).tolist():
            places = np.flatnonzero(self.source[where] == number)
            rows = self.row[where[places]]
            consecutive = len(rows) > 1 and bool((np.diff(rows) == 1).all())
            wanted = range(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows.tolist()
            for place, i, record in zip(places.tolist(), wanted, self.sources[number].records(wanted), strict=True):
                assert isinstance(record, Record)  # dropped rows are not among ours
                name = identify(record)[0] + self.suffix.get((number, i), "")
                weight = record.weight / self.mean_weight
                out[place] = record if (name, weight) == (record.id, record.weight) else dataclasses.replace(record, id=name, weight=weight)
        return out

    @cached_property
    def mean_weight(self) -> float:
        """Mean of the weights in the files."""
        return float(self.weight.mean()) if len(self) else 1.0

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what is trained on, in its order: the same for the same records under any path or file format."""
        return hashlib.blake2b(self.content.astype("<u8").tobytes(), digest_size=16).hexdigest()

    @property
    def formats(self) -> dict[str, str]:
        """File -> name of the format its rows were read by."""
        return {source.table.name: source.format for source in self.sources}

    def select(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """Some records as a data set of their own, in the order asked for."""
        where = np.asarray(indices, dtype=np.int64)
        names = ("source", "row", "prompt", "content", "weight", "columns", "imitable", "labels")
        return dataclasses.replace(self, **{name: getattr(self, name)[where] for name in names})

    def holding(self, label: str) -> np.ndarray:
        """[N] bool: the rows that have the label, a name in columns.HOLDS."""
        return (self.labels >> list(HOLDS).index(label)) & 1 == 1

    def split(self, test_fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """(train, test) without a common prompt; near `test_fraction` of the records are in test, at least one in each.

        Prompts are taken in an order that depends on seed and prompt alone, those that would overfill test are passed over.
        """
        if not 0 < test_fraction < 1:
            raise PreftuneError(f"test_fraction is {test_fraction}, needed a number between 0 and 1; 0.1 is usual")
        prompts, group, sizes = np.unique(self.prompt, return_inverse=True, return_counts=True)
        if len(prompts) < 2:
            raise PreftuneError(
                f"found {len(prompts)} different prompt in {len(self)} records, needed 2 or more to split by prompt; "
                "give the test data as a file of their own"
            )
        order = np.argsort(mix(prompts ^ np.uint64(Key.of(seed).fold("split").seed)), kind="stable")
        room, test = max(1, round(test_fraction * len(self))), np.zeros(len(prompts), bool)
        for g in order.tolist():
            if sizes[g] <= room:
                test[g], room = True, room - int(sizes[g])
            if room == 0:
                break
        if not test.any():
            test[order[np.argmin(sizes[order])]] = True
        if test.all():
            test[order[-1]] = False
        return self.select(np.flatnonzero(~test[group])), self.select(np.flatnonzero(test[group]))


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64: uint64 to well-spread uint64, one to one."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def interleave(lengths: Sequence[int], shares: Sequence[float], seed: int) -> np.ndarray:
    """Number of the source at each position, [N], up to the place where one source runs out.

    A pure function of seed and position: the golden-ratio sequence, shifted by the seed, thrown on the shares laid end to end,
    so that every stretch holds the shares as closely as it can.
    """
    weights = np.asarray(shares, float) / sum(shares)
    n = int(min((length + 64) / weight for length, weight in zip(lengths, weights, strict=True)))
    shift = Key.of(seed).fold("mixture").seed / 2**63
    point = np.mod(np.arange(n) * 0.6180339887498949 + shift, 1.0)
    chosen = np.minimum(np.searchsorted(np.cumsum(weights), point, side="right"), len(lengths) - 1)
    ends = [np.flatnonzero(np.cumsum(chosen == s) > length) for s, length in enumerate(lengths)]
    return chosen[: min([n, *(int(end[0]) for end in ends if len(end))])]


def build(sources: Sequence[Source], shares: Sequence[float] | None, *, strict: bool, seed: int) -> Dataset:
    """Scan the sources and lay them end to end, or interleave them by their shares."""
    scans = [scan(source, strict) for source in sources]
    dropped: Counter[str] = sum((found.dropped for found in scans), Counter())
    counts: Counter[str] = sum((found.counts for found in scans), Counter())
    names = ", ".join(source.table.name for source in sources)
    read, kept = sum(len(source.table) for source in sources), sum(len(found.row) for found in scans)
    for source, found in zip(sources, scans, strict=True):
        if not len(found.row):
            reasons = ", ".join(f"{reason} {rows}" for reason, rows in found.dropped.most_common())
            raise PreftuneError(
                f"{source.table.name}: found {len(source.table)} rows and had to drop them all ({reasons}), needed at least one with "
                "a prompt and different, filled responses; correct the file"
            )
    if counts["ties"] and counts["ties"] == counts["with_choice"] == kept:
        raise PreftuneError(f"{names}: found nothing but ties in {kept} rows, needed a row that prefers a response; check the labels")
    lengths = [len(found.row) for found in scans]
    number = np.repeat(np.arange(len(scans)), lengths) if shares is None else interleave(lengths, shares, seed)
    taken = [np.cumsum(number == s)[number == s] - 1 for s in range(len(scans))]

    def gather(name: str) -> np.ndarray:
        out = np.empty(len(number), getattr(scans[0], name).dtype)
        for s, found in enumerate(scans):
            out[number == s] = getattr(found, name)[taken[s]]
        return out

    row, weight = gather("row"), gather("weight")
    if not weight.any():
        raise PreftuneError(f"{names}, column 'weight': found zeros only, needed one weight above zero; correct or remove the column")
    again = repeated(gather("identity"))
    suffix = {(int(number[at]), int(row[at])): f"#{times + 1}" for at, times in again.items()}
    summary = {
        "read": read, "kept": kept, "dropped": dict(dropped.most_common()), "ties": counts["ties"], "swapped": counts["swapped"],
        "repeated_ids": len(again), "left_out": kept - len(number),
    }  # fmt: skip
    arrays = {name: gather(name) for name in ("prompt", "content", "columns", "imitable", "labels")}
    return Dataset(tuple(sources), number.astype("u2"), row, weight=weight, suffix=suffix, counts=summary, **arrays)


SHARE = re.compile(r"(.+):(\d+\.?\d*|\.\d+)")


def parts_of(spec: Spec) -> list[tuple[str, float | None]]:
    """Paths with their shares: "a.jsonl:0.7,b.parquet:0.3", or a list of paths or of (path, share)."""
    if isinstance(spec, os.PathLike) or (isinstance(spec, str) and Path(spec).expanduser().exists()):
        return [(os.fspath(spec), None)]
    parts: list[tuple[str, float | None]] = []
    for item in spec.split(",") if isinstance(spec, str) else spec:
        if isinstance(item, tuple):
            parts.append((os.fspath(item[0]), float(item[1])))
            continue
        name = os.fspath(item).strip()
        match = None if Path(name).expanduser().exists() else SHARE.fullmatch(name)
        parts.append((match[1], float(match[2])) if match else (name, None))
    if not parts or not all(name for name, _ in parts):
        raise PreftuneError(f"the data are {spec!r}, needed a path, a hub id or several with commas between them; remove the empty part")
    return parts


def load(
    spec: Spec,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    strict: bool = False,
    max_line_bytes: float = LINE,
    seed: int = 0,
) -> Dataset:
    """Load preference data.

    spec            .jsonl, .json, .csv, .tsv or .parquet file, Arrow folder, hub id; several with commas; a mixture by shares with
                    "a.jsonl:0.7,b.parquet:0.3", which ends where one of its parts does (counts["left_out"])
    format          a name in columns.FORMATS, where it should not be recognised by the columns
    columns         {"theirs": "ours"}: columns to rename
    split           which split of a hub id ("train" without it) or of an Arrow folder that has several
    strict          drop rows that are ties; they are kept and counted otherwise
    max_line_bytes  refuse longer rows in text files
    seed            of the order in which a mixture takes from its parts
    """
    rename, parts = dict(columns or {}), parts_of(spec)
    shares = [share for _, share in parts if share is not None]
    if shares and (len(shares) < len(parts) or min(shares) <= 0):
        raise PreftuneError(f"the data are {spec!r}, needed a share above 0 for each part or for none; write a.jsonl:0.7,b.jsonl:0.3")
    tables = [open_table(name, split, int(max_line_bytes), rename) for name, _ in parts]
    check_names(tables, rename)
    sources = [source_of(table, format, rename) for table in tables]
    return build(sources, shares or None, strict=strict, seed=seed)


def check_names(tables: Sequence[Table], rename: Mapping[str, str]) -> None:
    """Each column to rename must be in the first row of a file."""
    if rename:
        first = [row for table in tables for row in table.rows(range(min(len(table), 1))) if row is not None]
        seen = {column for row in first for column in row}
        for theirs in sorted(rename.keys() - seen):
            near = difflib.get_close_matches(theirs, seen, 1)
            advice = f"did you mean {near[0]!r}?" if near else "check columns={'theirs': 'ours'}"
            names = ", ".join(table.name for table in tables)
            raise PreftuneError(f"{names}: found the columns {', '.join(sorted(seen))}, needed {theirs!r} to rename it; {advice}")


def from_rows(
    rows: Sequence[Row | Record],
    *,
    name: str = "rows",
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Dataset:
    """A data set from rows in memory: dicts of columns in any of the formats, or records."""
    table = MemoryTable(name, [to_row(row) if isinstance(row, Record) else row for row in rows])
    return build([source_of(table, format, dict(columns or {}))], None, strict=strict, seed=0)


def save(records: Dataset | Sequence[Record], path: str | os.PathLike[str]) -> None:
    """Write records as JSONL in the schema; `load` reads the same records back."""
    with Path(path).open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(to_row(record), ensure_ascii=False, default=str) + "\n")
