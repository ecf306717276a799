"""Fact sheets: what `preftune show` says of a method, and the page of all of them, are made from the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from preftune import methods
from preftune.cli import main
from preftune.cli.sheets import fact_sheet, page, sections, table
from preftune.cli.show import catalogue, describe
from preftune.cli.trl.losses import TRAINERS, names_in_trl
from preftune.methods.known_as import KNOWN_AS
from preftune.registry import signature_of

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def written() -> str:
    return page()


def test_the_page_of_the_methods_is_the_one_that_the_code_makes(written: str) -> None:
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == written, "run `make docs`: a method, its docstring or its signature changed"


def test_the_page_has_a_row_and_a_sheet_for_every_method(written: str) -> None:
    assert re.findall(r"^## (\S+)$", written, re.MULTILINE) == list(methods.METHODS)
    assert re.findall(r"^\| \[(\S+)\]\(#\S+\) \|", written, re.MULTILINE) == list(methods.METHODS)


def test_every_table_of_the_page_is_as_wide_as_its_head(written: str) -> None:
    for block in re.findall(r"(?:^\|.*\|$\n?)+", written, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_sheet_says_formula_source_data_and_hyperparameters(name: str) -> None:
    found = describe(name, {})
    assert found["formulas"] and all(found["formulas"].values())
    assert re.search(r"arXiv:\d{4}\.\d{5}", found["source"]) or name == "sft"
    assert "responses per prompt" in found["needs"]
    said = fact_sheet(name, "", found)
    assert all(f"| `{one}` |" in said for one in signature_of(methods.METHODS[name])) and "- **Batch**" in said


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_is_told_in_one_line(name: str) -> None:
    about = catalogue()[name]["about"]
    assert len(about) >= 25 and "\n" not in about


def test_a_docstring_is_read_by_its_sections() -> None:
    doc = "What it is.\n\nloss = a\n       + b\n\nReads   x [B]\n        and y\nNot     z: a trap\nSource  somewhere"
    assert sections(doc) == {"": "What it is.\n\nloss = a\n       + b", "Reads": "x [B] and y", "Not": "z: a trap", "Source": "somewhere"}
    assert sections("One line.") == {"": "One line."}


def test_traps_are_the_not_sections_of_the_objectives() -> None:
    assert "sums" in describe("ipo", {})["traps"]["ipo"] or "per-token" in describe("ipo", {})["traps"]["ipo"]
    assert "- **Not**" in fact_sheet("ipo", "", describe("ipo", {}))


def test_relatives_link_to_their_sheets(written: str) -> None:
    named = set(re.findall(r"\]\(#([^)]+)\)", written))
    assert named <= set(methods.METHODS)


# --- names elsewhere ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN_AS)
def test_a_known_name_belongs_to_a_method_and_converts_its_hyperparameters(name: str) -> None:
    assert name in methods.METHODS
    hyperparameters = set(signature_of(methods.METHODS[name]))
    for known in KNOWN_AS[name]:
        assert known.library and known.name
        assert set(re.findall(r"(\w+) = ", known.here)) <= hyperparameters
        assert set(re.findall(r"(\w+)=\S", known.here)) <= hyperparameters


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_name_in_trl_converts_hyperparameters_of_the_method(name: str) -> None:
    hyperparameters = set(signature_of(methods.METHODS[name]))
    for there, here in names_in_trl(name):
        assert there.split(":")[0].split(" ")[0] in {trainer.config for trainer in TRAINERS.values()}
        assert set(re.findall(r"(\w+) = ", here)) <= hyperparameters


def test_every_meaning_of_trls_names_is_on_a_sheet() -> None:
    """Each entry of the table of from-trl, of both versions, is told by the method that it becomes."""
    told = [there for name in methods.METHODS for there, _ in names_in_trl(name)]
    assert len(told) == sum(len(trainer.losses) + len(trainer.before) for trainer in TRAINERS.values())


# --- the command ----------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0), capsys.readouterr().out


def test_show_prints_the_names_elsewhere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, said = run(capsys, "show", "simpo")
    assert code == 0 and "loss = -logsigmoid(z)" in said  # also where a method insists on a value
    assert re.search(r"TRL +CPOConfig: loss_type simpo +beta, gamma = simpo_gamma", said)
    assert re.search(r"LLaMA-Factory +pref_loss: simpo +beta = pref_beta, gamma = simpo_gamma", said)
    facts = json.loads(run(capsys, "show", "simpo", "--json")[1])
    assert {known["in"] for known in facts["known_as"]} >= {"TRL", "HALOs", "LLaMA-Factory"} and "gamma / beta" in facts["traps"]["simpo"]


def test_show_writes_the_page(capsys: pytest.CaptureFixture[str], tmp_path: Path, written: str) -> None:
    assert run(capsys, "show", "--docs", str(tmp_path / "methods.md"))[0] == 0
    assert (tmp_path / "methods.md").read_text(encoding="utf-8") == written
    assert run(capsys, "show", "--docs", str(tmp_path / "methods.txt"))[0] == 3
    assert run(capsys, "show", "--docs", str(tmp_path / "nowhere" / "methods.md"))[0] == 3


def test_a_cell_with_a_bar_stays_one_cell() -> None:
    assert table(["a"], [["x | y"]]).splitlines()[-1] == "| x \\| y |"
