"""What a language model computes besides log-probabilities, where an objective wants it: segments, states, collision."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.collect.draw import given
from preftune.learner import GradientLearner
from preftune.policies.text import CachedReference, LogpCache, TextPolicy, TextResponses
from preftune.reference import frozen
from preftune.types import Key, Loss, Method, PreftuneError, Rows, Scored, needs
from preftune.update import plain
from text_fixtures import Record, tiny_model, tiny_policy, tiny_records

RELATIVE = 1e-5  # float32 sums in another order


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=RELATIVE, atol=RELATIVE * b.abs().max().item())


def encoded(policy: TextPolicy, n: int = 5) -> Rows:
    return policy.encode(tiny_records(n))[0]


def cut(rows: Rows) -> Rows:
    """Three segments a response: its first token, nothing, the rest; of a one-token response the rest is empty as well."""
    lengths = [[len(tokens) for tokens in row] for row in rows.response.tokens]
    return rows.replace(segments=torch.tensor([[[0, 1, 1, n] for n in row] for row in lengths]))


def whole(policy: TextPolicy, rows: Rows) -> Any:
    """(b, k, tokens, logits [T, V] that predict them, states [T, d] at them), one whole sequence at a time."""
    decoder = policy.network.parts["decoder"]
    for b, prompt in enumerate(rows.prompt):
        for k, response in enumerate(rows.response.tokens[b]):
            with torch.no_grad():
                states = decoder(input_ids=torch.tensor([[*prompt, *response]])).last_hidden_state[0]
                logits = policy.network.lm.lm_head(states)
            yield b, k, response, logits[len(prompt) - 1 : -1], states[len(prompt) :]


def weight(s: Scored) -> Tensor:
    """WPO's weight of a response: exp of the mean over its tokens of log pi(y_t) - log sum_v pi(v)^2."""
    return ((s.logp.detach() - s.collision) / s.length).exp()


# --- collision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_collision_is_the_log_of_the_sum_of_squares_summed_over_tokens(engine: str, train: str | int) -> None:
    policy = tiny_policy(train, engine=engine)
    rows = encoded(policy)
    s = policy.score(rows, ("collision",))
    expected = torch.zeros(5, 2, dtype=torch.float64)
    for b, k, _, logits, _ in whole(policy, rows):
        expected[b, k] = logits.double().softmax(-1).square().sum(-1).log().sum()
    assert s.collision.dtype == torch.float64 and not s.collision.requires_grad
    assert close(s.collision, expected)
    assert torch.equal(s.logp, policy.score(rows).logp) and s.logp.requires_grad  # the pass itself is the same
    assert policy.score(rows).collision is None


def test_a_uniform_model_has_weight_one_exactly() -> None:
    """log p = log sum_v p^2 = -ln V, computed from the same logarithm."""
    model = tiny_model(tied=False)
    model.lm_head.weight.data.zero_()
    policy = tiny_policy(model=model)
    s = policy.score(encoded(policy), ("collision",))
    assert torch.equal(weight(s), torch.ones(5, 2, dtype=torch.float64))
    torch.testing.assert_close(s.collision, -s.length.double() * math.log(400.0), rtol=1e-6, atol=0)


def test_a_deterministic_model_has_weight_one_exactly() -> None:
    """On what it is sure to say: log p = 0 = log 1^2, though its logits are in the thousands."""
    model = tiny_model(tied=False)
    model.lm_head.weight.data.mul_(1e4)
    policy = tiny_policy(model=model)
    rows = encoded(policy)
    certain = rows.replace(response=policy.sample(rows, 1, Key.of(0), temperature=0, max_new_tokens=6))
    s = policy.score(certain, ("collision",))
    assert not s.logp.any() and not s.collision.any() and torch.equal(weight(s), torch.ones(5, 1, dtype=torch.float64))


def test_chunks_of_the_head_change_no_collision(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    rows = encoded(policy)
    s = policy.score(rows, ("collision",))
    (slope,) = torch.autograd.grad(s.logp.sum(), policy.parameters()[:1])
    monkeypatch.setattr("preftune.policies.text.logprob.CHUNK", 400 * 7)
    parts = policy.score(rows, ("collision",))
    assert close(parts.collision, s.collision) and close(parts.logp, s.logp)
    assert close(torch.autograd.grad(parts.logp.sum(), policy.parameters()[:1])[0], slope)
    assert close(policy.copy().score(rows, ("collision",)).collision, s.collision)


def test_in_16_bits_the_squares_are_summed_in_32() -> None:
    """For the logits as they are; a log-sum-exp in bfloat16 is off by 0.01 a token and more."""
    policy = tiny_policy(model=tiny_model(scale=0.1, width=64).to(torch.bfloat16))
    hidden = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    _, found = policy.network.chunk_logp(hidden, torch.arange(50), True)
    exact = policy.network.logits(hidden).double().softmax(-1).square().sum(-1).log()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)


# --- states ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_states_are_means_over_the_tokens_of_a_segment(engine: str, train: str | int) -> None:
    policy = tiny_policy(train, engine=engine)
    rows = cut(encoded(policy))
    s = policy.score(rows, ("states", "segments"))
    assert s.states.shape == (5, 2, 3, 32) and s.states.dtype == torch.float32 and not s.states.requires_grad
    for b, k, response, _, states in whole(policy, rows):
        assert len(states) == len(response)
        assert close(s.states[b, k, 0], states[0])
        assert not s.states[b, k, 1].any()  # an empty segment
        assert close(s.states[b, k, 2], states[1:].mean(0))
    torch.testing.assert_close(s.logp, policy.score(rows).logp, rtol=1e-6, atol=0)  # one token more is fed: other shapes
    assert s.logp.requires_grad and s.segment_logp.requires_grad and policy.score(rows).states is None


def test_without_boundaries_a_response_is_one_segment() -> None:
    policy = tiny_policy()
    rows = encoded(policy)
    s = policy.score(rows, ("states", "segments"))
    assert s.states.shape == (5, 2, 1, 32) and s.segment_logp.shape == (5, 2, 1)
    assert torch.equal(s.segment_logp[:, :, 0], s.logp)
    for b, k, _, _, states in whole(policy, rows):
        assert close(s.states[b, k, 0], states.mean(0))


def test_states_in_16_bits_are_averaged_in_32() -> None:
    policy = tiny_policy("lora", model=tiny_model().to(torch.bfloat16))
    rows = encoded(policy)
    s = policy.score(rows, ("states",))
    pairs = [(rows.prompt[0], rows.response.tokens[0][0])]
    alone = policy.score(rows.take([0]).replace(response=rows.response.take([0], [0])), ("states",)).states[0, 0, 0]
    (states,) = policy.run(policy.network.measure, pairs, states=True).states
    assert s.states.dtype == torch.float32 and states.dtype == torch.bfloat16
    torch.testing.assert_close(alone, states.detach().double().mean(0).float(), rtol=1e-6, atol=1e-6)


# --- segments -------------------------------------------------------------------------------------------------------


def test_segments_are_sums_between_the_boundaries_also_through_the_cache(tmp_path: Path) -> None:
    policy = tiny_policy()
    rows = cut(encoded(policy))
    cached = CachedReference(policy.reference(), LogpCache(tmp_path / "c.sqlite"))
    tokens = policy.score_tokens(rows)
    for acting in (policy, policy.reference(), cached, cached):  # the cache computes, then reads
        found = acting.score(rows, ("segments",)).segment_logp
        assert found.shape == (5, 2, 3) and found.dtype == torch.float64
        for b in range(5):
            for k in range(2):
                token = tokens[b][k].detach().double()
                assert torch.equal(found[b, k].detach(), torch.stack([token[0], token.new_zeros(()), token[1:].sum()]))
        torch.testing.assert_close(found.sum(2), acting.score(rows).logp, rtol=1e-12, atol=0)
    assert cached.misses == 10 and cached.hits > 0


def test_what_the_cache_does_not_hold_is_computed(tmp_path: Path) -> None:
    policy = tiny_policy()
    rows = cut(encoded(policy))
    cached = CachedReference(policy.reference(), LogpCache(tmp_path / "c.sqlite"))
    for wants in (("states",), ("collision",), ("segments", "states", "collision")):
        ours, theirs = cached.score(rows, wants), policy.reference().score(rows, wants)
        for name in ("logp", "states", "collision", "segment_logp"):
            a, b = getattr(ours, name), getattr(theirs, name)
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("want", ["segments", "states"])
@pytest.mark.parametrize("cuts", [[0, 2, 9], [1, 2, 3], [0, 4, 3]])
def test_boundaries_that_do_not_cover_a_response_are_refused(want: str, cuts: list[int]) -> None:
    rows = Rows(id=("a",), prompt=[(5, 6)], response=TextResponses((((7, 8, 9),),)), segments=torch.tensor([[cuts]]))
    with pytest.raises(PreftuneError, match="row a, response 0: segments"):
        tiny_policy().score(rows, (want,))  # type: ignore[arg-type]


# --- all of them ----------------------------------------------------------------------------------------------------


WANTS = ("segments", "states", "collision")


def test_absent_responses_have_zeros() -> None:
    policy = tiny_policy()
    rows, _ = policy.encode([Record("a", "x", ["one", "two"]), Record("b", "y", ["three"])])
    s = policy.score(rows, WANTS)
    for name in ("segment_logp", "states", "collision"):
        table = getattr(s, name).detach()
        assert not table[1, 1].any() and table[1, 0].any() and table[0, 0].any() and table[0, 1].any()
    s = policy.score(rows.replace(present=torch.zeros(2, 2, dtype=torch.bool)), WANTS)
    assert not s.logp.any() and not s.collision.any() and not s.segment_logp.any()


@needs(columns=2, labels=("ranked",), wants=WANTS)
def everything(s: Scored) -> Loss:
    """A pair loss whose value depends on all that can be wanted."""
    ratio = (s.segment_logratio * (1 + s.states.double().mean(3))).sum(2)
    return Loss(weight(s).prod(1) * (ratio[:, 0] - ratio[:, 1] - 1) ** 2)


@needs(columns=2, labels=("ranked",), wants=WANTS, batch=True)
def everything_of_the_batch(s: Scored) -> Loss:
    row = everything(s).row
    return Loss((row - row.mean()) ** 2)


@pytest.mark.parametrize("objective", [everything, everything_of_the_batch], ids=lambda f: f.__name__)
@pytest.mark.parametrize("train", ["full", 1])
def test_the_learner_hands_an_objective_what_it_wants_whatever_the_micro_batches(objective: Any, train: str | int, tmp_path: Path) -> None:
    """With a reference out of the cache, whose segments are cut alike."""
    moves = []
    for size in (5, 2):
        policy = tiny_policy(train)
        rows = cut(encoded(policy))
        reference = CachedReference(tiny_policy(train, seed=1).reference(), LogpCache(tmp_path / f"{size}.sqlite"))
        method = Method(objective, given, frozen, plain)
        learner = GradientLearner(
            policy, method, {"current": policy, "reference": reference}, optimiser="sgd", lr=1.0, clip=1.0, micro_batch=size
        )
        start = policy.state()
        told = learner.descend(rows)
        assert math.isfinite(told["loss"]) and told["grad_norm"] > 0
        moves.append({name: value - start[name] for name, value in policy.state().items()})
    for name, moved in moves[0].items():
        assert torch.allclose(moves[1][name], moved, rtol=1e-3, atol=1e-4)  # clipped to length one, in float32 weights
