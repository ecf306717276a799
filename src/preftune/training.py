"""The training loop: feed -> collect -> update -> reference -> log -> evaluate -> save, read from top to bottom."""

from __future__ import annotations

import itertools
import math
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import torch

from . import checkpoint, processes
from .collect import store
from .collect.drawing import drawing
from .evaluation import kl_estimate, win_rate
from .judges.shared import bills, calls
from .learner import GradientLearner, drift
from .log import Log, check_tracker
from .optimisers import OPTIMISERS
from .types import Collect, Context, Judge, Key, Method, Metrics, Needs, Policy, PreftuneError, Rows, RowsAgainst, needs_of, parts_of

LOWER_IS_BETTER = ("loss", "kl", "nll", "length")  # and metrics whose names end so
SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the steps after warm-up that is left -> share of the peak rate
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),
    "constant": lambda left: 1.0,
}


@dataclass(frozen=True)
class TrainConfig:
    """How a run trains; a method's hyperparameters are its own arguments. Steps are optimiser updates, batches are prompts."""

    epochs: float = 1.0  #             passes over the data (over the prompts of a round, for methods that collect by rounds)
    steps: int | None = None  #        optimiser steps; overrides epochs
    batch: int = 32  #                 prompts a step
    micro_batch: int | None = None  #  prompts a forward pass; default: as many as memory holds. Changes memory and speed, never the result
    memory_gb: float | None = None  #  device memory that the run may take, the model included; default: most of what is free
    lr: float = 1e-6  #                peak learning rate
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # after warm-up, down to 0
    warmup: float = 0.1  #             share of the steps that the rate rises over
    optimiser: Literal["adamw", "adamw8bit", "adamw-bf16", "rmsprop", "sgd"] = "adamw"
    beta1: float = 0.9  #              AdamW's first moment; self-play methods recommend 0
    weight_decay: float = 0.0
    clip: float | None = None  #       largest gradient norm, 0 never clips; default 1, and 0 for games, which are separate problems
    seed: int = 0
    rounds: int = 1  #                 for methods that collect by rounds
    prompts_per_round: int | None = None  # default: all prompts
    keep_rows: bool = False  #         for methods that collect at every step: keep what was drawn and judged; rounds are always kept
    eval_every: int = 0  #             steps between evaluations on held-out rows; 0: at the end only
    eval_rows: int = 256  #            held-out rows used by these evaluations
    save_every: int | None = None  #   steps between checkpoints; default: a tenth of the run, 0: at the end only
    keep: int = 2  #                   checkpoints kept besides the best one
    early_stop: str | None = None  #   an evaluation's metric; stop when it has not improved `patience` times
    patience: int = 3
    kl_budget: float | None = None  #  stop when the estimated KL to the reference exceeds this, in nats per response
    tracker: str | None = None  #      tensorboard | wandb | trackio

    def __post_init__(self) -> None:
        positive = ("epochs", "batch", "lr", "rounds", "keep", "patience", "eval_rows")
        optional = ("steps", "micro_batch", "memory_gb", "prompts_per_round", "kl_budget")
        for name in [*positive, *(n for n in optional if getattr(self, n) is not None)]:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise PreftuneError(f"{name} is {getattr(self, name)}, needed a finite number above 0; see `preftune train --help`")
        for name in ("eval_every", "save_every", "clip", "weight_decay"):
            if getattr(self, name) is not None and not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise PreftuneError(f"{name} is {getattr(self, name)}, needed a finite number of at least 0; see `preftune train --help`")
        if not 0 <= self.beta1 < 1:
            raise PreftuneError(f"beta1 is {self.beta1}, needed 0 <= beta1 < 1; 0.9 is usual")
        for name, known in (("schedule", SCHEDULES), ("optimiser", OPTIMISERS)):
            if getattr(self, name) not in known:
                raise PreftuneError(f"{name} is {getattr(self, name)!r}, needed one of {', '.join(known)}; see `preftune train --help`")
        if not 0 <= self.warmup < 1:
            raise PreftuneError(f"warmup is {self.warmup}, needed a share 0 <= warmup < 1 of the steps; 0.1 is usual")
        if (self.early_stop or self.kl_budget) and not self.eval_every:
            raise PreftuneError(
                "early_stop or kl_budget is set and eval_every is 0, but they need evaluations during the run; "
                "set eval_every to a number of steps"
            )
        if self.tracker:
            check_tracker(self.tracker)


class Feed(Protocol):
    """Rows by position in the data."""

    def __len__(self) -> int: ...

    def rows(self, positions: Sequence[int]) -> Rows:
        """The rows at these positions, encoded for the policy."""


@dataclass(frozen=True)
class RowsFeed:
    """Rows that are all in memory: the games of a table, a test."""

    all: Rows

    def __len__(self) -> int:
        return len(self.all)

    def rows(self, positions: Sequence[int]) -> Rows:
        return self.all.take(positions)


@dataclass(frozen=True)
class Event:
    """What a callback sees after every step; returning True ends the run."""

    step: int
    metrics: Mapping[str, Any]
    learner: GradientLearner
    folder: Path


Callback = Callable[[Event], bool | None]


@dataclass
class Outcome:
    """How a run ended: `stopped` is "finished", "interrupted", or a sentence of the rule that ended it."""

    learner: GradientLearner
    steps: int
    stopped: str
    history: list[dict[str, Any]] = field(repr=False)
    best: int | None = None


def plan(method: Method, prompts: int, config: TrainConfig) -> tuple[int, int, int]:
    """(steps in all, steps a round, prompts a round)."""
    if prompts < 1:
        raise PreftuneError("the data have no usable row, needed at least one; see `preftune data check FILE`")
    a_round = min(config.prompts_per_round or prompts, prompts) if method.collect_every == "round" else prompts
    per_round = math.ceil(config.epochs * a_round / min(config.batch, a_round))
    rounds = config.rounds if method.collect_every == "round" else 1
    total = config.steps or per_round * rounds
    return total, (per_round if method.collect_every == "round" else total), a_round


def schedule(config: TrainConfig, total: int) -> Callable[[int], float]:
    """The learning rate as a pure function of the step 0 .. total - 1."""
    warm = math.ceil(config.warmup * total)

    def rate(step: int) -> float:
        if step < warm:
            return config.lr * (step + 1) / warm
        return config.lr * SCHEDULES[config.schedule]((total - step) / (total - warm))

    return rate


def positions(key: Key, prompts: int, batch: int, step: int) -> list[int]:
    """Which prompts step `step` sees: a stream of shuffled epochs, a pure function, so a resumed run needs no position."""
    batch = min(batch, prompts)
    chosen: list[int] = []
    at = step * batch
    while len(chosen) < batch:
        epoch, offset = divmod(at, prompts)
        order = key.fold("order", epoch).numpy().permutation(prompts)
        taken = order[offset : offset + batch - len(chosen)].tolist()
        chosen += taken
        at += len(taken)
    return chosen


def check_labels(method: Method, rows: Rows) -> list[str]:
    """Refuse rows that lack what the objective reads; returns notes about labels that it leaves unread."""
    declared = needs_of(method.objective)
    name = " + ".join(getattr(part, "__name__", "this objective") for part in parts_of(method.objective))
    have = [label for label in ("score", "prefer", "winrate", "desirable") if getattr(rows, label) is not None]
    least = method.columns if isinstance(method.columns, int) else declared.columns  # a collector may make more of them
    if isinstance(least, int) and rows.response is not None and rows.response.shape[1] < least:
        found = rows.response.shape[1]
        raise PreftuneError(f"{name} reads {least} responses of a prompt, but the rows have {found}; give the missing ones")
    if "ranked" in declared.labels and not rows.ranked:
        raise PreftuneError(
            f"{name} reads ranked responses, but the rows have {', '.join(have) or 'no labels'}; "
            + ("kto reads desirable labels" if "desirable" in have else "give chosen and rejected columns, or scores")
        )
    for label in declared.labels:
        if label != "ranked" and rows.label(label) is None:
            raise PreftuneError(
                f"{name} reads {label}, but the rows have {', '.join(have) or 'no labels'}; see docs/data.md for the column"
            )
    return unread(method, rows)


def unread(method: Method, rows: Rows) -> list[str]:
    """Notes about soft labels that the objective, or one of its parts that look at the order, does not read."""
    declared, parts = needs_of(method.objective), list(parts_of(method.objective))
    notes = []
    for label in ("prefer", "winrate"):
        blind = parts
        if label in {*declared.labels, *declared.optional}:
            ordered = [part for part in parts if "ranked" in getattr(part, "needs", Needs(labels=())).labels]
            blind = [part for part in ordered if label not in {*part.needs.labels, *part.needs.optional}]
        if getattr(rows, label) is not None and blind:
            name = " + ".join(getattr(part, "__name__", "this objective") for part in blind)
            notes.append(f"the data carry {label}, which {name} does not read: only the order of the responses is used")
    return notes


def run(
    policy: Policy,
    method: Method,
    feed: Feed,
    config: TrainConfig,
    folder: Path,
    log: Log,
    *,
    reference: Policy | None = None,
    judges: Sequence[Judge] = (),
    test: Feed | None = None,
    callbacks: Sequence[Callback] = (),
    metrics: Sequence[Callable[[Policy, int], Metrics]] = (),
    identity: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> Outcome:
    """Train `policy` in place. `identity` is what a checkpoint must agree with to be resumed (method, hyperparameters, data)."""
    key = Key.of(config.seed)
    total, per_round, a_round = plan(method, len(feed), config)
    by_rounds = method.collect_every == "round"
    roles: dict[str, Policy] = {"current": policy}
    if needs_of(method.objective).reference:
        roles["reference"] = reference or policy.reference()
    start = roles.get("reference")  # what evaluations compare with, also where a method that plays keeps no reference
    if start is None and config.eval_every and not method.offline:
        start = policy.copy()
    roles |= {name: policy.copy() for name in method.roles}
    learner = GradientLearner(
        policy,
        method,
        roles,
        optimiser=config.optimiser,
        lr=schedule(config, total),
        beta1=config.beta1,
        weight_decay=config.weight_decay,
        clip=config.clip if config.clip is not None else 0.0 if policy.independent else 1.0,
        micro_batch=config.micro_batch,
        seed=config.seed,
    )
    saved, shelf, drawn = folder / "checkpoints", folder / "rounds", folder / "rows"
    every = max(1, total // 10) if config.save_every is None else config.save_every
    identity = {**(identity or {}), "seed": config.seed, "batch": config.batch, "optimiser": config.optimiser, "model": _fingerprint(roles)}
    if by_rounds:
        identity |= {"steps a round": per_round, "prompts a round": a_round}
    for name, value in {"settings": settings(config), "rows": len(feed), **identity}.items():
        processes.agree(name, value)
    keeper = _Keeper(config)
    check_start(method, config, test)
    processes.once(lambda: _make_room(folder, _bytes(policy), config, resume))
    step = _restore(learner, saved, keeper, identity, log) if resume else 0
    moved = {name for name in roles if learner.roles[name] is not roles[name]}
    processes.once(lambda: store.forget(shelf, after=step // per_round))
    processes.once(lambda: store.forget_steps(drawn, since=step))
    log.rewind(step)
    rows: Rows | None = None
    stopped = keeper.ended()
    silent: list[str] = []  # rows that were left out of this step or round, for the judge gave no answer about them
    spent = None if method.offline else _Spent(policy, judges, log)

    def evaluate(at: int) -> Metrics:
        found = assess(learner, start, test, judges, config, key.fold("evaluate", at))
        for metric in metrics:
            found |= {name: float(value) for name, value in metric(policy, at).items()}
        found = processes.same(found)  # what ends a run must not differ in the last bit
        keeper.check(found)
        log.step(at, {"eval": found})
        return found

    def save(at: int) -> None:
        state = {**learner.record(), "step": at, "identity": identity, "keeper": keeper.state()}
        state["roles"] = {name: learner.roles[name].state() for name in sorted(moved)}
        state["twin"] = learner.twin
        checkpoint.save(saved, at, state)
        processes.once(lambda: checkpoint.retain(saved, config.keep, keeper.best_step))

    def collect(context: Context) -> Rows:
        collected = method.collect(context)
        check_labels(method, collected)
        return collected

    if config.eval_every and step == 0:
        evaluate(0)  # where the run starts from; a metric's name that is wrong shows here
    with _Signals() as asked:
        while step < total and stopped == "finished":
            number, within = divmod(step, per_round)
            if by_rounds:
                if rows is None or within == 0:
                    rows = _round(learner, collect, feed, judges, shelf, key, number, a_round, silent)
                batch = rows.take(positions(key.fold("round", number), len(rows), config.batch, within))
                rows_against = _same(batch)
            else:
                batch = feed.rows(positions(key, len(feed), config.batch, step))
                rows_against = drawing(collect, learner.roles, batch, key.fold("collect", step), judges=judges, step=step, silent=silent)
                rows_against = _keeping(rows_against, drawn, step) if config.keep_rows else rows_against
            begun = learner.steps
            try:
                told: dict[str, Any] = dict(method.update(learner, rows_against))
            except PreftuneError:  # NaN, or a judge without an answer: what was learned so far is kept, if nothing of this step was
                if step and learner.steps == begun:
                    save(step)
                raise
            step += 1
            told["epoch"] = step * min(config.batch, a_round) / a_round
            told |= {} if spent is None else {"silent": float(len(silent)), **spent.so_far()}
            silent.clear()
            log.step(step, told)
            if config.eval_every and (step % config.eval_every == 0 or step == total):
                told["eval"] = evaluate(step)
                keeper.look(step, told["eval"])
                stopped = keeper.ended()
            if _due(method, step, per_round) and len(roles) > 1:  # evaluated before: against itself a policy shows nothing
                moving = method.reference(learner.roles)
                learner.roles = {name: p if p is learner.roles.get(name) else kept(p, by_rounds) for name, p in moving.items()}
            moved |= {name for name in roles if learner.roles.get(name) is not roles[name]} & set(learner.roles)
            for callback in callbacks:
                if callback(Event(step, told, learner, folder)):
                    stopped = f"stopped by {getattr(callback, '__name__', 'a callback')} at step {step}"
            stopped = _agreed("interrupted" if asked.signal else stopped)
            ends = step == total or stopped != "finished" or (by_rounds and step % per_round == 0)
            if ends or (every and step % every == 0) or keeper.best_step == step:
                save(step)
    if left_out := round(sum(line.get("silent") or 0 for line in log.history)):
        log.say(f"the judge gave no answer about {left_out} rows, which were left out of their steps")
    return Outcome(learner, step, stopped, log.history, keeper.best_step)


def assess(
    learner: GradientLearner, start: Policy | None, test: Feed | None, judges: Sequence[Judge], config: TrainConfig, key: Key
) -> Metrics:
    """Held-out loss, accuracy and drift where the method reads given rows; KL and win rate of fresh samples where it plays.

    KL and win rate are against `start`, the reference that the run began with, also where the method moves its own.
    """
    if test is None:
        raise PreftuneError("eval_every is set, but there are no held-out rows; give test data, or leave eval_every at 0")
    given = learner.method.offline
    rows = test.rows(range(min(config.eval_rows, len(test))))
    result: Metrics = {}
    with torch.no_grad():
        if given:
            context = Context({**learner.roles, "opponent": learner.policy}, rows, judges, key=key)
            scored, loss = learner.measure(learner.method.collect(context))
            result["loss"] = float(loss.row.sum()) / _count(loss)
            result |= {name: float(value.double().mean()) for name, value in loss.metrics.items()}
            result |= {name: value for name, value in drift(scored).items() if name != "tokens"}
        if start is not None and (not given or config.kl_budget is not None):
            mine = learner.policy.sample(rows, 1, key.fold("current"))
            answered = rows.replace(response=mine, present=None)
            logp, ref = (processes.score(policy, answered).logp for policy in (learner.policy, start))
            estimate = kl_estimate(logp, ref)
            weight = torch.ones_like(logp) if mine.law is None else mine.law
            result |= {name: float((weight * value).sum() / weight.sum()) for name, value in estimate.items()}
            if judges:
                theirs = start.sample(rows, 1, key.fold("reference"))
                result["winrate"] = float(win_rate(judges[0], rows, mine, theirs, key.fold("judge")).nanmean())
    return result


def _count(loss: Any) -> float:
    return float(len(loss.row) if loss.count is None else loss.count.sum())


def _bytes(policy: Policy) -> int:
    """Of what trains; a checkpoint holds it up to four times: weights, two moments, a reference that moved."""
    return sum(parameter.numel() * parameter.element_size() for parameter in policy.parameters())


def _fingerprint(roles: Mapping[str, Policy]) -> str | None:
    """Of the weights that the run starts from, where the policy has one: a checkpoint holds only what trains."""
    start: Any = roles.get("reference", roles["current"])
    return start.fingerprint() if hasattr(start, "fingerprint") else None


def _due(method: Method, step: int, per_round: int) -> bool:
    return step % (per_round if method.reference_every == "round" else method.reference_every) == 0


def _agreed(stopped: str) -> str:
    """How the run ends for all processes: as for the first one that ends it."""
    return next((said for said in processes.gather(stopped) if said != "finished"), "finished")


def _make_room(folder: Path, trained: int, config: TrainConfig, resume: bool) -> None:
    """A folder of this run alone, without leftovers, and with room for what trains (bytes)."""
    saved = folder / "checkpoints"
    if not resume and (checkpoint.steps(saved) or any((folder / part).exists() for part in ("rounds", "rows"))):
        raise PreftuneError(
            f"{saved.parent} holds checkpoints or rows of another run, needed a new folder; choose another, or resume that run"
        )
    checkpoint.sweep(saved)
    checkpoint.check_room(folder, once=4 * trained, times=config.keep + 2)


def check_start(method: Method, config: TrainConfig, test: Any) -> None:
    """What can be refused before anything is loaded or written; `test`: held-out rows, wherever they come from."""
    if config.eval_every and test is None:
        raise PreftuneError("eval_every is set, but there are no held-out rows; give test data, or leave eval_every at 0")
    if config.keep_rows and method.collect_every != "step":
        kept_anyway = "by rounds, whose rows are kept anyway" if method.collect_every == "round" else "once: the rows are those of the data"
        raise PreftuneError(f"keep_rows is set, but this method collects {kept_anyway}; leave keep_rows out")
    if config.kl_budget is not None and not needs_of(method.objective).reference:
        raise PreftuneError("kl_budget needs a reference to measure the KL to, but this method keeps none; leave kl_budget out")


def _round(
    learner: GradientLearner,
    collect: Collect,
    feed: Feed,
    judges: Sequence[Judge],
    shelf: Path,
    key: Key,
    number: int,
    prompts: int,
    silent: list[str],
) -> Rows:
    """The rows of a round: collected once, kept on disk, read back by a resumed run and by later rounds."""
    kept = store.path(shelf, number)
    if not processes.once(kept.exists):
        chosen = positions(key.fold("prompts"), len(feed), prompts, number)
        past = [store.load(store.path(shelf, earlier), learner.policy) for earlier in range(number)]
        roles = {**learner.roles, "opponent": learner.policy}
        with getattr(learner.policy, "remembering", nullcontext)():  # the round's reference may be what the policy is now
            rows = collect(Context(roles, feed.rows(chosen), judges, past, number, key=key.fold("collect", number), silent=silent))
        processes.once(lambda: store.save(rows, kept))
    return store.load(kept, learner.policy)


def kept(policy: Policy, again: bool) -> Policy:
    """A frozen policy, its log-probs on disk where it can do that and the same responses come again: given ones, and those of a round in
    every epoch, which sampling has scored already."""
    return policy.cached() if again and hasattr(policy, "cached") else policy


def _keeping(rows_against: RowsAgainst, shelf: Path, step: int) -> RowsAgainst:
    """The same rows, kept on disk as they are drawn."""
    draws = itertools.count()

    def kept_rows(opponent: Policy) -> Rows:
        rows = rows_against(opponent)
        processes.once(lambda: store.save(rows, store.step_path(shelf, step, next(draws))))
        return rows

    return kept_rows


def _same(batch: Rows) -> RowsAgainst:
    return lambda opponent: batch


def _restore(learner: GradientLearner, saved: Path, keeper: _Keeper, identity: Mapping[str, Any], log: Log) -> int:
    """Put the newest sound checkpoint back; returns its step, 0 where none was written yet."""
    state, notes = checkpoint.newest(saved)
    for note in notes:
        log.warn(note)
    if state is None:
        return 0
    for name, value in identity.items():
        if state["identity"].get(name) != value:
            raise PreftuneError(
                f"{saved.parent} was made with {name} = {state['identity'].get(name)!r}, but this run has {value!r}; "
                "resume with the same settings, or start a new run in another folder"
            )
    learner.restore(state)
    keeper.load(state["keeper"])
    learner.twin = state["twin"]
    for name, parameters in state["roles"].items():
        moved = learner.policy.copy()
        moved.load(parameters)
        learner.roles[name] = kept(moved, learner.method.collect_every == "round")
    checkpoint.restore_rng(state["rng"])
    return int(state["step"])


class _Keeper:
    """Remembers the best evaluation and says when the run has to end."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.best: float | None = None
        self.best_step: int | None = None
        self.worse = 0
        self.kl: float | None = None

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "worse": self.worse, "kl": self.kl}

    def load(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_step, self.worse, self.kl = (state[name] for name in ("best", "best_step", "worse", "kl"))

    def check(self, metrics: Metrics) -> None:
        """Refuse a name that no evaluation gives."""
        if self.config.early_stop and self.config.early_stop not in metrics:
            given = ", ".join(sorted(metrics)) or "nothing"
            raise PreftuneError(f"early_stop is {self.config.early_stop!r}, but the evaluation gave {given}; choose one of these")

    def look(self, step: int, metrics: Metrics) -> None:
        """Take in an evaluation. A metric that is not a number is no improvement."""
        name = self.config.early_stop or ("accuracy" if "accuracy" in metrics else "winrate" if "winrate" in metrics else "loss")
        self.kl = metrics.get("kl")
        if name in metrics:
            value = -metrics[name] if name.endswith(LOWER_IS_BETTER) else metrics[name]
            better = not math.isnan(value) and (self.best is None or value > self.best)
            self.worse = 0 if better else self.worse + 1
            if better:
                self.best, self.best_step = value, step

    def ended(self) -> str:
        """ "finished" while the run may go on to its end, otherwise the rule that stops it: a resumed run hears the same."""
        if self.config.kl_budget is not None and self.kl is not None and self.kl > self.config.kl_budget:
            return f"stopped: KL {self.kl:.3f} to the reference is above the budget of {self.config.kl_budget:g} nats"
        if self.config.early_stop and self.worse >= self.config.patience:
            return f"stopped: {self.config.early_stop} has not improved for {self.worse} evaluations (best at step {self.best_step})"
        return "finished"


class _Spent:
    """What play has cost since the run began, all processes together: tokens sampled, questions that judges were asked and knew; and how
    far the log-probs of a sampler of its own were from the policy's.

    A resumed run goes on from its log. Samples and questions of evaluations count too.
    """

    def __init__(self, policy: Any, judges: Sequence[Judge], log: Log):
        self.policy, self.judges = policy, judges
        now = self.now()
        last: dict[str, Any] = next((line for line in reversed(log.history) if "silent" in line), {})
        self.start = {name: number - (last.get(name) or 0.0) for name, number in now.items()}

    def now(self) -> Metrics:
        network = getattr(self.policy, "network", None)
        drawn = {} if network is None else {"tokens_sampled": float(network.drawn)}
        asked = {f"judge_{name}": float(number) for judge in self.judges for name, number in calls(judge).items() if name != "silent"}
        asked |= {f"judge_{name}": number for judge in self.judges for name, number in bills(judge).items()}
        return {name: sum(processes.gather(number)) for name, number in {**drawn, **asked}.items()}

    def so_far(self) -> Metrics:
        sampler = getattr(getattr(self.policy, "network", None), "sampler", None)
        return {name: number - self.start[name] for name, number in self.now().items()} | (sampler.gap if sampler else {})


class _Signals:
    """Ctrl-C and SIGTERM end the run after the current step, with a checkpoint; a second Ctrl-C interrupts at once. Of several
    processes each is told twice, by the terminal and by the launcher: there the second one changes nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and processes.size() == 1:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def settings(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values, for config.json."""
    return asdict(config)
