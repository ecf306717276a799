"""Reading a finished (or broken off) run folder, and the names of what is measured in it."""

from __future__ import annotations

import inspect
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..types import PreftuneError


@dataclass(frozen=True)
class Measure:
    """How a number is called, shown and read."""

    label: str
    meaning: str
    unit: str = ""
    better: int = 0  #       1 higher, -1 lower, 0 neither
    percent: bool = False


# In the order in which they are shown; the first ten make the headline table.
MEASURES = {
    "accuracy": Measure(
        "Pair accuracy", "held-out pairs that the implicit reward orders as labelled; one half at the reference", "", 1, True
    ),
    "judge": Measure("Judge score", "mean over sampled responses, on the judge's scale", "", 0),
    "winrate": Measure("Win rate", "samples that beat the reference's, both orders judged", "", 1, True),
    "kl": Measure("KL to the reference", "mean of log π − log π_ref over samples; may fall below 0 by chance", "nats per response"),
    "length": Measure("Sample length", "mean length of a sampled response", "tokens"),
    "margin": Measure("Reward margin", "β times the gap of the two log-ratios", "β·nats", 1),
    "logp_chosen": Measure("Drift, chosen", "mean log π − log π_ref of the chosen responses", "nats per response"),
    "logp_rejected": Measure("Drift, rejected", "mean log π − log π_ref of the rejected responses", "nats per response"),
    "accuracy_raw": Measure("Raw accuracy", "pairs whose chosen response is the likelier one under the policy alone", "", 1, True),
    "calibration_error": Measure("Calibration error", "distance of confidence and share of right answers", "", -1, True),
    "accuracy_per_token": Measure("Raw accuracy per token", "the same for the mean log-probability of a token", "", 1, True),
    "brier": Measure("Brier score", "mean squared error of σ(margin) against the label", "", -1),
    "kl_k3": Measure("KL, low-variance estimate", "mean of log r + 1/r − 1 over samples; never negative", "nats per response"),
    "judge_sd": Measure("Judge score, deviation", "standard deviation of the judge's score over prompts", ""),
    "reward_chosen": Measure("Implicit reward, chosen", "β times the drift of the chosen responses", "β·nats"),
    "reward_rejected": Measure("Implicit reward, rejected", "β times the drift of the rejected responses", "β·nats"),
    "length_chosen": Measure("Length, chosen", "tokens of the data's chosen responses", "tokens"),
    "length_rejected": Measure("Length, rejected", "tokens of the data's rejected responses", "tokens"),
    "loss": Measure("Loss", "the objective's value", "", -1),
    "nll": Measure("Likelihood term", "negative log-likelihood of the chosen responses", "nats", -1),
    "grad_norm": Measure("Gradient norm", "before clipping"),
    "lr": Measure("Learning rate", "after warm-up and decay"),
    "tokens": Measure("Tokens", "", "tokens"),
    "silent": Measure("Silent rows", "left out of the step: the judge gave no answer about them", "", -1),
    "tokens_sampled": Measure("Tokens sampled", "since the run began", "tokens"),
    "judge_asked": Measure("Judge, asked", "questions that were put to the judge since the run began"),
    "judge_known": Measure("Judge, known", "questions whose answers were kept from before"),
    "judge_tokens_in": Measure("Judge, tokens read", "that an endpoint counted since the run began", "tokens"),
    "judge_tokens_out": Measure("Judge, tokens written", "that an endpoint counted since the run began", "tokens"),
    "judge_money": Measure("Judge, money", "since the run began, in the unit of the prices that were given; 0 without prices"),
    "seconds": Measure("Seconds", "", "s"),
    "epoch": Measure("Epoch", "passes over the data"),
}
HEADLINE = tuple(MEASURES)[:10]


def measure(name: str) -> Measure:
    """The description of a number; one that we do not know is called by its name."""
    return MEASURES.get(name) or Measure(name.replace("_", " "), "")


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds; whatever the run did not write is empty."""

    folder: Path
    config: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]  #       metrics of the training steps, by step
    evals: Sequence[Mapping[str, Any]]  #       {"step": n, **metrics} of the periodic evaluations
    evaluation: Mapping[str, Mapping[str, Any]]  # "before" | "after" -> name -> {"value", "low", "high"}
    samples: Sequence[Mapping[str, Any]]


def read(folder: str | Path) -> RunFiles:
    """Read a run folder; config.json must be there, everything else may be missing."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise PreftuneError(
            f"{folder} has no config.json, needed a run folder as `preftune train` writes it; give the folder, not a file in it"
        )
    lines = _lines(folder / "metrics.jsonl")
    steps = {line["step"]: line for line in lines if set(line) - {"step", "epoch", "seconds", "eval"}}
    evals = {line["step"]: {"step": line["step"], **_values(line["eval"])} for line in lines if "eval" in line}
    evaluation = folder / "evaluation.json"
    return RunFiles(
        folder,
        json.loads((folder / "config.json").read_text(encoding="utf-8")),
        [steps[n] for n in sorted(steps)],
        [evals[n] for n in sorted(evals)],
        json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else {},
        _lines(folder / "samples.jsonl"),
    )


def _values(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Plain numbers, also where an evaluation carries its intervals."""
    return {name: entry.get("value") if isinstance(entry, Mapping) else entry for name, entry in evaluation.items()}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a .jsonl file: a run that was killed may leave half a line at the end."""
    if not path.is_file():
        return []
    complete, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in complete.splitlines() if line.strip()]


def short_name(path: Any) -> str:
    """What people call a model or a file: the end of its path or hub name, of each part of a mixture."""
    parts = path if isinstance(path, list | tuple) else str(path).split(",")
    return ", ".join(str(part).strip().rstrip("/\\").replace("\\", "/").rpartition("/")[2] for part in parts)


def formula(config: Mapping[str, Any]) -> tuple[str, str]:
    """The objective's formula alone, and everything that the run wrote about it (an objective's docstring, as a rule)."""
    text = inspect.cleandoc(str(config.get("formula") or ""))
    paragraphs = [textwrap.dedent(paragraph).strip() for paragraph in text.split("\n\n")]
    return next((p for p in paragraphs if p.startswith("loss")), paragraphs[0]), text


def number(value: Any) -> float:
    """A float; NaN for what is missing or no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def show(value: Any, percent: bool = False, *, exact: bool = True) -> str:
    """Three significant digits (a percentage: one decimal), a true minus sign, a dash for no number.

    exact=False leaves trailing zeros away, as on the ticks of an axis.
    """
    x = number(value)
    if math.isnan(x):
        return "–"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if percent:
        text = f"{100 * x:.1f}\N{NO-BREAK SPACE}%"
    elif not exact and abs(x) < 999.5:
        text = f"{x:.3g}"
    elif x == 0:
        text = "0"
    elif 1e-3 <= abs(x) < 999.5:
        text = f"{x:#.3g}".removesuffix(".")
    elif 999.5 <= abs(x) < 1e9:
        text = f"{x:,.0f}"
    else:
        text = f"{x:.2e}"
    text = text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return text.replace("-", "−")


def span(low: float, high: float, percent: bool = False) -> str:
    """An interval in the unit of its value: 0.57 to 0.646; "" where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{show(low, percent)} to {show(high, percent)}".replace("\N{NO-BREAK SPACE}% to", " to")
