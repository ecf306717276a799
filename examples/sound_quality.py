"""Write the win counts among 8 sound formats that people compared in a listening test, from an R package that is read without R.

    apt-get download r-cran-psychotools && dpkg-deb -x r-cran-psychotools_*.deb psychotools
    pip install rdata==1.1.0
    python examples/sound_quality.py psychotools/usr/lib/R/site-library/psychotools/data/SoundQuality.rda sound_quality.csv

The data are by Choisel and Wickelmaier (Journal of the Acoustical Society of America 121, 2007): four excerpts of music, 783 complete
sets of 28 comparisons. The package is under GPL-2, so the file is made here and not shipped.

Printed is the share of circular triples of single sets, 9.9 %: had the comparisons been read in a wrong order, it would be near the
25 % of coin flips.
"""

from __future__ import annotations

import csv
import sys
from typing import Any

import numpy as np


def pairlist(node: Any) -> dict[str, Any]:
    """The attributes of an R object. A name that R wrote before is a reference to where it stands first."""
    found = {}
    while node is not None and node.info.type.name == "LIST":
        tag = node.tag.referenced_object or node.tag
        value, node = node.value
        found[tag.value.value.decode()] = value
    return found


def comparisons(file: str) -> tuple[list[str], np.ndarray]:
    """Names of the items, and [sets, pairs]: 1 prefers the first item of the pair, -1 the second. Missing sets are left out."""
    import rdata

    frame = rdata.parser.parse_file(file).object.value[0]
    for column in frame.value:
        attributes = pairlist(column.attributes)
        if "class" in attributes and b"paircomp" in [name.value for name in attributes["class"].value]:
            sets, pairs = attributes["dim"].value
            votes = np.asarray(column.value).reshape(pairs, sets).T  # R stores columns one after another
            return [name.value.decode() for name in attributes["labels"].value], votes[np.isin(votes, (-1, 0, 1)).all(1)]
    raise SystemExit(f"{file}: found no paired comparisons")


def main(file: str, out: str) -> None:
    names, votes = comparisons(file)
    n = len(names)
    pairs = [(i, j) for j in range(n) for i in range(j)]  # (1,2), (1,3), (2,3), (1,4), ..: the second item outermost
    wins = np.zeros((len(votes), n, n))
    for k, (i, j) in enumerate(pairs):
        wins[:, i, j], wins[:, j, i] = (1 + votes[:, k]) / 2, (1 - votes[:, k]) / 2
    beats = (wins > 0.5).astype(float)
    circles = (np.einsum("sij,sjk,ski->s", beats, beats, beats) / 3).mean()
    print(f"{len(votes)} sets of {len(pairs)} comparisons; {circles / (n * (n - 1) * (n - 2) / 6):.1%} of a set's triples are circular")
    with open(out, "w", encoding="utf-8", newline="") as written:
        write = csv.writer(written, lineterminator="\n").writerow
        write(["", *names])
        for name, row in zip(names, wins.sum(0), strict=True):
            write([name, *(f"{count:g}" for count in row)])


if __name__ == "__main__":
    main(*sys.argv[1:])
