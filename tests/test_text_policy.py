"""Language models as policies, on tiny random models: the same numbers whatever the layout, and copies that stay what they were."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.policies.text import TextPolicy, TextResponses, load, merge_adapter, save
from preftune.policies.text.generate import Choice
from preftune.types import Key, Policy, PreftuneError, Rows
from text_fixtures import Record, tiny_folder, tiny_model, tiny_policy, tiny_records, tiny_tokenizer

RELATIVE = 1e-5  # float32 sums in another order


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the rounding of float32 sums."""
    return torch.allclose(a, b, rtol=RELATIVE, atol=RELATIVE * b.abs().max().item())


def truth(policy: TextPolicy, rows: Rows) -> torch.Tensor:
    """Log-probs [B, K] the plain way: one whole sequence at a time, all logits, float64 softmax."""
    out = torch.zeros(rows.response.shape, dtype=torch.float64)
    for b, prompt in enumerate(rows.prompt):
        for k, response in enumerate(rows.response.tokens[b]):
            ids = torch.tensor([[*prompt, *response]])
            with torch.no_grad():
                logp = policy.network.lm(input_ids=ids).logits[0].double().log_softmax(-1)
            out[b, k] = sum(logp[len(prompt) - 1 + t, token] for t, token in enumerate(response))
    return out


def step(policy: TextPolicy, rows: Rows, lr: float = 0.01) -> None:
    """One plain gradient step on the first column."""
    loss = -policy.score(rows).logp[:, 0].mean()
    for p, g in zip(policy.parameters(), torch.autograd.grad(loss, policy.parameters()), strict=True):
        p.data -= lr * g


def gradients(policy: TextPolicy, rows: Rows) -> list[torch.Tensor]:
    """Of the margin summed over rows."""
    logp = policy.score(rows).logp
    return list(torch.autograd.grad((logp[:, 0] - logp[:, 1]).sum(), policy.parameters()))


def encoded(policy: TextPolicy, n: int = 5) -> Rows:
    return policy.encode(tiny_records(n))[0]


# --- scoring --------------------------------------------------------------------------------------------------------


def test_the_policy_speaks_the_protocol() -> None:
    policy: Policy = tiny_policy()
    assert policy.uniform == {"temperature": 2.0, "top_k": 10} and policy.independent is False


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("train", ["full", 1])
def test_scores_equal_the_plain_computation(engine: str, train: str | int) -> None:
    policy = tiny_policy(train, engine=engine)
    rows = encoded(policy)
    scored = policy.score(rows)
    assert scored.logp.dtype == torch.float64 and scored.logp.requires_grad
    assert close(scored.logp.detach(), truth(policy, rows))
    assert scored.length.tolist() == [[len(tokens) for tokens in row] for row in rows.response.tokens]
    tokens = policy.score_tokens(rows)
    assert all(v.dtype == torch.float32 for row in tokens for v in row)
    assert torch.equal(torch.stack([torch.stack([v.double().sum() for v in row]) for row in tokens]), scored.logp)


def test_padding_side_changes_nothing_bit_for_bit() -> None:
    for engine in ("fast", "plain"):
        left, right = (tiny_policy(engine=engine) for _ in range(2))
        left.tokenizer.padding_side, right.tokenizer.padding_side = "left", "right"
        assert torch.equal(left.score(encoded(left)).logp, right.score(encoded(right)).logp)
        a, b = (p.sample(encoded(p), 2, Key.of(1), max_new_tokens=6) for p in (left, right))
        assert a == b


def test_alone_a_score_does_not_depend_on_the_batch_bit_for_bit() -> None:
    for train in ("full", 2):
        policy = tiny_policy(train, tokens_per_batch=0)
        rows = encoded(policy)
        whole = policy.score(rows).logp
        policy.network.store.kept.clear()
        policy.network.last = None
        singles = torch.cat([policy.score(rows.take([i])).logp for i in range(len(rows))])
        assert torch.equal(whole, singles)
        assert torch.equal(policy.score(rows.take([3, 1])).logp, whole[[3, 1]])


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_batch_composition_micro_batches_and_order_change_nothing_but_rounding(engine: str) -> None:
    policy = tiny_policy(engine=engine)
    same = [Record(f"s{i}", "the value", [f" is {'very ' * i}good", " no"]) for i in range(6)]  # one prompt, ragged responses
    rows, _ = policy.encode([*tiny_records(), *same])
    whole, slope = policy.score(rows).logp, gradients(policy, rows)
    for budget in (0, 40, 10_000):
        policy.network.tokens_per_batch = budget
        assert close(policy.score(rows).logp, whole)
        order = [7, 2, 0, 9, 10, 1, 3, 8, 4, 6, 5]
        assert close(policy.score(rows.take(order)).logp, whole[order])
        parts = [gradients(policy, rows.take(part)) for part in ([0, 5], [1, 2, 3, 4], [6, 7, 8, 9, 10])]
        for total, *pieces in zip(slope, *parts, strict=True):
            assert close(sum(pieces), total)


def test_both_layouts_give_the_same_gradients() -> None:
    shared, padded = tiny_policy(engine="fast"), tiny_policy(engine="plain")
    rows = encoded(shared)
    for a, b in zip(gradients(shared, rows), gradients(padded, rows), strict=True):
        assert close(a, b)


def test_absent_responses_score_zero_with_length_one_and_are_not_run() -> None:
    policy = tiny_policy()
    records = [Record("a", "x", ["one", "two"]), Record("b", "y", ["three"])]
    rows, _ = policy.encode(records)
    scored = policy.score(rows)
    assert scored.logp[1, 1] == 0 and scored.length[1, 1] == 1
    assert policy.score_tokens(rows)[1][1].numel() == 0
    assert close(scored.logp[:, 0], policy.score(policy.encode([Record(r.id, r.prompt, r.responses[:1]) for r in records])[0]).logp[:, 0])


def test_one_token_responses_read_the_last_prompt_position() -> None:
    policy = tiny_policy(1)
    rows = Rows(id=("a",), prompt=[(5, 6, 7)], response=TextResponses((((9,), (9, 4)),)))
    assert close(policy.score(rows).logp.detach(), truth(policy, rows))


def test_chunks_of_the_head_change_no_value_and_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused head keeps slopes of all tokens, of some, or of none; the plain one recomputes its chunks."""
    policy, plain = tiny_policy(), tiny_policy(engine="plain")
    rows = encoded(policy)
    value, slope = policy.score(rows).logp, gradients(policy, rows)
    monkeypatch.setattr("preftune.policies.text.logprob.CHUNK", 400 * 7)
    monkeypatch.setattr("preftune.policies.text.head.CHUNK", 400 * 7)
    for kept in (1 << 27, 400 * 4 * 30, 0):
        monkeypatch.setattr("preftune.policies.text.head.KEEP", kept)
        for one in (policy, plain):
            assert close(one.score(rows).logp, value)
            assert all(close(a, b) for a, b in zip(gradients(one, rows), slope, strict=True))


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    tiny_folder(tmp_path)
    plain, saving = load(tmp_path), load(tmp_path, checkpointing=True)
    rows = encoded(plain)
    assert all(close(a, b) for a, b in zip(gradients(saving, rows), gradients(plain, rows), strict=True))
    assert saving.network.lm.training and saving.network.engine == "fast"
    assert saving.sample(rows, 1, Key.of(0), max_new_tokens=4) == plain.sample(rows, 1, Key.of(0), max_new_tokens=4)


def test_bfloat16_scores_stay_near_the_truth_because_the_head_works_in_float32() -> None:
    """The trunk's own rounding remains; a softmax in bfloat16 would be off by 0.02 per token and more."""
    exact = tiny_policy(model=tiny_model(scale=0.1, width=64))
    half = tiny_policy(model=tiny_model(scale=0.1, width=64).to(torch.bfloat16))
    assert half.network.plain_head and exact.network.plain_head
    hidden = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(50) * 7
    weight = half.network.lm.lm_head.weight.double()
    right = (hidden.double() @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    for ours, _ in (half.network.chunk_logp(hidden, targets), half.network.head_logp(hidden, targets)):
        assert ours.dtype == torch.float32 and (ours - right).abs().max() < 2e-3
    naive = (hidden @ weight.bfloat16().T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert (naive - right).abs().max() > 1e-2


@pytest.mark.parametrize("train", ["full", 1])
def test_in_16_bits_a_small_step_moves_the_weights_since_what_trains_is_kept_in_32(train: str | int, tmp_path: Path) -> None:
    """A step of 1e-6 is far below the spacing of bfloat16 around 0.2, which is 1e-3."""
    policy = load(tiny_folder(tmp_path / "tiny"), dtype="bfloat16", train=train, device="cpu")
    rows, reference = encoded(policy), policy.reference()
    assert torch.equal(policy.score(rows).logp, reference.score(rows).logp)  # one path for both: the first loss is log 2
    before = policy.state()
    step(policy, rows, lr=1e-6)
    after = policy.state()
    moved = [bool((after[name] != before[name]).any()) for name in before]
    assert all(moved) and {value.dtype for value in after.values()} == {torch.float32}
    whole = load(tmp_path / "tiny", dtype="float32", device="cpu")
    difference = (policy.score(rows).logp - whole.score(rows).logp).abs() / policy.score(rows).length  # type: ignore[operator]
    assert 0 < difference.max() < 0.05  # the passes do run in 16 bits
    save(policy, tmp_path / "out", "card")
    kept = load(tmp_path / "out", dtype="bfloat16", device="cpu").state()
    assert all(torch.equal(after[name].bfloat16(), kept[name].bfloat16()) for name in after)


def test_a_prompt_without_tokens_needs_a_bos() -> None:
    rows = Rows(id=("a",), prompt=[()], response=TextResponses((((9, 4),),)))
    with_bos = tiny_policy(tokenizer=tiny_tokenizer(bos=True))
    assert torch.equal(with_bos.score(rows).logp, with_bos.score(rows.replace(prompt=[(1,)])).logp)
    with pytest.raises(PreftuneError, match="row a.*no bos"):
        tiny_policy().score(rows)
    with pytest.raises(PreftuneError, match="row a.*no bos"):
        tiny_policy().sample(rows, 1, Key.of(0))
    with pytest.raises(PreftuneError, match="row a, response 0 has no tokens"):
        tiny_policy().score(rows.replace(prompt=[(1,)], response=TextResponses((((),),))))


def test_sequences_beyond_the_known_positions_are_refused() -> None:
    policy = tiny_policy()
    rows = Rows(id=("a",), prompt=[tuple(range(300))], response=TextResponses(((tuple(range(213)),),)))
    with pytest.raises(PreftuneError, match="513 tokens.*512 positions"):
        policy.score(rows)
    with pytest.raises(PreftuneError, match="512 positions"):
        policy.sample(rows, 1, Key.of(0), max_new_tokens=213)


def test_other_architectures_give_their_own_logits() -> None:
    """Learned positions (GPT-2: no trunk, since positions would be added twice) and capped, scaled logits (Gemma 2)."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 400, "bos_token_id": None, "eos_token_id": 0, "initializer_range": 0.2}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=128, **small)).eval()
    gemma = Gemma2ForCausalLM(
        Gemma2Config(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            final_logit_softcapping=2.0,
            sliding_window=8,
            pad_token_id=None,
            **small,
        )
    ).eval()
    for lm in (gpt2, gemma):
        policy = tiny_policy(1, model=lm)
        rows = encoded(policy)
        assert policy.trunk_note.startswith("none"), policy.trunk_note
        assert close(policy.score(rows).logp.detach(), truth(policy, rows))
        y = policy.sample(rows, 2, Key.of(0), max_new_tokens=5)  # prompts of different lengths, so positions matter
        for values, kept in zip(policy.score_tokens(rows.replace(response=y)), y.logp or (), strict=True):
            for a, b in zip(values, kept, strict=True):
                torch.testing.assert_close(a.detach(), torch.tensor(b), rtol=1e-4, atol=1e-5)
        assert all(p.grad is None and not p.requires_grad for p in policy.network.lm.get_input_embeddings().parameters())


# --- what trains ----------------------------------------------------------------------------------------------------


def test_last_layers_share_a_trunk_that_equals_the_whole_model_with_gradients() -> None:
    for engine in ("fast", "plain"):
        cut, whole = tiny_policy(2, engine=engine), tiny_policy(2, engine=engine, trunk_bytes=0)
        rows = encoded(cut)
        assert cut.network.cut == 1 and whole.network.cut == 0
        for _ in range(2):  # computed, then kept
            assert close(cut.score(rows).logp, whole.score(rows).logp)
            assert all(close(a, b) for a, b in zip(gradients(cut, rows), gradients(whole, rows), strict=True))
        names = set(cut.state())
        assert names and all(name.startswith(("model.layers.1.", "model.layers.2.")) for name in names)


def test_the_trunk_runs_once_per_sequence_and_serves_copies() -> None:
    for engine in ("fast", "plain"):
        policy = tiny_policy(1, engine=engine)
        rows, calls = encoded(policy), []
        first = policy.network.lm.model.layers[0]
        hook = first.register_forward_pre_hook(lambda *_: calls.append(1))  # noqa: B023
        before = policy.score(rows).logp
        seen = len(calls)
        reference = policy.reference()
        step(policy, rows)
        assert torch.equal(reference.score(rows).logp, before) and not torch.equal(policy.score(rows).logp, before)
        assert len(calls) == seen > 0
        hook.remove()


def test_states_of_the_trunk_do_not_depend_on_when_and_with_what_they_were_computed() -> None:
    """A resumed run begins with an empty memory and meets the rows in other batches: every bit must be the same."""
    for engine in ("fast", "plain"):
        early, late = tiny_policy(1, engine=engine), tiny_policy(1, engine=engine)
        same = [Record(f"s{i}", "the value", [f" is {'very ' * i}good", " no"]) for i in range(6)]
        rows, _ = early.encode([*tiny_records(), *same])
        early.score(rows)
        for part in ([3, 9], [0, 1, 10, 4], [5], [2, 8, 7, 6]):
            assert torch.equal(early.score(rows.take(part)).logp, late.score(rows.take(part)).logp)


def test_the_trunks_memory_is_bounded() -> None:
    policy = tiny_policy(1, trunk_bytes=8_000)
    rows = encoded(policy)
    first = policy.score(rows).logp
    assert 0 < policy.network.store.size <= 8_000
    assert policy.network.store.size == sum(v.nbytes for v in policy.network.store.kept.values())
    assert close(policy.score(rows).logp, first)


@pytest.mark.parametrize("train", ["lora", "dora"])
def test_a_fresh_adapters_reference_is_the_base_model(train: str) -> None:
    base, policy = tiny_policy(), tiny_policy(train)
    rows = encoded(policy)
    reference = policy.reference()
    assert policy.reference_kind == "adapter switched off"
    assert all("lora_" in name for name in policy.state())
    before = policy.score(rows).logp
    for _ in range(2):
        step(policy, rows)
    assert not close(policy.score(rows).logp, before)
    ran: list[int] = []
    for name, module in policy.network.module.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_pre_hook(lambda *_: ran.append(1))
    assert torch.equal(reference.score(rows).logp, base.score(rows).logp) and not ran
    assert reference.fingerprint() == base.fingerprint() != policy.fingerprint()
    assert close(reference.sample(rows, 1, Key.of(0), temperature=0, max_new_tokens=4).pack()["logp"], base.sample(
        rows, 1, Key.of(0), temperature=0, max_new_tokens=4).pack()["logp"])  # fmt: skip


def test_a_reference_with_its_adapter_off_uses_it_again_when_other_values_are_loaded() -> None:
    policy = tiny_policy("dora")
    rows, reference = encoded(policy), policy.reference()
    off = reference.score(rows).logp
    reference.load(reference.state())
    assert not reference.adapter and torch.equal(reference.score(rows).logp, off)
    step(policy, rows)
    reference.load(policy.state())
    assert torch.equal(reference.score(rows).logp, policy.score(rows).logp)


@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_a_copy_is_independent_of_later_training_and_takes_no_gradient(train: str | int) -> None:
    policy = tiny_policy(train)
    rows = encoded(policy)
    step(policy, rows)
    copy, before, name = policy.copy(), policy.score(rows).logp, policy.fingerprint()
    step(policy, rows)
    scored = copy.score(rows)
    assert torch.equal(scored.logp, before) and not scored.logp.requires_grad
    assert not torch.equal(policy.score(rows).logp, before)
    assert copy.fingerprint() == name != policy.fingerprint()
    policy.load(copy.state())
    assert torch.equal(policy.score(rows).logp, before) and policy.fingerprint() == name
    trained = sum(p.numel() for p in policy.parameters())
    assert sum(p.numel() for p in copy.parameters()) == trained
    assert copy.copy().score(rows).logp.equal(before)


@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_lerp_is_exact_at_its_ends_and_linear_between(train: str | int) -> None:
    policy = tiny_policy(train)
    rows, start = encoded(policy), policy.reference()
    step(policy, rows)
    for w, same in ((0.0, start), (1.0, policy)):
        mixed = start.lerp(policy, w)
        assert torch.equal(mixed.score(rows).logp, same.score(rows).logp)
        assert all(torch.equal(a, b) for a, b in zip(mixed.parameters(), same.parameters(), strict=True))
    half = start.lerp(policy, 0.25)
    for a, b, c in zip(half.parameters(), start.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(a, 0.75 * b + 0.25 * c)


def test_states_of_another_model_are_refused() -> None:
    policy = tiny_policy(1)
    with pytest.raises(PreftuneError, match="do not belong"):
        policy.load(tiny_policy(2).state())
    with pytest.raises(PreftuneError, match="has shape"):
        policy.load(tiny_policy(1, model=tiny_model(width=16)).state())


def test_fingerprints_name_weights_not_how_they_train() -> None:
    names = {tiny_policy(train).fingerprint() for train in ("full", 1, 2)} | {tiny_policy("lora").reference().fingerprint()}
    assert len(names) == 1
    assert tiny_policy(seed=1).fingerprint() not in names
    assert tiny_policy(model=tiny_model().to(torch.bfloat16)).fingerprint() not in names


# --- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_kept_log_probs_equal_the_score_of_the_same_tokens(train: str | int) -> None:
    policy = tiny_policy(train)
    rows = encoded(policy)
    step(policy, rows)
    for acting in (policy, policy.copy(), policy.reference()):
        y = acting.sample(rows, 3, Key.of(0), temperature=1.5, top_p=0.9, max_new_tokens=12)
        assert y.shape == (5, 3)
        for values, kept in zip(acting.score_tokens(rows.replace(response=y)), y.logp or (), strict=True):
            for a, b in zip(values, kept, strict=True):
                torch.testing.assert_close(a.detach(), torch.tensor(b), rtol=1e-4, atol=1e-5)


def test_greedy_equals_generate_of_transformers() -> None:
    policy = tiny_policy()
    rows = encoded(policy)
    ours = policy.sample(rows, 1, Key.of(0), temperature=0, max_new_tokens=20)
    for prompt, row in zip(rows.prompt, ours.tokens, strict=True):
        theirs = policy.network.lm.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=20, do_sample=False,
            eos_token_id=sorted(policy.stops), pad_token_id=0,
        )  # fmt: skip
        assert tuple(theirs[0, len(prompt) :].tolist()) == row[0]


def test_draws_do_not_depend_on_batch_size_batch_mates_or_the_number_of_samples() -> None:
    policy = tiny_policy()
    rows, key = encoded(policy), Key.of(3)
    whole = policy.sample(rows, 4, key, max_new_tokens=10)
    assert whole.tokens == policy.sample(rows, 4, key, max_new_tokens=10, tokens_per_batch=1).tokens
    assert whole.take([4, 1]).tokens == policy.sample(rows.take([4, 1]), 4, key, max_new_tokens=10).tokens
    assert whole.take(columns=[0, 1]).tokens == policy.sample(rows, 2, key, max_new_tokens=10).tokens
    shorter = policy.sample(rows, 4, key, max_new_tokens=5)
    assert shorter.tokens == tuple(tuple(tokens[:5] for tokens in row) for row in whole.tokens)
    assert whole.tokens != policy.sample(rows, 4, Key.of(4), max_new_tokens=10).tokens


def test_a_response_ends_at_the_end_of_turn_which_it_keeps() -> None:
    policy = tiny_policy()
    policy.stops = frozenset(range(0, 400, 5))  # a fifth of the vocabulary ends a turn
    y = policy.sample(encoded(policy), 8, Key.of(0), max_new_tokens=30)
    flat = [tokens for row in y.tokens for tokens in row]
    assert all(not set(tokens[:-1]) & policy.stops for tokens in flat)
    assert sum(tokens[-1] in policy.stops for tokens in flat) >= 38 and len({len(tokens) for tokens in flat}) > 3
    values = policy.score_tokens(encoded(policy).replace(response=y))
    for row, kept in zip(values, y.logp or (), strict=True):  # still right after lines have left the batch
        for a, b in zip(row, kept, strict=True):
            torch.testing.assert_close(a.detach(), torch.tensor(b), rtol=1e-4, atol=1e-5)


def test_sampled_tokens_follow_the_models_probabilities() -> None:
    """Chi-square over the 12 tokens of a tiny vocabulary, 10 000 draws, 11 degrees of freedom, a fixed seed.

    A correct sampler passes 31.3 with probability .001. Sampling at temperature 1.1 instead would have non-centrality 73 here
    (asserted to be above 60): mean 71 or more and standard deviation 16, so it would be caught with probability above .99.
    """
    model = tiny_model(vocabulary=12, scale=0.4)
    tokenizer = tiny_tokenizer(template=False)
    policy = tiny_policy(model=model, tokenizer=tokenizer)
    prompt = (3, 4, 5)
    rows = Rows(id=tuple(f"r{i}" for i in range(100)), prompt=[prompt] * 100)
    drawn = policy.sample(rows, 100, Key.of(0), max_new_tokens=1)
    counts = torch.bincount(torch.tensor([t[0] for row in drawn.tokens for t in row]), minlength=12).double()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    law, other = logits.softmax(-1), (logits / 1.1).softmax(-1)
    assert (law * 10_000).min() >= 5
    assert ((counts - 10_000 * law) ** 2 / (10_000 * law)).sum() < 31.3
    assert 10_000 * ((other - law) ** 2 / other).sum() > 60


def test_truncated_laws_keep_the_likeliest_tokens() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]]))
    law = Choice(1.0, 2, 1.0).law(logits)
    torch.testing.assert_close(law, torch.tensor([[0.5, 0.25, 0, 0, 0]], dtype=torch.float64), rtol=1e-6, atol=0)
    law = Choice(1.0, 0, 0.8).law(logits)  # 0.5 + 0.25 < 0.8 <= 0.5 + 0.25 + 0.125
    assert (law[0] > 0).tolist() == [True, True, True, False, False]
    assert (Choice(1.0, 0, 1.0, 0.3).law(logits)[0] > 0).tolist() == [True, True, False, False, False]  # from 0.15 on
    tokens, logp, kept = Choice(1.0, 3, 1.0)(logits, torch.tensor([0.9], dtype=torch.float64))
    assert (tokens.item(), round(logp.exp().item(), 6), round(kept.exp().item(), 6)) == (2, 0.125, 0.875)
    law = Choice(0.5, 0, 1.0).law(logits)
    torch.testing.assert_close(law[0, 0] / law[0, 1], torch.tensor(4.0, dtype=torch.float64), rtol=1e-6, atol=0)
    ends = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert Choice(1.0, 3, 1.0)(logits.expand(2, -1), ends)[0].tolist() == [0, 2]  # never a token without mass
    assert Choice(1.0, 2, 1.0)(logits.flip(1).expand(2, -1), ends)[0].tolist() == [3, 4]
    wide = torch.randn(8, 4000, generator=torch.Generator().manual_seed(0)) * 4
    falling, order = wide.double().softmax(-1).sort(-1, descending=True)
    plain = torch.zeros(8, 4000).scatter(1, order, (falling.cumsum(-1) - falling < 0.9).float())
    assert torch.equal(Choice(1.0, 0, 0.9).law(wide) > 0, plain > 0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_inverse_is_that_of_the_whole_distribution_function(temperature: float) -> None:
    """Against running sums over all columns in float64; a number within 1e-6 of an end between two columns may go to either."""
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(1)) * 3
    logits[:, 900:] = -torch.inf  # tokens without mass at the end, as in a padded vocabulary
    uniform = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    uniform[:2] = torch.tensor([0.0, math.nextafter(1.0, 0.0)])
    total = (logits.double() / temperature).softmax(-1).cumsum(-1)
    tokens, logp, kept = Choice(temperature)(logits, uniform)
    below = torch.cat([torch.zeros(64, 1, dtype=torch.float64), total], 1)
    low, high = (below.gather(1, (tokens + end)[:, None])[:, 0] for end in (0, 1))
    assert (low <= uniform + 1e-6).all() and (uniform <= high + 1e-6).all() and (high > low).all()
    torch.testing.assert_close(logp, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])
    assert not kept.any()


def test_a_text_ends_a_response_which_keeps_the_tokens_that_complete_it() -> None:
    policy = tiny_policy()
    rows = encoded(policy)
    free = policy.sample(rows, 4, Key.of(0), max_new_tokens=12)
    assert policy.sample(rows, 4, Key.of(0), max_new_tokens=12, stop=["no such text"]).tokens == free.tokens
    mark = policy.tokenizer.decode(free.tokens[0][0][3:5])
    ended = policy.sample(rows, 4, Key.of(0), max_new_tokens=12, stop=[mark])
    assert len(ended.tokens[0][0]) <= 5
    for whole, cut in zip(sum(free.tokens, ()), sum(ended.tokens, ()), strict=True):
        assert whole[: len(cut)] == cut
        assert mark not in policy.tokenizer.decode(cut[:-1])
        assert cut == whole or mark in policy.tokenizer.decode(cut)


def test_the_mass_that_truncation_leaves_is_kept() -> None:
    policy = tiny_policy()
    rows = encoded(policy)
    y = policy.sample(rows, 3, Key.of(0), top_p=0.5, max_new_tokens=4)
    for b, prompt in enumerate(rows.prompt):
        for tokens, kept in zip(y.tokens[b], y.kept[b], strict=True):  # type: ignore[index]
            for t in range(len(tokens)):
                law = Choice(1.0, 0, 0.5).law(policy.network.lm(input_ids=torch.tensor([[*prompt, *tokens[:t]]])).logits[:, -1])
                assert law[0, tokens[t]] > 0
                torch.testing.assert_close(float(law.sum().log().detach()), kept[t], rtol=1e-4, atol=1e-5)
    assert policy.sample(rows, 3, Key.of(0), max_new_tokens=4).kept is None
    assert TextResponses.unpack(y.take([1]).join(y.take([0])).pack()).kept == y.take([1]).join(y.take([0])).kept


def test_impossible_decoding_is_refused() -> None:
    policy = tiny_policy()
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_new_tokens": 0}, {"min_p": 1.0}, {"stop": [""]}):
        with pytest.raises(PreftuneError, match="needed are"):
            policy.sample(encoded(policy), 1, Key.of(0), **wrong)
    with pytest.raises(TypeError, match="top_q"):
        policy.sample(encoded(policy), 1, Key.of(0), top_q=1)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["full", "lora", "dora", 1])
def test_what_is_saved_loads_with_the_same_numbers(train: str | int, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    policy = load(base, train=train)
    rows = encoded(policy)
    step(policy, rows)
    best = policy.copy()
    step(policy, rows)
    for acting, name in ((policy, "last"), (best, "best"), (policy, "last")):  # the second time it replaces the folder
        again = load(save(acting, tmp_path / name, "# the card\n"), train=train if isinstance(train, int) else "auto")
        assert torch.equal(again.score(rows).logp, acting.score(rows).logp) and again.fingerprint() == acting.fingerprint()
        assert again.encode(tiny_records())[0].prompt == rows.prompt
        assert (tmp_path / name / "README.md").read_text() == "# the card\n"
    if isinstance(train, int) or train == "full":
        assert (tmp_path / "last" / "model.safetensors").is_file()
        return
    assert again.reference_kind == "copy of the given adapter"
    given = again.reference()
    step(again, rows)
    assert torch.equal(given.score(rows).logp, policy.score(rows).logp)
    merged = load(merge_adapter(tmp_path / "last", tmp_path / "merged"))
    assert close(merged.score(rows).logp, policy.score(rows).logp)
    assert (tmp_path / "merged" / "README.md").read_text() == "# the card\n"
    with pytest.raises(PreftuneError, match="adapter folder trains its adapter"):
        load(tmp_path / "last", train="full")
    with pytest.raises(PreftuneError, match="nothing of its own to save"):
        save(load(base, train=train).reference(), tmp_path / "none", "")


def test_added_tokens_need_rows_in_the_embedding(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>"], special_tokens=True)
    tiny_folder(tmp_path / "short", tokenizer=tokenizer)
    with pytest.raises(PreftuneError, match="tokens up to 400.*400 rows.*resize_embeddings"):
        load(tmp_path / "short")
    policy = load(tmp_path / "short", resize_embeddings=True)
    rows, _ = policy.encode([Record("a", "x", ["<think> so"])])
    assert rows.response.tokens[0][0][0] == 400 and policy.score(rows).logp.isfinite().all()
    tiny_folder(tmp_path / "wide", tokenizer=tokenizer, vocabulary=416)  # rows to spare are ordinary
    assert load(tmp_path / "wide").score(rows).logp.isfinite().all()


def test_models_that_cannot_be_used_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    with pytest.raises(PreftuneError, match="is not there.*check the path"):
        load(tmp_path / "missing")
    with pytest.raises(PreftuneError, match="is not there"):
        load(tmp_path / "missing.gguf")
    with pytest.raises(PreftuneError, match="another kind"):
        load(folder / "config.json")
    with pytest.raises(PreftuneError, match="no model folder"):
        load(tmp_path)
    with pytest.raises(PreftuneError, match="could not be loaded"):
        load("nobody/nothing-here")
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(PreftuneError, match="no tokenizer"):
        load(folder)
    (tmp_path / "tokenizer.json").rename(folder / "tokenizer.json")
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(PreftuneError, match="only pytorch_model.bin.*save_pretrained"):
        load(folder)


def test_options_that_cannot_be_met_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    for options, message in (
        ({"device": "tpu"}, "known are auto, cpu"),
        ({"dtype": "int8"}, "known are auto, float32"),
        ({"train": "half"}, "known are auto, full"),
        ({"train": 0}, "known are auto, full"),
        ({"train": 4}, "model has 3 layers"),
        ({"train": "full", "quantize": 4}, "needs an adapter"),
        ({"quantize": 3}, "4 and 8 bits"),
        ({"engine": "tree"}, "known are fast and plain"),
        ({"tokens_per_batch": -3}, "tokens_per_batch is -3, needed a number of tokens"),
    ):
        with pytest.raises(PreftuneError, match=message):
            load(folder, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_asked_for_and_absent_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="device cuda was asked for.*device=cpu"):
        load(tiny_folder(tmp_path), device="cuda")


def test_dropout_is_switched_off(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    lm = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=None, eos_token_id=0))
    policy = tiny_policy(model=lm)
    rows = encoded(policy)
    before = policy.score(rows).logp
    lm.train()
    policy.network.checkpointing = True  # leaves the module in training mode
    assert torch.equal(policy.score(rows).logp, before) and lm.training


def test_quantised_bases_train_an_adapter(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = tiny_folder(tmp_path, width=64)
    plain = load(folder)
    rows = encoded(plain)
    for bits, near in ((4, 0.2), (8, 0.05)):
        policy = load(folder, quantize=bits)
        before, reference = policy.score(rows).logp, policy.reference()
        assert ((before - plain.score(rows).logp).abs() < near * plain.score(rows).logp.abs()).all()
        rates = [g.abs().sum().item() for g in gradients(policy, rows)]
        step(policy, rows, lr=1e-4)
        assert sum(rates) > 0 and torch.equal(reference.score(rows).logp, before)
        assert policy.score(rows).logp[:, 0].sum() > before[:, 0].sum()


def test_a_gguf_file_is_converted_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    from test_gguf import bpe, tiny, write_gguf

    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    words = bpe()
    file = write_gguf(tmp_path / "tiny.gguf", tiny(len(words["vocab"]), True), words)
    policy = load(file)
    (folder,) = [f for f in (tmp_path / "cache" / "gguf").iterdir() if f.is_dir()]
    written = (folder / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "elsewhere").mkdir()
    assert load(file.rename(tmp_path / "elsewhere" / "tiny.gguf")).fingerprint() == policy.fingerprint() == load(folder).fingerprint()
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
