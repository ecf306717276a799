"""How often the arena is wrong about judges whose law is known: the table of docs/arena.md. No model, a minute on one core.

python benchmarks/arena_errors.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from preftune.standings import Verdicts, circularity, standings
from test_standings import judged, length_contest
from verdict_fixtures import bradley_terry_contest, circular_contest

Make = Callable[[np.random.Generator], Verdicts]


def called(make: Make, contests: int = 200) -> str:
    """The share of contests that are called intransitive."""
    tests = [circularity(make(np.random.default_rng(seed)), draws=300, seed=seed) for seed in range(contests)]
    return f"intransitive {100 * sum(test is not None and test.p_strength < 0.05 for test in tests) / contests:.1f} %"


def held(make: Make, rate: float, bias: float | None = None, contests: int = 100) -> str:
    """How many 95 % intervals hold the win rate, plain and at equal length, and the order bias; and the mean values."""
    found = [standings(make(np.random.default_rng(seed)), draws=200, seed=seed) for seed in range(contests)]
    numbers = {"plain": [f.winrate[0][1] for f in found], "at equal length": [f.controlled[0][1] for f in found]}
    truths = {"plain": rate, "at equal length": rate}
    if bias is not None:
        numbers, truths = {"plain": numbers["plain"], "order bias": [f.bias for f in found]}, {"plain": rate, "order bias": bias}
    return ", ".join(
        f"{name} {np.mean([i.value for i in intervals if i]):.3f} on average, "
        f"{truths[name]} held in {sum(i is not None and i.low <= truths[name] <= i.high for i in intervals)} of {contests}"
        for name, intervals in numbers.items()
    )


def ordered(rng: np.random.Generator) -> Verdicts:
    """The better model wins .62 of times, and whatever stands first .15 more."""
    first, second = ((rng.random((100, 1)) < p).astype(float) for p in (0.77, 0.53))
    return judged(first, second)


def coins(rng: np.random.Generator) -> Verdicts:
    """Two models of equal merit and random lengths."""
    first, second = ((rng.random((60, 1)) < 0.5).astype(float) for _ in range(2))
    return judged(first, second, rng.gamma(9, 20, (2, 60, 1)))


def main() -> None:
    spread = lambda models: lambda rng: bradley_terry_contest(rng.normal(size=models) * 0.7, 60, 2, rng)
    equal = lambda models: lambda rng: bradley_terry_contest(np.zeros(models), 60, 2, rng)
    circle = lambda models, edge: lambda rng: circular_contest(models, edge, 60, 2, rng)
    for models in (3, 5):
        print(models, "models, Bradley-Terry, spread:", called(spread(models)))
        print(models, "models, Bradley-Terry, equal: ", called(equal(models)))
        for edge in (0.5, 0.6, 0.65, 0.7):  # .5: coin flips
            print(models, f"models, a circle at {edge:4}:  ", called(circle(models, edge)))
    print("length alone, sure:          ", held(lambda r: length_contest(r, True), 0.5))
    print("length alone, probabilities: ", held(lambda r: length_contest(r, False), 0.5))
    print("what stands first:           ", held(ordered, 0.62, 0.3))
    print("coin flips:                  ", held(coins, 0.5))


if __name__ == "__main__":
    main()
