"""The command line as a user meets it: what is printed, what is written, how a mistake is answered."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from all_facts import merged
from conftest import Run
from preftune import methods
from preftune.api import prepare
from preftune.cli import VERBS, output
from preftune.data.synthetic import arithmetic
from preftune.registry import lookup, parse, resolve_method, signature_of, split_settings
from preftune.training import TrainConfig
from preftune.types import PreftuneError
from text_fixtures import tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": r.prompt, "chosen": r.responses[0], "rejected": r.responses[1]} for r in arithmetic(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


# --- the frame ------------------------------------------------------------------------------------------------------


def test_help_names_every_verb_and_the_exit_codes(preftune: Run) -> None:
    code, said, _ = preftune("--help")
    assert code == 0
    assert all(re.search(rf"\b{verb}\b", said) for verb in VERBS)
    assert "130 interrupted" in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(preftune: Run, verb: str) -> None:
    code, said, _ = preftune(verb, "--help")
    assert code == 0 and f"preftune {verb}" in said


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["show", "--no-such-option"], ["copy"], ["play", "egpo", "--steps", "many"], []])
def test_wrong_usage_ends_with_2(preftune: Run, arguments: list[str]) -> None:
    assert preftune(*arguments)[0] == 2


def test_a_misspelt_verb_is_answered_with_the_right_one(preftune: Run) -> None:
    assert "train" in preftune("trian")[2]


def test_bad_input_ends_with_3_and_says_found_needed_and_what_to_do(preftune: Run) -> None:
    code, said, complaint = preftune("show", "dop")
    assert (code, said) == (3, "")
    assert [line.split()[0] for line in complaint.splitlines()] == ["found", "needed", "do"]
    assert "'dop'" in complaint and "did you mean dpo" in complaint and "Traceback" not in complaint


def test_bad_input_under_json_is_one_object(preftune: Run) -> None:
    code, said, _ = preftune("show", "dop", "--json")
    error = json.loads(said)
    assert code == error["exit"] == 3
    assert error["found"] == "there is no method 'dop'" and error["do"].startswith("did you mean dpo")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("beta is -1, needed a number above 0; raise it", {"found": "beta is -1", "needed": "a number above 0", "do": "raise it"}),
        (
            "'x' is not a game; needed one of rps, dice; pick one",
            {"found": "'x' is not a game", "needed": "one of rps, dice", "do": "pick one"},
        ),
        ("the reference is kept, but none was given; a; b", {"found": "the reference is kept, but none was given", "do": "a; b"}),
        ("alone", {"found": "alone"}),
    ],
)
def test_an_error_splits_into_its_parts(message: str, expected: dict[str, str]) -> None:
    assert output.parts(message) == expected


# --- names and settings ---------------------------------------------------------------------------------------------


def test_an_alias_is_its_method() -> None:
    assert all(resolve_method(alias) is methods.METHODS[name] for alias, name in methods.ALIASES.items())


def test_lookup_proposes_near_names_only() -> None:
    with pytest.raises(PreftuneError, match="did you mean simpo"):
        lookup("smpo", methods.METHODS, "method")
    with pytest.raises(PreftuneError) as told:
        lookup("zzzzzz", methods.METHODS, "method")
    assert "did you mean" not in str(told.value)


def declared(
    flag: bool = False,
    count: int = 1,
    rate: float = 0.1,
    limit: float | None = None,
    kind: Literal["mean", "sum"] = "mean",
    layers: str | int = "auto",
    either: int | Literal["round"] = "round",
) -> None:
    """Settings of every kind."""


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("flag", "true", True),
        ("flag", "No", False),
        ("flag", True, True),
        ("count", "12", 12),
        ("count", "-1_000", -1000),
        ("rate", "1e-6", 1e-6),
        ("rate", "3", 3.0),
        ("rate", 2, 2.0),
        ("rate", "inf", float("inf")),
        ("limit", "none", None),
        ("limit", None, None),
        ("limit", ".5", 0.5),
        ("kind", "sum", "sum"),
        ("layers", "4", 4),
        ("layers", "lora", "lora"),
        ("either", "round", "round"),
        ("either", "3", 3),
    ],
)
def test_a_setting_is_read_by_its_annotation(name: str, given: Any, expected: Any) -> None:
    read = parse(given, signature_of(declared)[name])
    assert read == expected and type(read) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "needed"),
    [
        ("flag", "maybe", "true or false"),
        ("count", "1.5", "a whole number"),
        ("count", True, "a whole number"),
        ("rate", "nan", "a number"),
        ("rate", "1e", "a number"),
        ("limit", "small", "a number or none"),
        ("kind", "max", "one of mean, sum"),
        ("either", "step", "one of round or a whole number"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(name: str, given: Any, needed: str) -> None:
    with pytest.raises(PreftuneError, match=f"{name} is {given!r}, needed {needed}"):
        parse(given, signature_of(declared)[name])


def test_settings_go_to_the_method_first_and_to_training_otherwise() -> None:
    assert split_settings(methods.dpo, TrainConfig, {"beta": "0.2", "lr": "1e-5", "steps": "none"}) == (
        {"beta": 0.2},
        {"lr": 1e-5, "steps": None},
    )


def test_a_name_in_neither_half_is_refused_with_a_suggestion() -> None:
    with pytest.raises(PreftuneError, match="did you mean beta"):
        split_settings(methods.dpo, TrainConfig, {"betta": "0.2"})


def test_a_name_in_both_halves_is_refused() -> None:
    def clashing(lr: float = 0.1) -> None: ...

    with pytest.raises(PreftuneError, match="'lr' is a hyperparameter of clashing and a training setting"):
        split_settings(clashing, TrainConfig, {"lr": "1"})


def test_no_shipped_method_clashes_with_the_training_settings() -> None:
    for function in methods.METHODS.values():
        split_settings(function, TrainConfig, {name: one.default for name, one in signature_of(function).items()})


MINE = """
from functools import partial
from preftune.collect.draw import given
from preftune.objectives.pairwise import dpo
from preftune.reference import frozen
from preftune.types import Method
from preftune.update import plain

def method(beta: float = 0.3) -> Method:
    return Method(partial(dpo, beta=beta), given, frozen, plain)

def number(x: int = 3) -> int:
    return x
"""


def test_a_method_from_outside_is_found_by_module_and_by_file(preftune: Run, tmp_path: Path) -> None:
    (tmp_path / "outsiders").mkdir()
    (tmp_path / "outsiders" / "mine.py").write_text(MINE)
    assert prepare("outsiders.mine:method", {"beta": "0.5"}).hyperparameters == {"beta": 0.5}
    code, said, _ = preftune("show", "outsiders/mine.py:method", "--json")
    assert code == 0 and json.loads(said)["hyperparameters"]["beta"]["default"] == 0.3


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("outside_mine:methd", "did you mean method"),
        ("outside_mine:number", "returned int"),
        ("nowhere.mine:method", "no package 'nowhere'"),
        ("json.tool.x:method", "no package 'json.tool'"),
        ("missing.py:method", "no file 'missing.py'"),
        ("not-a-name:method", "not a place of a function"),
        ("math:sqrt", "has no function 'sqrt'"),
    ],
)
def test_a_place_that_holds_no_method_is_explained(preftune: Run, tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "outside_mine.py").write_text(MINE)
    code, _, complaint = preftune("show", place, "--set", "x=4") if "number" in place else preftune("show", place)
    assert code == 3 and said in " ".join(complaint.split())


# --- verbs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*methods.METHODS, *methods.ALIASES])
def test_show_describes_every_method(preftune: Run, name: str) -> None:
    code, said, _ = preftune("show", name)
    assert code == 0 and "arXiv" in said or name in ("sft", "nll")
    facts = json.loads(preftune("show", name, "--json")[1])
    assert set(facts["hyperparameters"]) == set(signature_of(resolve_method(name)))
    assert facts["about"] and "composition" in facts


def test_show_prints_formula_needs_and_relatives(preftune: Run) -> None:
    said = preftune("show", "rpo")[1]
    assert "loss = -(1-e) logsigmoid(h)" in said and "seq_sum" in said  # of both terms
    assert re.search(r"objective\s+dpo \+ nll", said) and re.search(r"labels\s+ranked", said) and re.search(r"relatives: .*dpo", said)


def test_show_without_a_method_lists_all(preftune: Run) -> None:
    assert set(json.loads(preftune("show", "--json")[1])) == set(methods.METHODS)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_copied_method_is_the_method(preftune: Run, tmp_path: Path, name: str) -> None:
    file = tmp_path / f"copy_of_{name.replace('-', '_')}.py"
    assert preftune("copy", name, file)[0] == 0
    assert "from ." not in file.read_text()
    function = methods.METHODS[name]
    ours = resolve_method(f"{file}:{function.__name__}")
    settings = merged("SETTINGS").get(name, {})
    a, b = prepare(function, settings).method, prepare(ours, settings).method
    assert ours.__code__.co_code == function.__code__.co_code and (a.collect_every, a.recipe) == (b.collect_every, b.recipe)


def test_copy_replaces_nothing_unasked(preftune: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("precious")
    assert preftune("copy", "dpo", "mine.py")[0] == 3
    assert (tmp_path / "mine.py").read_text() == "precious"
    assert preftune("copy", "dpo", "mine.py", "--force")[0] == 0
    assert preftune("copy", "dpo", "my-dpo.py")[0] == 3


def test_play_shows_that_egpo_arrives_where_self_play_circles(preftune: Run) -> None:
    egpo = json.loads(preftune("play", "egpo", "--beta", "0.01", "--steps", "300", "--json")[1])
    plain = json.loads(
        preftune("play", "online-ipo", "--beta", "0.01", "--set", "pairs=uniform", "--eta", "1", "--steps", "300", "--json")[1]
    )
    assert egpo["gap"][-1] < 1e-9 and len(egpo["gap"]) == 301
    assert plain["gap"][-1] > 0.1 and plain["arrived"] is None
    assert egpo["policy"] == pytest.approx(egpo["equilibrium"], abs=1e-4)


@pytest.mark.parametrize("suffix", [".svg", ".html", ".csv"])
def test_play_draws(preftune: Run, tmp_path: Path, suffix: str) -> None:
    code, said, _ = preftune("play", "egpo", "--steps", "20", "--out", f"pictures/gap{suffix}")
    assert code == 0 and "*" in said
    written = (tmp_path / "pictures" / f"gap{suffix}").read_text()
    assert written.count("\n") == 22 if suffix == ".csv" else "<polyline" in written


def test_play_refuses_what_it_cannot_do(preftune: Run) -> None:
    assert "did you mean" in preftune("play", "egpo", "--set", "opponent=2")[2]
    assert "name=value" in preftune("play", "egpo", "--set", "beta")[2]
    assert "twice" in preftune("play", "egpo", "--set", "responses=2", "--set", "responses=3")[2]
    assert ".svg" in preftune("play", "egpo", "--out", "gap.pdf")[2]
    assert preftune("play", "egpo", "--beta", "0")[0] == 3
    assert preftune("play", "egpo", "--game", "chess")[0] == 3
    for entry in ("egpo,eta", "egpo,eta=0.5,", "egpo,,eta=1"):
        assert "for instance egpo,eta=0.5" in preftune("play", entry)[2]
    for name in ("method", "game", "steps", "seed", "exact"):
        assert [preftune("play", *how)[0] for how in ((f"egpo,{name}=3",), ("egpo", "--set", f"{name}=3"))] == [3, 3]
    code, _, said = preftune("play", "egpo", "--steps", "1", "--out", "/dev/null/gap.svg")
    assert code == 3 and "cannot be written" in said


def test_a_curve_spans_all_values() -> None:
    drawn = output.curves({"one": [10 ** (-k / 10) for k in range(101)]}, width=40, height=11).splitlines()
    assert drawn[0].startswith("    1e0 |*") and drawn[10].startswith("  1e-10 |") and drawn[10].rstrip().endswith("*")
    marked = [line.count("*") for line in drawn[:11]]
    assert min(marked) >= 1 and drawn[-1].split() == ["0", "100"]


def test_doctor_knows_packages_devices_and_the_cache(preftune: Run) -> None:
    facts = json.loads(preftune("doctor", "--json")[1])
    assert facts["required"]["torch"] and facts["required"]["transformers"]
    assert facts["devices"][-1]["device"] == "cpu" and facts["disk"]["free_bytes"] > 0
    assert all(one["version"] or one["get"] for one in facts["optional"].values())
    assert preftune("doctor")[0] == 0


def test_data_check_prints_and_counts(preftune: Run, pairs: Path, model: Path) -> None:
    code, said, _ = preftune("data", "check", pairs)
    assert code == 0 and "24 here; 24 read, 24 kept" in said
    facts = json.loads(preftune("data", "check", pairs, "--test", pairs, "--model", model, "--max-response", "1", "--json")[1])
    assert facts["rows"] == 24 and facts["leakage"]["prompts"] == 24 and facts["truncated"]["response"] == 1.0
    assert facts["warnings"]


def test_data_check_renames_columns(preftune: Run, tmp_path: Path) -> None:
    (tmp_path / "theirs.jsonl").write_text('{"question": "1 + 1 =", "good": " 2", "bad": " 3"}\n')
    code, said, _ = preftune(
        "data", "check", "theirs.jsonl", "--rename", "question=prompt", "--rename", "good=chosen", "--rename", "bad=rejected"
    )
    assert code == 0 and "1 read, 1 kept" in said
    assert "did you mean strict" in preftune("data", "check", "theirs.jsonl", "--read", "strikt=true")[2]


def options(**values: object) -> list[object]:
    return list(itertools.chain.from_iterable((f"--{name}", value) for name, value in values.items()))


def test_train_evaluate_generate_and_report_go_hand_in_hand(preftune: Run, model: Path, pairs: Path, tmp_path: Path) -> None:
    small = ["--set", "batch=8", "--set", "lr=1e-3", "--load", "dtype=float32"]
    code, said, _ = preftune("train", "dpo", *options(model=model, data=pairs, test="0.25", out="run", samples=1), *small, "--json")
    run = json.loads(said)
    assert code == 0 and run["stopped"] == "finished" and run["evaluation"]["after"]["accuracy"]["value"] is not None
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["lr"] == 1e-3

    found = json.loads(preftune("evaluate", run["model"], "--data", pairs, "--against", model, "--json")[1])
    assert 0 <= found["accuracy"]["value"] <= 1 and found["accuracy"]["low"] <= found["accuracy"]["high"]
    assert "accuracy" in preftune("evaluate", run["model"], "--data", pairs, "--rows", "4")[1]

    asked = ("generate", run["model"], "--prompt", "1 + 2 =", "--n", "2", "--max-new-tokens", "4", "--seed", "3")
    once, again = (json.loads(preftune(*asked, "--json")[1]) for _ in range(2))
    assert once == again and len(once["answers"][0]["responses"]) == 2
    assert preftune(*asked)[1].startswith("> 1 + 2 =")

    (tmp_path / "run" / "report.html").unlink()
    assert preftune("report", "run")[0] == 0 and (tmp_path / "run" / "report.html").stat().st_size > 1000
    assert "holds a run already" in preftune("train", "dpo", *options(model=model, data=pairs, out="run"))[2]
    assert "keeps its settings" in preftune("train", "--resume", "run", "--set", "lr=1")[2]
    assert "was made with dpo" in preftune("train", "ipo", "--resume", "run")[2]


def test_train_from_yaml_where_the_command_line_wins(preftune: Run, model: Path, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"method: ipo\nmodel: {model}\ndata: {pairs}\ntau: 0.5\nlr: 1e-5\nsteps: 3\nload: {{train: 1}}\n")
    plan = json.loads(preftune("train", "--config", "run.yaml", "--set", "steps=2", "--dry-run", "--json")[1])
    assert plan["steps"] == 2 and plan["train"]["lr"] == 1e-5 and plan["hyperparameters"] == {"tau": 0.5}
    assert plan["parameters"] < 20_000  # the last layer alone
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(preftune: Run, model: Path, pairs: Path, tmp_path: Path) -> None:
    what = ["dpo", *options(model=model, data=pairs, out="run", samples=0), "--set", "steps=100000", "--set", "save_every=0"]
    running = subprocess.Popen(
        [sys.executable, "-m", "preftune", "train", *map(str, what)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") > 3:
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 130 and "preftune train --resume run" in said
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_an_adapter_is_trained_and_merged(preftune: Run, model: Path, pairs: Path, tmp_path: Path) -> None:
    how = ["--load", "train=lora", "--load", "lora_r=2", "--set", "steps=1", "--set", "batch=4"]
    code, said, _ = preftune("train", "sft", *options(model=model, data=pairs, out="run", samples=0), *how)
    assert code == 0 and "run/model" in said and (tmp_path / "run" / "model" / "adapter_config.json").exists()
    assert preftune("merge", "run/model", "merged")[0] == 0
    assert (tmp_path / "merged" / "model.safetensors").exists() and not (tmp_path / "merged" / "adapter_config.json").exists()
    assert preftune("merge", model, "again")[0] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "dpo"], "no model was given"),
        (["train"], "no method was given"),
        (["train", "dpo", "--model", "MODEL"], "no data was given"),
        (["train", "dpo", "--model", "MODEL", "--data", "missing.jsonl"], "found no such file"),
        (["train", "dpo", "--model", "no-such-folder/at-all", "--data", "DATA"], "no-such-folder"),
        (["train", "dpo", "--model", "MODEL", "--data", "DATA", "--set", "beta=0"], "beta is 0"),
        (["train", "dpo", "--model", "MODEL", "--data", "DATA", "--set", "betta=1"], "did you mean beta"),
        (["train", "dpo", "--model", "MODEL", "--data", "DATA", "--set", "lr=fast"], "lr is 'fast' needed a number"),
        (["train", "dpo", "--model", "MODEL", "--data", "DATA", "--set", "progress=1"], "--set sets 'progress'"),
        (["train", "dpo", "--model", "MODEL", "--data", "DATA", "--load", "trian=lora"], "did you mean train"),
        (["train", "egpo", "--model", "MODEL", "--data", "DATA"], "judge"),
        (["train", "dpo", "--config", "missing.yaml"], "no file missing.yaml"),
        (["train", "--resume", "missing"], "missing has no config.json"),
        (["generate", "MODEL"], "exactly one"),
        (["report", "missing"], "no folder missing"),
    ],
)
def test_a_mistake_is_answered_in_words(preftune: Run, model: Path, pairs: Path, arguments: list[str], said: str) -> None:
    code, _, complaint = preftune(*({"MODEL": model, "DATA": pairs}.get(word, word) for word in arguments))
    assert code == 3 and said in " ".join(complaint.split()), complaint


@pytest.mark.parametrize(
    ("text", "said"),
    [("- a\n- b\n", "holds list"), ("a: [1", "is not YAML"), ("load: lora\n", "has load: 'lora'"), ("resume: true\n", "sets 'resume'")],
)
def test_a_settings_file_that_is_none_is_refused(preftune: Run, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    code, _, complaint = preftune("train", "--config", "bad.yaml")
    assert code == 3 and said in " ".join(complaint.split())


@dataclass(frozen=True)
class Config:
    """Training settings of a test."""

    lr: float = 0.1


def test_fields_of_any_dataclass_are_settings() -> None:
    assert split_settings(methods.dpo, Config, {"lr": "2"}) == ({}, {"lr": 2.0})
