"""Heads on language models: they read a response's own tokens, train beside the model and are no part of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune import methods, training
from preftune.collect.draw import given
from preftune.learner import GradientLearner
from preftune.log import Log
from preftune.policies.text import TextPolicy, TextResponses, load, save
from preftune.reference import frozen
from preftune.types import Head, Key, Loss, Method, PreftuneError, Rows, Scored, needs
from preftune.update import plain
from text_fixtures import Record, tiny_folder, tiny_policy, tiny_records

RELATIVE = 1e-5  # float32 sums in another order
KEY = Key.of(5)
HEADS = {"degree": Head(size=3, lr_scale=10.0, std=0.3), "value": Head(size=1, pool="last", std=0.3)}


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=RELATIVE, atol=RELATIVE * b.abs().max().item())


def headed(train: str | int = "full", *, heads: dict[str, Head] = HEADS, **options: Any) -> TextPolicy:
    policy = tiny_policy(train, **options)
    policy.attach(heads, KEY)
    return policy


def encoded(policy: TextPolicy, n: int = 5) -> Rows:
    return policy.encode(tiny_records(n))[0]


def plainly(policy: TextPolicy, rows: Rows, name: str) -> Tensor:
    """Outputs [B, K, C] the plain way: one whole sequence at a time, the states where the response's tokens stand."""
    linear, decoder = policy.heads[name].linear, policy.network.parts["decoder"]
    table = []
    for prompt, row in zip(rows.prompt, rows.response.tokens, strict=True):
        for response in row:
            states = decoder(input_ids=torch.tensor([[*prompt, *response]])).last_hidden_state[0, len(prompt) :]
            assert len(states) == len(response)
            table.append(linear(states.mean(0) if HEADS[name].pool == "mean" else states[-1]))
    return torch.stack(table).reshape(*rows.response.shape, -1).double()


def entropy(s: Scored) -> Tensor:
    """Cross-entropy of column k of the head "degree" with degree k, averaged over the columns, [B]."""
    return -torch.stack([s.heads["degree"].log_softmax(2)[:, k, k] for k in range(s.logp.shape[1])], 1).mean(1)


def slopes(policy: TextPolicy, loss: Tensor) -> dict[str, Tensor | None]:
    live = policy.live()
    return dict(zip(live, torch.autograd.grad(loss, list(live.values()), allow_unused=True), strict=True))


# --- what they read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_a_head_reads_the_states_at_the_responses_own_tokens(engine: str, train: str | int) -> None:
    """Mean and last, with the end of turn and without the prompt; the values and all gradients of the plain computation."""
    policy = headed(train, engine=engine)
    same = [Record(f"s{i}", "the value", [f" is {'very ' * i}good", " no"], ranked=True) for i in range(3)]  # one prompt
    rows, _ = policy.encode([*tiny_records(), *same])
    for name, head in HEADS.items():
        ours, theirs = policy.score(rows).heads[name], plainly(policy, rows, name)
        assert ours.dtype == torch.float64 and ours.shape == (8, 2, head.size)
        assert close(ours, theirs)
        for mine, his in zip(slopes(policy, ours.square().sum()).values(), slopes(policy, theirs.square().sum()).values(), strict=True):
            assert (mine is None and his is None) or close(mine, his)


def test_one_token_responses_have_the_state_of_that_token() -> None:
    for train in ("full", 1):
        policy = headed(train)
        rows = Rows(id=("a",), prompt=[(5, 6, 7)], response=TextResponses((((9,), (9, 4)),)))
        assert all(close(policy.score(rows).heads[name], plainly(policy, rows, name)) for name in HEADS)


def test_the_last_position_that_the_model_knows_is_enough() -> None:
    policy = headed()
    rows = Rows(id=("a",), prompt=[tuple(range(300))], response=TextResponses(((tuple(range(212)),),)))
    assert close(policy.score(rows).heads["value"], plainly(policy, rows, "value"))


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("train", ["full", 1])
def test_log_probs_do_not_feel_that_heads_are_there(engine: str, train: str | int) -> None:
    """One token more runs through the model, so matrices have other shapes: the last bits may differ, no more."""
    bare, policy = tiny_policy(train, engine=engine), headed(train, engine=engine)
    rows = encoded(bare)
    for _ in range(2):  # with the states of a frozen trunk computed, then kept
        with_heads, without = policy.score(rows), bare.score(rows)
        torch.testing.assert_close(with_heads.logp, without.logp, rtol=1e-6, atol=0)
        assert torch.equal(with_heads.length, without.length)
    policy.attach({}, KEY)
    policy.network.store.kept.clear()
    assert torch.equal(policy.score(rows).logp, without.logp) and policy.score(rows).heads == {}


def test_states_of_the_trunk_with_and_without_heads_are_kept_apart() -> None:
    """Heads need the state at one token more; a response that is another one plus a token must not be mistaken for it."""
    for engine in ("fast", "plain"):
        policy = headed(1, engine=engine, trunk_tokens=0)
        rows = Rows(id=("a",), prompt=[(5, 6, 7)], response=TextResponses((((9, 4), (9, 4, 4), (9, 4, 4, 4)),)))
        for scoring in (policy, policy.copy(), policy, policy.copy()):
            truth = tiny_policy(1, engine=engine).score(rows).logp
            assert close(scoring.score(rows).logp, truth)
        assert close(policy.score(rows).heads["degree"], plainly(policy, rows, "degree"))


def test_absent_responses_have_outputs_of_zero() -> None:
    policy = headed()
    rows, _ = policy.encode([Record("a", "x", ["one", "two"]), Record("b", "y", ["three"])])
    outputs = policy.score(rows).heads["degree"]
    assert not outputs[1, 1].any() and outputs[1, 0].all() and outputs[0].all()
    nobody = rows.replace(present=torch.zeros(2, 2, dtype=torch.bool))
    assert not policy.score(nobody).heads["degree"].any() and policy.score(nobody).heads["degree"].shape == (2, 2, 3)


def test_gradient_checkpointing_changes_no_gradient_of_a_head(tmp_path: Path) -> None:
    tiny_folder(tmp_path)
    plain_one, saving = load(tmp_path), load(tmp_path, checkpointing=True)
    found = []
    for policy in (plain_one, saving):
        policy.attach(HEADS, KEY)
        found.append(slopes(policy, entropy(policy.score(encoded(policy))).sum()))
    for name, slope in found[0].items():
        assert (slope is None and found[1][name] is None) or close(found[1][name], slope)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_in_16_bits_a_head_still_works_in_32(train: str, tmp_path: Path) -> None:
    """Its outputs are the float32 product of the states, whatever these are in; a product in bfloat16 would be rounded to 8 bits."""
    policy = load(tiny_folder(tmp_path), dtype="bfloat16", train=train, device="cpu")
    policy.attach(HEADS, KEY)
    rows = encoded(policy)
    linear = policy.heads["degree"].linear
    assert linear.weight.dtype == torch.float32
    found = policy.run(policy.network.measure, [(rows.prompt[0], rows.response.tokens[0][0])], states=True).states[0]
    assert found.dtype == (torch.bfloat16 if train == "lora" else torch.float32)
    right = found.double().mean(0) @ linear.weight.double().T + linear.bias.double()
    alone = policy.score(rows.take([0]).replace(response=rows.response.take([0], [0])))
    torch.testing.assert_close(alone.heads["degree"][0, 0], right, rtol=1e-5, atol=1e-6)
    gradients = slopes(policy, entropy(policy.score(rows)).sum())
    trunk = [slope for name, slope in gradients.items() if not name.startswith("heads.")]
    assert any(slope is not None and slope.any() for slope in trunk)
    assert all(slope.isfinite().all() for slope in gradients.values() if slope is not None)


# --- where their weights come from and where they go ----------------------------------------------------------------


def test_weights_are_drawn_from_the_key_and_from_nothing_else() -> None:
    first = headed()
    policy = tiny_policy()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    policy.attach({"degree": HEADS["degree"]}, KEY)
    assert torch.equal(torch.get_rng_state(), before)  # torch's generator did not move
    weight = policy.heads["degree"].linear.weight
    assert torch.equal(weight, first.heads["degree"].linear.weight)  # nor do other heads or torch's seed matter
    assert not policy.heads["degree"].linear.bias.any() and weight.shape == (3, 32) and weight.dtype == torch.float32
    assert abs(float(weight.detach().std()) - 0.3) < 0.3 * 3 / math.sqrt(2 * 96)  # three standard errors
    policy.attach({"degree": HEADS["degree"]}, Key.of(6))
    assert not torch.equal(policy.heads["degree"].linear.weight, weight)


def test_a_head_of_zeros_gives_ln_n_and_no_gradient_to_the_model() -> None:
    policy = headed(heads={"degree": Head(size=3, std=0.0)})
    s = policy.score(encoded(policy))
    assert (entropy(s) == torch.full((3,), 1 / 3, dtype=torch.float64).log().neg()[0]).all()
    gradients = slopes(policy, entropy(s).sum())
    assert gradients["heads.degree.weight"].any() and gradients["heads.degree.bias"].any()  # type: ignore[union-attr]
    assert not any(slope is not None and slope.any() for name, slope in gradients.items() if not name.startswith("heads."))


def test_the_loss_of_a_head_of_other_weights_reaches_the_whole_model() -> None:
    policy = headed()
    gradients = slopes(policy, entropy(policy.score(encoded(policy))).sum())
    reached = {name for name, slope in gradients.items() if slope is not None and slope.any()}
    assert reached == set(gradients) - {"heads.value.weight", "heads.value.bias"}


@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_frozen_copies_the_fingerprint_and_the_saved_model_know_no_heads(train: str | int, tmp_path: Path) -> None:
    bare, policy = tiny_policy(train), headed(train)
    rows = encoded(policy)
    names = {"heads.degree.weight", "heads.degree.bias", "heads.value.weight", "heads.value.bias"}
    assert set(policy.state()) - set(bare.state()) == names == set(policy.live()) - set(policy.weights())
    assert len(policy.parameters()) == len(bare.parameters()) + 4
    assert policy.fingerprint() == bare.fingerprint()
    before = policy.reference()
    for one in (before, policy.copy(), before.lerp(policy, 0.5), policy.lerp(before, 0.5)):
        assert one.heads == {} and set(one.state()) == set(bare.state())
        assert one.score(rows).heads == {} and len(one.parameters()) == len(bare.parameters())
    before.load(policy.state())  # which leaves the heads out
    save(policy, tmp_path / "with", "card")
    save(bare, tmp_path / "without", "card")
    files = [{f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("with", "without")]
    assert files[0] == files[1]


def test_a_state_comes_back_with_its_heads() -> None:
    policy, other = headed(), headed(seed=1, heads=HEADS | {"degree": Head(size=3, std=0.1)})
    rows = encoded(policy)
    other.load(policy.state())
    assert torch.equal(other.score(rows).heads["degree"], policy.score(rows).heads["degree"])
    with pytest.raises(PreftuneError, match="do not belong"):
        tiny_policy().load(policy.state())
    with pytest.raises(PreftuneError, match="shape"):
        headed(heads=HEADS | {"degree": Head(size=4)}).load(policy.state())


def test_heads_of_a_frozen_policy_and_unknown_pools_are_refused() -> None:
    with pytest.raises(PreftuneError, match="frozen policy"):
        tiny_policy().copy().attach(HEADS, KEY)
    with pytest.raises(PreftuneError, match="pools by 'max'"):
        tiny_policy().attach({"degree": Head(size=2, pool="max")}, KEY)  # type: ignore[arg-type]


# --- in training ----------------------------------------------------------------------------------------------------


@needs(columns=2, labels=("ranked",), reference=True)
def with_degree(s: Scored) -> Loss:
    loss = methods.dpo().objective(s)
    return Loss(loss.row + 0.5 * entropy(s), {"degree": entropy(s).detach()})


@needs(columns=2, labels=("ranked",), reference=True, batch=True)
def coupled(s: Scored) -> Loss:
    """Depends on the batch through both: log-ratios and outputs are centred over all rows."""
    ratio = s.logratio[:, 0] - s.logratio[:, 1]
    outputs = s.heads["degree"][:, :, 0].sum(1)
    return Loss((ratio - ratio.mean() - 1) ** 2 + (outputs - outputs.mean()) ** 2 + entropy(s))


def method(objective: Any = with_degree) -> Method:
    return Method(objective, given, frozen, plain, heads={"degree": HEADS["degree"]})


def learner(composed: Method, policy: TextPolicy, **settings: Any) -> GradientLearner:
    roles = {"current": policy, "reference": policy.reference()}
    return GradientLearner(policy, composed, roles, **{"optimiser": "sgd", "lr": 0.01, "clip": 0.0} | settings)


@pytest.mark.parametrize("objective", [with_degree, coupled], ids=lambda f: f.__name__)
@pytest.mark.parametrize("train", ["full", 1])
def test_micro_batches_change_no_step(objective: Any, train: str | int) -> None:
    steps = []
    for size in (5, 2, 1):
        policy = tiny_policy(train)
        one = learner(method(objective), policy, micro_batch=size, lr=1.0)
        start = policy.state()
        one.descend(encoded(policy))
        steps.append({name: value - start[name] for name, value in policy.state().items()})
    assert steps[0]["heads.degree.weight"].any()
    for other in steps[1:]:
        for name, moved in steps[0].items():
            assert torch.allclose(other[name], moved, rtol=1e-4, atol=1e-4 * float(moved.abs().max()))  # differences of float32 weights


def test_a_head_learns_at_its_own_rate() -> None:
    moved = {}
    for scale in (1.0, 10.0):
        policy = tiny_policy()
        one = learner(replace(method(), heads={"degree": replace(HEADS["degree"], lr_scale=scale)}), policy)
        start = policy.state()
        one.descend(encoded(policy))
        moved[scale] = {name: value - start[name] for name, value in policy.state().items()}
    for name, move in moved[1.0].items():
        torch.testing.assert_close(moved[10.0][name], move * (10 if name.startswith("heads.") else 1), rtol=1e-3, atol=1e-6)


def test_one_head_is_trained_to_tell_the_columns_apart() -> None:
    policy = tiny_policy(1)
    one = learner(method(), policy, optimiser="adamw", lr=1e-3, weight_decay=0.0)
    rows = encoded(policy)
    found = [one.descend(rows)["degree"] for _ in range(40)]
    assert found[0] > 0.6 and found[-1] < 0.2


def test_a_resumed_run_goes_on_with_its_heads_bit_for_bit(tmp_path: Path) -> None:
    """Interrupted after three of six steps; moments and rates of the head's own group come back too."""

    def run(folder: Path, *, resume: bool = False, stop: int = 99) -> dict[str, Tensor]:
        folder.mkdir(exist_ok=True)
        policy = tiny_policy(tokens_per_batch=0)
        config = training.TrainConfig(steps=6, batch=3, micro_batch=2, lr=1e-3, save_every=1, weight_decay=0.01)
        until = lambda event: event.step >= stop
        feed = training.RowsFeed(encoded(policy))
        training.run(policy, method(), feed, config, folder, Log(folder, 6, progress=False), callbacks=[until], resume=resume)
        return policy.state()

    whole = run(tmp_path / "whole")
    half = run(tmp_path / "parts", stop=3)
    assert not torch.equal(half["heads.degree.weight"], whole["heads.degree.weight"])
    resumed = run(tmp_path / "parts", resume=True)
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)
