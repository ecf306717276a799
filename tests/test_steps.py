"""Advised step sizes against closed forms, printed numbers and measured runs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from preftune.exact.games import GAMES, game, random_game, reference_logits
from preftune.exact.nash import (
    extragradient_step,
    mirror_descent_limit,
    mirror_descent_step,
    optimistic_step,
    regularised_nash,
    rotation,
    rotation_bound,
    spectrum,
)
from preftune.exact.solver import solve
from preftune.exact.steps import FACTORS, advise, advise_for, advise_unseen, iterations, radius, rotations
from preftune.types import PreftuneError


def measured_rate(rule: str, P: Tensor, log_mu: Tensor, eta: float, beta: float) -> float:
    """The factor by which the linearised step shrinks what is left after many turns, from the Jacobian by automatic differentiation."""
    target = regularised_nash(P, log_mu, beta)
    n = len(P)
    if rule == "optimistic":
        state, step = torch.cat([target, target]), lambda x: torch.cat([optimistic_step(x[:n], x[n:], log_mu, P, eta, beta), x[:n]])
    else:
        one = {"omd": mirror_descent_step, "egpo": extragradient_step}[rule]
        state, step = target, lambda x: one(x, log_mu, P, eta, beta)
    centre = torch.eye(n, dtype=P.dtype) - 1 / n  # a constant added to logits is no direction
    centre = torch.block_diag(*[centre] * (len(state) // n))
    jacobian: Tensor = torch.autograd.functional.jacobian(step, state)  # type: ignore[assignment]
    return float(torch.linalg.eigvals(centre @ jacobian @ centre).abs().max())


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("rule", FACTORS)
def test_the_predicted_rate_is_that_of_the_jacobian_of_the_step(rule: str, name: str, beta: float) -> None:
    P = game(name)
    log_mu = reference_logits(len(P))
    advice = advise(P, log_mu, beta)
    for eta in (0.1, 0.7, 2.0, getattr(advice, f"{rule}_best")):
        predicted = radius(FACTORS[rule], beta, (advice.rotation, advice.slowest))(eta)
        # a double eigenvalue of a Jacobian that is no normal matrix moves by the root of its rounding
        assert measured_rate(rule, P, log_mu, eta, beta) == pytest.approx(predicted, abs=1e-6), eta


@pytest.mark.parametrize(
    ("beta", "eta", "rule", "rate"),
    [
        (0.1, 0.5, "omd", 0.9566),
        (0.1, 0.5, "egpo", 0.9500),
        (0.01, 1.0, "omd", 1.0208),
        (0.01, 1.0, "egpo", 0.9900),
        (0.01, 4.0, "egpo", 0.9600),
        (0.01, 4.1, "egpo", 0.982),
        (0.01, 5.0, "egpo", 1.33),
    ],
)
def test_rates_of_rand10_to_the_printed_digits(beta: float, eta: float, rule: str, rate: float) -> None:
    turns = spectrum(game("rand10"), regularised_nash(game("rand10"), reference_logits(10), beta))
    assert radius(FACTORS[rule], beta, turns)(eta) == pytest.approx(rate, abs=5e-5 if rate < 0.98 or rate > 1.5 else 5e-3)


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("name", GAMES)
def test_only_the_largest_and_the_smallest_rotation_count(name: str, beta: float) -> None:
    """|factor|^2 is convex in s^2 for omd and egpo; for the optimistic step this is the check."""
    P = game(name)
    turns = spectrum(P, regularised_nash(P, reference_logits(len(P)), beta))
    for rule, factor in FACTORS.items():
        whole, ends = radius(factor, beta, turns), radius(factor, beta, turns[[0, -1]])
        for eta in torch.linspace(0.01, 2 / beta, 100).tolist():
            assert whole(eta) == pytest.approx(ends(eta), rel=1e-12), (rule, eta)


@pytest.mark.parametrize(("beta", "s"), [(1.0, 0.3), (0.1, 0.3), (0.01, 0.25), (0.001, 0.25), (0.1, 1e-9)])
def test_closed_forms_where_some_direction_does_not_rotate(beta: float, s: float) -> None:
    found = advise_for(beta, s)
    size = math.hypot(beta, s)
    assert found.omd_limit == pytest.approx(mirror_descent_limit(s, beta), rel=1e-9)
    assert found.omd_best == pytest.approx(beta / size**2, rel=1e-5)  # a smooth minimum: half the digits
    assert found.omd_rate == pytest.approx(s / size, abs=1e-7)
    assert found.egpo_best == pytest.approx(1 / size, rel=1e-6)
    assert found.egpo_rate == pytest.approx(1 - beta / size, abs=1e-7)
    a = found.optimistic_best * beta
    assert found.optimistic_best * s == pytest.approx((1 - a) * math.sqrt((1 + a) / (3 - a)), abs=1e-6)
    assert found.optimistic_rate == pytest.approx(1 - a, abs=1e-7)


def test_limits_without_a_pull_are_those_of_a_pure_rotation() -> None:
    """egpo eta s = 1, optimistic eta s = 1/sqrt(3); at eta s = 1/2 the fastest direction of the optimistic step halves in two steps."""
    found = advise_for(1e-9, 0.25)
    assert found.egpo_limit * 0.25 == pytest.approx(1, abs=1e-6)
    assert found.optimistic_limit * 0.25 == pytest.approx(1 / math.sqrt(3), abs=1e-6)
    assert radius(FACTORS["optimistic"], 1e-9, (0.25,))(2.0) == pytest.approx(math.sqrt(0.5), abs=1e-4)  # a double root


@pytest.mark.parametrize("name", ["rps", "rand10", "rand50", "gpm20", "munos"])
@pytest.mark.parametrize("rule", FACTORS)
def test_runs_from_beside_the_equilibrium_stay_below_the_limit_and_leave_above(rule: str, name: str) -> None:
    P, beta = game(name), 0.05
    log_mu = reference_logits(len(P))
    target = regularised_nash(P, log_mu, beta)
    limit = getattr(advise(P, log_mu, beta), f"{rule}_limit")
    beside = target + 1e-4 * torch.randn(len(P), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    below, above = (
        solve(P, log_mu, beta, rule=rule, eta=limit * by, gap=-1, steps=3000, check=3000, start=beside).gap for by in (0.9, 1.1)
    )
    assert below < 1e-13 and above > 1e-6


@pytest.mark.parametrize("rule", FACTORS)
def test_the_predicted_number_of_steps_is_that_of_a_run(rule: str) -> None:
    P, log_mu, beta = game("rand10"), reference_logits(10), 0.1
    advice = advise(P, log_mu, beta)
    eta, rate = getattr(advice, f"{rule}_best"), getattr(advice, f"{rule}_rate")
    counts = [int(solve(P, log_mu, beta, rule=rule, eta=eta, gap=gap).steps) for gap in (1e-4, 1e-12)]
    assert counts[1] - counts[0] == pytest.approx(iterations(rate, 1e-12, 1e-4), rel=0.1)


def test_iterations_count_gaps_not_distances() -> None:
    """rate .5: the gap falls by 4 a step, 1 -> 1/16 takes 2."""
    assert iterations(0.5, 1 / 16) == pytest.approx(2)
    assert iterations(1.02) == math.inf and iterations(0.0) == 1
    with pytest.raises(PreftuneError, match="gap <= start"):
        iterations(0.5, 1.0, 0.1)


# --- rotations --------------------------------------------------------------------------------------------------------


def test_no_policy_of_any_game_rotates_faster_than_the_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (2, 3, 5, 10, 31):
        A = torch.randn(200, n, n, generator=generator, dtype=torch.float64).sign().triu(1) / 2  # every pair decided
        P = 0.5 + A - A.mT
        log_p = torch.randn(200, n, generator=generator, dtype=torch.float64).log_softmax(-1)
        assert (rotation(P, log_p) <= rotation_bound(P)).all()
    assert rotation_bound(game("dice")) == pytest.approx(1 / 9 / math.pi)


def test_long_cycles_come_close_to_the_bound() -> None:
    """i beats the (n - 1) / 2 that follow: s = cot(pi / 2n) / 2n at the centre, which goes to 1 / pi."""
    for n in (3, 5, 51):
        i = torch.arange(n)
        ahead = (i[None] - i[:, None]) % n
        P = 0.5 + 0.5 * ((ahead > 0) & (ahead <= n // 2)).double() - 0.5 * (ahead > n // 2).double()
        s = rotation(P, torch.zeros(n, dtype=torch.float64))
        assert s == pytest.approx(1 / math.tan(math.pi / (2 * n)) / (2 * n), rel=1e-12)
    assert s == pytest.approx(1 / math.pi, rel=1e-3)


@pytest.mark.parametrize("name", GAMES)
def test_rotations_are_the_eigenvalues_of_the_linearised_game(name: str) -> None:
    P = game(name)
    log_p = reference_logits(len(P))
    p = log_p.exp()
    found = torch.linalg.eigvals((P - 0.5) @ (torch.diag(p) - torch.outer(p, p)))
    expected = found.imag.abs().sort(descending=True).values[: len(P) - 1]  # one 0 is the constant
    # of a matrix that is not normal, eigvals gives zeros to the root of the last digit
    assert found.real.abs().max() <= 1e-8
    torch.testing.assert_close(spectrum(P, log_p), expected, rtol=0, atol=1e-8)


def test_rotations_are_found_where_a_policy_has_no_mass_left() -> None:
    log_p = torch.tensor([0.0, -2000.0, -900.0, -1.0], dtype=torch.float64)
    assert rotation(game("condorcet"), log_p) <= 1e-15 and len(spectrum(game("condorcet"), log_p)) == 3


def test_large_games_find_their_largest_rotation_without_a_decomposition() -> None:
    P = random_game(320)
    log_p = reference_logits(320)
    assert rotations(P, log_p) == (pytest.approx(float(rotation(P, log_p)), rel=1e-6), 0.0)


# --- advice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("name", GAMES)
def test_advice_without_solving_is_stable_at_the_equilibrium(name: str, beta: float) -> None:
    P = game(name)
    seen, unseen = advise(P, reference_logits(len(P)), beta), advise_unseen(P, beta)
    for rule in FACTORS:
        assert getattr(unseen, f"{rule}_limit") <= getattr(seen, f"{rule}_limit") * (1 + 1e-9)
        assert radius(FACTORS[rule], beta, (seen.rotation, seen.slowest))(getattr(unseen, f"{rule}_best")) < 1


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("name", GAMES)
def test_from_the_reference_a_run_with_the_advised_first_step_arrives(name: str, beta: float) -> None:
    P = game(name)
    log_mu = reference_logits(len(P))
    advice = advise(P, log_mu, beta)
    for rule in ("egpo", "optimistic"):
        assert solve(P, log_mu, beta, rule=rule, eta=getattr(advice, f"{rule}_start"), gap=1e-6, steps=4000, check=20).arrived, rule


def test_the_best_step_near_an_equilibrium_may_be_too_long_to_start_with() -> None:
    """condorcet: nothing turns at its equilibrium, all on one response, so that best is 1 / beta; at the reference s is .12."""
    P, log_mu = game("condorcet"), reference_logits(4)
    advice = advise(P, log_mu, 0.01)
    assert advice.egpo_best == pytest.approx(100, rel=0.01) and advice.egpo_start < 10
    assert not solve(P, log_mu, 0.01, rule="egpo", eta=advice.egpo_best, gap=1e-6, steps=2000, check=100).arrived


def test_with_the_same_rotation_everywhere_egpo_has_a_longer_way_down() -> None:
    """rps turns in one plane: the best step shrinks that plane alone, where games with a still direction are bound to 1 - eta beta."""
    found = advise(game("rps"), reference_logits(3), 0.01)
    assert found.slowest == pytest.approx(found.rotation)
    # |factor|^2 = 1 - 2 beta eta + (beta^2 - s^2) eta^2 + s^2 (s^2 + beta^2) eta^4 is lowest near eta s = 1/sqrt(2), where it is 3/4
    assert found.egpo_best * found.rotation == pytest.approx(math.sqrt(0.5), rel=0.05)
    assert found.egpo_rate == pytest.approx(math.sqrt(0.75), rel=0.05)
    assert found.optimistic_rate == pytest.approx(math.sqrt(0.5), rel=0.05)


def test_advice_is_given_for_one_game_with_a_pull() -> None:
    with pytest.raises(PreftuneError, match="game by game"):
        advise(torch.stack([game("rps")]), reference_logits(3), 0.1)
    with pytest.raises(PreftuneError, match="above 0"):
        advise(game("rps"), reference_logits(3), 0.0)
