"""Every method of the registry trains a language model end to end: three steps of preftune.train on a tiny random Llama.

Rows are made from what a method declares to read, so a method that is added is run without a line here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import preftune
from all_facts import merged
from preftune.api import prepare
from preftune.methods import METHODS
from preftune.types import LABELS, Key, Method, needs_of
from test_composition_on_text import judge, language, sentences

CHOICES: dict[str, dict[str, Any]] = merged("SETTINGS")  # what cannot be left out
SHORT: dict[str, dict[str, Any]] = {  # rounds of few prompts, attacks of one step
    "sppo": {"rounds": 1, "responses": 3},
    "osp": {"responses": 2},
    "rso": {"candidates": 6, "responses": 4},
    "c-advipo": {"iterations": 1},
    "c-advul": {"iterations": 1},
}
STEPS = {"steps": 3, "batch": 4, "micro_batch": 3, "lr": 0.01, "save_every": 0, "max_response": 8, "samples": 0, "progress": False}


def data_for(method: Method, n: int = 8) -> list[dict[str, Any]]:
    """Rows with the columns and labels that the method declares, as a file would have them."""
    needs, draw = needs_of(method.objective), Key.of(0).fold("labels").numpy()
    columns = method.columns or needs.columns
    k = 2 if "desirable" in needs.labels else 4 if columns == "K" else max(2, columns)
    answers = sentences(n * k, "answers")
    made = getattr(getattr(method.collect, "func", method.collect), "makes", ())
    extra = [label for label in (*needs.labels, *needs.optional) if label not in (*LABELS, *made)]
    rows = []
    for i, prompt in enumerate(sentences(n, "prompts")):
        row: dict[str, Any] = {"id": str(i), "prompt": prompt, "responses": answers[i * k : i * k + k], "ranked": True}
        if "score" in needs.labels:
            row["scores"] = sorted(draw.normal(size=k).tolist(), reverse=True)
        if "prefer" in needs.labels:
            row["prefer"] = float(draw.uniform(0.5, 1))
        if "segments" in needs.wants and "segments" not in made:
            row["steps"] = [[text[: len(text) // 2], text[len(text) // 2 :]] for text in row["responses"]]
        rows.append(row | {name: draw.normal(size=k).tolist() for name in extra})
    return rows


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_a_language_model_from_its_name_and_its_data(name: str, tmp_path: Path) -> None:
    settings = {**CHOICES.get(name, {}), **SHORT.get(name, {})}
    method = prepare(name, settings).method
    policy = language()
    start = policy.state()
    run = preftune.train(policy, name, data_for(method), judge=judge(), out=tmp_path / "run", **STEPS, **settings)
    assert run.steps == 3 and run.stopped == "finished"
    assert all(torch.isfinite(torch.tensor([line["loss"], line["grad_norm"]])).all() for line in run.history)
    assert all(line["grad_norm"] > 0 for line in run.history[:1])
    assert any(not torch.equal(value, start[key]) for key, value in policy.state().items() if key in start)
    assert (run.model / "model.safetensors").stat().st_size > 1000


# What moves beside the policy on text: (settings, role, what it is after the run: "now" the policy, "past" neither that nor the start)
MOVES: dict[str, tuple[dict[str, Any], str, str]] = {
    "sppo": ({"rounds": 2, "responses": 3}, "reference", "now"),
    "gpo": ({"rounds": 2, "responses": 3}, "reference", "now"),
    "dno": ({"rounds": 2, "responses": 3}, "reference", "now"),
    "inpo": ({"rounds": 2, "responses": 3}, "previous", "now"),
    "apo-nesterov": ({"rounds": 2, "alpha": 0.5}, "hat", "past"),  # the policy goes on beyond what the round solved
    "mpo": ({"steps": 4, "K": 2}, "reference", "now"),
    "nash-ema-pg": ({"steps": 3, "decay": 0.5}, "slow", "past"),
    "egpo-optimistic": ({"steps": 3}, "previous", "past"),  # where the last step began
    "ofs-dpo": ({"steps": 3, "slow": 0.5}, "twin", "past"),
    "tr-dpo": ({"steps": 4, "every": 2, "alpha": 0.5}, "reference", "past"),
    "egpo": ({"steps": 2}, "reference", "start"),
    "rso": ({"rounds": 2, "candidates": 6, "responses": 4}, "reference", "start"),
}


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("name", MOVES)
def test_references_magnets_and_slow_policies_move_on_text_as_the_method_says(name: str, train: str, tmp_path: Path) -> None:
    """Compared are the parameters of the role, those of the policy and those that the run began with."""
    settings, role, becomes = MOVES[name]
    choices = {key: value for key, value in settings.items() if key not in ("rounds", "steps")}
    method, policy = prepare(name, choices).method, language(train)
    start, ends = policy.state(), []

    def look(event: Any) -> None:
        ends.append(event.learner)

    preftune.train(
        policy,
        name,
        data_for(method),
        judge=judge(),
        out=tmp_path / "run",
        callbacks=[look],
        **{**STEPS, "steps": None, "lr": 0.05, "epochs": 1, **settings},
    )
    mine, now = ends[-1].roles[role].state(), policy.state()
    same = {which: all(torch.equal(mine[key], state[key]) for key in mine) for which, state in (("now", now), ("start", start))}
    assert same == {"now": becomes == "now", "start": becomes == "start"}
