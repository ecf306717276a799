"""Line charts as inline SVG: text and polylines, no script, no request, colours left to the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np

from .run import show

WIDTH, HEIGHT = 440, 240
LEFT, RIGHT, TOP, BOTTOM = 50, 424, 24, 204  # the plotting area


@dataclass(frozen=True)
class Series:
    """One line or set of dots. Colours a and b are told apart by colour-blind readers, and by dashes in print."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: Literal["a", "b"] = "a"
    kind: Literal["line", "faint", "dots"] = "line"


def thin(x: np.ndarray, y: np.ndarray, limit: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points that keep the extremes: the lowest and the highest of each of limit / 2 buckets."""
    if len(x) <= limit:
        return x, y
    kept: list[int] = []
    for bucket in np.array_split(np.arange(len(x)), limit // 2):
        finite = bucket[np.isfinite(y[bucket])]
        kept.extend(sorted({finite[y[finite].argmin()], finite[y[finite].argmax()]}) if finite.size else bucket[:1])
    return x[kept], y[kept]


def smooth(y: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average over `window` values, shorter at the ends; NaN where the value itself is missing."""
    known = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, y, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(len(y))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(y))
    return np.where(known, (total[high] - total[low]) / np.maximum(count[high] - count[low], 1), np.nan)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high], 1, 2, 2.5 or 5 times a power of ten apart."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(
    name: str, title: str, series: Sequence[Series], *, steps: float, unit: str, percent: bool = False, line_at: float | None = None
) -> str:
    """A <figure> with title, legend and plot; x runs from 0 to `steps`. `name` is unique on the page.

    `line_at` draws a dashed level (zero, chance). Values beyond the plot, such as single spikes, are cut at its edge.
    """
    points = [(s, np.asarray(s.x, float), np.asarray(s.y, float)) for s in series]
    points = [(s, x, y) for s, x, y in points if np.isfinite(y).any()]
    x0, x1 = 0.0, max(steps, 1.0)
    levels = np.concatenate([_central(s, y[np.isfinite(y)]) for s, _, y in points] + ([] if line_at is None else [np.array([line_at])]))
    y0, y1 = (-0.02, 1.02) if percent else _widen(levels.min(), levels.max(), 0.06)

    def px(x: np.ndarray) -> np.ndarray:
        return LEFT + (x - x0) / (x1 - x0) * (RIGHT - LEFT)

    def py(y: np.ndarray) -> np.ndarray:
        return np.clip(BOTTOM - (y - y0) / (y1 - y0) * (BOTTOM - TOP), -9999, 9999)

    body = []
    for value in ticks(max(y0, 0.0), min(y1, 1.0), 4) if percent else ticks(y0, y1):
        at, label = float(py(np.array(value))), f"{100 * value:.0f} %" if percent else show(round(value, 12), exact=False)
        body.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{RIGHT}"/><text class="y" x="{LEFT - 6}" y="{at + 4:.1f}">{label}</text>')
    for value in [v for v in ticks(x0, x1) if v == round(v)]:
        at = float(px(np.array(value)))
        body.append(f'<path class="tick" d="M{at:.1f} {BOTTOM}v4"/><text class="x" x="{at:.1f}" y="{BOTTOM + 17}">{_count(value)}</text>')
    if line_at is not None:
        body.append(f'<path class="level" d="M{LEFT} {float(py(np.array(line_at))):.1f}H{RIGHT}"/>')
    body.append(f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/><text class="unit" x="4" y="12">{escape(unit)}</text>')
    body.append(f'<text class="unit end" x="{RIGHT}" y="{HEIGHT - 4}">training step</text>')
    inside = f'x="{LEFT - 4}" y="{TOP - 4}" width="{RIGHT - LEFT + 8}" height="{BOTTOM - TOP + 8}"'
    body.append(f'<clipPath id="clip-{name}"><rect {inside}/></clipPath><g clip-path="url(#clip-{name})">')
    body.extend(_marks(s, px(x), py(y)) for s, x, y in points)
    body.append("</g>")
    legend = "".join(
        f'<li class="{s.colour} {s.kind}"><span class="swatch"></span>{escape(s.label)} '
        f'<output data-series="{escape(s.label)}"></output></li>'
        for s, _, _ in points
        if s.kind != "faint"
    )
    lost = sum(int((~np.isfinite(y)).sum()) for s, _, y in points if s.kind == "faint" or not any(o.kind == "faint" for o in series))
    note = f'<p class="note">{lost:,} {"value is" if lost == 1 else "values are"} missing or not finite and left out.</p>' if lost else ""
    frame = f'data-x0="{x0:.10g}" data-x1="{x1:.10g}" data-y0="{y0:.10g}" data-y1="{y1:.10g}"'
    box = f'data-left="{LEFT}" data-right="{RIGHT}" data-top="{TOP}" data-bottom="{BOTTOM}"'
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3><ul class="legend">{legend}</ul></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" {frame} {box}{" data-percent" if percent else ""}>'
        f"{''.join(body)}</svg>{note}</figure>"
    )


def whiskers(intervals: Sequence[tuple[float, float, float]]) -> str:
    """A small picture of one to two (value, low, high): the first hollow, the last filled, on their common scale."""
    known = [x for interval in intervals for x in interval if math.isfinite(x)]
    if not known:
        return ""
    low, high = _widen(min(known), max(known), 0.08)

    def at(x: float) -> str:
        return f"{6 + 128 * (x - low) / (high - low):.1f}"

    marks = []
    for i, (value, lo, hi) in enumerate(intervals):
        y, colour = 8 + 12 * i, "before" if i < len(intervals) - 1 else "after"
        if math.isfinite(lo) and math.isfinite(hi):
            marks.append(f'<path class="{colour}" d="M{at(lo)} {y}H{at(hi)}"/>')
        if math.isfinite(value):
            marks.append(f'<circle class="{colour}" cx="{at(value)}" cy="{y}" r="4"/>')
    return f'<svg class="whiskers" viewBox="0 0 140 28" aria-hidden="true">{"".join(marks)}</svg>'


def _widen(low: float, high: float, share: float) -> tuple[float, float]:
    """Some room on both sides, and a range above zero where all values are equal."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        room = abs(low) * 0.1 or 0.5
        return float(low - room), float(high + room)
    return float(low - share * (high - low)), float(high + share * (high - low))


def _central(s: Series, y: np.ndarray) -> np.ndarray:
    """What decides the height of the plot: of a noisy line all but its highest and lowest two per cent."""
    return np.quantile(y, [0.02, 0.98]) if s.kind == "faint" and len(y) > 50 else y


def _count(value: float) -> str:
    """A number of steps: 500, 12k, 1.5M."""
    size, letter = (1e6, "M") if value >= 1e6 else (1e3, "k") if value >= 1e4 else (1, "")
    return f"{value / size:g}{letter}"


def _marks(s: Series, x: np.ndarray, y: np.ndarray) -> str:
    """Polylines between the gaps; a value alone between gaps, and dots, are circles."""
    finite = np.isfinite(y)
    runs = [run for run in np.split(np.arange(len(y)), np.flatnonzero(np.diff(finite)) + 1) if finite[run[0]]]
    lines = ["".join(f"{x[i]:.1f},{y[i]:.1f} " for i in run) for run in runs if len(run) > 1]
    dots = [i for run in runs if s.kind == "dots" or len(run) == 1 for i in run]
    parts = [f'<polyline points="{line.strip()}"/>' for line in lines]
    parts += [f'<circle cx="{x[i]:.1f}" cy="{y[i]:.1f}" r="3"/>' for i in dots]
    return f'<g class="{s.colour} {s.kind}" data-label="{escape(s.label)}">{"".join(parts)}</g>'
