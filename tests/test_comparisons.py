"""Files of comparisons: what is recognised, how ties and smoothing enter, and how a bad file is answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from preftune.data.comparisons import from_probabilities, from_wins, load, weights
from preftune.types import PreftuneError

Write = Callable[..., Path]
WINS = [[0.0, 3.0], [1.0, 0.0]]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    def write(text: str, name: str = "votes.csv") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        return tmp_path / name

    return write


ALIKE = {  # a beat b three times and lost once
    "winner and loser": "winner,loser\na,b\na,b\nb,a\na,b\n",
    "with a count": "winner,loser,count\na,b,2\nb,a,1\na,b,1\n",
    "who won, by name": "a,b,winner\na,b,a\na,b,a\nb,a,a\na,b,b\n",
    "who won, by side": "left,right,preferred\na,b,left\na,b,LEFT\nb,a,right\na,b,right\n",
    "ties are half a win each": "model_a,model_b,winner\na,b,model_a\na,b,model_a\na,b,tie\nb,a,tie (bothbad)\n",
    "wins of each": "item_a,item_b,wins_a,wins_b\na,b,2,0\nb,a,1,1\n",
    "wins and ties": "item_a,item_b,wins_a,wins_b,ties\na,b,2,0,2\n",
    "headers with blanks and capitals": " Item A , Item B,Wins A,wins b \n a ,b,3,1\n",
    "semicolons": "winner;loser;count\na;b;3\nb;a;1\n",
    "tabs": "winner\tloser\tcount\na\tb\t3\nb\ta\t1\n",
    "a byte order mark, carriage returns and blank lines": "\ufeffwinner,loser,count\r\na,b,3\r\n\r\nb,a,1\r\n",
    "a table": ",a,b\na,0,3\nb,1,0\n",
    "an empty diagonal": ",a,b\na,,3\nb,1,-\n",
    "rows in another order": ",a,b\nb,1,0\na,0,3\n",
    "names in the first row alone": "a,b\n0,3\n1,0\n",
}


@pytest.mark.parametrize("text", ALIKE.values(), ids=ALIKE)
def test_every_layout_says_the_same(written: Write, text: str) -> None:
    found = load(written(text))
    assert found.names == ("a", "b") and found.wins is not None and found.wins.tolist() == WINS
    assert found.P.tolist() == [[0.5, 0.7], [0.3, 0.5]]  # (3 + 1/2) / (4 + 1)


def test_json_says_the_same(written: Write) -> None:
    rows = [{"winner": "a", "loser": "b", "count": 3}, {"count": 1, "winner": "b", "loser": "a"}]
    for name, text in {
        "table.json": json.dumps({"names": ["a", "b"], "counts": WINS}),
        "pairs.json": json.dumps(rows),
        "pairs.jsonl": "\n\n".join(map(json.dumps, rows)),
    }.items():
        found = load(written(text, name))
        assert found.names == ("a", "b") and found.wins is not None and found.wins.tolist() == WINS


def test_parquet_says_the_same(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"winner": ["a", "b"], "loser": ["b", "a"], "count": [3, 1]}), tmp_path / "votes.parquet")
    found = load(tmp_path / "votes.parquet")
    assert found.wins is not None and found.wins.tolist() == WINS


@pytest.mark.parametrize("text", [",a,b\na,0.5,0.7\nb,0.3,0.5\n", "a,b\n,.7\n.3,\n", ",a,b\na,,0.7\nb,0.3,\n"])
def test_probabilities_are_taken_as_they_are(written: Write, text: str) -> None:
    found = load(written(text), smoothing=9)
    assert found.wins is None and found.smoothing == 0 and found.never == []
    assert found.P.tolist() == [[0.5, 0.7], [0.3, 0.5]]


def test_a_table_without_names_numbers_its_items(written: Write) -> None:
    assert load(written("0.5,0.7\n0.3,0.5\n")).names == ("0", "1")
    assert load(written(",1,2\n1,,4\n2,3,\n")).names == ("1", "2")  # names that are numbers stay names


def test_a_table_of_certain_wins_needs_a_word_or_its_diagonal(written: Write) -> None:
    cycle = written(",a,b,c\na,{0},1,0\nb,0,{0},1\nc,1,0,{0}\n".format("0"))
    with pytest.raises(PreftuneError, match="--format probabilities"):
        load(cycle)
    assert load(cycle, format="counts").P[0, 1] == 0.75
    with pytest.raises(PreftuneError, match="found 0 on the diagonal"):
        load(cycle, format="probabilities")
    assert load(written(",a,b,c\na,.5,1,0\nb,0,.5,1\nc,1,0,.5\n")).P[0, 1] == 1


def test_items_called_like_columns_can_be_read_as_a_table(written: Write) -> None:
    file = written("winner,loser\n0,3\n1,0\n")
    assert load(file, format="counts").names == ("winner", "loser")
    assert load(file).names == ("0", "3", "1")


def test_pairs_never_compared_are_named_and_stand_at_one_half() -> None:
    found = from_wins([[0, 2, 0], [1, 0, 1], [0, 4, 0]], ["a", "b", "c"])
    assert found.never == [("a", "c")] and found.P[0, 2] == 0.5


REFUSED = {
    "one item": (",a\na,0\n", ["1 item (a)", "at least two"]),
    "an empty file": ("", ["empty file"]),
    "blank lines": ("\n \n", ["only blank lines"]),
    "a header alone": ("winner,loser\n", ["no rows"]),
    "unknown columns": ("player,opponent\nx,y\n", ["player, opponent", "winner and loser"]),
    "a column too many": ("winner,loser,rater\nx,y,1\n", ["winner, loser, rater", "leave other columns out"]),
    "NaN": (",a,b\na,.5,nan\nb,.3,.5\n", ["row 'a', column 'b'", "'nan'"]),
    "a sum that is not 1": (",a,b\na,.5,.7\nb,.4,.5\n", ["rows 'a' and 'b'", "0.7", "0.4", "sum of 1"]),
    "per cent": (",a,b\na,50,55.3\nb,44.7,50\n", ["55.3", "divide per cent by 100"]),
    "a probability above 1": (",a,b\na,.5,1.2\nb,-.2,.5\n", ["row 'a', column 'b'", "1.2", "[0, 1]"]),
    "negative counts": (",a,b\na,0,-7\nb,4,0\n", ["row 'a', column 'b'", "-7"]),
    "a negative count": ("winner,loser,count\na,b,-1\n", ["line 2, column 'count'", "-1"]),
    "text": (",a,b\na,0,many\nb,4,0\n", ["row 'a', column 'b'", "'many'"]),
    "decimal commas": (";a;b\na;0,5;0,7\nb;0,3;0,5\n", ["'0,5'", "with a point"]),
    "a count that no integer holds": (",a,b\na,0,1e30\nb,4,0\n", ["row 'a', column 'b'", "from 0 to 1e+15"]),
    "infinity": (",a,b\na,0,inf\nb,4,0\n", ["'inf'", "finite"]),
    "the same name twice": (",a,b,a\na,0,1,3\nb,1,0,3\na,4,1,0\n", ["'a' a second time"]),
    "wins against itself": (",a,b\na,2,3\nb,4,0\n", ["2 wins of 'a' against itself"]),
    "a comparison with itself": ("winner,loser\na,b\na,a\n", ["line 3", "'a' compared with itself"]),
    "groups without a comparison between them": ("winner,loser\na,b\nb,a\nc,d\nd,c\n", ["2 groups", "(a, b | c, d)", "Bradley-Terry"]),
    "nothing but zeros": (",a,b\na,0,0\nb,0,0\n", ["2 groups"]),
    "an empty cell": ("winner,loser\na,b\nb,\n", ["line 3, column 'loser'", "empty cell"]),
    "an empty count": ("winner,loser,count\na,b,\n", ["line 2, column 'count'", "empty cell"]),
    "a missing cell": ("winner,loser\na,b\nb\n", ["line 3", "1 cells, needed 2"]),
    "an empty cell of a table": (",a,b\na,,3\nb,,\n", ["row 'b', column 'a'", "empty cell"]),
    "a row too short": (",a,b\na,0,3\nb,1\n", ["line 3", "1 numbers, needed 2"]),
    "a column without its row": (",a,b,c\na,0,3,4\nb,4,0,3\n", ["no row for c"]),
    "a row without its column": (",a,b\na,0,3\nb,4,0\nc,1,1\n", ["line 4", "'c'", "no column"]),
    "a winner who did not take part": ("a,b,winner\nx,y,z\n", ["line 2, column 'winner'", "'z'", "neither"]),
    "a winner who may be either": ("left,right,winner\nright,x,right\n", ["line 2", "two results"]),
    "a nameless column": (",a,\na,0,3\n,1,0\n", ["no name for item 2"]),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_a_bad_file_is_refused_with_its_place(written: Write, text: str, said: list[str]) -> None:
    with pytest.raises(PreftuneError) as told:
        load(written(text))
    assert str(told.value).count("votes.csv") == 1 and "needed" in str(told.value)
    assert [part for part in said if part not in str(told.value)] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"names":', "broken JSON"),
        ('{"matrix": [[1]]}', "the keys matrix"),
        ('{"names": ["a"], "counts": [[0, 3], [1, 0]]}', "1 names for 2 rows"),
        ('{"names": "ab", "counts": [[0, 3], [1, 0]]}', "names that are str"),
        ("[[0.5, 1], [0]]", "found 1 numbers, needed 2"),
        ("[[0.5, true], [0, 0.5]]", "'True'"),
        ("[1, 2]", "needed an object"),
        ("[]", "needed a list of rows"),
        ('[{"winner": "a", "loser": "b"}, {"winner": "a"}]', "as in the first row"),
    ],
)
def test_bad_json_is_refused(written: Write, text: str, said: str) -> None:
    with pytest.raises(PreftuneError, match="needed") as told:
        load(written(text, "votes.json"))
    assert said in str(told.value) and "votes.json" in str(told.value)


def test_what_is_no_file_of_comparisons_is_refused(written: Write, tmp_path: Path) -> None:
    written("winner,loser\na,b\n")
    (tmp_path / "latin.csv").write_bytes("winner,loser\né,b\n".encode("latin-1"))
    (tmp_path / "folder.csv").mkdir()
    for name, said in {"vote.csv": "did you mean", "votes.txt": "'.txt'", "latin.csv": "line 2", "folder.csv": "a folder"}.items():
        with pytest.raises(PreftuneError, match=said):
            load(tmp_path / name)
    with pytest.raises(PreftuneError, match="probabilities, counts, pairs"):
        load(tmp_path / "votes.csv", format="matrix")


def test_without_smoothing_every_pair_needs_a_comparison() -> None:
    assert torch.equal(from_wins(WINS, smoothing=0).P, torch.tensor([[0.5, 0.75], [0.25, 0.5]], dtype=torch.float64))
    with pytest.raises(PreftuneError, match=r"1 pairs that were never compared \(a and c\)"):
        from_wins([[0, 2, 0], [1, 0, 1], [0, 4, 0]], ["a", "b", "c"], smoothing=0)
    with pytest.raises(PreftuneError, match="smoothing is -1"):
        from_wins(WINS, smoothing=-1)


def test_names_and_tables_have_to_fit() -> None:
    for names, said in ((["a", "a"], "twice"), (["a"], "1 names"), (["a", " "], "no name for item 2")):
        with pytest.raises(PreftuneError, match=said):
            from_probabilities([[0.5, 0.7], [0.3, 0.5]], names)
    with pytest.raises(PreftuneError, match="square"):
        from_probabilities(torch.full((2, 3), 0.5))


def test_weights_are_read_by_name(written: Write) -> None:
    assert weights(written("weight,name\n3,b\n1,a\n"), ("a", "b")).tolist() == [0.25, 0.75]
    for text, said in {
        "name,weight\na,1\n": "no weight for b",
        "name,weight\na,1\nb,0\n": "weight of 0",
        "name,weight\na,1\na,2\n": "second weight",
        "name,weight\nz,1\n": "unknown 'z'",
        "item,weight\na,1\n": "name and weight",
    }.items():
        with pytest.raises(PreftuneError, match=said):
            weights(written(text), ("a", "b"))
