"""One step of online DPO beside TRL's: sampling, judging, scoring and the backward pass; same model, prompts and number of tokens.

    OMP_NUM_THREADS=1 .venv-bench/bin/python benchmarks/online_step.py --repeats 7 [--page docs/results.md]

`make bench` makes the environment. The model is SmolLM2-135M-Instruct in float32 on one thread, two prompts with two answers each of
exactly 48 tokens (no end of turn is drawn), the judge counts characters, the reference is scored in the step; no optimiser.

trl default   OnlineDPOTrainer as it comes (bf16 aside): gradient checkpointing, which turns its cache off while it samples
trl best      the same without checkpointing
ours          preftune's online-dpo

All take turns; TRL runs in a process of its own. Ratios are of processor seconds, medians with their 90 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from contestants import SEED
from section import conditions, told, write_section
from timing import Apart, race, ratio

from preftune.cli.quickstart import fetch_model
from preftune.collect.drawing import drawing
from preftune.data.columns import Record
from preftune.learner import GradientLearner
from preftune.methods import METHODS
from preftune.policies.text import load
from preftune.policies.text.model import find_source
from preftune.types import Key

PROMPTS = ("Write one sentence from a movie review.", "Say in one sentence why people go to the theatre.")
BETA = 0.1
FLOORS = {"trl default": 5.0, "trl best": 1.8}
Step = Callable[[int], object]


class Characters:
    """The longer text wins."""

    def score(self, rows: Any, y: Any, key: Key) -> torch.Tensor:
        return torch.tensor([[float(len(text)) for text in row] for row in y.show()], dtype=torch.float64)

    def prefer(self, rows: Any, a: Any, b: Any, key: Key) -> torch.Tensor:
        return (self.score(rows, a, key)[:, :, None] - self.score(rows, b, key)[:, None, :]).sign() / 2 + 0.5


def ours(folder: str, new: int) -> Step:
    """A step of preftune's online-dpo."""
    policy = load(folder, device="cpu", dtype="float32")
    policy.stops, policy.max_new_tokens = frozenset(), new
    method = METHODS["online-dpo"](beta=BETA)
    learner = GradientLearner(policy, method, {"current": policy, "reference": policy.reference()}, optimiser="sgd")
    rows, _ = policy.encode([Record(id=str(i), prompt=prompt, responses=[]) for i, prompt in enumerate(PROMPTS)])

    def step(repeat: int) -> Any:
        rows_against = drawing(method.collect, learner.roles, rows, Key.of(SEED).fold(repeat), judges=[Characters()], step=repeat)
        drawn = rows_against(policy)
        assert drawn.response.length.tolist() == [[new, new]] * len(PROMPTS)
        found = learner._backward(drawn)
        learner.optimiser.zero_grad(set_to_none=True)
        return found

    return step


def trl(folder: str, new: int, checkpointing: bool) -> Step:
    """A training step of TRL's OnlineDPOTrainer."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    opened = lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    scratch = tempfile.mkdtemp()
    trainer = OnlineDPOTrainer(
        model=opened(),
        ref_model=opened().requires_grad_(False).eval(),
        reward_funcs=lambda prompts, completions, **_: [float(len(given[0]["content"])) for given in completions],
        args=OnlineDPOConfig(
            output_dir=scratch,
            beta=BETA,
            bf16=False,
            use_cpu=True,
            report_to="none",
            temperature=1.0,
            max_new_tokens=new,
            per_device_train_batch_size=len(PROMPTS),
            generation_kwargs={"min_new_tokens": new},
            **({} if checkpointing else {"gradient_checkpointing": False}),
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in asked]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    assert trainer.args.gradient_checkpointing == checkpointing
    model = trainer.accelerator.prepare_model(trainer.model)

    def step(repeat: int) -> Any:
        torch.manual_seed(repeat)
        loss = trainer.training_step(model, {"prompt": [list(prompt) for prompt in asked]})
        trainer.model.zero_grad(set_to_none=True)
        return loss

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--others", type=int, default=3, help="repeats of TRL as it comes, which takes minutes a step")
    parser.add_argument("--new", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--page", type=Path, help="write the section of this page")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folder, here = find_source(fetch_model()), conditions()
    theirs = {name: trl(folder, options.new, checkpointing) for name, checkpointing in (("trl default", True), ("trl best", False))}
    apart = Apart(theirs, lambda: None)
    steps: dict[str, Step] = {"ours": ours(folder, options.new), **apart.turns}
    steps["ours"](options.repeats)  # the first steps of each are not timed
    apart.turns["trl best"](options.repeats)
    times = race(steps, options.repeats, fewer={"trl default": options.others})
    apart.close()
    lines = ["| | processor seconds | over ours | 90 % interval | asked | verdict |", "|---|---|---|---|---|---|"]
    column = {name: [processor for processor, _ in some] for name, some in times.items()}
    lines.append(f"| ours | {numpy.median(column['ours']):.2f} | | | | |")
    for name, floor in FLOORS.items():
        value, low, high = ratio(column[name], column["ours"])
        verdict = "held" if low >= floor else "reached" if high >= floor else "missed"
        lines.append(f"| {name} | {numpy.median(column[name]):.2f} | {value:.2f} | {low:.2f} to {high:.2f} | {floor} | {verdict} |")
    print("\n".join(lines))
    about = __doc__.split("\n\n", 2)[2]
    repeats = f"{options.repeats} repeats, {options.others} of TRL as it comes."
    text = "\n".join(["## One online step beside TRL", "", about, repeats, "", *lines, "", f"`{here['command']}`", "", told(here)])
    if options.page:
        write_section(options.page, "online step", text)


if __name__ == "__main__":
    main()
