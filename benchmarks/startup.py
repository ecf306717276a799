"""How long `import preftune` and `preftune --help` take in a fresh process: the median of ten, which has to stay below 0.5 s.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "import preftune": ["-c", "import preftune"],
    "preftune --help": ["-m", "preftune", "--help"],
}
RUNS = 10
BAR = 0.5  # seconds


def seconds(arguments: list[str]) -> float:
    """The median time of one program."""
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    found = {name: seconds(arguments) for name, arguments in PROGRAMS.items()}
    for name, value in found.items():
        print(f"{name:16} {value:.3f} s")
    sys.exit(any(value > BAR for value in found.values()))
