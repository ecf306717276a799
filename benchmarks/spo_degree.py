"""Does knowing degrees of preference help? DPO against DPO with the degree loss, and against its controls, over several seeds.

    OMP_NUM_THREADS=1 python benchmarks/spo_degree.py --out spo_degree.json

dpo        DPO alone
keyphrases DPO + gamma * degree, copies lose their key phrases (spo-degree as it is)
random     the same, but copies lose as many words drawn by chance: if this helps as much, key phrases are not what works
shuffled   the same as keyphrases, but the degrees are dealt out by chance: there is nothing to learn

Every arm starts from the language model of small_model.py, 0.9 million weights trained from scratch on film review sentences.
No text of the held-out pairs was seen by model, judge or arms. A seed chooses which training sentences meet, their order and
the samples. Harsh sentences are preferred. Each text is in one pair, so a bootstrap over pairs is one clustered by text;
intervals resample seeds and pairs (or samples) together.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from preference_term import pair_metrics
from small_model import PROMPTS, small_model

from preftune import provenance, training
from preftune.data import from_rows
from preftune.data.columns import Record
from preftune.data.feed import TextFeed
from preftune.data.ratings import critic_pairs, movie_reviews
from preftune.evaluation import draw
from preftune.judges.ratings import ratings
from preftune.log import Log, write_whole
from preftune.methods import dpo, spo_degree
from preftune.objectives import degree, pairwise
from preftune.policies.text import CachedReference
from preftune.policies.text import load as load_policy
from preftune.types import Context, Key, Method, Rows

PROMPT = PROMPTS[0]
PAIRS: dict[str, Any] = {"words": (4, 24), "mean": 1.0, "prompt": PROMPT, "system": None}
SETTINGS: dict[str, Any] = {"lr": 3e-4, "batch": 16, "micro_batch": 16, "epochs": 1.0, "schedule": "linear", "save_every": 0}
DECODING: dict[str, Any] = {"max_new_tokens": 32}
CONTROLS: dict[str, dict[str, Any]] = {"keyphrases": {}, "random": {"remove": "random"}, "shuffled": {"shuffle_degrees": True}}
DEGREE_PAIRS = 300  # pairs that the degrees are measured on


# --- what is measured -----------------------------------------------------------------------------------------------


def copies(policy: Any, method: Method, feed: TextFeed, seed: int) -> Rows:
    """The first pairs with the copies that the method makes."""
    return method.collect(Context({"current": policy}, feed.rows(range(min(DEGREE_PAIRS, len(feed)))), key=Key.of(seed).fold("copies")))


@torch.no_grad()
def degree_accuracy(policy: Any, rows: Rows, batch: int = 32) -> list[float]:
    """Share of a held-out text's versions whose degree the trained head tells, [B]."""
    parts = (rows.take(range(at, min(at + batch, len(rows)))) for at in range(0, len(rows), batch))
    return torch.cat([degree.degree(policy.score(part)).metrics["degree_accuracy"] for part in parts]).tolist()


def by_length(train: Rows, test: Rows) -> float:
    """What the number of tokens alone tells of the degree: accuracy of a logistic regression on held-out texts."""
    from sklearn.linear_model import LogisticRegression

    def table(rows: Rows) -> tuple[numpy.ndarray, numpy.ndarray]:
        label, length = rows.label("degree"), rows.response.length.double()
        kept = label >= 0
        return torch.stack([length[kept], length[kept].log()], 1).numpy(), label[kept].long().numpy()

    return float(LogisticRegression(max_iter=1000).fit(*table(train)).score(*table(test)))


def cosine(policy: Any, reference: Any, rows: Rows) -> float:
    """Between the gradients of the preference loss and of the degree loss on the model's own weights."""
    s = policy.score(rows)
    with torch.no_grad():
        s = type(s)(rows, s.logp, reference.score(rows).logp, s.length, s.heads)
    trunk = [value for name, value in policy.live().items() if not name.startswith("heads.")]
    gradients = []
    for objective in (pairwise.dpo, degree.degree):
        found = torch.autograd.grad(objective(s).row.sum(), trunk, retain_graph=True, allow_unused=True)
        gradients.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(trunk, found, strict=True)]))
    return float(torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0))


# --- the comparison -------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--samples", type=int, default=96, help="texts drawn from each trained model")
    parser.add_argument("--out", type=Path, help="written after every run")
    parser.add_argument("--show", type=Path, help="tabulate such a file, seeds that are complete, and train nothing")
    options = parser.parse_args()
    if options.show:
        summarise(json.loads(options.show.read_text()))
        return
    texts, votes = movie_reviews()
    judge = ratings("harsh")
    arms: dict[str, Method] = {"dpo": dpo()}
    arms |= {f"{name} {gamma:g}": spo_degree(gamma=gamma, **how) for gamma in options.gammas for name, how in CONTROLS.items()}
    found: dict[str, Any] = {"commit": provenance.commit(), "versions": provenance.versions(), "settings": SETTINGS, "seeds": options.seeds}
    with tempfile.TemporaryDirectory() as scratch:
        policy = load_policy(small_model(), device="cpu")
        start, reference = policy.state(), CachedReference(policy.reference())

        def feed(part: str, seed: int) -> TextFeed:
            return TextFeed(from_rows(critic_pairs(texts, votes, part, seed=seed, **PAIRS)), policy.tokenizer, 2)

        held_out = feed("test", 0)
        prompt = policy.encode([Record("prompt", PROMPT, [])])[0]

        def judged(seed: int, when: str) -> list[float]:
            drawn = draw(policy, prompt, options.samples, Key.of(seed).fold(when), judge=judge, decoding=DECODING)
            return drawn.score.ravel().tolist()  # type: ignore[union-attr]

        found |= {"pairs": len(held_out), "before": [judged(seed, "before") for seed in options.seeds], "runs": []}
        print(f"{len(held_out)} held-out pairs; judge before {numpy.mean(found['before']):+.3f}", flush=True)
        for seed in options.seeds:
            pairs = feed("train", seed)
            for arm, method in arms.items():
                policy.load(start) if not policy.heads else fresh(policy, start)
                folder, began = Path(scratch) / f"{arm}-{seed}", time.process_time()
                folder.mkdir()
                config = training.TrainConfig(seed=seed, **SETTINGS)
                outcome = training.run(policy, method, pairs, config, folder, Log(folder, 0, progress=False), reference=reference)
                run: dict[str, Any] = {"arm": arm, "seed": seed, "steps": outcome.steps, "cpu_seconds": time.process_time() - began}
                run |= {name: list(map(float, value)) for name, value in pair_metrics(policy, reference, held_out).items()}
                run["judge"] = judged(seed, "after")
                if method.heads:
                    test = copies(policy, method, held_out, seed)
                    run["degree_accuracy"] = degree_accuracy(policy, test)
                    run["by_length"] = by_length(copies(policy, method, pairs, seed), test)
                    run["cosine"] = cosine(policy, reference, test.take(range(32)))
                found["runs"].append(run)
                told = {
                    name: numpy.mean(run[name]) for name in ("accuracy", "judge", "degree_accuracy", "by_length", "cosine") if name in run
                }
                line = "  ".join(f"{name} {value:+.3f}" for name, value in told.items())
                print(f"seed {seed}  {arm:14}  {line}  {outcome.steps} steps  {run['cpu_seconds']:.0f} CPU seconds", flush=True)
                if options.out:
                    write_whole(options.out, json.dumps(found))
    summarise(found)


def fresh(policy: Any, start: dict[str, torch.Tensor]) -> None:
    """The model as it was, without heads."""
    policy.attach({}, Key.of(0))
    policy.load(start)


def both_ways(values: numpy.ndarray, *, draws: int = 4000, paired: bool = True) -> tuple[float, float, float]:
    """Mean of [seeds, B] and its 95 % interval, seeds and columns drawn anew together; `paired`: columns mean the same in all seeds."""
    generator = numpy.random.default_rng(0)
    seeds, columns = values.shape
    means = []
    for _ in range(draws):
        of = values[generator.integers(seeds, size=seeds)]
        if paired:
            means.append(of[:, generator.integers(columns, size=columns)].mean())
        else:
            means.append(numpy.take_along_axis(of, generator.integers(columns, size=of.shape), 1).mean())
    low, high = numpy.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def summarise(found: dict[str, Any]) -> None:
    """A row for each arm, the differences that the claim is about, and what follows."""

    def stack(arm: str, name: str) -> numpy.ndarray:
        return numpy.array([run[name] for run in found["runs"] if run["arm"] == arm])  # [seeds, B]

    def shown(interval: tuple[float, float, float], sign: str = "") -> str:
        value, low, high = interval
        return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"

    arms = list(dict.fromkeys(run["arm"] for run in found["runs"]))
    whole = [seed for seed in found["seeds"] if [run["seed"] for run in found["runs"]].count(seed) == len(arms)]
    found["runs"] = [run for run in found["runs"] if run["seed"] in whole]
    print(f"\nseeds {whole}, {found['pairs']} held-out pairs, judge before {numpy.mean(found['before']):+.3f}, commit {found['commit']}")
    print("\n| arm | held-out accuracy | judge | chosen | rejected | degree accuracy | by length | cosine |\n" + "|---" * 8 + "|")
    for arm in arms:
        judged, heads = stack(arm, "judge"), arm != "dpo"
        by_seed = judged.mean(1)
        error = by_seed.std(ddof=1) / len(by_seed) ** 0.5 if len(by_seed) > 1 else float("nan")
        more = (
            [shown(both_ways(stack(arm, "degree_accuracy"))), *(f"{stack(arm, n).mean():.3f}" for n in ("by_length", "cosine"))]
            if heads
            else [""] * 3
        )
        drift = [f"{stack(arm, name).mean():+.1f}" for name in ("logp_chosen", "logp_rejected")]
        print(f"| {arm} | {shown(both_ways(stack(arm, 'accuracy')))} | {judged.mean():+.3f} ± {error:.3f} | {' | '.join(drift + more)} |")
    print("\n| difference | held-out accuracy | judge |\n|---|---|---|")
    gains: dict[str, dict[str, tuple[float, float, float]]] = {}
    for gamma in sorted({arm.split()[1] for arm in arms if " " in arm}):
        main, random, shuffled = (f"{name} {gamma}" for name in CONTROLS)
        for left, right in ((main, "dpo"), (main, random), (main, shuffled), (random, "dpo")):
            gain = {
                "accuracy": both_ways(stack(left, "accuracy") - stack(right, "accuracy")),
                "judge": both_ways(stack(left, "judge") - stack(right, "judge"), paired=False),
            }
            gains[f"{left} - {right}"] = gain
            print(f"| {left} - {right} | {shown(gain['accuracy'], '+')} | {shown(gain['judge'], '+')} |")
    found["gains"] = gains
    print("\n" + verdict(gains))


def verdict(gains: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """One sentence. The claim: the degree loss helps DPO, and it is key phrases that help."""
    above = lambda difference: {measure for measure, (_, low, _) in gains[difference].items() if low > 0}
    below = lambda difference: {measure for measure, (_, _, high) in gains[difference].items() if high < 0}
    words = []
    for gamma in sorted({name.split()[1] for name in gains}):
        helps, hurts = above(f"keyphrases {gamma} - dpo"), below(f"keyphrases {gamma} - dpo")
        more = above(f"keyphrases {gamma} - random {gamma}") & helps
        if hurts:
            words.append(f"with gamma {gamma} the degree loss is worse than none ({', '.join(sorted(hurts))})")
        elif not helps:
            words.append(f"with gamma {gamma} no interval of the degree loss against dpo alone excludes 0")
        elif not more:
            words.append(f"with gamma {gamma} it helps ({', '.join(sorted(helps))}), but not more than removing random words")
        else:
            words.append(f"with gamma {gamma} it helps more than removing random words ({', '.join(sorted(more))})")
    survives = any("helps more" in word for word in words)
    return f"The claim {'survives' if survives else 'does not survive'} here: " + "; ".join(words) + "."


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    main()
