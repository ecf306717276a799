"""Writing token by token: what each token was drawn from is what scoring says of it, for every architecture, however samples end."""

from __future__ import annotations

import copy

import pytest
import torch

from architectures import ARCHITECTURES, REFUSED, architecture
from preftune.policies.text import layers
from preftune.policies.text.decode import Repeated, Shared, Writer
from preftune.policies.text.generate import fewer, parts
from preftune.types import Key, Rows
from text_fixtures import tiny_model, tiny_policy


def asked(*lengths: int) -> Rows:
    """Random prompts of these lengths; equal lengths are equal prompts."""
    words = lambda n: tuple(torch.randint(3, 400, (n,), generator=torch.Generator().manual_seed(n)).tolist())
    return Rows(id=tuple(f"r{i}" for i in range(len(lengths))), prompt=[words(n) for n in lengths])


@pytest.mark.parametrize("name", [*ARCHITECTURES, "GptOss", "Bloom"])
def test_log_probs_kept_from_sampling_are_those_of_scoring(name: str) -> None:
    """To 1e-4 in float32, with prompts of several lengths, one of them asked twice, and samples that end at different places."""
    lm = architecture(name)
    policy, plain = tiny_policy(model=lm), tiny_policy(model=copy.deepcopy(lm), engine="plain")
    assert (policy.network.engine == "plain") == (name in REFUSED)
    policy.stops = frozenset(range(60))
    rows = asked(9, 14, 3, 9)
    y = policy.sample(rows, 4, Key.of(0), max_new_tokens=12)
    assert len({len(tokens) for row in y.tokens for tokens in row}) > 4
    for scored, kept in zip(plain.score_tokens(rows.replace(response=y)), y.logp or (), strict=True):
        for a, b in zip(scored, kept, strict=True):
            torch.testing.assert_close(a.detach(), torch.tensor(b), rtol=0, atol=1e-4)


def test_selected_lines_go_on_as_if_they_were_alone() -> None:
    """Three groups of four, then the third and the first with two samples each, both ways of keeping what was read."""
    policy = tiny_policy()
    prompts = [(5, 6, 7), (8, 9, 10, 11, 12), (13,)]
    draw = lambda n: torch.randint(3, 400, (n,), generator=torch.Generator().manual_seed(n))
    for begin in (lambda: Shared.begin(Writer(policy.network, 12, 5), prompts, 4, 5), lambda: Repeated.begin(policy.network, prompts, 4)):
        with torch.no_grad():
            _, state = begin()
            first, lines = draw(12), torch.tensor([[11, 8], [1, 2]])
            state.step(first)
            state.select(lines)
            second = draw(4)
            logits = state.step(second)
            for line, old, token in zip(range(4), lines.flatten().tolist(), second.tolist(), strict=True):
                whole = torch.tensor([[*prompts[old // 4], int(first[old]), token]])
                torch.testing.assert_close(logits[line], policy.network.lm(input_ids=whole).logits[0, -1], rtol=1e-4, atol=1e-5)


def test_a_prompt_is_kept_once_for_all_its_samples() -> None:
    policy = tiny_policy()
    with torch.no_grad():
        _, state = Writer(policy.network, 16, 8).begin([tuple(range(3, 103))], 16, 8)
    assert isinstance(state, Shared)
    assert all(keys.shape[0] == 1 and keys.shape[2] == 100 for keys, _ in state.prompts.values())


@pytest.mark.skipif(not layers.ONEDNN, reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("train", ["full", "lora"])
def test_weights_are_put_in_order_for_the_policy_that_writes(train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy writes with its own weights after the policy has moved, and what it drew is what scoring says."""
    monkeypatch.setattr(layers, "PACKED_FROM", 1)
    policy, rows = tiny_policy(train), asked(9, 14)
    assert Writer(policy.network, 4, 32).blocks and not Writer(policy.network, 4, 2).blocks
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    copied = policy.copy()
    before = copied.sample(rows, 3, Key.of(0), max_new_tokens=20)
    with torch.no_grad():
        for p in policy.parameters():
            p *= 0.5
    assert copied.sample(rows, 3, Key.of(0), max_new_tokens=20) == before
    assert policy.sample(rows, 3, Key.of(0), max_new_tokens=20) != before
    for acting in (policy, copied, policy.mix(copied, 0.3)):
        y = acting.sample(rows, 3, Key.of(1), max_new_tokens=20)
        scored = acting.score(rows.replace(response=y)).logp
        kept = torch.tensor([[sum(values) for values in row] for row in y.logp or ()], dtype=torch.float64)
        torch.testing.assert_close(scored.detach(), kept, rtol=1e-5, atol=1e-3)
    monkeypatch.setattr(layers, "PACKED_FROM", 10**6)
    assert copied.sample(rows, 3, Key.of(0), max_new_tokens=20).tokens == before.tokens


WRITTEN_OUT = ("Llama", "Mistral", "Qwen2", "Qwen3")  # whose layers are of the shape of `lean`


@pytest.mark.skipif(not layers.ONEDNN, reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_written_out_write_what_the_model_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens and log-probs, behind prompts of several lengths and past the window; other architectures are left alone, those that
    look alike and compute otherwise after the first token."""
    monkeypatch.setattr(layers, "PACKED_FROM", 1)
    policy, rows = tiny_policy(model=architecture(name)), asked(9, 14, 3, 9)
    first = policy.sample(rows, 3, Key.of(0), max_new_tokens=20)
    assert bool(policy.network.lean) == (name in WRITTEN_OUT)
    lean = policy.sample(rows, 3, Key.of(0), max_new_tokens=20)
    policy.network.lean = ()
    own = policy.sample(rows, 3, Key.of(0), max_new_tokens=20)
    assert first.tokens == lean.tokens == own.tokens
    values = [torch.tensor([v for row in y.logp or () for some in row for v in some]) for y in (lean, own)]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-4)


def test_the_same_tokens_for_any_batch() -> None:
    """Whatever is drawn together: budgets, mates, equal prompts. The model is not near a tie, so rounding decides nothing."""
    policy = tiny_policy(model=tiny_model(scale=0.4))
    policy.stops = frozenset(range(40))
    rows = asked(9, 14, 3, 9, 7)
    whole = policy.sample(rows, 5, Key.of(1), max_new_tokens=15)
    for budget in (1, 60, 300):
        assert policy.sample(rows, 5, Key.of(1), max_new_tokens=15, tokens_per_batch=budget).tokens == whole.tokens
    for some in ([0], [3, 1], [4, 2, 0]):
        assert policy.sample(rows.take(some), 5, Key.of(1), max_new_tokens=15).tokens == whole.take(some).tokens


def test_parts_hold_every_sample_once_within_the_budget() -> None:
    prompts = [(1,) * 30, (2,) * 5, (1,) * 30, (3,) * 12]
    for n, budget in ((1, 1), (4, 100), (4, 200), (3, 10_000)):
        found = parts(prompts, n, 10, budget)
        samples = [at for part in found for _, some in part for at in some]
        assert sorted(samples) == [(b, s) for b in range(4) for s in range(n)]
        assert all(prompts[b] == prompt for part in found for prompt, some in part for b, _ in some)
        for part in found:
            assert len({len(some) for _, some in part}) == 1
            size = len(part) * (max(len(prompt) for prompt, _ in part) + len(part[0][1]) * 10)
            assert size <= budget or (len(part), len(part[0][1])) == (1, 1)
    together = parts([(1,) * 30] * 4, 2, 10, 10_000)
    assert [len(some) for part in together for _, some in part] == [8]  # one prompt for all rows


def test_finished_samples_leave_in_fifths() -> None:
    alive = torch.ones(2, 5, dtype=torch.bool)
    assert fewer(alive) is None
    alive[0, 1] = False
    assert fewer(alive) is None  # the other group has five still
    alive[1, 0] = False
    assert fewer(alive).tolist() == [[0, 2, 3, 4], [6, 7, 8, 9]]  # type: ignore[union-attr]
    alive[0] = False
    assert fewer(alive).tolist() == [[6, 7, 8, 9]]  # type: ignore[union-attr]
