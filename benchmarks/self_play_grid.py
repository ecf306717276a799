"""EGPO beside Online-IPO, Nash-MD and Nash-MD-PG at equal updates and at equal questions to the judge."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy
from section import told, write_section
from self_play_bed import (
    JUDGING,
    PAIRS,
    TAU,
    TRAINING,
    TUNING_SEED,
    Arm,
    AsReviews,
    Bed,
    Kept,
    chosen,
    interval,
    lines_of,
    mean_of,
    review_bed,
    shown,
    some_finished,
)

from preftune.cli.quickstart import fetch_model
from preftune.exact.voting import circles
from preftune.policies.text import load as load_policy
from preftune.types import Judge, Key

RATES = {  # the small language model falls silent at 3e-3 within 24 updates
    "small": (3e-5, 1e-4, 3e-4),
    "smollm2": (1e-4, 3e-4, 1e-3),
}
ARMS = (
    Arm("EGPO", "egpo", {"beta": TAU}, asks=4, writes=6),
    Arm("Online-IPO 1", "online-ipo", {"tau": TAU, "pairs": "uniform"}, asks=2, writes=3),
    Arm("Online-IPO 2", "online-ipo", {"tau": TAU, "pairs": "policy"}, asks=1, writes=2),
    Arm("Nash-MD", "nash-md", {"tau": TAU}, asks=2, writes=3),
    Arm("Nash-MD-PG", "nash-md-pg", {"tau": TAU}, asks=1, writes=2),
)
MOST = max(arm.asks for arm in ARMS)
LARGE = ("EGPO", "Online-IPO 1", "Nash-MD")  # on SmolLM2
LARGE_PROMPTS = [
    f"Write one sentence from a {kind}." for kind in ("movie review", "film review", "review of a film", "critic's film column")
]


def bent(P: numpy.ndarray) -> float:
    """Share of the squared log-odds of P [n, n] that no score of each response explains: 0 where Bradley-Terry holds."""
    Z = numpy.log(P / (1 - P))
    left = Z - (Z.mean(1)[:, None] - Z.mean(1)[None, :])
    return float((left**2).sum() / (Z**2).sum()) if Z.any() else 0.0


def circularity(bed: Bed, judge: Judge, samples: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Share of circular triples among all responses to a prompt, and `bent`, both over all prompts."""
    y = bed.policy.answer(samples)
    P = judge.prefer(bed.asked, y, y, Key.of(0)).double()
    turned, decided = circles(P)
    return float(turned.sum() / decided.sum().clamp(min=1)), float(numpy.mean([bent(one) for one in P.numpy()]))


def ends(arm: Arm, steps: int) -> dict[str, int]:
    """Updates of an arm where all make equally many, and where all have asked equally much."""
    return {"updates": steps, "calls": steps * MOST // arm.asks}


def large_bed(options: argparse.Namespace) -> tuple[Bed, dict[str, Any]]:
    """SmolLM2 with fresh adapters; the same two judges."""
    small, quality = review_bed(options)
    policy = load_policy(fetch_model(), train="lora") if not options.tiny else small.policy
    policy.max_new_tokens = options.tokens
    return Bed(policy, AsReviews(small.judge, small), small.other, 16, LARGE_PROMPTS, small.made, warm=2), quality


def play(bed: Bed, arm: Arm, lr: float, seed: int, marks: Sequence[int], batch: int) -> dict[str, Any]:
    """A run whose questions are as many as the arm says: the comparison at equal questions rests on it."""
    found = bed.run(Arm(arm.name, arm.method, {**arm.settings, "batch": batch}), lr, seed, marks)
    for step, look in found["looks"].items():
        if look["asked"] != arm.asks * batch * int(step):
            raise SystemExit(f"{arm.name} asked {look['asked']} comparisons in {step} steps of {batch}, needed {arm.asks} a row and step")
    return found


def tune(
    bed: Bed, kept: Kept, arms: Sequence[Arm], rates: Sequence[float], steps: int, batch: int, still: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """For every arm and budget what each rate is worth on a seed of its own: win rate against the start less beta KL."""
    found: dict[str, Any] = {}
    for arm in arms:
        at = ends(arm, steps)
        for lr in rates:
            settings = [asdict(arm), lr, at, batch, bed.settings()]
            make = partial(play, bed, arm, lr, TUNING_SEED, sorted(set(at.values())), batch)
            run = kept.run(f"tune {arm.name} lr {lr:g}", settings, make)
            if run is None:
                raise SystemExit("the budget ended while rates were tuned; give more, what is done is kept")
            for budget, step in at.items():
                look = run["looks"][str(step)]
                win = float(bed.wins([look["texts"], still], bed.judge)[0, 1].mean())
                found.setdefault(budget, {}).setdefault(arm.name, {})[f"{lr:g}"] = win - TAU * mean_of(look["logratio"])
    return found


def grid(options: argparse.Namespace) -> None:
    """Tune, train, compare, and write the section."""
    large = options.model == "smollm2"
    kept = Kept(options.out / ("grid-smollm2" if large else "grid"), options.budget)
    told_of = kept.conditions()
    bed, quality = (large_bed if large else review_bed)(options)
    steps, batch = options.steps or (2 if options.tiny else 8 if large else 24), 4 if large or options.tiny else TRAINING["batch"]
    arms = chosen(ARMS, options.methods or (LARGE if large else None))
    still = {seed: bed.look(bed.reference, Key.of(seed).fold("start"))["texts"] for seed in (TUNING_SEED, *options.seeds)}
    tuned = tune(bed, kept, arms, RATES[options.model], steps, batch, still[TUNING_SEED])
    runs: dict[str, dict[str, dict[int, Any]]] = {"updates": {}, "calls": {}}
    for seed in options.seeds:
        for arm in arms:
            at = ends(arm, steps)
            rate = {b: float(max(tuned[b][arm.name], key=tuned[b][arm.name].get)) for b in at}
            for lr in sorted(set(rate.values())):
                marks = sorted({at[budget] for budget in at if rate[budget] == lr})
                settings = [asdict(arm), lr, marks, batch, bed.settings()]
                run = kept.run(f"{arm.name} lr {lr:g} seed {seed}", settings, partial(play, bed, arm, lr, seed, marks, batch))
                for budget in (b for b in at if rate[b] == lr and run is not None):
                    look = run["looks"][str(at[budget])]
                    runs[budget].setdefault(arm.name, {})[seed] = look | {"lr": lr, "step": at[budget], "commit": run["commit"]}
    text = grid_text(bed, runs, still, tuned, quality, told_of, batch, large)
    print(text)
    if options.page:
        write_section(options.page, "self_play_smollm2" if large else "self_play_grid", text)


GRID = """## {title}

{model}, {prompts} prompts, the same in training and evaluation: they are ways of asking for one
sentence. All methods: beta {tau:g}, {batch} prompts a step, responses of {tokens} tokens at most, AdamW without momentum, a rate that is
constant after {warm} steps. {rates}

The judge is a general preference model (`preftune judge train general-preference`, {planes} planes, the small language model as its base)
trained on {pairs} pairs of real review sentences, cut to as many tokens, with soft labels P(a random rater of A is kinder than one of B).
{quality}
The second judge is a ridge on words, fitted to other sentences; no method sees it.

    {command}

Equal updates: {steps} each. Equal questions: {asked} comparisons of two responses each. {seeds} seeds; the last iterate is compared, no
checkpoint is selected. Pairs of EGPO, Online-IPO 1 and Nash-MD are drawn at temperature 2 from the ten likeliest tokens, the stand-in for
a uniform law; those of Online-IPO 2 are the policy's own and judged against each other. Bold: the interval excludes one half.
"""
BUDGETS = {"updates": "Equal updates", "calls": "Equal questions"}


FEW = 5  # seeds, below which a bootstrap over them is too narrow to decide anything


def verdict(wins: numpy.ndarray) -> str:
    """Win rates [S, S, P] with their interval, in bold where it excludes one half and there are seeds enough."""
    found = interval(wins)
    return f"**{shown(found)}**" if len(wins) >= FEW and (found[1] > 0.5 or found[2] < 0.5) else shown(found)


def ahead(W: numpy.ndarray, names: Sequence[str]) -> str:
    """What the first method's row says of the others, the start apart."""
    if W.shape[2] < FEW:
        return f"{W.shape[2]} seeds decide nothing: their bootstrap intervals are too narrow."
    kinds: dict[str, list[str]] = {"beats": [], "loses to": [], "is not told apart from": []}
    for j, name in enumerate(names[1:-1], 1):
        _, low, high = interval(W[0, j])
        kinds["beats" if low > 0.5 else "loses to" if high < 0.5 else "is not told apart from"].append(name)
    said = "; ".join(f"{kind} {', '.join(some)}" for kind, some in kinds.items() if some)
    return f"{names[0]} {said or 'is alone'}."


def moved(W: numpy.ndarray, names: Sequence[str]) -> str:
    """How far the best of the methods has come from the start."""
    best = max(range(len(names) - 1), key=lambda i: float(W[i, -1].mean()))
    found = interval(W[best, -1])
    near = ": nothing has moved far in this budget" if found[0] < 0.6 else ""
    return f"The best against the start, {names[best]}, wins {shown(found)} of the comparisons{near}."


def table_of(
    bed: Bed, found: Mapping[str, Mapping[int, Any]], still: Mapping[int, Any], judge: Judge
) -> tuple[numpy.ndarray, list[str], list[int]]:
    """W [M, M, S, S, P] among the methods and the start, of the seeds that all methods have."""
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in found.values())))
    samples = [[by_seed[seed]["texts"] for seed in seeds] for by_seed in found.values()] + [[still[seed] for seed in seeds]]
    W = bed.wins([one for some in samples for one in some], judge)
    m = len(samples)
    return W.reshape(m, len(seeds), m, len(seeds), -1).transpose(0, 2, 1, 3, 4), [*found, "the start"], seeds


def budget_lines(bed: Bed, budget: str, found: Mapping[str, Mapping[int, Any]], still: Mapping[int, Any], batch: int) -> list[str]:
    """What the runs cost and the pairwise table of one budget, by both judges."""
    W, names, seeds = table_of(bed, found, still, bed.judge)
    lines = [f"### {BUDGETS[budget]}", ""]
    rows = []
    for i, (name, by_seed) in enumerate(found.items()):
        looks, arm = [by_seed[seed] for seed in seeds], next(arm for arm in ARMS if arm.name == name)
        best = max((j for j in range(len(names) - 1) if j != i), key=lambda j: W[j, i].mean(), default=i)
        middle = lambda key, looks=looks: float(numpy.median([look[key] for look in looks]))
        spent = [str(looks[0]["step"]), str(looks[0]["asked"]), str(arm.writes * batch * looks[0]["step"]), f"{middle('seconds'):.0f}"]
        far, beaten = interval([mean_of(look["logratio"]) for look in looks]), interval(W[best, i])
        at = [f"{looks[0]['lr']:g}", shown(far, 2), f"{middle('length'):.1f}", f"{names[best]} {shown(beaten)}"]
        rows.append([name, *spent, *at])
    spent_on = ["updates", "comparisons", "responses written", "CPU seconds"]
    head = ["method", *spent_on, "lr", "KL, nats", "tokens a response", "most often beaten by"]
    lines += [*lines_of(head, rows), "", "Row beats column, by the judge that was trained on:", ""]
    cells = [[names[i], *("" if i == j else verdict(W[i, j]) for j in range(len(names)))] for i in range(len(names) - 1)]
    lines += [*lines_of(["", *names], cells), "", ahead(W, names), moved(W, names), ""]
    if bed.other is not None:
        V, _, _ = table_of(bed, found, still, bed.other)
        cells = [[names[i], *("" if i == j else verdict(V[i, j]) for j in range(len(names)))] for i in range(len(names) - 1)]
        lines += ["The same by the second judge:", "", *lines_of(["", *names], cells), "", ahead(V, names), ""]
    return lines


def quality_of(bed: Bed, quality: Mapping[str, Any], still: Sequence[Sequence[str]], late: Sequence[Sequence[str]]) -> str:
    """How good the judge is on people's judgements, and how far from an order of responses."""
    turned, unexplained = circularity(bed, bed.judge, still)
    turned_late, unexplained_late = circularity(bed, bed.judge, late)
    held = ""
    if quality:
        seen = {name: shown((one["value"], one["low"], one["high"])) for name, one in quality.items() if one["value"] is not None}
        held = f"On {PAIRS['test']} held-out pairs its accuracy is {seen['accuracy']}, its calibration error {seen['calibration_error']}.\n"
    follows = (
        "That is an order of responses, on\nwhich extragradient, which is about circles, has nothing to gain in theory"
        if max(turned, turned_late) < 0.01
        else "Coin flips make a quarter of the triples circular, an order none"
    )
    return (
        f"{held}Of triples of the start's responses to one prompt {100 * turned:.2g} % are circular, of the trained policies' "
        f"{100 * turned_late:.2g} %; scores leave\n{100 * unexplained:.2g} % and {100 * unexplained_late:.2g} % of the squared log-odds "
        f"unexplained. {follows}."
    )


def grid_text(
    bed: Bed, runs: Any, still: Mapping[int, Any], tuned: Any, quality: Mapping[str, Any], told_of: Any, batch: int, large: bool
) -> str:
    """The section, of the seeds that all methods have finished."""
    first = next(iter(some_finished(runs["updates"]).values()))
    whole = sorted(set.intersection(*(set(by_seed) for by_seed in runs["updates"].values())))
    if not whole:
        raise SystemExit("no seed is finished with all methods, needed one for a table; give more --budget, what is done is kept")
    late = [
        [text for by_seed in runs["calls"].values() for seed in whole for text in by_seed[seed]["texts"][p][:4]]
        for p in range(len(bed.prompts))
    ]
    steps = first[whole[0]]["step"]
    rates = list(next(iter(tuned["updates"].values())))
    chosen_rates = (
        f"Each method has the best of the rates\n{', '.join(rates)} on a seed of its own, for each budget, "
        "by its win rate against the start less beta KL."
    )
    intro = GRID.format(
        title="EGPO and its rivals on SmolLM2" if large else "EGPO and its rivals on a language model",
        model="SmolLM2-135M with fresh adapters" if large else "The small language model (0.9 M weights, all of them trained)",
        prompts=len(bed.prompts), tau=TAU, batch=batch, tokens=bed.policy.max_new_tokens, warm=bed.warm, rates=chosen_rates,
        planes=JUDGING["planes"], pairs=PAIRS["train"], quality=quality_of(bed, quality, still[whole[0]], late),
        command=told_of["command"], steps=steps, asked=MOST * batch * steps, seeds=len(whole),
    )  # fmt: skip
    head = ["method", *(f"{budget}, {lr}" for budget in BUDGETS for lr in rates)]
    worth = [[name, *(f"{tuned[b][name][lr]:.3f}" for b in BUDGETS for lr in rates)] for name in tuned["updates"]]
    least = min(rates, key=float)
    timid = {b: ", ".join(name for name, of in tuned[b].items() if max(of, key=of.get) == least) or "none" for b in BUDGETS}
    lines = [
        intro,
        "What the rates are worth (win rate less beta KL, one seed; standing still is worth 0.5):",
        "",
        *lines_of(head, worth),
        "",
        f"The least rate is the best, at equal updates: {timid['updates']}; at equal questions: {timid['calls']}.",
        "In such a budget a larger one costs more KL by noise than it wins. A lead of a method with a larger rate than another's is a",
        "lead of the rate as well.\n",
    ]
    for budget in BUDGETS:
        lines += budget_lines(bed, budget, runs[budget], still, batch)
    commits = ", ".join(sorted({look["commit"][:10] for found in runs.values() for some in found.values() for look in some.values()}))
    return "\n".join([*lines, f"Runs at commit {commits}. {told(told_of)}"])
