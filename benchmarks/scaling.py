"""What a step costs as prompts, responses, their number and the pairs grow; what packing saves; memory beside the plan.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py --out scaling.json --picture docs/scaling.svg --page docs/results.md

Loss and backward pass with cached reference, random weights (8 layers of width 256, 8 192 tokens), float32, one thread, the fast
engine and the plain one in turns. FLOPs are counted from the operators that ran. Packing is counted on lengths alone. Memory is the
peak of one step over the loaded model in a process of its own, beside what `preftune.plan` says of it; where the plan names no
activations there is no such row.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from contestants import (
    SMALL,
    TINY,
    Batch,
    Ours,
    Setting,
    clear,
    natural_length,
    pairs_of,
    random_model,
    random_sample,
    useful_flops,
)
from section import conditions, told, write_section
from timing import extra_peak, race

import preftune
from preftune.policies.text.layout import pack
from preftune.report.chart import ticks
from preftune.types import Key

ENGINES = ("fast", "plain")
SEED, BUDGET = 0, 2048  # tokens of a pack: the default on a processor

# what grows -> (its values, and P, C, K, prompts for each of them)
SWEEPS: dict[str, tuple[list[int], Any]] = {
    "prompt tokens": ([32, 64, 128, 256, 512, 1024], lambda x: (x, 64, 2, 1)),
    "response tokens": ([32, 64, 128, 256, 512, 1024], lambda x: (128, x, 2, 1)),
    "responses of a prompt": ([2, 3, 4, 6, 8, 12, 16], lambda x: (256, 64, x, 1)),
    "pairs of a batch": ([1, 2, 4, 8, 16, 32], lambda x: (64, 64, 2, x)),
}
REGIMES = ((64, 64), (512, 128), (128, 512))
BATCHES = (2, 4, 8, 16, 32)
TOKENS = (256, 512, 1024, 2048)  # of the rows whose memory is measured

# --- cost ---------------------------------------------------------------------------------------------------------------


def swept(name: str, tiny: bool) -> list[tuple[int, tuple[int, int, int, int]]]:
    """The values of what grows, with the sizes of each batch."""
    values, sizes = SWEEPS[name]
    if not tiny:
        return [(x, sizes(x)) for x in values]
    small = lambda p, c, k, b: (max(2, p // 16), max(2, c // 16), k, min(b, 4))
    return [(x, small(*sizes(x))) for x in values[:3]]


def costs(name: str, folder: Path, repeats: int, tiny: bool) -> list[dict[str, Any]]:
    """For every value: seconds and FLOPs of both engines, and the FLOPs that no engine could do without."""
    vocabulary, found = (TINY if tiny else SMALL).vocabulary, []
    engines: dict[int, dict[str, Ours]] = {}
    for value, (prompt, response, responses, prompts) in swept(name, tiny):
        draw = Key.of(SEED).fold(name, value).numpy()
        batch = [random_sample(draw, prompt, [response] * responses, vocabulary) for _ in range(prompts)]
        if min(responses, 3) not in engines:  # the objective is that of pairs or that of lists
            engines[min(responses, 3)] = {e: Ours(Setting(folder, responses=responses), engine=e).cached() for e in ENGINES}
        ours = engines[min(responses, 3)]
        rows = {engine: one.prepare(batch) for engine, one in ours.items()}
        flops = {engine: counted(one, rows[engine]) for engine, one in ours.items()}
        turn = lambda engine, ours=ours, rows=rows: lambda _: ours[engine].step(rows[engine])
        times = race({engine: turn(engine) for engine in ENGINES}, repeats, lambda ours=ours: clear(ours.values()))
        useful = useful_flops(ours["fast"].policy.network.lm, batch, reference=False)
        seconds = {engine: [processor for processor, _ in times[engine]] for engine in ENGINES}
        found.append(
            {"value": value, "sizes": [prompt, response, responses, prompts], "seconds": seconds, "flops": flops, "useful": useful}
        )
    return found


def counted(one: Ours, rows: Any) -> float:
    """FLOPs of one step by the operators that ran: matrix products, and attention over the positions that it looks at."""
    from torch.utils.flop_counter import FlopCounterMode

    clear([one])
    aten = torch.ops.aten
    ours = {
        torch.ops.mkldnn._linear_pointwise: lambda x, weight, *more, **_: 2 * math.prod(x) * weight[0],
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *more, **_: attended(q, k, more[1:2]),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, *more, **_: 2.5 * attended(q, k, more[4:5]),
    }
    with FlopCounterMode(display=False, custom_mapping=ours) as counter:
        one.step(rows)
    return float(counter.get_total_flops())


def attended(query: Sequence[int], key: Sequence[int], causal: Sequence[bool]) -> float:
    """Two products over the pairs of positions; a causal kernel leaves half of them out."""
    batch, heads, length, width = query
    return 4 * batch * heads * length * key[2] * width / (2 if causal and causal[0] else 1)


# --- packing ------------------------------------------------------------------------------------------------------------


def packing(tiny: bool) -> list[dict[str, Any]]:
    """Tokens that go through the trunk for natural lengths by ways of making batches of them, and those that are needed: each
    prompt once and what is fed of its responses. Packs of the default budget repeat a prompt whose responses do not fit beside it."""
    found = []
    for prompt, response in REGIMES:
        draw = Key.of(SEED).fold("packing", prompt, response).numpy()
        length = lambda median, draw=draw: natural_length(draw, median)
        count = 64 if tiny else 512
        samples = [random_sample(draw, length(prompt), [length(response), length(response)], 32768) for _ in range(count)]
        by_length = sorted(samples, key=lambda s: len(s.prompt) + max(map(len, s.responses)))
        for size in BATCHES:
            random, grouped = ([order[at : at + size] for at in range(0, count, size)] for order in (samples, by_length))
            packs = [pack([(s.prompt, r) for s in batch for r in s.responses], BUDGET)[0] for batch in random]
            tokens = {
                "padded": sum(map(padded, random)),
                "padded, grouped by length": sum(map(padded, grouped)),
                "without padding": sum(len(s.prompt) + len(r) for s in samples for r in s.responses),
                "packed": sum(len(one.ids()) for some in packs for one in some),
                "needed": sum(len(s.prompt) + sum(len(r) - 1 for r in s.responses) for s in samples),
            }
            found.append({"regime": [prompt, response], "pairs": size, "tokens": tokens, "packs": sum(map(len, packs)) / len(packs)})
    return found


def padded(batch: Batch) -> int:
    """Tokens of chosen and rejected rows, padded together."""
    lengths = [len(p["prompt_ids"]) + len(p[side]) for p in pairs_of(batch) for side in ("chosen_ids", "rejected_ids")]
    return len(lengths) * max(lengths)


# --- memory -------------------------------------------------------------------------------------------------------------


def memory(folder: Path, tiny: bool) -> list[dict[str, Any]]:
    """Measured and planned bytes for rows of growing length, each in a process of its own; empty where the plan names none."""
    found = []
    for tokens in TOKENS[:2] if tiny else TOKENS:
        command = [sys.executable, __file__, "--peak", str(tokens), str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return [one for one in found if one["planned"] is not None]


def peak(tokens: int, folder: Path) -> dict[str, Any]:
    """In this process: plan one pair of so many bytes of text, then make its step."""
    from preftune.api import prepare
    from preftune.data.feed import TextFeed
    from preftune.learner import GradientLearner
    from preftune.policies.text import load

    text = lambda name, length: "".join(map(chr, Key.of(SEED).fold(name).numpy().integers(97, 123, length)))
    half, rest = tokens // 2, (tokens - tokens // 2) // 2 - 1  # bytes are tokens; a response has its end besides
    data = preftune.load_data([{"prompt": text("prompt", half), "chosen": text("a", rest), "rejected": text("b", rest)}])
    policy = load(folder, device="cpu")
    plan = preftune.plan(policy, "dpo", data, batch=1)  # makes a step too, after which every kernel is there
    planned: Mapping[str, Any] | None = getattr(plan, "memory", None)
    method = prepare("dpo", {}).method
    learner = GradientLearner(policy, method, {"current": policy, "reference": policy.reference()})
    rows = TextFeed(data, policy.tokenizer, 2).rows([0])
    extra = extra_peak(lambda: learner._backward(rows))
    parts = ("gradients", "passing", "activations")
    return {"tokens": tokens, "measured": extra, "planned": None if planned is None else sum(planned[part] for part in parts)}


# --- the page and the picture -------------------------------------------------------------------------------------------


def page(kept: Mapping[str, Any], picture: Path | None) -> str:
    """The section: cost, packing, memory."""
    middle = statistics.median
    lines = ["## How a step scales", "", (__doc__ or "").split("\n\n")[2].strip(), "", f"    {kept['conditions']['command']}", ""]
    lines += [f"![cost, packing and memory]({picture.name})", ""] if picture else []
    lines += ["| grows | to | fast, s | plain, s | ratio | fast, GFLOP | plain, GFLOP | needed, GFLOP |", "|---" * 8 + "|"]
    for name in SWEEPS:
        for one in kept["costs"][name]:
            fast, plain = (middle(one["seconds"][engine]) for engine in ENGINES)
            counts = " | ".join(f"{flops / 1e9:.4g}" for flops in (*(one["flops"][engine] for engine in ENGINES), one["useful"]))
            lines.append(f"| {name} | {one['value']} | {fast:.3f} | {plain:.3f} | {plain / fast:.2f} | {counts} |")
    prompt, response, _, _ = SWEEPS["pairs of a batch"][1](1)
    lines += [
        "",
        f"Sizes unless they grow: see `SWEEPS`; pairs have ({prompt}, {response}) tokens. Natural lengths, log-normal with sigma 0.8:",
    ]
    lines += [
        "",
        "| medians | pairs | padded | grouped by length | without padding | packed | padded / packed | grouped / packed | packs |",
    ]
    lines += ["|---" * 9 + "|"]
    for one in kept["packing"]:
        tokens = one["tokens"]
        ratios = [tokens[name] / tokens["packed"] for name in ("padded", "padded, grouped by length")]
        counts = " | ".join(str(tokens[name]) for name in tokens)
        medians = "({}, {})".format(*one["regime"])
        lines.append(f"| {medians} | {one['pairs']} | {counts} | {ratios[0]:.2f} | {ratios[1]:.2f} | {one['packs']:.1f} |")
    if kept["memory"]:
        lines += ["", "| tokens of a pair | measured, MiB | planned, MiB | measured / planned |", "|---" * 4 + "|"]
        for one in kept["memory"]:
            measured, planned = one["measured"], one["planned"]
            lines.append(f"| {one['tokens']} | {measured / 2**20:.0f} | {planned / 2**20:.0f} | {measured / planned:.2f} |")
    return "\n".join([*lines, "", f"{kept['repeats']} repeats, medians. {told(kept['conditions'])}"])


WIDE, HIGH, LEFT, RIGHT, TOP, FOOT = 330, 230, 52, 14, 40, 44  # of a panel; its margins
COLOURS = ("#0067a5", "#d1495b", "#3a7d44")
Lines = Mapping[str, Sequence[tuple[float, float]]]


def panels(kept: Mapping[str, Any]) -> list[tuple[str, str, Lines]]:
    """(what runs along, what runs up, lines) of every panel."""
    found: list[tuple[str, str, Lines]] = []
    for name in SWEEPS:
        seconds = {e: [(one["value"], statistics.median(one["seconds"][e])) for one in kept["costs"][name]] for e in ENGINES}
        found.append((name, "processor seconds of a step", seconds))
    ratio = lambda one: one["tokens"]["padded"] / one["tokens"]["packed"]
    by_regime = lambda regime: [(one["pairs"], ratio(one)) for one in kept["packing"] if one["regime"] == list(regime)]
    found.append(("pairs of a batch, natural lengths", "padded tokens / packed", {str(r): by_regime(r) for r in REGIMES}))
    if kept["memory"]:
        bytes_ = {name: [(one["tokens"], one[name] / 2**20) for one in kept["memory"]] for name in ("measured", "planned")}
        found.append(("tokens of a pair", "MiB of a step over the model", bytes_))
    return found


def picture(kept: Mapping[str, Any]) -> str:
    """All panels, three in a row."""
    drawn = panels(kept)
    width, height = 3 * WIDE, HIGH * math.ceil(len(drawn) / 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" font-family="sans-serif" font-size="10">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *(panel(*one, WIDE * (i % 3), HIGH * (i // 3)) for i, one in enumerate(drawn)),
    ]
    return "\n".join([*parts, "</svg>\n"])


def panel(along: str, up: str, lines: Lines, x0: float, y0: float) -> str:
    """Lines from zero, each named in its colour above the plot."""
    most_x, most_y = (max(point[i] for points in lines.values() for point in points) for i in (0, 1))
    left, right, top, bottom = x0 + LEFT, x0 + WIDE - RIGHT, y0 + TOP, y0 + HIGH - FOOT
    px = lambda x: left + x / most_x * (right - left)
    py = lambda y: bottom - y / (1.05 * most_y) * (bottom - top)
    parts = [f'<text x="{left}" y="{y0 + 14}" font-size="12">{escape(up)}</text>']
    for value in ticks(0, most_y, 4):
        at = f"{py(value):.1f}"
        parts.append(
            f'<path d="M{left} {at}H{right}" stroke="#ddd"/><text x="{left - 4}" y="{at}" dy="3" text-anchor="end">{value:g}</text>'
        )
    parts += [f'<text x="{px(value):.1f}" y="{bottom + 14}" text-anchor="middle">{value:g}</text>' for value in ticks(0, most_x, 4)]
    parts.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end" font-size="12">{escape(along)}</text>')
    for i, (name, points) in enumerate(lines.items()):
        colour, dash = COLOURS[i], ("", ' stroke-dasharray="5 4"', ' stroke-dasharray="2 3"')[i]
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in points]
        parts.append(f'<text x="{left + 90 * i}" y="{y0 + 29}" fill="{colour}" font-size="11">{escape(name)}</text>')
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("scaling.json"), help="where the numbers are kept")
    parser.add_argument("--picture", type=Path, help="an SVG of them")
    parser.add_argument("--page", type=Path, help="write the section of this page")
    parser.add_argument("--tiny", action="store_true", help="a toy model and short rows: does everything run?")
    parser.add_argument("--peak", nargs=2, metavar=("TOKENS", "FOLDER"), help=argparse.SUPPRESS)  # how this program calls itself
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.peak:
        print(json.dumps(peak(int(options.peak[0]), Path(options.peak[1]))))
        return
    if options.tiny and options.page:
        raise SystemExit("--tiny measures a toy, needed full sizes for a page; leave one of them out")
    kept: dict[str, Any] = {"conditions": conditions(), "repeats": options.repeats}
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_model(TINY if options.tiny else SMALL, Path(scratch))
        kept["costs"] = {name: costs(name, folder, options.repeats, options.tiny) for name in SWEEPS}
        kept["packing"] = packing(options.tiny)
        kept["memory"] = memory(folder, options.tiny)
    options.out.write_text(json.dumps(kept, indent=1) + "\n")
    print(page(kept, options.picture))
    if options.picture:
        options.picture.write_text(picture(kept), encoding="utf-8")
    if options.page:
        write_section(options.page, "scaling", page(kept, options.picture))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
