"""Sampling beside transformers' `generate`: the same model, prompts, samples and tokens, one thread, in turns.

    OMP_NUM_THREADS=1 python benchmarks/generation.py --repeats 15 [--page docs/results.md]

SmolLM2-135M's shape with random weights, n samples of each of a few prompts, no end of turn, so that all write the same number of
tokens; "generate" is called as people call it (num_return_sequences=n, sampling, its own cache). A repeat has fresh prompts. Ratios
are of tokens per processor second, medians with their 90 % bootstrap intervals. The largest difference between a log-prob that sampling
returned and what scoring says of the same token is printed beside them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from contestants import SEED, SMOLLM2, TINY, random_model
from section import conditions, told, write_section
from timing import race, ratio

from preftune.policies.text import load
from preftune.types import Key, Rows


@dataclass(frozen=True)
class Row:
    """n samples of `new` tokens behind each of some prompts of equal length."""

    precision: str
    prompt: int
    prompts: int
    n: int
    new: int
    floor: float | None = None


ROWS = (
    Row("bfloat16", 128, 1, 16, 64, 3.5),
    Row("bfloat16", 512, 1, 16, 64, 8.0),
    Row("bfloat16", 128, 4, 4, 64),
    Row("float32", 128, 1, 16, 64),
    Row("float32", 512, 1, 16, 64),
)
COLUMNS = (
    *("precision", "prompt", "prompts", "n", "new tokens", "asked", "over generate"),
    *("90 % interval", "verdict", "tokens/s", "log-prob, sampled less scored"),
)


def measure(row: Row, repeats: int, shape: Any) -> dict[str, Any]:
    """Times of both, and how far returned log-probs are from scored ones."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        folder = random_model(shape, Path(scratch))
        policy = load(folder, device="cpu", dtype=row.precision, masters=False)
        policy.stops = frozenset()
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, row.precision)).eval()
        theirs.generation_config.eos_token_id = None
        draw = Key.of(SEED).fold("generation").numpy()
        prompts = draw.integers(3, shape.vocabulary, (repeats + 1, row.prompts, row.prompt))

        def rows(repeat: int) -> Rows:
            asked = [tuple(map(int, prompt)) for prompt in prompts[repeat]]
            return Rows(id=tuple(f"{repeat}-{i}" for i in range(row.prompts)), prompt=asked, response=None)

        def ours(repeat: int) -> Any:
            return policy.sample(rows(repeat), row.n, Key.of(repeat), max_new_tokens=row.new)

        @torch.no_grad()
        def plain(repeat: int) -> Any:
            torch.manual_seed(repeat)
            ids = torch.from_numpy(prompts[repeat])
            return theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                num_return_sequences=row.n,
                max_new_tokens=row.new,
                top_k=0,
                top_p=1.0,
                pad_token_id=0,
            )

        found = ours(repeats)  # the first call of each is not timed
        assert plain(repeats).shape == (row.prompts * row.n, row.prompt + row.new)
        scored = policy.score_tokens(rows(repeats).replace(response=found))
        far = max(
            float((torch.tensor(a) - b).abs().max()) for x, y in zip(found.logp, scored, strict=True) for a, b in zip(x, y, strict=True)
        )
        times = race({"ours": ours, "generate": plain}, repeats)
    column = {name: [processor for processor, _ in some] for name, some in times.items()}
    return {"seconds": column, "difference": far, "tokens": row.prompts * row.n * row.new}


def line(row: Row, found: dict[str, Any]) -> str:
    """A row of the table."""
    value, low, high = ratio(found["seconds"]["generate"], found["seconds"]["ours"])
    rate = found["tokens"] / numpy.median(found["seconds"]["ours"])
    verdict = "" if row.floor is None else "held" if low >= row.floor else "reached" if high >= row.floor else "missed"
    cells = [row.precision, row.prompt, row.prompts, row.n, row.new, row.floor or "", f"{value:.2f}", f"{low:.2f} to {high:.2f}", verdict]
    return f"| {' | '.join(map(str, cells))} | {rate:.0f} | {found['difference']:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rows", nargs="+", type=int, default=[*range(len(ROWS))], help="some of the rows, by number")
    parser.add_argument("--page", type=Path, help="write the section of this page")
    parser.add_argument("--tiny", action="store_true", help="a toy model: does everything run?")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    here = conditions()
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in (ROWS[i] for i in options.rows):
        lines.append(line(row, measure(row, options.repeats, TINY if options.tiny else SMOLLM2)))
        print(lines[-1], flush=True)
    about = __doc__.split("\n\n")[2]
    text = "\n".join(
        ["## Sampling beside generate", "", about, f"{options.repeats} repeats.", "", *lines, "", f"`{here['command']}`", "", told(here)]
    )
    if options.page and not options.tiny:
        write_section(options.page, "generation", text)


if __name__ == "__main__":
    main()
