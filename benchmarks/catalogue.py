"""Every method of the catalogue trains for 75 steps on a small language model, from real ratings.

    OMP_NUM_THREADS=1 python benchmarks/catalogue.py --out docs/results.md

Offline methods see the same 1200 pairs (chosen: mean rating above 1.5, rejected: below -1.5, under 18 words) in the same order, 16 a
step; graded methods 1200 lists of four sentences. Self-play sees the prompts alone and a judge fitted on other texts, which also
scores 256 samples of every method. Hyperparameters are the methods' defaults unless SETTINGS says otherwise; nothing is tuned, so
this shows that each method does what its loss says, not which one is best.

Results are kept in a JSON file beside --out, one entry a method, and written after each: an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from section import write_around
from small_model import PROMPTS, RECIPE, small_model

import preftune
from preftune import provenance
from preftune.api import prepare
from preftune.data import from_rows
from preftune.data.feed import TextFeed
from preftune.data.goals import rows_with_goals
from preftune.data.ratings import above, movie_reviews, texts_of
from preftune.evaluation import draw, held_out
from preftune.judges.ratings import ratings
from preftune.learner import GradientLearner
from preftune.methods import METHODS
from preftune.policies.text import load
from preftune.types import LABELS, Context, Key, Method, Policy, Rows, needs_of

STEPS, BATCH, SEED, TRAIN, TEST, FIXED, SAMPLES = 75, 16, 0, 1200, 250, 48, 256
TRAINING: dict[str, Any] = {"lr": 3e-4, "batch": BATCH, "micro_batch": BATCH, "schedule": "linear", "warmup": 0.1, "steps": STEPS}
DECODING: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 32}

# name -> (hyperparameters and training settings that are not the defaults, why)
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "simpo": ({"gamma_beta_ratio": 0.5}, "has no default; the authors' starting point"),
    "ipo-avg": ({"tau": 2.0}, "ipo's 0.1 times about 20 tokens: the same target in nats a response"),
    "cal-dpo": ({"beta": 0.05}, "the authors' 0.001 asks for 500 nats"),
    "sppo-hard": ({"beta": 0.05}, "the authors' 0.001 asks for 500 nats"),
    "sppo": ({"eta": 20.0, "prompts_per_round": 400, "epochs": 1.0}, "the authors' 1000 asks for 500 nats; 3 rounds of 25 steps"),
    "osp": ({"prompts_per_round": 200}, "one round: 200 prompts with six pairs each are 75 steps"),
    "curry-dpo": ({"prompts_per_round": 400}, "three stages of 25 steps, each on other lists"),
    "tr-dpo": ({"every": 16}, "the authors' 512 steps are more than there are"),
    "lipo": ({"unit": 8.0}, "scores reach from 0 to 8; grades then from 0 to 1, as in the paper"),
    "tpo": ({"unit": 8.0}, "scores reach from 0 to 8"),
    "c-advipo": ({"iterations": 3, "step": 1e-3}, "time: three steps of the attack instead of ten, ten times as long"),
    "c-advul": ({"iterations": 3, "step": 1e-3}, "the same"),
}

# --- the data -----------------------------------------------------------------------------------------------------------


class Ratings:
    """Sentences under 18 words with their mean rating, by part, and rows made of them."""

    def __init__(self) -> None:
        texts, self.votes = movie_reviews()
        self.texts = {part: {i: t for i, t in texts_of(texts, part).items() if len(t.split()) < 18} for part in ("train", "test")}
        self.mean = {i: sum(v) / len(v) for i, v in self.votes.items()}

    def rows(self, part: str, count: int, bands: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
        """`count` rows with one sentence of each band of mean ratings, best first, and every label that is known of them."""
        texts = self.texts[part]
        found = []
        pools = []
        for number, (low, high) in enumerate(bands):
            fitting = [i for i in texts if low < self.mean[i] <= high]
            draws = [Key.of(SEED).fold(part, number, again).numpy().permutation(len(fitting)) for again in range(-(-count // len(fitting)))]
            pools.append([fitting[j] for order in draws for j in order][:count])
        for row, ids in enumerate(zip(*pools, strict=True)):
            sentences = [texts[i] for i in ids]
            best, last = self.votes[ids[0]], self.votes[ids[-1]]
            found.append(
                {
                    "id": f"{part}-{row}",
                    "prompt": PROMPTS[row % len(PROMPTS)],
                    "responses": sentences,
                    "ranked": True,
                    "scores": [self.mean[i] + 4 for i in ids],  # 0 to 8
                    "prefer": above(best, last),
                    "other_scores": [-len(text.split()) / 10 for text in sentences],  # brevity, in units of reward
                    "steps": [halves(text) for text in sentences],
                    "texts": list(ids),
                }
            )
        return found


KIND, HARSH = (1.5, 4.0), (-4.0, -1.5)
PAIR, LIST, TRIPLE = (KIND, HARSH), (KIND, (0.3, 1.5), (-1.5, -0.3), HARSH), (KIND, HARSH, (2.0, 4.0))
BANDS = {1: PAIR, 2: PAIR, 3: TRIPLE, "K": LIST, 0: PAIR}


def data_for(method: Method, ratings: Ratings) -> list[dict[str, Any]]:
    """The rows that a method reads, with the labels that it needs and no others: hard pairs unless it cannot do without more."""
    needs = needs_of(method.objective)
    columns = 0 if not method.offline else method.columns or needs.columns
    bands = PAIR if "desirable" in needs.labels else BANDS[columns]
    reads = {"score": "scores"}
    keep = {reads.get(label, label) for label in needs.labels} | ({"scores"} if columns == "K" else set())
    keep |= {"steps"} if "segments" in needs.wants else set()
    drop = {"scores", "prefer", "other_scores", "steps"} - keep
    rows = ratings.rows("train", TRAIN, bands)
    return with_goals(rows) if "goal" in needs.labels else [{k: v for k, v in row.items() if k not in drop} for row in rows]


def with_goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Half of the pairs, each twice: asked for the score of the better sentence, then for that of the worse one."""
    half = [{**row, "scores": [round(score) for score in row["scores"]]} for row in rows[: TRAIN // 2]]
    made = list(rows_with_goals(from_rows(half), Counter(), text="{goal}", place="prompt"))
    order = Key.of(SEED).fold("goals").numpy().permutation(len(made))
    return [made[i] for i in order]


def halves(text: str) -> list[str]:
    """A sentence in two steps, for methods that weigh steps: cut behind a word where there is one in its second half."""
    cut = text.find(" ", len(text) // 2)
    cut = cut if cut > 0 else len(text) // 2
    return [text[:cut], text[cut:]]


# --- one run ------------------------------------------------------------------------------------------------------------


def feed_of(method: Method, data: Any, tokenizer: Any) -> TextFeed:
    """The rows as preftune.train reads them."""
    needs = needs_of(method.objective)
    made = getattr(getattr(method.collect, "func", method.collect), "makes", ())
    extra = tuple(label for label in needs.labels if label not in (*LABELS, *made))
    columns, steps = method.columns or needs.columns, "segments" in needs.wants and "segments" not in made
    return TextFeed(data, tokenizer, columns if method.offline else 0, labels=extra, steps=steps)


@torch.no_grad()
def loss_on(learner: GradientLearner, start: Policy, rows: Rows) -> float:
    """The method's loss on collected rows against the start as reference, without what it remembers of earlier steps."""
    now = dict(learner.roles), learner.running
    learner.roles, learner.running = {**learner.roles, "reference": start}, {}
    _, losses = learner.measure(rows)
    learner.roles, learner.running = now
    weight = torch.ones(len(rows)) if rows.weight is None else rows.weight
    total = sum(float(len(loss.row) if loss.count is None else loss.count.sum()) for loss in losses)
    return float((weight.double() * torch.cat([loss.row for loss in losses]).double()).sum() / total)


class Bench:
    """What all runs share: model folder, ratings, judge, held-out pairs, prompts to sample for."""

    def __init__(self) -> None:
        self.folder, self.ratings, self.judge = small_model(), Ratings(), ratings("kind")
        self.commit = provenance.commit()  # of the code that is loaded, whatever is committed while it runs
        self.start = load(str(self.folder))
        self.test = self.ratings.rows("test", TEST, PAIR)
        # no sentence stands in two of these pairs, so a bootstrap over pairs is one over texts
        assert len({i for row in self.test for i in row["texts"]}) == 2 * TEST
        self.asked = [{"id": f"sample-{i}", "prompt": PROMPTS[i % len(PROMPTS)]} for i in range(SAMPLES)]

    def measured(self, policy: Policy, goal: str = "") -> dict[str, Any]:
        """Held-out pairs relative to the start, and the judge's opinion of fresh samples, with a goal in front of the prompts."""
        test, asked = (
            TextFeed(from_rows([{**row, "prompt": goal + row["prompt"]} for row in rows]), self.start.tokenizer, columns)
            for rows, columns in ((self.test, 2), (self.asked, 0))
        )
        batches = (test.rows(range(at, min(at + 50, TEST))) for at in range(0, TEST, 50))
        pairs = held_out(policy, self.start, batches, clusters=range(TEST), seed=SEED)
        prompts = asked.rows(range(SAMPLES))
        score, before = (
            draw(who, prompts, 1, Key.of(SEED).fold(which), judge=self.judge, decoding=DECODING).score
            for who, which in ((policy, "samples"), (self.start, "start"))
        )
        assert score is not None and before is not None
        wins = (self.judge.slope * (score - before)).sigmoid()  # of each sample against one of the start's, by the judge
        found: dict[str, Any] = {name: pairs[name] for name in ("accuracy", "logp_chosen", "logp_rejected")}
        for measure, values in (("judge", score), ("win_rate", wins)):
            found |= {measure: float(values.mean()), f"{measure}_se": float(values.std()) / SAMPLES**0.5}
        return found

    def run(self, name: str) -> dict[str, Any]:
        """Train one method from the start, and measure."""
        settings, _ = SETTINGS.get(name, ({}, ""))
        method = prepare(name, {**TRAINING, **settings}).method
        data = from_rows(data_for(method, self.ratings))
        policy, kept = load(str(self.folder)), []
        policy.max_new_tokens = DECODING["max_new_tokens"]
        start = policy.reference()
        before = GradientLearner(policy, method, {"current": policy, "reference": start}, micro_batch=BATCH)
        fixed = feed_of(method, data, policy.tokenizer).rows(range(FIXED))
        roles = {"current": policy, "reference": start, "opponent": policy}
        rows = method.collect(Context(roles, fixed, [self.judge], key=Key.of(SEED).fold("fixed"))).take(range(FIXED))
        first = loss_on(before, start, rows)
        keep: Callable[[Any], None] = lambda event: kept.append(event.learner) if event.step == STEPS else None
        began, spent = time.monotonic(), time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            run = preftune.train(
                policy, name, data, judge=self.judge, out=Path(scratch) / "run", samples=0, progress=False, seed=SEED, save_every=0,
                callbacks=[keep], **TRAINING, **settings,
            )  # fmt: skip
        if run.stopped != "finished":
            raise SystemExit(f"{name}: {run.stopped} after {run.steps} steps")
        seconds = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - spent}
        goal = "8\n\n" if "goal" in needs_of(method.objective).labels else ""
        return {
            "loss_before": first,
            "loss_after": loss_on(kept[0], start, rows),
            **self.measured(policy, goal),
            **seconds,
            "steps": run.steps,
            "settings": settings,
            "commit": self.commit,
            "curve": [line["loss"] for line in run.history],
        }


# --- the page -----------------------------------------------------------------------------------------------------------

# method whose loss does not fall, or whose interval reaches down to one half -> why
RAW = "compares raw log-probabilities, which lie tens of nats apart by length and wording alone: that decides which pairs pull"
EXCEPTIONS = {
    "discopop": "its loss turns the margin the wrong way at the start: a minimum lies at h = -0.12, and pairs have to leave it first",
    "slic": RAW,
    "dpo-reference-free": RAW,
    "logic": "its default formula, l -> w, is fulfilled by denying the loser: the policy unlearns both sentences (see the drift)",
    "online-ipo": "at tau = 1 win rates ask for tenths of a nat, less than the noise that this rate adds to log-ratios of sentences drawn "
    "once; with tau = 0.1 and lr 3e-5 the loss falls from 4.89 to 4.77",
    "egpo": "self-play: samples win against the start's, see below; held-out human sentences are no samples of the policy",
    "sppo": "self-play: samples win against the start's, see below; the fixed rows ask for the first of three steps alone, and every row "
    "is seen once, at a rate that moves other sentences more than it fits them: with lr 3e-5 and one round the loss falls to 14.9",
    "reward-augmented": "each pair stands there in both orders and cancels until the model reads the goal, a number before the prompt; "
    "after 750 steps the loss is 0.056 and the accuracy 0.720 [0.664, 0.776]",
}

SIDE = """Numbers at other steps, rates or tau in the last column are single runs of the same harness
with SETTINGS changed by hand, seed 0."""

HEAD = """# Every method on one task

Measured, not tuned: each method of the registry trains the same small language model on the same real ratings for {steps} steps, to show
that it runs end to end and does what its loss says. It does not show which method is best: learning rate and budget are the same
for all, and most authors chose their values for models ten thousand times as large.

    {command}

- model: {parameters:,} weights, trained from scratch on film review sentences without their ratings (`benchmarks/small_model.py`;
  {bits:.2f} bits a byte on sentences it has not seen; the held-out pairs are made of those)
- data: {train} pairs, chosen with a mean human rating above 1.5, rejected below -1.5 (scale -4 to 4), under 18 words, hard labels;
  graded methods get {train} lists of four with the mean ratings as scores; modpo a second score against length; reward-augmented
  {train} rows with goals; triple-po a third, liked sentence; self-play the prompts and a judge. Single raters' votes come from the
  archive of vaderSentiment
- training: AdamW, lr {lr:g} with warm-up and linear decay, {batch} rows a step, all weights, one seed ({seed}); self-play with the
  optimiser that it recommends (no momentum; sppo RMSprop); hyperparameters are the methods' defaults except in the table below
- loss: on {fixed} fixed rows with the start as reference, before and after
- accuracy: implicit reward (log-probability less the start's) on {test} held-out pairs, with a 95 % bootstrap interval; no sentence
  stands in two of them, so pairs are the clusters of texts
- judge: mean score of {samples} fresh samples (temperature {temperature:g}, top-p {top_p:g}) with its standard error, by a ridge on words
  that was fitted on other texts; expected human rating, -4 to 4. Self-play is trained by this very judge, the others never see it
- drift: change of the log-probability of held-out chosen and rejected sentences, nats a sentence
- seconds: processor time of one thread for the run, loading and saving included
"""


def hyperparameters(name: str) -> dict[str, Any]:
    """Those of the settings that are the method's and not the run's."""
    return {key: value for key, value in SETTINGS.get(name, ({}, ""))[0].items() if key in signature(METHODS[name]).parameters}


def interval(x: dict[str, float]) -> str:
    return f"{x['value']:.3f} [{x['low']:.3f}, {x['high']:.3f}]"


def fails(found: dict[str, Any]) -> list[str]:
    """Which of the two bars a method misses."""
    missed = [] if found["loss_after"] < found["loss_before"] else [f"loss {found['loss_before']:.4g} to {found['loss_after']:.4g}"]
    return missed + ([] if found["accuracy"]["low"] > 0.5 else [f"accuracy {interval(found['accuracy'])}"])


def page(kept: dict[str, Any]) -> str:
    """docs/results.md from what is kept."""
    runs = {name: kept["runs"][name] for name in METHODS if name in kept["runs"]}
    commits = sorted({found["commit"][:10] + "+" * found["commit"].endswith("+") for found in runs.values()})
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    head = HEAD.format(
        command="OMP_NUM_THREADS=1 python benchmarks/catalogue.py", steps=STEPS, train=TRAIN, batch=BATCH, seed=SEED, fixed=FIXED,
        test=TEST, samples=SAMPLES, lr=TRAINING["lr"], temperature=DECODING["temperature"], top_p=DECODING["top_p"],
        parameters=kept["model"]["parameters"], bits=kept["model"]["bits_per_byte"],
    )  # fmt: skip
    start = kept["start"]
    lines = [
        head,
        "| method | loss | held-out accuracy | judge | chosen | rejected | seconds |",
        "|---|---|---|---|---|---|---|",
        f"| the start | | 0.500 | {start['judge']:+.2f} ± {start['judge_se']:.2f} | 0 | 0 | |",
    ]
    for name, found in runs.items():
        judged = f"{found['judge']:+.2f} ± {found['judge_se']:.2f}"
        drift = " | ".join(f"{found[column]['value']:+.1f}" for column in ("logp_chosen", "logp_rejected"))
        loss = f"{found['loss_before']:.4g} → {found['loss_after']:.4g}"
        lines.append(f"| {name} | {loss} | {interval(found['accuracy'])} | {judged} | {drift} | {found['cpu_seconds']:.0f} |")
    missed = {name: fails(found) for name, found in runs.items() if fails(found)}
    falls = sum(found["loss_after"] < found["loss_before"] for found in runs.values())
    ordered = sum(found["accuracy"]["low"] > 0.5 for found in runs.values())
    lines += ["", f"The loss on the fixed rows falls for {falls} of {len(runs)} methods; held-out accuracy lies above one half with its"]
    lines += [f"whole interval for {ordered} of {len(runs)}."]
    if missed:
        lines += ["", "| exception | found | why |", "|---|---|---|"]
        lines += [f"| {name} | {', '.join(found)} | {EXCEPTIONS.get(name, 'not explained')} |" for name, found in missed.items()]
        lines += [
            "",
            SIDE,
        ]
    playing = {name: found for name, found in runs.items() if not METHODS[name](**hyperparameters(name)).offline}
    lines += ["", "Self-play is judged by its samples: how often one beats one of the start's, by the judge, each with its standard error."]
    lines += [
        "",
        "| method | win rate |",
        "|---|---|",
        f"| the start, other samples | {start['win_rate']:.3f} ± {start['win_rate_se']:.3f} |",
    ]
    lines += [f"| {name} | {found['win_rate']:.3f} ± {found['win_rate_se']:.3f} |" for name, found in playing.items()]
    absent = [name for name in METHODS if name not in runs]
    lines += ["", f"Not run: {', '.join(absent)}."] if absent else []
    lines += ["", "Settings that are not the methods' defaults:", "", "| method | settings | why |", "|---|---|---|"]
    for name, (settings, why) in SETTINGS.items():
        lines.append(f"| {name} | {', '.join(f'{key} = {value:g}' for key, value in settings.items())} | {why} |")
    return "\n".join([*lines, "", f"Commit {', '.join(commits)} (+: beside uncommitted work); {versions}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these methods, also where a result of them is kept")
    parser.add_argument("--page", action="store_true", help="write the page from what is kept and run nothing")
    options = parser.parse_args()
    kept_at = options.out.with_suffix(".json")
    kept: dict[str, Any] = json.loads(kept_at.read_text()) if kept_at.exists() else {}
    missing = [] if options.page else options.only or [name for name in METHODS if name not in kept.get("runs", {})]
    if missing:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        bench = Bench()
        if "start" not in kept:
            kept |= {"start": bench.measured(bench.start), "runs": {}}
        kept |= {"versions": provenance.versions(), "model": json.loads((bench.folder / "made.json").read_text()), "recipe": RECIPE}
        for name in missing:
            try:
                found = bench.run(name)
            except preftune.PreftuneError as error:  # one method's refusal does not cost the others' results
                print(f"{name:20} {error}", flush=True)
                continue
            kept["runs"][name] = found
            kept_at.write_text(json.dumps(kept, indent=1) + "\n")
            told = f"loss {found['loss_before']:.4f} -> {found['loss_after']:.4f}  accuracy {found['accuracy']['value']:.3f}"
            drift = f"drift {found['logp_chosen']['value']:+.1f} {found['logp_rejected']['value']:+.1f}"
            print(
                f"{name:20} {told}  judge {found['judge']:+.3f} +- {found['judge_se']:.3f}  {drift}  {found['seconds']:.0f} s", flush=True
            )
    write_around(options.out, page(kept))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
