"""Every method on the quick start's task: real model, real ratings, same start, same number of prompts a step.

    OMP_NUM_THREADS=1 python benchmarks/methods.py --out methods.json

Offline methods see the same 256 pairs in the same order, 64 steps of 4, at the quick start's learning rate. Self-play sees the
prompt alone and the ratings judge, which then also scores the result: 32 steps of 4 prompts. Hyperparameters are the methods'
own defaults unless SETTINGS says otherwise; nothing is tuned, so this shows that each method does what its loss says, not
which one is best.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from preference_term import pair_metrics

from preftune import provenance, training
from preftune.cli.quickstart import DECODING, LOAD, PAIRS, RECIPE, SAMPLES, TEST_PAIRS, TRAIN_PAIRS, fetch_model
from preftune.data import from_rows
from preftune.data.feed import TextFeed
from preftune.data.ratings import critic_pairs, movie_reviews
from preftune.evaluation import draw
from preftune.judges.ratings import ratings
from preftune.log import Log
from preftune.methods import METHODS
from preftune.policies.text import CachedReference
from preftune.policies.text import load as load_policy
from preftune.types import Key, needs_of

SETTINGS: dict[str, dict[str, Any]] = {
    "ipo-avg": {"tau": 1.5},  # ipo's 0.1 times about 15 tokens: the same target in nats per response
    "simpo": {"gamma_beta_ratio": 0.5},
    "rpo": {"beta": 0.1, "eta": 0.3},
    "rpo-avg": {"beta": 0.1},
    "tr-dpo": {"every": 16},
}
ONLINE_STEPS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several_prompts = ("kto",)  # its KL baseline needs responses of other prompts, and this task has one prompt
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if name not in several_prompts])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    texts, votes = movie_reviews()
    judge, policy = ratings("harsh"), load_policy(fetch_model(), **LOAD)
    policy.max_new_tokens = DECODING["max_new_tokens"]
    start, reference = policy.state(), CachedReference(policy.reference())
    train, test = (
        from_rows(critic_pairs(texts, votes, name, seed=0, count=count, **PAIRS))
        for name, count in (("train", TRAIN_PAIRS), ("test", TEST_PAIRS))
    )
    held_out = TextFeed(test, policy.tokenizer, 2)
    prompt = held_out.rows([0])
    before = draw(policy, prompt, SAMPLES, Key.of(0).fold("before"), judge=judge, decoding=DECODING).score.numpy().ravel()
    found: dict[str, Any] = {"commit": provenance.commit(), "versions": provenance.versions(), "settings": SETTINGS, "runs": {}}
    print(f"before: judge {before.mean():+.3f}, sd {before.std(ddof=1):.3f}", flush=True)
    for name in options.methods:
        method = METHODS[name](**SETTINGS.get(name, {}))
        online = method.collect_every == "step"
        settings = {key: value for key, value in RECIPE.items() if key not in ("beta", "eta")} | dict(method.recipe)
        config = replace(training.TrainConfig(**settings), steps=ONLINE_STEPS if online else None)
        feed = TextFeed(train, policy.tokenizer, 0 if online else needs_of(method.objective).columns)
        policy.load(start)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            own = policy.reference() if online else reference
            outcome = training.run(
                policy, method, feed, config, Path(scratch), Log(Path(scratch), 0, progress=False), reference=own, judges=[judge]
            )
        seconds = time.process_time() - began
        pairs = {key: float(value.mean()) for key, value in pair_metrics(policy, reference, held_out).items()}
        score = draw(policy, prompt, SAMPLES, Key.of(0).fold("after"), judge=judge, decoding=DECODING).score.numpy().ravel()
        shift = float((score.mean() - before.mean()) / before.std(ddof=1))
        found["runs"][name] = {**pairs, "shift": shift, "steps": outcome.steps, "cpu_seconds": seconds}
        print(
            f"{name:10}  accuracy {pairs['accuracy']:.3f}  chosen {pairs['logp_chosen']:+6.1f}  rejected {pairs['logp_rejected']:+6.1f}  "
            f"shift {shift:+.2f} sd  {outcome.steps} steps  {seconds:.0f} CPU seconds",
            flush=True,
        )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
