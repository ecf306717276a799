"""The public functions: everything the command line does is one of these."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from . import checkpoint, processes, provenance, training
from . import evaluation as measures
from .client import is_address
from .judges.shared import shared
from .learner import ROWS, GradientLearner
from .log import Log, write_whole
from .optimisers import OPTIMISERS
from .policies.tabular import TabularPolicy
from .policies.text.memory import MemoryPlan
from .probe import probe
from .reference import none
from .registry import arguments, import_function, lookup, named, resolve_method, signature_of, split_settings
from .training import TrainConfig
from .types import LABELS, Context, Judge, Key, Method, Policy, PreftuneError, Rows, formula_of, needs_of, parts_of
from .update import plain

if TYPE_CHECKING:
    from .judge_quality import JudgeTest

KL_SAMPLES = 32
SCORED = 64  #   held-out rows scored together; without gradients the engine's own passes bound the memory
LENGTHS = 256  # rows whose tokens are looked at before a run
ANSWERS = 4  #   that a method of lists is expected to draw of a prompt


@dataclass
class Run:
    """A finished or interrupted run: the trained policy, where everything lies, and what was measured."""

    policy: Policy = field(repr=False)
    folder: Path
    steps: int
    stopped: str  #                                  "finished", "interrupted", or the rule that ended it
    history: list[dict[str, Any]] = field(repr=False)
    evaluation: dict[str, measures.Evaluation] = field(default_factory=dict, repr=False)  # before, after
    counts: dict[str, int] = field(default_factory=dict)  # what encoding truncated or tokenised otherwise
    cache: dict[str, int] = field(default_factory=dict)  #  reference log-probs: hits came from the cache, misses were computed
    judge: bool = False  #                                  what was trained is a judge

    @property
    def model(self) -> Path:
        """The model's folder, in the ecosystem's own format; of a judge with its heads, ready for `judge=`."""
        return self.folder / ("judge" if self.judge else "model")

    @property
    def report(self) -> Path:
        """The page of the run."""
        return self.folder / "report.html"


@dataclass(frozen=True)
class Plan:
    """What a run would do: the answer of a dry run. Nothing was written and no weight was changed."""

    method: str
    hyperparameters: dict[str, Any]
    train: dict[str, Any]
    notes: list[str]
    rows: int
    steps: int
    parameters: int  #   trained
    memory_gb: float  #  the peak of a step; of a table, its parameters, their gradients, optimiser and copies
    seconds: float  #    one micro-batch measured, times the run's; collecting and evaluating come on top
    memory: dict[str, Any] | None  # of a language model: what the peak is made of, the token budget, the checkpointed layers


# --- training -------------------------------------------------------------------------------------------------------


def train(
    model: Any,
    method: str | Method | Callable[..., Method],
    data: Any = None,
    *,
    test: Any = None,
    judge: str | Judge | None = None,
    out: str | Path | None = None,
    load: Mapping[str, Any] | None = None,
    read: Mapping[str, Any] | None = None,
    max_prompt: int | None = None,
    max_response: int | None = None,
    samples: int = 3,
    decoding: Mapping[str, Any] | None = None,
    callbacks: Sequence[training.Callback] = (),
    metrics: Sequence[Callable[[Policy, int], dict[str, float]]] = (),
    progress: bool = True,
    resume: bool = False,
    **settings: Any,
) -> Run:
    """Train a model with a method on data.

    model     a folder, hub id or GGUF file, or a Policy
    method    a name (`preftune show` lists them), "pkg.module:function", a function that returns a Method, or a Method
    data      a file, folder, hub id or mixture "a.jsonl:0.7,b.jsonl:0.3"; rows in memory; for tables None: the games
    test      the same, held out; a number holds back that share of the data, split by prompt
    judge     a name, "pkg.module:function", or a Judge: labels self-play and scores samples
    load      how the model is loaded: train="full" | "lora" | "dora" | last k layers, dtype, device, quantize, ...
    read      how data are read: format, columns (to rename), split, strict, max_line_bytes
    samples   texts drawn before and after training with `decoding`, for the report; 0 draws none
    resume    go on from the last checkpoint in `out`
    settings  hyperparameters of the method and fields of TrainConfig, by name

    The run folder holds config.json, metrics.jsonl, checkpoints, model, evaluation.json, samples.jsonl and report.html.
    Of several processes, as `torchrun` and `accelerate launch` start them, each calls this with the same arguments; see docs/scale.md.
    """
    processes.start()
    chosen = prepare(method, settings)
    composed, name, config, hyperparameters = chosen.method, chosen.name, chosen.config, chosen.hyperparameters
    training.check_start(composed, config, test)
    folder = Path(out) if out else Path("runs") / processes.same(f"{name.split(':')[-1]}-{time.strftime('%Y%m%d-%H%M%S')}")
    if not resume:
        processes.once(lambda: _fresh(folder))
    _asks_a_judge(chosen, judge)
    judging = _judging(composed, model)
    judges = [] if judge is None else [shared(resolve_judge(judge))]
    given = {"model": model, "method": method, "data": data, "test": test, "judge": judge}
    how = {"load": dict(load or {}), "read": dict(read or {})}
    call = {**how, "max_prompt": max_prompt, "max_response": max_response, "samples": samples, "decoding": decoding}
    checkpoint.seed_rng(config.seed)
    policy, feed, held_out, extra = _open(composed, model, data, test, config.seed, load, read, max_prompt, max_response)
    described: dict[str, Any] = {
        "method": name,
        "hyperparameters": hyperparameters,
        "train": dataclasses.asdict(config),
        "model": _source(model),
        "data": _source(data),
        "test": _source(test),
        "judge": judge if isinstance(judge, str) else None if judge is None else type(judge).__name__,
        **call,
        "formula": _formula(composed.objective),
        "reference": getattr(policy, "reference_kind", "copy of the weights that train"),
        "command": provenance.command(),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "seed": config.seed,
        "data_fingerprint": getattr(feed, "fingerprint", None),
        "objects": [part for part, value in given.items() if not isinstance(value, str | Path | float | int | None)],
    }
    memory, more = _memory(policy, composed, feed, config, written(folder) if resume else None)
    described["memory"] = None if memory is None else dataclasses.asdict(memory)
    processes.once(lambda: folder.mkdir(parents=True, exist_ok=True))
    if not folder.is_dir():
        raise PreftuneError(f"{folder} is not there on every machine, needed a folder that all processes share; choose another --out")
    key = Key.of(config.seed)
    reference = _reference(policy, composed)
    total, _, _ = training.plan(composed, len(feed), config)
    with _alone(folder), closing(Log(folder, total, tracker=config.tracker, progress=progress, config=described["train"])) as log:
        if processes.first() and not (resume and (folder / "config.json").exists()):
            write_whole(folder / "config.json", json.dumps(described, indent=1, default=str))
        for note in chosen.notes + extra + _derived(policy, reference) + more:
            log.say(note)
        prompts = None if judging else _prompts(held_out or feed, samples)
        beta = hyperparameters.get("beta", hyperparameters.get("tau", 0.1))
        measure = lambda of: _measure(of, reference, held_out, prompts, judges, config, beta, decoding, key.fold("samples"))
        before: Any = ({}, None)  # a judge has no heads yet
        if not judging:
            before = measure(reference if hasattr(reference, "hits") else policy)  # the same weights, whose log-probs are kept
        outcome = training.run(
            policy,
            composed,
            feed,
            config,
            folder,
            log,
            reference=reference,
            judges=judges,
            test=held_out,
            callbacks=callbacks,
            metrics=metrics,
            identity={part: described[part] for part in ("method", "hyperparameters", "data_fingerprint")} | {"batch": config.batch},
            resume=resume,
        )
        if processes.first():
            write_whole(folder / "config.json", json.dumps(described, indent=1, default=str))  # a resumed run may have other settings
        counts = dict(getattr(feed, "counts", {}))
        result = Run(policy, folder, outcome.steps, outcome.stopped, outcome.history, counts=counts, judge=judging)
        for note in _encoded(result.counts):
            log.say(note)
        hits, misses = (sum(processes.gather(getattr(reference, name, 0))) for name in ("hits", "misses"))
        if hits:
            log.say(f"{hits} of {hits + misses} reference log-probs came from the cache")
        if outcome.stopped != "interrupted":
            if config.early_stop and outcome.best not in (None, outcome.steps):
                best = checkpoint.path_of(folder / "checkpoints", outcome.best)  # type: ignore[arg-type]
                policy.load(checkpoint.load(best)["policy"])
                log.say(f"the model is that of step {outcome.best}, the best by {config.early_stop}")
            after = (_measure_judge(outcome.learner, held_out, config), None) if judging else measure(policy)
            result.evaluation = {"before": before[0], "after": after[0]}
            if judging:
                _write_judge(result, outcome.learner, feed, described)
            else:
                _write(result, prompts, before[1], after[1], described, chosen.doc)
        hits, misses = (sum(processes.gather(getattr(reference, name, 0))) for name in ("hits", "misses"))
        result.cache = {"hits": hits, "misses": misses}
    return result


def resume(
    folder: str | Path, *, method: str | None = None, judge: Any = None, callbacks: Sequence[training.Callback] = (), progress: bool = True
) -> Run:
    """Go on with an interrupted run, with the settings in its config.json. A judge that is no name has to be given again."""
    if not (Path(folder) / "config.json").exists():
        raise PreftuneError(f"{folder} has no config.json, needed the folder of a run; `preftune train --out` writes one")
    made = written(Path(folder))
    if made is None:
        raise PreftuneError(f"{folder} holds a config.json that is no run's, needed the folder of a run; `preftune train --out` writes one")
    if method is not None and method != made["method"]:
        raise PreftuneError(f"{folder} was made with {made['method']}, not with {method}; resume without a method, or start a new run")
    objects = [part for part in made["objects"] if part != "judge" or judge is None]
    if objects:
        raise PreftuneError(
            f"{folder} was started with {' and '.join(objects)} as objects in Python, needed names or files; "
            "call preftune.train(..., out=..., resume=True) with the same objects; a judge alone can be given to resume"
        )
    given = ("test", "load", "read", "max_prompt", "max_response", "samples", "decoding")
    return train(
        made["model"],
        made["method"],
        made["data"],
        judge=judge if judge is not None else made["judge"],
        out=folder,
        callbacks=callbacks,
        progress=progress,
        resume=True,
        **{name: made[name] for name in given},
        **made["hyperparameters"],
        **made["train"],
    )


def plan(
    model: Any,
    method: str | Method | Callable[..., Method],
    data: Any = None,
    *,
    judge: str | Judge | None = None,
    load: Mapping[str, Any] | None = None,
    read: Mapping[str, Any] | None = None,
    max_prompt: int | None = None,
    max_response: int | None = None,
    test: Any = None,
    **settings: Any,
) -> Plan:
    """Resolve and probe everything, load model and data, and estimate memory and time: a dry run."""
    chosen = prepare(method, settings)
    composed, config = chosen.method, chosen.config
    _asks_a_judge(chosen, judge)
    if judge is not None:
        resolve_judge(judge)
    policy, feed, _, extra = _open(composed, model, data, test, config.seed, load, read, max_prompt, max_response)
    total, _, _ = training.plan(composed, len(feed), config)
    memory, more = _memory(policy, composed, feed, config)
    trained = sum(p.numel() for p in policy.parameters())
    seconds = float("nan")
    if composed.collect_every == "run":
        roles = {"current": policy, "reference": policy.reference(), **{name: policy.copy() for name in composed.roles}}
        learner = GradientLearner(policy, composed, roles, optimiser=config.optimiser, micro_batch=config.micro_batch)
        rows = feed.rows(training.positions(Key.of(config.seed), len(feed), min(config.batch, config.micro_batch or ROWS), 0))
        rows = composed.collect(Context({**roles, "opponent": policy}, rows, key=Key.of(config.seed)))
        started = time.monotonic()
        learner._backward(rows)
        learner.optimiser.zero_grad(set_to_none=True)
        seconds = (time.monotonic() - started) * total * min(config.batch, len(feed)) / len(rows)
    numbers = _copies(policy, composed) + 2 + OPTIMISERS[config.optimiser].state / 4  # of each that trains: itself, its gradient, ...
    peak = memory.peak if memory is not None else numbers * sum(p.numel() * p.element_size() for p in policy.parameters())
    return Plan(
        chosen.name,
        chosen.hyperparameters,
        dataclasses.asdict(config),
        chosen.notes + extra + more,
        len(feed),
        total,
        trained,
        peak / 1e9,
        seconds,
        None if memory is None else dataclasses.asdict(memory),
    )


@dataclass(frozen=True)
class Composed:
    """A method with everything that was said about it, probed before any model is loaded."""

    method: Method
    name: str
    doc: str
    hyperparameters: dict[str, Any]
    config: TrainConfig
    notes: list[str]


def prepare(method: Any, settings: Mapping[str, Any]) -> Composed:
    """A method by name, place, function or as it is, with hyperparameters and training settings told apart."""
    if isinstance(method, Method):
        function, name = (lambda: method), "method"
    elif callable(method):
        function, name = method, getattr(method, "__name__", "method")
    else:
        function, name = resolve_method(method), method
    hyperparameters, given = split_settings(function, TrainConfig, settings)
    composed = function(**hyperparameters)
    if not isinstance(composed, Method):
        raise PreftuneError(f"{name} returned {type(composed).__name__}, needed a Method; see CONTRIBUTING.md for a worked example")
    defaults = {key: setting.default for key, setting in signature_of(function).items()}
    recommended = {key: value for key, value in composed.recipe.items() if key not in given}
    notes = list(composed.notes)
    if recommended:
        notes.append(f"{name} recommends " + ", ".join(f"{key} = {value}" for key, value in recommended.items()))
    probe(composed)
    config = TrainConfig(**{**recommended, **given})
    return Composed(composed, name, (function.__doc__ or "").strip(), {**defaults, **hyperparameters}, config, notes)


def _asks_a_judge(chosen: Any, judge: Any) -> None:
    if not chosen.method.offline and judge is None:
        raise PreftuneError(f"{chosen.name} compares responses with a judge, but none was given; pass judge=... or --judge NAME")


def resolve_judge(judge: Any) -> Judge:
    """A judge by name with options ("ratings,direction=kind"), by place ("module:function,option=..", a function that returns one), the
    folder of a trained one, the http address of a served one, one of these asked in both orders ("both(ratings)"), several in a YAML
    file, or as it is."""
    if not isinstance(judge, str | Path):
        return judge  # type: ignore[no-any-return]
    from .judges import JUDGES, MADE
    from .judges.combine import both_orders, panel

    text = str(judge)
    if text.startswith("both(") and text.endswith(")") and text != "both()":
        return both_orders(resolve_judge(text[len("both(") : -1]))
    if text.endswith((".yaml", ".yml")) and "," not in text:
        return panel(text, resolve_judge)
    name, *options = text.split(",")
    given = named(options, f"the judge {name}", "ratings,direction=kind")
    if is_address(name):
        place, given = "preftune.judges.service:remote", {"url": name, **given}
    elif (Path(name) / MADE).is_file():
        place, given = "preftune.judges.trained:load", {"folder": name, **given}
    else:
        if Path(name).is_dir() and name not in JUDGES:
            raise PreftuneError(f"{name} has no {MADE}, needed the folder of a trained judge; `preftune judge train` writes RUN/judge")
        place = name if ":" in name else lookup(name, JUDGES, "judge")
    function = import_function(place, "a function that returns a judge")
    return function(**arguments(function, given, f"option of the judge {name}"))  # type: ignore[no-any-return]


def load_data(spec: Any, **options: Any) -> Any:
    """A data set by name, or from rows in memory: a list of dicts or Records, a datasets.Dataset. A Dataset comes back as it is.

    docs/data.md has the files and columns; paths in a list, alone or with shares, are a mixture.
    """
    from .data.files import Dataset, from_rows, load

    if isinstance(spec, Dataset):
        return spec
    if isinstance(spec, str | Path) or isinstance(spec, list) and spec and isinstance(spec[0], str | Path | tuple):
        return load(spec, **options)
    if not hasattr(spec, "__len__") or not hasattr(spec, "__getitem__"):
        raise PreftuneError(f"the data are {type(spec).__name__}, needed a file's name, a list of rows or a Dataset; see docs/data.md")
    return from_rows([spec[i] for i in range(len(spec))], **options)


def load_policy(model: Any, **options: Any) -> Any:
    """A language model by folder, hub id or GGUF file; a policy comes back as it is."""
    if not isinstance(model, str | Path):
        if options:
            raise PreftuneError(f"load options {options} were given for a model that is loaded already; give its folder, or no options")
        if processes.sharding() and hasattr(model, "network") and model.network.shards is None:
            model.network.shard()
        return model
    from .policies.text.model import load

    return load(str(model), **options)


def _open(
    method: Method,
    model: Any,
    data: Any,
    test: Any,
    seed: int,
    load: Mapping[str, Any] | None,
    read: Mapping[str, Any] | None,
    max_prompt: int | None,
    max_response: int | None,
) -> tuple[Any, Any, Any, list[str]]:
    """-> policy, feed, held-out feed or None, notes. Data are read and checked before the model, which takes longer."""
    needs = needs_of(method.objective)
    columns = 0 if not method.offline else method.columns or needs.columns
    if isinstance(model, TabularPolicy):
        return model, training.RowsFeed(model.rows() if data is None else data), None if test is None else training.RowsFeed(test), []
    if data is None:
        raise PreftuneError("no data were given, needed a file, folder or hub id; pass data=... or --data FILE")
    from .data.feed import TextFeed, usable

    data = load_data(data, **(read or {}))
    notes = _left_out(data)
    share = _share(test)
    data, test = data.split(share, seed) if share is not None else (data, None if test is None else load_data(test, **(read or {})))
    made = getattr(getattr(method.collect, "func", method.collect), "makes", ())  # labels that the collector adds itself
    labels = tuple([name for name in names if name not in made] for names in (needs.labels, needs.optional)) if method.offline else ()
    data, unusable = usable(data, columns, *labels)
    notes += unusable
    if test is not None:
        test, _ = usable(test, columns, *labels)
    options = {"seed": seed, **(load or {})} if isinstance(model, str | Path) else load or {}
    policy: Any = processes.in_turn(lambda: load_policy(model, **options), one_by_one=processes.sharding())
    notes += _slow(policy)
    if max_response is not None:
        policy.max_new_tokens = max_response  # self-play writes no longer than what is learned from
    extra: dict[str, Any] = {
        name: tuple(label for label in labels if label not in (*LABELS, *made))
        for name, labels in (("labels", needs.labels), ("optional", needs.optional))
    }
    extra["steps"] = "segments" in needs.wants and "segments" not in made
    feed = TextFeed(data, policy.tokenizer, columns, max_prompt, max_response, **extra)
    held_out = None if test is None else TextFeed(test, policy.tokenizer, columns, max_prompt, max_response, **extra)
    for read_before_training in (feed, held_out):
        if read_before_training is not None:
            read_before_training.check()
    if columns:
        first = feed.rows(range(min(2, len(feed))))
        told = training.unread if {"desirable", *made} & set(needs.labels) else training.check_labels
        notes += told(method, first)
    return policy, feed, held_out, notes


def _slow(policy: Any) -> list[str]:
    """A precision that this processor had better not compute in."""
    if not hasattr(policy, "network"):
        return []
    from .policies.text.model import slow_precision

    return slow_precision(policy.network.device, policy.network.dtype)


def _derived(policy: Any, reference: Any) -> list[str]:
    """What nobody chose and follows from model, machine and method."""
    network = getattr(policy, "network", None)
    if network is None:
        return []
    trained = sum(p.numel() for p in policy.parameters())
    notes = [f"{trained:,} parameters train, on {network.device} in {str(network.dtype).removeprefix('torch.')}"]
    if reference is not None:
        notes.append(f"reference: {policy.reference_kind}")
    if processes.size() > 1:
        notes.append(f"{processes.size()} processes, {'the weights in shards' if network.shards else 'each with all weights'}")
    fallen = [network.engine_note] if network.engine_note.startswith("plain:") else []
    return [*notes, *fallen, *([] if policy.trunk_note.startswith("none: every layer") else [policy.trunk_note])]


def _left_out(data: Any) -> list[str]:
    """What loading left out, in words."""
    counts = getattr(data, "counts", {})
    notes = [f"{rows} of {counts['read']} rows are left out: {reason}" for reason, rows in counts.get("dropped", {}).items()]
    return notes + ([f"{counts['left_out']} rows are left out: another part of the mixture ended"] if counts.get("left_out") else [])


def _encoded(counts: Mapping[str, int]) -> list[str]:
    """What encoding cut or tokenised otherwise than the joint text, in words."""
    words = {
        "prompt_truncated": "prompts were cut to max_prompt tokens",
        "response_truncated": "responses were cut to max_response tokens",
        "joint_differs": "responses are tokenised otherwise together with their prompt",
    }
    return [f"{counts[name]} times {what}, in {counts['rows']} rows read" for name, what in words.items() if counts.get(name)]


def _formula(objective: Any) -> str:
    """The objective as a sum where it is one, then the formula of each part."""
    parts = list(parts_of(objective))
    head = [f"loss = {formula_of(objective)}"] if len(parts) > 1 else []
    return "\n\n".join([*head, *((part.__doc__ or "").strip() for part in parts)])


def _share(test: Any) -> float | None:
    """A number in (0, 1) is a share to hold back; anything else names data."""
    if not isinstance(test, str | float | int) or not str(test).replace(".", "", 1).isdigit() or Path(str(test)).exists():
        return None
    if not 0 < float(test) < 1:
        raise PreftuneError(f"test is {test}, needed a share between 0 and 1, or data; for instance test=0.1")
    return float(test)


def _source(value: Any) -> str | None:
    """The name under which model or data can be opened again; files by their full path."""
    if not isinstance(value, str | Path | float):
        return None
    return str(Path(value).resolve()) if not isinstance(value, float) and Path(value).exists() else str(value)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a run folder against other processes."""
    lock = FileLock(folder / ".lock", timeout=0)

    def acquire() -> None:
        try:
            lock.acquire()
        except Timeout as error:
            raise PreftuneError(
                f"{folder} is written by another process, needed one alone; wait for it, or choose another --out"
            ) from error

    processes.once(acquire)
    try:
        yield
    finally:
        lock.release()


def _fresh(folder: Path) -> None:
    if any((folder / part).exists() for part in ("metrics.jsonl", "checkpoints", "rounds", "rows")):  # config.json alone has lost nothing
        raise PreftuneError(f"{folder} holds a run already, needed a new folder; choose another --out, or go on with --resume {folder}")
    if (folder / "config.json").exists() and written(folder) is None:
        raise PreftuneError(f"{folder} holds a config.json that is no run's, needed a new folder, no model's; choose another --out")
    checkpoint.check_room(folder, 0)


def written(folder: Path) -> dict[str, Any] | None:
    """What a run wrote to its config.json; None where that of a model stands there, or nothing that can be read."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"method", "hyperparameters", "objects"} <= found.keys() else None


def _compares(policy: Any, method: Method) -> bool:
    """Whether a frozen start is kept. A method without reference gets one for the measurements alone where that costs little: when
    few of the weights train. Of a judge nothing is measured that needs one."""
    if not needs_of(method.objective).logp:
        return False
    trained, network = sum(p.numel() for p in policy.parameters()), getattr(policy, "network", None)
    return method.reference is not none or (network is not None and 4 * trained <= sum(p.numel() for p in network.module.parameters()))


def _copies(policy: Any, method: Method) -> float:
    """Frozen copies of what trains: the reference, the roles, and of a step that is more than a descent what it remembers."""
    return _compares(policy, method) + len(method.roles) + (0 if method.update is plain else 2)


def _memory(
    policy: Any, method: Method, feed: Any, config: TrainConfig, made: Mapping[str, Any] | None = None
) -> tuple[MemoryPlan | None, list[str]]:
    """How the steps of a language model fit into its device, which they then work by, and what there is to say about it.

    `made`: the config.json of a run that goes on, with the plan that it began with: other micro-batches would round otherwise.
    """
    network = getattr(policy, "network", None)
    if network is None:
        return None, []
    from .policies.text import memory

    if made is not None and made.get("memory"):
        found = MemoryPlan(**made["memory"])
        found.applies(network)
        return found, []
    state = OPTIMISERS[config.optimiser].state
    longest, mean = _lengths(policy, method, feed)
    held = memory.count(network)
    rows = math.ceil(min(config.batch, len(feed)) / processes.size())
    most = network.tokens_per_batch if config.micro_batch is None else config.micro_batch * longest
    kept = len(feed) * mean * network.width * held.size if network.cut else 0
    given = config.memory_gb and int(config.memory_gb * 1e9)
    found = memory.plan(
        held,
        state=state,
        copies=_copies(policy, method) + (0 if method.update is plain else state / 4),
        states=round(min(kept, network.store.limit)),
        available=given or held.weights + int(memory.USED * memory.free(network.device)),
        most=most,
        longest=longest,
        filled=min(most, rows * longest),
        checkpointing=network.checkpointing if network.checkpointing is not None or memory.repeatable(network) else 0,
        device=str(network.device),
    )
    if not found.fits and given:
        raise PreftuneError(memory.relief(found, held.trained))
    found.applies(network)
    return found, [*([memory.relief(found, held.trained)] if not found.fits else []), *memory.told(found)]


def _lengths(policy: Any, method: Method, feed: Any) -> tuple[int, float]:
    """Tokens of the longest row and of the mean one, of some hundred spread over the data; what the policy writes itself counts as
    long as it may become."""
    counts = Counter(feed.counts)
    rows = feed.rows(range(0, len(feed), math.ceil(len(feed) / LENGTHS)))
    feed.counts = counts  # nothing was trained on them
    if method.offline:
        sizes = policy.tokens(rows)
    else:
        wanted = needs_of(method.objective).columns
        answers = (wanted if isinstance(wanted, int) else ANSWERS) * policy.max_new_tokens
        sizes = [len(policy.words(prompt)) + answers for prompt in rows.prompt]
    return max(sizes), sum(sizes) / len(sizes)


def _reference(policy: Any, method: Method) -> Any:
    """The frozen start; of a language model its log-probs are kept on disk where responses come again: given ones and a round's."""
    if not _compares(policy, method):
        return None
    return training.kept(policy.reference(), method.offline or method.collect_every == "round")


# --- measuring ------------------------------------------------------------------------------------------------------


def _prompts(feed: Any, samples: int) -> Rows | None:
    """Rows to sample for: `samples` of them, ids of their own, so that a prompt that comes twice is answered twice."""
    if not samples or not hasattr(feed, "data"):
        return None
    rows = feed.rows([i % len(feed) for i in range(min(samples, 4 * len(feed)))])
    return Rows(id=tuple(f"{row}#{i}" for i, row in enumerate(rows.id)), prompt=rows.prompt)


def _measure(
    policy: Any,
    reference: Any,
    held_out: Any,
    prompts: Rows | None,
    judges: Sequence[Judge],
    config: TrainConfig,
    beta: float,
    decoding: Mapping[str, Any] | None,
    key: Key,
) -> tuple[measures.Evaluation, measures.Drawn | None]:
    """Held-out pairs and fresh samples, with intervals."""
    found: measures.Evaluation = {}
    if held_out is not None and hasattr(held_out, "data") and len(held_out.data[0].responses) > 1:
        pairs = dataclasses.replace(held_out, columns=2)
        batches, clusters = _pairs(pairs, min(config.eval_rows, len(pairs)), SCORED)
        found |= measures.held_out(policy, reference, batches, beta=beta, clusters=clusters, seed=key.seed)
    drawn = None
    if prompts is not None:
        drawn = measures.draw(policy, prompts, 1, key, judge=judges[0] if judges else None, decoding=decoding)
        found |= measures.on_samples(policy, drawn, reference=reference, key=key)
        if reference is not None and not drawn.plain:  # cooled or truncated samples cannot estimate the KL, a few plain ones can
            uncut = {name: value for name, value in (decoding or {}).items() if name not in ("temperature", "top_k", "top_p", "min_p")}
            few = measures.draw(policy, prompts.take(range(min(len(prompts), KL_SAMPLES))), 1, key.fold("kl"), decoding=uncut)
            measured = measures.on_samples(policy, few, reference=reference, key=key)
            found |= {name: measured[name] for name in ("kl", "kl_k3")}
    return found, drawn


def _pairs(feed: Any, n: int, batch: int) -> tuple[Iterator[Rows], Sequence[Hashable] | None]:
    """The first n held-out pairs in batches, and their clusters.

    Under one common prompt the texts are the sample: pairs that share a text are not independent.
    """
    records = feed.data.records(range(n))
    one_prompt = len({str(record.prompt) for record in records}) == 1
    texts = [text for record in records for text in record.responses]
    clusters = [frozenset(record.responses) for record in records] if one_prompt and len(set(texts)) < len(texts) else None
    return (feed.rows(range(at, min(at + batch, n))) for at in range(0, n, batch)), clusters


def _judging(method: Method, model: Any) -> bool:
    """Whether a judge is trained: an objective of heads alone, on a language model."""
    if needs_of(method.objective).logp or isinstance(model, TabularPolicy):
        return False
    from .judges.trained import kind_of

    kind_of(method.heads)  # refuses heads that no judge is made of
    return True


def _collected(learner: GradientLearner, feed: Any, positions: Sequence[int]) -> Iterator[Rows]:
    """Rows of an offline method as it collects them, some at a time."""
    for at in range(0, len(positions), SCORED):
        roles = {**learner.roles, "opponent": learner.policy}
        yield learner.method.collect(Context(roles, feed.rows(positions[at : at + SCORED]), key=Key.of(0).fold("judge", at)))


def _measure_judge(learner: GradientLearner, held_out: Any, config: TrainConfig) -> measures.Evaluation:
    """What the judge says of held-out rows, with intervals."""
    if held_out is None:
        return {}
    positions = range(min(config.eval_rows, len(held_out)))
    return measures.judged([(rows, learner.measure(rows)[1]) for rows in _collected(learner, held_out, positions)], seed=config.seed)


def _write_judge(run: Run, learner: GradientLearner, feed: Any, described: Mapping[str, Any]) -> None:
    """The folder of a trained judge, its evaluation and its page."""
    from .judges import trained
    from .report.page import write as write_page

    statistics: dict[str, Any] = {}
    if trained.kind_of(learner.method.heads) in trained.SCALED:
        counts = Counter(feed.counts)
        some = range(0, len(feed), math.ceil(len(feed) / trained.ANSWERS))
        statistics = trained.statistics(run.policy, _collected(learner, feed, some))  # type: ignore[arg-type]
        feed.counts = counts  # nothing was trained on them
    told = {"method": described["method"], "hyperparameters": described["hyperparameters"], "statistics": statistics}
    told |= {"base": described["model"], "seed": described["seed"], "versions": described["versions"]}
    if processes.first():
        write_whole(run.folder / "evaluation.json", json.dumps(run.evaluation, indent=1))
    trained.write(run.policy, run.model, learner.method.heads, told, run.evaluation["after"], first=processes.first())  # type: ignore[arg-type]
    if processes.first():
        write_page(run.folder)
    processes.barrier()


def _write(run: Run, prompts: Rows | None, before: Any, after: Any, described: Mapping[str, Any], doc: str) -> None:
    """Model, model card, evaluation, samples and page of a finished run."""
    from .report.card import model_card
    from .report.page import write as write_page

    if processes.first():
        _write_told(run, prompts, before, after)
    if isinstance(run.policy, TabularPolicy):
        if processes.first():
            run.model.mkdir(exist_ok=True)
            write_whole(run.model / "policy.json", json.dumps(run.policy.probabilities().tolist()))
    else:
        from .policies.text.model import save

        adapter = hasattr(run.policy.network.module, "peft_config")  # type: ignore[attr-defined]
        describe = partial(model_card, run.folder, described["model"] or "", method_doc=doc)
        card = describe(library="peft" if adapter else "transformers") if processes.first() else ""
        save(run.policy, run.model, card)  # type: ignore[arg-type]
    if processes.first():
        write_page(run.folder)
    processes.barrier()


def _write_told(run: Run, prompts: Rows | None, before: Any, after: Any) -> None:
    """Evaluation and samples."""
    write_whole(run.folder / "evaluation.json", json.dumps(run.evaluation, indent=1))
    if prompts is not None:
        texts = [run.policy.tokenizer.decode(list(p), skip_special_tokens=True) for p in prompts.prompt]  # type: ignore[attr-defined]
        lines = measures.sample_lines(texts, before, after)
        write_whole(run.folder / "samples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def evaluate(
    model: Any,
    data: Any,
    *,
    against: Any = None,
    judge: str | Judge | None = None,
    load: Mapping[str, Any] | None = None,
    read: Mapping[str, Any] | None = None,
    max_prompt: int | None = None,
    max_response: int | None = None,
    rows: int | None = None,
    samples: int = 0,
    decoding: Mapping[str, Any] | None = None,
    beta: float = 0.1,
    seed: int = 0,
    batch: int = 8,
) -> dict[str, Any]:
    """Held-out pairs: accuracy raw and relative to `against`, margin, calibration, drift, KL, length; with a judge the win
    rate of `samples` samples in both orders. Every number is {"value", "low", "high"}, a bootstrap interval by prompt.
    """
    data = load_data(data, **(read or {}))
    policy = load_policy(model, **(load or {}))
    other = load_policy(against, **(load or {})) if against is not None else None
    from .data.feed import TextFeed

    columns = 2 if len(data[0].responses) > 1 else 0
    if not columns and not samples:
        raise PreftuneError("the data have no pairs to evaluate on, needed chosen and rejected responses; or ask for samples=...")
    feed = TextFeed(data, policy.tokenizer, columns, max_prompt, max_response)
    batches, clusters = _pairs(feed, min(rows or len(feed), len(feed)), batch) if columns else (None, None)
    return measures.evaluate(
        policy,
        other,
        batches,
        beta=beta,
        judge=None if judge is None else resolve_judge(judge),
        sample_rows=_prompts(feed, samples),
        key=Key.of(seed),
        decoding=decoding,
        clusters=clusters,
    )


def judge_test(
    judge: str | Judge,
    data: Any,
    *,
    subset_column: str | None = None,
    rows: int | None = None,
    lists: int = 0,
    read: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> JudgeTest:
    """How good a judge is on held-out labelled responses, every number with a bootstrap interval by prompt.

    subset_column  a column of the data that names subsets; `subset` where they have it
    rows           of the data, from the first on; all if left out
    lists          lists of responses to a same prompt that are drawn to look for circles, beside the data's own
    """
    from .judge_quality import measure

    asked, loaded = resolve_judge(judge), load_data(data, **(read or {}))
    records = loaded.records(range(min(rows or len(loaded), len(loaded))))
    found = measure(asked, records, subset_column=subset_column, lists=lists, seed=seed)
    return dataclasses.replace(found, notes=_left_out(loaded) + found.notes)


def generate(
    model: Any, prompts: Sequence[Any], *, n: int = 1, seed: int = 0, load: Mapping[str, Any] | None = None, **decoding: Any
) -> list[list[str]]:
    """n answers to each prompt (a string or chat messages): [prompts][n].

    model     a language model, or the http address of an OpenAI-compatible endpoint; `load` then has the options of `judges.teacher`
    decoding  temperature, top_k, top_p, min_p, stop, max_new_tokens
    """
    if is_address(model):
        from .judges.teacher import teacher

        return teacher(model, **(load or {})).answers(prompts, n, Key.of(seed), **decoding)
    policy = load_policy(model, **(load or {}))
    from .data.columns import Record

    records = [Record(id=str(i), prompt=prompt, responses=[]) for i, prompt in enumerate(prompts)]
    rows, _ = policy.encode(records)
    return policy.sample(rows, n, Key.of(seed), **decoding).show()  # type: ignore[no-any-return]


def merge(adapter: str | Path, out: str | Path) -> Path:
    """An adapter merged into its base model, as an ordinary model folder."""
    from .policies.text.model import merge_adapter

    return merge_adapter(adapter, out)


def report(folder: str | Path) -> Path:
    """Write the page of a run again."""
    from .report.page import write

    return write(Path(folder))
