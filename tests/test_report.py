"""Facts about the report and the model card: true numbers, nothing executable from a model, readable whatever is missing."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from preftune.report.card import model_card
from preftune.report.chart import smooth, thin, ticks
from preftune.report.page import drift_sentence, write
from preftune.report.run import read, show
from preftune.types import PreftuneError

EVIL = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\"'&"
CONFIG: dict[str, Any] = {
    "method": "rpo",
    "hyperparameters": {"beta": 0.1, "alpha": 0.005},
    "train": {"lr": 5e-5, "batch": 16},
    "model": "models/SmolLM2-135M-Instruct",
    "data": "ratings.jsonl",
    "command": "preftune train rpo --model models/SmolLM2-135M-Instruct --data ratings.jsonl",
    "seed": 0,
    "commit": "5ae889b",
    "versions": {"torch": "2.13.0"},
    "formula": "loss = -log σ(h) - α log π(y₀|x)",
}
EVALUATION: dict[str, Any] = {
    "before": {"accuracy": {"value": 0.5, "low": 0.5, "high": 0.5}, "length": {"value": 38.25, "low": 36.0, "high": 40.5}},
    "after": {
        "accuracy": {"value": 0.7134, "low": 0.661, "high": 0.759},
        "length": {"value": 52.5, "low": 50.0, "high": 55.0},
        "kl": {"value": 8.93, "low": 7.7, "high": 10.2},
        "logp_chosen": {"value": -4.1, "low": -5.0, "high": -3.2},
        "logp_rejected": {"value": -17.2, "low": -19.0, "high": -15.5},
        "my_metric": {"value": 3.0, "low": None, "high": None},
    },
}


def steps(n: int, **fixed: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "step": i,
            "loss": 0.7 - 0.4 * i / n + 0.05 * rng.normal(),
            "accuracy": 0.5 + 0.3 * i / n,
            "margin": i / n,
            "logp_chosen": -i / n,
            "logp_rejected": -4 * i / n,
            "grad_norm": 1.0 + rng.random(),
            "tokens": 900,
            "seconds": 0.5 * i,
            **fixed,
        }
        for i in range(1, n + 1)
    ]


def run_folder(
    folder: Path,
    lines: Iterable[Mapping[str, Any]] = (),
    evaluation: Mapping[str, Any] | None = None,
    samples: Iterable[Mapping[str, Any]] = (),
    config: Mapping[str, Any] = CONFIG,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples), encoding="utf-8")
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    return folder


def full_run(folder: Path) -> Path:
    lines = steps(120)
    lines[40]["loss"] = None
    evaluations = [{"step": i, "eval": {"accuracy": 0.6, "logp_chosen": -0.5, "kl": 2.0}, "seconds": i} for i in (50, 100)]
    samples = [{"prompt": f"p{i}", "before": "good", "after": "bad", "judge_before": 0.9, "judge_after": 0.1} for i in range(9)]
    return run_folder(folder, [*lines, *evaluations], EVALUATION, samples)


class Page(HTMLParser):
    """What stands in a page: tags with their attributes, and its visible text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, cls: str | None = None) -> int:
        return sum(name == tag and (cls is None or cls in (a.get("class") or "").split()) for name, a in self.tags)


# --- the page


def test_the_numbers_in_the_tables_are_those_of_evaluation_json(tmp_path: Path) -> None:
    page = Page(write(full_run(tmp_path)))
    cells = {a["data-name"]: float(a["data-value"] or "") for tag, a in page.tags if tag == "td" and "data-name" in a}
    for when, numbers in EVALUATION.items():
        for name, entry in numbers.items():
            assert cells[f"{when}.{name}"] == entry["value"]
    assert math.isnan(cells["before.kl"])
    for shown in ("71.3\N{NO-BREAK SPACE}%", "66.1 to 75.9\N{NO-BREAK SPACE}%", "+21.3\N{NO-BREAK SPACE}pts", "38.2", "+14.2", "my metric"):
        assert shown in page.text


def test_a_full_run_has_its_charts_samples_and_configuration(tmp_path: Path) -> None:
    page = Page(write(full_run(tmp_path)))
    for title in ("Loss", "Pair accuracy", "Reward margin", "Drift of log-probability", "KL to the reference", "Gradient norm"):
        assert title in page.text
    assert page.count("figure", "chart") == 6
    assert page.count("article", "sample") == 9
    for text in (
        CONFIG["command"],
        CONFIG["formula"],
        "5ae889b",
        "2.13.0",
        "0.005",
        "nats per response",
        "1 value is missing",
        "0.900 before",
    ):
        assert text in page.text


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    page = Page(write(full_run(tmp_path)))
    addresses = [value for _, a in page.tags for name, value in a.items() if name in ("src", "href", "srcset", "data", "action", "poster")]
    assert all((value or "").startswith(("#", "data:")) for value in addresses)
    assert "@import" not in page.source and not re.search(r"url\((?!#)", page.source)
    assert page.count("link") == 1 and page.count("iframe") == 0
    policy = next(a["content"] or "" for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy


def test_what_a_model_or_a_file_says_is_text_and_never_markup(tmp_path: Path) -> None:
    config = {**CONFIG, **dict.fromkeys(("method", "model", "data", "command", "formula", "seed"), EVIL), "versions": {EVIL: EVIL}}
    lines = [{"step": i, "loss": 1.0, EVIL: 1.0 * i, "eval": {EVIL: 1.0}} for i in range(1, 5)]
    evaluation = {"after": {EVIL: {"value": 1.0, "low": 0.0, "high": 2.0}}}
    samples = [{"prompt": [{"role": EVIL, "content": EVIL}], "before": EVIL, "after": {EVIL: EVIL}, "judge_before": EVIL}]
    page = Page(write(run_folder(tmp_path, lines, evaluation, samples, config)))
    assert page.count("script") == 1 and page.count("img") == 0
    assert all(not name.startswith("on") for _, a in page.tags for name in a)
    assert EVIL in page.text


@pytest.mark.parametrize(
    "lines",
    [
        [],
        steps(1),
        steps(3, loss=None, margin=math.nan),
        steps(5, loss=math.inf),
        [{"step": i, "loss": 0.5} for i in range(1, 80)],
        [{"step": 1, "loss": 1e-12}, {"step": 2, "loss": -1e300}],
        [{"step": 7, "eval": {"accuracy": {"value": 0.5, "low": 0.1, "high": 0.9}}}],
        [{"step": 0, "loss": "text", "accuracy": True}],
    ],
    ids=["no step", "one step", "NaN", "infinite", "constant, no reference", "extreme", "one evaluation only", "no numbers"],
)
@pytest.mark.parametrize(
    "evaluation", [None, {}, {"after": {"accuracy": {"value": None, "low": None, "high": None}}}, {"before": {"kl": 1.0}}]
)
def test_a_page_is_written_whatever_is_missing(tmp_path: Path, lines: list[dict[str, Any]], evaluation: dict[str, Any] | None) -> None:
    folder = run_folder(tmp_path, lines, evaluation, config={"method": "simpo"})
    page = Page(write(folder))
    assert "simpo" in page.text and not re.search(
        r"\b(nan|inf|None)\b", re.sub(r'data-value="[^"]*"', "", page.source).split("</style>")[1].split("<script>")[0]
    )
    assert model_card(folder, "base")


def test_a_run_without_reference_says_so_instead_of_drawing_drift(tmp_path: Path) -> None:
    page = Page(write(run_folder(tmp_path, [{"step": i, "loss": 1 / i} for i in range(1, 9)], config={"method": "simpo"})))
    assert "the method keeps no reference" in page.text and "Drift of log-probability" not in page.text


def test_a_huge_run_stays_a_small_page(tmp_path: Path) -> None:
    """20,000 steps of 28 values and 500 long samples: under 1.5 MB."""
    lines = steps(20_000)
    for i, line in enumerate(lines):
        line |= {f"value_{k}": math.sin(i + k) for k in range(20)}
    samples = [{"prompt": "p" * 4000, "before": "b" * 9000, "after": "a" * 9000}] * 500
    path = write(run_folder(tmp_path, lines, EVALUATION, samples))
    assert path.stat().st_size < 1_500_000
    text = Page(path).text
    assert "The first 60 of 500 samples" in text and "7,500 more characters" in text and "further values are in metrics.jsonl" in text


def test_half_a_line_of_a_killed_run_and_repeated_steps_are_read(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0}])
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')
    assert [line["loss"] for line in read(folder).steps] == [1.0, 2.0]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match=r"no config\.json"):
        write(tmp_path)


@pytest.mark.parametrize(
    ("chosen", "rejected", "said", "attention"),
    [
        (-4.1, -17.2, "likelihood displacement", True),
        (2.0, -3.0, "as the labels ask", False),
        (3.0, 1.0, "Both rose", False),
        (-3.0, 1.0, "against its labels", True),
        (0.01, -0.02, "close to its reference", False),
        (0.01, -3.0, "became less likely while", False),
        (2.0, 0.0, "became likelier while", False),
    ],
)
def test_the_drift_sentence_names_what_happened(chosen: float, rejected: float, said: str, attention: bool) -> None:
    sentence, asks = drift_sentence(chosen, rejected)
    assert said in sentence and asks == attention


def test_the_fall_of_a_chosen_response_is_told_as_a_factor() -> None:
    """e^4.1 = 60.3."""
    assert "60 times less likely" in drift_sentence(-4.1, -17.2)[0]
    assert "more than a million times" in drift_sentence(-40.0, -50.0)[0]


# --- charts


def test_thinning_keeps_the_extremes_and_the_order() -> None:
    x = np.arange(100_000.0)
    y = np.sin(x / 900)
    y[31_337], y[70_001], y[5] = 50.0, -50.0, np.nan
    tx, ty = thin(x, y, 2000)
    assert len(tx) <= 2000 and (np.diff(tx) > 0).all()
    assert 31_337 in tx and 70_001 in tx and np.nanmax(ty) == 50


def test_smoothing_a_line_keeps_the_line_and_the_gaps() -> None:
    y = np.arange(50.0)
    assert smooth(y, 5)[2:-2] == pytest.approx(y[2:-2])
    y[20] = np.nan
    assert np.isnan(smooth(y, 5)[20]) and np.isfinite(smooth(y, 5)[21])


def test_ticks_are_round_and_within_the_range() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-17.2, 0.9) == pytest.approx([-15, -10, -5, 0])
    assert all(3 <= len(ticks(low, low + width)) <= 7 for low in (-3e5, 0.0, 7.7) for width in (1e-6, 0.3, 4.4, 9e8))


def test_numbers_are_shown_with_three_digits() -> None:
    shown = [show(x) for x in (0, 0.61, -4.1, 999.7, 123456, 5e-5, 0.0, math.nan, None, -math.inf)]
    assert shown == ["0", "0.610", "−4.10", "1,000", "123,456", "5.00e−5", "0", "–", "–", "−∞"]
    assert [show(x, exact=False) for x in (1e-5, 2.5e-5, 0.25, 40.0, 0.0)] == ["1e−5", "2.5e−5", "0.25", "40", "0"]
    assert show(0.7134, percent=True) == "71.3\N{NO-BREAK SPACE}%"


def test_a_docstring_in_place_of_a_formula_shows_its_formula_first(tmp_path: Path) -> None:
    text = "Direct preference optimisation.\n\n    loss = -logsigmoid(h)\n\n    Limits  ln 2 at the reference\n    "
    folder = run_folder(tmp_path, config={**CONFIG, "formula": text})
    page = Page(write(folder)).source
    assert '<p class="formula">loss = -logsigmoid(h)</p>' in page and "Limits  ln 2" in page
    assert "```\nloss = -logsigmoid(h)\n```" in model_card(folder, "base")


# --- the model card


def test_the_card_states_method_data_command_and_metrics(tmp_path: Path) -> None:
    card = model_card(full_run(tmp_path), "org/base-135M", method_doc="A likelihood term beside DPO.\n\nLong story.")
    _, front, body = card.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["library_name"] == "transformers" and meta["base_model"] == "org/base-135M"
    assert {"preftune", "rpo"} <= set(meta["tags"])
    for text in ("A likelihood term beside DPO.", CONFIG["formula"], CONFIG["command"], "ratings.jsonl", "| `beta` | `0.1` |"):
        assert text in body
    assert "Long story" not in body
    assert "71.3\N{NO-BREAK SPACE}% (66.1 to 75.9\N{NO-BREAK SPACE}%)" in body and "likelihood displacement" in body


def test_a_card_names_no_path_as_its_base_and_quotes_what_yaml_would_read(tmp_path: Path) -> None:
    config = {**CONFIG, "method": 'no: [yes] "#', "command": "echo ```", "hyperparameters": {"a": "x|y`z"}}
    card = model_card(run_folder(tmp_path, config=config), "/home/me/secret place/my-model", library="peft")
    meta = yaml.safe_load(card.split("---\n")[1])
    assert "base_model" not in meta and meta["library_name"] == "peft" and meta["tags"][2] == 'no: [yes] "#'
    assert "my-model" in card and "secret" not in card
    assert "````sh\necho ```\n````" in card and "x\\|y'z" in card


# --- in a browser

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no browser: none of chromium, chromium-browser, google-chrome is installed")

PROBE = """<script>
  const svg = document.querySelector("figure.chart svg"), box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 20, bubbles: true}));
  const wide = (chart) => chart.querySelector("polyline, circle").getBBox().width > 5;
  document.body.dataset.drawn = [...document.querySelectorAll(".chart")].filter(wide).length;
  document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.dataset.width = document.documentElement.clientWidth;
</script>"""


def browse(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """The page's document after its scripts ran, and what the console said."""
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    command = [
        str(BROWSER),
        *quiet.split(),
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        *options,
        page.as_uri(),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=90)
    return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
def test_a_browser_shows_the_page_without_an_error(tmp_path: Path) -> None:
    path = write(full_run(tmp_path / "run"))
    document, console = browse(path, tmp_path / "profile", "--dump-dom")
    assert console == []
    assert document.count('<figure class="chart">') == 6 and document.count("<polyline") >= 10


@needs_browser
def test_on_a_phone_the_plots_are_drawn_the_pointer_reads_them_and_nothing_sticks_out(tmp_path: Path) -> None:
    """A probe script needs the page's ban on foreign scripts lifted, in a copy."""
    source = write(full_run(tmp_path / "run")).read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(re.sub(r"<meta http-equiv[^>]*>", "", source).replace("</body>", PROBE + "</body>"), encoding="utf-8")
    document, console = browse(probed, tmp_path / "profile", "--window-size=390,800", "--dump-dom")
    assert console == []
    found = dict(re.findall(r'data-(drawn|wide|width)="([^"]*)"', document))
    assert int(found["drawn"]) >= 5 and int(found["wide"]) <= 0 and int(found["width"]) <= 500
    assert re.search(r'<output data-series="training">[^<]+ at \d+</output>', document)


@needs_browser
def test_markup_in_a_sample_stays_inert_in_a_browser(tmp_path: Path) -> None:
    samples = [{"prompt": EVIL, "before": EVIL, "after": EVIL}]
    document, console = browse(write(run_folder(tmp_path / "run", steps(3), EVALUATION, samples)), tmp_path / "profile", "--dump-dom")
    assert console == [] and document.count("<script>") == 1 and "<img" not in document
