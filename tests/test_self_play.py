"""Self-play around Nash-MD and by rounds, on tables: one step against its closed form, then where each method ends.

P[i, j] = P(i beats j), p the policy, mu the reference, A = P - 1/2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from preftune import methods
from preftune.collect.drawing import drawing
from preftune.exact import nash
from preftune.exact.games import game, random_game, reference_logits
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.minimiser import Minimiser
from preftune.policies.tabular import TabularPolicy
from preftune.types import Key, Method, Rows

RPS, UNIFORM = game("rps"), torch.zeros(3, dtype=torch.float64)
SKEWED = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()


class Play:
    """A method on games P [G, n, n] from logits `start`, references at `mu`: gradient steps of rate lr, or rounds solved exactly."""

    def __init__(self, method: Method, P: Tensor, start: Tensor, mu: Tensor, lr: float | None = None, *, exact: bool = True):
        self.method, self.number, self.past = method, 0, []
        self.judge = PreferenceTable(P)
        policy = TabularPolicy(start, exact=exact)
        roles = {"current": policy, "reference": TabularPolicy(mu).reference(), **{name: policy.copy() for name in method.roles}}
        self.learner: GradientLearner | Minimiser = (
            Minimiser(policy, method, roles) if lr is None else GradientLearner(policy, method, roles, optimiser="sgd", lr=lr, clip=0.0)
        )

    def step(self, times: int = 1) -> Play:
        for _ in range(times):
            policy, roles = self.learner.policy, self.learner.roles
            context = {"judges": (self.judge,), "past": self.past, "round": self.number}
            rows_against = drawing(self.method.collect, roles, policy.rows(), Key.of(0).fold(self.number), **context)
            self.method.update(self.learner, lambda opponent, draw=rows_against: self.kept(draw(opponent)))
            self.number += 1
            every = self.method.reference_every
            if every == "round" or self.number % every == 0:
                self.learner.roles = dict(self.method.reference(self.learner.roles))
        return self

    def kept(self, rows: Rows) -> Rows:
        self.past = [*self.past, rows]
        return rows

    @property
    def log_p(self) -> Tensor:
        return self.learner.policy.logits.detach().log_softmax(-1)


def rate(eta: float, beta: float, n: int) -> float:
    """The SGD step that is the mirror-descent step eta with uniform pairs."""
    return eta * beta * n / 4


def batch(n: int, games: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Random games [G, n, n], starts and references [G, n]."""
    start, mu = torch.from_numpy(np.random.default_rng(1).normal(size=(2, games, n)))
    return torch.stack([random_game(n, seed) for seed in range(games)]), start, mu


def same(found: Tensor, logits: Tensor, atol: float = 1e-12) -> None:
    """Equal policies, up to roundings of log-probabilities of size ten."""
    torch.testing.assert_close(found, logits.log_softmax(-1).expand_as(found), rtol=0, atol=atol)


def beaten(P: Tensor, log_p: Tensor) -> Tensor:
    """P p: how often each response beats that policy."""
    return (P @ log_p.softmax(-1).unsqueeze(-1)).squeeze(-1)


def mixed(log_p: Tensor, mu: Tensor, w: float) -> Tensor:
    return ((1 - w) * log_p + w * mu).log_softmax(-1)


# --- one exact step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "step", "expected"),
    [
        (methods.nash_md(tau=0.1, mixture=0.1), 1.0, (0.516574, 0.384154, 0.099272)),
        (methods.nash_md(tau=0.1, mixture=0.0), 1.0, (0.512792, 0.389958, 0.097250)),
        (methods.mpo(tau=0.1), 1 / 1.1, (0.520982, 0.381368, 0.097650)),
    ],
    ids=["nash-md", "nash-md without mixture", "mpo"],
)
def test_one_step_on_rock_paper_scissors(method: Method, step: float, expected: tuple[float, ...]) -> None:
    """From p = (.6, .3, .1), mu uniform, tau = .1, eta = 1. Nash-MD: m = p^.9 / Z, then m e^(P m). MPO: (theta + P p) / 1.1."""
    found = Play(method, RPS, SKEWED, UNIFORM, rate(step, 0.1, 3)).step().log_p
    torch.testing.assert_close(found[0].exp(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("eta", "tau"), [(1.0, 0.1), (0.3, 1.0), (5.0, 0.02)])
def test_one_step_on_random_games_is_the_closed_form(eta: float, tau: float) -> None:
    P, start, mu = batch(7)
    mirror = Play(methods.nash_md(tau, mixture=eta * tau), P, start, mu, rate(eta, tau, 7)).step()
    same(mirror.log_p, nash.nash_md_step(start, mu, P, eta, tau))
    magnetic = Play(methods.mpo(tau), P, start, mu, rate(eta / (1 + eta * tau), tau, 7)).step()
    same(magnetic.log_p, nash.mmd_step(start, mu, P, eta, tau))
    same(magnetic.log_p, nash.mirror_descent_step(start, mu, P, eta / (1 + eta * tau), tau))


def test_nash_md_without_mixture_is_online_ipo_with_uniform_pairs_bit_for_bit() -> None:
    P, start, mu = batch(5)
    first, second = (Play(method, P, start, mu, 0.1) for method in (methods.nash_md(0.1, mixture=0.0), methods.online_ipo(0.1, "uniform")))
    assert torch.equal(first.step(5).log_p, second.step(5).log_p)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("opponents", [0, 2])
def test_ipo_md_without_mixture_is_online_ipo_bit_for_bit(exact: bool, opponents: int) -> None:
    P, start, mu = batch(5)
    first, second = (
        Play(method, P, start, mu, 0.1, exact=exact)
        for method in (methods.ipo_md(0.3, b=0.0, opponents=opponents), methods.online_ipo(0.3, opponents=opponents))
    )
    assert torch.equal(first.step(5).log_p, second.step(5).log_p)


@pytest.mark.parametrize("b", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("opponents", [0, 1])
def test_ipo_md_weighs_and_centres_under_the_mixture(b: float, opponents: int) -> None:
    """d loss / d theta_y = 4 m_y (u_y - E_m u), u = log p / mu - P m / tau: off the mixture's law nothing is importance-weighted."""
    P, start, mu = batch(6)
    m = mixed(start, mu, b)
    u = start - mu - beaten(P, m) / 0.4
    slope = 4 * m.exp() * (u - (m.exp() * u).sum(-1, keepdim=True))
    same(Play(methods.ipo_md(0.4, b=b, opponents=opponents), P, start, mu, 0.05).step().log_p, start - 0.05 * slope)


@pytest.mark.parametrize("b", [0.0, 0.3, 1.0])
def test_nash_md_pg_is_the_gradient_against_the_mixture(b: float) -> None:
    """d/d theta_y of V = p_y (c_y - E_p c), c = P m - 1/2 - tau log p / mu: the opponent is a constant."""
    P, start, mu = batch(6)
    log_p = start.log_softmax(-1)
    c = beaten(P, mixed(start, mu, b)) - 0.5 - 0.4 * (log_p - mu.log_softmax(-1))
    slope = log_p.exp() * (c - (log_p.exp() * c).sum(-1, keepdim=True))
    for baseline in ("none", "leave_one_out"):
        method = methods.nash_md_pg(0.4, mixture=b, responses=2, baseline=baseline)
        same(Play(method, P, start, mu, 0.05).step().log_p, start + 0.05 * slope)


def test_without_mixture_ipo_md_is_four_over_tau_times_the_policy_gradient_and_with_it_is_not() -> None:
    P, start, mu = batch(6)
    for b in (0.0, 0.3):
        regression = Play(methods.ipo_md(0.4, b=b), P, start, mu, 0.05).step().log_p
        gradient = Play(methods.nash_md_pg(0.4, mixture=b), P, start, mu, 0.05 * 4 / 0.4).step().log_p
        assert torch.allclose(regression, gradient, rtol=0, atol=1e-12) == (b == 0)


def test_nash_ema_pg_plays_against_the_running_average_of_its_parameters() -> None:
    """Two steps: the first against the start, the second against .75 start + .25 theta_1."""
    P, start, mu = batch(6)

    def ascend(theta: Tensor, slow: Tensor) -> Tensor:
        log_p = theta.log_softmax(-1)
        c = beaten(P, slow) - 0.4 * (log_p - mu.log_softmax(-1))
        return theta + 0.5 * log_p.exp() * (c - (log_p.exp() * c).sum(-1, keepdim=True))

    first = ascend(start, start)
    played = Play(methods.nash_ema_pg(0.4, decay=0.75), P, start, mu, 0.5).step(2)
    same(played.log_p, ascend(first, 0.75 * start + 0.25 * first))
    same(Play(methods.nash_ema_pg(0.4, decay=0.0), P, start, mu, 0.5).step(2).log_p, ascend(first, first))


def test_a_magnet_that_moves_at_every_step_makes_multiplicative_weights() -> None:
    """K = 1: theta + eta / (1 + eta tau) P p, which circles."""
    P, start, _ = batch(5)
    played, theta = Play(methods.mpo(0.2, K=1), P, start, start, rate(0.5 / 1.1, 0.2, 5)), start
    for _ in range(10):
        played.step()
        theta = nash.hedge_step(theta, P, 0.5 / 1.1)
    same(played.log_p, theta)


# --- where they end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eta", "floor"), [(0.4, 3.8e-4), (0.5, 6.0e-4)])
def test_constant_steps_take_nash_md_to_the_equilibrium_of_a_stronger_pull(eta: float, floor: float) -> None:
    """rand10, tau = .1: the mixture is the equilibrium of tau / (1 - eta tau), the policy the best response to it, of gap `floor`."""
    P, mu, tau = game("rand10"), reference_logits(10), 0.1
    log_p = Play(methods.nash_md(tau, mixture=eta * tau), P, mu, mu, rate(eta, tau, 10)).step(700).log_p[0]
    mixture = nash.regularised_nash(P, mu, tau / (1 - eta * tau))
    same(mixed(log_p, mu, eta * tau), mixture, 1e-11)
    same(log_p, nash.best_response(P, mixture, mu, tau), 1e-11)
    assert nash.regularised_gap(P, log_p, mu, tau).item() == pytest.approx(floor, rel=0.02)  # two digits known


def test_the_limit_of_nash_md_depends_on_the_mixture_and_not_on_the_step() -> None:
    P, mu = game("rand10"), reference_logits(10)
    for eta in (0.5, 1.0):
        log_p = Play(methods.nash_md(0.3, mixture=0.25), P, mu, mu, rate(eta, 0.3, 10)).step(300).log_p[0]
        same(mixed(log_p, mu, 0.25), nash.regularised_nash(P, mu, 0.4), 1e-11)


def test_steps_that_shrink_with_their_mixture_take_nash_md_to_the_equilibrium_within_its_bound() -> None:
    """eta_t = 2 / (tau (t + 2)): KL(p*, p_T) <= 8 / (tau^2 (T + 1)); rand10, tau = .1, gap 1.5e-4 after 100 steps."""
    P, mu, tau = game("rand10"), reference_logits(10), 0.1
    log_star = nash.regularised_nash(P, mu, tau)
    played = Play(methods.nash_md(tau), P, mu, mu, 0.0)
    for t in range(100):
        played.method = methods.nash_md(tau, mixture=2 / (t + 2))
        played.learner.lr = lambda _, t=t: rate(2 / (tau * (t + 2)), tau, 10)
        log_p = played.step().log_p[0]
        assert (log_star.exp() * (log_star - log_p)).sum() <= 8 / (tau**2 * (t + 2))
    assert nash.regularised_gap(P, log_p, mu, tau).item() == pytest.approx(1.5e-4, rel=0.04)  # two digits known


@pytest.mark.parametrize("make", [lambda b: methods.ipo_md(0.3, b=b), lambda b: methods.nash_md_pg(0.3, mixture=b)], ids=["ipo-md", "pg"])
@pytest.mark.parametrize(("b", "gap"), [(0.125, 2.1e-4), (0.5, 3.0e-3), (0.0, 0.0)])
def test_the_fixed_point_of_a_mixture_is_the_best_response_to_the_equilibrium_of_a_stronger_pull(
    make: Callable[[float], Method], b: float, gap: float
) -> None:
    """m = equilibrium of tau / (1 - b), p = softmax(log mu + P m / tau): the mixture of p is m, and no step leaves p. rand10, tau = .3."""
    P, mu, tau = game("rand10"), reference_logits(10), 0.3
    m = nash.regularised_nash(P, mu, tau / (1 - b))
    p = nash.best_response(P, m, mu, tau)
    same(mixed(p, mu, b), m)
    same(Play(make(b), P, p, mu, 1.0).step().log_p, p[None])
    assert nash.regularised_gap(P, p, mu, tau).item() == pytest.approx(gap, rel=0.03, abs=1e-14)  # two digits known


def test_ipo_md_and_nash_md_pg_run_to_that_fixed_point() -> None:
    mu = reference_logits(3)
    for method, lr in ((methods.ipo_md(0.3, b=0.25), 0.1), (methods.nash_md_pg(0.3, mixture=0.25), 1.0)):
        log_p = Play(method, RPS, mu, mu, lr).step(700).log_p[0]
        same(mixed(log_p, mu, 0.25), nash.regularised_nash(RPS, mu, 0.4), 1e-9)


def test_ipo_md_on_pairs_of_the_reference_is_solved_by_the_best_response_to_it() -> None:
    """b = 1, one exact minimisation: softmax(log mu + P mu / tau)."""
    P, start, mu = batch(6)
    same(Play(methods.ipo_md(0.4, b=1.0), P, start, mu).step().log_p, mu + beaten(P, mu) / 0.4)


def test_nash_ema_pg_settles_at_the_equilibrium_itself() -> None:
    mu = reference_logits(3)
    played = Play(methods.nash_ema_pg(0.3, decay=0.9), RPS, mu, mu, 1.0).step(700)
    same(played.log_p[0], nash.regularised_nash(RPS, mu, 0.3), 1e-9)
    same(played.learner.roles["slow"].logits.log_softmax(-1), played.log_p, 1e-9)


def test_the_opponent_of_the_policy_gradient_may_be_its_mixture_with_itself() -> None:
    """At the first step policy, reference and slow policy are one: nash-md-pg and nash-ema-pg agree bit for bit."""
    P, start, _ = batch(5)
    first = Play(methods.nash_md_pg(0.1, mixture=1.0), P, start, start, 0.5).step()
    second = Play(methods.nash_ema_pg(0.1), P, start, start, 0.5).step()
    assert torch.equal(first.log_p, second.log_p)


def test_a_moving_magnet_reaches_the_equilibrium_without_regulariser_and_a_fixed_one_does_not() -> None:
    """Rock-paper-scissors, tau = .1, eta = .5: gap below 1e-6 after 932 steps with K = 100; with a fixed magnet it stays at .0471."""
    mu, lr = reference_logits(3), rate(0.5 / 1.05, 0.1, 3)
    moving = Play(methods.mpo(0.1, K=100), RPS, mu, mu, lr).step(930)
    assert nash.duality_gap(RPS, moving.log_p[0].exp()) > 1e-6
    assert nash.duality_gap(RPS, moving.step(3).log_p[0].exp()) <= 1e-6
    fixed = Play(methods.mpo(0.1, K=10_000), RPS, mu, mu, lr).step(400)
    assert nash.regularised_gap(RPS, fixed.log_p[0], mu, 0.1) < 1e-12
    assert nash.duality_gap(RPS, fixed.log_p[0].exp()).item() == pytest.approx(0.0471, abs=5e-5)
