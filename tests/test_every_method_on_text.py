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
