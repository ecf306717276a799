"""The model card of a trained model: what was done to which model, with which data, and what it measured."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Literal

from .page import drift_sentence, entry
from .run import MEASURES, RunFiles, formula, measure, read, short_name, show, span

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_card(
    run_folder: str | Path, base_model: str, *, method_doc: str = "", library: Literal["transformers", "peft"] = "transformers"
) -> str:
    """The text of README.md for the model folder of a run.

    base_model is named in the front matter where it is a hub name (the hub refuses paths). method_doc is the method's
    docstring; its first paragraph goes into the card.
    """
    run = read(run_folder)
    method = str(run.config.get("method") or "preference optimisation")
    name, data = short_name(base_model), run.config.get("data")
    on_data = f", on the data `{_cell(short_name(data))}`" if data else ""
    parts = [
        _front_matter(base_model, method, library),
        f"# {name}, trained with {method}",
        f"This model is `{name}` after preference optimisation with the method **{method}** of preftune{on_data}.",
        _use(library),
        _method(run, method_doc),
        _metrics(run),
        _reproduce(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(base_model: str, method: str, library: str) -> str:
    lines = [f"library_name: {library}"]
    if HUB_NAME.fullmatch(str(base_model)):
        lines += [f"base_model: {json.dumps(base_model)}", f"base_model_relation: {'adapter' if library == 'peft' else 'finetune'}"]
    tags = ["preftune", "preference-optimization", method]
    lines += ["pipeline_tag: text-generation", "tags:", *(f"- {json.dumps(tag, ensure_ascii=False)}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _use(library: str) -> str:
    load = (
        "from peft import AutoPeftModelForCausalLM\n\nmodel = AutoPeftModelForCausalLM.from_pretrained(FOLDER)"
        if library == "peft"
        else "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)"
    )
    return _fence(load, "python")


def _method(run: RunFiles, method_doc: str) -> str:
    paragraph = " ".join(method_doc.strip().split("\n\n")[0].split())
    loss, _ = formula(run.config)
    values = run.config.get("hyperparameters") or {}
    table = (
        "\n".join(["| hyperparameter | value |", "|---|---|", *(f"| `{k}` | `{_cell(v)}` |" for k, v in values.items())]) if values else ""
    )
    body = "\n\n".join(part for part in (paragraph, _fence(loss) if loss else "", table) if part)
    return f"## Method\n\n{body}" if body else ""


def _metrics(run: RunFiles) -> str:
    whens = [when for when in ("before", "after") if run.evaluation.get(when)]
    if not whens:
        return "## Evaluation\n\nThis run was not evaluated."
    recorded = {name for when in whens for name in run.evaluation[when]}
    names = [n for n in MEASURES if n in recorded] + sorted(recorded - set(MEASURES))

    def cell(when: str, name: str) -> str:
        value, low, high = entry(run, when, name)
        interval = span(low, high, measure(name).percent)
        return show(value, measure(name).percent) + (f" ({interval})" if interval else "")

    rows = [f"| {_cell(measure(n).label)} | {measure(n).unit or '–'} | {' | '.join(cell(when, n) for when in whens)} |" for n in names]
    table = "\n".join([f"| measure | unit | {' | '.join(whens)} |", "|---|---|" + "---:|" * len(whens), *rows])
    chosen, rejected = (entry(run, "after", name)[0] for name in ("logp_chosen", "logp_rejected"))
    drift = f"\n\n{drift_sentence(chosen, rejected)[0]}" if math.isfinite(chosen) and math.isfinite(rejected) else ""
    return f"## Evaluation\n\nIn brackets the 95 % bootstrap interval.\n\n{table}{drift}"


def _reproduce(run: RunFiles) -> str:
    config = run.config
    command = _fence(str(config["command"]), "sh") if config.get("command") else ""
    facts = [f"seed {config['seed']}"] if "seed" in config else []
    facts += [f"commit {config['commit']}"] if config.get("commit") else []
    facts += [f"{name} {version}" for name, version in (config.get("versions") or {}).items()]
    body = "\n\n".join(part for part in (command, ", ".join(facts)) if part)
    return f"## This model again\n\n{body}" if body else ""


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.replace("|", "\\|").replace("`", "'").split())


def _fence(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
