"""Mixtures of two language models, prompts that ask to improve a draft, and columns that answer prompts of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.policies.text import CachedReference, LogpCache, TextPolicy, TextResponses
from preftune.policies.text.generate import Choice
from preftune.policies.text.tokens import REVISE
from preftune.types import Key, PreftuneError, Rows
from text_fixtures import Record, tiny_model, tiny_policy, tiny_records, tiny_tokenizer

MODELS = ["two networks", "full", "lora", 1]  # a mixture of two models, or of one with its own reference


def both(kind: str | int, **network: Any) -> tuple[TextPolicy, TextPolicy]:
    """A policy, and another that is far from it."""
    if kind == "two networks":
        return tiny_policy(seed=0, **network), tiny_policy(seed=1, **network)
    policy = tiny_policy(kind, **network)
    reference = policy.reference()
    with torch.no_grad():
        for i, p in enumerate(policy.parameters()):
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return policy, reference


def logits(policy: TextPolicy, tokens: tuple[int, ...]) -> Tensor:
    """After the last of the tokens, [V], one whole sequence at a time."""
    run = lambda: policy.network.lm(input_ids=torch.tensor([tokens])).logits[0, -1].double()
    with torch.no_grad():
        return policy.run(run)  # type: ignore[no-any-return]


def encoded(policy: TextPolicy) -> Rows:
    return policy.encode(tiny_records())[0]


def drawn(policy: Any, rows: Rows, **decoding: Any) -> TextResponses:
    return policy.sample(rows, 3, Key.of(1), **{"max_new_tokens": 6, **decoding})


# --- mixtures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_at_its_ends_a_mixture_answers_exactly_like_one_of_the_two(kind: str | int) -> None:
    one, two = both(kind)
    rows = encoded(one)
    assert drawn(one, rows).tokens != drawn(two, rows).tokens
    for w, like in ((0.0, one), (1.0, two)):
        mixture = one.mix(two, w)
        for decoding in ({}, {"temperature": 0.7, "top_k": 20, "tokens_per_batch": 60}):
            y = drawn(mixture, rows, **decoding)
            assert y == drawn(mixture.both[int(w)], rows, **decoding)  # the frozen copy, bit for bit
            assert y.tokens == drawn(like, rows, **decoding).tokens  # log-probs of a copy differ in the last bits on some processors


@pytest.mark.parametrize("kind", MODELS)
def test_every_token_is_drawn_from_the_mixed_logits_of_both(kind: str | int) -> None:
    """Token by token against whole sequences without a cache: the same draws, and log-probs to the rounding of float32 sums.

    Prompts have different lengths, samples end at different places, and both models keep a cache: a line or a position that goes
    wrong in either shows from the second token on.
    """
    one, two = both(kind)
    rows, n, w = encoded(one), 3, 0.4
    one.stops = frozenset(range(40))  # a tenth of the vocabulary
    y = one.mix(two, w).sample(rows, n, Key.of(2), max_new_tokens=6)
    choose, uniforms = Choice(1.0, 0, 1.0), [Key.of(2).fold("sample", s).uniform(rows.id, 6) for s in range(n)]
    assert y.logp is not None
    for b, prompt in enumerate(rows.prompt):
        for s in range(n):
            so_far: tuple[int, ...] = ()
            for t, (token, logp) in enumerate(zip(y.tokens[b][s], y.logp[b][s], strict=True)):
                mixed = (1 - w) * logits(one, (*prompt, *so_far)) + w * logits(two, (*prompt, *so_far))
                assert int(choose(mixed[None], torch.tensor([uniforms[s][b, t]]))[0]) == token
                torch.testing.assert_close(float(mixed.log_softmax(0)[token]), logp, rtol=1e-4, atol=1e-5)
                so_far += (token,)
    assert len({len(tokens) for row in y.tokens for tokens in row}) > 1


def test_a_mixture_scores_what_it_drew_as_it_drew_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = both("full")
    mixture, rows = one.mix(two, 0.4), encoded(one)
    y = drawn(mixture, rows)
    asked = rows.replace(response=y, present=None, segments=None)
    scored = mixture.score(asked, ("segments",))
    kept = torch.tensor([[sum(values) for values in row] for row in y.logp or ()], dtype=torch.float64)
    torch.testing.assert_close(scored.logp, kept, rtol=1e-4, atol=1e-5)
    assert torch.equal(scored.segment_logp[:, :, 0], scored.logp) and torch.equal(scored.length, y.length)  # type: ignore[index]
    torch.testing.assert_close(one.mix(two, 0.0).score(rows).logp, one.score(rows).logp.detach(), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("preftune.policies.text.mixture.CHUNK", 400 * 5)
    torch.testing.assert_close(mixture.score(asked).logp, scored.logp, rtol=1e-5, atol=1e-5)


def test_a_mixture_stays_what_it_was_when_the_policy_moves_on() -> None:
    one, two = both("full")
    rows, mixture = encoded(one), one.mix(two, 0.5)
    before, score = drawn(mixture, rows), mixture.score(rows).logp
    with torch.no_grad():
        for p in one.parameters():
            p *= 1.5
    assert drawn(mixture, rows) == before and torch.equal(mixture.score(rows).logp, score)
    assert drawn(one.mix(two, 0.5), rows) != before


def test_draws_of_a_mixture_do_not_depend_on_batch_mates() -> None:
    one, two = both("full")
    rows, mixture = encoded(one), one.mix(two, 0.5)
    assert drawn(mixture, rows.take([3, 1])).tokens == drawn(mixture, rows).take(rows=[3, 1]).tokens


def test_a_cached_reference_can_be_mixed_from_either_side(tmp_path: Path) -> None:
    one, two = both("lora")
    rows, cached = encoded(one), CachedReference(two, LogpCache(tmp_path / "c.sqlite"))
    expected = drawn(one.mix(two, 0.3), rows)
    assert drawn(one.mix(cached, 0.3), rows) == expected
    assert drawn(cached.mix(one, 0.3), rows) == drawn(two.mix(one, 0.3), rows)
    assert cached.revise(rows) == two.revise(rows)


def test_what_a_mixture_cannot_do_is_refused() -> None:
    one, two = both("two networks")
    mixture, rows = one.mix(two, 0.5), encoded(one)
    assert mixture.copy() is mixture and mixture.parameters() == [] and mixture.state() == {}
    for attempt in (lambda: mixture.mix(one, 0.5), lambda: mixture.lerp(one, 0.5), lambda: mixture.load({})):
        with pytest.raises(PreftuneError, match="a policy with weights of its own"):
            attempt()
    with pytest.raises(PreftuneError, match="states of a mixture"):
        mixture.score(rows, ("states",))
    with pytest.raises(PreftuneError, match="400 and 410 logits and the same tokens"):
        one.mix(tiny_policy(model=tiny_model(vocabulary=410)), 0.5)
    other = tiny_tokenizer()
    other.add_tokens(["<new>"])
    with pytest.raises(PreftuneError, match="400 logits and different tokens"):
        one.mix(tiny_policy(tokenizer=other), 0.5)
    with pytest.raises(PreftuneError, match="512 positions"):
        drawn(mixture, rows, max_new_tokens=511)


# --- a request to improve ---------------------------------------------------------------------------------------------


def test_a_draft_is_answered_by_the_next_turn_of_the_user() -> None:
    policy = tiny_policy()
    record = Record("a", "the value", ["is a list", "may be"])
    rows, _ = policy.encode([record])
    prompts = policy.revise(rows)
    for k, draft in enumerate(record.responses):
        assert policy.tokenizer.decode(prompts[0][k]) == (
            f"<|im_start|>user\nthe value<|im_end|>\n<|im_start|>assistant\n{draft}<|im_end|>\n"
            f"<|im_start|>user\n{REVISE}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert prompts[0][k][: len(rows.prompt[0])] == rows.prompt[0]
    unfinished = rows.replace(response=TextResponses(((rows.response.tokens[0][0][:-1],),)))  # cut before its end of turn
    assert policy.revise(unfinished)[0][0] == prompts[0][0]


def test_without_a_template_the_request_is_a_paragraph() -> None:
    policy = tiny_policy(tokenizer=tiny_tokenizer(template=False))
    rows, _ = policy.encode([Record("a", "the value", [" is a list"])])
    assert policy.tokenizer.decode(policy.revise(rows)[0][0]) == f"the value is a list\n\n{REVISE}\n\n"


def test_the_prompt_of_a_revision_is_encoded_as_that_conversation_would_be() -> None:
    policy = tiny_policy()
    rows, _ = policy.encode([Record("a", "the value", ["is a list"])])
    turns = [("user", "the value"), ("assistant", "is a list"), ("user", REVISE)]
    again, _ = policy.encode([Record("a", [{"role": role, "content": content} for role, content in turns], ["x"])])
    assert policy.revise(rows)[0][0] == again.prompt[0]


def test_a_revision_can_be_sampled_and_revised_again() -> None:
    policy = tiny_policy()
    rows, _ = policy.encode(tiny_records(2))
    second = rows.replace(prompt=tuple(row[0] for row in policy.revise(rows)))
    second = second.replace(response=drawn(policy, second))
    third = policy.revise(second)
    assert all(prompt[: len(second.prompt[b])] == second.prompt[b] for b, row in enumerate(third) for prompt in row)


# --- a prompt for each column -----------------------------------------------------------------------------------------


def per_column(policy: TextPolicy) -> tuple[Rows, list[Rows]]:
    """Rows whose second column answers a revision of the first, and the columns as rows of their own."""
    rows = encoded(policy)
    prompts = tuple((prompt, asked[0]) for prompt, asked in zip(rows.prompt, policy.revise(rows), strict=True))
    apart = [replace(rows, prompt=[row[k] for row in prompts], response=rows.response.take(columns=[k])) for k in (0, 1)]
    return rows.replace(prompts=prompts), apart


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("train", ["full", 1])
def test_columns_with_prompts_of_their_own_score_like_rows_of_their_own(engine: str, train: str | int) -> None:
    policy = tiny_policy(train, engine=engine)
    rows, apart = per_column(policy)
    together = policy.score(rows, ("collision",))
    alone = [policy.score(some, ("collision",)) for some in apart]
    for name in ("logp", "collision"):
        torch.testing.assert_close(getattr(together, name), torch.cat([getattr(s, name) for s in alone], 1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together.logp, policy.score(rows.replace(prompts=None)).logp, atol=0.1)
    slopes = [torch.autograd.grad(s.logp.sum(), policy.parameters()) for s in (together, *alone)]
    for whole, *parts in zip(*slopes, strict=True):
        torch.testing.assert_close(sum(parts), whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def test_alone_a_column_scores_bit_for_bit_like_a_row() -> None:
    policy = tiny_policy(tokens_per_batch=0)
    rows, apart = per_column(policy)
    together = policy.score(rows).logp
    assert torch.equal(together, torch.cat([policy.score(some).logp for some in apart], 1))
    assert torch.equal(policy.score(rows.take([3, 1])).logp, together[[3, 1]])


def test_the_cache_of_a_reference_knows_a_columns_own_prompt(tmp_path: Path) -> None:
    policy = tiny_policy()
    (rows, apart), cached = per_column(policy), CachedReference(policy.reference(), LogpCache(tmp_path / "c.sqlite"))
    cached.score(rows.replace(prompts=None))
    assert (cached.hits, cached.misses) == (0, 10)
    scored = cached.score(rows).logp  # the first columns answer what they answered before
    assert (cached.hits, cached.misses) == (5, 15)
    torch.testing.assert_close(scored, policy.reference().score(rows).logp, rtol=1e-6, atol=1e-6)
    cached.score(apart[1])
    assert (cached.hits, cached.misses) == (10, 15)


def test_an_attack_on_columns_with_prompts_of_their_own_is_refused() -> None:
    policy = tiny_policy()
    rows, _ = per_column(policy)
    with pytest.raises(PreftuneError, match="one prompt a row to move"):
        policy.perturb(rows, policy.offsets(rows))
