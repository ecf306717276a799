"""The benchmarks run, and what they compute beside the clock is right: ratios, sections, FLOPs, agreement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TRL = BENCHMARKS.parent / ".venv-bench" / "bin" / "python"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """They import one another by name, as scripts in one folder do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(name: str, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """A benchmark as the command line runs it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([python, str(BENCHMARKS / name), *arguments], capture_output=True, text=True, env=environment)


# --- what they compute --------------------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_the_repeats_and_a_disturbed_repeat_moves_only_an_end_of_its_interval() -> None:
    """Theirs over ours is 2, 2, 2, 2 and once 6: the median is 2, the upper end may reach 6 and the lower stays 2."""
    from timing import ratio

    value, low, high = ratio([4.0, 4.0, 4.0, 4.0, 12.0], [2.0] * 5)
    assert value == 2 and low == 2 and high in (2, 6)


def test_a_ratio_over_other_parts_of_the_same_work_is_that_of_the_totals() -> None:
    """1 + 9 over 4 + 1, where paired repeats would say the median of 0.25 and 9."""
    from timing import ratio

    assert ratio([1.0, 9.0], [4.0, 1.0], paired=False)[0] == 2
    assert ratio([1.0, 9.0], [4.0, 1.0])[0] == pytest.approx((0.25 + 9) / 2)


def test_contestants_take_turns_and_each_begins_a_repeat() -> None:
    from timing import race

    order: list[str] = []
    times = race({name: lambda _, name=name: order.append(name) for name in "abc"}, 3)
    assert order == list("abcbcacab") and [len(times[name]) for name in "abc"] == [3, 3, 3]
    order.clear()
    race({name: lambda _, name=name: order.append(name) for name in "abc"}, 3, fewer={"b": 1})
    assert order == list("abccaac")


def test_verdicts_tell_a_bar_that_is_held_from_one_that_the_interval_reaches() -> None:
    from vs_trl import Goal, verdict

    goal = Goal("ours ref", 2.0, 3.0)
    assert [verdict(goal, *ends) for ends in ((1.0, 1.9), (1.9, 2.1), (2.1, 2.9), (2.9, 3.1), (3.1, 4.0))] == [
        "missed",
        "floor reached",
        "floor held",
        "extreme reached",
        "extreme held",
    ]
    least = Goal("ours ref", 0.35, 0.25)
    assert [verdict(least, *ends, least=False) for ends in ((0.36, 0.4), (0.3, 0.4), (0.26, 0.3), (0.2, 0.24))] == [
        "missed",
        "floor reached",
        "floor held",
        "extreme held",
    ]


def test_a_section_is_replaced_in_its_place_and_survives_a_page_written_anew(tmp_path: Path) -> None:
    from section import write_around, write_section

    page = tmp_path / "page.md"
    write_around(page, "# first\n")
    write_section(page, "one", "old")
    write_section(page, "two", "kept")
    write_section(page, "one", "new")
    write_around(page, "# second\n")
    assert page.read_text() == ("# second\n\n<!-- one begin -->\nnew\n<!-- one end -->\n\n<!-- two begin -->\nkept\n<!-- two end -->\n")


@pytest.mark.parametrize("train", ["full", 1, "lora"])
def test_the_fast_engine_computes_no_more_than_a_step_needs(tmp_path: Path, train: str | int) -> None:
    """FLOPs by the operators that ran, over those that the formula calls useful; the plain engine repeats the prompt."""
    from contestants import Ours, Setting, Shape, random_model, random_sample
    from contestants import useful_flops as useful
    from scaling import counted

    from preftune.types import Key

    folder = random_model(Shape(layers=3, width=128, heads=4, kv_heads=2, inner=256, vocabulary=2048), tmp_path)
    batch = [random_sample(Key.of(0).numpy(), 96, [40, 40], 2048)]
    found = {}
    for engine in ("fast", "plain"):
        ours = Ours(Setting(folder, train=train), engine=engine).cached()
        found[engine] = counted(ours, ours.prepare(batch)) / useful(ours.policy.network.lm, batch, reference=False)
    assert 0.9 < found["fast"] < 1.1 < found["plain"]


def test_gradients_that_differ_are_found_whichever_tensor_they_are_in() -> None:
    """One tensor of two off by a hundredth: the error is a hundredth; a tensor far below the others counts against 1e-4 of them all."""
    import torch
    from contestants import worst

    truth = {"a": torch.ones(4).double(), "b": torch.full((4,), 3.0).double(), "c": torch.zeros(4).double()}
    assert worst({**truth, "b": truth["b"] * 1.01}, truth) == pytest.approx(0.01)
    small = worst({**truth, "c": torch.full((4,), 1e-6).double()}, truth)
    assert small == pytest.approx(2e-6 / (1e-4 * 40**0.5))


def test_an_interval_draws_the_units_of_every_axis_anew() -> None:
    """Two units of -1 and 1 give means -1, 0 and 1, whose outer ones have a quarter each; axes along which nothing varies add nothing."""
    from self_play_bed import interval

    varied = [[[-1.0] * 8] * 5, [[1.0] * 8] * 5]  # [2, 5, 8]
    assert interval(varied) == (0.0, -1.0, 1.0)
    assert interval([[0.7] * 3] * 4) == pytest.approx((0.7, 0.7, 0.7))


def test_log_odds_are_bent_where_preferences_go_in_a_circle_and_not_where_scores_explain_them() -> None:
    """Of rock, paper, scissors no score explains anything; of a Bradley-Terry table scores explain all."""
    import torch
    from self_play_grid import bent

    from preftune.exact.games import bradley_terry, rps

    assert bent((0.5 + 0.6 * (rps() - 0.5)).numpy()) == pytest.approx(1)
    assert bent(bradley_terry(torch.tensor([0.0, 1.0, -2.0, 0.5])).numpy()) == pytest.approx(0, abs=1e-12)


def test_a_reward_model_of_a_circular_judge_ranks_what_beats_the_most_frequent_style_first() -> None:
    """Shares .6, .3, .1: It's beats The, which most texts are, and A loses to it. At equal shares nothing is ranked."""
    from styles import Circular, Fitted, equilibrium, exploited

    reward = Fitted(Circular(0.8))
    reward.fit([["The film."] * 6, ["A film."] * 3, ["It's a film."]])
    first, second, third, _ = reward.strength.tolist()
    assert third > first > second
    reward.fit([["The film."], ["A film."], ["It's a film."]])
    assert reward.strength[:3].tolist() == pytest.approx([reward.strength[0].item()] * 3, abs=1e-9)
    assert exploited([1 / 3, 1 / 3, 1 / 3, 0], 0.8) == pytest.approx(0)
    assert equilibrium([0.5, 0.3, 0.2, 0.0], 0.8, 0.01)[:3] == pytest.approx([1 / 3] * 3, abs=0.02)


# --- that they run ------------------------------------------------------------------------------------------------------


def compared(tmp_path: Path, against: Sequence[str], *rows: str, python: str = sys.executable) -> list[dict[str, Any]]:
    """Tiny rows of vs_trl.py."""
    out = tmp_path / "found.json"
    done = run("vs_trl.py", "--tiny", "--repeats", "2", "--out", str(out), "--against", *against, "--rows", *rows, python=python)
    assert done.returncode == 0, done.stderr[-2000:]
    kept = json.loads((tmp_path / "found.json").read_text())
    assert list(kept) == list(rows)
    return [found for name in rows for found in kept[name]["found"]]


def self_play(monkeypatch: pytest.MonkeyPatch, folder: Path, verb: str, *arguments: str) -> str:
    """The section that a tiny run of self_play.py writes."""
    import self_play

    page = folder / f"{verb}.md"
    monkeypatch.setattr(sys, "argv", ["self_play.py", verb, "--tiny", "--out", str(folder), "--page", str(page), *arguments])
    self_play.main()
    return page.read_text()


def test_self_play_is_compared_at_equal_questions_and_no_finished_run_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EGPO asks four times as much as Online-IPO 2 in a step, which therefore makes four times as many."""
    asked = ("--seeds", "0", "--methods", "EGPO", "Online-IPO 2")
    page = self_play(monkeypatch, tmp_path, "grid", *asked)
    files = sorted((tmp_path / "grid").glob("*seed-0.json"))
    runs = {found["settings"][0]["name"]: list(found["looks"].items()) for found in map(json.loads, map(Path.read_text, files))}
    assert {name: [int(step) for step, _ in looks] for name, looks in runs.items()} == {"EGPO": [2], "Online-IPO 2": [2, 8]}
    assert runs["EGPO"][-1][1]["asked"] == runs["Online-IPO 2"][-1][1]["asked"] == 4 * 4 * 2
    assert page.count("\n| Online-IPO 2 | ") == 1 + 3 * 2  # rates; of each budget costs and a table by either judge
    written = {file: file.stat().st_mtime_ns for file in files}
    assert self_play(monkeypatch, tmp_path, "grid", *asked) == page
    assert {file: file.stat().st_mtime_ns for file in files} == written


def test_self_play_measures_shares_of_styles_and_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "cycle.svg"
    page = self_play(monkeypatch, tmp_path, "cycle", "--seeds", "0", "--picture", str(picture))
    looks = [look for file in (tmp_path / "cycle").glob("*seed-0.json") for look in json.loads(file.read_text())["looks"].values()]
    assert len(looks) == 6 * 4 and all(sum(look["shares"]) == pytest.approx(1) for look in looks)
    assert len(ElementTree.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}polyline")) == 6 * 3 * 2  # a seed and the mean
    assert page.count("\n| ") == 2 + 8


def test_self_play_puts_every_method_into_both_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, some = tmp_path / "frontier.svg", ("SPPO", "RSO", "GRPO")
    page = self_play(monkeypatch, tmp_path, "frontier", "--seeds", "0", "--methods", *some, "--picture", str(picture))
    assert len(ElementTree.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}polyline")) == 4 * len(some)
    assert all(f"| {name} | " in page for name in some)


@pytest.mark.slow
def test_our_step_is_the_plain_step_on_every_kind_of_row(tmp_path: Path) -> None:
    for found in compared(tmp_path, ["full logits"], "equal", "natural", "k4", "lora"):
        for name in ("ours ref", "ours cached"):
            errors = found["agreement"][name]
            assert errors["loss_error"] < 1e-5 and errors["gradient_error"] < 1e-5, (found["title"], name, errors)
            assert len(found["times"][name]) == 2


@pytest.mark.slow
@pytest.mark.skipif(not TRL.exists(), reason="TRL is not installed: `make bench` makes an environment that has it")
def test_our_step_is_that_of_trl_however_it_is_set_up(tmp_path: Path) -> None:
    opponents = ["trl base", "trl default", "trl best"]
    for found in compared(tmp_path, opponents, "equal", "natural", "k4", "lora", python=str(TRL)):
        for name in ("trl default", "trl best", "ours ref", "ours cached"):
            errors = found["agreement"][name]
            assert errors["loss_error"] < 1e-5 and errors["gradient_error"] < 1e-5, (found["title"], name, errors)


@pytest.mark.slow
def test_scaling_measures_every_sweep_and_draws_it(tmp_path: Path) -> None:
    out, picture = tmp_path / "scaling.json", tmp_path / "scaling.svg"
    done = run("scaling.py", "--tiny", "--repeats", "2", "--out", str(out), "--picture", str(picture))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    lists = found["costs"]["responses of a prompt"]
    assert all(one["flops"]["fast"] < one["flops"]["plain"] for one in lists), "a prompt with several responses is computed once"
    assert all(one["tokens"]["packed"] < one["tokens"]["padded, grouped by length"] <= one["tokens"]["padded"] for one in found["packing"])
    drawn = ElementTree.parse(picture).getroot()
    assert len(drawn.findall("{http://www.w3.org/2000/svg}polyline")) >= 2 * len(found["costs"]) + 3


@pytest.mark.slow
def test_startup_times_every_first_step(tmp_path: Path) -> None:
    done = run("startup.py", "--tiny")
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split("  ")[0] for line in done.stdout.splitlines() if "toy" in line] == [
        "first step, toy, empty cache",
        "first step, toy, full cache",
        "scoring 32 pairs, toy, absent",
        "scoring 32 pairs, toy, known",
    ]
