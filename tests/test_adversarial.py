"""Prompts moved in the space of embeddings: how a language model scores them, the attack that moves them, the methods that train so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune import methods
from preftune.learner import GradientLearner
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.policies.text import CachedReference, LogpCache, TextPolicy, load
from preftune.types import Head, Key, Method, Metrics, PreftuneError, Rows
from preftune.update import attack, away, within
from text_fixtures import Record, tiny_folder, tiny_model, tiny_policy, tiny_records

RELATIVE = 1e-5  # float32 sums in another order


def close(a: Tensor, b: Tensor, relative: float = RELATIVE) -> bool:
    return torch.allclose(a, b, rtol=relative, atol=relative * b.abs().max().item())


def encoded(policy: TextPolicy, n: int = 5) -> Rows:
    return policy.encode(tiny_records(n))[0]


def random_offsets(policy: TextPolicy, rows: Rows, size: float = 0.1) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [(size * torch.randn(o.shape, generator=draw)).requires_grad_() for o in policy.offsets(rows)]


def plainly(policy: TextPolicy, rows: Rows, offsets: list[Tensor]) -> Tensor:
    """Log-probs [B, K] the plain way: one whole sequence of moved embeddings at a time, all logits."""
    lm, table = policy.network.lm, []
    for prompt, offset, row in zip(rows.prompt, offsets, rows.response.tokens, strict=True):
        for response in row:
            points = lm.get_input_embeddings()(torch.tensor([[*prompt, *response]]))
            points = torch.cat([points[:, : len(prompt)] + offset, points[:, len(prompt) :]], 1)
            logp = lm(inputs_embeds=points).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
            table.append(logp.gather(1, torch.tensor(response)[:, None]).double().sum())
    return torch.stack(table).reshape(rows.response.shape)


# --- scores of moved prompts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_a_moved_prompt_scores_as_its_moved_embeddings_do(engine: str, train: str | int) -> None:
    """Values, gradients with respect to the offsets, and gradients of the weights; with a frozen trunk as without."""
    policy = tiny_policy(train, engine=engine)
    rows = encoded(policy)
    offsets = random_offsets(policy, rows)
    ours, theirs = policy.score(policy.perturb(rows, offsets)).logp, plainly(policy, rows, offsets)
    assert close(ours, theirs) and not close(ours, policy.score(rows).logp)
    leaves = [*offsets, *policy.parameters()]
    for mine, his in zip(torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(theirs.sum(), leaves), strict=True):
        assert close(mine, his, 1e-4)  # of gradients through three layers


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_an_offset_of_zero_changes_nothing(engine: str, train: str | int) -> None:
    policy = tiny_policy(train, engine=engine)
    rows = encoded(policy)
    clean, moved = policy.score(rows).logp, policy.score(policy.perturb(rows, policy.offsets(rows))).logp
    assert close(moved, clean) if train == 1 else torch.equal(moved, clean)  # in one piece where the trunk is otherwise cut off


def test_one_prompt_with_two_offsets_is_two_prompts() -> None:
    """Equal tokens are no reason to run it once; and a clean row beside them stays clean."""
    for engine in ("fast", "plain"):
        policy = tiny_policy(engine=engine)
        rows, _ = policy.encode([Record(f"s{i}", "the value", [" is good", " no"], ranked=True) for i in range(3)])
        offsets = random_offsets(policy, rows)
        moved = policy.perturb(rows, offsets)
        expected = plainly(policy, rows, offsets)
        assert close(policy.score(moved).logp, expected) and not close(expected[0], expected[1])
        mixed = rows.replace(prompt=[rows.prompt[0], *moved.prompt[1:]])
        assert close(policy.score(mixed).logp, torch.cat([policy.score(rows).logp[:1], expected[1:]]))
        assert close(policy.score(moved.take([2, 0])).logp, expected[[2, 0]])


def test_heads_states_and_collision_feel_the_offset() -> None:
    policy = tiny_policy()
    policy.attach({"degree": Head(size=2, std=0.3)}, Key.of(0))
    rows = encoded(policy)
    wants = ("segments", "states", "collision")
    clean = policy.score(rows, wants)
    moved = policy.score(policy.perturb(rows, random_offsets(policy, rows)), wants)
    assert not close(moved.heads["degree"], clean.heads["degree"])
    for name in ("states", "collision", "segment_logp"):
        assert getattr(moved, name).shape == getattr(clean, name).shape and not close(getattr(moved, name), getattr(clean, name))


def test_what_is_kept_of_clean_prompts_is_neither_read_nor_written(tmp_path: Path) -> None:
    policy = tiny_policy(1)
    rows = encoded(policy)
    moved = policy.perturb(rows, [o.detach() for o in random_offsets(policy, rows)], everywhere=True)
    policy.score(moved)
    assert not policy.network.store.kept  # no states of the frozen trunk
    cached = CachedReference(policy.reference(), LogpCache(tmp_path / "c.sqlite"))
    clean = cached.score(rows).logp
    kept = dict(policy.network.store.kept)
    under_attack = cached.score(moved).logp
    assert (cached.hits, cached.misses, len(cached.cache)) == (0, 10, 10)
    assert list(policy.network.store.kept) == list(kept) and all(policy.network.store.kept[key] is kept[key] for key in kept)
    assert not close(under_attack, clean) and close(under_attack, policy.reference().score(moved).logp)
    assert torch.equal(cached.score(rows).logp, clean) and torch.equal(policy.reference().score(rows).logp, clean)


def test_frozen_copies_score_clean_prompts_unless_the_offset_is_meant_for_them_too(tmp_path: Path) -> None:
    policy = tiny_policy()
    rows = encoded(policy)
    offsets = [o.detach() for o in random_offsets(policy, rows)]
    cached = CachedReference(policy.reference(), LogpCache(tmp_path / "c.sqlite"))
    clean, expected = cached.score(rows).logp, plainly(policy, rows, offsets).detach()
    for frozen in (policy.reference(), policy.copy(), cached):
        assert torch.equal(frozen.score(policy.perturb(rows, offsets)).logp, clean)
        assert close(frozen.score(policy.perturb(rows, offsets, everywhere=True)).logp, expected)
    assert cached.hits == 10  # read for the moved rows, since their reference is the clean one


def test_moving_a_moved_prompt_begins_from_the_clean_one() -> None:
    policy = tiny_policy()
    rows = encoded(policy)
    offsets = random_offsets(policy, rows)
    twice = policy.perturb(policy.perturb(rows, random_offsets(policy, rows, 0.5)), offsets)
    assert torch.equal(policy.score(twice).logp, policy.score(policy.perturb(rows, offsets)).logp)


def test_the_scale_is_the_mean_length_of_an_embedding() -> None:
    policy = tiny_policy()
    table = policy.network.lm.get_input_embeddings().weight.detach().double()
    assert abs(policy.embedding_scale() - float(table.norm(dim=1).mean())) < 1e-6
    assert abs(policy.copy().embedding_scale() - policy.embedding_scale()) < 1e-12


def test_gradient_checkpointing_changes_no_gradient_of_an_offset(tmp_path: Path) -> None:
    tiny_folder(tmp_path)
    found = []
    for saving in (False, True):
        policy = load(tmp_path, checkpointing=saving)
        rows = encoded(policy)
        offsets = random_offsets(policy, rows)
        found.append(torch.autograd.grad(policy.score(policy.perturb(rows, offsets)).logp.sum(), offsets))
    assert all(close(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("train", ["full", "lora"])
def test_in_16_bits_an_offset_still_has_a_gradient_and_a_step_of_the_attack_an_effect(train: str, tmp_path: Path) -> None:
    policy = load(tiny_folder(tmp_path), dtype="bfloat16", train=train, device="cpu")
    rows = encoded(policy)
    offsets = policy.offsets(rows)
    assert offsets[0].dtype == torch.float32
    _, before, after = attack(policy, away(rows), 5, 5e-3, 0.1 * policy.embedding_scale())
    assert after.mean() < before.mean() - 0.05


def test_other_architectures_can_be_attacked() -> None:
    """Learned positions (GPT-2) and embeddings that the decoder scales (Gemma 2)."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 400, "bos_token_id": None, "eos_token_id": 0, "initializer_range": 0.2}
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **small)).eval()
    gemma = Gemma2ForCausalLM(Gemma2Config(num_key_value_heads=1, sliding_window=8, pad_token_id=None, **shape, **small)).eval()
    for lm in (gpt2, gemma):
        policy = tiny_policy(model=lm)
        rows = encoded(policy)
        offsets = random_offsets(policy, rows)
        assert close(policy.score(policy.perturb(rows, offsets)).logp, plainly(policy, rows, offsets))


def test_offsets_of_other_shapes_and_samples_of_moved_prompts_are_refused() -> None:
    policy = tiny_policy()
    rows = encoded(policy)
    offsets = policy.offsets(rows)
    for wrong in (offsets[:-1], [offsets[0][:-1], *offsets[1:]], [offsets[0][:, :-1], *offsets[1:]]):
        with pytest.raises(PreftuneError, match="one vector for every token"):
            policy.perturb(rows, wrong)
    with pytest.raises(PreftuneError, match="sample before perturbing"):
        policy.sample(policy.perturb(rows, offsets), 1, Key.of(0))


def test_a_model_whose_embeddings_cannot_be_moved_is_refused() -> None:
    """One that cuts the gradient between two layers, as layers without a backward pass do, and one that reads ids as well."""
    model = tiny_model()
    model.model.layers[0].register_forward_hook(lambda module, inputs, output: output.detach())
    policy = tiny_policy(model=model)
    with pytest.raises(PreftuneError, match="no gradient comes back.*without quantisation"):
        policy.perturb(encoded(policy), policy.offsets(encoded(policy)))

    model = tiny_model()
    whole = model.model.forward

    def reads_ids(*args: Any, input_ids: Tensor | None = None, **more: Any) -> Any:
        out = whole(*args, input_ids=input_ids, **more)
        out.last_hidden_state = out.last_hidden_state if input_ids is None else out.last_hidden_state * (1 + input_ids[..., None] % 2)
        return out

    model.model.forward = reads_ids
    policy = tiny_policy(model=model)
    with pytest.raises(PreftuneError, match="more of a token than its embedding"):
        policy.perturb(encoded(policy), policy.offsets(encoded(policy)))


# --- the attack -----------------------------------------------------------------------------------------------------


def test_offsets_stay_within_the_radius_and_reach_it() -> None:
    """Ten steps of 2e-3 reach 0.02 sqrt(32) = 0.11 at most; the radius is a twentieth of a mean length of about 1.1."""
    policy = tiny_policy()
    rows = encoded(policy)
    limit = 0.05 * policy.embedding_scale()
    for step, share in ((2e-3, 1.0), (1e-4, 0.0)):
        offsets, _, _ = attack(policy, away(rows), 10, step, limit)
        lengths = torch.cat([offset.norm(dim=1) for offset in offsets])
        assert (lengths <= limit + 1e-6).all() and bool(lengths.all())
        assert float((lengths > 0.999 * limit).double().mean()) >= 0.8 if share else lengths.max() < 10 * step * 32**0.5 + 1e-6


def test_the_first_step_is_the_sign_of_the_gradient_of_the_cross_entropy() -> None:
    policy = tiny_policy()
    rows = encoded(policy)
    offsets = [o.requires_grad_() for o in policy.offsets(rows)]
    slopes = torch.autograd.grad(plainly(policy, rows, offsets)[:, 1].sum(), offsets)
    found, _, _ = attack(policy, away(rows), 1, 1e-3, 1.0)
    for offset, slope in zip(found, slopes, strict=True):
        steep = slope.abs() > 1e-4 * slope.abs().max()  # where rounding cannot turn the sign
        assert steep.double().mean() > 0.95 and torch.equal(offset[steep], 1e-3 * slope.sign()[steep])
    short, _, _ = attack(policy, away(rows), 1, 1e-3, 1e-3)
    for offset, slope in zip(short, found, strict=True):
        torch.testing.assert_close(offset, 1e-3 * slope / slope.norm(dim=1, keepdim=True))


def test_the_attack_lowers_the_cross_entropy_of_the_away_response_step_by_step() -> None:
    for train in ("full", 1):
        policy = tiny_policy(train)
        rows = encoded(policy, 3)
        entropies = []
        for steps in (1, 2, 3, 5, 8):
            _, before, after = attack(policy, away(rows), steps, 1e-3, 0.05 * policy.embedding_scale())
            assert close(before, -policy.score(rows).mean_logp[:, 1])
            entropies.append(float(after.mean()))
        assert float(before.mean()) > entropies[0] and all(b < a for a, b in zip(entropies, entropies[1:], strict=False))
        assert (after < before).all() and entropies[-1] < float(before.mean()) - 0.05


def test_the_attack_leaves_the_gradients_of_the_weights_alone() -> None:
    policy = tiny_policy()
    kept = [torch.full_like(p, 7.0) for p in policy.parameters()]
    for p, grad in zip(policy.parameters(), kept, strict=True):
        p.grad = grad
    start = policy.state()
    attack(policy, away(encoded(policy)), 3, 1e-3, 1.0)
    assert all(p.grad is grad and (grad == 7).all() for p, grad in zip(policy.parameters(), kept, strict=True))
    assert all(torch.equal(value, start[name]) for name, value in policy.state().items())


def test_a_projection_shortens_what_is_too_long_and_nothing_else() -> None:
    offset = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(within(1.0, offset), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert not within(0.0, offset).any()


# --- the update -----------------------------------------------------------------------------------------------------


def learner(method: Method, policy: TextPolicy, **settings: Any) -> GradientLearner:
    roles = {"current": policy, "reference": tiny_policy(seed=1).reference()}
    return GradientLearner(policy, method, roles, **{"optimiser": "sgd", "lr": 1e-3, "clip": 0.0, "micro_batch": 100} | settings)


def moved(method: Method, *, train: str | int = "full", rows: Rows | None = None, **settings: Any) -> tuple[dict[str, Tensor], Metrics]:
    """What one step does to the weights, and what it tells."""
    policy = tiny_policy(train, tokens_per_batch=0)
    one, start = learner(method, policy, **settings), policy.state()
    rows = encoded(policy) if rows is None else rows
    told = method.update(one, lambda opponent: rows)
    return {name: value - start[name] for name, value in policy.state().items()}, told


STRONG: dict[str, Any] = {"step": 3e-3, "eps": 0.1}


@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_without_steps_it_is_ipo_avg_bit_for_bit(train: str | int) -> None:
    ours, theirs = moved(methods.c_advipo(0.25, iterations=0), train=train), moved(methods.ipo_avg(0.25), train=train)
    assert ours[1] == theirs[1] and all(torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])
    assert not torch.equal(
        *(moved(m, train=1)[0]["model.layers.2.mlp.up_proj.weight"] for m in (methods.c_advipo(**STRONG), methods.ipo_avg(0.25)))
    )


@pytest.mark.parametrize("train", ["full", 1])
@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_a_radius_that_vanishes_leaves_ipo_avg(train: str | int, eps: float) -> None:
    ours, theirs = moved(methods.c_advipo(0.25, eps=eps), train=train), moved(methods.ipo_avg(0.25), train=train)
    for name, value in theirs[0].items():
        assert close(ours[0][name], value, 1e-3)  # differences of float32 weights
    assert abs(ours[1]["loss"] - theirs[1]["loss"]) < 1e-5 * theirs[1]["loss"]
    assert abs(ours[1]["attack_nll_before"] - ours[1]["attack_nll_after"]) < 1e-5


@pytest.mark.parametrize("make", [methods.c_advipo, methods.c_advul], ids=lambda f: f.__name__)
def test_the_descent_takes_the_offset_as_a_constant(make: Any) -> None:
    """The step is that of the objective on rows with the attack's offset, found beforehand; nothing flows through the search for it."""
    method = make(**STRONG)
    policy = tiny_policy(tokens_per_batch=0)
    rows = encoded(policy)
    offsets, before, after = attack(policy, away(rows), 10, 3e-3, 0.1 * policy.embedding_scale())
    one, start = learner(method, policy), policy.state()
    expected = one.descend(policy.perturb(rows, offsets))
    change, told = moved(method)
    assert all(torch.equal(change[name], value - start[name]) for name, value in policy.state().items())
    assert told == {**expected, **{name: told[name] for name in ("attack_nll_before", "attack_nll_after", "attack_at_radius")}}
    assert abs(told["attack_nll_before"] - float(before.mean())) < 1e-12 and abs(told["attack_nll_after"] - float(after.mean())) < 1e-12
    assert told["attack_nll_after"] < told["attack_nll_before"] and 0 < told["attack_at_radius"] <= 1


def test_the_loss_reads_the_policy_on_moved_prompts_and_the_reference_on_clean_or_moved_ones() -> None:
    policy, reference = tiny_policy(tokens_per_batch=0), tiny_policy(seed=1)
    rows = encoded(policy)
    offsets, _, _ = attack(policy, away(rows), 10, 3e-3, 0.1 * policy.embedding_scale())
    with torch.no_grad():
        ours, length = plainly(policy, rows, offsets), policy.score(rows).length
        felt = {"clean": plainly(reference, rows, policy.offsets(rows)), "perturbed": plainly(reference, rows, offsets)}
    for where, theirs in felt.items():
        ratio = (ours - theirs) / length
        expected = float(((ratio[:, 0] - ratio[:, 1] - 1 / (2 * 0.25)) ** 2).mean())
        told = moved(methods.c_advipo(reference=where, **STRONG))[1]  # type: ignore[arg-type]
        assert abs(told["loss"] - expected) < 1e-5 * expected
    assert not close(felt["clean"], felt["perturbed"], 1e-3)


def test_micro_batches_make_the_same_attack_and_the_same_step() -> None:
    """Each response runs alone here, so that no rounding turns the sign of a slope near 0."""
    whole, told = moved(methods.c_advipo(**STRONG))
    for size in (1, 3):
        parts, other = moved(methods.c_advipo(**STRONG), micro_batch=size)
        assert all(close(parts[name], value, 1e-4) for name, value in whole.items())
        assert all(abs(other[name] - told[name]) <= 1e-9 + 1e-5 * abs(told[name]) for name in told)


def test_both_columns_of_a_row_share_one_moved_prompt() -> None:
    """There is one prompt a row, so it cannot tokenise differently for the two responses."""
    policy = tiny_policy()
    rows = encoded(policy)
    moved_rows = policy.perturb(rows, policy.offsets(rows))
    pairs = policy.pairs(moved_rows)
    assert all(pairs[2 * i][0] is pairs[2 * i + 1][0] is moved_rows.prompt[i] for i in range(5))


def test_tables_singles_and_unranked_rows_are_refused() -> None:
    rows = Rows(("a",), (0,), TableResponses(torch.tensor([[0, 1]])), ranked=True)
    table = TabularPolicy(torch.zeros(1, 2))
    one = GradientLearner(table, methods.c_advul(), {"current": table})
    with pytest.raises(PreftuneError, match="TabularPolicy has none.*language model"):
        one.method.update(one, lambda opponent: rows)
    policy = tiny_policy()
    pairs = encoded(policy)
    present = torch.ones(5, 2, dtype=torch.bool)
    present[3, 1] = False
    for wrong, said in [
        (pairs.replace(present=present), "rows \\['row-3'\\] with one response"),
        (pairs.replace(ranked=False), "no ranked pairs"),
        (pairs.replace(response=pairs.response.take(columns=[0])), "no ranked pairs"),
    ]:
        with pytest.raises(PreftuneError, match=said):
            moved(methods.c_advul(), rows=wrong)


def test_training_under_attack_makes_the_attack_weaker() -> None:
    """Seven steps of each method on the same rows, then the same attack: what it leaves of the safe response's lead per token."""

    def lead(method: Method) -> tuple[float, float]:
        policy = tiny_policy()
        rows = encoded(policy)
        one = learner(method, policy, optimiser="adamw", lr=2e-3)
        for _ in range(7):
            method.update(one, lambda opponent: rows)
        offsets, _, _ = attack(policy, away(rows), 3, 5e-3, 0.1 * policy.embedding_scale())
        with torch.no_grad():
            means = [policy.score(some).mean_logp for some in (rows, policy.perturb(rows, offsets))]
        return tuple(float((mean[:, 0] - mean[:, 1]).mean()) for mean in means)  # type: ignore[return-value]

    (calm, calm_hit), (_, hard_hit) = lead(methods.ipo_avg(0.25)), lead(methods.c_advipo(0.25, 3, step=5e-3, eps=0.1))
    assert calm_hit < calm - 0.5 and hard_hit > calm_hit + 0.5
