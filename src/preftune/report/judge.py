"""The page of a judge's test: the same numbers as on the terminal, calibration as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..judge_quality import Bin, Group, JudgeTest
from .page import opening
from .run import number, show, span

SIDE = 320  # of the picture


def page(title: str, found: JudgeTest, meanings: Mapping[str, str]) -> str:
    """The whole page as text; it asks nothing of the network and runs nothing. `meanings`: the measures to show, in order."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    measures = [(name.replace("_", " "), said, found.measures[name]) for name, said in meanings.items() if name in found.measures]
    counted = f"{found.rows} rows, {found.pairs} labelled pairs; {found.asked} answers needed, {found.silent} missing"
    return "\n".join(
        [
            opening(title, style),
            f"<header><h1>{escape(title)}</h1><p>{counted}, {number(found.seconds):.3g} seconds.</p></header>",
            "".join(f"<p>{escape(note)}</p>" for note in found.notes),
            "<h2>Measures</h2>",
            _table(
                ("Measure", "Value"), [(f"{escape(name)}<small>{escape(said)}</small>", _value(value)) for name, said, value in measures]
            ),
            "<h2>Calibration</h2>",
            _picture(found.bins),
            _bins(found.bins),
            _groups("Subset", found.subsets),
            _sections(found),
            _groups("Tenth by difference", found.deciles),
            _circles(found),
            "</body></html>\n",
        ]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML; the first of a row names it."""
    top = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _value(measure: Mapping[str, float | None]) -> str:
    low, high = (number(measure[end]) for end in ("low", "high"))
    return f"{show(number(measure['value']))}<small>{span(low, high)}</small>"


def _groups(title: str, groups: Sequence[Group]) -> str:
    if not groups:
        return ""
    rows = [(escape(group.name), str(group.pairs), _value(group.accuracy), _value(group.longer)) for group in groups]
    return f"<h2>{title}</h2>" + _table((title, "Pairs", "Accuracy", "Taking the longer"), rows)


def _sections(found: JudgeTest) -> str:
    rows = [(escape(name), _value(value)) for name, value in found.sections.items()]
    return "<h2>Sections</h2>" + _table(("Section", "Accuracy"), rows) if rows else ""


def _bins(bins: Sequence[Bin]) -> str:
    rows = [(f"{b.low:.2f} to {b.high:.2f}", str(b.pairs), show(number(b.confidence)), show(number(b.right))) for b in bins if b.pairs]
    return _table(("Chance of the favourite", "Pairs", "Mean chance", "It won"), rows)


def _picture(bins: Sequence[Bin]) -> str:
    """Confidence against the share of right answers; calibrated is the diagonal, a disc's area is its number of pairs."""
    total = sum(b.pairs for b in bins)
    at = lambda x: (x - 0.5) * 2 * (SIDE - 80) + 50
    discs = "".join(
        f'<circle cx="{at(b.confidence):.1f}" cy="{SIDE - at(max(b.right, 0.5)):.1f}" r="{2 + 18 * (b.pairs / total) ** 0.5:.1f}" '
        'fill="#0067a5" fill-opacity=".55"/>'
        for b in bins
        if b.pairs and b.confidence is not None and b.right is not None
    )
    below = lambda t: f'<text x="{at(t):.0f}" y="{SIDE - 30}" text-anchor="middle">{t:g}</text>'
    beside = lambda t: f'<text x="42" y="{SIDE - at(t) + 4:.0f}" text-anchor="end">{t:g}</text>'
    ticks = "".join(below(t) + beside(t) for t in (0.5, 0.75, 1.0))
    line = f'<path d="M{at(0.5)} {SIDE - at(0.5)}L{at(1.0)} {SIDE - at(1.0)}" stroke="#999" stroke-dasharray="4 4"/>'
    names = f'<text x="{SIDE / 2}" y="{SIDE - 8}" text-anchor="middle">chance that the judge gave its favourite</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE} {SIDE}" width="{SIDE}" font-family="sans-serif" font-size="12">'
        f'<rect width="{SIDE}" height="{SIDE}" fill="white"/><text x="50" y="16">share of favourites that won</text>'
        f"{line}{discs}{ticks}{names}</svg>"
    )


def _circles(found: JudgeTest) -> str:
    t: Any = found.transitivity
    if t is None:
        return ""
    rows = [
        ("Lists", str(t.lists)),
        ("Triples without a tie", str(t.triples)),
        ("Circular", f"{t.circles}<small>share {_value(t.share)}; coin flips 0.25</small>"),
        ("By verdicts", f"{t.verdicts}<small>strengths and noise make {t.expected:.3g}; as many with p = {t.p_circles:.3g}</small>"),
    ]
    if t.unexplained is not None:
        said = f"between the two orders {t.noise:.3g}; noise alone leaves as much with p = {t.p_additive:.3g}"
        rows.append(("Squared log-odds that Bradley-Terry leaves", f"{t.unexplained:.3g}<small>{said}</small>"))
    return "<h2>Circles</h2>" + _table(("", ""), rows)
