"""The memory planner: what it counts, what it plans, and that a plan changes nothing that is learned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Run
from preftune import api, methods
from preftune.learner import GradientLearner
from preftune.policies.text import attention_cpu, memory
from preftune.policies.text.logprob import consecutive
from preftune.policies.text.memory import Footprint
from preftune.policies.text.model import enable_checkpointing, load
from preftune.types import PreftuneError
from text_fixtures import tiny_folder, tiny_policy, tiny_records, tiny_tokenizer

SHAPE = {"layers": 3, "width": 48, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 80, "vocabulary": 400}


def llama_folder(folder: Path, *, layers: int, width: int, heads: int, kv_heads: int, head_dim: int, ffn: int, vocabulary: int) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


# --- counting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"width": 80}, {"heads": 8, "kv_heads": 8}, {"head_dim": 24}, {"ffn": 128}], ids=str)
@pytest.mark.parametrize(
    ("precision", "how"),
    [("float32", {}), ("mixed", {"dtype": "bfloat16"}), ("bfloat16", {"dtype": "bfloat16", "masters": False})],
    ids=["float32", "mixed", "bfloat16"],
)
def test_a_llama_keeps_what_the_formula_says(
    precision: str, how: dict[str, Any], change: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte; to the first layer some of what is outside the layers is added, such as the angles of the positions."""
    monkeypatch.setattr(attention_cpu, "LONG", 0)  # attention by blocks for short sequences too
    shape = SHAPE | change
    network = load(llama_folder(tmp_path, **shape), device="cpu", **how).network  # type: ignore[arg-type]
    found = memory.count(network)
    assert network.engine == "fast"
    paper = memory.llama(**shape, tied=True, precision=precision)  # type: ignore[arg-type]
    assert found.layers[1:] == paper.layers[1:]
    for name in ("weights", "trained", "gradients", "largest", "entrance", "around", "casts", "vocabulary", "head_trains", "size"):
        assert getattr(found, name) == getattr(paper, name), name


def test_what_is_frozen_keeps_nothing_and_an_adapter_more_than_its_layer_alone() -> None:
    full, last, lora = (memory.count(tiny_policy(train).network).layers for train in ("full", 1, "lora"))
    assert last[:2] == (0, 0) and last[2] > 0 and all(layer > 0 for layer in full)
    assert all(layer > 0 for layer in lora)


def test_counting_leaves_no_trace() -> None:
    policy = tiny_policy(1, checkpointing=2)
    before = policy.state()
    memory.count(policy.network)
    assert not policy.network.store.kept and policy.network.checkpointing == 2 and policy.network.tokens_per_batch == 2048
    assert all(torch.equal(value, before[name]) for name, value in policy.state().items())
    assert all(p.grad is None for p in policy.parameters())


def test_whole_sequences_and_packs_cost_about_the_same_a_token() -> None:
    """Each counted in its own tokens: a pack's hold the prompt once, padded sequences' hold it for every response."""
    packs, whole = (sum(memory.count(tiny_policy(engine=engine).network).layers) for engine in ("fast", "plain"))
    assert 0.8 < packs / whole < 1.4


# --- planning -------------------------------------------------------------------------------------------------------


PAPER = memory.llama(layers=10, width=512, heads=8, kv_heads=4, head_dim=64, ffn=1536, vocabulary=32000, tied=True)


def planned(gb: float, found: Footprint = PAPER, **changes: Any) -> memory.MemoryPlan:
    given: dict[str, Any] = {"state": 8, "copies": 1, "states": 0, "most": 8192, "longest": 600, "filled": 10**6}
    return memory.plan(found, available=round(gb * 1e9), **given | changes)


def test_the_peak_is_the_sum_of_its_parts_and_stays_within_the_memory() -> None:
    for gb in (1.5, 2, 3, 6, 12):
        plan = planned(gb)
        parts = ("weights", "gradients", "optimiser", "copies", "states", "passing", "activations", "holes")
        assert plan.peak == sum(getattr(plan, part) for part in parts)
        assert plan.fits and plan.peak <= gb * 1e9


def test_layers_are_checkpointed_only_where_memory_asks_for_it_and_no_more_than_it_asks_for() -> None:
    plans = [planned(gb) for gb in (40, 2.2, 1.9, 1.7, 1.5)]
    again = [plan.checkpointed for plan in plans]
    assert again[0] == 0 and again == sorted(again) and again[-1] > 0
    assert plans[0].tokens == 8192
    for gb, plan in zip((40, 2.2, 1.9, 1.7, 1.5), plans, strict=True):
        assert plan.tokens >= memory.LEAST
        if plan.checkpointed:
            assert planned(gb, checkpointing=plan.checkpointed - 1).tokens < memory.LEAST


def test_more_memory_never_means_fewer_tokens_at_as_many_checkpointed_layers() -> None:
    budgets = [planned(gb, checkpointing=0).tokens for gb in (2, 3, 4, 5, 6)]
    assert budgets == sorted(budgets) and budgets[0] < budgets[-1]


def test_the_longest_row_always_fits_into_the_budget_and_says_so_where_memory_does_not_hold_it() -> None:
    plan = planned(1.2, longest=5000)
    assert plan.tokens == 5000 and plan.checkpointed == plan.layers and not plan.fits
    advice = memory.relief(plan, PAPER.trained)
    assert f"holds {plan.peak / 1e9:.1f} GB" in advice and "5000 tokens" in advice and "1.2 GB can be had" in advice
    assert "adamw8bit" in advice and "train=lora" in advice and "max_response" in advice


def test_a_small_batch_is_expected_to_take_no_more_than_it_has() -> None:
    small, large = planned(40, filled=700), planned(40)
    assert small.expected == 700 and small.peak < large.peak and small.tokens == large.tokens


def test_checkpointed_layers_keep_their_input_alone() -> None:
    assert PAPER.kept(10) == 10 * PAPER.entrance + PAPER.around
    assert PAPER.kept(0) == sum(PAPER.layers) + PAPER.around
    assert PAPER.activations(4096, 10) < PAPER.activations(4096, 5) < PAPER.activations(4096, 0)


# --- working by a plan ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [9, 1, 1], [20, 1, 20], [1]], ids=str)
def test_parts_are_neighbours_within_the_budget_and_miss_nothing(sizes: list[int]) -> None:
    parts = consecutive(sizes, 10)
    assert [i for part in parts for i in part] == list(range(len(sizes)))
    assert all(len(part) == 1 or sum(sizes[i] for i in part) <= 10 for part in parts)
    joined = [sum(sizes[i] for i in (*a, b.start)) for a, b in zip(parts, parts[1:], strict=False)]
    assert all(total > 10 for total in joined), "a part takes what fits"


def step(policy: Any, rows: Any) -> dict[str, torch.Tensor]:
    """The gradient's direction, as what one step of plain descent moves."""
    before = policy.state()
    roles = {"current": policy, "reference": policy.reference()}
    GradientLearner(policy, methods.dpo(), roles, optimiser="sgd", lr=1.0, clip=0).descend(rows)
    return {name: value - before[name] for name, value in policy.state().items()}


def test_no_budget_changes_the_step() -> None:
    rows = tiny_policy().encode(tiny_records())[0]
    whole = tiny_policy()
    expected = step(whole, rows)
    for budget in (0, 40, 60, 100):
        policy = tiny_policy()
        policy.network.budget = budget
        assert 1 < len(policy.parts(rows)) <= 5 and all(type(part) is range for part in policy.parts(rows))
        for name, value in step(policy, rows).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    assert len(whole.parts(rows)) == 1


@pytest.mark.parametrize("train", ["full", "lora", 2])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_checkpointing_some_layers_changes_no_step_and_keeps_less(train: str | int, count: int) -> None:
    rows = tiny_policy().encode(tiny_records())[0]
    saving = tiny_policy(train)
    enable_checkpointing(saving.network, count)
    steps = step(tiny_policy(train), rows), step(saving, rows)
    for name, value in steps[0].items():
        torch.testing.assert_close(steps[1][name], value, rtol=1e-5, atol=1e-7)

    def held(policy: Any) -> int:
        found: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
            scored = policy.score(rows)
        return sum(found.values()) + 0 * len(scored.rows)

    assert held(saving) < held(tiny_policy(train))


def test_the_layers_counted_from_the_lowest_are_those_that_train() -> None:
    network = tiny_policy(2, trunk_bytes=0).network
    enable_checkpointing(network, 1)
    assert [layer.gradient_checkpointing for layer in network.lm.model.layers] == [False, True, False]
    enable_checkpointing(network, 0)
    assert network.checkpointing == 0 and not any(layer.gradient_checkpointing for layer in network.lm.model.layers)


def test_a_model_without_checkpointing_is_refused_by_name() -> None:
    policy = tiny_policy()
    policy.network.parts["decoder"] = torch.nn.Sequential()
    with pytest.raises(PreftuneError, match="LlamaForCausalLM does not support it"):
        enable_checkpointing(policy.network, 1)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny_folder(tmp_path / "model")
    lines = [{"prompt": record.prompt, "chosen": record.responses[0], "rejected": record.responses[1]} for record in tiny_records()]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def begin(world: Path, name: str, **settings: Any) -> api.Run:
    given: dict[str, Any] = {"samples": 0, "progress": False, "steps": 2, "lr": 0.01, "batch": 4}
    return api.train(str(world / "model"), "dpo", str(world / "pairs.jsonl"), out=world / name, **given | settings)


def test_a_run_writes_its_plan_and_a_resumed_one_works_by_it(world: Path) -> None:
    run = begin(world, "run", steps=4, callbacks=[lambda event: event.step == 2])
    written = json.loads((run.folder / "config.json").read_text())
    assert written["memory"]["tokens"] == run.policy.network.budget == 2048  # type: ignore[attr-defined]
    written["memory"] |= {"tokens": 77, "checkpointed": 2}
    (run.folder / "config.json").write_text(json.dumps(written))
    seen = []

    def look(event: Any) -> None:
        seen.append((event.learner.policy.network.budget, event.learner.policy.network.checkpointing))

    api.train(str(world / "model"), "dpo", str(world / "pairs.jsonl"), out=run.folder, resume=True, callbacks=[look],
              samples=0, progress=False, steps=4, lr=0.01, batch=4)  # fmt: skip
    assert seen == [(77, 2)] * 2


def test_little_memory_checkpoints_layers_and_leads_to_the_same_weights(world: Path) -> None:
    """The model is tiny, so the limit is: just below what a budget worth a pass takes with nothing computed again."""
    found = memory.count(tiny_policy().network)
    fixed = found.weights + found.gradients + 8 * found.trained + found.gradients + found.largest
    limit = (fixed + (1 + memory.HOLES) * found.activations(memory.LEAST, 1) + 1000) / 1e9
    free, tight = begin(world, "free"), begin(world, "tight", memory_gb=limit)
    assert free.policy.network.checkpointing == 0 and tight.policy.network.checkpointing == 1  # type: ignore[attr-defined]
    for name, value in free.policy.state().items():
        torch.testing.assert_close(tight.policy.state()[name], value, rtol=1e-4, atol=1e-6)


def test_a_limit_that_the_model_cannot_meet_is_refused_with_numbers(world: Path) -> None:
    with pytest.raises(PreftuneError, match=r"but 0\.1 MB can be had on cpu, needed a step that fits; .*train=lora about"):
        begin(world, "run", memory_gb=1e-4)


def test_a_dry_run_prints_the_plan(preftune: Run, world: Path) -> None:
    command = ["train", "dpo", "--model", str(world / "model"), "--data", str(world / "pairs.jsonl"), "--dry-run"]
    told = preftune(*command)[1]
    for word in ("weights", "gradients", "optimiser", "copies", "activations", "expected peak", "up to 2048 tokens", "0 of 3 layers"):
        assert word in told
    found = json.loads(preftune(*command, "--set", "optimiser=sgd", "--load", "checkpointing=2", "--json")[1])
    assert found["memory"]["optimiser"] == 0 and found["memory"]["checkpointed"] == 2
    assert found["memory_gb"] == found["memory"]["peak"] / 1e9


def test_a_table_has_no_plan_of_its_own() -> None:
    from preftune.policies.tabular import TableResponses, TabularPolicy
    from preftune.types import Rows

    rows = Rows(("a", "b"), (0, 0), TableResponses(torch.tensor([[0, 1], [1, 2]])), ranked=True)
    plan = api.plan(TabularPolicy(torch.zeros(3, dtype=torch.float64)), "dpo", rows)
    assert plan.memory is None and plan.memory_gb == 3 * 8 * 5 / 1e9  # itself, gradient, two moments, reference


def test_float16_on_a_processor_is_advised_against(world: Path) -> None:
    plan = api.plan(str(world / "model"), "dpo", str(world / "pairs.jsonl"), load={"dtype": "float16", "device": "cpu"})
    assert any("does not compute in float16" in note for note in plan.notes)


@pytest.mark.slow
def test_the_peak_of_a_process_is_near_its_plan() -> None:
    """30 % of resident memory over the loaded model; `benchmarks/memory.py` has the other cases."""
    benchmark = Path(__file__).parents[1] / "benchmarks" / "memory.py"
    ran = subprocess.run([sys.executable, str(benchmark), "--only", "small"], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "outside 30%: none" in ran.stdout
