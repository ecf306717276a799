"""What the self-play benchmarks share: policy, prompts and judges, runs that are kept in a folder, intervals, tables, pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from section import conditions
from small_model import PROMPTS, SHAPE, small_model, train_tokenizer
from styles import OPENINGS, Circular

from preftune import provenance, training
from preftune.api import prepare
from preftune.data import from_rows
from preftune.data.feed import TextFeed
from preftune.data.ratings import above, movie_reviews, texts_of
from preftune.judges.ratings import ratings
from preftune.judges.trained import load as load_judge
from preftune.judging import train_judge
from preftune.log import Log, write_whole
from preftune.policies.text import load as load_policy
from preftune.report.chart import ticks
from preftune.types import Judge, Key, Rows

TRAINING: dict[str, Any] = {"batch": 16, "schedule": "constant", "save_every": 0, "beta1": 0.0}
TUNING_SEED = 100
TAU = 0.1  #         beta, of every method that has one


@dataclass(frozen=True)
class Arm:
    """A method with its settings, and what a prompt and step of it costs."""

    name: str
    method: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    asks: int = 1  #    comparisons of two responses: `Counting` holds the run to it
    writes: int = 2  #  responses


def chosen(arms: Sequence[Arm], names: Sequence[str] | None) -> list[Arm]:
    """Those of these names, all without names."""
    known = [arm.name for arm in arms]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise SystemExit(f"--methods has {', '.join(unknown)}, needed some of {', '.join(known)}; write them as the tables do")
    return [arm for arm in arms if arm.name in (names or known)]


def some_finished(found: Mapping[str, Any]) -> dict[str, Any]:
    """What there is a run of; a budget that allowed none is said so."""
    if not any(found.values()):
        raise SystemExit("no run is finished, needed one for a table; give more --budget")
    return {name: runs for name, runs in found.items() if runs}


# --- what all runs share ------------------------------------------------------------------------------------------------


class Counting:
    """A judge that counts what it is asked: pairs of different columns, each once where a list is compared with itself."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.asked = judge, 0
        if hasattr(judge, "score"):
            self.score = judge.score

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> torch.Tensor:
        """The judge's own answer, [B, K, M]."""
        k, m = a.shape[1], b.shape[1]
        self.asked += len(rows) * (k * (k - 1) // 2 if a is b else k * m)
        return self.judge.prefer(rows, a, b, key)


@dataclass
class Bed:
    """A policy with its start, the prompts to train on and to sample for, and the judges."""

    policy: Any
    judge: Judge
    other: Judge | None
    samples: int  # of each prompt, where a policy is looked at
    prompts: Sequence[str] = tuple(PROMPTS)
    made: Any = None  # how the judge was trained
    warm: int = 5  #   steps over which the rate rises

    def __post_init__(self) -> None:
        self.start, self.reference = self.policy.state(), self.policy.reference()
        self.commit = provenance.commit()  # of the code that is loaded, whatever is committed while it runs
        rows = [{"id": f"prompt {i}", "prompt": self.prompts[i % len(self.prompts)]} for i in range(960)]
        self.feed = TextFeed(from_rows(rows), self.policy.tokenizer, 0)
        self.asked = self.feed.rows(range(len(self.prompts)))

    def settings(self) -> list[Any]:
        """What a run depends on besides its method."""
        return [TRAINING, list(self.prompts), self.samples, self.policy.max_new_tokens, self.made]

    @torch.no_grad()
    def look(self, policy: Any, key: Key) -> dict[str, Any]:
        """Fresh samples [P][n] with their log-ratios to the start, whose mean estimates the KL, and their mean length."""
        y = policy.sample(self.asked, self.samples, key)
        logp = torch.tensor([[sum(tokens) for tokens in row] for row in y.logp], dtype=torch.float64)
        return {
            "texts": y.show(),
            "logratio": (logp - self.reference.score(self.asked.replace(response=y)).logp).tolist(),
            "length": float(y.length.double().mean()),
        }

    def run(
        self, arm: Arm, lr: float, seed: int, marks: Sequence[int], judge: Any = None, each: Callable[[Any], None] = lambda e: None
    ) -> Any:
        """Train from the start and look at the policy after so many updates; what it asked and took by then."""
        self.policy.load(self.start)
        config = {
            **TRAINING,
            **arm.settings,
            "lr": lr,
            "steps": max(marks),
            "seed": seed,
            "warmup": min(self.warm, max(marks) - 1) / max(marks),
        }
        composed, counting = prepare(arm.method, config), Counting(judge or self.judge)
        began, spent, looks, key = time.process_time(), 0.0, {}, Key.of(seed).fold("look", arm.name)

        def mark(event: Any) -> None:
            nonlocal spent
            each(event)
            if event.step in marks:
                paused = time.process_time()
                cost = {"asked": counting.asked, "seconds": paused - began - spent}
                looks[str(event.step)] = cost | self.look(event.learner.policy, key.fold(event.step))
                spent += time.process_time() - paused

        with tempfile.TemporaryDirectory() as scratch:
            log = Log(Path(scratch), 0, progress=False)
            outcome = training.run(
                self.policy, composed.method, self.feed, composed.config, Path(scratch), log,
                reference=self.reference, judges=[counting], callbacks=[mark],
            )  # fmt: skip
        if outcome.stopped != "finished":
            raise SystemExit(f"{arm.name}: {outcome.stopped} after {outcome.steps} steps")
        return {"seed": seed, "lr": lr, "looks": looks, "commit": self.commit, "load": os.getloadavg()[0]}

    def wins(self, samples: Sequence[Sequence[Sequence[str]]], judge: Judge) -> numpy.ndarray:
        """P(policy i beats policy j) for each prompt, [M, M, P], over all pairs of their samples [M][P][n] and both orders."""
        n = len(samples[0][0])
        y = self.policy.answer([[text for one in samples for text in one[p]] for p in range(len(self.prompts))])
        P = judge.prefer(self.asked, y, y, Key.of(0)).double()
        P = ((P + 1 - P.mT) / 2).reshape(len(self.prompts), len(samples), n, len(samples), n)
        return P.mean((2, 4)).permute(1, 2, 0).numpy()


class Kept:
    """Results in a folder, one file for each run; a run whose settings changed is made again."""

    def __init__(self, folder: Path, budget: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.ends = folder, time.process_time() + 60 * budget

    def run(self, name: str, settings: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What the file holds, or what is made now; None where the time is over."""
        file = self.folder / f"{name.replace(' ', '-')}.json"
        settings = json.loads(json.dumps(settings, default=lambda function: function.__name__))
        if file.exists() and (found := json.loads(file.read_text()))["settings"] == settings:
            return found
        if time.process_time() > self.ends:
            return None
        began = time.process_time()
        found = make() | {"settings": settings}
        write_whole(file, json.dumps(found))
        print(f"{name}: {time.process_time() - began:.0f} CPU seconds", flush=True)
        return found

    def conditions(self) -> dict[str, Any]:
        """Those of the first call that wrote into the folder, with this call's command: it would make the same."""
        file, now = self.folder / "conditions.json", conditions()
        found = json.loads(file.read_text()) if file.exists() else now
        write_whole(file, json.dumps(found))
        return found | {"command": now["command"]}


# --- intervals and tables -----------------------------------------------------------------------------------------------


def mean_of(table: Sequence[Sequence[float]]) -> float:
    """Of all numbers of a table."""
    return float(numpy.mean(table))


def interval(table: Any, draws: int = 2000) -> tuple[float, float, float]:
    """The mean of a table and its 95 % bootstrap interval: the units of every axis (seeds, prompts) are drawn anew, all axes together."""
    values, generator = numpy.asarray(table, dtype=float), numpy.random.default_rng(0)
    drawn = numpy.broadcast_to(values, (draws, *values.shape))
    for size in values.shape:
        counts = generator.multinomial(size, numpy.full(size, 1 / size), size=draws) / size  # [R, size]
        drawn = (counts.reshape(draws, size, *[1] * (drawn.ndim - 2)) * drawn).sum(1)
    low, high = numpy.quantile(drawn, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def shown(found: tuple[float, float, float], digits: int = 3, sign: str = "") -> str:
    """A value and its interval."""
    value, low, high = found
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def lines_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


# --- pictures -----------------------------------------------------------------------------------------------------------

WIDE, HIGH, LEFT, RIGHT, TOP, FOOT = 320, 230, 46, 16, 44, 40  # of a panel; its margins
COLOURS = ("#0067a5", "#d1495b", "#3a7d44", "#8a8a8a", "#e08e0b", "#7a4fa3", "#00868b")
Line = tuple[Sequence[tuple[float, float]], str, float]  # points, colour, width; a width below 1 is a faint one


def panel(
    title: str, along: str, x: Sequence[float], y: tuple[float, float], lines: Sequence[Line], place: tuple[float, float], level: float
) -> str:
    """Lines over [0, the last of x] x y, with a dashed one at `level`; x has the marks of the axis, which is logarithmic in 1 + x where
    they grow by factors."""
    left, right, top, bottom = place[0] + LEFT, place[0] + WIDE - RIGHT, place[1] + TOP, place[1] + HIGH - FOOT
    scale: Callable[[float], float] = math.log1p if x[-1] > 2 * x[-2] else float
    px = lambda at: left + (right - left) * scale(at) / scale(x[-1])
    py = lambda at: bottom - (bottom - top) * (at - y[0]) / (y[1] - y[0])
    parts = [f'<text x="{left}" y="{top - 10}" font-size="12">{title}</text>']
    for tick in ticks(*y, 4):
        parts.append(f'<path d="M{left} {py(tick):.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 4}" y="{py(tick) + 3:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [f'<text x="{px(tick):.1f}" y="{bottom + 13}" text-anchor="middle">{tick:g}</text>' for tick in x]
    parts.append(f'<text x="{right}" y="{bottom + 28}" text-anchor="end" font-size="11">{along}</text>')
    parts.append(f'<path d="M{left} {py(level):.1f}H{right}" stroke="#555" stroke-dasharray="2 3"/>')
    for points, colour, width in lines:
        path = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in points)
        faint = ' stroke-opacity="0.35"' if width < 1 else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{faint}/>')
        if width >= 1:
            parts.append(f'<circle cx="{px(points[-1][0]):.1f}" cy="{py(points[-1][1]):.1f}" r="2.5" fill="{colour}"/>')
    return "".join(parts)


def picture(file: Path, legend: Mapping[str, str], panels: Sequence[Callable[[float, float], str]], columns: int = 3) -> None:
    """Panels in rows below a legend of name -> colour."""
    width, height = columns * WIDE, 26 + HIGH * math.ceil(len(panels) / columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" font-family="sans-serif" font-size="10">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, (name, colour) in enumerate(legend.items()):
        at = LEFT + i * (width - LEFT) / len(legend)
        parts.append(
            f'<path d="M{at:.0f} 14h14" stroke="{colour}" stroke-width="3"/><text x="{at + 19:.0f}" y="18" font-size="11">{name}</text>'
        )
    parts += [draw(WIDE * (i % columns), 22 + HIGH * (i // columns)) for i, draw in enumerate(panels)]
    file.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


# --- models -------------------------------------------------------------------------------------------------------------

TINY_TEXTS = [f"{opening}{what} {how}." for opening in OPENINGS for what in ("film", "story") for how in ("works", "is dull")]


def tiny_model(folder: Path) -> Path:
    """Random weights over a few words: for the paths through this file, not for what comes out."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(TINY_TEXTS)
    torch.manual_seed(0)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = SHAPE | {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, tie_word_embeddings=True, **special)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- the judge ----------------------------------------------------------------------------------------------------------

JUDGING: dict[str, Any] = {"tau": 1.0, "planes": 3, "lr": 5e-4, "batch": 32, "schedule": "linear", "epochs": 1.0, "eval_rows": 800}
PAIRS = {"train": 4800, "test": 800}


def cut(texts: Mapping[str, str], tokenizer: Any, tokens: int) -> dict[str, str]:
    """Texts as a policy would write them that stops after so many tokens."""
    return {i: tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]) for i, text in texts.items()}


def judged_by_people(part: str, tokenizer: Any, tokens: int) -> list[dict[str, Any]]:
    """Chance pairs of a part's sentences, the likelier first: prefer = P(a random rater of it is kinder than one of the other)."""
    texts, votes = movie_reviews()
    short = cut(texts_of(texts, part), tokenizer, tokens)
    ids, rows = list(short), []
    for n, (i, j) in enumerate(Key.of(0).fold("judge", part).numpy().integers(len(ids), size=(2 * PAIRS[part], 2))):
        a, b = sorted((ids[i], ids[j]), key=lambda one: sum(votes[one]) / len(votes[one]))
        p = above(votes[b], votes[a])
        if short[a] != short[b] and p >= 0.5 and len(rows) < PAIRS[part]:
            asked = PROMPTS[n % len(PROMPTS)]
            rows.append({"id": f"{part} {n}", "prompt": asked, "responses": [short[b], short[a]], "ranked": True, "prefer": p})
    return rows


def preference_judge(base: Path, out: Path, tokens: int) -> tuple[Judge, dict[str, Any]]:
    """A general preference model on what people thought of the part `train`, and its quality on the part `test`."""
    if not (out / "evaluation.json").exists():
        tokenizer = load_policy(str(base)).tokenizer
        train, test = (judged_by_people(part, tokenizer, tokens) for part in ("train", "test"))
        train_judge(str(base), "general-preference", train, test=test, out=out, progress=False, **JUDGING)
    return load_judge(str(out / "judge"), keep=False), json.loads((out / "evaluation.json").read_text())["after"]


class AsReviews:
    """A judge of review sentences for the responses of another family of models: their text alone, as if they answered its first prompt."""

    def __init__(self, judge: Judge, bed: Bed) -> None:
        self.judge, self.prompt, self.answer = judge, bed.asked.prompt[0], bed.policy.answer

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> torch.Tensor:
        """float64 P(a beats b) [B, K, M]."""
        return self.judge.prefer(Rows(rows.id, [self.prompt] * len(rows)), self.answer(a.show()), self.answer(b.show()), key)


def review_bed(options: argparse.Namespace) -> tuple[Bed, dict[str, Any]]:
    """Small model, general preference judge trained on real ratings, and a ridge on words fitted to other ratings."""
    if options.tiny:
        policy = load_policy(str(tiny_model(options.out / "tiny")))
        policy.max_new_tokens = 4
        return Bed(policy, Circular(0.8), Circular(0.7), 4), {}
    policy = load_policy(str(small_model()))
    policy.max_new_tokens = options.tokens
    judge, quality = preference_judge(small_model(), options.out / "judge", options.tokens)
    return Bed(policy, judge, ratings("kind"), 32, made=[JUDGING, PAIRS]), quality
