"""The arena on tiny language models: what is sampled, asked, left out, stored and told; planted judges read nothing but texts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import preftune
from conftest import Run
from preftune.contest import entrants, run_of
from preftune.types import PreftuneError
from text_fixtures import tiny_folder, tiny_policy, tiny_tokenizer

PROMPTS = [{"id": f"p{i}", "prompt": f"say something about {word}"} for i, word in enumerate(("lists", "names", "values", "types", "sets"))]
FEW: dict[str, Any] = {"decoding": {"max_new_tokens": 6}, "bootstrap": 20, "progress": False}


class Longer:
    """The longer text wins, .9 to .1; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def prefer(self, rows: Any, a: Any, b: Any, key: Any) -> Tensor:
        ours, theirs = a.show(), b.show()
        self.asked += [(row, x[0], y[0]) for row, x, y in zip(rows.id, ours, theirs, strict=True)]
        more = torch.tensor([[len(x[0]) - len(y[0])] for x, y in zip(ours, theirs, strict=True)], dtype=torch.float64)
        return (0.5 + 0.4 * more.sign())[:, :, None]


class Constant:
    """The same number for every question."""

    def __init__(self, answer: float) -> None:
        self.answer = answer

    def prefer(self, rows: Any, a: Any, b: Any, key: Any) -> Tensor:
        return torch.full((len(rows), 1, 1), self.answer)


class Interrupted(Longer):
    """Longer, until it has answered so often; then Ctrl-C."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def prefer(self, rows: Any, a: Any, b: Any, key: Any) -> Tensor:
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        return super().prefer(rows, a, b, key)


def longer() -> Longer:
    """For the command line."""
    return Longer()


def interrupted() -> Interrupted:
    """For the command line."""
    return Interrupted(1)


def killed() -> Any:
    """For the command line: notes every row that it is asked about, and kills the process once, after more than twelve."""

    class Killed(Longer):
        def prefer(self, rows: Any, a: Any, b: Any, key: Any) -> Tensor:
            with open("asked.txt", "a") as file:
                file.writelines(f"{row} {x[0]!r} {y[0]!r}\n" for row, x, y in zip(rows.id, a.show(), b.show(), strict=True))
            if not Path("mark").exists() and Path("asked.txt").read_text().count("\n") > 12:
                Path("mark").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().prefer(rows, a, b, key)

    return Killed()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three tiny models of different weights."""
    folder = tmp_path_factory.mktemp("models")
    return {name: str(tiny_folder(folder / name, seed=i, layers=1)) for i, name in enumerate("abc")}


def stored(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# --- what comes out ---------------------------------------------------------------------------------------------------------------------


def test_a_contest_leaves_answers_verdicts_numbers_and_a_page(models: dict[str, str], tmp_path: Path) -> None:
    judge = Longer()
    found = preftune.arena(list(models.values()), PROMPTS, judge, samples=2, out=tmp_path / "out", **FEW)
    told, judged = stored(found.folder, "answers.jsonl"), stored(found.folder, "verdicts.jsonl")
    assert found.standings.names == ("a", "b", "c") and found.standings.prompts == 5
    assert [(line["model"], line["id"]) for line in told] == [(m, p["id"]) for m in "abc" for p in PROMPTS]
    assert all(len(line["answers"]) == 2 and max(line["tokens"]) <= 6 for line in told)
    assert [(line["a"], line["b"]) for line in judged] == [pair for pair in (("a", "b"), ("a", "c"), ("b", "c")) for _ in PROMPTS]
    assert found.judge_calls == len(judge.asked) == sum(line["asked"] for line in judged) <= 3 * 5 * 2 * 2
    assert sum(model["tokens"] for model in found.models.values()) == sum(sum(line["tokens"]) for line in told)
    result = json.loads((found.folder / "arena.json").read_text())
    assert result["standings"]["winrate"][0][1]["value"] == pytest.approx(found.standings.winrate[0][1].value)  # type: ignore[union-attr]
    assert found.settings["judge"] == "Longer" and found.settings["seed"] == 0


def test_the_win_rate_is_that_of_the_texts(models: dict[str, str], tmp_path: Path) -> None:
    """Judged again by hand: .9, .5 or .1 by length; both orders say the same, so nothing is left to average."""
    found = preftune.arena([models["a"], models["b"]], PROMPTS, Longer(), out=tmp_path / "out", **FEW)
    a, b = ([line["answers"][0] for line in stored(found.folder, "answers.jsonl") if line["model"] == name] for name in "ab")
    by_hand = [0.5 if len(x) == len(y) else 0.9 if len(x) > len(y) else 0.1 for x, y in zip(a, b, strict=True)]
    entry = found.standings.winrate[0][1]
    assert entry is not None and entry.value == pytest.approx(sum(by_hand) / 5) and abs(found.standings.bias.value) < 1e-9


def test_the_page_is_one_file_that_asks_for_nothing_and_escapes_what_models_wrote(models: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        preftune.arena(list(models.values()), PROMPTS, Interrupted(0), out=out, **FEW)
    planted = stored(out, "answers.jsonl")
    planted[0]["answers"] = ["<script>alert(1)</script><img src=http://example.org/x>"]
    (out / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in planted))
    page = preftune.arena(list(models.values()), PROMPTS, Interrupted(-1), out=out, **FEW).report.read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "<img" not in page
    assert "default-src 'none'" in page and not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count('<figure class="heat">') == 2 and page.count("fill-opacity=") == 2 * 6 and "Nash mixture" in page


def test_policies_of_other_tokenizers_meet_and_the_judge_reads_their_texts(tmp_path: Path) -> None:
    """A chat model and a plain one; every text that the judge saw is one that was written."""
    plain = tiny_policy(tokenizer=tiny_tokenizer(template=False, bos=True), seed=3)
    judge = Longer()
    found = preftune.arena({"chat": tiny_policy(seed=1), "plain": plain}, PROMPTS, judge, out=tmp_path / "out", **FEW)
    written = {text for line in stored(found.folder, "answers.jsonl") for text in line["answers"]}
    differ = next((note for note in found.notes if "otherwise" in note), "")
    seen = {text for _, a, b in judge.asked for text in (a, b)}
    assert len(seen - written) <= int((re.findall(r"reads (\d+)", differ) or ["0"])[0]) and seen & written


def test_the_same_seed_gives_the_same_contest_and_another_seed_other_answers(models: dict[str, str], tmp_path: Path) -> None:
    pair = [models["a"], models["b"]]
    runs = [preftune.arena(pair, PROMPTS, Longer(), out=tmp_path / str(i), seed=seed, **FEW) for i, seed in enumerate((0, 0, 1))]
    told = [[line["answers"] for line in stored(run.folder, "answers.jsonl")] for run in runs]
    assert told[0] == told[1] != told[2] and runs[0].standings.winrate == runs[1].standings.winrate


# --- going on ---------------------------------------------------------------------------------------------------------------------------


def test_an_interrupted_contest_goes_on_and_asks_nothing_twice(models: dict[str, str], tmp_path: Path) -> None:
    whole = Longer()
    undisturbed = preftune.arena(list(models.values()), PROMPTS, whole, out=tmp_path / "whole", **FEW)
    first, second = Interrupted(2), Interrupted(-1)
    with pytest.raises(KeyboardInterrupt):
        preftune.arena(list(models.values()), PROMPTS, first, out=tmp_path / "out", **FEW)
    answered = (tmp_path / "out" / "answers.jsonl").read_bytes()
    gone_on = preftune.arena(list(models.values()), PROMPTS, second, out=tmp_path / "out", **FEW)
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == answered  # nothing was sampled again
    assert sorted(first.asked + second.asked) == sorted(whole.asked) and first.asked and second.asked
    assert gone_on.standings.winrate == undisturbed.standings.winrate and gone_on.judge_calls == undisturbed.judge_calls


def test_a_finished_contest_is_told_again_without_asking(models: dict[str, str], tmp_path: Path) -> None:
    pair = [models["a"], models["b"]]
    once = preftune.arena(pair, PROMPTS, Longer(), out=tmp_path / "out", **FEW)
    silent = Longer()
    again = preftune.arena(pair, PROMPTS, silent, out=tmp_path / "out", **FEW)
    assert silent.asked == [] and again.standings == once.standings


def test_lines_that_a_kill_cut_short_are_made_again(models: dict[str, str], tmp_path: Path) -> None:
    pair, out = [models["a"], models["b"]], tmp_path / "out"
    once = preftune.arena(pair, PROMPTS, Longer(), out=out, **FEW)
    for name in ("answers.jsonl", "verdicts.jsonl"):
        text = (out / name).read_bytes()
        (out / name).write_bytes(text[:-20])
    again = preftune.arena(pair, PROMPTS, Longer(), out=out, **FEW)
    assert again.standings == once.standings and len(stored(out, "answers.jsonl")) == 10 and len(stored(out, "verdicts.jsonl")) == 5


def test_a_contest_that_was_killed_repeats_only_the_questions_in_flight(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    command = [sys.executable, "-m", "preftune", "arena", *models.values(), "--prompts", "prompts.jsonl", "--judge", "test_contest:killed"]
    command += ["--out", "out", "--max-new-tokens", "6", "--bootstrap", "20", "--json"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    ran = [subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200) for _ in range(2)]
    assert ran[0].returncode == -signal.SIGKILL and ran[1].returncode == 0, ran[1].stderr
    asked = (tmp_path / "asked.txt").read_text().splitlines()
    stored_calls = sum(line["asked"] for line in stored(tmp_path / "out", "verdicts.jsonl"))
    assert json.loads(ran[1].stdout)["judge_calls"] == stored_calls == len(set(asked))
    assert 0 < len(asked) - len(set(asked)) <= 10  # one pair of models, five prompts, two orders


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"seed": 1}, "seed"), ({"samples": 2}, "samples"), ({"decoding": {"max_new_tokens": 7}}, "decoding"), ({"rows": 3}, "prompts")],
    ids=str,
)
def test_a_folder_of_another_contest_is_refused(models: dict[str, str], tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    pair = [models["a"], models["b"]]
    preftune.arena(pair, PROMPTS, Longer(), out=tmp_path / "out", **FEW)
    with pytest.raises(PreftuneError, match=f"another|other {said}"):
        preftune.arena(pair, PROMPTS, Longer(), out=tmp_path / "out", **{**FEW, **changed})


def test_a_model_that_changed_since_is_refused(tmp_path: Path) -> None:
    pair = [str(tiny_folder(tmp_path / name, seed=i, layers=1)) for i, name in enumerate("ab")]
    preftune.arena(pair, PROMPTS, Longer(), out=tmp_path / "out", **FEW)
    tiny_folder(tmp_path / "b", seed=9, layers=1)
    with pytest.raises(PreftuneError, match="other models"):
        preftune.arena(pair, PROMPTS, Longer(), out=tmp_path / "out", **FEW)


# --- prompts apart from training ----------------------------------------------------------------------------------------------------------


def trained(folder: Path, data: Any, *, seed: int = 0, base: str = "somewhere", **config: Any) -> str:
    """A model folder as a run leaves it."""
    tiny_folder(folder / "model", seed=seed, layers=1)
    written = {"method": "dpo", "model": base, "data": data, "test": None, "read": {}, "objects": [], "seed": 0, "hyperparameters": {}}
    (folder / "config.json").write_text(json.dumps(written | config))
    return str(folder / "model")


def pairs_file(path: Path, prompts: list[dict[str, Any]]) -> str:
    rows = [{"prompt": row["prompt"], "chosen": "yes", "rejected": "no"} for row in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_that_a_run_trained_on_are_left_out_and_told(models: dict[str, str], tmp_path: Path) -> None:
    """Other blanks do not make another prompt; the model's name is its run's."""
    seen = pairs_file(tmp_path / "train.jsonl", [{"prompt": PROMPTS[1]["prompt"] + "  "}, PROMPTS[3], {"prompt": "something else"}])
    found = preftune.arena([models["a"], trained(tmp_path / "mine", seen)], PROMPTS, Longer(), out=tmp_path / "out", **FEW)
    assert found.standings.names == ("a", "mine") and found.standings.prompts == 3
    assert found.overlap["rows"] == found.overlap["left_out"] == 2
    assert any("2 of 5 prompts are in" in note and "left out" in note for note in found.notes)
    assert {line["id"] for line in stored(found.folder, "answers.jsonl")} == {"p0", "p2", "p4"}


def test_prompts_that_were_trained_on_can_be_kept_and_are_told_all_the_same(models: dict[str, str], tmp_path: Path) -> None:
    model = trained(tmp_path / "mine", pairs_file(tmp_path / "train.jsonl", PROMPTS[:2]))
    found = preftune.arena([models["a"], model], PROMPTS, Longer(), out=tmp_path / "out", keep_overlap=True, **FEW)
    assert found.standings.prompts == 5 and found.overlap == {"rows": 2, "left_out": 0, "by_source": found.overlap["by_source"]}
    assert any("2 of 5" in note and "kept" in note for note in found.notes)
    assert "part of a win may be memory" in found.report.read_text()


def test_training_prompts_of_ancestors_and_of_named_data_count_too(models: dict[str, str], tmp_path: Path) -> None:
    old = trained(tmp_path / "old", pairs_file(tmp_path / "first.jsonl", PROMPTS[:1]))
    new = trained(tmp_path / "new", pairs_file(tmp_path / "second.jsonl", PROMPTS[1:2]), base=old, seed=1)
    named = pairs_file(tmp_path / "third.jsonl", PROMPTS[2:3])
    found = preftune.arena([models["a"], new], PROMPTS, Longer(), out=tmp_path / "out", train_data=[named], **FEW)
    assert list(found.overlap["by_source"].values()) == [1, 1, 1] and found.standings.prompts == 2


def test_what_a_run_held_back_for_testing_was_not_trained_on(models: dict[str, str], tmp_path: Path) -> None:
    """A share of .4 of five prompts is two: three were trained on."""
    data = pairs_file(tmp_path / "train.jsonl", PROMPTS)
    model = trained(tmp_path / "mine", data, test=0.4)
    found = preftune.arena([models["a"], model], PROMPTS, Longer(), out=tmp_path / "out", **FEW)
    held = preftune.load_data(data).split(0.4, 0)[1]
    asked = {line["prompt"] for line in stored(found.folder, "answers.jsonl")}
    assert asked == {record.prompt for record in held} and len(asked) == 2


def test_training_data_that_cannot_be_read_are_told(models: dict[str, str], tmp_path: Path) -> None:
    gone, memory = trained(tmp_path / "gone", str(tmp_path / "nowhere.jsonl")), trained(tmp_path / "memory", None, objects=["data"], seed=4)
    found = preftune.arena([gone, memory], PROMPTS, Longer(), out=tmp_path / "out", **FEW)
    assert found.standings.prompts == 5
    for run in ("gone", "memory"):
        assert any(f"what run {run} trained on cannot be read" in note for note in found.notes)


def test_prompts_that_were_all_trained_on_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    model = trained(tmp_path / "mine", pairs_file(tmp_path / "train.jsonl", PROMPTS))
    with pytest.raises(PreftuneError, match="all 5 prompts were trained on .*needed prompts that no model has seen"):
        preftune.arena([models["a"], model], PROMPTS, Longer(), out=tmp_path / "out", **FEW)


def test_a_prompt_that_comes_twice_is_asked_once_and_rows_limit_the_distinct_ones(models: dict[str, str], tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"]} for row in PROMPTS]
    found = preftune.arena([models["a"], models["b"]], [rows[0], *rows], Longer(), out=tmp_path / "out", rows=3, **FEW)
    assert found.standings.prompts == 3 and any(note.startswith("1 rows repeat a prompt") for note in found.notes)


def test_a_folder_beside_another_config_is_no_run(models: dict[str, str], tmp_path: Path) -> None:
    assert run_of(Path(models["a"])) is None and run_of(tmp_path / "absent") is None
    trained(tmp_path / "mine", "x.jsonl")
    (tmp_path / "mine" / "config.json").write_text("{not json")
    assert run_of(tmp_path / "mine" / "model") is None


# --- bad input --------------------------------------------------------------------------------------------------------------------------


def test_a_single_model_one_given_twice_and_one_that_is_not_there_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    for given, said in (
        ([models["a"]], "found 1 model"),
        (models["a"], "found 1 model"),
        ([models["a"], models["a"] + "/."], "given twice"),
        ({"x": models["a"], "y": models["a"]}, "given twice"),
        ([models["a"], str(tmp_path / "absent")], "not there"),
        ([models["a"], preftune.policies.tabular.TabularPolicy(torch.zeros(3))], "needed language models"),
    ):
        with pytest.raises(PreftuneError, match=said):
            preftune.arena(given, PROMPTS, Longer(), out=tmp_path / "out", **FEW)
    assert not (tmp_path / "out").exists()  # nothing was begun


def test_models_of_one_name_are_told_apart_by_their_places(tmp_path: Path) -> None:
    same = [str(tiny_folder(tmp_path / part / "tiny", seed=i, layers=1)) for i, part in enumerate("xy")]
    assert list(entrants(same)) == same


def test_wrong_numbers_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    for wrong in ({"samples": 0}, {"rows": 0}, {"bootstrap": -1}):
        with pytest.raises(PreftuneError, match=f"{next(iter(wrong))} is"):
            preftune.arena([models["a"], models["b"]], PROMPTS, Longer(), out=tmp_path / "out", **{**FEW, **wrong})


@pytest.mark.parametrize(
    ("judge", "said"), [(Constant(1.7), r"answered 1.7 to row p0#0, needed P\("), (Constant(-1), "answered -1"), (object(), "prefer")]
)
def test_a_judge_that_gives_no_probabilities_is_refused(models: dict[str, str], tmp_path: Path, judge: Any, said: str) -> None:
    with pytest.raises(PreftuneError, match=said):
        preftune.arena([models["a"], models["b"]], PROMPTS, judge, out=tmp_path / "out", **FEW)


def test_a_judge_that_answers_nothing_is_said_at_the_end(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="left every comparison open"):
        preftune.arena([models["a"], models["b"]], PROMPTS, Constant(float("nan")), out=tmp_path / "out", **FEW)


def test_verdicts_that_are_missing_are_counted(models: dict[str, str], tmp_path: Path) -> None:
    class Sometimes(Longer):
        def prefer(self, rows: Any, a: Any, b: Any, key: Any) -> Tensor:
            found = super().prefer(rows, a, b, key)
            found[[row.startswith("p1") for row in rows.id]] = float("nan")
            return found

    found = preftune.arena([models["a"], models["b"]], PROMPTS, Sometimes(), out=tmp_path / "out", **FEW)
    assert found.standings.open == 1 and any("left 1 of 5 comparisons open" in note for note in found.notes)
    assert [line["first"] for line in stored(found.folder, "verdicts.jsonl") if line["id"] == "p1"] == [[None]]


def test_empty_answers_are_judged_and_counted_and_equal_ones_are_ties(models: dict[str, str], tmp_path: Path) -> None:
    pair, out = [models["a"], models["b"]], tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        preftune.arena(pair, PROMPTS, Interrupted(0), out=out, **FEW)
    told = stored(out, "answers.jsonl")
    for line, text in zip(told, ["", "", "word", "long word", "x", "", "word", "word", "long word", "y"], strict=True):
        line["answers"] = [text]
    (out / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    judge = Interrupted(-1)
    found = preftune.arena(pair, PROMPTS, judge, out=out, **FEW)
    assert any("2 of 5 answers of a are empty" in note for note in found.notes) and found.models["b"]["empty"] == 1
    assert found.standings.equal == 3 and found.judge_calls == 4  # "" and "", "word" and "word" are not asked about
    assert ("p1#0", "", "word") in judge.asked and ("p1#0", "word", "") in judge.asked


def test_an_empty_file_of_prompts_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(PreftuneError):
        preftune.arena([models["a"], models["b"]], str(tmp_path / "none.jsonl"), Longer(), out=tmp_path / "out", **FEW)


def test_a_folder_that_holds_a_run_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PreftuneError, match="holds something else"):
        preftune.arena([models["a"], models["b"]], PROMPTS, Longer(), out=tmp_path, **FEW)


# --- the command line -------------------------------------------------------------------------------------------------------------------


def test_the_command_prints_tables_sentences_and_json(preftune: Run, models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    given = ("arena", f"one={models['a']}", f"two={models['b']}", "--prompts", "prompts.jsonl", "--judge", "test_contest:longer")
    given += ("--out", "out", "--max-new-tokens", "6", "--bootstrap", "20")
    code, said, progress = preftune(*given)
    assert code == 0 and "Nash mixture" in said and "one" in said and "report  out/report.html" in said
    assert "two: 5 of 5 prompts answered" in progress and "one and two: 5 prompts judged" in progress
    code, said, _ = preftune(*given, "--json")
    found = json.loads(said)
    assert code == 0 and found["standings"]["names"] == ["one", "two"] and found["overlap"]["rows"] == 0
    code, _, complaint = preftune(*given[:1], "one=x", "one=y", *given[3:])
    assert code == 3 and "one is given twice" in complaint
    code, _, complaint = preftune(*given[:5], "--judge", "nobody")
    assert code == 3 and "nobody" in complaint


def test_an_interrupted_command_says_that_it_can_go_on(preftune: Run, models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    given = ("arena", *models.values(), "--prompts", "prompts.jsonl", "--judge", "test_contest:interrupted", "--out", "out")
    code, _, said = preftune(*given, "--max-new-tokens", "6", "--bootstrap", "20")
    assert code == 130 and "the same command with the same --out goes on" in said
    assert len(stored(tmp_path / "out", "answers.jsonl")) == 15


def test_a_judge_with_another_fingerprint_needs_another_folder(models: dict[str, str], tmp_path: Path) -> None:
    class Marked(Longer):
        def __init__(self, mark: str) -> None:
            super().__init__()
            self.mark = mark

        def fingerprint(self) -> str:
            return self.mark

    pair = [models["a"], models["b"]]
    preftune.arena(pair, PROMPTS, Marked("one"), out=tmp_path / "out", **FEW)
    with pytest.raises(PreftuneError, match="other judge_stamp"):
        preftune.arena(pair, PROMPTS, Marked("two"), out=tmp_path / "out", **FEW)
