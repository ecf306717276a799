"""The page of a contest: who beats whom as a heat map, the leaderboard, the circles, and answers side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..types import PreftuneError
from .page import opening
from .run import number, show, span

CELL, ROW, TOP = 92, 52, 34  # of a heat map, in units of its view
STRONGEST = 0.62  #                        opacity of a win rate of 1, so that text stays readable on it
NAME = 20  #                               letters of a model's name in a heat map
PROMPTS, LENGTH = 8, 900  #                answers shown
NOTHING = 5e-4  #                          an order bias below this is none
EXTRA = (
    ".heat { margin: 0; } .heat figcaption { margin-bottom: .4rem; }"
    ".heat svg { max-width: 100%; height: auto; display: block; }"
    ".heat text { fill: var(--ink); text-anchor: middle; font: 13px system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }"
    ".heat .row { text-anchor: end; } .heat .soft { fill: var(--soft); font-size: 11px; } .heat .win { fill: var(--a); }"
    ".heat .loss { fill: var(--b); } .heat .frame { fill: none; stroke: var(--line); } .heats { display: grid; gap: 1.6rem 2rem; }"
    ".two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }"
    ".sample .many { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 0 1px; background: var(--line); }"
    ".sample .many > div { padding: .6rem .9rem .8rem; min-width: 0; background: var(--paper); }"
)

Result = Mapping[str, Any]  # what arena.json holds


def read(folder: str | Path) -> tuple[Result, list[dict[str, Any]]]:
    """(arena.json, the lines of answers.jsonl) of a contest's folder."""
    path = Path(folder) / "arena.json"
    if not path.is_file():
        raise PreftuneError(f"{folder} has no arena.json, needed the folder of a finished contest; `preftune arena --out` makes one")
    told = (Path(folder) / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(path.read_text(encoding="utf-8")), [json.loads(line) for line in told]


def write(folder: str | Path) -> Path:
    """Write report.html into a contest's folder and return its path."""
    target = Path(folder) / "report.html"
    aside = target.with_suffix(".aside")
    aside.write_text(page(*read(folder)), encoding="utf-8")
    os.replace(aside, target)
    return target


def page(result: Result, told: Sequence[Mapping[str, Any]]) -> str:
    """The whole page as text; it asks nothing of the network and runs nothing."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8") + EXTRA
    found, board = result["standings"], result["standings"]["board"]
    title = f"{len(board)} models, judged by {result['judge']}"
    said = "".join(f"<li{' class=warn' if attention else ''}>{escape(text)}</li>" for text, attention in findings(result))
    notes = "".join(f"<li>{escape(note)}</li>" for note in result["notes"])
    return "\n".join(
        [
            opening(title, style),
            _header(result, title),
            f'<ul class="findings">{said}</ul>',
            f"<h2>Leaderboard</h2>{_leaderboard(board)}",
            f'<h2>Who beats whom</h2><div class="heats{" two" if len(board) <= 4 else ""}">',
            heat_map("Win rate", found, "winrate"),
            heat_map("At equal length", found, "controlled"),
            "</div>",
            '<p class="soft">Row against column: how often the judge prefers the answer of the row, both orders averaged, with the 95 % '
            "interval over prompts. At equal length: the judge's liking for length taken out by a logistic model of each pair.</p>",
            _circles(found),
            f"<h2>Answers</h2>{_answers(told, [place['name'] for place in board])}",
            f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "",
            f"<h2>Cost and settings</h2>{_settings(result)}",
            "<footer>Written by preftune: arena.json, answers.jsonl and verdicts.jsonl hold every number of this page.</footer>",
            "</body></html>\n",
        ]
    )


# --- in sentences -----------------------------------------------------------------------------------------------------------------------


def findings(result: Result) -> list[tuple[str, bool]]:
    """What came out, in sentences, and whether each asks for attention."""
    found = result["standings"]
    return [*_leader(found), *_mixture(found), *_turns(found), *_order(found), *_length(found), *_trained(result)]


def _leader(found: Result) -> list[tuple[str, bool]]:
    first, second = found["board"][:2]
    names = found["names"]
    entry = found["winrate"][names.index(first["name"])][names.index(second["name"])]
    if entry is None:
        return [(f"{first['name']} leads, but no comparison with {second['name']} counts.", True)]
    interval = f" ({span(number(entry['low']), number(entry['high']), True)})" if entry["low"] is not None else ""
    if abs(entry["value"] - 0.5) < NOTHING:
        return [(f"{first['name']} and {second['name']} are level.", True)]
    met = f"{first['name']} leads; against {second['name']}, the next, it wins {show(entry['value'], True)}{interval}"
    if entry["low"] is None:
        return [(f"{met}.", False)]
    if entry["low"] <= 0.5 <= entry["high"]:
        return [(f"{met}: these prompts cannot tell the two apart.", True)]
    return [(f"{met}.", False)]


def _mixture(found: Result) -> list[tuple[str, bool]]:
    if found["condorcet"]:
        alone = f"{found['condorcet']} beats every other model, so the Nash mixture is that model alone"
        [weight] = [place["lottery"] for place in found["board"] if place["name"] == found["condorcet"]]
        if weight["low"] is None or weight["low"] > 1 - NOTHING:
            return [(f"{alone}.", False)]
        interval = span(number(weight["low"]), number(weight["high"]), True)
        return [(f"{alone}; over prompts drawn again its weight is {interval}, so that nothing is settled.", False)]
    parts = [f"{show(place['lottery']['value'], True)} {place['name']}" for place in found["board"] if place["lottery"]["value"] > 5e-4]
    return [(f"No model beats every other. The mixture that none beats with more than one half: {', '.join(parts)}.", False)]


def _turns(found: Result) -> list[tuple[str, bool]]:
    test, circle = found["test"], found["circle"]
    if test is None:
        return []
    p = f"p = {test['p_strength']:.2g} under Bradley-Terry"
    if found["intransitive"] and circle:
        a, b, c = circle["names"]
        x, y, z = (show(rate, True) for rate in circle["winrates"])
        return [
            (
                f"The judge is intransitive: {a} beats {b} ({x}), {b} beats {c} ({y}) and {c} beats {a} ({z}), more than noise ({p}). "
                "No ranking says who wins here; read the heat map and the mixture.",
                True,
            )
        ]
    seen = "there is none" if not circle else "those that are there are no more than noise"
    return [(f"Circles: {seen} ({p}).", False)]


def _order(found: Result) -> list[tuple[str, bool]]:
    bias, same = found["bias"], found["consistency"]
    if bias["value"] is None:
        return []
    if max(abs(bias[name] or 0.0) for name in ("value", "low", "high")) < NOTHING:
        return [("The judge says the same in both orders.", False)]
    place = "first" if bias["value"] > 0 else "second"
    interval = f" ({bias['low']:+.3f} to {bias['high']:+.3f})" if bias["low"] is not None else ""
    agrees = f"asked in both orders the judge names the same winner {show(same['value'], True)} of times."
    liking = f"Order bias {bias['value']:+.3f}{interval}; {agrees}"
    if bias["low"] is None or bias["low"] <= 0 <= bias["high"]:
        return [(liking, False)]
    return [
        (f"{liking} It likes what stands {place}; averaged over both orders this drops out of every win rate.", abs(bias["value"]) > 0.1)
    ]


def _length(found: Result) -> list[tuple[str, bool]]:
    names = found["names"]
    moved = [
        (abs(fair["value"] - plain["value"]), i, j)
        for i in range(len(names))
        for j in range(len(names))
        if (plain := found["winrate"][i][j])
        and (fair := found["controlled"][i][j])
        and plain["value"] >= 0.5
        and fair["low"] is not None
        and not fair["low"] <= plain["value"] <= fair["high"]
    ]
    if not moved:
        return [("At equal length no win rate is clearly another.", False)]
    _, i, j = max(moved)
    plain, fair = found["winrate"][i][j], found["controlled"][i][j]
    rewarded = "shorter" if found["length_effect"][i][j] > 0 else "longer"
    return [
        (
            f"Length matters: of {names[i]} and {names[j]} the judge rewards the {rewarded} answer; {names[i]} wins "
            f"{show(plain['value'], True)}, at equal length {show(fair['value'], True)} ({span(fair['low'], fair['high'], True)}).",
            True,
        )
    ]


def _trained(result: Result) -> list[tuple[str, bool]]:
    overlap = result["overlap"]
    if not overlap["rows"]:
        return [("No prompt is in training data that is known.", False)] if overlap["by_source"] else []
    kept = overlap["left_out"] == 0
    text = f"{overlap['rows']} prompts were trained on and {'kept: part of a win may be memory' if kept else 'left out'}."
    return [(text, kept)]


# --- tables and pictures ------------------------------------------------------------------------------------------------------------------


def _header(result: Result, title: str) -> str:
    settings = result["settings"]
    facts = {
        "prompts": f"{result['standings']['prompts']:,}",
        "answers to each": str(settings["samples"]),
        "judge asked": f"{result['judge_calls']:,} times",
        "tokens sampled": f"{sum(model['tokens'] for model in result['models'].values()):,}",
        "seed": str(settings["seed"]),
    }
    items = "".join(f"<li>{escape(name)} <b>{escape(value)}</b></li>" for name, value in facts.items())
    return f'<header><p class="over">preftune arena</p><h1>{escape(title)}</h1><ul class="facts">{items}</ul></header>'


def _leaderboard(board: Sequence[Mapping[str, Any]]) -> str:
    columns = ("Model", "Elo", "Win rate", "At equal length", "Nash mixture", "Worst against", "Characters")
    rows = []
    for place in board:
        worst = f"{show(place['worst'], True)}<small>{escape(place['worst_against'])}</small>" if place["worst_against"] else "–"
        cells = [
            _cell(place["elo"], points=True),
            _cell(place["winrate"], percent=True),
            _cell(place["controlled"], percent=True),
            _cell(place["lottery"], percent=True),
            f"<td>{worst}</td>",
            _cell(place["length"]),
        ]
        rows.append(f'<tr><th scope="row">{escape(place["name"])}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    caption = (
        "Elo is Bradley-Terry on the scale where 400 points are odds of 10 to 1, 1000 on average. "
        "Win rates are means against the other models."
    )
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(entry: Mapping[str, Any] | None, *, percent: bool = False, points: bool = False) -> str:
    if entry is None:
        return "<td>–</td>"
    if points:
        value, low, high = (f"{number(entry[name]):,.0f}" for name in ("value", "low", "high"))
        interval = "" if entry["low"] is None else f"{low} to {high}"
    else:
        value, interval = show(entry["value"], percent), span(number(entry["low"]), number(entry["high"]), percent)
    return f"<td>{value}{f'<small>{interval}</small>' if interval else ''}</td>"


def heat_map(title: str, found: Result, name: str) -> str:
    """A <figure>: the table `name` of the standings, models in the leaderboard's order; wins in one colour, losses in the other."""
    order = [found["names"].index(place["name"]) for place in found["board"]]
    cells, margin = [], 34 + 8 * max(len(_short(name)) for name in found["names"])
    for row, i in enumerate(order):
        y = TOP + ROW * row
        cells.append(f'<text class="row" x="{margin - 10}" y="{y + ROW / 2 + 5:.0f}">{row + 1} {escape(_short(found["names"][i]))}</text>')
        for column, j in enumerate(order):
            x, entry = margin + CELL * column, found[name][i][j]
            if entry is not None:
                rate = entry["value"]
                shade = STRONGEST * 2 * abs(rate - 0.5)
                side = "win" if rate > 0.5 else "loss"
                cells.append(f'<rect class="{side}" x="{x}" y="{y}" width="{CELL}" height="{ROW}" fill-opacity="{shade:.3f}"/>')
                between = "" if entry["low"] is None else f"{100 * entry['low']:.0f} to {100 * entry['high']:.0f}"
                cells.append(f'<text x="{x + CELL / 2:.0f}" y="{y + 24}">{100 * rate:.1f} %</text>')
                cells.append(f'<text class="soft" x="{x + CELL / 2:.0f}" y="{y + 41}">{between}</text>')
            cells.append(f'<rect class="frame" x="{x}" y="{y}" width="{CELL}" height="{ROW}"/>')
    heads = [
        f'<text x="{margin + CELL * (column + 0.5):.0f}" y="{TOP - 11}">{column + 1} {escape(_short(found["names"][j], 10))}</text>'
        for column, j in enumerate(order)
    ]
    width, height = margin + CELL * len(order) + 2, TOP + ROW * len(order) + 2
    size = f'viewBox="0 0 {width} {height}" width="{width}"'
    picture = f'<svg {size} role="img" aria-label="{escape(title)}">{"".join(heads)}{"".join(cells)}</svg>'
    return f'<figure class="heat"><figcaption><h3>{escape(title)}</h3></figcaption>{picture}</figure>'


def _short(name: str, most: int = NAME) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _circles(found: Result) -> str:
    test = found["test"]
    if test is None:
        return ""
    rows = [
        ("strength of the circles", show(test["strength"]), "", f"{test['p_strength']:.3g}"),
        ("circular triples", str(test["circles"]), f"{show(test['circles_expected'])} on average", f"{test['p_circles']:.3g}"),
        ("deviance from Bradley-Terry", show(test["deviance"]), f"{test['degrees']} degrees of freedom", f"{test['p_deviance']:.3g}"),
    ]
    body = "".join(
        f'<tr><th scope="row">{name}</th><td>{here}</td><td>{expected}</td><td>{p}</td></tr>' for name, here, expected, p in rows
    )
    head = '<th scope="col"></th><th scope="col">Here</th><th scope="col">Under Bradley-Terry</th><th scope="col">p</th>'
    caption = (
        f"How often Bradley-Terry makes as much of each, of {test['draws']} draws with as many comparisons of every pair "
        "as its prompts are worth."
    )
    return f"<h2>Circles</h2><table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _answers(told: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    by_prompt: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in told:
        by_prompt.setdefault(line["id"], {})[line["model"]] = line
    shown = [models for models in by_prompt.values() if all(name in models for name in names)][:PROMPTS]
    blocks = []
    for models in shown:
        prompt = models[names[0]]["prompt"]
        text = prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
        sides = "".join(f"<div><h3>{escape(name)}</h3>{_text(models[name]['answers'][0])}</div>" for name in names)
        blocks.append(f'<article class="sample"><p class="prompt text">{escape(text)}</p><div class="many">{sides}</div></article>')
    return "".join(blocks)


def _text(text: str) -> str:
    if not text.strip():
        return '<p class="text empty">no answer</p>'
    return f'<p class="text">{escape(text[:LENGTH])}{"…" if len(text) > LENGTH else ""}</p>'


def _settings(result: Result) -> str:
    settings, seconds = result["settings"], result["seconds"]
    lines = [(name, f"{m['source']}, {m['tokens']:,} tokens in {m['seconds']:,.1f} s") for name, m in result["models"].items()]
    lines += [
        ("judge", f"{result['judge']}, {result['judge_calls']:,} comparisons in {seconds['judging']:,.1f} s"),
        ("decoding", ", ".join(f"{name} {value}" for name, value in settings["decoding"].items()) or "the models' own"),
        ("command", settings["command"]),
        ("commit", settings["commit"] or "–"),
    ]
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>' for name, value in lines)
    return f'<table class="config"><tbody>{rows}</tbody></table>'
