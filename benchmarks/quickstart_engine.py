"""The quick start's scoring and training with the fast engine and with the plain one, in turns, same pairs, order and start.

    OMP_NUM_THREADS=1 python benchmarks/quickstart_engine.py --repeats 3

One turn: the log-probs of all pairs under the reference, 64 steps of rpo on the last four layers, and the held-out pairs scored
before and after; nothing is sampled and no cache is read. Prints the median of each engine and of the ratio within a turn, in CPU
seconds of this process, and by how much the trained weights and the held-out scores of the two differ.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from preftune.cli.quickstart import LOAD, RECIPE, fetch_model, write_pairs


def turn(engine: str, pairs: dict[str, Path], steps: int | None) -> tuple[float, dict[str, Any], float]:
    """CPU seconds, the trained weights, and the held-out accuracy."""
    import preftune
    from preftune.policies.text.model import load

    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFTUNE_CACHE"] = str(Path(folder) / "cache")
        policy = load(MODEL, engine=engine, **LOAD)
        began = time.process_time()
        settings = RECIPE | ({"steps": steps} if steps else {})
        data = {name: str(path) for name, path in pairs.items()}
        run = preftune.train(
            policy, "rpo", data["train"], test=data["test"], out=Path(folder) / "run", samples=0, progress=False, seed=0, **settings
        )
        return time.process_time() - began, policy.state(), run.evaluation["after"]["accuracy"]["value"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, help="fewer than the quick start's 64")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from preftune.policies.text.model import find_source

    MODEL = find_source(fetch_model())
    times: dict[str, list[float]] = {"fast": [], "plain": []}
    ended: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = write_pairs(Path(folder), 0)
        for _ in range(arguments.repeats):
            for engine, found in times.items():
                seconds, *ended[engine] = turn(engine, pairs, arguments.steps)
                found.append(seconds)
                print(f"{engine:5} {seconds:.1f} CPU s, held-out accuracy {ended[engine][1]:.3f}", flush=True)
    far = torch.cat([(ended["fast"][0][n] - w).flatten() for n, w in ended["plain"][0].items()]).norm()
    size = torch.cat([w.flatten() for w in ended["plain"][0].values()]).norm()
    ratio = statistics.median(b / a for a, b in zip(times["fast"], times["plain"], strict=True))
    print(f"fast {statistics.median(times['fast']):.1f} s, plain {statistics.median(times['plain']):.1f} s, plain / fast {ratio:.2f}")
    print(f"trained weights differ by {far / size:.1e} of their length")
