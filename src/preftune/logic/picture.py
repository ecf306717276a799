"""The Hasse diagram of structures as a picture: an entailed loss stands above the one that entails it."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping
from html import escape
from itertools import combinations, pairwise

from .structure import Structure, covers

WIDTH, LINE, PAD = 252, 15, 9  #        of a box, of a line of text in it, around the text
SIDE, GAP, RISE, NEXT = 24, 18, 46, 40  # outside of all, between boxes, between levels, between groups
LETTERS = 36  # in a line of a box
TITLE = "A line leads up to what a formula entails: the upper loss is never the larger, whatever the probabilities."
LEGEND = "Blue: methods of the registry, and the parts of them, that are this loss."
FORMULA = 'font-family="monospace" font-size="10.5" fill="#222"'
RATIO = 'font-family="monospace" font-size="10.5" fill="#7a1f5c"'
METHODS = 'font-size="11.5" fill="#0067a5"'
FILL = {"marked": ("#fff3d6", "#c77700"), "method": ("#e6f0fa", "#0067a5"), "plain": ("white", "#999")}


def svg(structures: Mapping[str, Structure], methods: Mapping[str, str], marked: Collection[str] = ()) -> str:
    """A box for each structure with its formula, its ratio and the methods of the registry that train it; marked ones stand out."""
    text = {name: _text(one, methods.get(name, "")) for name, one in structures.items()}
    height = {name: LINE * (1 + len(text[name])) + 2 * PAD for name in structures}
    paths = [_path(line, depths(structures)) for line in covers(structures)]
    wide = lambda place: WIDTH if place in structures else GAP  # a line that passes a level takes a little room
    groups = levels(list(structures), paths)
    width = max(sum(wide(place) + GAP for place in row) for group in groups for row in group) - GAP + 2 * SIDE
    left: dict[str, float] = {}
    top: dict[str, float] = {}
    foot: dict[str, float] = {}
    under: dict[str, float] = {}  # the foot of the tallest box beside it
    y = 2 * SIDE + LINE - NEXT
    for group in groups:
        for row in group:
            y += NEXT if row is group[0] else RISE
            x = (width - sum(wide(place) + GAP for place in row) + GAP) / 2
            tallest = max(height.get(place, 0) for place in row)
            for place in row:
                left[place], top[place], foot[place], under[place] = x, y, y + height.get(place, tallest), y + tallest
                x += wide(place) + GAP
            y += tallest
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + SIDE}" width="{width}" font-family="sans-serif">',
        f'<rect width="{width}" height="{y + SIDE}" fill="white"/>',
        *(f'<text x="{SIDE}" y="{SIDE + LINE * i}" font-size="12.5" fill="#333">{line}</text>' for i, line in enumerate((TITLE, LEGEND))),
    ]
    for path in paths:
        for low, high in pairwise(path):
            a, b, half = left[low] + wide(low) / 2, left[high] + wide(high) / 2, (top[low] + under[high]) / 2
            curve = f"M{a:.0f} {top[low]:.0f}C{a:.0f} {half:.0f} {b:.0f} {half:.0f} {b:.0f} {under[high]:.0f}"
            end = foot[high] if high in structures else top[high]
            parts.append(f'<path d="{curve}V{end:.0f}" fill="none" stroke="#777"/>')
    for name in structures:
        fill, stroke = FILL["marked" if name in marked else "method" if methods.get(name) else "plain"]
        x, y = left[name], int(top[name])
        parts.append(f'<rect x="{x:.0f}" y="{y}" width="{WIDTH}" height="{height[name]}" rx="6" fill="{fill}" stroke="{stroke}"/>')
        for i, (style, line) in enumerate([('font-weight="bold" font-size="13"', name), *text[name]]):
            parts.append(f'<text x="{x + PAD:.0f}" y="{y + PAD + 11 + LINE * i}" {style}>{escape(line)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _text(one: Structure, methods: str) -> list[tuple[str, str]]:
    """The lines of a box below its name, each with its style."""
    core, given, both = one.clauses
    formula = [core, *([f"given {given}"] if given != "true" else []), *([f"both {both}"] if both != "false" else [])]
    lines = [*((FORMULA, line) for line in formula), (RATIO, one.ratio), (METHODS, methods)]
    wrap = lambda line: textwrap.wrap(line, LETTERS, subsequent_indent="  ", break_on_hyphens=False)
    return [(style, part) for style, line in lines for part in wrap(line)]


def depths(structures: Mapping[str, Structure]) -> dict[str, int]:
    """How many levels below the top a structure stands: one below the lowest of those that it entails."""
    lines = covers(structures)
    found: dict[str, int] = {}
    for _ in structures:
        found = {name: 1 + max((found.get(high, 0) for low, high in lines if low == name), default=-1) for name in structures}
    return found


def _path(line: tuple[str, str], depth: Mapping[str, int]) -> list[str]:
    """The places of a line from low to high, with one for each level that it passes."""
    low, high = line
    return [low, *(f"{low} to {high} at {d}" for d in range(depth[low] - 1, depth[high], -1)), high]


def levels(names: list[str], paths: list[list[str]]) -> list[list[list[str]]]:
    """What hangs together, the largest first; each as its levels from the top, ordered so that few lines cross."""
    steps = {step for path in paths for step in pairwise(path)}
    above = {
        place: sorted(high for low, high in steps if low == place) for place in dict.fromkeys([*names, *(p for q in paths for p in q)])
    }
    below = {place: sorted(low for low, high in steps if high == place) for place in above}
    left, groups = list(above), []
    while left:
        rows = [[left[0]]]
        part, fresh = {left[0]: 0}, [left[0]]
        while fresh:  # walk along the lines, a level up or down with each
            near = {o: part[p] + step for p in fresh for step, to in ((-1, above), (1, below)) for o in to[p] if o not in part}
            part |= near
            fresh = list(near)
        rows = [[place for place in left if part.get(place) == d] for d in range(min(part.values()), max(part.values()) + 1)]
        left = [place for place in left if place not in part]
        best = [list(row) for row in rows]
        for order, neighbours in [(rows, above), (rows[::-1], below)] * 4:  # each level by the mean place of its neighbours
            for row in order:
                at = _places(rows)
                mean = {p: sum(at[o] for o in neighbours[p]) / len(neighbours[p]) if neighbours[p] else at[p] for p in row}
                row.sort(key=lambda p: mean[p])
            if crossings(rows, steps) < crossings(best, steps):
                best = [list(row) for row in rows]
        for row, i in [(one, i) for one in best for i in range(len(one) - 1)] * 2:  # and where two exchanged cross less
            before = crossings(best, steps)
            row[i : i + 2] = row[i : i + 2][::-1]
            if crossings(best, steps) >= before:
                row[i : i + 2] = row[i : i + 2][::-1]
        groups.append(best)
    return sorted(groups, key=lambda rows: -sum(map(len, rows)))


def _places(rows: list[list[str]]) -> dict[str, float]:
    return {place: i - (len(row) - 1) / 2 for row in rows for i, place in enumerate(row)}


def crossings(rows: list[list[str]], steps: Collection[tuple[str, str]]) -> int:
    """Pairs of lines between neighbouring levels that cross."""
    at, level = _places(rows), {place: d for d, row in enumerate(rows) for place in row}
    here = [(a, b) for a, b in steps if a in level]
    return sum(level[a] == level[c] and (at[a] - at[c]) * (at[b] - at[d]) < 0 for (a, b), (c, d) in combinations(here, 2))
