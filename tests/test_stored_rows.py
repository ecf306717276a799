"""Rows that a run collected: shown, exported, trained on again; kept by steps where that is asked for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Run
from preftune import api, training
from preftune.collect import store
from preftune.data import load
from preftune.data.columns import Record
from preftune.data.export import kind_of, seen, trl
from preftune.policies.tabular import TableResponses
from preftune.policies.text.tokens import encode
from preftune.types import PreftuneError, Rows
from text_fixtures import tiny_folder, tiny_tokenizer

OUTSIDE = Path(__file__).with_name("outside.py")
PROMPTS: list[dict[str, Any]] = [
    {"id": "plain", "prompt": "Say something."},
    {"id": "chat", "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c?"}]},
    {"id": "system", "prompt": "Say it again.", "system": "You are a list."},
    {"id": "blank", "prompt": " two words "},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, prompts, and three runs: win rates of five answers by rounds, pairs by rounds, two draws a step."""
    folder = tmp_path_factory.mktemp("world")
    tiny_folder(folder / "model", layers=1)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    begin(folder, "sppo", rounds=2)
    begin(folder, f"{OUTSIDE}:by_rounds", "pairs", rounds=2)
    begin(folder, "egpo", steps=2, keep_rows=True)
    return folder


def begin(world: Path, method: str, name: str | None = None, **settings: Any) -> api.Run:
    given = {"judge": f"{OUTSIDE}:vowels", "batch": 4, "lr": 1e-3, "progress": False, "samples": 0, "load": {"train": "full"}}
    given |= {"max_response": 8, "out": world / (name or method)}
    return api.train(str(world / "model"), method, str(world / "prompts.jsonl"), **{**given, **settings})


def rows_of(run: Path, number: int = 0) -> Rows:
    return store.read(store.path(run / "rounds", number), tiny_tokenizer())


# --- shown ----------------------------------------------------------------------------------------------------------


def test_a_rounds_rows_are_shown_with_prompts_as_they_were_given(world: Path, preftune: Run) -> None:
    code, out, _ = preftune("data", "show", world / "sppo", "--rows", 4, "--round", 0, "--json")
    shown = json.loads(out)
    assert code == 0 and shown["of"] == 4
    both = [{"role": "system", "content": "You are a list."}, {"role": "user", "content": "Say it again."}]
    given = {row["id"]: both if row["id"] == "system" else row["prompt"] for row in PROMPTS}
    assert {row["id"]: row["prompt"] for row in shown["rows"]} == given
    stored = rows_of(world / "sppo")
    for b, row in enumerate(shown["rows"]):
        assert row["round"] == 0 and [answer["text"] for answer in row["responses"]] == stored.response.show()[b]
        assert [answer["winrate"] for answer in row["responses"]] == stored.winrate[b].tolist()  # type: ignore[index]
        assert [answer["logp"] for answer in row["responses"]] == [sum(logp) for logp in stored.response.logp[b]]
        assert sum(answer["trained"] for answer in row["responses"]) == 2, "the best and the worst of five"


def test_the_last_round_is_shown_unless_another_is_asked_for(world: Path, preftune: Run) -> None:
    code, out, _ = preftune("data", "show", world / "sppo", "--rows", 1)
    assert code == 0 and "which keeps rounds 0 to 1" in out and "round 1" in out and "round 0" not in out
    assert out.count("winrate") == 5 and out.count("trained True") == 2
    _, out, err = preftune("data", "show", world / "sppo", "--round", 2)
    assert "no rows of round 2" in err and "one of 0 to 1" in err


def test_draws_of_a_step_are_told_apart(world: Path, preftune: Run) -> None:
    _, out, _ = preftune("data", "show", world / "egpo", "--rows", 1, "--round", 0, "--json")
    assert [(row["round"], row["draw"]) for row in json.loads(out)["rows"]] == [(0, 0), (0, 1)]


def test_a_data_file_is_shown_in_the_same_way(world: Path, preftune: Run, tmp_path: Path) -> None:
    (tmp_path / "scored.jsonl").write_text('{"prompt": "2 + 2 =", "responses": ["5", "4"], "scores": [1, 3], "source": "me"}\n')
    _, out, _ = preftune("data", "show", tmp_path / "scored.jsonl", "--json")
    (row,) = json.loads(out)["rows"]
    assert row["responses"] == [{"text": "4", "score": 3.0}, {"text": "5", "score": 1.0}] and row["source"] == "me"
    _, out, _ = preftune("data", "show", world / "prompts.jsonl")
    assert "assistant: b" in out and "system: You are a list." in out and "4 of 4 rows" in out


def test_rows_of_a_table_are_shown_as_numbers_and_not_exported(tmp_path: Path, preftune: Run) -> None:
    rows = Rows(("a",), (0,), TableResponses(torch.tensor([[2, 1]])), prefer=torch.tensor([0.75], dtype=torch.float64))
    store.save(rows, store.path(tmp_path / "run" / "rounds", 0))
    (tmp_path / "run" / "config.json").write_text('{"model": null}')
    _, out, _ = preftune("data", "show", "run", "--json")
    (row,) = json.loads(out)["rows"]
    assert (row["prompt"], row["prefer"], [answer["text"] for answer in row["responses"]]) == (0, 0.75, ["2", "1"])
    code, _, err = preftune("data", "export", "run", "out.jsonl")
    assert code and "numbers of a table" in err and not (tmp_path / "out.jsonl").exists()


def test_beats_pairs_and_labels_of_one_method_are_shown() -> None:
    rows = rows_by_hand(["good", "bad"])
    beats = torch.tensor([[[0.5, 0.9], [0.1, 0.5]]], dtype=torch.float64)
    (row,) = seen(rows.replace(beats=beats, extra={"round": torch.tensor([3])}, weight=torch.tensor([2.0])))
    assert row["beats"] == beats[0].tolist() and row["round"] == 3 and row["weight"] == 2.0


# --- exported -------------------------------------------------------------------------------------------------------


def test_exported_rows_read_again_are_the_same_tokens_with_the_judges_labels(world: Path, preftune: Run, tmp_path: Path) -> None:
    """All five answers of both rounds, best win rate first; what differs in tokens is counted, not hidden."""
    code, out, _ = preftune("data", "export", world / "sppo", "again.jsonl", "--json")
    told = json.loads(out)
    assert code == 0 and told["rows"] == 8
    again = load(tmp_path / "again.jsonl")
    assert len(again) == 8 and again.counts["kept"] == 8
    stored = {f"{name} of {n}": (rows_of(world / "sppo", n), b) for n in (0, 1) for b, name in enumerate(rows_of(world / "sppo", n).id)}
    differ = 0
    for record in again:
        rows, b = stored[record.id]
        encoded, _ = encode([record], tiny_tokenizer())
        assert tuple(encoded.prompt[0]) == tuple(rows.prompt[b])
        order = rows.winrate[b].argsort(descending=True, stable=True).tolist()  # type: ignore[index]
        assert record.scores == rows.winrate[b][order].tolist()  # type: ignore[index]
        assert [rows.response.show()[b][k] for k in order] == record.responses
        mine = [rows.response.tokens[b][k] for k in order]
        differ += any(new not in (old, (*old, 2)) for old, new in zip(mine, encoded.response.tokens[0], strict=True))
        assert record.meta["round"] in (0, 1) and len(record.meta["sampled_logp"]) == 5
    assert differ == told.get("other tokens", 0)
    ended = sum(tokens[-1] == 2 for rows, b in stored.values() for tokens in rows.response.tokens[b])
    assert told["without an end"] == 40 - ended


def test_a_pair_keeps_its_soft_label(world: Path, preftune: Run, tmp_path: Path) -> None:
    preftune("data", "export", world / "pairs", "again.jsonl", "--round", 1)
    rows = rows_of(world / "pairs", 1)
    given = {f"{name} of 1": max(p, 1 - p) for name, p in zip(rows.id, rows.prefer.tolist(), strict=True)}  # type: ignore[union-attr]
    assert {record.id: record.prefer for record in load(tmp_path / "again.jsonl")} == pytest.approx(given)


def test_exported_rows_train_another_method(world: Path, preftune: Run, tmp_path: Path) -> None:
    for name in ("sppo", "egpo"):
        preftune("data", "export", world / name, f"{name}.jsonl")
        run = api.train(
            str(world / "model"),
            "dpo",
            str(tmp_path / f"{name}.jsonl"),
            out=tmp_path / name,
            steps=2,
            batch=2,
            samples=0,
            progress=False,
            load={"train": "full"},
        )
        assert run.stopped == "finished" and run.history[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)


def test_trl_gets_the_best_and_the_worst_as_chats(world: Path, preftune: Run, tmp_path: Path) -> None:
    preftune("data", "export", world / "sppo", "trl.jsonl", "--format", "trl", "--round", 0)
    rows = rows_of(world / "sppo")
    lines = [json.loads(line) for line in (tmp_path / "trl.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    for b, line in enumerate(lines):
        winrate, text = rows.winrate[b], rows.response.show()[b]  # type: ignore[index]
        assert line["chosen"] == [{"role": "assistant", "content": text[int(winrate.argmax())]}]
        assert line["rejected"] == [{"role": "assistant", "content": text[int(winrate.argmin())]}]
        assert line["prompt"][-1]["role"] == "user" and line["score_chosen"] == float(winrate.max())
    again = load(tmp_path / "trl.jsonl")
    assert list(again.formats.values()) == ["preference"]
    assert {len(record.responses) for record in again} == {2}


def rows_by_hand(texts: list[str], **labels: Any) -> Rows:
    record = Record("row", "Say it.", texts)
    return encode([record], tiny_tokenizer())[0].replace(ranked=False, **labels)


def record(responses: list[str], **labels: Any) -> Record:
    return Record("row", "2 + 2 =", responses, **labels)


CASES: dict[str, tuple[Record, list[dict[str, Any]]]] = {
    "a pair": (record(["4", "5"], ranked=True), [{"prompt": "2 + 2 =", "chosen": "4", "rejected": "5"}]),
    "a soft pair": (
        record(["4", "5"], ranked=True, prefer=0.8),
        [{"prompt": "2 + 2 =", "chosen": "4", "rejected": "5", "prefer": 0.8}],
    ),
    "a list out of order": (
        record(["5", "4", "22"], scores=[2.0, 9.0, 1.0]),
        [{"prompt": "2 + 2 =", "chosen": "4", "rejected": "22", "score_chosen": 9.0, "score_rejected": 1.0}],
    ),
    "labels": (
        record(["4", "5"], desirable=[True, False]),
        [{"prompt": "2 + 2 =", "completion": "4", "label": True}, {"prompt": "2 + 2 =", "completion": "5", "label": False}],
    ),
    "a demonstration": (record(["4"]), [{"prompt": "2 + 2 =", "completion": "4"}]),
    "a prompt": (record([]), [{"prompt": "2 + 2 ="}]),
    "a chat": (
        Record("row", "2 + 2 =", ["4"], system="Count."),
        [
            {
                "prompt": [{"role": "system", "content": "Count."}, {"role": "user", "content": "2 + 2 ="}],
                "completion": [{"role": "assistant", "content": "4"}],
            }
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_row_has_its_format_in_trl(name: str, tmp_path: Path) -> None:
    given, expected = CASES[name]
    made = list(trl([given], Counter()))
    assert made == expected
    (tmp_path / "trl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    again = load(tmp_path / "trl.jsonl", format="prompts" if name == "a prompt" else None)
    assert [text for one in again for text in one.responses] == [text for row in made for text in answers(row)]
    assert kind_of(again[0]) == kind_of(given)


def answers(row: dict[str, Any]) -> list[str]:
    found = [row[name] for name in ("chosen", "rejected", "completion") if name in row]
    return [text if isinstance(text, str) else text[0]["content"] for text in found]


def test_a_file_in_which_one_prompt_is_a_chat_has_chats_alone_in_trl(tmp_path: Path, world: Path, preftune: Run) -> None:
    """As Arrow wants it, which TRL reads by."""
    from datasets import load_dataset

    preftune("data", "export", world / "prompts.jsonl", "trl.jsonl", "--format", "trl")
    read = load_dataset("json", data_files=str(tmp_path / "trl.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [turn["role"] for turn in read[0]["prompt"]] == ["user"] and len(read[1]["prompt"]) == 3 and len(read) == 4


def test_ties_and_rows_without_an_order_are_counted_and_kinds_are_not_mixed() -> None:
    counts: Counter[str] = Counter()
    given = [
        record(["4", "5"], ranked=True, prefer=0.5),
        record(["4", "5"], scores=[1.0, 1.0]),
        record(["4", "5"]),
        record(["4", "5"], ranked=True),
    ]
    assert len(list(trl(given, counts))) == 1 and counts == {"tie": 2, "no order": 1}
    with pytest.raises(PreftuneError, match="a row of the kind single after rows of the kind pair, needed one kind in a file; split"):
        list(trl([record(["4", "5"], ranked=True), record(["4"])], counts))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "{world}/model"), "keeps no rows"),
        (("show", "{world}/sppo", "x.jsonl"), "was given a second file"),
        (("show", "{world}/prompts.jsonl", "--rows", 0), "--rows is 0"),
        (("show", "{world}/prompts.jsonl", "--round", 0), "--round was given for"),
        (("show", "{world}/prompts.jsonl", "--model", "{world}/model"), "--model was given for"),
        (("export", "{world}/sppo"), "was given no file to write"),
        (("export", "{world}/prompts.jsonl", "{world}/prompts.jsonl"), "a file that is read"),
        (("export", "{world}/sppo", "{world}"), "a folder"),
        (("export", "{world}/sppo", "out.jsonl", "--round", 9), "no rows of round 9"),
    ],
)
def test_what_cannot_be_shown_or_written_is_refused(arguments: tuple[Any, ...], said: str, world: Path, preftune: Run) -> None:
    code, out, err = preftune("data", *(str(argument).format(world=world) for argument in arguments))
    assert code and not out and said in " ".join(err.split())


def test_a_file_that_was_altered_is_refused(tmp_path: Path) -> None:
    file = store.path(tmp_path, 0)
    store.save(rows_by_hand(["good", "bad"]), file)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(PreftuneError, match="round-0000.pt is corrupt"):
        store.read(file, tiny_tokenizer())


def test_a_run_of_a_model_without_a_name_asks_for_it(tmp_path: Path, world: Path, preftune: Run) -> None:
    """As runs of policies that Python code made, before they have written their model."""
    store.save(rows_by_hand(["good", "bad"], score=torch.tensor([[1.0, 0.0]])), store.path(tmp_path / "run" / "rounds", 0))
    (tmp_path / "run" / "config.json").write_text('{"model": null}')
    code, _, err = preftune("data", "show", "run")
    assert code and "its tokenizer" in " ".join(err.split())
    assert "good" in preftune("data", "show", "run", "--model", world / "model")[1]


def test_empty_answers_are_left_out_and_counted(tmp_path: Path, world: Path, preftune: Run) -> None:
    """An answer that is an end of turn and nothing else cannot be a row of a data file."""
    rows = rows_by_hand(["good", "", "bad"], score=torch.tensor([[1.0, 5.0, 0.0]], dtype=torch.float64))
    store.save(rows, store.path(tmp_path / "run" / "rounds", 0))
    (tmp_path / "run" / "config.json").write_text(
        json.dumps({"method": "sppo", "hyperparameters": {}, "objects": [], "model": str(world / "model")})
    )
    _, out, _ = preftune("data", "export", "run", "out.jsonl", "--json")
    assert json.loads(out) == {"file": "out.jsonl", "rows": 1, "empty response": 1}
    (again,) = load(tmp_path / "out.jsonl")
    assert again.responses == ["good", "bad"] and again.scores == [1.0, 0.0]


# --- steps ----------------------------------------------------------------------------------------------------------


def test_steps_keep_every_draw_and_a_resumed_run_keeps_those_of_the_undisturbed_one(world: Path, tmp_path: Path) -> None:
    """Stopped after a step behind the last checkpoint: what that step drew is drawn again, and is the same."""

    def fail(event: training.Event) -> None:
        if event.step == 3:
            raise RuntimeError("a callback failed")

    settings: dict[str, Any] = {"steps": 4, "save_every": 2, "keep_rows": True, "batch": 2}
    begin(world, "egpo", out=tmp_path / "whole", **settings)
    with pytest.raises(RuntimeError):
        begin(world, "egpo", out=tmp_path / "parts", callbacks=[fail], **settings)
    assert len(list((tmp_path / "parts" / "rows").iterdir())) == 6
    (tmp_path / "parts" / "rows" / ".writing-step-000003-0.pt-1").write_bytes(b"half")
    api.resume(tmp_path / "parts", progress=False)
    whole, parts = ({file.name: file.read_bytes() for file in (tmp_path / run / "rows").iterdir()} for run in ("whole", "parts"))
    assert sorted(whole) == [f"step-00000{step}-{draw}.pt" for step in range(4) for draw in (0, 1)]
    assert whole == parts


def test_files_of_a_shelf_are_in_the_order_in_which_they_were_drawn(tmp_path: Path) -> None:
    for step, draw in ((12, 0), (3, 10), (3, 9), (3, 0)):
        store.step_path(tmp_path, step, draw).touch()
    (tmp_path / "other.pt").touch()
    assert [(step, [int(file.stem[-2:].strip("-")) for file in files]) for step, files in store.files(tmp_path).items()] == [
        (3, [0, 9, 10]),
        (12, [0]),
    ]
    store.forget_steps(tmp_path, since=4)
    assert list(store.files(tmp_path)) == [3]


def test_without_being_asked_steps_keep_nothing(world: Path, tmp_path: Path) -> None:
    begin(world, "egpo", out=tmp_path / "run", steps=1)
    assert not (tmp_path / "run" / "rows").exists()


@pytest.mark.parametrize(
    ("method", "why"), [("sppo", "by rounds, whose rows are kept anyway"), ("dpo", "once: the rows are those of the data")]
)
def test_keeping_rows_is_refused_where_it_would_change_nothing(method: str, why: str, world: Path, tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match=f"keep_rows is set, but this method collects {why}; leave keep_rows out"):
        begin(world, method, out=tmp_path / "run", keep_rows=True)
