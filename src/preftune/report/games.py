"""Pictures of play on exact games, as inline SVG: gap curves of several methods, and paths on the triangle of three responses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Protocol

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 520, 40, 360
COLOURS = ("#0067a5", "#c1440e", "#2a7f3f", "#7a1f5c", "#b8860b", "#444444", "#0aa5a5", "#a50067")
CORNERS = ((0.5, 0.0), (0.0, 1.0), (1.0, 1.0))  # of responses 0, 1, 2: the first on top


class Played(Protocol):
    """What a picture needs of a `Play`."""

    @property
    def method(self) -> str: ...
    @property
    def gap(self) -> list[float]: ...
    @property
    def path(self) -> list[list[float]]: ...
    @property
    def equilibrium(self) -> list[float]: ...


def gaps(title: str, plays: Sequence[Played]) -> str:
    """The duality gap over the steps, logarithmic, one line a method; at most a point a pixel."""
    floor = min((g for play in plays for g in play.gap if g > 0), default=1e-16)
    logs = [[math.log10(max(g, floor)) for g in play.gap] for play in plays]
    low = math.floor(min(min(line) for line in logs))
    high = max(math.ceil(max(max(line) for line in logs)), low + 1)
    steps = max(len(line) for line in logs) - 1

    def x(i: int) -> float:
        return LEFT + (RIGHT - LEFT) * i / max(steps, 1)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    every = max(1, steps // (RIGHT - LEFT))
    grid = "".join(
        f'<path d="M{LEFT} {y(t):.1f}H{RIGHT}" stroke="#ddd"/><text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">1e{t}</text>'
        for t in range(low, high + 1, max(1, (high - low) // 8))
    )
    lines = []
    for i, line in enumerate(logs):
        points = " ".join(f"{x(k):.1f},{y(line[k]):.1f}" for k in [*range(0, len(line) - 1, every), len(line) - 1])
        lines.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="1.5"/>')
    axis = f'<text x="{LEFT}" y="{HEIGHT - 15}">step 0</text><text x="{RIGHT}" y="{HEIGHT - 15}" text-anchor="end">{steps}</text>'
    return _frame(f"{title}: duality gap", grid + "".join(lines) + axis + _legend(plays))


def triangle(title: str, plays: Sequence[Played]) -> str:
    """Where each method went on the triangle of three probabilities: ring: begin, dot: end, cross: equilibrium."""
    size = BOTTOM - TOP

    def at(p: Sequence[float]) -> tuple[float, float]:
        across, down = (sum(w * corner[axis] for w, corner in zip(p, CORNERS, strict=True)) for axis in (0, 1))
        return LEFT + across * size * 2 / math.sqrt(3), TOP + down * size

    corners = [at([float(i == k) for i in range(3)]) for k in range(3)]
    body = f'<path d="M{" L".join(f"{a:.1f} {b:.1f}" for a, b in corners)}Z" fill="none" stroke="#999"/>'
    for k, (a, b) in enumerate(corners):
        body += f'<text x="{a:.1f}" y="{b + (-8 if k == 0 else 18):.1f}" text-anchor="middle">response {k}</text>'
    for i, play in enumerate(plays):
        colour = COLOURS[i % len(COLOURS)]
        places = [at(p) for p in play.path]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in _apart(places))
        body += f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.2" stroke-opacity=".8"/>'
        (a, b), (c, d), (e, f) = places[0], places[-1], at(play.equilibrium)
        body += f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="white" stroke="{colour}"/>'
        body += f'<circle cx="{c:.1f}" cy="{d:.1f}" r="4" fill="{colour}"/>'
        body += f'<path d="M{e - 6:.1f} {f:.1f}h12M{e:.1f} {f - 6:.1f}v12" stroke="black"/>'
    return _frame(f"{title}: path", body + _legend(plays))


def page(title: str, plays: Sequence[Played]) -> str:
    """The pictures in a page of its own; nothing is requested and nothing runs."""
    pictures = gaps(title, plays) + (triangle(title, plays) if all(play.path for play in plays) else "")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    return f"{head}<body>{pictures}</body></html>\n"


def _frame(title: str, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/><text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>{body}</svg>\n'
    )


def _legend(plays: Sequence[Played]) -> str:
    return "".join(
        f'<path d="M{RIGHT + 16} {TOP + 10 + 20 * i}h22" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="3"/>'
        f'<text x="{RIGHT + 44}" y="{TOP + 14 + 20 * i}">{escape(play.method)}</text>'
        for i, play in enumerate(plays)
    )


def _apart(places: Sequence[tuple[float, float]], pixels: float = 0.5) -> list[tuple[float, float]]:
    """The places that lie at least so far from the last one kept; the first and the last always."""
    kept = [places[0]]
    for place in places:
        if math.dist(place, kept[-1]) >= pixels:
            kept.append(place)
    return [*kept, places[-1]]
