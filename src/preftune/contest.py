"""`arena`: language models answer the same prompts, a judge compares the answers, and the standings say who wins and how sure that is.

Every answer and verdict goes to disk as it comes: a contest that was interrupted or killed goes on from its folder, and what is stored is
not sampled or asked again.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from . import provenance
from .api import load_data, load_policy, resolve_judge, written
from .data.columns import Record
from .data.feed import narrow
from .evaluation import Interval
from .log import write_whole
from .numerics import not_negative, positive
from .standings import Standings, Verdicts, standings
from .types import Judge, Key, PreftuneError, Rows

ANSWERED, JUDGED = 32, 64  # prompts and comparisons between two writes: what a kill loses
SETTINGS, ANSWERS, VERDICTS, RESULT = "settings.json", "answers.jsonl", "verdicts.jsonl", "arena.json"
# what a contest that goes on may not change
SAME = ("models", "prompts", "judge", "judge_stamp", "samples", "decoding", "load", "max_prompt", "seed")


@dataclass(frozen=True)
class Arena:
    """A finished contest: the standings, what they cost, and where everything lies."""

    folder: Path
    standings: Standings
    models: dict[str, dict[str, Any]]  #  name -> source, answers that are empty, that were cut, tokens, seconds
    judge: str
    judge_calls: int  #                   comparisons asked, both orders counted, those of an interrupted contest too
    seconds: dict[str, float]  #          sampling, judging
    overlap: dict[str, Any]  #            prompts that were trained on: rows, left_out, by_source
    settings: dict[str, Any] = field(repr=False)
    notes: list[str] = field(repr=False)

    @property
    def report(self) -> Path:
        """The page of the contest."""
        return self.folder / "report.html"


def arena(
    models: Sequence[Any] | Mapping[str, Any],
    prompts: Any,
    judge: str | Judge,
    *,
    samples: int = 1,
    rows: int | None = None,
    decoding: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    train_data: Sequence[Any] = (),
    keep_overlap: bool = False,
    load: Mapping[str, Any] | None = None,
    read: Mapping[str, Any] | None = None,
    max_prompt: int | None = None,
    bootstrap: int = 1000,
    progress: bool = True,
) -> Arena:
    """All models against each other on prompts that none was trained on, by a judge that is asked about every pair in both orders.

    models      folders, hub ids, GGUF files or policies of language models, or name -> one of these; loaded one at a time
    prompts     a file, folder, hub id, or rows in memory; responses in them are not looked at, and a prompt is asked once
    judge       a name, "pkg.module:function", or a Judge
    samples     answers of each model to each prompt; answer s of one model meets answer s of another
    rows        how many prompts at most; None: all
    decoding    temperature, top_k, top_p, min_p, stop, max_new_tokens
    out         the folder; where it holds the same contest unfinished, that goes on. None: runs/arena-TIME
    train_data  data that the models were trained on. Those of a run's model are read from the run's folder, through all its ancestors
    keep_overlap  keep prompts that were trained on; they are counted and told either way
    load, read  how models and data are loaded
    bootstrap   resamples of the prompts for intervals and the test of intransitivity; 0 leaves both out

    Writes settings.json, answers.jsonl, verdicts.jsonl, arena.json and report.html. The judge reads all answers and prompts through the
    first model's tokenizer. A judge that is an object is known by its type and, where it has one, by its fingerprint(): without, another
    judge of that type needs another folder.
    """
    positive("samples", samples, "it is the number of answers to a prompt")
    not_negative("bootstrap", bootstrap, "it is the number of resamples")
    if rows is not None:
        positive("rows", rows, "it is the number of prompts")
    sources = entrants(models)
    asked = resolve_judge(judge)
    if not callable(getattr(asked, "prefer", None)):
        raise PreftuneError(f"the judge is {type(asked).__name__}, needed an object that compares, with a method prefer(rows, a, b, key)")
    tokenizers = {name: tokenizer_of(source, load or {}) for name, source in sources.items()}  # all of them, before the first is sampled
    records, overlap, notes = apart(load_data(prompts, **(read or {})), sources, train_data, keep_overlap, rows)
    folder = Path(out) if out is not None else Path("runs") / f"arena-{time.strftime('%Y%m%d-%H%M%S')}"
    settings: dict[str, Any] = {
        "models": {name: {"source": _place(source), "stamp": stamp(source)} for name, source in sources.items()},
        "prompts": hashlib.blake2b(json.dumps([[r.id, r.prompt, r.system] for r in records]).encode(), digest_size=16).hexdigest(),
        "judge": judge if isinstance(judge, str) else type(judge).__name__,
        "judge_stamp": stamp(judge),
        "samples": samples,
        "decoding": dict(decoding or {}),
        "load": dict(load or {}),
        "max_prompt": max_prompt,
        "seed": seed,
        "rows": len(records),
        "command": provenance.command(),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }
    say: Callable[[str], None] = (lambda text: print(text, file=sys.stderr, flush=True)) if progress else (lambda text: None)
    for note in notes:
        say(note)
    with alone(folder):
        begin(folder, settings)
        key = Key.of(seed)
        for name, source in sources.items():
            answer(folder / ANSWERS, name, source, records, samples, key.fold("answers", name), load, decoding, max_prompt, say)
        told = answers(folder / ANSWERS, tuple(sources), records)
        first, cut = encoded(records, next(iter(tokenizers.values())), max_prompt)
        notes += [f"{cut} prompts are cut to {max_prompt} tokens"] if cut else []
        if differ := read_otherwise(first[0], told):
            notes.append(f"the judge reads {differ} answers otherwise than they were written: the first model's tokenizer changes them")
        compare(folder / VERDICTS, asked, first, records, told, key.fold("verdicts"), say)
        return finish(folder, settings, records, told, overlap, notes, bootstrap, seed)


# --- who meets ------------------------------------------------------------------------------------------------------------------------


def entrants(models: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """Name -> model; one that is given twice is refused, and so is a single one."""
    listed: Any = [models] if _is_name(models) else models
    given: list[tuple[str | None, Any]] = list(models.items()) if isinstance(models, Mapping) else [(None, model) for model in listed]
    if len(given) < 2:
        raise PreftuneError(
            f"found {len(given)} model{'s' * (len(given) != 1)}, needed at least two that meet; give the model to compare with"
        )
    places = [str(Path(model).expanduser().resolve()) if _is_name(model) and Path(model).exists() else model for _, model in given]
    for i, place in enumerate(places):
        if any(place is other or (isinstance(place, str) and place == other) for other in places[:i]):
            raise PreftuneError(
                f"the model {given[i][1]} is given twice, needed different ones: its answers would meet its own; leave one out"
            )
    short = [name or short_name(model, i) for i, (name, model) in enumerate(given)]
    names = [str(given[i][1]) if short.count(name) > 1 and _is_name(given[i][1]) else name for i, name in enumerate(short)]
    for name in names:
        if names.count(name) > 1:
            raise PreftuneError(f"two models are called {name}, needed names that tell them apart; give a mapping from name to model")
    return dict(zip(names, (model for _, model in given), strict=True))


def _is_name(model: Any) -> bool:
    return isinstance(model, str | Path)


def short_name(model: Any, number: int) -> str:
    """What people call a model: the run of a run's model, the file's or hub's name; policies are numbered."""
    if not _is_name(model):
        return f"policy-{number + 1}"
    path = Path(model)
    name = path.resolve().parent.name if path.name == "model" and path.exists() else path.stem if path.suffix == ".gguf" else path.name
    return name or str(model)


def _place(model: Any) -> str:
    """Where a model came from: its full path, its hub id, or its type."""
    return (str(Path(model).resolve()) if Path(model).exists() else str(model)) if _is_name(model) else type(model).__name__


def stamp(model: Any) -> str | None:
    """What changes when a model or judge does: sizes and times of its files, or an object's fingerprint(); None for any other name."""
    if not _is_name(model):
        return str(model.fingerprint()) if callable(getattr(model, "fingerprint", None)) else None
    path = Path(model).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.blake2b(repr(seen).encode(), digest_size=8).hexdigest() if seen else None


def tokenizer_of(model: Any, load: Mapping[str, Any]) -> Any:
    """The tokenizer alone; a model that is not there, or has none, is refused before anything is sampled."""
    if not _is_name(model):
        if not hasattr(model, "tokenizer"):
            raise PreftuneError(f"a model is {type(model).__name__}, needed language models; give a folder, a hub id or a text policy")
        return model.tokenizer
    from transformers import AutoTokenizer

    from .policies.text.model import adapter_base, check_folder, find_source, has_tokenizer

    source = find_source(model)
    adapter = (Path(source) / "adapter_config.json").is_file()
    base = adapter_base(Path(source)) if adapter else source
    check_folder(base)
    words = source if adapter and has_tokenizer(Path(source)) else base
    if Path(words).is_dir() and not has_tokenizer(Path(words)):
        raise PreftuneError(f"{words} holds a model but no tokenizer, needed its tokenizer.json; save the tokenizer into the folder")
    try:
        return AutoTokenizer.from_pretrained(words, trust_remote_code=bool(load.get("trust_remote_code", False)))
    except OSError as error:
        raise PreftuneError(
            f"{model} could not be loaded: {error}; a folder or hub id with a tokenizer is needed; check the name and the network"
        ) from error


# --- which prompts --------------------------------------------------------------------------------------------------------------------


def apart(
    data: Any, sources: Mapping[str, Any], train_data: Sequence[Any], keep: bool, rows: int | None
) -> tuple[list[Record], dict[str, Any], list[str]]:
    """(records without responses, what overlapped, notes): distinct prompts in their order, apart from those that a model trained on.

    Prompts are equal where their words are: other blanks, system messages and roles do not make them different (`data.columns`).
    """
    notes: list[str] = []
    by_source: dict[str, int] = {}
    trained = np.zeros(len(data), bool)
    for what, found in itertools.chain(_ancestry(sources, notes), ((str(spec), load_data(spec)) for spec in train_data)):
        seen = np.isin(data.prompt, found.prompt)
        by_source[what] = int(seen.sum())
        trained |= seen
    overlap = {"rows": int(trained.sum()), "left_out": 0 if keep else int(trained.sum()), "by_source": by_source}
    for what, number in by_source.items():
        if number:
            notes.append(f"{number} of {len(data)} prompts are in {what}, which was trained on; they are {'kept' if keep else 'left out'}")
    free = np.arange(len(data)) if keep else np.flatnonzero(~trained)
    if not len(free):
        raise PreftuneError(
            f"all {len(data)} prompts were trained on ({', '.join(what for what, number in by_source.items() if number)}), needed prompts "
            "that no model has seen; give others, or keep_overlap=True (--keep-overlap) to measure on these"
        )
    kept: list[Record] = []
    seen_before: set[tuple[int, str | None]] = set()
    repeats = 0
    for position in free.tolist():
        if rows is not None and len(kept) == rows:
            break
        record = data.records([position])[0]
        identity = (int(data.prompt[position]), record.system)
        if identity in seen_before:
            repeats += 1
            continue
        seen_before.add(identity)
        kept.append(narrow(record, 0))
    notes += [f"{repeats} rows repeat a prompt, which is asked once; more samples give more answers to it"] * (repeats > 0)
    return kept, overlap, notes


def _ancestry(sources: Mapping[str, Any], notes: list[str]) -> Iterator[tuple[str, Any]]:
    """(what, data set) that the models' runs trained on, and the runs of the models that those began with; each once."""
    told: set[str] = set()
    for model in sources.values():
        while _is_name(model) and (made := run_of(Path(model))) is not None:
            folder, written = made
            model, what = written["model"], f"{written['data']} (run {folder.name})"
            if str(folder) in told:
                continue
            told.add(str(folder))
            try:
                if "data" in written["objects"] or written["data"] is None:
                    raise PreftuneError("rows in memory")
                found = load_data(written["data"], **(written.get("read") or {}))
                share = float(written["test"]) if re.fullmatch(r"0?\.\d+", str(written["test"] or "")) else None
                yield what, found if share is None else found.split(share, written["seed"])[0]
            except PreftuneError as error:
                notes.append(
                    f"what run {folder.name} trained on cannot be read ({error}), so its prompts are not compared; give train_data"
                )


def run_of(model: Path) -> tuple[Path, dict[str, Any]] | None:
    """(folder, config.json) of the run whose result a model folder is; None where it is no run's."""
    if not model.is_dir():
        return None
    folder = model.resolve().parent
    return None if (found := written(folder)) is None else (folder, found)


# --- the folder -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise PreftuneError(f"{folder} is written by another process, needed one alone; wait for it, or choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write what is asked for, or check that the folder holds the same contest."""
    path = folder / SETTINGS
    if not path.exists():
        if any((folder / name).exists() for name in (ANSWERS, VERDICTS, "config.json")):
            raise PreftuneError(f"{folder} holds something else, needed a new folder or that of this contest; choose another --out")
        write_whole(path, json.dumps(settings, indent=1, default=str))
        return
    before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(settings, default=str))
    changed = [name for name in SAME if before.get(name) != now[name]]
    if changed:
        raise PreftuneError(
            f"{folder} holds a contest with other {', '.join(changed)}, needed the same to go on with it; "
            "choose another --out, or the same arguments"
        )


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; the rest of a line that a kill cut short is taken off."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def append(path: Path, added: Iterable[Mapping[str, Any]]) -> None:
    """Lines that are on disk when this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in added))
        file.flush()
        os.fsync(file.fileno())


# --- answers --------------------------------------------------------------------------------------------------------------------------


def encoded(records: Sequence[Record], tokenizer: Any, max_prompt: int | None) -> tuple[tuple[Any, Rows], int]:
    """((tokenizer, rows of prompts), how many were cut)."""
    from .policies.text.tokens import encode

    rows, counts = encode(records, tokenizer, max_prompt=max_prompt)
    return (tokenizer, rows), counts["prompt_truncated"]


def answer(
    path: Path,
    name: str,
    source: Any,
    records: Sequence[Record],
    samples: int,
    key: Key,
    load: Mapping[str, Any] | None,
    decoding: Mapping[str, Any] | None,
    max_prompt: int | None,
    say: Callable[[str], None],
) -> None:
    """Sample what a model has not answered yet, and let the model go."""
    done = {line["id"] for line in lines(path) if line["model"] == name}
    waiting = [record for record in records if record.id not in done]
    if not waiting:
        return
    policy = load_policy(source, **(load or {}))
    longest = (decoding or {}).get("max_new_tokens", policy.max_new_tokens)
    for start in range(0, len(waiting), ANSWERED):
        part, began = waiting[start : start + ANSWERED], time.monotonic()
        _, rows = encoded(part, policy.tokenizer, max_prompt)[0]
        drawn = policy.sample(rows, samples, key, **(decoding or {}))
        seconds = (time.monotonic() - began) / len(part)
        said = zip(part, drawn.show(), drawn.tokens, strict=True)
        append(
            path,
            [
                {
                    "model": name,
                    "id": record.id,
                    "prompt": record.prompt,
                    "answers": shown,
                    "tokens": [len(tokens) for tokens in row],
                    "cut": sum(len(tokens) >= longest and tokens[-1] not in policy.stops for tokens in row),
                    "seconds": round(seconds, 4),
                }
                for record, shown, row in said
            ],
        )
        say(f"{name}: {len(records) - len(waiting) + start + len(part)} of {len(records)} prompts answered")
    del policy, rows, drawn
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def answers(path: Path, names: Sequence[str], records: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    """Name -> its lines in the order of the records."""
    found = {(line["model"], line["id"]): line for line in lines(path)}
    return {name: [found[name, record.id] for record in records] for name in names}


def read_otherwise(tokenizer: Any, told: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    """How many answers a judge reads otherwise than their models wrote them, since a tokenizer changes them."""
    written = [text for said in told.values() for line in said for text in line["answers"]]
    return sum(shown != text for [shown], text in zip(spoken(tokenizer, written).show(), written, strict=True))


def spoken(tokenizer: Any, texts: Sequence[str]) -> Any:
    """Texts [N] as responses [N, 1] of one tokenizer, each with its end of turn."""
    from .policies.text.tokens import TextResponses, end_of_turn, token_ids

    end = end_of_turn(tokenizer)
    return TextResponses(tuple(((*body, end),) for body in token_ids(tokenizer, texts, False)), tokenizer=tokenizer)


# --- verdicts -------------------------------------------------------------------------------------------------------------------------


def compare(
    path: Path,
    judge: Judge,
    first: tuple[Any, Rows],
    records: Sequence[Record],
    told: Mapping[str, Sequence[Mapping[str, Any]]],
    key: Key,
    say: Callable[[str], None],
) -> None:
    """Ask the judge, in both orders, about every pair of answers that differ and were not judged yet."""
    tokenizer, rows = first
    done = {(line["a"], line["b"], line["id"]) for line in lines(path)}
    samples = len(next(iter(told.values()))[0]["answers"])
    each = max(1, JUDGED // samples)
    for one, other in itertools.combinations(told, 2):
        waiting = [b for b, record in enumerate(records) if (one, other, record.id) not in done]
        for start in range(0, len(waiting), each):
            part, began = waiting[start : start + each], time.monotonic()
            texts = [(b, s, told[one][b]["answers"][s], told[other][b]["answers"][s]) for b in part for s in range(samples)]
            differ = [entry for entry in texts if entry[2] != entry[3]]
            verdict: dict[tuple[int, int], tuple[float, float]] = {}
            if differ:
                asked = Rows(id=tuple(f"{rows.id[b]}#{s}" for b, s, *_ in differ), prompt=[rows.prompt[b] for b, *_ in differ])
                mine, theirs = spoken(tokenizer, [text for *_, text, _ in differ]), spoken(tokenizer, [text for *_, text in differ])
                orders = [
                    asked_once(judge, asked, a, b, key.fold(order, one, other))
                    for order, a, b in (("first", mine, theirs), ("second", theirs, mine))
                ]
                verdict = {entry[:2]: both for entry, both in zip(differ, zip(*orders, strict=True), strict=True)}
            seconds = (time.monotonic() - began) / len(part)
            append(
                path,
                [
                    {
                        "a": one,
                        "b": other,
                        "id": records[b].id,
                        **{
                            order: [None if math.isnan(p := verdict.get((b, s), (math.nan, math.nan))[side]) else p for s in range(samples)]
                            for side, order in enumerate(("first", "second"))
                        },
                        "asked": 2 * sum((b, s) in verdict for s in range(samples)),
                        "seconds": round(seconds, 5),
                    }
                    for b in part
                ],
            )
        if waiting:
            say(f"{one} and {other}: {len(records)} prompts judged")


@torch.no_grad()
def asked_once(judge: Judge, rows: Rows, a: Any, b: Any, key: Key) -> list[float]:
    """P(a beats b) of every row, NaN where the judge has no answer; what is no such number is refused."""
    found = judge.prefer(rows, a, b, key)
    if not isinstance(found, Tensor) or tuple(found.shape) != (len(rows), 1, 1):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise PreftuneError(
            f"the judge answered {shape} to {len(rows)} rows of one response against one, needed a tensor [B, 1, 1]; "
            "let prefer return [B, K, M]"
        )
    values = found.detach().double().cpu().flatten()
    for i in ((values < 0) | (values > 1)).nonzero()[:1, 0].tolist():
        raise PreftuneError(
            f"the judge answered {values[i].item():g} to row {rows.id[i]}, needed P(the first beats the second) in [0, 1] or NaN; "
            "let prefer return probabilities, not scores"
        )
    return values.tolist()


# --- the end --------------------------------------------------------------------------------------------------------------------------


def finish(
    folder: Path,
    settings: Mapping[str, Any],
    records: Sequence[Record],
    told: Mapping[str, Sequence[Mapping[str, Any]]],
    overlap: dict[str, Any],
    notes: list[str],
    bootstrap: int,
    seed: int,
) -> Arena:
    """The standings of what lies in the folder, arena.json and the page."""
    from .data.columns import prompt_digest
    from .report.arena import write

    judged = lines(folder / VERDICTS)
    table = verdicts(told, judged, records, [prompt_digest(record) for record in records])
    found = standings(table, draws=bootstrap, seed=seed)
    models = {
        name: {
            "source": settings["models"][name]["source"],
            "empty": sum(not text.strip() for line in told[name] for text in line["answers"]),
            "cut": sum(line["cut"] for line in told[name]),
            "tokens": sum(sum(line["tokens"]) for line in told[name]),
            "seconds": round(sum(line["seconds"] for line in told[name]), 2),
        }
        for name in told
    }
    number = len(records) * settings["samples"]
    notes += [f"{model['empty']} of {number} answers of {name} are empty" for name, model in models.items() if model["empty"]]
    notes += [f"{model['cut']} of {number} answers of {name} were cut at max_new_tokens" for name, model in models.items() if model["cut"]]
    if found.open:
        notes.append(
            f"the judge left {found.open} of {found.open + sum(map(sum, found.compared)) // 2} comparisons open; they do not count"
        )
    if found.equal:
        notes.append(f"{found.equal} comparisons are of equal answers: ties, which the judge was not asked about")
    result = Arena(
        folder=folder,
        standings=found,
        models=models,
        judge=settings["judge"],
        judge_calls=sum(line["asked"] for line in judged),
        seconds={
            "sampling": round(sum(model["seconds"] for model in models.values()), 2),
            "judging": round(sum(line["seconds"] for line in judged), 2),
        },
        overlap=overlap,
        settings=dict(settings),
        notes=notes + found.warnings,
    )
    write_whole(folder / RESULT, json.dumps(plain(result), indent=1, default=str))
    write(folder)
    return result


def verdicts(
    told: Mapping[str, Sequence[Mapping[str, Any]]],
    judged: Sequence[Mapping[str, Any]],
    records: Sequence[Record],
    clusters: Sequence[bytes],
) -> Verdicts:
    """Stored answers and verdicts as one table."""
    names = tuple(told)
    texts = np.array([[line["answers"] for line in told[name]] for name in names], dtype=object)  # [M, B, n]
    models, (prompts, samples) = len(names), texts.shape[1:]
    beats = np.full((models, models, prompts, samples), np.nan)
    at = {name: i for i, name in enumerate(names)}
    row = {record.id: b for b, record in enumerate(records)}
    for line in judged:
        i, j, b = at[line["a"]], at[line["b"]], row[line["id"]]
        for side, order in (((i, j), "first"), ((j, i), "second")):
            beats[(*side, b)] = [math.nan if p is None else p for p in line[order]]
    equal = texts[:, None] == texts[None]
    length = np.vectorize(len, otypes=[float])(texts)
    return Verdicts(names, beats, equal.astype(bool), length, clusters)


def plain(value: Any) -> Any:
    """What JSON knows: an interval is an object, and null stands for what could not be computed."""
    if isinstance(value, Interval):
        return {name: plain(number) for name, number in value._asdict().items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
