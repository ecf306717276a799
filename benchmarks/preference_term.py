"""What the preference term adds to the likelihood of the preferred sentence: the quick start's task, three arms, three seeds.

    python benchmarks/preference_term.py --out preference_term.json

rpo         DPO plus eta * beta * (-log-likelihood of the harsh sentence)
likelihood  that term alone, with the same weight
dpo         DPO alone

The arms share start, pairs, order, steps and learning rate. A seed chooses which training sentences meet, the order and the
samples; the held-out pairs are the same for all. Each text is in one pair, so a bootstrap over pairs, whose value is the mean
over seeds, is one clustered by text.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch

from preftune import training
from preftune.cli.quickstart import DECODING, LOAD, PAIRS, RECIPE, SAMPLES, TEST_PAIRS, TRAIN_PAIRS, fetch_model
from preftune.collect.draw import given
from preftune.data import load
from preftune.data.feed import TextFeed
from preftune.data.ratings import critic_pairs, movie_reviews, write_jsonl
from preftune.evaluation import bootstrap, draw, preference_metrics
from preftune.judges.ratings import ratings
from preftune.log import Log
from preftune.methods.dpo import dpo
from preftune.methods.rpo import rpo
from preftune.objectives.auxiliary import nll, scale
from preftune.policies.text import CachedReference
from preftune.policies.text import load as load_policy
from preftune.reference import frozen
from preftune.types import Key, Method
from preftune.update import plain


def likelihood(beta: float, eta: float) -> Method:
    """rpo without its preference term."""
    return Method(scale(partial(nll, aggregation="seq_sum"), eta * beta), given, frozen, plain)


def arms(beta: float, eta: float) -> dict[str, Method]:
    """The three methods that are compared."""
    return {"rpo": rpo(beta=beta, eta=eta), "likelihood": likelihood(beta, eta), "dpo": dpo(beta=beta)}


@torch.no_grad()
def pair_metrics(policy: Any, reference: Any, feed: TextFeed, batch: int = 16) -> dict[str, numpy.ndarray]:
    """accuracy, logp_chosen, logp_rejected [B] of the held-out pairs."""
    parts = []
    for at in range(0, len(feed), batch):
        rows = feed.rows(range(at, min(at + batch, len(feed))))
        scored = policy.score(rows)
        parts.append(preference_metrics(type(scored)(rows=rows, logp=scored.logp, ref_logp=reference.score(rows).logp)))
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in ("accuracy", "logp_chosen", "logp_rejected")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["rpo", "likelihood", "dpo"])
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="another value in the quick start's recipe")
    options = parser.parse_args()
    recipe = RECIPE | {name: type(RECIPE[name])(float(value)) for name, value in (text.split("=") for text in options.set)}
    settings = {name: value for name, value in recipe.items() if name not in ("beta", "eta")}
    methods = arms(float(recipe["beta"]), float(recipe["eta"]))

    texts, votes = movie_reviews()
    judge, policy = ratings("harsh"), load_policy(fetch_model(), **LOAD)
    start, reference = policy.state(), CachedReference(policy.reference())
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)

        def feed(name: str, seed: int, count: int | None) -> TextFeed:
            records = critic_pairs(texts, votes, name, seed=seed, count=count, **PAIRS)
            return TextFeed(load(str(write_jsonl(records, work / f"{name}-{seed}.jsonl"))), policy.tokenizer, 2)

        held_out = feed("test", 0, TEST_PAIRS)
        prompt = held_out.rows([0])
        before = draw(policy, prompt, options.samples, Key.of(0).fold("before"), judge=judge, decoding=DECODING).score.numpy().ravel()
        found: dict[str, Any] = {"recipe": recipe, "pairs": len(held_out), "before": list(before), "runs": []}
        print(f"{len(held_out)} held-out pairs; judge before {before.mean():+.3f}, sd {before.std(ddof=1):.3f}", flush=True)
        for seed in options.seeds:
            pairs = feed("train", seed, TRAIN_PAIRS)
            for arm in options.arms:
                policy.load(start)
                folder = work / f"{arm}-{seed}"
                folder.mkdir()
                config, began = training.TrainConfig(seed=seed, **settings), time.process_time()
                log = Log(folder, 0, progress=False)
                outcome = training.run(policy, methods[arm], pairs, config, folder, log, reference=reference)
                if outcome.stopped != "finished":
                    raise SystemExit(f"{arm}, seed {seed}: {outcome.stopped} after {outcome.steps} steps")
                spent = time.process_time() - began
                pair = pair_metrics(policy, reference, held_out)
                key = Key.of(seed).fold("after")
                score = draw(policy, prompt, options.samples, key, judge=judge, decoding=DECODING).score.numpy().ravel()
                run = {"arm": arm, "seed": seed, "steps": outcome.steps, "cpu_seconds": spent, "judge": list(score)}
                found["runs"].append(run | {name: list(map(float, value)) for name, value in pair.items()})
                means = {name: values.mean() for name, values in pair.items()} | {"judge": score.mean()}
                told = "  ".join(f"{name} {value:+.3f}" for name, value in means.items())
                print(f"seed {seed}  {arm:10s}  {told}  {outcome.steps} steps  {spent:.0f} CPU seconds", flush=True)
    summarise(found)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def summarise(found: dict[str, Any]) -> None:
    """Means over seeds, and rpo against each other arm with a bootstrap over held-out pairs."""

    def stack(arm: str, name: str) -> numpy.ndarray:
        return numpy.array([run[name] for run in found["runs"] if run["arm"] == arm])  # [seeds, B]

    before, names = numpy.array(found["before"]), list(dict.fromkeys(run["arm"] for run in found["runs"]))
    for arm in names:
        accuracy, judged = bootstrap(stack(arm, "accuracy").mean(0)), stack(arm, "judge")
        print(
            f"{arm:10s} accuracy {accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]  "
            f"chosen {stack(arm, 'logp_chosen').mean():+.2f}  rejected {stack(arm, 'logp_rejected').mean():+.2f}  "
            f"judge {judged.mean():+.3f}, shift {(judged.mean() - before.mean()) / before.std(ddof=1):+.2f} sd"
        )
    for arm in names[1:] if names[0] == "rpo" else ():
        gain = bootstrap((stack("rpo", "accuracy") - stack(arm, "accuracy")).mean(0))
        a, b = stack("rpo", "judge").ravel(), stack(arm, "judge").ravel()
        error = (a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)) ** 0.5
        print(
            f"rpo - {arm}: accuracy {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]; "
            f"judge {a.mean() - b.mean():+.3f}, {(a.mean() - b.mean()) / error:.1f} standard errors"
        )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
