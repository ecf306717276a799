"""preftune play: methods on an exact game, where the distance to the equilibrium can be computed at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..types import PreftuneError
from .options import Json, Set, pairs, refuse
from .output import curves, print_json, print_table, write

if TYPE_CHECKING:
    from ..playing import Play

SHOWN = 12  # responses in the table
STEP = ("beta", "eta", "lr")
OPTIONS = ("method", "game", "steps", "seed", "uniform_reference", "exact")
FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def play(
    method: Annotated[list[str], typer.Argument(help="Methods, or omd, mmd, hedge, omwu; each may carry settings: egpo,eta=0.5")],
    game: Annotated[str, typer.Option(help="A named game, for instance rps, dice or condorcet, or a file of comparisons.")] = "rps",
    beta: Annotated[float | None, typer.Option(help="Pull towards the reference; each method's own default if left out.")] = None,
    eta: Annotated[float | None, typer.Option(help="Step of mirror descent that a gradient step equals; the best one if left out.")] = None,
    lr: Annotated[float | None, typer.Option(help="A plain learning rate instead of --eta.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps, or of rounds.")] = 1000,
    uniform_reference: Annotated[bool, typer.Option("--uniform-reference", help="A reference that has all responses alike.")] = False,
    draw: Annotated[bool, typer.Option("--draw", help="Draw responses as on text, instead of enumerating them.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    setting: Set = None,
    out: Annotated[Path | None, typer.Option(help="Write the curves as .svg, .html or .csv.")] = None,
    json: Json = False,
) -> None:
    """Play an exact game: print and plot how far every step of every method is from the equilibrium."""
    if out and out.suffix not in PAGES:
        raise PreftuneError(f"--out is {str(out)!r}, needed a name that ends in {', '.join(PAGES)}; for instance --out {method[0]}.svg")
    shared = pairs(setting or [])
    refuse(shared, OPTIONS + STEP, "--set")
    entries = [_entry(text) for text in method]
    table, names = _game(game)
    common = {"beta": beta, "eta": eta, "lr": lr}
    given = {**shared, **{name: value for name, value in common.items() if value is not None}}
    plays = [
        _run(
            name, table, {**_read(name, entries, given), **own}, steps=steps, uniform_reference=uniform_reference, exact=not draw, seed=seed
        )
        for name, own in entries
    ]
    who = " and ".join(method)
    title = f"{who if len(who) <= 60 else f'{len(method)} methods'} on {Path(game).stem}: {steps} steps"  # the legend names them all
    if len(plays) == 1 and plays[0].beta is not None:
        title += f", beta = {plays[0].beta:g}"
    if out:
        named = [replace(one, method=text) for text, one in zip(method, plays, strict=True)]  # the same method may play twice
        write(out, PAGES[out.suffix](title, named))
    if json:
        found = [{**asdict(one), "arrived": one.arrived, "calls_to_arrive": one.calls_to_arrive} for one in plays]
        print_json(found[0] if len(found) == 1 else found)
        return
    print(f"{title}\n\nduality gap of the game that is played, 0 at its equilibrium")
    print(curves({text: one.gap for text, one in zip(method, plays, strict=True)}))
    print()
    print_table(
        ["method", "eta", "beta", "arrived at step", "judge asked", "last gap", "gap at beta 0"],
        [
            [text, one.eta, one.beta, one.arrived, one.calls_to_arrive, one.gap[-1], one.gap0[-1]]
            for text, one in zip(method, plays, strict=True)
        ],
    )
    print("\narrived: the gap stays below 1e-6; judge asked: how often until then; no beta: the game without pull to a reference\n")
    both = list(zip(*(one.policy for one in plays), plays[0].equilibrium, strict=True))
    print_table(
        ["response", *method, "equilibrium" if len(plays) == 1 else f"equilibrium of {method[0]}"],
        [[names[i] if names else str(i), *row] for i, row in enumerate(both[:SHOWN])],
    )
    if len(both) > SHOWN:
        print(f"and {len(both) - SHOWN} more (--json has all)")
    if out:
        print(f"\nwritten to {out}")


def _entry(text: str) -> tuple[str, dict[str, str]]:
    """ "egpo,eta=0.5" -> ("egpo", {"eta": "0.5"})."""
    name, *settings = text.split(",")
    found = pairs(settings, text)
    refuse(found, OPTIONS, text)
    return name, found


def _game(game: str) -> tuple[Any, Sequence[str]]:
    """(name or matrix, names of the responses) of --game."""
    if not game.lower().endswith(FILES):
        return game, ()
    from ..data.comparisons import load

    found = load(Path(game))
    return found.P, found.names


def _parameters(name: str) -> set[str]:
    """What a method may be given here."""
    from ..playing import CLOSED, PULLS, UNREGULARISED
    from ..registry import resolve_method, signature_of

    if name in CLOSED:
        return {"eta"} if name in UNREGULARISED else {"eta", "beta"}
    own = set(signature_of(resolve_method(name)))
    return own | {"eta", "lr"} | ({"beta"} if own & set(PULLS) else set())


def _read(name: str, entries: Sequence[tuple[str, dict[str, str]]], given: dict[str, Any]) -> dict[str, Any]:
    """Of the settings for all methods those that this one has; what none of several has is refused, a single one refuses itself."""
    known = {each: _parameters(each) for each, _ in entries}
    unread = [key for key in given if not any(key in has for has in known.values())]
    if unread and len(known) > 1:
        raise PreftuneError(
            f"none of {', '.join(known)} has a setting {unread[0]!r}, needed one that a method has; see `preftune show METHOD`"
        )
    return {key: value for key, value in given.items() if len(known) == 1 or key in known[name]}


def _run(name: str, table: Any, settings: dict[str, Any], **rest: Any) -> Play:
    from ..playing import play as run

    for key in STEP:
        if isinstance(settings.get(key), str):
            try:
                settings[key] = float(settings[key])
            except ValueError:
                raise PreftuneError(f"{key} of {name} is {settings[key]!r}, needed a number; for instance {name},{key}=0.1") from None
    return run(name, game=table, **settings, **rest)


def csv(title: str, plays: Sequence[Play]) -> str:
    """method,step,judge_asked,gap,gap_unregularised: a line for every step of every method, the start first."""
    lines = [
        f"{name},{step},{asked},{gap!r},{gap0!r}\n"
        for one in plays
        for name in [f'"{one.method}"' if "," in one.method else one.method]
        for step, (asked, gap, gap0) in enumerate(zip(one.calls, one.gap, one.gap0, strict=True))
    ]
    return "method,step,judge_asked,gap,gap_unregularised\n" + "".join(lines)


def svg(title: str, plays: Sequence[Play]) -> str:
    """The curves."""
    from ..report.games import gaps

    return gaps(title, plays)


def html(title: str, plays: Sequence[Play]) -> str:
    """The curves, and the paths where there are three responses, in a page of its own."""
    from ..report.games import page

    return page(title, plays)


PAGES = {".svg": svg, ".html": html, ".csv": csv}
