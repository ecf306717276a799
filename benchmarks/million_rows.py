"""A million preference pairs: seconds until the first record is served, and peak memory. Prints one JSON object.

    python benchmarks/million_rows.py --rows 1000000 --kind jsonl

The file is written to a temporary folder by this process; loading is measured in a fresh one, its imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

WORDS = [f"word{i}" for i in range(0, 640, 10)]


def rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Pairs of about 600 bytes; every prompt comes twice."""
    rng = random.Random(seed)
    for i in range(count):
        chosen, rejected = (" ".join(rng.choices(WORDS, k=60)) for _ in range(2))
        yield {"prompt": f"Question {i // 2}: write about {WORDS[i // 2 % len(WORDS)]}.", "chosen": chosen, "rejected": rejected}


def write(path: Path, count: int) -> None:
    """The file in the kind its ending names; Parquet in pieces of 100,000 rows."""
    if path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count))
        return
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("prompt", "chosen", "rejected")])
    made = rows(count)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 100_000):
            piece = [next(made) for _ in range(min(100_000, count - start))]
            writer.write_table(pyarrow.Table.from_pylist(piece, schema))


def measure(path: str, begun: float) -> dict[str, object]:
    """Load, serve the first record, then a batch drawn at random."""
    import resource

    from preftune.data import load

    data = load(path)
    first = data[0]
    served, cpu = time.time(), time.process_time()
    picked = random.Random(1).sample(range(len(data)), 64)
    batch = data.records(picked)
    drawn = time.time()
    train, test = data.split(0.1, seed=0)
    assert first.responses and len(batch) == 64
    return {
        "file": Path(path).suffix[1:],
        "bytes": os.path.getsize(path),
        "rows": len(data),
        "first_record_seconds": round(served - begun, 1),
        "of_which_cpu_seconds": round(cpu, 1),
        "batch_of_64_seconds": round(drawn - served, 4),
        "split_seconds": round(time.time() - drawn, 2),
        "train_test": [len(train), len(test)],
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "fingerprint": data.fingerprint,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=["jsonl", "parquet"], default="jsonl")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        print(json.dumps(measure(given.load, given.begun)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"million.{given.kind}"
        write(path, given.rows)
        command = [sys.executable, __file__, "--load", str(path), "--begun", str(time.time())]
        subprocess.run(command, check=True, env={**os.environ, "PREFTUNE_CACHE": folder})


if __name__ == "__main__":
    main()
