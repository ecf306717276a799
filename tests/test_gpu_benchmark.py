"""The benchmark for cards, on a small shape and a processor: its counting, its steps and its table."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


def test_useful_work_of_a_pair_by_hand(gpu: ModuleType) -> None:
    """One layer of width 8, two heads of 4, one of keys, inner 16, V 10: weights 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16 = 576.

    P = 2, C = 1: 4 tokens, 2 scored; positions seen 1 + 2, and 3 by each response. Frozen weights save a third of their work.
    """
    shape = gpu.Shape(layers=1, width=8, heads=2, kv_heads=1, inner=16, vocabulary=10)
    assert shape.trunk == 576
    attention = 3.5 * 4 * 8 * (3 + 3 + 3)
    assert gpu.useful_flops(shape, 2, 1, "full") == 3 * (2 * 576 * 4 + 2 * 80 * 2) + attention
    assert gpu.useful_flops(shape, 2, 1, "lora") == 2 * (2 * 576 * 4 + 2 * 80 * 2) + attention


def test_the_large_shape_has_seven_billion_weights(gpu: ModuleType) -> None:
    assert gpu.QWEN_7B.trunk == 6_525_288_448
    assert gpu.QWEN_7B.trunk + 2 * gpu.QWEN_7B.width * gpu.QWEN_7B.vocabulary == pytest.approx(7.6e9, rel=0.01)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_the_race_runs_on_a_processor_and_its_runners_agree(gpu: ModuleType, train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)  # TRL is no part of the tests
    cell = gpu.measured(gpu.TINY, 6, 5, train, 40, torch.device("cpu"), 1)
    assert cell.pairs == 2
    assert cell.ours > 0 < cell.plain
    assert cell.off < 2e-3  # bfloat16
    assert cell.memory is None
    assert gpu.UNKNOWN in gpu.line_of(6, 5, train, asdict(cell))


def test_without_a_card_it_says_what_is_missing(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="sees no CUDA device.*--tiny --device cpu"):
        gpu.main()


def test_what_was_not_measured_is_said_in_every_cell(gpu: ModuleType) -> None:
    rows = [line for line in gpu.table(None).splitlines() if line.startswith("| ") and "prompt" not in line]
    assert len(rows) == 8
    assert all(row.count(gpu.UNKNOWN) == 8 for row in rows)
    assert "| 512, 128 | full | not measured | 15.5, 19.5 |" in rows[1]


def test_what_was_measured_stands_in_its_row_with_where_and_how(gpu: ModuleType) -> None:
    cell = gpu.Cell(512, 128, "full", 21, 16.25, 0.514, 120.4, 1e-4, 9.5, 80.0)
    kept = {"device": "a card", "attention": "by hand", "versions": {"torch": "9"}, "commit": "abc", "tokens": 99, "repeats": 5}
    page = gpu.table({**kept, "cells": [asdict(cell)]})
    assert "a card; by hand; torch 9; commit abc; seed 0; median of 5 steps." in page
    assert "99 packed tokens" in page
    line = "| 512, 128 | full | 16.25 | 15.5, 19.5 | 51% | 50%, 62% | 120 | 9.50 | 80 | not measured | not measured | 1.0e-04 |"
    assert line in page.splitlines()


def test_the_section_is_replaced_and_the_rest_of_the_page_stays(gpu: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- other begin -->\nkeep\n<!-- other end -->\n")
    gpu.write_section(page, "gpu", "first \\1")
    gpu.write_section(page, "gpu", "second \\1")
    assert (
        page.read_text()
        == "# Title\n\n<!-- other begin -->\nkeep\n<!-- other end -->\n\n<!-- gpu begin -->\nsecond \\1\n<!-- gpu end -->\n"
    )
