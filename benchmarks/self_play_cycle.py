"""A judge that goes in a circle: Bradley-Terry routes beside Nash routes, measured by the shares of three styles."""

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
    TINY_TEXTS,
    TRAINING,
    Arm,
    Bed,
    Kept,
    Line,
    chosen,
    lines_of,
    mean_of,
    panel,
    picture,
    some_finished,
    tiny_model,
)
from small_model import PROMPTS, small_model
from styles import OPENINGS, Circular, Fitted, equilibrium, exploited, sentences, shares

import preftune
from preftune.collect.online import among
from preftune.objectives.online import judged_pairs
from preftune.policies.text import load as load_policy
from preftune.reference import soft
from preftune.types import Key, Method
from preftune.update import plain

PULL = 0.05  #      beta of every route
REFIT = 10  #       steps between two fits of a reward model
CIRCLE_RATE = 1e-3


def styled_model(base: Path, out: Path, texts: Sequence[str], steps: int) -> Path:
    """The model after so many steps of maximum likelihood on texts of the three styles."""
    rows = [{"id": f"text {i}", "prompt": PROMPTS[i % len(PROMPTS)], "completion": text} for i, text in enumerate(texts)]
    if not (out / "model").exists():
        rule = {"lr": 1e-3, "batch": 32, "micro_batch": 32, "steps": steps, "schedule": "linear", "save_every": 0}
        preftune.train(str(base), "sft", rows, out=out, samples=0, progress=False, **rule)
    return out / "model"


def iterative_dpo(beta: float = 0.1, responses: int = 2) -> Method:
    """DPO by rounds on fresh pairs with drawn labels, each round against the policy that it began with."""
    objective = partial(judged_pairs, beta=beta, loss="dpo")
    return Method(objective, among(responses=responses, label="sampled"), soft(1.0), plain, collect_every="round")


def routes(steps: int, batch: int) -> list[Arm]:
    """What is compared: three routes over a reward model, or over labels that are read as rewards, and three to the equilibrium."""
    rounds = {"prompts_per_round": REFIT * batch, "rounds": -(-steps // REFIT)}
    return [
        Arm("RLHF", "rloo", {"beta": PULL, "responses": 4}),
        Arm("RLHF, refitted", "rloo", {"beta": PULL, "responses": 4}),
        Arm("iterative DPO", iterative_dpo, {"beta": PULL, "responses": 4, **rounds}),
        Arm("Online-IPO", "online-ipo", {"tau": PULL, "responses": 4}),
        Arm("Nash-MD", "nash-md", {"tau": PULL, "pairs": "policy", "responses": 4, "opponents": 2}),
        Arm("EGPO", "egpo", {"beta": PULL, "pairs": "policy", "responses": 4, "opponents": 2}),
    ]


def circle_run(bed: Bed, arm: Arm, seed: int, marks: Sequence[int], win: float) -> dict[str, Any]:
    """One run, of which the shares are kept. Reward models are fitted to samples of the policy as it then is."""
    reward = Fitted(Circular(win)) if arm.name.startswith("RLHF") else None

    def fit(policy: Any, step: int) -> None:
        assert reward is not None
        reward.fit(bed.look(policy, Key.of(seed).fold("fit", step))["texts"])

    def refit(event: Any) -> None:
        if arm.name == "RLHF, refitted" and event.step % REFIT == 0:
            fit(event.learner.policy, event.step)

    if reward is not None:
        bed.policy.load(bed.start)
        fit(bed.policy, 0)
    found = bed.run(arm, CIRCLE_RATE, seed, marks, judge=reward, each=refit)
    looks = {step: {"shares": shares(look["texts"]), "kl": mean_of(look["logratio"])} for step, look in found["looks"].items()}
    return found | {"looks": looks, "strength": None if reward is None else reward.strength.tolist()}


def cycle(options: argparse.Namespace) -> None:
    """Train all routes, write table and picture."""
    kept, tiny = Kept(options.out / "cycle", options.budget), options.tiny
    told_of = kept.conditions()
    texts = TINY_TEXTS * 4 if tiny else sentences(960)
    base = tiny_model(options.out / "tiny") if tiny else small_model()
    model = styled_model(base, options.out / "styled", texts, 40 if tiny else 90)
    bed = Bed(load_policy(str(model)), Circular(options.win), None, 4 if tiny else 32)
    bed.policy.max_new_tokens = 4 if tiny else 6
    steps = options.steps or (4 if tiny else 72)
    every = max(1, steps // 24)
    marks = range(every, steps + 1, every)
    rule = {**TRAINING, "batch": 4 if tiny else TRAINING["batch"]}
    first = shares(bed.look(bed.policy, Key.of(0).fold("start"))["texts"])
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for arm in chosen(routes(steps, rule["batch"]), options.methods):
            arm = Arm(arm.name, arm.method, {**arm.settings, "batch": rule["batch"]})
            settings = [asdict(arm), CIRCLE_RATE, steps, options.win, bed.samples]
            run = kept.run(f"{arm.name} win {options.win:g} seed {seed}", settings, partial(circle_run, bed, arm, seed, marks, options.win))
            found.setdefault(arm.name, []).extend([run] if run else [])
    found = some_finished(found)
    text = cycle_text(bed, found, first, options, told_of)
    print(text)
    if options.picture:
        cycle_picture(options.picture, found, first, options.win)
    if options.page:
        write_section(options.page, "self_play_cycle", text)


def cycle_picture(file: Path, found: Mapping[str, Any], first: Sequence[float], win: float) -> None:
    """A panel a route: shares of the three styles over steps, every seed, and their mean."""

    def drawing(name: str, runs: Sequence[Mapping[str, Any]]) -> Callable[[float, float], str]:
        at = [0, *map(int, runs[0]["looks"])]
        lines: list[Line] = []
        for i in range(3):
            curves = [[first[i], *(look["shares"][i] for look in run["looks"].values())] for run in runs]
            lines += [(list(zip(at, curve, strict=True)), COLOURS[i], 0.8) for curve in curves]
            lines.append((list(zip(at, numpy.mean(curves, 0).tolist(), strict=True)), COLOURS[i], 2))
        return lambda *place: panel(name, "step", [at[-1] * i / 4 for i in range(5)], (0.0, 1.0), lines, place, 1 / 3)

    legend = {opening.strip(): colour for opening, colour in zip(OPENINGS, COLOURS, strict=False)}
    picture(file, legend, [drawing(name, runs) for name, runs in found.items()])


CYCLE = """## A judge that goes in a circle

A policy that writes film review sentences in three styles, told apart by the first word ({openings}), and a judge that prefers the
first over the second, the second over the third and the third over the first with probability {win:g}, whatever follows. No order of
styles explains it; the equilibrium without regularisation is a third of each.
{raters}

Bradley-Terry routes: a reward model fitted by maximum likelihood to the judge's answers about all pairs of {fitted} samples of the policy,
at the start or every {refit} steps, then `rloo` on it; and DPO by rounds of {refit} steps on fresh pairs, each against the round's first
policy. Nash routes: `online-ipo`, `nash-md` and `egpo` on the judge itself. All with beta {beta:g}, batch {batch}, {responses} responses a
prompt, lr {lr:g} constant, no momentum, the small language model (0.9 M weights, responses of {tokens} tokens); nothing is tuned.
Steps are equal, questions are not: of a prompt and step EGPO asks the judge 16 comparisons, Nash-MD 8, Online-IPO and DPO 6.

    {command}

{seeds} seeds: mean, and [least, largest] of the seeds. `largest` and `smallest` share of a moment, and `exploited`, how much more than
one half the best style wins against the shares of a moment (0 at the equilibrium of the judge): means over the second half of the run.
`reigns`: how many of the styles have nine tenths at some time of a run, mean of the seeds; more than 1 is jumping from one to the next.

![shares of the styles over steps](self-play-cycle.svg)
"""


def late(run: Mapping[str, Any]) -> list[list[float]]:
    """Shares of the second half of a run."""
    laws = [look["shares"] for look in run["looks"].values()]
    return laws[len(laws) // 2 :]


def reigns(run: Mapping[str, Any]) -> set[int]:
    """The styles that have nine tenths at some time of a run."""
    return {i for look in run["looks"].values() for i in range(3) if look["shares"][i] >= 0.9}


def cycle_text(bed: Bed, found: Mapping[str, Any], first: Sequence[float], options: Any, told_of: Mapping[str, Any]) -> str:
    """The section."""

    def spread(values: Sequence[float], digits: int = 2) -> str:
        return f"{numpy.mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"

    def row(name: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
        ends = [list(run["looks"].values())[-1] for run in runs]
        halves = [late(run) for run in runs]
        return [
            name,
            told_shares(numpy.mean([end["shares"] for end in ends], 0)),
            spread([numpy.mean([max(law[:3]) for law in half]) for half in halves]),
            spread([numpy.mean([min(law[:3]) for law in half]) for half in halves]),
            spread([numpy.mean([exploited(law, options.win) for law in half]) for half in halves], 3),
            f"{numpy.mean([len(reigns(run)) for run in runs]):.1f}",
            spread([end["kl"] for end in ends], 1),
        ]

    still = equilibrium(first, options.win, PULL)
    told_shares = lambda law: " / ".join(f"{share:.2f}" for share in law)
    ends_of = lambda law: [f"{max(law[:3]):.2f}", f"{min(law[:3]):.2f}"]
    fixed = lambda name, law: [name, told_shares(law), *ends_of(law), f"{exploited(law, options.win):.3f}", "", ""]
    runs = [run for some in found.values() for run in some]
    style_names = " / ".join(opening.strip() for opening in OPENINGS)
    head = ["route", f"{style_names} / other, at the end", "largest", "smallest", "exploited", "reigns", "KL at the end, nats"]
    rows = [
        fixed("the start", first),
        *(row(name, some) for name, some in found.items()),
        fixed(f"equilibrium regularised by {PULL:g}, exact", still),
    ]
    raters = (
        "Raters who rank, a third in each turn of the circle, make 2/3; more needs raters who are inconsistent themselves."
        if options.win > 2 / 3
        else "Three raters make such a judge who each rank the styles, in the three turns of the circle."
    )
    intro = CYCLE.format(
        openings=", ".join(f"`{opening.strip()}`" for opening in OPENINGS), win=options.win, raters=raters,
        fitted=len(bed.prompts) * bed.samples, refit=REFIT, beta=PULL, batch=runs[0]["settings"][0]["settings"]["batch"], responses=4,
        lr=CIRCLE_RATE, tokens=bed.policy.max_new_tokens, command=told_of["command"], seeds=len({run["seed"] for run in runs}),
    )  # fmt: skip
    mean = lambda runs, most: numpy.mean([most(law[:3]) for run in runs for law in late(run)])
    named = lambda holds: ", ".join(name for name, some in found.items() if holds(some)) or "none"
    follows = (
        f"In the mean of seeds and second halves, one style has nine tenths or more: {named(lambda some: mean(some, max) >= 0.9)}. "
        f"The smallest of the three has a tenth or more: {named(lambda some: mean(some, min) >= 0.1)}."
    )
    commits = ", ".join(sorted({run["commit"][:10] for run in runs}))
    return "\n".join([intro, *lines_of(head, rows), "", follows, "", f"Runs at commit {commits}. {told(told_of)}"])
