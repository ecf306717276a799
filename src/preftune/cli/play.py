"""preftune play: a method on an exact game, where the distance to the equilibrium can be computed at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..types import PreftuneError
from .options import Json, Set, pairs, refuse
from .output import curve, print_json, print_table

SHOWN = 12  # responses in the table


def play(
    method: Annotated[str, typer.Argument(help="A method, for instance egpo or online-ipo.")],
    game: Annotated[str, typer.Option(help="A named game, for instance rps, dice or condorcet.")] = "rps",
    beta: Annotated[float | None, typer.Option(help="Pull towards the reference; the method's own default if left out.")] = None,
    eta: Annotated[float, typer.Option(help="Step of mirror descent that a gradient step equals.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps.")] = 1000,
    uniform_reference: Annotated[bool, typer.Option("--uniform-reference", help="A reference that has all responses alike.")] = False,
    draw: Annotated[bool, typer.Option("--draw", help="Draw responses as on text, instead of enumerating them.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    setting: Set = None,
    out: Annotated[Path | None, typer.Option(help="Write the curve as .svg, .html or .csv.")] = None,
    json: Json = False,
) -> None:
    """Play an exact game: print and plot how far every step is from the regularised equilibrium."""
    if out and out.suffix not in PAGES:
        raise PreftuneError(f"--out is {str(out)!r}, needed a name that ends in {', '.join(PAGES)}; for instance --out {method}.svg")
    settings = pairs(setting or [])
    refuse(settings, ("game", "beta", "eta", "steps", "seed", "uniform_reference", "exact"), "--set")
    from ..arena import play as run

    played = run(
        method, game=game, beta=beta, eta=eta, steps=steps, seed=seed, uniform_reference=uniform_reference, exact=not draw, **settings
    )
    title = f"{method} on {game}: {played.steps} steps, beta = {played.beta:g}, eta = {played.eta:g}"
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(PAGES[out.suffix](title, played.gap), encoding="utf-8")
    if json:
        print_json({**asdict(played), "arrived": played.arrived})
        return
    print(f"{title}\n\nregularised duality gap, 0 at the equilibrium")
    print(curve(played.gap))
    print()
    marks = sorted({0, *(10**k for k in range(9) if 10**k < played.steps), played.steps})
    print_table(["step", *map(str, marks)], [["gap", *(played.gap[mark] for mark in marks)]])
    print("\nthe gap " + ("never stays below 1e-6" if played.arrived is None else f"stays below 1e-6 from step {played.arrived}") + "\n")
    both = list(zip(played.policy, played.equilibrium, strict=True))
    print_table(["response", "policy", "equilibrium"], [[str(i), p, q] for i, (p, q) in enumerate(both[:SHOWN])])
    if len(both) > SHOWN:
        print(f"and {len(both) - SHOWN} more (--json has all)")
    if out:
        print(f"\nwritten to {out}")


def csv(title: str, gap: Sequence[float]) -> str:
    """step,gap: a line for every step, the start first."""
    return "step,gap\n" + "".join(f"{i},{value!r}\n" for i, value in enumerate(gap))


def html(title: str, gap: Sequence[float]) -> str:
    """The picture in a page of its own."""
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><body>{svg(title, gap)}</body></html>\n'


def svg(title: str, gap: Sequence[float], width: int = 720, height: int = 400) -> str:
    """The gap over the steps, logarithmic; steps are thinned to a point a pixel."""
    floor = min((g for g in gap if g > 0), default=1e-16)
    logs = [math.log10(max(g, floor)) for g in gap]
    low, high = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    left, right, top, bottom = 70, width - 20, 40, height - 40
    every = max(1, len(logs) // (right - left))

    def x(i: int) -> float:
        return left + (right - left) * i / max(len(logs) - 1, 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    ticks = range(low, high + 1, max(1, (high - low) // 8))
    grid = "".join(
        f'<path d="M{left} {y(t):.1f}H{right}" stroke="#ddd"/><text x="{left - 8}" y="{y(t) + 4:.1f}" text-anchor="end">1e{t}</text>'
        for t in ticks
    )
    line = " ".join(f"{x(i):.1f},{y(logs[i]):.1f}" for i in [*range(0, len(logs) - 1, every), len(logs) - 1])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{left}" y="22" font-size="15">{title}: regularised duality gap</text>{grid}'
        f'<text x="{left}" y="{height - 15}">step 0</text><text x="{right}" y="{height - 15}" text-anchor="end">{len(gap) - 1}</text>'
        f'<polyline points="{line}" fill="none" stroke="#0067a5" stroke-width="1.5"/></svg>\n'
    )


PAGES = {".svg": svg, ".html": html, ".csv": csv}
