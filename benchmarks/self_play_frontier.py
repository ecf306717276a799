"""Seven methods: win rate against KL to the reference, by the judge that is trained on and by another one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy
from section import told, write_section
from self_play_bed import (
    COLOURS,
    TAU,
    TRAINING,
    TUNING_SEED,
    Arm,
    Bed,
    Kept,
    chosen,
    interval,
    lines_of,
    mean_of,
    panel,
    picture,
    review_bed,
    shown,
    some_finished,
)

from preftune.types import Key

FRONTIER_RATE = 1e-3
SEEN = (10, 20, 30, 40)  # updates after which a policy is looked at


def contestants(batch: int, steps: int) -> list[Arm]:
    """The methods, pulls of one size where they have one. By rounds: three rounds of new prompts."""
    a_round = -(-steps // 3)
    rounds = {"prompts_per_round": a_round * batch, "rounds": 3, "epochs": 1.0}
    return [
        Arm("SPPO", "sppo", {"eta": 1 / TAU, "optimiser": "adamw", **rounds}),
        Arm("INPO", "inpo", {"tau": TAU / 3, "responses": 4, **rounds}),
        Arm("DNO", "dno", {"eta": TAU, **rounds}),
        Arm("Online DPO", "online-dpo", {"beta": TAU}),
        Arm("XPO", "xpo", {"beta": TAU}),
        Arm("RSO", "rso", {"beta": 0.5, "gamma": TAU, "candidates": 16, "responses": 4, "label": "soft", **rounds, "epochs": 2.0,
                           "prompts_per_round": -(-a_round * batch // 4)}),
        Arm("GRPO", "grpo", {"beta": 0.04, "loss_type": "grpo", "reward": "winrate"}),
    ]  # fmt: skip


FRONTIER = """## Score against distance: seven methods and a second judge

The bed of the grid above: the small language model, the general preference model as the judge that is trained on, a ridge on words that
was fitted to other sentences as the one that is not. Win rate against samples of the start, over KL to it, after {marks} updates of
{batch} prompts; lr {lr:g} constant and no momentum for all, betas of {tau:g} where a method has one (GRPO .04, RSO resamples at .5),
nothing is tuned. Updates are equal, questions are not. SPPO, INPO, DNO and RSO go by three rounds. {seeds} seeds, mean with a 95 %
bootstrap interval over seeds and prompts.

    {command}

![win rate over KL, by both judges](self-play-frontier.svg)

In the upper panels the axis of the KL is logarithmic in 1 + KL. `excess`: how far the judge that was trained on lies above the other
one, at the end; `grows`: how much larger it is at the end than after {half} updates.
"""


def frontier(options: argparse.Namespace) -> None:
    """Train the seven, look at them on the way, and write table and picture."""
    kept = Kept(options.out / "frontier", options.budget)
    told_of = kept.conditions()
    bed, _ = review_bed(options)
    assert bed.other is not None
    steps, batch = options.steps or (3 if options.tiny else SEEN[-1]), 4 if options.tiny else TRAINING["batch"]
    marks = sorted({max(1, round(steps * at / SEEN[-1])) for at in SEEN})
    still = bed.look(bed.reference, Key.of(TUNING_SEED).fold("start"))["texts"]
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for arm in chosen(contestants(batch, steps), options.methods):
            arm = Arm(arm.name, arm.method, {**arm.settings, "batch": batch})
            settings = [asdict(arm), FRONTIER_RATE, marks, bed.settings()]
            run = kept.run(f"{arm.name} seed {seed}", settings, partial(bed.run, arm, FRONTIER_RATE, seed, marks))
            found.setdefault(arm.name, []).extend([run] if run else [])
    found = some_finished(found)
    curves = {name: [[of_look(bed, run["looks"][str(at)], still) for at in marks] for run in runs] for name, runs in found.items()}
    text = frontier_text(curves, found, marks, batch, told_of)
    print(text)
    if options.picture:
        frontier_picture(options.picture, curves)
    if options.page:
        write_section(options.page, "self_play_frontier", text)


def of_look(bed: Bed, look: Mapping[str, Any], still: Sequence[Sequence[str]]) -> dict[str, Any]:
    """KL, and the win rates against the start of each prompt by both judges."""
    trained, other = (bed.wins([look["texts"], still], judge)[0, 1].tolist() for judge in (bed.judge, bed.other))
    return {"kl": mean_of(look["logratio"]), "trained": trained, "other": other, "asked": look["asked"], "length": look["length"]}


def frontier_text(curves: Mapping[str, Any], found: Mapping[str, Any], marks: Sequence[int], batch: int, told_of: Mapping[str, Any]) -> str:
    """The section."""

    def mean(runs: Sequence[Any], value: Callable[[Any], Sequence[float]]) -> tuple[float, float, float]:
        return interval([value(run) for run in runs])  # [S, P]

    half = len(marks) // 2 - 1
    excess = lambda look: numpy.subtract(look["trained"], look["other"])
    gains = {name: mean(runs, lambda run: run[-1]["other"]) for name, runs in curves.items()}
    grows = {name: mean(runs, lambda run: excess(run[-1]) - excess(run[half])) for name, runs in curves.items()}
    rows = [
        [
            name,
            str(runs[0][-1]["asked"]),
            f"{numpy.mean([run[-1]['kl'] for run in runs]):.2f}",
            shown(mean(runs, lambda run: run[-1]["trained"])),
            shown(gains[name]),
            shown(mean(runs, lambda run: excess(run[-1])), sign="+"),
            shown(grows[name], sign="+"),
            f"{numpy.mean([run[-1]['length'] for run in runs]):.1f}",
        ]
        for name, runs in curves.items()
    ]
    head = ["method", "comparisons", "KL, nats", "judge trained on", "other judge", "excess", "grows", "tokens a response"]
    runs = [run for some in found.values() for run in some]
    intro = FRONTIER.format(
        marks=", ".join(map(str, marks)),
        half=marks[half],
        batch=batch,
        lr=FRONTIER_RATE,
        tau=TAU,
        seeds=len({run["seed"] for run in runs}),
        command=told_of["command"],
    )
    commits = ", ".join(sorted({run["commit"][:10] for run in runs}))
    named = lambda some: ", ".join(some) or "none"
    follows = (
        f"The other judge sees a gain as well (interval above one half): {named([name for name, one in gains.items() if one[1] > 0.5])}. "
        f"The excess grows (interval above 0): {named([name for name, one in grows.items() if one[1] > 0])}."
    )
    farthest = max(curves, key=lambda name: numpy.mean([run[-1]["kl"] for run in curves[name]]))
    text = found[farthest][0]["looks"][str(marks[-1])]["texts"][0][0]
    follows += f"\nThe farthest from the start, {farthest}, ends with sentences such as `{text.strip()}`."
    return "\n".join([intro, *lines_of(head, rows), "", follows, "", f"Runs at commit {commits}. {told(told_of)}"])


def frontier_picture(file: Path, curves: Mapping[str, Any]) -> None:
    """A panel for either judge, a line a method from the start on, mean over seeds; below, the same up to where the last but one ends."""

    def line(runs: Sequence[Any], by: str) -> list[tuple[float, float]]:
        mean = lambda at, name: float(numpy.mean([run[at][name] for run in runs]))
        return [(0.0, 0.5), *((max(0.0, mean(at, "kl")), mean(at, by)) for at in range(len(runs[0])))]

    titles = {"trained": "win rate, judge trained on", "other": "win rate, other judge"}
    lines = {by: [line(runs, by) for runs in curves.values()] for by in titles}
    reached = sorted(max(k for k, _ in points) for points in lines["trained"])
    far, near = reached[-1], max(0.1, reached[-2:][0])  # an axis needs a length, also where nothing has moved
    marks = [0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
    axes = [[mark for i, mark in enumerate(marks) if i < 3 or marks[i - 1] < far], [near * i / 4 for i in range(5)]]

    def drawn(by: str, axis: Sequence[float]) -> Callable[..., str]:
        kept = {name: [[p for p in points if p[0] <= axis[-1]] for points in some] for name, some in lines.items()}
        values = [w for some in kept.values() for points in some for _, w in points]
        coloured = [(points, colour, 1.6) for points, colour in zip(kept[by], COLOURS, strict=False)]
        y = (min(values) - 0.02, max(values) + 0.02)
        return lambda *place: panel(titles[by], "KL to the start, nats", [round(k, 2) for k in axis], y, coloured, place, 0.5)

    picture(file, dict(zip(curves, COLOURS, strict=False)), [drawn(by, axis) for axis in axes for by in titles], columns=2)
