"""Self-play around Nash-MD and by rounds, on tables: one step against its closed form, then where each method ends.

P[i, j] = P(i beats j), p the policy, mu the reference, A = P - 1/2.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import preftune
from preftune import methods
from preftune.collect.drawing import drawing
from preftune.exact import nash
from preftune.exact.games import game, random_game, reference_logits
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.minimiser import Minimiser
from preftune.objectives import pointwise
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.reference import extrapolated, soft
from preftune.types import Context, Key, Method, PreftuneError, Rows, Scored

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
    log_p = Play(methods.nash_md(tau, mixture=eta * tau), P, mu, mu, rate(eta, tau, 10)).step(400).log_p[0]
    mixture = nash.regularised_nash(P, mu, tau / (1 - eta * tau))
    same(mixed(log_p, mu, eta * tau), mixture, 1e-6)
    same(log_p, nash.best_response(P, mixture, mu, tau), 1e-6)
    assert nash.regularised_gap(P, log_p, mu, tau).item() == pytest.approx(floor, rel=0.02)  # two digits known


def test_the_limit_of_nash_md_depends_on_the_mixture_and_not_on_the_step() -> None:
    P, mu = game("rand10"), reference_logits(10)
    for eta in (0.5, 1.0):
        log_p = Play(methods.nash_md(0.3, mixture=0.25), P, mu, mu, rate(eta, 0.3, 10)).step(300).log_p[0]
        same(mixed(log_p, mu, 0.25), nash.regularised_nash(P, mu, 0.4), 1e-11)


def test_nash_md_is_unbiased_where_the_equilibrium_is_the_reference() -> None:
    """Dice, uniform reference: no mixture moves the equilibrium, so that a test of the bias needs another game."""
    start = SKEWED
    log_p = Play(methods.nash_md(0.1, mixture=0.25), game("dice"), start, UNIFORM, rate(2.5, 0.1, 3)).step(120).log_p[0]
    same(log_p, UNIFORM, 1e-11)


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
        log_p = Play(method, RPS, mu, mu, lr).step(400).log_p[0]
        same(mixed(log_p, mu, 0.25), nash.regularised_nash(RPS, mu, 0.4), 1e-7)


def test_ipo_md_on_pairs_of_the_reference_is_solved_by_the_best_response_to_it() -> None:
    """b = 1, one exact minimisation: softmax(log mu + P mu / tau)."""
    P, start, mu = batch(5, games=2)
    same(Play(methods.ipo_md(0.4, b=1.0), P, start, mu).step().log_p, mu + beaten(P, mu) / 0.4)


def test_nash_ema_pg_settles_at_the_equilibrium_itself() -> None:
    mu = reference_logits(3)
    played = Play(methods.nash_ema_pg(0.3, decay=0.9), RPS, mu, mu, 1.0).step(500)
    same(played.log_p[0], nash.regularised_nash(RPS, mu, 0.3), 1e-6)
    same(played.learner.roles["slow"].logits.log_softmax(-1), played.log_p, 1e-6)


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


# --- rounds, solved exactly ---------------------------------------------------------------------------------------------

ROUNDS: dict[str, tuple[Callable[[float], Method], Callable[..., Tensor]]] = {  # of a step: the method and its closed form
    "inpo": (lambda eta: methods.inpo(tau=0.1, eta=1 / eta), lambda theta, mu, P, eta: nash.mirror_descent_step(theta, mu, P, eta, 0.1)),
    "inpo without reference": (lambda eta: methods.inpo(tau=0.0, eta=1 / eta), lambda theta, mu, P, eta: nash.hedge_step(theta, P, eta)),
    "dno": (lambda eta: methods.dno(eta=1 / eta), lambda theta, mu, P, eta: nash.hedge_step(theta, P, eta)),
    "sppo centred": (
        lambda eta: methods.sppo(eta=eta, train_on="all", centred=True),
        lambda theta, mu, P, eta: nash.hedge_step(theta, P, eta),
    ),
    "gpo centred": (
        lambda eta: methods.gpo(beta=1 / eta, train_on="all", centred=True),
        lambda theta, mu, P, eta: theta + eta * beaten(P.logit(), theta),
    ),
    "apo-nesterov sppo": (
        lambda eta: methods.apo_nesterov(alpha=0.0, beta=1 / eta, inner="sppo"),
        lambda theta, mu, P, eta: nash.hedge_step(theta, P, eta),
    ),
    "apo-nesterov ipo": (
        lambda eta: methods.apo_nesterov(alpha=0.0, beta=1 / eta, inner="ipo"),
        lambda theta, mu, P, eta: nash.hedge_step(theta, P, eta),
    ),
}


@pytest.mark.parametrize("name", ROUNDS)
@pytest.mark.parametrize("eta", [0.3, 1.0, 4.0])
def test_a_round_on_random_games_is_the_closed_form(name: str, eta: float) -> None:
    """Two rounds: the second also shows that reference and last policy moved as they should. Both begin at the reference."""
    make, form = ROUNDS[name]
    P, start, _ = batch(5, games=2)
    played, theta = Play(make(eta), P, start, start), start
    for _ in range(2):
        theta = form(theta, start, P, eta)
        same(played.step().log_p, theta)


def test_inpo_on_rock_paper_scissors_makes_the_step_of_mirror_descent() -> None:
    """From (.6, .3, .1), reference uniform, tau = .1, eta = 1 (their inverse step): the vector of online mirror descent."""
    for labels in ("winrate", "soft"):
        method = methods.inpo(tau=0.1, eta=1.0)
        if labels == "soft":
            soft = methods.inpo(tau=0.1, eta=1.0, labels="sampled")
            method = replace(soft, collect=partial(soft.collect.func, responses=2, label="soft"))
        found = Play(method, RPS, SKEWED, UNIFORM).step().log_p[0].exp()
        torch.testing.assert_close(found, torch.tensor([0.512792, 0.389958, 0.097250], dtype=torch.float64), rtol=0, atol=1e-6)


def test_inpo_whose_whole_pull_is_to_the_reference_forgets_the_last_policy() -> None:
    """tau = eta: every round is the best response to the policy, as one exact solve of online IPO is."""
    P, start, mu = batch(5, games=4)
    played = Play(methods.inpo(tau=0.5, eta=0.5), P, start, mu)
    for _ in range(2):
        expected = mu + beaten(P, played.log_p) / 0.5
        same(played.step().log_p, expected)


def test_inpo_reaches_the_regularised_equilibrium_where_its_step_is_small_enough_and_circles_where_not() -> None:
    """Rock-paper-scissors: mirror descent settles for steps 1 / eta below 2 tau / (tau^2 + s^2): 2.159 at tau = .1, all of inpo's at .5."""
    mu = reference_logits(3)
    settled, circling = (Play(methods.inpo(tau, eta=1 / step), RPS, mu, mu).step(25).log_p[0] for tau, step in ((0.5, 1.0), (0.1, 4.0)))
    same(settled, nash.regularised_nash(RPS, mu, 0.5), 1e-6)
    assert nash.regularised_gap(RPS, circling, mu, 0.1) > 1e-2


def test_inpo_with_a_growing_inverse_step_keeps_its_bound() -> None:
    """eta_t = tau (t + 2) / 2: KL(p*, p_T) <= 32 C^2 / (tau^2 (T + 1)), C = max(B tau, 1), B the largest |log p / mu| met."""
    P, mu, tau, largest = game("rand10"), reference_logits(10), 0.1, 0.0
    log_star = nash.regularised_nash(P, mu, tau)
    played = Play(methods.inpo(tau), P, mu, mu)
    for t in range(30):
        method = methods.inpo(tau, eta=tau * (t + 2) / 2)
        played.learner.learner.method = method
        log_p = played.step().log_p[0]
        largest = max(largest, float((log_p - mu).abs().max()))
        C = max(largest * tau, 1.0)
        assert (log_star.exp() * (log_star - log_p)).sum() <= 32 * C**2 / (tau**2 * (t + 2))
    assert nash.regularised_gap(P, log_p, mu, tau) < 1e-2


def test_a_round_of_dno_gains_what_it_moves() -> None:
    """P(pi_t+1 beats pi_t) = 1/2 + eta [KL(pi_t+1, pi_t) + KL(pi_t, pi_t+1)], exactly."""
    P, start, _ = batch(5, games=2)
    before, after = start.log_softmax(-1), Play(methods.dno(eta=0.7), P, start, start).step().log_p
    gained = (after.exp() * beaten(P, before)).sum(-1) - 0.5
    moved = ((after.exp() - before.exp()) * (after - before)).sum(-1)
    torch.testing.assert_close(gained, 0.7 * moved, rtol=0, atol=1e-13)


def test_dno_ends_at_the_same_policy_whatever_the_law_of_its_pairs() -> None:
    P, start, _ = batch(6, games=1)
    law = torch.rand(1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    dno = methods.dno(eta=0.5)
    odd = replace(dno, collect=lambda ctx: dno.collect(ctx).replace(law=law))
    same(Play(odd, P[:1], start, start).step().log_p, nash.hedge_step(start, P[:1], 2.0))


@pytest.mark.parametrize(
    ("name", "eta", "distance"), [("rps", 1.0, 0.0012), ("rps", 5.0, 0.082), ("rand10", 1.0, 0.0003), ("rand10", 5.0, 0.055)]
)
def test_sppo_misses_multiplicative_weights_for_want_of_a_normaliser(name: str, eta: float, distance: float) -> None:
    """Total variation, from (.6, .3, .1) and from the reference; centred it is the step itself (above)."""
    P, start = game(name), SKEWED if name == "rps" else reference_logits(10)
    found = Play(methods.sppo(eta=eta, train_on="all"), P, start, start).step().log_p[0].exp()
    step = nash.hedge_step(start, P, eta).softmax(-1)
    assert 0.5 * (found - step).abs().sum().item() == pytest.approx(distance, rel=0.05, abs=6e-5)  # up to two digits known


def test_multiplicative_weights_go_to_the_winner_of_a_transitive_game_and_leave_a_cyclic_one() -> None:
    """Rock-paper-scissors from beside the equilibrium: the gap of the last iterate grows, that of the average falls."""
    sppo = methods.sppo(eta=5.0, train_on="all", centred=True)
    strengths = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    winner = Play(sppo, torch.sigmoid(strengths[:, None] - strengths), UNIFORM, UNIFORM).step(12).log_p[0].exp()
    assert winner[1] > 0.99
    start = torch.tensor([0.1, 0.0, 0.0], dtype=torch.float64)
    played, total, last = Play(methods.dno(eta=0.4), RPS, start, start), torch.zeros(3, dtype=torch.float64), []
    for _ in range(20):
        p = played.step().log_p[0].exp()
        total, last = total + p, [*last, float(nash.duality_gap(RPS, p))]
    assert min(last[-10:]) > 3 * last[0]
    assert nash.duality_gap(RPS, total / 20) < 0.3 * min(last[-10:])


# --- momentum between rounds --------------------------------------------------------------------------------------------


def test_nesterov_without_momentum_is_the_wrapped_method_bit_for_bit() -> None:
    P, start, _ = batch(4, games=1)
    for inner, wrapped in (("dpo", methods.online_dpo(beta=2.0)), ("sppo", methods.sppo(eta=0.5, train_on="all", centred=True))):
        iterated = replace(wrapped, collect_every="round", reference=soft(1.0))
        first, second = (Play(method, P, start, start) for method in (methods.apo_nesterov(alpha=0.0, beta=2.0, inner=inner), iterated))
        assert torch.equal(first.step(2).log_p, second.step(2).log_p)


def test_nesterov_goes_on_by_a_share_of_the_move_and_the_first_round_has_none_before_it() -> None:
    """hat_1 = step(pi_0), pi_1 = hat_1 + alpha (hat_1 - pi_0), hat_2 = step(pi_1), pi_2 = hat_2 + alpha (hat_2 - hat_1)."""
    P, start, _ = batch(5, games=3)
    played = Play(methods.apo_nesterov(alpha=0.4, beta=0.8, inner="sppo"), P, start, start)
    hat = nash.hedge_step(start, P, 1 / 0.8)
    ahead = hat + 0.4 * (hat - start)
    same(played.step().log_p, ahead)
    again = nash.hedge_step(ahead, P, 1 / 0.8)
    same(played.step().log_p, again + 0.4 * (again - hat))
    roles = played.learner.roles
    same(roles["hat"].logits.log_softmax(-1), again)
    assert torch.equal(roles["reference"].logits, played.learner.policy.logits) and roles["current"] is played.learner.policy


SUBOPTIMALITY = {  # alpha: after 5, 10, 20, 40 rounds
    0.0: (0.5263, 0.4540, 0.3207, 0.1342),
    0.3: (0.5039, 0.4027, 0.2323, 0.0585),
    0.6: (0.4676, 0.3054, 0.0988, 0.0071),
    0.9: (0.4100, 0.1255, 0.0019, 0.0000),
}


REWARD = torch.from_numpy(np.random.default_rng(0).normal(size=5))


def test_the_inner_dpo_of_nesterov_is_solved_by_the_reward_of_its_labels() -> None:
    """Bradley-Terry, beta = .5: hat_1 = start + r / beta, hat_2 = hat_1 + (1 + alpha) r / beta."""
    P, start = torch.sigmoid(REWARD[:, None] - REWARD), reference_logits(5)
    played = Play(methods.apo_nesterov(alpha=0.4, beta=0.5), P, start, start)
    for moves in (1.0, 1.0 + 1.4):
        same(played.step().learner.roles["hat"].logits.log_softmax(-1), start + moves * REWARD / 0.5)


@pytest.mark.parametrize("alpha", SUBOPTIMALITY)
def test_under_a_fixed_reward_the_moves_add_up_to_a_larger_step(alpha: float) -> None:
    """beta = 10, each round solved by its closed form (above): hat_k = start + r / beta sum_j (1 - alpha^j) / (1 - alpha), j = 1 .. k."""
    roles, found = {name: TabularPolicy(torch.zeros(1, 5)) for name in ("current", "reference", "hat")}, []
    for k in range(1, 41):
        roles["current"].load({"logits": roles["reference"].logits.detach() + REWARD / 10})
        roles = extrapolated(alpha)(roles)
        hat = roles["hat"].logits.detach()[0]
        same(hat.log_softmax(-1), REWARD / 10 * sum((1 - alpha**j) / (1 - alpha) for j in range(1, k + 1)))
        found += [float(REWARD.max() - hat.softmax(-1) @ REWARD)] if k in (5, 10, 20, 40) else []
    assert found == pytest.approx(SUBOPTIMALITY[alpha], abs=6e-5)  # four digits known


def test_momentum_widens_the_circles_of_a_cyclic_game() -> None:
    """Rock-paper-scissors, 300 rounds of multiplicative weights with step .1 from a gap of .170: each solved by its closed form (above)."""
    mu, gaps = reference_logits(3), [0.170]
    for alpha in (0.0, 0.5):
        roles = {"current": TabularPolicy(mu), "reference": TabularPolicy(mu), "hat": TabularPolicy(mu)}
        for _ in range(300):
            roles["current"].load({"logits": nash.hedge_step(roles["reference"].logits.detach(), RPS, 0.1)})
            roles = extrapolated(alpha)(roles)
        gaps += [float(nash.duality_gap(RPS, roles[name].probabilities()[0])) for name in ("current", "hat")]
    assert gaps == pytest.approx([float(nash.duality_gap(RPS, mu.softmax(-1))), 0.201, 0.201, 0.306, 0.296], abs=6e-4)  # three digits known


# --- draws --------------------------------------------------------------------------------------------------------------


def sampled(method: Method, P: Tensor, logits: Tensor, previous: Tensor, n: int) -> Tensor:
    """Gradients [n, responses] of the method's loss over n rows of one game, drawn from `previous`."""
    policy = TabularPolicy(logits)
    before = TabularPolicy(previous, exact=False)
    feed = Rows(tuple(map(str, range(n))), (0,) * n)
    roles = {"current": before, "opponent": before, "previous": before, "reference": TabularPolicy(torch.zeros_like(logits))}
    rows = method.collect(Context(roles, feed, (PreferenceTable(P),)))
    logp = policy.logits.detach().expand(len(rows), -1).clone().requires_grad_()
    chosen = logp.log_softmax(-1).gather(1, rows.response.index)
    score = {name: roles[name].logits.detach().log_softmax(-1)[0][rows.response.index] for name in ("previous", "reference")}
    loss = method.objective(Scored(rows, chosen, score["reference"], other={"previous": score["previous"]})).row
    return torch.autograd.grad(loss.sum(), logp)[0]


def test_hard_labels_of_inpo_agree_with_win_rates_in_expectation_for_two_draws_and_not_for_best_against_worst() -> None:
    """5,000 rows. Two draws and a drawn label: within 4 standard errors of the exact gradient, each below 5% of the largest entry.

    The tournament's mean gradient is off by more than 10 of its standard errors.
    """
    P, (logits, previous) = random_game(4, 1), torch.from_numpy(np.random.default_rng(8).normal(size=(2, 1, 4)))
    policy = TabularPolicy(logits)
    exact = methods.inpo(tau=1.0, eta=2.0)
    p = previous.softmax(-1)
    logp = policy.logits.log_softmax(-1)
    rows = Rows(("game",), (0,), winrate=p @ P.T, law=p)
    s = Scored(rows, logp, torch.zeros(1, 4, dtype=torch.float64), other={"previous": previous.log_softmax(-1)})
    expected = torch.autograd.grad(exact.objective(s).row.sum(), policy.logits)[0][0]
    for labels, responses in (("winrate", 3), ("sampled", 2), ("sampled", 3), ("tournament", 4)):
        each = sampled(
            methods.inpo(tau=1.0, eta=2.0, labels=labels, responses=responses),
            P,
            logits,
            previous,
            2_000 if labels == "tournament" else 5_000,
        )
        error, standard = each.mean(0) - expected, each.std(0) / len(each) ** 0.5
        if labels == "tournament":
            assert (error.abs() / standard).max() > 10
        else:
            assert (error.abs() < 4 * standard).all() and (standard < 0.05 * expected.abs().max()).all()


def draws(method: Method, P: Tensor, logits: Tensor, feed: Rows | None = None, judge: PreferenceTable | None = None, **context) -> Rows:
    """What the method collects from 50 rows of one game."""
    policy = TabularPolicy(logits, exact=False)
    feed = Rows(tuple(map(str, range(50))), (0,) * 50) if feed is None else feed
    roles = {"current": policy, "opponent": policy, "reference": policy.copy()}
    return method.collect(Context(roles, feed, (PreferenceTable(P) if judge is None else judge,), **context))


ORDERED = torch.sigmoid(torch.arange(8, dtype=torch.float64)[:, None] - torch.arange(8))  # 7 beats 6 beats ... beats 0


def test_a_tournament_leaves_the_best_and_the_worst_of_the_draws() -> None:
    """On a transitive game, whoever meets whom; eleven comparisons of eight draws in four rounds are asked as six requests."""
    logits, judge = torch.zeros(1, 8, dtype=torch.float64), PreferenceTable(ORDERED)
    drawn = TabularPolicy(logits, exact=False).sample(Rows(tuple(map(str, range(50))), (0,) * 50), 8, Key.of(0).fold("pair")).index
    rows = draws(methods.inpo(labels="tournament"), ORDERED, logits, judge=judge)
    assert torch.equal(rows.response.index, torch.stack([drawn.amax(1), drawn.amin(1)], 1))
    assert judge.calls == 6 and rows.ranked and (rows.beats[:, 0, 1] == 1).all() and (rows.beats[:, 1, 0] == 0).all()


def test_of_equals_in_a_tournament_the_first_wins() -> None:
    """Response 1 beats response 0. Drawn 1 1 0 0: 0 beats 1 and 2 beats 3; of the winners 0 is best, of the losers 3 worst."""
    P, logits = torch.tensor([[0.5, 0.0], [1.0, 0.5]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    drawn = TabularPolicy(logits, exact=False).sample(Rows(tuple(map(str, range(50))), (0,) * 50), 4, Key.of(0).fold("pair")).index
    rows = draws(methods.inpo(labels="tournament", responses=4), P, logits)
    found = [name.split()[1] for name, y in zip(rows.id, drawn.tolist(), strict=True) if y == [1, 1, 0, 0]]
    assert found and set(found) == {"0-3"}


def test_a_tournament_wants_draws() -> None:
    with pytest.raises(PreftuneError, match="enumerates its responses"):
        Play(methods.inpo(labels="tournament"), RPS, SKEWED, UNIFORM).step()


def test_scores_of_gpo_are_mean_log_odds_and_its_extremes_are_theirs() -> None:
    """ORDERED is Bradley-Terry with rewards 0 .. 7: score_i = y_i - mean of the five draws, itself among them."""
    every, few = (draws(methods.gpo(train_on=train_on), ORDERED, torch.zeros(1, 8)) for train_on in ("all", "extremes"))
    y = every.response.index.double()
    torch.testing.assert_close(every.score, y - y.mean(1, keepdim=True), rtol=0, atol=1e-12)
    assert torch.equal(every.score, few.score) and every.present is None and few.winrate is None
    kept = torch.where(few.present, y, torch.nan)
    assert torch.equal(kept.nan_to_num(-1).amax(1), y.amax(1)) and torch.equal(kept.nan_to_num(9).amin(1), y.amin(1))
    assert (few.present.sum(1) == 2).all()


def test_gpo_refuses_a_judge_that_is_sure() -> None:
    with pytest.raises(PreftuneError, match="the judge is sure of an answer for rows .'game 0'"):
        Play(methods.gpo(train_on="all"), RPS, SKEWED, SKEWED).step()


def pairs_of(rows: Rows) -> list[tuple[str, int, int]]:
    """(row, better, worse) in the order collected."""
    return [(name.split()[0], *pair) for name, pair in zip(rows.id, rows.response.index.tolist(), strict=True)]


GRADES = PreferenceTable(ORDERED, rewards=torch.arange(8, dtype=torch.float64))


@pytest.mark.parametrize("gold", [None, 7, 4])
def test_pairs_of_dno_prct_are_all_that_are_far_enough_apart(gold: int | None) -> None:
    """Better: 5 or more and ahead by 1, the gold response by 2; response y has grade y."""
    logits = torch.zeros(1, 8, dtype=torch.float64)
    feed = Rows(tuple(map(str, range(50))), (0,) * 50, None if gold is None else TableResponses(torch.full((50, 2), gold)))
    rows = draws(methods.dno_prct(gold=gold is not None), ORDERED, logits, feed, GRADES)
    drawn = TabularPolicy(logits, exact=False).sample(feed, 5, Key.of(0).fold("pair")).index.tolist()
    expected = []
    for b, own in enumerate(drawn):
        pool = [(y, 1) for y in own] + ([] if gold is None else [(gold, 2)])
        expected += [(str(b), y, worse) for y, lead in pool for worse, _ in pool if y >= 5 and y - worse >= lead]
    assert pairs_of(rows) == expected and rows.ranked and len(expected) > 50
    assert rows.extra["round"].tolist() == [0] * len(expected)


def test_pairs_of_dno_prct_by_win_rates_have_thresholds_between_0_and_1() -> None:
    with pytest.raises(PreftuneError, match="grades go from 0.* to 0.*; set least and the margins on the judge's scale"):
        draws(methods.dno_prct(), ORDERED, torch.zeros(1, 8))
    rows = draws(methods.dno_prct(least=0.5, margin=0.2, own_margin=0.2), ORDERED, torch.zeros(1, 8))
    assert len(rows) > 50 and (rows.response.index[:, 0] > rows.response.index[:, 1]).all()


def test_earlier_pairs_fill_their_shares_and_none_is_taken_over_twice() -> None:
    """.3 of a round's pairs are of the round before, .15 of the one before that, chosen among what that round made itself."""
    past: list[Rows] = []
    for number in range(3):
        context = {"past": past, "round": number, "key": Key.of(number)}
        past = [*past, draws(methods.dno_prct(), ORDERED, torch.zeros(1, 8), judge=GRADES, **context)]
    for number, shares in enumerate([(), (0.3,), (0.3, 0.15)]):
        made = past[number].extra["round"].tolist()
        for age, share in enumerate(shares):
            assert abs(made.count(number - 1 - age) - share * len(made)) <= 1
        earlier = [made_then for n, made_then in enumerate(past[number].id) if made[n] < number]
        assert len(set(earlier)) == len(earlier) and all("of round" in name for name in earlier)
    assert past[2].extra["round"].tolist().count(2) > 0.5 * len(past[2])
    alone = draws(methods.dno_prct(past=0.0), ORDERED, torch.zeros(1, 8), judge=GRADES, past=past[:1], round=1, key=Key.of(1))
    assert len(alone) == past[1].extra["round"].tolist().count(1)


def test_pairs_of_an_enumerated_law_weigh_as_much_as_they_would_be_drawn() -> None:
    """One exact gradient step of dno-prct is the step on the expected loss of two draws, given that they are far apart."""
    P, rewards = random_game(4, 0), torch.tensor([[0.0, 6.0, 3.0, 5.5]], dtype=torch.float64)
    start = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 4)))
    played = Play(methods.dno_prct(eta=0.5), P, start, start, 0.1)
    played.judge = PreferenceTable(P, rewards=rewards)
    p, theta = start.softmax(-1)[0], start.clone().requires_grad_()
    far = [(1, 0), (1, 2), (3, 0), (3, 2)]  # 6 over 5.5 is too close
    log_p = theta.log_softmax(-1)[0] - start.log_softmax(-1)[0]
    drawn = torch.stack([p[i] * p[j] for i, j in far])
    loss = sum(w * -torch.nn.functional.logsigmoid(0.5 * (log_p[i] - log_p[j])) for w, (i, j) in zip(drawn / drawn.sum(), far, strict=True))
    same(played.step().log_p, start - 0.1 * torch.autograd.grad(loss, theta)[0])


def test_an_enumerated_law_weighs_pairs_with_the_gold_response_by_how_many_draws_meet_it() -> None:
    """Against all 4^3 draws of three: response 1 is the gold one and may be drawn as well."""
    grades, p = [0.0, 6.0, 3.0, 5.5], torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for drawn in itertools.product(range(4), repeat=3):
        for i, j in itertools.permutations([*drawn, 1], 2):
            expected[i, j] += p[list(drawn)].prod() * (grades[i] >= 5 and grades[i] - grades[j] >= 1)
    method = methods.dno_prct(responses=3, margin=1.0, gold=True)
    judge = PreferenceTable(torch.full((4, 4), 0.5), rewards=torch.tensor([grades]))
    feed = Rows(("game",), (0,), TableResponses(torch.tensor([[1]])))
    rows = method.collect(Context({"current": TabularPolicy(p.log())}, feed, (judge,)))
    found = torch.zeros(4, 4, dtype=torch.float64).index_put(tuple(rows.response.index.T), rows.weight, accumulate=True)
    torch.testing.assert_close(found / found.sum(), expected / expected.sum(), rtol=0, atol=1e-14)


def test_a_run_with_a_moving_magnet_is_measured_against_the_first_model(tmp_path: Path) -> None:
    start = torch.tensor([[0.5, 0.0, -0.5]], dtype=torch.float64)
    settings = {"steps": 6, "eval_every": 3, "lr": 0.3, "optimiser": "sgd", "schedule": "constant", "warmup": 0.0, "progress": False}
    policy = TabularPolicy(start)
    run = preftune.train(policy, "mpo-magnetic", test=policy.rows(), judge=PreferenceTable(RPS), out=tmp_path / "run", K=2, **settings)
    log_p = policy.logits.detach().log_softmax(-1)
    away = float((log_p.exp() * (log_p - start.log_softmax(-1))).sum())
    assert away > 0.01
    assert run.history[-1]["eval"]["kl"] == pytest.approx(away, rel=1e-9)


@pytest.mark.parametrize("name", ["inpo", "apo-nesterov", "nash-ema-pg", "mpo"])
def test_a_run_with_further_roles_goes_on_where_it_was_interrupted(name: str, tmp_path: Path) -> None:
    """Stopped after the fifth of twelve steps, within the second round: the same policy, bit for bit."""
    made = {"nash-ema-pg": {"decay": 0.5}, "mpo": {"K": 2}}.get(name, {})
    rounds = {"rounds": 3, "epochs": 4} if name in ("inpo", "apo-nesterov") else {}
    settings = {"steps": 12, "lr": 0.1, "optimiser": "adamw", "save_every": 1, "progress": False, **rounds, **made}
    start, P = torch.from_numpy(np.random.default_rng(4).normal(size=(2, 5))), torch.stack([random_game(5, 0), random_game(5, 1)])

    def go(out: str, **more: object) -> Tensor:
        policy = TabularPolicy(start)
        preftune.train(policy, name, judge=PreferenceTable(P), out=tmp_path / out, **settings, **more)
        return policy.logits.detach()

    whole = go("whole")
    go("parts", callbacks=[lambda event: event.step == 5])
    assert torch.equal(go("parts", resume=True), whole)


@pytest.mark.parametrize("name", ["rps", "rand10", "bt10"])
def test_online_ipo_on_its_own_pairs_runs_to_the_regularised_equilibrium(name: str) -> None:
    """tau = 1, so that no response is rare. Gaps below 1e-15 are rounding."""
    P, mu = game(name), reference_logits(len(game(name)))
    log_p = Play(methods.online_ipo(1.0), P, mu, mu, 1.0 if len(P) == 10 else 0.5).step(250).log_p[0]
    assert abs(nash.regularised_gap(P, log_p, mu, 1.0)) < 1e-15
    same(log_p, nash.regularised_nash(P, mu, 1.0), 1e-7)


@pytest.mark.parametrize("centred", [False, True])
def test_sppo_with_wins_for_losses_has_targets_of_the_other_sign(centred: bool) -> None:
    """While exchanging responses together with their win rates changes nothing (the table of facts)."""
    logp, reference, winrate = torch.from_numpy(np.random.default_rng(6).uniform(size=(3, 4, 2)))
    sppo = partial(pointwise.sppo, beta=0.1, centred=centred)
    loss = lambda away, wins: sppo(Scored(Rows(tuple("abcd"), (0,) * 4, winrate=wins), reference + away, reference)).row
    torch.testing.assert_close(loss(logp - reference, 1 - winrate), loss(reference - logp, winrate), rtol=1e-12, atol=0)
