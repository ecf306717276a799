"""The loop: what each step sees, when it evaluates, why it stops, and what is refused before the first step."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import outside
import preftune.api as api
from preftune import checkpoint, training
from preftune.collect import store
from preftune.collect.draw import given
from preftune.learner import Diverged
from preftune.log import Log
from preftune.methods import dpo, egpo, grpo, online_ipo, sft, simpo, tr_dpo
from preftune.objectives import pairwise
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.reference import frozen
from preftune.training import RowsFeed, TrainConfig, plan, positions, schedule
from preftune.types import Context, Key, Loss, Method, PreftuneError, Rows, Scored, needs
from preftune.update import plain
from text_fixtures import tiny_policy, tiny_records


def pairs(n: int = 6, responses: int = 4, **labels: Any) -> Rows:
    """Rows of one table: response i % 3 + 1 loses to response 0."""
    index = torch.tensor([[0, i % (responses - 1) + 1] for i in range(n)])
    return Rows(id=tuple(f"row {i}" for i in range(n)), prompt=(0,) * n, response=TableResponses(index), ranked=True, **labels)


def train(
    folder: Path, method: Method, rows: Rows | None = None, *, policy: TabularPolicy | None = None, log: Log | None = None, **settings: Any
) -> training.Outcome:
    """A run on one table of four responses."""
    names = ("judges", "test", "callbacks", "metrics", "identity", "resume")
    given = {name: settings.pop(name) for name in names if name in settings}
    config = TrainConfig(**{"lr": 0.1, "batch": 2, "optimiser": "sgd", **settings})
    feed = RowsFeed(pairs() if rows is None else rows)
    policy = policy or TabularPolicy(torch.zeros(1, 4))
    folder.mkdir(parents=True, exist_ok=True)
    return training.run(policy, method, feed, config, folder, log or Log(folder, 1, progress=False), **given)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- what a step sees -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompts", "batch"), [(1, 1), (5, 2), (6, 3), (7, 4), (10, 10), (3, 8)])
def test_every_epoch_sees_every_prompt_once(prompts: int, batch: int) -> None:
    size = min(batch, prompts)
    stream = [p for step in range(3 * prompts) for p in positions(Key.of(1), prompts, batch, step)]
    assert len(stream) == 3 * prompts * size
    for epoch in range(3):
        assert sorted(stream[epoch * prompts : (epoch + 1) * prompts]) == list(range(prompts))


def test_positions_are_a_function_of_key_and_step() -> None:
    forwards = [positions(Key.of(3), 50, 8, step) for step in range(20)]
    backwards = [positions(Key.of(3), 50, 8, step) for step in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert forwards != [positions(Key.of(4), 50, 8, step) for step in range(20)]
    assert forwards[0] != sorted(forwards[0])


def test_plan_counts_steps_by_hand() -> None:
    """10 prompts in batches of 4 are 2.5, so 3 steps; two epochs 5; rounds of 6 prompts take 2 steps each, three rounds 6."""
    offline, rounds = dpo(), outside.by_rounds()
    assert plan(offline, 10, TrainConfig(batch=4)) == (3, 3, 10)
    assert plan(offline, 10, TrainConfig(batch=4, epochs=2)) == (5, 5, 10)
    assert plan(offline, 10, TrainConfig(batch=4, steps=7, epochs=2)) == (7, 7, 10)
    assert plan(offline, 3, TrainConfig(batch=32)) == (1, 1, 3)
    assert plan(rounds, 10, TrainConfig(batch=4, rounds=3, prompts_per_round=6)) == (6, 2, 6)
    assert plan(rounds, 10, TrainConfig(batch=4, rounds=3, prompts_per_round=60)) == (9, 3, 10)
    with pytest.raises(PreftuneError, match="no usable row, needed at least one; see"):
        plan(offline, 0, TrainConfig())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [0.5, 1.0, *((1 + math.cos(math.pi * k / 8)) / 2 for k in range(8))]),
    ],
)
def test_the_learning_rate_by_hand(shape: Any, expected: list[float]) -> None:
    """Ten steps, two of warm-up: 1/2, 1, then the eight left fall from 1 by eighths."""
    rate = schedule(TrainConfig(lr=2.0, warmup=0.2, schedule=shape), 10)
    assert [rate(step) for step in range(10)] == pytest.approx([2 * x for x in expected], abs=1e-15)


def test_the_learning_rate_of_a_run_is_the_schedule(tmp_path: Path) -> None:
    config = TrainConfig(lr=0.1, warmup=0.5, schedule="cosine")
    train(tmp_path, dpo(), warmup=0.5, schedule="cosine", steps=6)
    assert [line["lr"] for line in lines(tmp_path)] == [schedule(config, 6)(step) for step in range(6)]


def test_fewer_prompts_than_a_batch_and_a_single_row(tmp_path: Path) -> None:
    small = train(tmp_path / "small", dpo(), pairs(3), batch=32, epochs=2)
    assert small.steps == 2 and [line["epoch"] for line in lines(tmp_path / "small")] == [1.0, 2.0]
    single = train(tmp_path / "single", dpo(), pairs(1), epochs=3)
    assert single.steps == 3 and [line["epoch"] for line in lines(tmp_path / "single")] == [1.0, 2.0, 3.0]


def test_the_weight_of_a_row_counts(tmp_path: Path) -> None:
    """A row of weight 0 teaches nothing, and the order of the others is that of a run where it is not there."""
    weight = torch.tensor([2.0, 0.0], dtype=torch.float64)
    heavy = train(tmp_path / "heavy", dpo(), pairs(2, weight=weight), steps=3)
    logits = heavy.learner.policy.state()["logits"][0]
    assert logits[0] > 0 > logits[1] and logits[2] == logits[3]
    plain_run = train(tmp_path / "plain", dpo(), pairs(1), steps=3)
    assert torch.allclose(logits, plain_run.learner.policy.state()["logits"][0], rtol=1e-12)


# --- references that move, rounds -----------------------------------------------------------------------------------


def test_the_reference_moves_every_n_steps(tmp_path: Path) -> None:
    """tr-dpo, hard, every 2: after step 1 the reference is still the start, after 2 it is the policy of step 2."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(event: training.Event) -> None:
        roles = event.learner.roles
        seen.append((roles["reference"].state()["logits"], event.learner.policy.state()["logits"]))

    train(tmp_path, tr_dpo(alpha=1.0, every=2), steps=5, callbacks=[look])
    moved = [int(torch.equal(reference, policy)) for reference, policy in seen]
    assert moved == [0, 1, 0, 1, 0]
    assert torch.equal(seen[2][0], seen[1][0]) and torch.equal(seen[0][0], torch.zeros(1, 4, dtype=torch.float64))


class FirstIsBest:
    """A judge of tables: response 0 beats all, otherwise a coin."""

    def prefer(self, rows: Rows, a: TableResponses, b: TableResponses, key: Key) -> torch.Tensor:
        return 0.5 + 0.4 * ((a.index[:, :, None] == 0).double() - (b.index[:, None, :] == 0).double())


def drawn_pairs(ctx: Context) -> Rows:
    """Two draws of the policy, the judge's word on them, and how many rounds could be looked back at."""
    y = ctx.roles["current"].sample(ctx.feed, 2, ctx.key.fold("pair"))
    prefer = ctx.judge.prefer(ctx.feed, y.take(columns=[0]), y.take(columns=[1]), ctx.key)[:, 0, 0]
    told = {"past": torch.tensor([[len(ctx.past), ctx.round]] * len(ctx.feed))}
    return ctx.feed.replace(response=y, ranked=True, prefer=prefer, extra=told)


def rounds_method(calls: list[int]) -> Method:
    def collect(ctx: Context) -> Rows:
        calls.append(ctx.round)
        assert [int(rows.extra["past"][0, 1]) for rows in ctx.past] == list(range(ctx.round))
        return drawn_pairs(ctx)

    return Method(partial(pairwise.dpo, beta=0.1), collect, frozen, plain, collect_every="round")


def test_a_round_is_collected_once_kept_and_seen_by_later_rounds(tmp_path: Path) -> None:
    calls: list[int] = []
    policy = TabularPolicy(torch.zeros(8, 4), exact=False)
    outcome = train(tmp_path, rounds_method(calls), policy.rows(), policy=policy, judges=(FirstIsBest(),), rounds=3, epochs=2, batch=4)
    assert calls == [0, 1, 2] and outcome.steps == 12
    kept = [store.load(store.path(tmp_path / "rounds", number), policy) for number in range(3)]
    assert [int(rows.extra["past"][0, 0]) for rows in kept] == [0, 1, 2]
    assert all(sorted(rows.prompt) == list(range(8)) and rows.response.shape == (8, 2) for rows in kept)
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == 12
    assert policy.probabilities()[:, 0].mean() > 0.25


def test_rounds_of_some_prompts_take_them_in_turn(tmp_path: Path) -> None:
    policy = TabularPolicy(torch.zeros(6, 4), exact=False)
    train(tmp_path, rounds_method([]), policy.rows(), policy=policy, judges=(FirstIsBest(),), rounds=3, prompts_per_round=2, batch=2)
    seen = [store.load(store.path(tmp_path / "rounds", number), policy).prompt for number in range(3)]
    assert sorted(p for prompts in seen for p in prompts) == list(range(6))


def test_stored_rows_come_back_equal(tmp_path: Path) -> None:
    table = pairs(3, prefer=torch.tensor([0.6, 0.7, 0.8]), weight=torch.ones(3), extra={"x": torch.arange(3)})
    store.save(table, tmp_path / "rows.pt")
    back = store.load(tmp_path / "rows.pt", TabularPolicy(torch.zeros(1, 4)))
    assert (back.id, list(back.prompt), back.ranked) == (table.id, list(table.prompt), True)
    assert torch.equal(back.response.index, table.response.index) and torch.equal(back.extra["x"], table.extra["x"])
    assert torch.equal(back.prefer, table.prefer) and back.score is None  # type: ignore[arg-type]
    policy = tiny_policy()
    text, _ = policy.encode(tiny_records(3))
    store.save(text, tmp_path / "text.pt")
    again = store.load(tmp_path / "text.pt", policy)
    assert again.prompt == text.prompt and again.response.show() == text.response.show()
    assert torch.equal(policy.score(again).logp, policy.score(text).logp)


# --- evaluations, and why a run stops -------------------------------------------------------------------------------


def test_evaluations_come_at_the_start_in_time_and_at_the_end(tmp_path: Path) -> None:
    def share(policy: Any, step: int) -> dict[str, float]:
        return {"share": policy.probabilities()[0, 0], "at": step}

    train(tmp_path, dpo(), test=RowsFeed(pairs()), eval_every=4, steps=10, metrics=[share])
    evals = {line["step"]: line["eval"] for line in lines(tmp_path) if "eval" in line}
    assert list(evals) == [0, 4, 8, 10]
    assert evals[0]["loss"] == pytest.approx(math.log(2)) and evals[10]["loss"] < evals[4]["loss"] < evals[0]["loss"]
    assert evals[10]["accuracy"] == 1.0 and evals[0]["share"] == 0.25 < evals[10]["share"] and evals[8]["at"] == 8
    assert [line["step"] for line in lines(tmp_path) if "eval" not in line] == list(range(1, 11))


def falling_after(best: int) -> Any:
    def quality(policy: Any, step: int) -> dict[str, float]:
        return {"quality": -abs(step - best), "bad_loss": float("nan") if step == 2 else abs(step - best)}

    return quality


@pytest.mark.parametrize("name", ["quality", "bad_loss"])
def test_early_stop_waits_for_its_patience_and_keeps_the_best(name: str, tmp_path: Path) -> None:
    """Best at step 6, evaluated every 2: 8 and 10 are worse, so patience 2 ends the run at 10. A loss is better when lower."""
    settings: dict[str, Any] = {"early_stop": name, "patience": 2, "eval_every": 2, "save_every": 1, "keep": 1}
    outcome = train(tmp_path, dpo(), test=RowsFeed(pairs()), metrics=[falling_after(6)], steps=50, **settings)
    assert (outcome.steps, outcome.best) == (10, 6)
    assert outcome.stopped == f"stopped: {name} has not improved for 2 evaluations (best at step 6)"
    assert checkpoint.steps(tmp_path / "checkpoints") == [6, 10]


def test_early_stop_on_a_metric_that_no_evaluation_gives_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="early_stop is 'acuracy', but the evaluation gave accuracy, .*; choose one of these"):
        train(tmp_path, dpo(), test=RowsFeed(pairs()), eval_every=2, early_stop="acuracy")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_kl_budget_stops_the_run(tmp_path: Path) -> None:
    """On an exact table the KL is no estimate: the run ends at the first evaluation that finds it above the budget."""
    settings: dict[str, Any] = {"test": RowsFeed(pairs()), "eval_every": 1, "steps": 200, "lr": 1.0}
    outcome = train(tmp_path, dpo(beta=1.0), kl_budget=0.05, **settings)
    p = torch.stack([outcome.learner.policy.state()["logits"].softmax(1)[0]])
    kl = float((p * (p * 4).log()).sum())
    found = [line["eval"]["kl"] for line in lines(tmp_path) if "eval" in line]
    assert (
        outcome.stopped.startswith(f"stopped: KL {kl:.3f} to the reference is above the budget")
        and found[-1] == pytest.approx(kl)
        and found[-2] <= 0.05 < found[-1]
    )


def test_the_kl_is_measured_to_the_first_reference(tmp_path: Path) -> None:
    """tr-dpo, hard, every step: the reference has caught up at each evaluation, and the KL to it is always 0."""
    settings: dict[str, Any] = {"test": RowsFeed(pairs()), "eval_every": 1, "steps": 20, "lr": 1.0, "kl_budget": 100.0}
    outcome = train(tmp_path, tr_dpo(beta=1.0, alpha=1.0, every=1), **settings)
    p = outcome.learner.policy.state()["logits"].softmax(1)[0]
    assert torch.equal(outcome.learner.roles["reference"].state()["logits"], outcome.learner.policy.state()["logits"])
    assert lines(tmp_path)[-1]["eval"]["kl"] == pytest.approx(float((p * (p * 4).log()).sum())) and lines(tmp_path)[-1]["eval"]["kl"] > 0.1


def test_a_callback_stops_the_run_and_its_step_is_saved(tmp_path: Path) -> None:
    def enough(event: training.Event) -> bool:
        assert event.folder == tmp_path and event.metrics["loss"] > 0
        return event.step == 3

    outcome = train(tmp_path, dpo(), steps=10, save_every=0, callbacks=[enough])
    assert (outcome.steps, outcome.stopped) == (3, "stopped by enough at step 3")
    assert checkpoint.steps(tmp_path / "checkpoints") == [3]


def test_self_play_is_evaluated_by_its_win_rate(tmp_path: Path) -> None:
    """Exact tables: both orders against the start, so the rate is 1/2 + 0.4 (p - 1/4) with p the share of response 0."""
    settings: dict[str, Any] = {"judges": (FirstIsBest(),), "eval_every": 10, "steps": 40, "batch": 4}
    policy = TabularPolicy(torch.zeros(4, 4))
    train(tmp_path / "step", egpo(beta=0.1), policy.rows(), policy=policy, lr=0.5, test=RowsFeed(policy.rows()), **settings)
    rates = [line["eval"]["winrate"] for line in lines(tmp_path / "step") if "eval" in line]
    assert rates[0] == 0.5 and rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.5 + 0.4 * float(policy.probabilities()[:, 0].mean() - 0.25)) and rates[-1] > 0.6
    policy = TabularPolicy(torch.zeros(4, 4), exact=False)
    train(tmp_path / "round", rounds_method([]), policy.rows(), policy=policy, test=RowsFeed(policy.rows()), **settings)
    assert all({"winrate", "kl"} <= line["eval"].keys() for line in lines(tmp_path / "round") if "eval" in line)


def test_self_play_without_a_reference_is_evaluated_against_its_start(tmp_path: Path) -> None:
    policy = TabularPolicy(torch.zeros(4, 4))
    settings: dict[str, Any] = {"judges": (FirstIsBest(),), "eval_every": 10, "steps": 40, "batch": 4, "lr": 0.5}
    train(tmp_path / "run", grpo(reward="winrate"), policy.rows(), policy=policy, test=RowsFeed(policy.rows()), **settings)
    rates = [line["eval"]["winrate"] for line in lines(tmp_path / "run") if "eval" in line]
    assert rates[0] == 0.5 and rates == sorted(rates) and rates[-1] > 0.6


@needs(columns=2, labels=("ranked",), reference=True)
def wild(s: Scored, *, poison: list[str]) -> Loss:
    """DPO with a NaN at chosen rows; a poisoned row is cured when its name is taken off the list."""
    bad = torch.tensor([name in poison for name in s.rows.id])
    return Loss(torch.where(bad, math.nan, pairwise.dpo(s).row))


def test_a_nan_stops_names_its_row_and_leaves_a_checkpoint_that_leads_on(tmp_path: Path) -> None:
    poison: list[str] = []
    method = Method(partial(wild, poison=poison), given, frozen, plain)

    def poisons(event: training.Event) -> None:
        if event.step == 5:
            poison.append("row 4")

    whole = train(tmp_path / "whole", Method(partial(wild, poison=[]), given, frozen, plain), steps=12)
    with pytest.raises(
        Diverged, match=r"the loss is not finite at step \d+, caused by rows \['row 4'\]; needed finite numbers; lower lr"
    ) as stopped:
        train(tmp_path / "run", method, steps=12, save_every=0, callbacks=[poisons])
    assert stopped.value.rows == ["row 4"]
    last = checkpoint.steps(tmp_path / "run" / "checkpoints")
    assert last == [len([line for line in lines(tmp_path / "run") if "loss" in line])] and 5 <= last[0] < 12
    poison.clear()
    resumed = train(tmp_path / "run", method, steps=12, save_every=0, resume=True)
    assert torch.equal(resumed.learner.policy.state()["logits"], whole.learner.policy.state()["logits"])
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 13))


@pytest.mark.parametrize(("method", "last"), [(egpo(), 3), (online_ipo(), 7)])
def test_a_judge_that_falls_silent_costs_no_finished_step(method: Method, last: int, tmp_path: Path) -> None:
    """It answers seven times; egpo asks twice a step, and goes back from its half-step before it asks again."""
    asked = [0]

    class Tired(FirstIsBest):
        def prefer(self, rows: Rows, a: TableResponses, b: TableResponses, key: Key) -> torch.Tensor:
            asked[0] += 1
            return super().prefer(rows, a, b, key) * (math.nan if asked[0] > 7 else 1.0)

    settings: dict[str, Any] = {"steps": 20, "save_every": 0}
    policy = TabularPolicy(torch.zeros(4, 4))
    with pytest.raises(PreftuneError, match="the judge gave no answer about 2 of 2 rows"):
        train(tmp_path / "run", method, policy.rows(), policy=policy, judges=(Tired(),), **settings)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [last]
    resumed = train(
        tmp_path / "run", method, policy.rows(), policy=TabularPolicy(torch.zeros(4, 4)), judges=(FirstIsBest(),), resume=True, **settings
    )
    whole = train(tmp_path / "whole", method, policy.rows(), policy=TabularPolicy(torch.zeros(4, 4)), judges=(FirstIsBest(),), **settings)
    assert torch.equal(*(run.learner.policy.state()["logits"] for run in (resumed, whole)))


# --- refused before the first step ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch": 0}, "batch is 0, needed a finite number above 0"),
        ({"lr": float("nan")}, "lr is nan, needed a finite number above 0"),
        ({"lr": -1e-6}, "lr is -1e-06, needed a finite number above 0"),
        ({"epochs": math.inf}, "epochs is inf, needed a finite number above 0"),
        ({"steps": 0}, "steps is 0, needed a finite number above 0"),
        ({"keep": 0}, "keep is 0, needed a finite number above 0"),
        ({"kl_budget": -1.0, "eval_every": 1}, "kl_budget is -1.0, needed a finite number above 0"),
        ({"clip": -1.0}, "clip is -1.0, needed a finite number of at least 0"),
        ({"save_every": -1}, "save_every is -1, needed a finite number of at least 0"),
        ({"beta1": 1.0}, "beta1 is 1.0, needed 0 <= beta1 < 1"),
        ({"warmup": 1.0}, "warmup is 1.0, needed a share 0 <= warmup < 1"),
        ({"schedule": "cosin"}, "schedule is 'cosin', needed one of linear, cosine, constant"),
        ({"optimiser": "adam"}, "optimiser is 'adam', needed one of adamw, adamw8bit"),
        ({"early_stop": "accuracy"}, "early_stop or kl_budget is set and eval_every is 0"),
        ({"kl_budget": 1.0}, "early_stop or kl_budget is set and eval_every is 0"),
        ({"tracker": "tensorbord"}, "tracker is 'tensorbord', needed one of tensorboard, wandb, trackio"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(PreftuneError) as refused:
        TrainConfig(**settings)
    assert said in str(refused.value) and "; " in str(refused.value)


def test_a_tracker_that_is_not_installed_is_refused() -> None:
    from importlib.util import find_spec

    absent = next((name for name in ("wandb", "trackio") if find_spec(name) is None), None)
    if absent is None:
        pytest.skip("all trackers are installed")
    with pytest.raises(PreftuneError, match=f"the tracker {absent} was asked for and is not installed, .*; install it with"):
        TrainConfig(tracker=absent)


def test_a_run_without_held_out_rows_cannot_be_evaluated(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="eval_every is set, but there are no held-out rows; give test data"):
        train(tmp_path, dpo(), eval_every=2)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("method", [simpo(gamma_beta_ratio=0.5), sft()])
def test_a_kl_budget_without_a_reference_is_refused(method: Method, tmp_path: Path) -> None:
    with pytest.raises(
        PreftuneError, match="kl_budget needs a reference to measure the KL to, but this method keeps none; leave kl_budget out"
    ):
        train(tmp_path, method, test=RowsFeed(pairs()), eval_every=2, kl_budget=1.0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_rows_without_the_labels_that_a_method_reads_are_refused(tmp_path: Path) -> None:
    unlabelled = pairs().replace(ranked=False, desirable=torch.tensor([[True, False]] * 6))
    with pytest.raises(PreftuneError, match="dpo reads ranked responses, but the rows have desirable; kto reads desirable labels"):
        train(tmp_path, dpo(), unlabelled)
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_that_holds_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    train(tmp_path, dpo(), steps=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(PreftuneError, match="holds checkpoints or rows of another run, needed a new folder; choose another"):
        train(tmp_path, dpo(), steps=2)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


# --- the disk -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses files above `size` bytes, as it does on a full disk or over a quota."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_without_room_for_a_checkpoint_is_refused_before_the_first_step(tmp_path: Path) -> None:
    policy = TabularPolicy(torch.zeros(1, 100_000))
    with (
        largest_file(1_000_000),
        pytest.raises(PreftuneError, match="cannot write 3.2 MB to .*; needed a writable folder with room .*; choose"),
    ):
        train(tmp_path, dpo(), policy=policy)
    assert not list(tmp_path.iterdir())


def test_a_disk_too_small_for_the_run_is_refused_before_the_first_step(tmp_path: Path) -> None:
    """Not for one checkpoint but for all that are kept: a petabyte is more than any test machine has."""
    with pytest.raises(PreftuneError, match="MB|GB free, needed about 1000000.0 GB for checkpoints and the model; free some space"):
        checkpoint.check_room(tmp_path, once=1000, times=10**12)


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(PreftuneError, match="cannot write .* to .*file/run: Not a directory; needed a writable folder .*; choose another"):
        checkpoint.check_room(tmp_path / "file" / "run")
    if os.geteuid() != 0:  # root writes everywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(PreftuneError, match="Permission denied; needed a writable folder"):
            checkpoint.check_room(locked)


def test_a_disk_that_fills_up_during_the_run_costs_no_checkpoint(tmp_path: Path) -> None:
    policy = TabularPolicy(torch.zeros(1, 10_000))
    limit = contextlib.ExitStack()

    def fills(event: training.Event) -> None:
        if event.step == 3:
            limit.enter_context(largest_file(50_000))

    with limit, pytest.raises((OSError, RuntimeError)):
        train(tmp_path, dpo(), policy=policy, steps=8, save_every=2, callbacks=[fills])
    assert checkpoint.steps(tmp_path / "checkpoints") == [2]
    resumed = train(tmp_path, dpo(), policy=TabularPolicy(torch.zeros(1, 10_000)), steps=8, save_every=2, resume=True)
    assert resumed.steps == 8 and not list((tmp_path / "checkpoints").glob(".*"))


# --- one page for people, one for programs --------------------------------------------------------------------------


def test_tables_are_trained_through_the_public_function(tmp_path: Path) -> None:
    """Response 0 wins with 0.9 against a coin: self-play through the same function that trains language models."""
    policy = TabularPolicy(torch.zeros(1, 4))
    run = api.train(policy, "egpo", judge=FirstIsBest(), out=tmp_path / "run", steps=60, lr=0.5, beta=0.5, progress=False)
    assert run.stopped == "finished" and run.policy.probabilities()[0].argmax() == 0  # type: ignore[attr-defined]
    assert len(run.history) == 60


def test_metrics_are_json_whatever_they_are(tmp_path: Path) -> None:
    log = Log(tmp_path, 1, progress=False)
    log.step(1, {"loss": math.nan, "eval": {"kl": math.inf, "x": 1.0}})
    assert lines(tmp_path)[0]["loss"] is None and lines(tmp_path)[0]["eval"] == {"kl": None, "x": 1.0}


def test_tensorboard_is_fed_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = Log(tmp_path, 2, tracker="tensorboard", progress=False, config={"lr": 0.1, "early_stop": None})
    train(tmp_path, dpo(), steps=2, log=log)
    log.close()
    assert list(tmp_path.rglob("events.out.tfevents*"))
