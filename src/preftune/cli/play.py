"""preftune play: a method on an exact game, where the distance to the equilibrium can be computed at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..types import PreftuneError
from .output import curve, number, pairs, print_json, print_table


def play(
    method: Annotated[str, typer.Argument(help="A self-play method, for instance egpo or online-ipo.")],
    game: Annotated[str, typer.Option(help="A named game: rps, dice, rps_dom, condorcet, ...")] = "rps",
    beta: Annotated[float | None, typer.Option(help="Pull towards the reference; the method's default if left out.")] = None,
    eta: Annotated[float | None, typer.Option(help="Step size; derived from the game if left out.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of whatever the method draws.")] = 0,
    reference: Annotated[
        Literal["uniform", "normal"], typer.Option(help="The reference: all alike, or drawn with normal logits.")
    ] = "uniform",
    setting: Annotated[list[str] | None, typer.Option("--set", help="name=value of another hyperparameter; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the curve as .svg, .html or .csv.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Play an exact game: print and plot how far each step is from the regularised equilibrium."""
    if out and out.suffix not in (".svg", ".html", ".csv"):
        raise PreftuneError(f"--out is {str(out)!r}, needed a name that ends in .svg, .html or .csv")
    from ..api import play as run

    played = run(method, game=game, beta=beta, eta=eta, steps=steps, seed=seed, reference=reference, settings=pairs(setting or []))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        title = f"{method} on {game}, eta {played.eta:.4g}"
        page = {".svg": svg, ".html": html}.get(out.suffix, csv)
        out.write_text(page(title, played.gap), encoding="utf-8")
    facts = {
        "method": method,
        "game": game,
        "eta": played.eta,
        "steps": played.steps,
        "policy": played.policy,
        "nash": played.nash,
        "gap": played.gap,
    }
    if json:
        print_json(facts)
        return
    print(f"{method} on {game}: {played.steps} steps of eta = {played.eta:.4g}\n")
    print("regularised duality gap (0 at the equilibrium), logarithmic")
    print(curve(played.gap))
    print()
    marks = sorted({0, *(10**k - 1 for k in range(1, 9) if 10**k <= len(played.gap)), len(played.gap) - 1})
    print_table(["step", "gap"], [[mark + 1, number(played.gap[mark])] for mark in marks])
    print()
    print_table(
        ["response", "policy", "equilibrium"],
        [[str(i), p, q] for i, (p, q) in enumerate(zip(played.policy, played.nash, strict=True))][:12],
    )
    if out:
        print(f"\nwritten to {out}")


def csv(title: str, gap: Sequence[float]) -> str:
    """step,gap"""
    return "step,gap\n" + "".join(f"{i},{value!r}\n" for i, value in enumerate(gap, 1))


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
        f'<text x="{left}" y="{height - 15}">step 1</text><text x="{right}" y="{height - 15}" text-anchor="end">{len(gap)}</text>'
        f'<polyline points="{line}" fill="none" stroke="#0067a5" stroke-width="1.5"/></svg>\n'
    )
