"""Methods on tables, where every answer is known: through the same objectives, collectors, updates and learner as everywhere else.

Closed forms are written here once more, in numpy: p = softmax(theta), eta the mirror-descent step, beta the pull to mu.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from all_facts import merged
from preftune import methods
from preftune.collect.draw import against_opponent
from preftune.exact.games import game
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.types import Context, Key, Learner, Method, Metrics, PreftuneError, Rows, RowsAgainst
from preftune.update import extragradient, plain

Array = NDArray[np.float64]


# --- the closed forms -----------------------------------------------------------------------------------------------


def softmax(theta: Array) -> Array:
    e = np.exp(theta - theta.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mirror_descent(theta: Array, log_mu: Array, P: Array, eta: float, beta: float) -> Array:
    return (1 - eta * beta) * theta + eta * beta * log_mu + eta * P @ softmax(theta)


def extragradient_form(theta: Array, log_mu: Array, P: Array, eta: float, beta: float) -> Array:
    half = mirror_descent(theta, log_mu, P, eta, beta)
    return (1 - eta * beta) * theta + eta * beta * log_mu + eta * P @ softmax(half)


def gap(theta: Array, log_mu: Array, P: Array, beta: float) -> float:
    """max_q V(q, p) - min_q V(p, q) = 2 [beta log sum mu e^(A p / beta) + beta KL(p || mu)], A = P - 1/2."""
    p, mu = softmax(theta), softmax(log_mu)
    win = (P - 0.5) @ p / beta
    soft_max = win.max() + np.log((mu * np.exp(win - win.max())).sum())
    return float(2 * beta * (soft_max + (p * (np.log(p) - np.log(mu))).sum()))


# --- a run in six lines -----------------------------------------------------------------------------------------------


def learn(method: Method, start: Array | Tensor, mu: Array | Tensor, lr: float, *, exact: bool = True, **settings) -> GradientLearner:
    """A learner on tables: policy at logits `start`, reference at logits `mu`, plain SGD and no clipping unless said."""
    policy, reference = TabularPolicy(torch.as_tensor(start), exact=exact), TabularPolicy(torch.as_tensor(mu)).reference()
    roles = {"current": policy, "reference": reference} | {name: policy.copy() for name in method.roles}
    return GradientLearner(policy, method, roles, **{"optimiser": "sgd", "lr": lr, "clip": 0.0, "micro_batch": 1000} | settings)


def play(learner: GradientLearner, P: Array | Tensor, number: int = 0, feed: Rows | None = None) -> Metrics:
    """One step of self-play on the games P; further draws within the step get keys of their own."""
    method, feed, judge = learner.method, learner.policy.rows() if feed is None else feed, PreferenceTable(torch.as_tensor(P))
    draw = iter(range(10))

    def rows_against(opponent: TabularPolicy) -> Rows:
        roles = {**learner.roles, "opponent": opponent}
        return method.collect(Context(roles, feed, (judge,), step=number, key=Key.of(0).fold("step", number, next(draw))))

    return method.update(learner, rows_against)


def log_p(learner: GradientLearner) -> Array:
    return learner.policy.logits.detach().log_softmax(1).numpy()


def normalised(theta: Array) -> Array:
    return theta - np.log(np.exp(theta).sum(-1, keepdims=True))


def step_size(eta: float, beta: float, n: int) -> float:
    """The SGD step that equals the mirror-descent step eta."""
    return eta * beta * n / 4


def random_game(n: int, seed: int) -> Array:
    lower = np.tril(np.random.default_rng(seed).random((n, n)), -1)
    return lower + np.triu(1 - lower.T, 1) + 0.5 * np.eye(n)


RPS = 0.5 + 0.5 * np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
UNIFORM_ONLINE_IPO = methods.online_ipo(tau=0.1, pairs="uniform")

# --- one exact step -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (UNIFORM_ONLINE_IPO, (0.512792, 0.389958, 0.097250)),
        (replace(methods.egpo(beta=0.1), update=plain), (0.512792, 0.389958, 0.097250)),
        (methods.egpo(beta=0.1), (0.504885, 0.385532, 0.109583)),
    ],
    ids=["online_ipo uniform", "egpo with the plain update", "egpo"],
)
def test_one_step_on_rock_paper_scissors(method: Method, expected: tuple[float, ...]) -> None:
    """From p = (.6, .3, .1), mu uniform, beta = .1, eta = 1. P p = 1/2 + 1/2 (-.3 + .1, .6 - .1, -.6 + .3) = (.4, .75, .35).

    Mirror descent: p^.9 e^(P p), normalised. EGPO: the same with P p replaced by P p_half, p_half the line above.
    """
    p = np.array([[0.6, 0.3, 0.1]])
    learner = learn(method, np.log(p), np.zeros((1, 3)), step_size(1.0, 0.1, 3))
    play(learner, RPS)
    np.testing.assert_allclose(learner.policy.probabilities()[0], expected, atol=1e-6)
    assert abs(gap(np.log(p[0]), np.zeros(3), RPS, 0.1) - 0.329885) < 1e-6


@pytest.mark.parametrize("name", ["egpo", "online_ipo"])
def test_one_step_on_random_games_is_the_closed_form(name: str) -> None:
    """Twenty games of seven responses in one batch, random starts and references, three pairs of eta and beta."""
    P = np.stack([random_game(7, seed) for seed in range(20)])
    start, mu = np.random.default_rng(1).normal(size=(2, 20, 7))
    for eta, beta in [(1.0, 0.1), (0.3, 1.0), (5.0, 0.02)]:
        method, form = {
            "egpo": (methods.egpo(beta=beta), extragradient_form),
            "online_ipo": (methods.online_ipo(tau=beta, pairs="uniform"), mirror_descent),
        }[name]
        learner = learn(method, start, mu, step_size(eta, beta, 7))
        play(learner, P)
        expected = np.stack([form(start[g], mu[g], P[g], eta, beta) for g in range(20)])
        np.testing.assert_allclose(log_p(learner), normalised(expected), rtol=0, atol=2e-13)


def test_pairs_of_the_policy_scale_each_step_by_the_probability() -> None:
    """Online IPO on its own pairs: d loss / d theta_y = 4 p_y [(u_y - E_p u) - ((P p)_y - 1/2) / tau], u = log p / mu."""
    P, (start, mu) = random_game(6, 3), np.random.default_rng(0).normal(size=(2, 6))
    learner = learn(methods.online_ipo(tau=0.2), start[None], mu[None], 0.05)
    play(learner, P)
    p, u = softmax(start), start - mu
    gradient = 4 * p * ((u - p @ u) - (P @ p - 0.5) / 0.2)
    np.testing.assert_allclose(log_p(learner)[0], normalised(start - 0.05 * gradient), rtol=0, atol=2e-13)


def test_where_nothing_is_preferred_a_step_shrinks_towards_the_reference() -> None:
    """P = 1/2 everywhere: theta - theta_ref shrinks by 1 - eta beta; with eta beta = 1 one step lands on the reference."""
    start, mu = np.random.default_rng(5).normal(size=(2, 1, 4))
    for eta_beta in (0.25, 1.0):
        learner = learn(methods.egpo(beta=0.5), start, mu, step_size(eta_beta / 0.5, 0.5, 4))
        play(learner, np.full((4, 4), 0.5))
        np.testing.assert_allclose(log_p(learner), normalised(mu + (1 - eta_beta) * (start - mu)), rtol=0, atol=1e-13)


def against_itself(learner: Learner, rows_against: RowsAgainst) -> Metrics:
    """Extragradient with its one idea removed: after the half step the opponent is the policy as it was."""
    start = learner.snapshot()
    learner.descend(rows_against(learner.policy))
    learner.restore(start)
    return learner.descend(rows_against(learner.policy))


@pytest.mark.parametrize("optimiser", ["sgd", "adamw", "rmsprop"])
def test_extragradient_against_itself_is_the_plain_update_bit_for_bit(optimiser: str) -> None:
    start, P = np.random.default_rng(2).normal(size=(1, 5)), random_game(5, 0)
    first, second = (
        learn(replace(methods.egpo(beta=0.05), update=update), start, np.zeros((1, 5)), 0.05, optimiser=optimiser)
        for update in (against_itself, plain)
    )
    for number in range(20):
        play(first, P, number)
        play(second, P, number)
        assert torch.equal(first.policy.logits, second.policy.logits)
    assert first.steps == second.steps == 20


def test_one_step_of_egpo_counts_as_one_step_of_the_optimiser() -> None:
    """Moments and step count are those of the second descent alone, whatever the half step did to them."""
    start, P, mu = np.random.default_rng(2).normal(size=(1, 5)), random_game(5, 0), np.zeros((1, 5))
    learner = learn(methods.egpo(beta=0.05), start, mu, 0.05, optimiser="adamw")
    play(learner, P)
    half = learn(UNIFORM_ONLINE_IPO, start, mu, 0.05, optimiser="adamw")
    half.method = replace(methods.egpo(beta=0.05), update=plain)
    play(half, P)

    def against_half(again: Learner, rows_against: RowsAgainst) -> Metrics:
        return again.descend(rows_against(half.policy))

    alone = learn(replace(methods.egpo(beta=0.05), update=against_half), start, mu, 0.05, optimiser="adamw")
    play(alone, P)
    assert torch.equal(learner.policy.logits, alone.policy.logits)
    (moments,), (expected,) = learner.optimiser.state.values(), alone.optimiser.state.values()
    assert moments.keys() == expected.keys() and all(torch.equal(moments[name], expected[name]) for name in moments)
    assert learner.steps == 1


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_every_game_of_a_batch_steps_as_if_alone(optimiser: str) -> None:
    P = np.stack([random_game(4, seed) for seed in range(5)])
    start = np.random.default_rng(3).normal(size=(5, 4))
    together = learn(methods.egpo(beta=0.1), start, np.zeros((5, 4)), 0.1, optimiser=optimiser, micro_batch=2)
    alone = [learn(methods.egpo(beta=0.1), start[g : g + 1], np.zeros((1, 4)), 0.1, optimiser=optimiser) for g in range(5)]
    for number in range(5):
        play(together, P, number)
        for g in range(5):
            play(alone[g], P[g], number)
    assert torch.equal(together.policy.logits, torch.cat([learner.policy.logits for learner in alone]))


# --- games ----------------------------------------------------------------------------------------------------------


def gaps(method: Method, names: Sequence[str], eta: float, beta: float, steps: int) -> Array:
    """Regularised gaps [steps + 1, games] of a run from the reference softmax(default_rng(1).normal(size=n))."""
    P = np.stack([game(name).numpy() for name in names])
    n = P.shape[1]
    mu = np.tile(np.random.default_rng(1).normal(size=n), (len(names), 1))
    learner = learn(method, mu, mu, step_size(eta, beta, n))
    found = []
    for number in range(steps + 1):
        theta = log_p(learner)
        found.append([gap(theta[g], mu[g], P[g], beta) for g in range(len(names))])
        play(learner, P, number)
    return np.array(found)


def arrival(gap: Array) -> int:
    """The first step from which on the gap stays at or below 1e-6."""
    return int(np.flatnonzero(gap > 1e-6)[-1]) + 1


def test_on_rock_paper_scissors_the_plain_method_circles_and_the_extragradient_arrives() -> None:
    """beta = .01, both with eta = 1. Plain mirror descent is stable below 2 beta / (beta^2 + s^2) = .24 only, s = .2887."""
    plainly = gaps(methods.online_ipo(tau=0.01, pairs="uniform"), ["rps"], 1.0, 0.01, 400)[:, 0]
    extra = gaps(methods.egpo(beta=0.01), ["rps"], 1.0, 0.01, 400)[:, 0]
    assert plainly[-100:].min() > 0.3
    assert abs(arrival(extra) - 130) <= 1 and extra[-100:].max() < 1e-6


# (beta, eta, {game: (arrival of mirror descent, arrival of EGPO)}), games of one size play in one batch
ARRIVALS = [
    (0.1, 1.0, {"rps": (95, 35), "dice": (30, 30)}),
    (0.1, 1.0, {"condorcet": (55, 51)}),
    (0.1, 1.0, {"rand10": (82, 51), "bt10": (57, 56)}),
    (0.1, 1.0, {"gpm20": (62, 49)}),
    (0.1, 1.0, {"rand50": (51, 48)}),
    (0.1, 2.0, {"rps": (346, 13), "dice": (15, 14)}),
    (0.1, 2.0, {"rand10": (69, 23), "bt10": (27, 27)}),
    (0.01, 5.0, {"dice": (116, 67)}),
    (0.01, 2.0, {"condorcet": (126, 127)}),
]


@pytest.mark.parametrize(("beta", "eta", "games"), ARRIVALS, ids=lambda value: "+".join(value) if isinstance(value, dict) else str(value))
def test_methods_arrive_after_the_known_number_of_steps(beta: float, eta: float, games: dict[str, tuple[int, int]]) -> None:
    """Steps until the regularised gap stays at or below 1e-6, to one step, as an independent numpy code counted them."""
    for column, method in enumerate([methods.online_ipo(tau=beta, pairs="uniform"), methods.egpo(beta=beta)]):
        counts = [pair[column] for pair in games.values()]
        found = gaps(method, list(games), eta, beta, max(counts) + 40)
        for g, count in enumerate(counts):
            assert abs(arrival(found[:, g]) - count) <= 1, (list(games)[g], method.update.__name__, arrival(found[:, g]))


@pytest.mark.parametrize(("name", "steps"), [("rps", 43), ("rand10", 244), ("gpm20", 219)])
def test_with_little_pull_only_the_extragradient_arrives(name: str, steps: int) -> None:
    """beta = .01, eta = 2, far above the limit of plain mirror descent on these games."""
    extra = gaps(methods.egpo(beta=0.01), [name], 2.0, 0.01, steps + 40)[:, 0]
    plainly = gaps(methods.online_ipo(tau=0.01, pairs="uniform"), [name], 2.0, 0.01, steps + 40)[:, 0]
    assert abs(arrival(extra) - steps) <= 1
    assert plainly[-20:].min() > 1e-3


def test_offline_ipo_takes_the_popular_response_and_online_ipo_the_winner() -> None:
    """The Borda trap: response 0 beats both others narrowly, response 1 wins on average. mu uniform, tau = .01."""
    P = game("borda-trap").numpy()
    offline = learn(methods.ipo(tau=0.01), np.zeros((1, 3)), np.zeros((1, 3)), 0.2)
    for _ in range(200):
        offline.descend(all_pairs(torch.as_tensor(P)))
    online = learn(methods.egpo(beta=0.01), np.zeros((1, 3)), np.zeros((1, 3)), step_size(5.0, 0.01, 3))
    for number in range(300):
        play(online, P, number)
    assert offline.policy.probabilities()[0, 1] > 0.99999
    np.testing.assert_allclose(online.policy.probabilities()[0], (0.7310, 0.2690, 0), atol=1e-4)


# --- sampled steps --------------------------------------------------------------------------------------------------


KINDS = [("policy", 2, 0), ("policy", 3, 0), ("policy", 2, 1), ("uniform", 2, 1), ("uniform", 3, 2)]


@pytest.mark.parametrize(("pairs", "responses", "opponents"), KINDS)
def test_sampled_gradients_are_the_exact_one_in_expectation(pairs: str, responses: int, opponents: int) -> None:
    """8000 sampled rows of one game against the enumerated gradient: within 4 standard errors in every component.

    Power: the standard error of every component is below 4 % of the largest component, asserted, so a term that is off
    by a factor of 1.2 fails.
    """
    P, (start, mu) = random_game(4, 1), np.random.default_rng(8).normal(size=(2, 1, 4))
    method = methods.online_ipo(tau=0.5, pairs=pairs, responses=responses, opponents=opponents)

    def per_row(exact: bool, feed: Rows) -> Tensor:
        """d loss_b / d theta [B, n]."""
        learner = learn(method, start, mu, 1.0, exact=exact)
        roles = {**learner.roles, "opponent": learner.policy}
        s = learner.score(method.collect(Context(roles, feed, (PreferenceTable(torch.as_tensor(P)),), key=Key.of(11))))
        (g,) = torch.autograd.grad(method.objective(s).row.sum(), s.logp)
        p = learner.policy.probabilities()
        return torch.zeros(len(feed), 4, dtype=torch.float64).scatter_add(1, s.rows.response.index, g) - g.sum(1, keepdim=True) * p

    exact = per_row(True, Rows(("game",), (0,)))[0]
    drawn = per_row(False, Rows(tuple(map(str, range(8000))), (0,) * 8000))
    error = drawn.std(0) / 8000**0.5
    assert (error < 0.04 * exact.abs().max()).all()
    assert ((drawn.mean(0) - exact).abs() < 4 * error).all()


def test_draws_of_self_play_do_not_depend_on_the_batch() -> None:
    P, policy = random_game(4, 1), TabularPolicy(torch.zeros(1, 4), exact=False)
    feed = Rows(tuple(map(str, range(30))), (0,) * 30)
    ctx = Context({"current": policy, "opponent": policy}, feed, (PreferenceTable(torch.as_tensor(P)),), key=Key.of(3))
    whole = against_opponent(ctx, pairs="uniform")
    part = against_opponent(replace(ctx, feed=feed.take([7, 2])), pairs="uniform")
    assert torch.equal(part.response.index, whole.response.index[[7, 2]]) and torch.equal(part.winrate, whole.winrate[[7, 2]])


def test_the_opponent_is_asked_unless_responses_are_judged_against_one_another() -> None:
    """Against an opponent that always plays rock, paper wins always, however the pair is drawn."""
    rock = TabularPolicy(torch.tensor([[0.0, -800.0, -800.0]]))
    policy = TabularPolicy(torch.tensor([[0.0, 0.5, 0.2]]))
    ctx = Context({"current": policy, "opponent": rock}, policy.rows(), (PreferenceTable(torch.as_tensor(RPS)),))
    assert against_opponent(ctx, pairs="uniform").winrate.tolist() == [[0.5, 1.0, 0.0]]
    assert against_opponent(ctx, pairs="policy").winrate.tolist() == [[0.5, 1.0, 0.0]]
    torch.testing.assert_close(against_opponent(ctx, opponents=0).winrate[0], torch.as_tensor(RPS) @ policy.probabilities()[0])


def test_numbers_that_leave_nothing_to_compare_are_refused_when_composed() -> None:
    with pytest.raises(PreftuneError, match="pairs is 'even'"):
        methods.online_ipo(pairs="even")
    with pytest.raises(PreftuneError, match="responses is 1"):
        methods.egpo(responses=1)
    with pytest.raises(PreftuneError, match="opponents is 0"):
        methods.egpo(pairs="policy", opponents=0)
    with pytest.raises(PreftuneError, match="opponents is 0 with uniform pairs"):
        methods.online_ipo(pairs="uniform", opponents=0)


def test_rows_of_a_silent_judge_are_left_out_and_named() -> None:
    judge = PreferenceTable(torch.as_tensor(RPS))
    judge.table = torch.stack([judge.table[0], judge.table[0] * torch.nan])
    policy, silent = TabularPolicy(torch.zeros(2, 3)), []
    rows = against_opponent(Context({"current": policy}, policy.rows(["first", "second"]), (judge,), silent=silent), opponents=0)
    assert (rows.id, silent) == (("first",), ["second"])


# --- offline methods end where they should --------------------------------------------------------------------------


def all_pairs(P: Tensor, *, hard: bool = False) -> Rows:
    """Every pair i < j of one game with P[i, j] as soft label; hard: both orders, weighted by their probabilities to mean one."""
    n = len(P)
    pair = [(i, j) for i in range(n) for j in range(n) if (i < j or (hard and i != j))]
    p = torch.stack([P[i, j] for i, j in pair]).double()
    labels = {"weight": 2 * p} if hard else {"prefer": p}
    return Rows(tuple(map(str, pair)), (0,) * len(pair), TableResponses(torch.tensor(pair)), ranked=True, **labels)


REWARD = torch.tensor([0.0, 1.0, -0.5, 0.3], dtype=torch.float64)
LOG_MU = torch.tensor([[0.4, -1.0, 0.0, 0.2]], dtype=torch.float64).log_softmax(1)


def descend(learner: GradientLearner, rows: Rows, steps: int) -> Tensor:
    """log p of the one game after so many steps on the same rows."""
    for _ in range(steps):
        learner.descend(rows)
    return learner.policy.logits.detach().log_softmax(1)[0]


def best(reward: Tensor, beta: float) -> Tensor:
    """log of mu e^(reward / beta), normalised."""
    return (LOG_MU[0] + reward / beta).log_softmax(0)


@pytest.mark.parametrize("hard", [False, True], ids=["soft labels", "both outcomes by weight"])
def test_dpo_ends_at_the_tilted_reference(hard: bool) -> None:
    """Bradley-Terry labels of reward R: log pi = log mu + R / beta + const."""
    rows = all_pairs(torch.sigmoid(REWARD[:, None] - REWARD), hard=hard)
    found = descend(learn(methods.dpo(beta=0.5), LOG_MU, LOG_MU, 12.0), rows, 150)
    torch.testing.assert_close(found, best(REWARD, 0.5), rtol=0, atol=1e-10)


def test_soft_labels_and_weighted_outcomes_are_the_same_data() -> None:
    P = torch.sigmoid(REWARD[:, None] - REWARD)
    for method in (methods.dpo(), methods.dpo(label_smoothing=0.2), methods.ipo(), methods.ipo_avg()):
        found = [descend(learn(method, LOG_MU - 1.0 * REWARD, LOG_MU, 0.01), all_pairs(P, hard=hard), 3) for hard in (False, True)]
        torch.testing.assert_close(*found, rtol=0, atol=1e-13)


@pytest.mark.parametrize("flip", [0.1, 0.3])
def test_rdpo_on_flipped_labels_ends_where_dpo_ends_on_clean_ones(flip: float) -> None:
    """DPO on the flipped labels ends short of it, and cDPO, which shrinks the margin a second time, shorter still."""
    clean = torch.sigmoid(REWARD[:, None] - REWARD)
    rows = all_pairs((1 - flip) * clean + flip * (1 - clean), hard=True)
    robust = descend(learn(methods.rdpo(beta=0.5, label_smoothing=flip), LOG_MU, LOG_MU, 8.0), rows, 200)
    noisy = descend(learn(methods.dpo(beta=0.5), LOG_MU, LOG_MU, 12.0), rows, 100)
    smoothed = descend(learn(methods.dpo(beta=0.5, label_smoothing=flip), LOG_MU, LOG_MU, 12.0), rows, 100)
    torch.testing.assert_close(robust, best(REWARD, 0.5), rtol=0, atol=1e-10)
    spread = [float((log_p - LOG_MU[0]).std()) for log_p in (smoothed, noisy, robust)]
    assert spread[0] < 0.9 * spread[1] < 0.9 * 0.9 * spread[2]


@pytest.mark.parametrize(("p", "tau"), [(0.8, 0.1), (1.0, 0.1), (0.3, 0.5)])
def test_ipo_on_one_pair_ends_at_its_gap(p: float, tau: float) -> None:
    """log pi(0) mu(1) / (pi(1) mu(0)) = (2p - 1) / (2 tau): 3 for p = .8 and tau = .1, and finite also for sure labels."""
    P = torch.tensor([[0.5, p], [1 - p, 0.5]], dtype=torch.float64)
    mu = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    for hard in (False, True):
        found = descend(learn(methods.ipo(tau), mu, mu, 0.1), all_pairs(P, hard=hard), 200)
        gap = (found[0] - found[1]) - (mu[0, 0] - mu[0, 1])
        assert math.isclose(gap, (2 * p - 1) / (2 * tau), rel_tol=1e-11)


def test_ipo_on_all_pairs_ranks_by_mean_win_rate() -> None:
    """Least squares on (2 P_ij - 1) / (2 tau) over all pairs: u_i = mean_j (2 P_ij - 1) / (2 tau)."""
    P = torch.as_tensor(random_game(5, 4))
    mu = torch.randn(1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = descend(learn(methods.ipo(0.2), mu, mu, 0.5), all_pairs(P), 300)
    expected = (mu[0] + (2 * P - 1).mean(1) / 0.4).log_softmax(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_dpo_pushes_sure_labels_without_end_and_ipo_does_not() -> None:
    sure = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
    mu = torch.zeros(1, 2, dtype=torch.float64)
    gap = lambda method, steps: (
        -descend(learn(method, mu, mu, 20.0 if method.objective.func.__name__ == "dpo" else 0.1), all_pairs(sure), steps)
    )
    dpo = [float(gap(methods.dpo(beta=0.5), steps)[1]) for steps in (100, 200, 400)]
    ipo = [float(gap(methods.ipo(0.1), steps)[1]) for steps in (100, 200, 400)]
    assert dpo[0] + 1 < dpo[1] and dpo[1] + 1 < dpo[2]
    assert max(ipo) - min(ipo) < 1e-9


# --- a moving reference ---------------------------------------------------------------------------------------------


def sync(learner: GradientLearner) -> None:
    learner.roles = dict(learner.method.reference(learner.roles))


def test_hard_tr_dpo_with_exact_inner_solves_tilts_the_reference_once_per_sync() -> None:
    """After k syncs log pi = log mu + k R / beta + const."""
    rows = all_pairs(torch.sigmoid(REWARD[:, None] - REWARD))
    learner = learn(methods.tr_dpo(beta=0.5, alpha=1.0), LOG_MU, LOG_MU, 12.0)
    for k in (1, 2, 3):
        torch.testing.assert_close(descend(learner, rows, 150), best(k * REWARD, 0.5), rtol=0, atol=1e-9)
        sync(learner)
        assert torch.equal(learner.roles["reference"].logits, learner.policy.logits)


def test_tr_dpo_that_moves_nothing_is_dpo_bit_for_bit() -> None:
    rows = all_pairs(torch.sigmoid(REWARD[:, None] - REWARD))
    still, dpo = learn(methods.tr_dpo(beta=0.1, alpha=0.0), LOG_MU, LOG_MU, 3.0), learn(methods.dpo(beta=0.1), LOG_MU, LOG_MU, 3.0)
    for _ in range(20):
        still.descend(rows)
        sync(still)
        dpo.descend(rows)
        assert torch.equal(still.policy.logits, dpo.policy.logits)


def test_tr_dpo_that_copies_at_every_step_never_sees_a_gap() -> None:
    """The log-ratios are 0 in every step, so the loss stays at ln 2 and the policy moves at the constant rate beta / 2."""
    sure = Rows(("pair",), (0,), TableResponses(torch.tensor([[0, 1]])), ranked=True)
    learner = learn(methods.tr_dpo(beta=0.2, alpha=1.0, every=1), torch.zeros(1, 2), torch.zeros(1, 2), 1.0)
    for step in range(1, 11):
        metrics = learner.descend(sure)
        sync(learner)
        assert metrics["margin"] == 0.0 and math.isclose(metrics["loss"], math.log(2), rel_tol=1e-15)
        torch.testing.assert_close(learner.policy.logits[0, 0].detach(), torch.tensor(0.1 * step, dtype=torch.float64))


def test_soft_tr_dpo_moves_the_reference_part_of_the_way() -> None:
    rows = all_pairs(torch.sigmoid(REWARD[:, None] - REWARD))
    learner = learn(methods.tr_dpo(beta=0.5, alpha=0.6), LOG_MU, LOG_MU, 3.0)
    descend(learner, rows, 10)
    policy = learner.policy.logits.detach().clone()
    sync(learner)
    torch.testing.assert_close(learner.roles["reference"].logits, 0.4 * LOG_MU + 0.6 * policy)
    assert torch.equal(learner.policy.logits, policy)
    assert not learner.roles["reference"].logits.requires_grad


def test_a_method_without_a_reference_keeps_none() -> None:
    roles = learn(methods.simpo(gamma=0.0), LOG_MU, LOG_MU, 1.0).roles
    assert set(methods.simpo(gamma=0.0).reference(roles)) == {"current"} and methods.dpo().reference(roles) == roles


def test_updates_say_whether_they_draw_twice() -> None:
    found: dict[str, Callable[..., Metrics]] = {name: method.update for name, method in _composed().items()}
    assert {name for name, update in found.items() if update is extragradient} == {"egpo"}
    assert extragradient.redraws and not hasattr(plain, "redraws")
    assert {"egpo", "online-ipo"} <= {name for name, method in _composed().items() if method.collect_every == "step"}


def _composed() -> dict[str, Method]:
    return {name: make(**merged("SETTINGS").get(name, {})) for name, make in methods.METHODS.items()}
