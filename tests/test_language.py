"""Answers of two tokens: the law of whole answers is the product over tokens, mixtures of tokens and of answers are two things."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from preftune import methods
from preftune.collect.draw import against_opponent
from preftune.exact.games import random_game
from preftune.exact.nash import regularised_nash
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.policies.language import LanguagePolicy, sequence_logp, sequence_mixture
from preftune.policies.tabular import TableResponses
from preftune.types import Context, Head, Key, Policy, PreftuneError, Rows

V = 3


def logits(seed: int, games: int = 2, v: int = V) -> Tensor:
    return torch.randn(games, 1 + v, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def language(seed: int, *, exact: bool = True) -> LanguagePolicy:
    return LanguagePolicy(logits(seed), exact=exact)


def everything(policy: LanguagePolicy) -> Rows:
    """Every answer of every game, with its law."""
    y = policy.sample(policy.rows(), 1, Key.of(0))
    return policy.rows().replace(response=y, law=y.law)


# --- the law ----------------------------------------------------------------------------------------------------------


def test_the_probability_of_an_answer_is_the_product_over_its_tokens() -> None:
    policy: Policy = language(0)
    law = logits(0).softmax(-1)
    found = policy.probabilities()  # type: ignore[attr-defined]
    for g, a, b in itertools.product(range(2), range(V), range(V)):
        assert math.isclose(found[g, a * V + b], law[g, 0, a] * law[g, 1 + a, b], rel_tol=1e-14)
    torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))


def test_scores_are_the_logarithms_of_the_law_and_count_two_tokens() -> None:
    policy = language(0)
    rows = everything(policy)
    s = policy.score(rows, ("segments",))
    torch.testing.assert_close(s.logp.exp(), rows.law)
    torch.testing.assert_close(s.mean_logp, s.logp / 2)
    torch.testing.assert_close(s.segment_logp.sum(2), s.logp)  # type: ignore[union-attr]
    y = rows.response
    for some in (y, y.take(columns=[3]), y.join(y), policy.unpack(y.pack())):
        assert (some.length == 2).all()
    assert (s.segment_logp[:, :, 0].exp() - logits(0).softmax(-1)[:, 0].repeat_interleave(V, 1)).abs().max() < 1e-15  # type: ignore[index]


def test_the_mean_slope_of_the_log_probability_is_zero() -> None:
    policy = language(1)
    rows = everything(policy)
    (slope,) = torch.autograd.grad((rows.law * policy.score(rows).logp).sum(), policy.parameters())
    assert slope.abs().max() < 1e-15


def test_segments_are_summed_between_the_boundaries_given() -> None:
    policy = language(0)
    rows = everything(policy)
    tokens = policy.score(rows, ("segments",)).segment_logp
    assert tokens is not None
    cuts = torch.tensor([0, 0, 1, 1, 2]).expand(2, V * V, -1)
    found = policy.score(rows.replace(segments=cuts), ("segments",)).segment_logp
    nothing = torch.zeros_like(tokens[:, :, 0])
    torch.testing.assert_close(found, torch.stack([nothing, tokens[:, :, 0], nothing, tokens[:, :, 1]], 2))
    with pytest.raises(PreftuneError, match="boundaries from 0 to the 2 tokens"):
        policy.score(rows.replace(segments=cuts + 1), ("segments",))


def test_collision_is_the_sum_over_tokens_of_the_law_met_at_each() -> None:
    """log sum_v pi(v)^2 at the empty prefix, and again after the first token."""
    policy = language(0)
    found, law = policy.score(everything(policy), ("collision",)).collision, logits(0).softmax(-1)
    assert found is not None and not found.requires_grad
    for g, a, b in itertools.product(range(2), range(V), range(V)):
        expected = math.log((law[g, 0] ** 2).sum()) + math.log((law[g, 1 + a] ** 2).sum())
        assert math.isclose(found[g, a * V + b], expected, rel_tol=1e-13)


def test_columns_with_prompts_of_their_own_score_like_rows_of_their_own() -> None:
    policy = language(0)
    policy.attach({"worth": Head(2, std=1.0)}, Key.of(0))
    rows = Rows(("a",), (0,), TableResponses(torch.tensor([[4, 7, 4]])), prompts=((0, 1, 1),))
    apart = Rows(("a", "b", "c"), (0, 1, 1), TableResponses(torch.tensor([[4], [7], [4]])))
    together, alone = policy.score(rows, ("segments", "collision")), policy.score(apart, ("segments", "collision"))
    for name in ("logp", "segment_logp", "collision"):
        assert torch.equal(getattr(together, name)[0], getattr(alone, name)[:, 0])
    assert torch.equal(together.heads["worth"][0], alone.heads["worth"][:, 0])


# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5, math.inf])
def test_draws_follow_the_law_that_is_answered_exactly(temperature: float) -> None:
    """20,000 draws a game: every frequency within 4.5 standard errors, .016 at most; a first token taken twice is off by far more."""
    policy, n = language(2, exact=False), 20_000
    y = policy.sample(policy.rows(), n, Key.of(0), temperature=temperature)
    law = LanguagePolicy(policy.logits).sample(policy.rows(), 1, Key.of(0), temperature=temperature).law
    found = torch.zeros(2, V * V, dtype=torch.float64).scatter_add(1, y.index, torch.full(y.shape, 1 / n, dtype=torch.float64))
    assert ((found - law).abs() < 4.5 * (law * (1 - law) / n).sqrt()).all()


def test_every_token_is_tempered_by_itself() -> None:
    """Twice as sure tokens make other answers likely than a law of answers made twice as sure."""
    policy = language(2)
    law = policy.sample(policy.rows(), 1, Key.of(0), temperature=0.5).law
    torch.testing.assert_close(law, LanguagePolicy(2 * policy.logits).probabilities())
    whole = (2 * sequence_logp(policy.logits.detach())).softmax(-1)
    assert (law - whole).abs().max() > 0.015


def test_a_draw_depends_on_key_and_row_and_not_on_the_batch() -> None:
    policy = language(2, exact=False)
    rows = Rows(tuple(map(str, range(30))), tuple(i % 2 for i in range(30)))
    whole, part = (policy.sample(some, 3, Key.of(3)) for some in (rows, rows.take([7, 2])))
    assert torch.equal(part.index, whole.index[[7, 2]])
    assert not torch.equal(policy.sample(rows, 3, Key.of(4)).index, whole.index)
    with pytest.raises(PreftuneError, match="temperature is 0"):
        policy.sample(rows, 1, Key.of(0), temperature=0.0)


# --- copies and mixtures ----------------------------------------------------------------------------------------------


def test_copies_are_frozen_and_a_state_comes_back_with_its_heads() -> None:
    policy = language(0)
    policy.attach({"worth": Head(1)}, Key.of(0))
    state, copy = policy.state(), policy.copy()
    for parameter in policy.parameters():
        parameter.data += 1.0
        parameter.data[0] *= 2.0
    assert torch.equal(copy.logits, logits(0)) and not copy.logits.requires_grad and not copy.heads
    policy.load(state)
    assert torch.equal(policy.logits, logits(0)) and torch.equal(policy.heads["worth"], state["heads.worth"])
    moved = policy.lerp(language(1), 1.5)
    torch.testing.assert_close(moved.logits.detach(), 1.5 * logits(1) - 0.5 * logits(0))


def test_a_mixture_of_next_tokens_is_geometric_at_every_prefix() -> None:
    mixed = language(0).mix(language(1), 0.3).logits.softmax(-1)
    raw = logits(0).softmax(-1) ** 0.7 * logits(1).softmax(-1) ** 0.3
    torch.testing.assert_close(mixed.detach(), raw / raw.sum(-1, keepdim=True))


def test_a_mixture_of_whole_answers_is_geometric_over_all_of_them() -> None:
    found = sequence_mixture(language(0), language(1), 0.3)
    raw = language(0).probabilities() ** 0.7 * language(1).probabilities() ** 0.3
    torch.testing.assert_close(found, raw / raw.sum(1, keepdim=True))


def test_the_two_mixtures_differ_by_what_the_second_token_says_of_the_first() -> None:
    """sequence(ab) = token(ab) Z_a / E Z: the same second token after a first, but other first tokens. Here .02 to .06 apart."""
    one, two = language(0), language(1)
    token, sequence = one.mix(two, 0.5).probabilities(), sequence_mixture(one, two, 0.5)
    Z = (logits(0).softmax(-1) * logits(1).softmax(-1)).sqrt().sum(-1)[:, 1:].repeat_interleave(V, 1)  # [G, V^2]
    expected = token * Z
    torch.testing.assert_close(sequence, expected / expected.sum(1, keepdim=True))
    second = lambda law: law.reshape(2, V, V) / law.reshape(2, V, V).sum(2, keepdim=True)
    torch.testing.assert_close(second(sequence), second(token))
    assert ((sequence - token).abs().sum(1) > 0.02).all()


def test_the_two_mixtures_agree_where_the_second_token_does_not_know_the_first() -> None:
    def product(seed: int) -> LanguagePolicy:
        z = logits(seed)
        return LanguagePolicy(torch.cat([z[:, :1], z[:, 1:2].expand(-1, V, -1)], 1))

    for w in (0.2, 0.5, 0.9):
        torch.testing.assert_close(product(0).mix(product(1), w).probabilities(), sequence_mixture(product(0), product(1), w))


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_the_two_mixtures_agree_at_their_ends(w: float) -> None:
    one, two = language(0), language(1)
    torch.testing.assert_close(one.mix(two, w).probabilities(), sequence_mixture(one, two, w))
    torch.testing.assert_close(one.mix(two, w).probabilities(), (one, two)[int(w)].probabilities())


# --- games ------------------------------------------------------------------------------------------------------------


def test_the_judge_of_a_table_compares_answers() -> None:
    P = random_game(V * V, 0)
    policy = LanguagePolicy(logits(0, games=1))
    ctx = Context({"current": policy, "opponent": policy}, policy.rows(), (PreferenceTable(P),))
    rows = against_opponent(ctx)
    torch.testing.assert_close(rows.winrate[0], P @ policy.probabilities()[0])


def test_egpo_on_answers_of_two_tokens_ends_at_the_equilibrium_of_the_game_of_answers() -> None:
    """A softmax at every prefix can take any law, so the parametrisation moves the path and not the end."""
    P, mu = random_game(4, 0), LanguagePolicy(logits(3, games=1, v=2))
    policy, method = LanguagePolicy(logits(4, games=1, v=2)), methods.egpo(beta=0.5)
    learner = GradientLearner(policy, method, {"current": policy, "reference": mu.reference()}, optimiser="sgd", lr=0.3, clip=0.0)
    for _ in range(600):
        against = lambda z: method.collect(Context({**learner.roles, "opponent": z}, policy.rows(), (PreferenceTable(P),)))
        method.update(learner, against)
    expected = regularised_nash(P, sequence_logp(mu.logits.detach())[0], 0.5).exp()
    torch.testing.assert_close(policy.probabilities()[0], expected, rtol=0, atol=1e-10)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_a_language_of_two_tokens_cannot_do_is_refused() -> None:
    policy = language(0)
    with pytest.raises(PreftuneError, match="no prompts with a draft"):
        policy.revise(everything(policy))
    with pytest.raises(PreftuneError, match="hidden states"):
        policy.score(everything(policy), ("states",))
    for wrong in (torch.zeros(2, 3, 3), torch.zeros(4), torch.full((1, 3, 2), math.nan)):
        with pytest.raises(PreftuneError, match=r"needed finite ones \[games, 1 \+ V, V\]"):
            LanguagePolicy(wrong)
