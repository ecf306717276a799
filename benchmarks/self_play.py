"""Self-play on language models, three reproductions: who wins, what a cycle does, and what is lost on the way to a high score.

    OMP_NUM_THREADS=1 python benchmarks/self_play.py grid --out self-play --page docs/results.md
    OMP_NUM_THREADS=1 python benchmarks/self_play.py grid --model smollm2 --budget 120 --out self-play --page docs/results.md
    OMP_NUM_THREADS=1 python benchmarks/self_play.py cycle --out self-play --page docs/results.md --picture docs/self-play-cycle.svg
    OMP_NUM_THREADS=1 python benchmarks/self_play.py frontier --out self-play --page docs/results.md --picture docs/self-play-frontier.svg

grid      EGPO, two Online-IPO, Nash-MD and Nash-MD-PG at equal updates and at equal questions to a general preference judge
cycle     a judge that goes in a circle: Bradley-Terry routes beside Nash routes, measured by the shares of three styles
frontier  seven self-play and online methods: win rate against KL to the reference, by the judge trained on and by another one

The policy is the language model of small_model.py. Every finished run is a JSON file in --out and is not repeated; --budget stops
beginning new ones after so many minutes of processor time. Tables are made of what is there, of seeds that all methods have.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch
from self_play_cycle import cycle
from self_play_frontier import frontier
from self_play_grid import grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, (verb, seeds) in {"grid": (grid, 5), "cycle": (cycle, 3), "frontier": (frontier, 3)}.items():
        add = verbs.add_parser(name).add_argument
        add("--out", type=Path, default=Path("self-play"), help="folder of the runs")
        add("--page", type=Path, help="where the section is written")
        add("--seeds", type=int, nargs="+", default=list(range(seeds)))
        add("--methods", nargs="+", metavar="NAME", help="these only, as the tables name them")
        add("--steps", type=int, help="updates of a run")
        add("--budget", type=float, default=math.inf, help="minutes of processor time after which no run is begun")
        add("--tiny", action="store_true", help="the same path in seconds")
        if name == "grid":
            add("--model", choices=["small", "smollm2"], default="small")
        if name != "grid":
            add("--picture", type=Path)
        if name == "cycle":
            add("--win", type=float, default=0.8, help="how often the judge prefers the next style")
        else:
            add("--tokens", type=int, default=16, help="longest response")
        verbs.choices[name].set_defaults(run=verb)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.run(options)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
