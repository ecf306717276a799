"""One self-contained HTML page for a run: it asks nothing of the network and reads well without JavaScript."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .chart import Series, chart, smooth, thin, whiskers
from .run import HEADLINE, MEASURES, RunFiles, formula, measure, number, read, short_name, show, span

POINTS = 2000  #         a curve of a huge run is thinned to so many points
SMALL_POINTS = 400  #    and the curves of the appendix to these
SAMPLES, OPEN_SAMPLES, SAMPLE_LENGTH = 60, 6, 1500
OTHERS = 16  #           charts in the appendix
NATS = "nats per response"
SHOWN_ABOVE = ("loss", "accuracy", "margin", "logp_chosen", "logp_rejected", "kl", "length", "winrate", "judge")
PAIRED = {"reward_chosen": "chosen", "reward_rejected": "rejected"}
NOT_CURVES = ("step", "epoch", "seconds", "tokens")


def write(run_folder: str | Path) -> Path:
    """Write report.html into a run folder and return its path. Whatever the run did not record is left out."""
    target = Path(run_folder) / "report.html"
    aside = target.with_suffix(".aside")
    aside.write_text(page(read(run_folder)), encoding="utf-8")
    os.replace(aside, target)
    return target


def page(run: RunFiles) -> str:
    """The whole page as text."""
    here = Path(__file__)
    style = here.with_name("page.css").read_text(encoding="utf-8")
    script = here.with_name("page.js").read_text(encoding="utf-8")
    title = _title(run)
    return "\n".join(
        [
            opening(title, style, script),
            _header(run, title),
            _findings(run),
            _tables(run),
            _curves(run),
            _samples(run),
            _configuration(run),
            f"<footer>Written by preftune from <code>{escape(run.folder.resolve().name)}</code>: config.json, metrics.jsonl, "
            "evaluation.json and samples.jsonl hold every number of this page.</footer>",
            f"<script>{script}</script></body></html>\n",
        ]
    )


def opening(title: str, style: str, script: str = "") -> str:
    """A page up to its body. Only this style sheet and this script may act, whatever a model wrote into what is shown."""
    acts = f"script-src {_fingerprint(script)}; " if script else ""
    policy = f"default-src 'none'; style-src {_fingerprint(style)}; {acts}img-src data:"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        ]
    )


def _fingerprint(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- what the run was -----------------------------------------------------------------------------------------------


def _title(run: RunFiles) -> str:
    method, model = run.config.get("method") or "run", run.config.get("model")
    return f"{method} on {short_name(model)}" if model else str(method)


def _header(run: RunFiles, title: str) -> str:
    config = run.config
    facts: list[tuple[str, str]] = []
    if config.get("data"):
        facts.append(("data", short_name(config["data"])))
    if run.steps:
        facts.append(("steps", f"{run.steps[-1].get('step', len(run.steps)):,}"))
    tokens = [number(step.get("tokens")) for step in run.steps]
    if np.isfinite(tokens).any():
        facts.append(("response tokens", f"{np.nansum(tokens):,.0f}"))
    seconds = [number(step.get("seconds")) for step in run.steps]
    if np.isfinite(seconds).any():
        facts.append(("time", _duration(_clock(seconds))))
    facts += [("seed", str(config["seed"]))] if "seed" in config else []
    items = "".join(f"<li>{escape(name)} <b>{escape(value)}</b></li>" for name, value in facts)
    loss, _ = formula(config)
    shown = f'<p class="formula">{escape(loss)}</p>' if loss else ""
    return (
        f'<header><p class="over">preftune run · {escape(run.folder.resolve().name)}</p><h1>{escape(title)}</h1>'
        f'<ul class="facts">{items}</ul>{shown}</header>'
    )


def _clock(seconds: Sequence[float]) -> float:
    """Time in total: the clock of each line counts from the start of its process, so a resumed run begins anew at a drop."""
    known = [x for x in seconds if math.isfinite(x)]
    return sum(a for a, b in zip(known, known[1:], strict=False) if b < a) + known[-1]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


# --- what came out, in sentences ------------------------------------------------------------------------------------


def drift_sentence(chosen: float, rejected: float, small: float = 0.05) -> tuple[str, bool]:
    """What the mean drift of both log-probabilities (nats per response) means, and whether it asks for attention."""
    fell, rose = chosen < -small, chosen > small
    now = f"The chosen responses' log-probability moved by {_signed(chosen)} nats, the rejected ones' by {_signed(rejected)}. "
    if abs(chosen) <= small and abs(rejected) <= small:
        return now + "Neither moved to speak of: the policy is still close to its reference.", False
    if chosen < rejected:
        return now + "The rejected responses gained on the chosen ones: the policy moved against its labels.", True
    if fell:
        return (
            now + "Both fell, the rejected ones further: likelihood displacement. The order improved, but a typical chosen response became "
            f"{_factor(-chosen)} times less likely, and the probability went to responses that are in neither column. "
            "Read the samples; a (stronger) likelihood term as in rpo, a larger beta or a smaller learning rate holds the chosen ones up.",
            True,
        )
    if rose and rejected < -small:
        return now + "Chosen up, rejected down: the policy moved as the labels ask.", False
    if rose and rejected > small:
        return now + "Both rose, the chosen ones further: the policy learned the data's style as well as its preferences.", False
    if rose:
        return now + "The chosen responses became likelier while the rejected ones stayed where they were.", False
    return now + "The rejected responses became less likely while the chosen ones stayed where they were.", False


def _factor(nats: float) -> str:
    """e^nats in words: 1.3, 60, 8,100, more than a million."""
    return "more than a million" if nats > math.log(1e6) else f"{float(f'{math.exp(nats):.2g}'):,g}"


def _signed(x: float) -> str:
    return ("+" if x > 0 else "") + show(x)


def entry(run: RunFiles, when: str, name: str) -> tuple[float, float, float]:
    """Value, low, high of one number of evaluation.json; NaN where it is missing."""
    found = (run.evaluation.get(when) or {}).get(name)
    if not isinstance(found, Mapping):
        return number(found), math.nan, math.nan
    return number(found.get("value")), number(found.get("low")), number(found.get("high"))


def _findings(run: RunFiles) -> str:
    said: list[tuple[str, bool]] = []
    value, low, high = entry(run, "after", "accuracy")
    if math.isfinite(value):
        before = entry(run, "before", "accuracy")[0]
        interval = f" (95 % interval {span(low, high, True)})" if span(low, high) else ""
        against = f", against {show(before, True)} before training" if math.isfinite(before) else ""
        sentence = f"The policy orders {show(value, True)} of held-out pairs as labelled{interval}{against}."
        said.append((f"<b>Preferences.</b> {sentence}", high <= 0.5))
    chosen, rejected = (entry(run, "after", name)[0] for name in ("logp_chosen", "logp_rejected"))
    where = "on held-out pairs"
    if not (math.isfinite(chosen) and math.isfinite(rejected)):
        tail = run.steps[-max(1, len(run.steps) // 10) :]
        chosen, rejected = (_mean([number(step.get(name)) for step in tail]) for name in ("logp_chosen", "logp_rejected"))
        where = "on the last tenth of the training pairs"
    if math.isfinite(chosen) and math.isfinite(rejected):
        sentence, attention = drift_sentence(chosen, rejected)
        said.append((f"<b>Likelihood</b> ({where}). {escape(sentence)}", attention))
    old, new, deviation = entry(run, "before", "judge")[0], entry(run, "after", "judge")[0], entry(run, "before", "judge_sd")[0]
    if math.isfinite(old) and math.isfinite(new):
        measured = f", {show((new - old) / deviation)} standard deviations of the samples before" if deviation > 0 else ""
        said.append((f"<b>Judge.</b> The mean score of sampled responses went from {show(old)} to {show(new)}{measured}.", False))
    old, new = entry(run, "before", "length")[0], entry(run, "after", "length")[0]
    if math.isfinite(old) and math.isfinite(new) and old > 0:
        change = new / old - 1
        share = f" ({'+' if change > 0 else '−'}{abs(100 * change):.0f} %)" if abs(change) >= 0.005 else ""
        text = f"Samples went from {show(old)} to {show(new)} tokens{share}."
        warning = " Part of a better judgement may be length: compare with a judge that does not count words." if change > 0.25 else ""
        said.append((f"<b>Length.</b> {text}{warning}", change > 0.25))
    lost = [step.get("step") for step in run.steps if "loss" in step and not math.isfinite(number(step["loss"]))]
    if lost:
        sentence = f"The loss of {len(lost):,} of {len(run.steps):,} steps is no number, first at step {escape(str(lost[0]))}."
        said.append((f"<b>Not finite.</b> {sentence}", True))
    items = "".join(f"<li{' class=warn' if attention else ''}>{text}</li>" for text, attention in said)
    return f'<ul class="findings">{items}</ul>' if items else ""


def _mean(values: Sequence[float]) -> float:
    finite = [x for x in values if math.isfinite(x)]
    return sum(finite) / len(finite) if finite else math.nan


# --- tables ---------------------------------------------------------------------------------------------------------


def _tables(run: RunFiles) -> str:
    recorded = {name: None for when in ("before", "after") for name in run.evaluation.get(when) or {}}
    if not recorded:
        return '<h2>Before and after</h2><p class="soft">This run has no evaluation: evaluation.json is missing or empty.</p>'
    order = [name for name in MEASURES if name in recorded] + [name for name in recorded if name not in MEASURES]
    first = [name for name in order if name in HEADLINE] or order
    rest = [name for name in order if name not in first]
    caption = "Value with its 95 % bootstrap interval below. A change is bold where the two intervals do not overlap."
    more = (
        f"<details><summary>{len(rest)} more {'measure' if len(rest) == 1 else 'measures'}</summary>{_table(run, rest, '')}</details>"
        if rest
        else ""
    )
    return f"<h2>Before and after</h2>{_table(run, first, caption)}{more}"


def _table(run: RunFiles, names: Sequence[str], caption: str) -> str:
    whens = [when for when in ("before", "after") if run.evaluation.get(when)]
    both = len(whens) == 2
    head = "".join(f'<th scope="col">{when.capitalize()}</th>' for when in whens) + ('<th scope="col">Change</th>' if both else "")
    rows = []
    for name in names:
        m = measure(name)
        entries = [entry(run, when, name) for when in whens]
        cells = "".join(_cell(entry, m.percent, f"{when}.{name}") for when, entry in zip(whens, entries, strict=True))
        change = _change(entries, m.percent) if both else ""
        meaning = " · ".join(part for part in (m.meaning, m.unit) if part)
        picture = f'<td class="picture">{whiskers(entries) if both else ""}</td>'
        rows.append(f'<tr><th scope="row">{escape(m.label)}<small>{escape(meaning)}</small></th>{cells}{change}{picture}</tr>')
    described = f"<caption>{escape(caption)}</caption>" if caption else ""
    titles = f'<tr><th scope="col">Measure</th>{head}<td class="picture"></td></tr>'
    return f"<table>{described}<thead>{titles}</thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(entry: tuple[float, float, float], percent: bool, name: str) -> str:
    value, low, high = entry
    interval = f"<small>{span(low, high, percent)}</small>" if span(low, high) else ""
    return f'<td data-name="{escape(name)}" data-value="{value!r}">{show(value, percent)}{interval}</td>'


def _change(entries: Sequence[tuple[float, float, float]], percent: bool) -> str:
    (old, old_low, old_high), (new, new_low, new_high) = entries
    clear = new_low > old_high or new_high < old_low
    change = new - old
    text = show(change, percent).replace("%", "pts")
    return f'<td class="change{" clear" if clear else ""}">{"+" if change > 0 else ""}{text}</td>'


# --- curves ---------------------------------------------------------------------------------------------------------


def _curves(run: RunFiles) -> str:
    if not run.steps and not run.evals:
        return '<h2>Training</h2><p class="soft">This run recorded no step: metrics.jsonl is missing or empty.</p>'
    names = [key for line in [*run.steps, *run.evals] for key in line]
    recorded = [name for name in dict.fromkeys(names) if name not in NOT_CURVES and _recorded(run, name)]
    main = [
        _plot(run, "Loss", {"loss": ""}, unit="loss of the objective"),
        _plot(run, "Pair accuracy", {"accuracy": ""}, unit="share of pairs in order", percent=True, line_at=0.5),
        _plot(run, "Reward margin", {"margin": ""}, unit="β · nats", line_at=0.0),
        _plot(run, "Drift of log-probability", {"logp_chosen": "chosen", "logp_rejected": "rejected"}, unit=NATS, line_at=0.0),
        _plot(run, "KL to the reference", {"kl": ""}, unit=NATS, line_at=0.0),
        _plot(run, "Sample length", {"length": ""}, unit="tokens"),
        _plot(run, "Win rate", {"winrate": ""}, unit="share of comparisons won", percent=True, line_at=0.5),
        _plot(run, "Judge score", {"judge": ""}, unit="judge's scale"),
    ]
    other = [name for name in recorded if name not in (*SHOWN_ABOVE, *PAIRED)]
    more = [_plot(run, "Implicit reward", PAIRED, unit="β · nats", line_at=0.0, points=SMALL_POINTS)] + [
        _plot(run, measure(name).label, {name: ""}, unit=measure(name).unit, percent=measure(name).percent, points=SMALL_POINTS)
        for name in other[:OTHERS]
    ]
    left = f'<p class="soft">{len(other) - OTHERS} further values are in metrics.jsonl.</p>' if len(other) > OTHERS else ""
    window = _window(len(run.steps))
    how = f"Thin lines are single steps, thick lines their moving average over {window} steps. " if window > 1 else ""
    how += "Dots are held-out evaluations. " if run.evals else ""
    how += (
        "Drift is log π − log π_ref, averaged over a batch: 0 is the reference, −1 means e times less likely."
        if {"logp_chosen", "logp_rejected"} & set(recorded)
        else "No drift of log-probabilities was recorded: the method keeps no reference, or its rows are not ranked."
    )
    if run.steps and run.steps[0].get("accuracy") == 0:
        how += " While training a tie counts as an error, so accuracy starts at 0 where the policy still equals its reference."
    everything = f'<summary>Everything else that was recorded</summary><div class="charts">{"".join(more)}</div>{left}'
    appendix = f"<details>{everything}</details>" if any(more) else ""
    return f'<h2>Training</h2><p class="soft">{how}</p><div class="charts">{"".join(main)}</div>{appendix}'


def _window(steps: int) -> int:
    return max(1, steps // 25) if steps >= 40 else 1


def _recorded(run: RunFiles, name: str) -> bool:
    return any(math.isfinite(number(line.get(name))) for line in [*run.steps, *run.evals])


def _plot(
    run: RunFiles,
    title: str,
    names: Mapping[str, str],
    *,
    unit: str,
    percent: bool = False,
    line_at: float | None = None,
    points: int = POINTS,
) -> str:
    """A chart of one or two recorded values: single steps, their moving average, held-out evaluations; "" if nothing was recorded."""
    series: list[Series] = []
    colours: tuple[Literal["a", "b"], ...] = ("a", "b")
    for (name, label), colour in zip(names.items(), colours, strict=False):
        step = np.array([number(line.get("step")) for line in run.steps if name in line])
        value = np.array([number(line.get(name)) for line in run.steps if name in line])
        window = _window(len(value))
        if np.isfinite(value).any() and window > 1:
            series.append(Series(label, *_lists(*thin(step, value, points)), colour, "faint"))
        if np.isfinite(value).any():
            mean = smooth(value, window)
            every = max(1, len(mean) // (min(points, 500) if window > 1 else points))
            series.append(Series(label or "training", *_lists(step[::every], mean[::every]), colour))
        held_out = [(number(line["step"]), number(line.get(name))) for line in run.evals if name in line]
        if any(math.isfinite(y) for _, y in held_out):
            label_held = f"{label}, held out" if label else "held out"
            x, y = np.array(held_out).T
            series.append(Series(label_held, *_lists(*thin(x, y, 200)), colour, "dots"))
    if not series:
        return ""
    last = max(number(line.get("step")) for line in [*run.steps, *run.evals])
    return chart("-".join(map(_slug, names)), title, series, steps=last, unit=unit, percent=percent, line_at=line_at)


def _slug(name: str) -> str:
    """An id that any recorded name may become."""
    return hashlib.blake2b(name.encode(), digest_size=6).hexdigest()


def _lists(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    return x.tolist(), y.tolist()


# --- samples and configuration --------------------------------------------------------------------------------------


def _samples(run: RunFiles) -> str:
    if not run.samples:
        return ""
    shown = run.samples[:SAMPLES]
    cards = [_sample(sample) for sample in shown]
    rest = cards[OPEN_SAMPLES:]
    more = f"<details><summary>{len(rest)} more</summary>{''.join(rest)}</details>" if rest else ""
    scores = [[number(s.get(name)) for s in run.samples] for name in ("judge_before", "judge_after")]
    judged = [show(_mean(values)) for values in scores if np.isfinite(values).any()]
    mean = f" Mean judge score {judged[0]} before, {judged[1]} after." if len(judged) == 2 else ""
    some = f"The first {len(shown)} of {len(run.samples):,} samples." if len(run.samples) > len(shown) else f"All {len(shown)} samples."
    return f'<h2>Samples, before and after</h2><p class="soft">{some}{mean}</p>{"".join(cards[:OPEN_SAMPLES])}{more}'


def _sample(sample: Mapping[str, Any]) -> str:
    sides = "".join(
        f"<div><h3>{when.capitalize()}{_judged(sample.get(f'judge_{when}'))}</h3>{_text(sample.get(when))}</div>"
        for when in ("before", "after")
    )
    return f'<article class="sample"><div class="prompt">{_text(sample.get("prompt"))}</div><div class="pair">{sides}</div></article>'


def _judged(score: Any) -> str:
    return f"<span>judge {show(score)}</span>" if math.isfinite(number(score)) else ""


def _text(value: Any) -> str:
    """A prompt or response: plain text, or chat messages; long ones are cut, and say so."""
    if isinstance(value, list) and all(isinstance(m, Mapping) and "content" in m for m in value):
        value = "\n".join(f"{m.get('role', '')}: {m['content']}" for m in value)
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    text = text.strip("\n")
    if not text.strip():
        return '<p class="text empty">empty</p>'
    cut = len(text) - SAMPLE_LENGTH
    rest = f' <span class="empty">… and {cut:,} more characters</span>' if cut > 0 else ""
    return f'<p class="text">{escape(text[:SAMPLE_LENGTH])}{rest}</p>'


def _configuration(run: RunFiles) -> str:
    config = dict(run.config)
    command = config.pop("command", None)
    loss, objective = formula(config)
    config.pop("formula", None)
    groups = {"Run": {k: v for k, v in config.items() if not isinstance(v, Mapping)}}
    groups |= {name.replace("_", " ").capitalize(): dict(value) for name, value in config.items() if isinstance(value, Mapping) and value}
    shell = f"<p>This run again:</p><pre>{escape(str(command))}</pre>" if command else ""
    tables = "".join(
        f'<details open><summary>{escape(title)}</summary><table class="config"><tbody>'
        + "".join(f'<tr><th scope="row">{escape(str(name))}</th><td>{_plain(value)}</td></tr>' for name, value in group.items())
        + "</tbody></table></details>"
        for title, group in groups.items()
        if group
    )
    described = f"<details><summary>Objective</summary><pre>{escape(objective)}</pre></details>" if objective != loss else ""
    return f"<h2>Configuration</h2>{shell}{tables}{described}"


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else "–" if value is None else json.dumps(value, ensure_ascii=False)
    return f"<code>{escape(text[:4000])}</code>"
