"""The fast solvers against the single steps, Newton's method and their own theory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from preftune.exact.games import GAMES, game, random_game, reference_logits
from preftune.exact.nash import (
    duality_gap,
    extragradient_safe,
    extragradient_step,
    hedge_step,
    mirror_descent_step,
    mmd_step,
    nash_md_step,
    omwu_step,
    optimistic_safe,
    optimistic_step,
    regularised_gap,
    regularised_nash,
)
from preftune.exact.solver import ALONE, RULES, solve
from preftune.types import PreftuneError

NEVER = -1.0  # a gap below which no policy is, apart from rounding
Step = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]  # theta, previous, log mu, P, eta, beta

STEPS: dict[str, Step] = {
    "omd": lambda theta, previous, log_mu, P, eta, beta: mirror_descent_step(theta, log_mu, P, eta, beta),
    "mmd": lambda theta, previous, log_mu, P, eta, beta: mmd_step(theta, log_mu, P, eta, beta),
    "nash-md": lambda theta, previous, log_mu, P, eta, beta: nash_md_step(theta, log_mu, P, eta, beta),
    "egpo": lambda theta, previous, log_mu, P, eta, beta: extragradient_step(theta, log_mu, P, eta, beta),
    "hedge": lambda theta, previous, log_mu, P, eta, beta: hedge_step(theta, P, eta),
    "omwu": lambda theta, previous, log_mu, P, eta, beta: omwu_step(theta, previous, P, eta),
}


def random_games(count: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """P [count, n, n] with every pair decided by a uniform draw, and references [count, n]."""
    generator = torch.Generator().manual_seed(seed)
    lower = torch.rand(count, n, n, generator=generator, dtype=torch.float64).tril(-1)
    P = lower + (1 - lower.mT).triu(1) + 0.5 * torch.eye(n, dtype=torch.float64)
    return P, torch.randn(count, n, generator=generator, dtype=torch.float64).log_softmax(-1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


# --- the rules are those of `nash` ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("rule", STEPS)
def test_seven_steps_in_place_are_seven_steps_in_closed_form(rule: str, shape: tuple[int, ...]) -> None:
    P, log_mu = random_games(4, 6)
    P, log_mu = (
        (P[0], log_mu[0])
        if not shape
        else (P[: shape[0]], log_mu[: shape[0]])
        if len(shape) == 1
        else (P.view(2, 2, 6, 6), log_mu.view(2, 2, 6))
    )
    beta = 0.0 if rule in ("hedge", "omwu") else 0.1
    theta = previous = log_mu
    for _ in range(7):
        theta, previous = STEPS[rule](theta, previous, log_mu, P, 0.7, beta), theta
    found = solve(P, log_mu, beta, rule=rule, eta=0.7, gap=NEVER, steps=7)
    assert found.log_p.shape == (*shape, 6) and found.gap.shape == found.steps.shape == shape
    # a dozen roundings a step of numbers up to 5
    torch.testing.assert_close(found.log_p, theta.log_softmax(-1), rtol=0, atol=1e-13)
    gap = regularised_gap(P, theta, log_mu, beta) if beta else duality_gap(P, theta.softmax(-1))
    torch.testing.assert_close(found.gap, gap, rtol=0, atol=1e-14)
    assert (found.steps == 7).all() and (found.calls == (14 if rule == "egpo" else 7)).all() and not found.arrived.any()


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_optimistic_policy_is_the_extrapolated_one(beta: float) -> None:
    P, log_mu = random_games(3, 6)
    theta = previous = log_mu
    for _ in range(7):
        theta, previous = optimistic_step(theta, previous, log_mu, P, 0.7, beta), theta
    found = solve(P, log_mu, beta, rule="optimistic", eta=0.7, gap=NEVER, steps=7)
    half = theta + (1 - 0.7 * beta) * (theta - previous)
    torch.testing.assert_close(found.log_p, half.log_softmax(-1), rtol=0, atol=1e-13)


def test_the_optimistic_half_step_takes_the_win_rates_of_the_half_step_before() -> None:
    """half = (1 - eta beta) theta + eta beta log mu + eta P softmax(half before), by hand on three steps, and next from it."""
    P, log_mu, eta, beta = game("rand10"), reference_logits(10), 0.9, 0.05
    theta = previous = log_mu
    seen = None
    for _ in range(3):
        pulled = (1 - eta * beta) * theta + eta * beta * log_mu
        half = theta if seen is None else pulled + eta * seen
        seen = P @ half.softmax(-1)
        following = optimistic_step(theta, previous, log_mu, P, eta, beta)
        torch.testing.assert_close(following, pulled + eta * seen, rtol=0, atol=1e-14)
        theta, previous = following, theta


@pytest.mark.parametrize(("rule", "eta", "beta", "count"), [("omd", 0.2, 0.1, 329), ("egpo", 2, 0.01, 244), ("mmd", 0.5, 0.1, 147)])
def test_the_counts_of_rand10_are_found(rule: str, eta: float, beta: float, count: int) -> None:
    found = solve(game("rand10"), reference_logits(10), beta, rule=rule, eta=eta, gap=1e-6)
    assert found.steps == count and found.arrived


# --- where they arrive ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("rule", ["adaptive", "adaptive-egpo"])
def test_adaptive_rules_arrive_at_the_equilibrium_of_every_game_without_a_step_size(rule: str, beta: float) -> None:
    for name in GAMES:
        P = game(name)
        log_mu = reference_logits(len(P))
        found = solve(P, log_mu, beta, rule=rule, gap=1e-12, check=10)
        equilibrium = regularised_nash(P, log_mu, beta)
        # gap >= 2 beta KL(p, p*), so that |p - p*|_1 <= sqrt(gap / beta)
        assert found.arrived and (found.log_p.exp() - equilibrium.exp()).abs().sum() <= (1e-12 / beta) ** 0.5, name


@pytest.mark.parametrize("rule", ["adaptive", "adaptive-egpo"])
def test_adaptive_rules_arrive_on_every_one_of_a_thousand_random_games(rule: str) -> None:
    P, log_mu = random_games(1000, 10)
    found = solve(P, log_mu, 0.01, rule=rule, gap=1e-8, steps=2000, check=5)
    assert found.arrived.all()
    assert (regularised_gap(P, found.log_p, log_mu, 0.01) <= 1.01e-8).all()  # measured again from the result


def test_adaptive_rules_need_about_as_many_judge_calls_as_egpo_with_the_best_of_twenty_steps() -> None:
    """rand10, beta .01: 236 (one call a step) and 272 (two) against 244."""
    P, log_mu = game("rand10"), reference_logits(10)
    tuned = solve(
        P.expand(20, 10, 10), log_mu, 0.01, rule="egpo", eta=torch.linspace(0.5, 5, 20, dtype=torch.float64), gap=1e-6, steps=2000
    )
    best = tuned.calls[tuned.arrived].min()
    for rule, times in {"adaptive": 1.0, "adaptive-egpo": 1.15}.items():
        assert solve(P, log_mu, 0.01, rule=rule, gap=1e-6).calls <= times * best, rule


@pytest.mark.parametrize("n", [ALONE - 3, ALONE + 3])
def test_large_and_small_games_take_different_ways_to_the_same_equilibrium(n: int) -> None:
    P = torch.stack([random_game(n, seed) for seed in (0, 1)])
    log_mu = reference_logits(n)
    found = solve(P, log_mu, 0.1, gap=1e-13)
    torch.testing.assert_close(found.log_p, regularised_nash(P, log_mu, 0.1), rtol=0, atol=1e-5)  # sqrt(1e-13 / .1) = 1e-6


# --- their theory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1, 0.1, 0.01])
@pytest.mark.parametrize("name", GAMES)
def test_up_to_the_safe_step_egpo_contracts_at_every_step_from_any_start(name: str, beta: float) -> None:
    P = game(name)
    log_mu = reference_logits(len(P))
    eta, target = extragradient_safe(P, beta), regularised_nash(P, log_mu, beta)
    theta = (3 * torch.randn(50, len(P), dtype=torch.float64, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    for _ in range(30):
        following = extragradient_step(theta, log_mu, P, eta, beta).log_softmax(-1)
        assert (divergence(target, following) <= (1 - eta * beta) * divergence(target, theta) + 1e-14).all()
        theta = following


@pytest.mark.parametrize("beta", [1, 0.1, 0.01])
@pytest.mark.parametrize("name", GAMES)
def test_up_to_the_safe_step_the_optimistic_step_contracts_at_every_step_from_any_start(name: str, beta: float) -> None:
    """KL(p*, p) + KL(half before, p), the quantity of `optimistic_safe`; the first step has no half step before."""
    P = game(name)
    log_mu = reference_logits(len(P))
    eta, target = optimistic_safe(P, beta), regularised_nash(P, log_mu, beta)
    theta = (3 * torch.randn(50, len(P), dtype=torch.float64, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    previous = energy = None
    for _ in range(30):
        half = theta if previous is None else (theta + (1 - eta * beta) * (theta - previous)).log_softmax(-1)
        following = optimistic_step(theta, theta if previous is None else previous, log_mu, P, eta, beta).log_softmax(-1)
        now = divergence(target, following) + divergence(half, following)
        assert energy is None or (now <= (1 - eta * beta) * energy + 1e-14).all()
        theta, previous, energy = following, theta, now


def test_the_identity_behind_both_proofs() -> None:
    """KL(p*, q) = (1 - a) KL(p*, p) - (1 - a) KL(h, p) + KL(h, q) - a KL(h, p*) for any h and q stepped against it, here h random."""
    P, log_mu, eta, beta = game("gpm20"), reference_logits(20), 1.3, 0.05
    p, h = torch.randn(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    target, a = regularised_nash(P, log_mu, beta), eta * beta
    q = ((1 - a) * p + a * log_mu + eta * P @ h.exp()).log_softmax(-1)
    right = (1 - a) * divergence(target, p) - (1 - a) * divergence(h, p) + divergence(h, q) - a * divergence(h, target)
    assert abs(divergence(target, q) - right) <= 1e-13


@pytest.mark.parametrize("rule", ["adaptive", "adaptive-egpo"])
def test_more_steps_of_an_adaptive_rule_bring_it_closer_in_divergence(rule: str) -> None:
    """The certified quantity falls at every step. KL(p*, p) itself does for EGPO; for the optimistic rule over a few steps."""
    P, log_mu = random_games(100, 10)
    target = regularised_nash(P, log_mu, 0.05)
    apart = torch.stack([divergence(target, solve(P, log_mu, 0.05, rule=rule, gap=NEVER, steps=k).log_p) for k in range(1, 32, 5)])
    assert (apart.diff(dim=0) <= 1e-14).all()


def test_iterating_on_beyond_the_last_digit_does_no_harm() -> None:
    P, log_mu = random_games(20, 10)
    for rule in ("adaptive", "adaptive-egpo"):
        found = solve(P, log_mu, 0.1, rule=rule, gap=NEVER, steps=3000)
        assert (found.gap.abs() <= 1e-15).all(), rule


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_game_does_not_feel_its_batch_mates(rule: str) -> None:
    """Alone, in a batch of five and in one that is thinned out while it runs. Sums of ten products may be in another order."""
    P, log_mu = random_games(200, 10)
    beta, eta = (0.0, 0.1) if rule == "hedge" else (0.05, None if RULES[rule].first else 0.5)
    many = solve(P, log_mu, beta, rule=rule, eta=eta, gap=1e-5, steps=300)
    few = solve(P[:5], log_mu[:5], beta, rule=rule, eta=eta, gap=1e-5, steps=300)
    alone = [solve(P[g], log_mu[g], beta, rule=rule, eta=eta, gap=1e-5, steps=300) for g in range(5)]
    for g in range(5):
        assert many.steps[g] == few.steps[g] == alone[g].steps
        torch.testing.assert_close(many.log_p[g], few.log_p[g], rtol=0, atol=1e-12)
        torch.testing.assert_close(alone[g].log_p, few.log_p[g], rtol=0, atol=1e-9 if eta is None else 1e-12)  # eta follows rounding


def test_games_of_a_batch_stop_by_themselves() -> None:
    P = torch.stack([game("rps"), game("dice"), 0.5 * torch.ones(3, 3, dtype=torch.float64)])
    found = solve(P, reference_logits(3), 0.1, rule="egpo", eta=1.0, gap=1e-6)
    assert found.steps.tolist() == [35, 30, 0] and found.calls.tolist() == [70, 60, 0]


def test_every_game_of_a_batch_may_have_its_own_step() -> None:
    P, log_mu = game("rand10"), reference_logits(10)
    eta = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    found = solve(P, log_mu, 0.1, rule="egpo", eta=eta, gap=1e-6)
    assert found.steps.tolist() == [301, 112, 51]


def test_a_run_that_overflows_ends_and_says_so() -> None:
    found = solve(game("rps"), reference_logits(3), 1.0, rule="omd", eta=1e3, gap=1e-6, steps=5000)
    assert not found.arrived and found.gap.isnan() and found.steps < 5000


def test_a_run_leaves_its_arguments_alone() -> None:
    P, log_mu, start = game("rps"), reference_logits(3), torch.zeros(3, dtype=torch.float64)
    solve(P, log_mu, 0.1, start=start)
    assert P.equal(game("rps")) and log_mu.equal(reference_logits(3)) and start.equal(torch.zeros_like(start))


def test_float32_games_are_solved_in_float32() -> None:
    found = solve(game("rand50").float(), reference_logits(50).float(), 0.1, gap=1e-6)
    assert found.log_p.dtype == torch.float32 and found.arrived
    assert regularised_gap(game("rand50"), found.log_p.double(), reference_logits(50), 0.1) <= 2e-6  # float32 sees 6e-8 of numbers near 10


def test_a_game_of_one_response_is_solved_at_once() -> None:
    found = solve(torch.full((1, 1), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), 0.1)
    assert found.arrived and found.steps == 0 and found.log_p == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(rule="egpoo"), "did you mean 'egpo'"),
        (dict(rule="egpo"), "egpo needs a step eta"),
        (dict(rule="hedge", eta=0.1), "no pull to a reference"),
        (dict(beta=-1.0), "at least 0"),
        (dict(check=0), "check >= 1"),
    ],
)
def test_what_cannot_be_iterated_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(PreftuneError, match=words):
        solve(game("rps"), reference_logits(3), **{"beta": 0.1, **settings})  # type: ignore[arg-type]
