"""Files: the same records from every kind of file, errors with their place, splits without leaks, fingerprints of content."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.data import Dataset, from_rows, load, save
from preftune.data.files import interleave
from preftune.data.synthetic import arithmetic
from preftune.types import PreftuneError

ROWS = [
    {"id": f"r{i}", "prompt": f"Wie groß ist {i // 2}?", "chosen": f"gut {i}", "rejected": "NA", "prefer": 0.5 + i / 20} for i in range(8)
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write(path: Path, rows: Sequence[dict]) -> str:
    """The rows in the kind of file that the ending names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    else:
        import datasets

        table = datasets.Dataset.from_list(list(rows))
        table.to_parquet(path) if path.suffix == ".parquet" else table.save_to_disk(path)
    return str(path)


def contents(data: Dataset) -> list[tuple]:
    return [(r.id, r.prompt, r.responses, r.ranked, r.prefer, r.scores, r.desirable) for r in data]


# --- the same records from every kind of file -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "arrow"])
def test_every_kind_of_file_gives_the_same_records_and_fingerprint(tmp_path: Path, name: str):
    data, truth = load(write(tmp_path / name, ROWS)), from_rows(ROWS)
    assert contents(data) == contents(truth)
    assert data.fingerprint == truth.fingerprint
    assert data.counts == truth.counts == {**truth.counts, "read": 8, "kept": 8, "ties": 1, "dropped": {}}
    assert data[3].where == f"{tmp_path / name}, row 4" and list(data.formats.values()) == ["preference"]
    assert [r.id for r in data.records([5, 0, 5])] == ["r5", "r0", "r5"] and data[-1].id == "r7"
    assert contents(pickle.loads(pickle.dumps(data))) == contents(data)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "arrow"])
def test_lists_in_cells_and_unknown_columns_come_through(tmp_path: Path, name: str):
    row = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1.0, 3.0, 2.0], "source": "web"}
    if name == "a.csv":
        row = {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
    record = load(write(tmp_path / name, [row]))[0]
    assert (record.responses, record.scores, record.meta) == (["b", "c", "a"], [3.0, 2.0, 1.0], {"source": "web"})


def test_text_files_are_taken_literally(tmp_path: Path):
    """Readers that guess types would make these a missing value, a date, a number, and lose the quoted line end."""
    path = tmp_path / "a.csv"
    path.write_text('\ufeffprompt,chosen,rejected\n"two\nlines, one ""cell""",NA,2024-05-01\n\n007,null,1e5\n', encoding="utf-8")
    data = load(path)
    assert [(r.prompt, r.responses) for r in data] == [('two\nlines, one "cell"', ["NA", "2024-05-01"]), ("007", ["null", "1e5"])]
    assert data.counts["dropped"] == {"blank line": 1} and data[1].where.endswith("row 3")


def test_json_lines_keep_the_line_number_and_any_mixture_of_columns(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        '\ufeff{"prompt": "a", "chosen": "b", "rejected": "c", "x": 1}\r\n\r\n'
        '{"chosen": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "b"}], '
        '"rejected": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "c"}], "x": {"deep": []}}'.encode()
    )
    data = load(path)
    assert [r.where for r in data] == [f"{path}, row 1", f"{path}, row 3"]
    assert data[1].prompt == [{"role": "user", "content": "é"}] and [r.meta for r in data] == [{"x": 1}, {"x": {"deep": []}}]


def test_an_array_of_objects_is_read_whatever_its_layout(tmp_path: Path):
    path = tmp_path / "a.json"
    for text in (
        json.dumps(ROWS),
        json.dumps(ROWS, indent=3, ensure_ascii=False).replace("\n", "\r\n"),
        "\n \ufeff"[2:] + f" {json.dumps(ROWS)} \n",
    ):
        path.write_bytes(text.encode())
        assert contents(load(path)) == contents(from_rows(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert contents(load(path)) == contents(from_rows(ROWS))


def test_saved_records_are_read_back_with_the_same_fingerprint(tmp_path: Path):
    for kind in ("pairs", "soft", "unpaired", "ranked", "demonstrations", "prompts"):
        data = from_rows(arithmetic(20, kind=kind))
        save(data, tmp_path / "s.jsonl")
        assert load(tmp_path / "s.jsonl").fingerprint == data.fingerprint


def test_columns_are_renamed_and_a_format_can_be_forced(tmp_path: Path):
    path = write(tmp_path / "a.csv", [{"question": "q", "good": "a", "bad": "b"}])
    names = {"question": "prompt", "good": "chosen", "bad": "rejected"}
    data = load(path, columns=names)
    assert (data[0].prompt, data[0].responses) == ("q", ["a", "b"])
    both = write(tmp_path / "b.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b", "completion": "c"}])
    assert load(both, format="prompt-completion")[0].responses == ["c"]
    listed = write(tmp_path / "c.csv", [{"prompt": "q", "answers": '["a", "b"]', "ranked": "true"}])
    assert load(listed, columns={"answers": "responses"})[0].responses == ["a", "b"]


def test_a_split_of_an_arrow_folder_is_chosen_by_name(tmp_path: Path):
    import datasets

    parts = {"train": datasets.Dataset.from_list(ROWS[:5]), "test": datasets.Dataset.from_list(ROWS[5:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    assert (len(load(tmp_path / "both")), len(load(tmp_path / "both", split="test"))) == (5, 3)
    with pytest.raises(PreftuneError, match="found the splits train, test, needed 'dev'; choose"):
        load(tmp_path / "both", split="dev")


# --- counting ---------------------------------------------------------------------------------------------------------


def test_every_dropped_row_is_counted_under_its_reason(tmp_path: Path):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [
        pair,
        {**pair, "rejected": "a"},
        {**pair, "chosen": ""},
        {**pair, "chosen": None},
        {**pair, "prefer": 0.5},
        {**pair, "prefer": 0.1},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    loose, strict = load(path), load(path, strict=True)
    assert loose.counts["dropped"] == {"identical responses": 1, "empty response": 1, "missing chosen": 1}
    assert (loose.counts["read"], loose.counts["kept"], loose.counts["ties"], loose.counts["swapped"]) == (6, 3, 1, 1)
    assert strict.counts["dropped"]["tie"] == 1 and len(strict) == 2
    assert loose.counts["read"] == loose.counts["kept"] + sum(loose.counts["dropped"].values())


def test_repeated_ids_get_a_suffix_that_selections_keep():
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    data = from_rows([{**pair, "id": "x"}, {**pair, "id": "y"}, {**pair, "id": "x"}, {**pair, "id": "x"}])
    assert [r.id for r in data] == ["x", "y", "x#2", "x#3"] and data.counts["repeated_ids"] == 2
    assert [r.id for r in data.select([3, 0])] == ["x#3", "x"]
    unnamed = from_rows([pair, pair, {**pair, "prompt": "q"}])
    assert len({r.id for r in unnamed}) == 3 and unnamed[1].id == unnamed[0].id + "#2"
    assert unnamed[2].id == from_rows([{**pair, "prompt": "q"}])[0].id  # no matter where the row stands


def test_weights_have_mean_one_over_the_data_set_and_over_its_parts():
    data = from_rows([{"prompt": str(i), "completion": "a", "weight": i + 1} for i in range(4)])
    assert [r.weight for r in data] == [0.4, 0.8, 1.2, 1.6]
    assert [r.weight for r in data.select([0, 3])] == [0.4, 1.6]
    assert [r.weight for r in from_rows([{"prompt": "a", "completion": "a"}])] == [1.0]


# --- bad input --------------------------------------------------------------------------------------------------------

GOOD = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
BAD = {  # name -> bytes, found, needed, advice
    "empty.jsonl": (b"", "an empty file", "at least one row", "check what wrote it"),
    "blank.jsonl": (b"\n \n", "an empty file", "at least one row", "check what wrote it"),
    "header.csv": (b"prompt,chosen,rejected\n", "a header alone", "at least one row", "check what wrote it"),
    "empty.json": (b"[]", "an empty file", "at least one row", "check what wrote it"),
    "latin.jsonl": (
        GOOD + '{"prompt": "é"}'.encode("latin1"),
        "line 2: found a byte that is not UTF-8 at offset 60",
        "UTF-8",
        "iconv",
    ),
    "latin.csv": ("prompt\né\n".encode("latin1"), "line 2: found a byte that is not UTF-8 at offset 7", "UTF-8", "iconv"),
    "cut.jsonl": (GOOD + "é".encode()[:1], "line 2: found a character cut off at offset 49", "UTF-8", "complete?"),
    "utf16.csv": ("prompt\na\n".encode("utf-16"), "line 1: found a byte that is not UTF-8 at offset 0 (0xff)", "UTF-8", "iconv"),
    "broken.jsonl": (GOOD + GOOD[:20] + b"\n", "row 2: found broken JSON", "one JSON object a line", "correct or remove the line"),
    "list.jsonl": (b'[{"prompt": "a"}]\n', "row 1: found list", "a JSON object", "call it .json"),
    "open.json": (b'[{"prompt": "a"},\n{"prompt": "b"}', "line 2: found the end of the file", "an array of JSON objects", "correct it"),
    "comma.json": (b'[{"prompt": "a"}\n{"prompt": "b"}]', 'line 2: found \'{"prompt": "b"}]\'', "an array of JSON objects", "correct it"),
    "deep.json": (b'[{"prompt": "a"},\n\n{"prompt": b}]', "line 3: found broken JSON (Expecting value) in row 2", "an array", "correct it"),
    "after.json": (b'[{"prompt": "a"}] x', "'x' after the array", "an array", "correct it"),
    "numbers.json": (b'[{"prompt": "a"}, 3]', "row 2: found int 3", "a JSON object", "one array"),
    "cells.csv": (b"prompt,chosen,rejected\na,b,c\na,b\n", "row 2: found 2 cells", "3 (prompt, chosen, rejected)", "in quotes"),
    "twice.csv": (b"prompt,prompt\na,b\n", "line 1: found the columns prompt, prompt", "different names", "rename one"),
    "list.csv": (b'prompt,responses\na,"[1, "\n', "row 1, column 'responses': found broken JSON", "a JSON list", "correct the cell"),
    "wrong.csv": (b"question,good,bad\na,b,c\n", "row 1: found the columns question, good, bad", "", "columns={'question': 'prompt'}"),
    "later.jsonl": (
        GOOD + b'{"prompt": "p", "chosen": "a"}\n',
        "row 2, column 'rejected': found only prompt, chosen",
        "'rejected'",
        "add it",
    ),
    "nan.jsonl": (GOOD[:-2] + b', "prefer": NaN}\n', "row 1, column 'prefer': found nan", "a number in [0, 1]", "correct the cell"),
    "same.jsonl": (
        b'{"prompt": "p", "chosen": "a", "rejected": "a"}\n',
        "1 rows and had to drop them all (identical responses 1)",
        "at",
        "correct",
    ),
    "alone.jsonl": (b'{"prompt": "p", "completion": null}\n', "had to drop them all (missing completion 1)", "at least one", "correct"),
    "ties.jsonl": ((GOOD[:-2] + b', "prefer": 0.5}\n') * 3, "nothing but ties in 3 rows", "a row that prefers", "check the labels"),
    "weights.jsonl": (GOOD[:-2] + b', "weight": 0}\n', "column 'weight': found zeros only", "one weight above zero", "remove the column"),
    "text.jsonl": (b'{"text": "once"}\n', "text without prompt", "a prompt with responses", "split it into prompt and completion"),
    "not.parquet": (b"PAR1 and then nothing", "does not begin and end with PAR1", "Parquet", "complete?"),
    "model.pkl": (b"x", "found .pkl, which may run code", "JSONL", "export it"),
    "model.pt": (b"x", "found .pt, which may run code", "JSONL", "export it"),
    "data.bin": (b"x", "found .bin, which may run code", "JSONL", "export it"),
    "a.jsonl.gz": (b"x", "found an archive", "JSONL", "unpack it first"),
    "a.zip": (b"x", "found an archive", "JSONL", "unpack it first"),
    "a.xlsx": (b"x", "found the ending '.xlsx'", ".jsonl", "rename or convert"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_what_was_found_needed_and_to_do(tmp_path: Path, name: str):
    content, found, needed, advice = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PreftuneError) as caught:
        load(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name))
    assert found in message and f"needed {needed}" in message and advice in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_a_long_line_is_refused_with_its_number_and_the_option(tmp_path: Path, name: str):
    rows = [ROWS[0], ROWS[1], {**ROWS[2], "chosen": "x" * 5000}]
    path = write(tmp_path / name, rows)
    with pytest.raises(
        PreftuneError, match=r"(line|row) 3: found more than 4,000 bytes, needed at most max_line_bytes = 4,000; .*raise the limit"
    ):
        load(path, max_line_bytes=4000)
    assert len(load(path)) == 3


def test_a_hundred_megabytes_without_a_line_end_are_refused_before_they_are_read(tmp_path: Path):
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.write(GOOD)
        file.truncate(100_000_000)  # a hole in the file: zeros
    with pytest.raises(PreftuneError, match="line 2: found more than 50,000,000 bytes, needed at most max_line_bytes = 50,000,000"):
        load(path)


def test_an_open_quote_does_not_swallow_the_file(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\na,b\na,"b\n' + "c,d\n" * 2000)
    with pytest.raises(PreftuneError, match="row 2: found more than 4,000 bytes"):
        load(path, max_line_bytes=4000)


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path: Path):
    write(tmp_path / "pairs.jsonl", ROWS)
    with pytest.raises(PreftuneError, match=r"pair\.jsonl: found no such file, needed a file, .*; did you mean .*pairs\.jsonl\?"):
        load(tmp_path / "pair.jsonl")
    with pytest.raises(PreftuneError, match="found no such file, needed a file, an Arrow folder or a hub id; looked in"):
        load(str(tmp_path / "nowhere" / "x.jsonl"))


def test_a_folder_of_files_is_no_arrow_folder(tmp_path: Path):
    write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(PreftuneError, match=r"found a folder with a\.jsonl, needed an Arrow folder .*; name the files"):
        load(tmp_path)


def test_a_hub_id_without_connection_is_explained(tmp_path: Path):
    with pytest.raises(PreftuneError, match="someone/pairs: found neither a file .* hub data set .*, needed one of them; check"):
        load("someone/pairs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "preferences"}, "format is 'preferences', needed one of .*; did you mean 'preference'"),
        ({"columns": {"promt": "prompt"}}, "found the columns .*, needed 'promt' to rename it; did you mean 'prompt'"),
        ({"columns": {"chosen": "prompt"}}, "row 1, column 'prompt': found it in the file already, needed a free name; rename that column"),
        ({"split": "train"}, "found a single file, needed an Arrow folder or hub id for split='train'; leave split out"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: dict, message: str):
    with pytest.raises(PreftuneError, match=message):
        load(write(tmp_path / "a.jsonl", ROWS), **options)


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", ROWS)
    data = load(path)
    write(tmp_path / "a.jsonl", ROWS[:4])
    with pytest.raises(PreftuneError, match="found a file changed since it was loaded, needed the same bytes; load it again"):
        data.records([0])


# --- mixtures ---------------------------------------------------------------------------------------------------------


def source(name: str, n: int) -> list[dict]:
    return [{"id": f"{name}{i}", "prompt": f"{name} {i}", "completion": "x"} for i in range(n)]


def test_files_without_shares_stand_end_to_end(tmp_path: Path):
    a, b = write(tmp_path / "a.jsonl", source("a", 3)), write(tmp_path / "b.parquet", source("b", 2))
    assert [r.id for r in load(f"{a},{b}")] == [r.id for r in load([a, Path(b)])] == ["a0", "a1", "a2", "b0", "b1"]


def test_a_mixture_holds_its_shares_everywhere_and_takes_each_file_in_order(tmp_path: Path):
    a, b = write(tmp_path / "a.jsonl", source("a", 90)), write(tmp_path / "b.csv", source("b", 90))
    data = load(f"{a}:0.7,{b}:0.3")
    names = [r.id for r in data]
    assert len(set(names)) == len(names) and data.counts["left_out"] == 180 - len(names) > 0
    for letter, share in (("a", 0.7), ("b", 0.3)):
        assert [n for n in names if n[0] == letter] == [f"{letter}{i}" for i in range(sum(n[0] == letter for n in names))]
        for stretch in range(0, len(names) - 20, 20):
            assert abs(sum(n[0] == letter for n in names[stretch : stretch + 20]) - 20 * share) <= 2
    assert [r.id for r in load([(a, 7), (b, 3)])] == names
    assert [r.id for r in load(f"{a}:0.7,{b}:0.3", seed=1)] != names
    assert [r.id for r in data.records([9, 2, 5])] == [names[9], names[2], names[5]]


def test_a_mixture_wants_a_share_for_each_part(tmp_path: Path):
    a = write(tmp_path / "a.jsonl", ROWS)
    for spec in (f"{a}:0.7,{a}", [(a, 1.0), (a, 0.0)]):
        with pytest.raises(PreftuneError, match="needed a share above 0 for each part or for none; write"):
            load(spec)
    with pytest.raises(PreftuneError, match="needed a path, a hub id or several with commas between them; remove the empty part"):
        load(f"{a},")


def test_a_file_that_appears_twice_in_a_mixture_keeps_its_ids_apart(tmp_path: Path):
    a = write(tmp_path / "a.jsonl", source("a", 4))
    ids = [r.id for r in load([a, a])]
    assert ids == ["a0", "a1", "a2", "a3", "a0#2", "a1#2", "a2#2", "a3#2"]


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.05, 1)), min_size=1, max_size=4), st.integers(0, 99))
def test_interleaving_never_takes_more_than_a_source_has_and_is_the_start_of_any_longer_one(parts: list[tuple[int, float]], seed: int):
    lengths, shares = [n for n, _ in parts], [share for _, share in parts]
    order = interleave(lengths, shares, seed)
    counts = np.bincount(order, minlength=len(parts))
    assert (counts <= lengths).all() and (counts == lengths).any()
    longer = interleave([3 * n for n in lengths], shares, seed)
    assert (longer[: len(order)] == order).all()


# --- splits and fingerprints ------------------------------------------------------------------------------------------


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.floats(0.02, 0.98), st.integers(0, 5))
def test_no_prompt_is_in_both_parts_of_a_split_and_no_row_is_lost(prompts: list[int], fraction: float, seed: int):
    data = from_rows([{"id": str(i), "prompt": f"p {p}", "chosen": f"a{i}", "rejected": "b"} for i, p in enumerate(prompts)])
    if len(set(prompts)) < 2:
        with pytest.raises(PreftuneError, match="found 1 different prompt in .* records, needed 2 or more to split by prompt; give"):
            data.split(fraction, seed)
        return
    train, test = data.split(fraction, seed)
    assert not {r.prompt for r in train} & {r.prompt for r in test}
    assert sorted(r.id for part in (train, test) for r in part) == sorted(r.id for r in data)
    assert len(train) and len(test)
    smallest = min(prompts.count(p) for p in prompts)
    assert len(test) <= max(round(fraction * len(data)), smallest)


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_the_rows():
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(100)]
    held = [sorted(r.prompt for r in from_rows(order).split(0.2, seed)[1]) for order, seed in ((rows, 0), (rows[::-1], 0), (rows, 1))]
    assert held[0] == held[1] != held[2] and len(held[0]) == 20
    with pytest.raises(PreftuneError, match="test_fraction is 1.0, needed a number between 0 and 1"):
        from_rows(rows).split(1.0)


def test_a_fingerprint_speaks_of_records_and_their_order_only(tmp_path: Path):
    data = load(write(tmp_path / "a.jsonl", ROWS))
    assert data.fingerprint == load(write(tmp_path / "elsewhere.json", [{**row, "source": "x"} for row in ROWS])).fingerprint
    assert data.fingerprint == data.select(range(8)).fingerprint == load(tmp_path / "a.jsonl").fingerprint
    others = [ROWS[::-1], ROWS[:7], [{**ROWS[0], "chosen": "x"}, *ROWS[1:]], [{**ROWS[0], "prefer": 0.6}, *ROWS[1:]]]
    assert len({data.fingerprint, *(from_rows(rows).fingerprint for rows in others)}) == 5
