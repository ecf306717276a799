"""Methods that draw and compare pairs while training, on tables: single steps against closed forms, where they end, and estimators."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import root
from torch import Tensor

from preftune import methods, training
from preftune.collect import store
from preftune.collect.online import extremes_law
from preftune.exact.games import bradley_terry, game, reference_logits
from preftune.exact.nash import regularised_nash
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.log import Log
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.training import RowsFeed, TrainConfig
from preftune.types import Context, Key, Method, PreftuneError, Rows
from test_methods_on_tables import RPS, Array, all_pairs, learn, log_p, normalised, play, random_game, softmax

START, LOG_MU = np.random.default_rng(8).normal(size=(2, 1, 5))
P5 = random_game(5, 1)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def surprise(theta: Array, log_mu: Array, P: Array, beta: float) -> Array:
    """sigmoid(beta (r_i - r_j)) - P_ij, r = theta - log mu: what a pair still has to learn."""
    r = theta - log_mu
    return sigmoid(beta * (r[:, None] - r)) - P


def steps_by(method: Method, gradient: Array) -> None:
    """One exact step of size .7 from START is that along `gradient` [5]."""
    learner = learn(method, START, LOG_MU, 0.7)
    play(learner, P5)
    np.testing.assert_allclose(log_p(learner)[0], normalised(START[0] - 0.7 * gradient), rtol=0, atol=1e-12)


# --- one exact step -------------------------------------------------------------------------------------------------


def test_a_step_of_online_dpo_is_its_closed_form() -> None:
    """d loss / d theta_k = 2 beta p_k sum_j p_j (sigmoid(beta (r_k - r_j)) - P_kj), twice as every response stands in both places."""
    p = softmax(START[0])
    steps_by(methods.online_dpo(0.3), 2 * 0.3 * p * (surprise(START[0], LOG_MU[0], P5, 0.3) @ p))


def test_a_step_of_xpo_is_its_closed_form() -> None:
    """Pairs (i from p, j from mu): beta [p_k sum_j mu_j e_kj - mu_k sum_i p_i e_ik], e the surprise, plus alpha (mu - p)."""
    p, mu, e = softmax(START[0]), softmax(LOG_MU[0]), surprise(START[0], LOG_MU[0], P5, 0.3)
    steps_by(methods.xpo(0.3, alpha=0.2), 0.3 * (p * (e @ mu) - mu * (p @ e)) + 0.2 * (mu - p))


def test_a_step_of_vpo_on_its_own_pairs_is_its_closed_form() -> None:
    p, mu = softmax(START[0]), softmax(LOG_MU[0])
    steps_by(methods.vpo(0.3, alpha=0.2), 2 * 0.3 * p * (surprise(START[0], LOG_MU[0], P5, 0.3) @ p) + 0.2 * 0.3 * (mu - p))


def test_vpo_of_a_pair_with_the_reference_is_xpo_step_by_step() -> None:
    found = []
    for method in (methods.xpo(0.3, alpha=0.02), methods.vpo(0.3, alpha=0.02 / 0.3, partner="reference")):
        learner = learn(method, START, LOG_MU, 0.7)
        for number in range(3):
            play(learner, P5, number)
        found.append(learner.policy.logits.detach())
    assert torch.equal(*found)


# --- where online dpo ends ------------------------------------------------------------------------------------------


def test_online_dpo_on_bradley_terry_preferences_ends_at_the_tilted_reference() -> None:
    """softmax(log mu + r / beta). From anywhere, slowly: pairs are seen as often as both responses are drawn."""
    reward = torch.tensor([0.3, -0.2, 0.0, 0.1], dtype=torch.float64)
    mu = np.array([[0.2, -0.3, 0.1, 0.0]])
    best = softmax(mu[0] + reward.numpy() / 0.5)
    learner = learn(methods.online_dpo(0.5), np.log(best)[None], mu, 1.0)
    play(learner, bradley_terry(reward))
    np.testing.assert_allclose(learner.policy.probabilities()[0], best, rtol=0, atol=1e-15)
    learner = learn(methods.online_dpo(0.5), np.array([[1.0, 0.0, 0.5, 0.0]]), mu, 20.0)
    for number in range(400):
        play(learner, bradley_terry(reward), number)
    np.testing.assert_allclose(learner.policy.probabilities()[0], best, rtol=0, atol=1e-10)


def test_online_dpo_leaves_rock_paper_scissors_alone_at_the_uniform_reference() -> None:
    """Every response wins half of the time, though no single pair is even."""
    learner = learn(methods.online_dpo(0.1), np.zeros((1, 3)), np.zeros((1, 3)), 1.0)
    play(learner, RPS)
    assert learner.policy.logits.abs().max() < 1e-15


@pytest.mark.parametrize(("name", "distance"), [("rps", 0.052), ("rand10", 0.270), ("bt10", 0.492)])
def test_online_dpo_is_no_solver_of_the_game(name: str, distance: float) -> None:
    """Total variation between its fixed point and the regularised equilibrium, both at .3.

    The fixed point, sum_j p_j (sigmoid(beta (r_k - r_j)) - P_kj) = 0 for every k, is found by scipy; a step of ours then stands still.
    """
    P = game(name)
    log_mu = reference_logits(len(P)).log_softmax(-1)

    def residual(theta: Array) -> Array:
        error = surprise(theta, log_mu.numpy(), P.numpy(), 0.3) @ softmax(theta)
        return error + theta.mean() - log_mu.numpy().mean()  # the logits' free constant

    found = root(residual, log_mu.numpy(), tol=1e-13)
    assert np.abs(residual(found.x)).max() < 1e-10
    learner = learn(methods.online_dpo(0.3), found.x[None], log_mu[None], 1.0)
    play(learner, P)
    np.testing.assert_allclose(log_p(learner)[0], normalised(found.x), rtol=0, atol=1e-9)
    apart = 0.5 * np.abs(softmax(found.x) - regularised_nash(P, log_mu, 0.3).softmax(-1).numpy()).sum()
    assert abs(apart - distance) < 6e-4


def test_labels_by_threshold_are_another_game_without_an_end() -> None:
    """Strengths that differ by .1: soft labels stop at a ratio of e^(.1 / beta), thresholds go on for ever."""
    P, start = bradley_terry(torch.tensor([0.1, 0.0], dtype=torch.float64)), np.zeros((1, 2))
    ends = {}
    for label in ("soft", "threshold"):
        learner = learn(methods.online_dpo(0.1, label=label), start, start, 100.0)
        gap = []
        for number in range(200):
            play(learner, P, number)
            gap.append(float(learner.policy.logits.detach().diff().neg()))
        ends[label] = gap
    assert abs(ends["soft"][-1] - 1.0) < 1e-9
    assert ends["threshold"][-1] > ends["threshold"][-100] + 0.1 > 5


def test_a_tie_makes_no_pair_under_the_threshold() -> None:
    learner = learn(methods.online_dpo(label="threshold"), START, LOG_MU, 1.0)
    told = play(learner, np.full((5, 5), 0.5))
    assert told["decided"] == told["loss"] == 0 and np.array_equal(learner.policy.logits.detach().numpy(), START)


def test_optimism_has_no_minimum_where_it_outweighs_the_wins_of_a_response() -> None:
    """Two responses, 1 wins a quarter: far out the slope in the gap is beta (1/4 - alpha pi_cal(1)), here pi_cal(1) = .7."""
    P, mu = np.array([[0.5, 0.75], [0.25, 0.5]]), np.log(np.array([[0.3, 0.7]]))

    def loss(alpha: float, g: float) -> float:
        learner = learn(methods.vpo(0.5, alpha), mu, mu, 1.0)
        pair = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
        extra = {"pairs": pair, "calibration": torch.as_tensor(mu).exp()}
        learner.policy.logits.data.copy_(torch.tensor([[g, 0.0]]) + torch.as_tensor(mu))
        rows = Rows(("game",), (0,), TableResponses(torch.tensor([[0, 1]])), beats=torch.as_tensor(P)[None], extra=extra)
        return float(learner.method.objective(learner.score(rows)).row.detach())

    for alpha in (0.3, 1.0):
        slope = (loss(alpha, 300.0) - loss(alpha, 200.0)) / 100
        assert abs(slope - 0.5 * (0.25 - alpha * 0.7)) < 1e-12


# --- draws ----------------------------------------------------------------------------------------------------------


def per_row(method: Method, exact: bool, feed: Rows, P: Array | Tensor = P5) -> Tensor:
    """d loss_b / d theta [B, n]."""
    learner = learn(method, START, LOG_MU, 1.0, exact=exact)
    learner.roles["reference"].exact = exact
    roles = {**learner.roles, "opponent": learner.policy}
    s = learner.score(method.collect(Context(roles, feed, (PreferenceTable(torch.as_tensor(P)),), key=Key.of(11))))
    (g,) = torch.autograd.grad(method.objective(s).row.sum(), s.logp)
    p = learner.policy.probabilities()
    return torch.zeros(len(feed), p.shape[1], dtype=torch.float64).scatter_add(1, s.rows.response.index, g) - g.sum(1, keepdim=True) * p


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (methods.online_dpo(0.3), methods.online_dpo(0.3)),
        (methods.online_dpo(0.3, responses=3), methods.online_dpo(0.3)),
        (methods.online_dpo(0.3, label="sampled"), methods.online_dpo(0.3)),
        (methods.xpo(0.3, alpha=0.1), methods.xpo(0.3, alpha=0.1)),
        (methods.vpo(0.3, alpha=0.5), methods.vpo(0.3, alpha=0.5)),
        (methods.vpo(0.3, alpha=0.5, label="sampled"), methods.vpo(0.3, alpha=0.5)),
    ],
    ids=["pair", "list", "sampled labels", "xpo", "vpo", "vpo with sampled labels"],
)
def test_sampled_gradients_are_the_exact_one_in_expectation(method: Method, expected: Method) -> None:
    """20000 rows of one game against the enumerated gradient with soft labels: within 4 standard errors in every component.

    Power: the standard error of every component is below 6 % of the largest component, asserted.
    """
    exact = per_row(expected, True, Rows(("game",), (0,)))[0]
    drawn = per_row(method, False, Rows(tuple(map(str, range(20000))), (0,) * 20000))
    error = drawn.std(0) / 20000**0.5
    assert (error < 0.06 * exact.abs().max()).all()
    assert ((drawn.mean(0) - exact).abs() < 4 * error).all()


def test_sampled_labels_are_outcomes_that_add_up_to_one() -> None:
    method = methods.online_dpo(label="sampled", responses=4)
    learner = learn(method, START, LOG_MU, 1.0, exact=False)
    feed = Rows(tuple(map(str, range(2000))), (0,) * 2000)
    rows = method.collect(Context(learner.roles, feed, (PreferenceTable(torch.as_tensor(P5)),), key=Key.of(3)))
    off = ~torch.eye(4, dtype=torch.bool)
    assert set(rows.beats[:, off].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(rows.beats + rows.beats.mT, torch.ones_like(rows.beats))
    some = method.collect(Context(learner.roles, feed.take([7, 2]), (PreferenceTable(torch.as_tensor(P5)),), key=Key.of(3)))
    assert torch.equal(some.beats, rows.beats[[7, 2]])


# --- hypo -----------------------------------------------------------------------------------------------------------

MU3 = np.log(np.array([[0.473, 0.090, 0.437]]))


def one_pair(p: float = 0.8) -> Rows:
    """Responses 0 and 1, the first preferred with probability p."""
    return Rows(("pair",), (0,), TableResponses(torch.tensor([[0, 1]])), ranked=True, prefer=torch.tensor([p], dtype=torch.float64))


def kl(log_a: Array, log_b: Array) -> float:
    return float((np.exp(log_a) * (log_a - log_b)).sum())


def test_a_step_of_hypo_is_that_of_dpo_and_of_the_whole_divergence() -> None:
    """d KL / d theta = p (r - E_p r), r = log p - log mu; a pair's slope is beta (sigmoid(beta g) - P)."""
    learner = learn(methods.hypo(0.3, lam=0.7), START, LOG_MU, 0.5)
    play(learner, P5, feed=one_pair())
    log = normalised(START[0])
    p, r = np.exp(log), log - normalised(LOG_MU[0])
    pair = 0.3 * (sigmoid(0.3 * (r[0] - r[1])) - 0.8) * np.array([1.0, -1, 0, 0, 0])
    expected = START[0] - 0.5 * (pair + 0.7 * p * (r - p @ r))
    np.testing.assert_allclose(log_p(learner)[0], normalised(expected), rtol=0, atol=1e-12)


def test_sampled_gradients_of_hypo_are_the_exact_one_in_expectation() -> None:
    method, rows = methods.hypo(0.3, lam=0.7, responses=3), one_pair()
    exact = per_row(method, True, rows)[0]
    many = rows.take([0] * 20000).replace(id=tuple(map(str, range(20000))))
    drawn = per_row(method, False, many)
    error = drawn.std(0) / 20000**0.5
    assert (error < 0.06 * exact.abs().max()).all()
    assert ((drawn.mean(0) - exact).abs() <= 4 * error + 1e-12).all()


def ends(method: Method, lr: float, steps: int) -> Array:
    learner: GradientLearner = learn(method, MU3, MU3, lr)
    for number in range(steps):
        play(learner, np.full((3, 3), 0.5), number, one_pair())
    return log_p(learner)[0]


def test_hypo_keeps_the_reference_where_no_pair_looks() -> None:
    """mu (.473, .090, .437), pairs of 0 and 1 alone: dpo ends with pi(2) = .0009, hypo with 0 and 2 in the reference's ratio.

    dpo: the gap of logits 0 and 1 grows by logit(.8) / .1 = 13.86, half of it each, while logit 2 stands still.
    """
    alone, kept = ends(methods.dpo(0.1), 200.0, 250), ends(methods.hypo(0.1, lam=0.01), 150.0, 400)
    np.testing.assert_allclose(np.exp(alone)[2], 0.0009, atol=5e-5)
    np.testing.assert_allclose(np.exp(kept), (0.520, 0.000, 0.480), atol=5e-4)
    np.testing.assert_allclose(kept[0] - kept[2], MU3[0, 0] - MU3[0, 2], atol=1e-3)
    np.testing.assert_allclose([kl(alone, MU3[0]), kl(kept, MU3[0])], [0.742, 0.094], atol=1e-3)


def test_a_strong_online_term_holds_hypo_at_the_reference() -> None:
    """The distance falls as 1 / lam: the pair's slope is at most beta / 2."""
    apart = [np.abs(ends(methods.hypo(0.1, lam=lam), 1.0 / lam, 150) - MU3[0]).max() for lam in (1.0, 10.0, 100.0)]
    assert apart[0] > 8 * apart[1] > 60 * apart[2] > 0


# --- srpo -----------------------------------------------------------------------------------------------------------


def improving(method: Method, start: Array | Tensor, mu: Array | Tensor, lr: float) -> GradientLearner:
    """A learner whose policy has a law for the prompt and one for every draft, [1 + n, n] logits."""
    policy, reference = (TabularPolicy.improving(torch.zeros(1, start.shape[1])) for _ in range(2))
    policy.logits.data.copy_(torch.as_tensor(start))
    reference.logits.data.copy_(torch.as_tensor(mu))
    roles = {"current": policy, "reference": reference.reference()}
    return GradientLearner(policy, method, roles, optimiser="sgd", lr=lr, clip=0.0, micro_batch=1000)


def solution(P: Array, mu: Array, beta: float) -> Array:
    """log pi and the rows of log pi' [1 + n, n]: pi' = mu e^(P(. beats y) / beta) / Z(y), pi = mu / Z normalised."""
    tilted = np.log(mu) + P.T / beta
    Z = np.exp(tilted).sum(1)
    return np.concatenate([normalised(np.log(mu) - np.log(Z))[None], normalised(tilted)])


def test_a_step_of_srpo_is_its_closed_form() -> None:
    """a, b the two errors of the improver, c that of the generator; g(y1, y1) - g(y2, y2) holds the normalisers of two laws."""
    start, mu = np.random.default_rng(0).normal(size=(2, 4, 3))
    learner, beta, p = improving(methods.srpo(0.3, 0.6, 0.9), start, mu, 0.5), 0.3, 0.8
    play(learner, RPS, feed=one_pair(p))
    log, ref = normalised(start), normalised(mu)
    f, g1, g2 = log[0] - ref[0], log[1] - ref[1], log[2] - ref[2]
    a, b = (1 - p) - 0.5 - beta * (g1[1] - g1[0]), p - 0.5 - beta * (g2[0] - g2[1])
    c = beta * (f[0] - f[1] - g1[0] + g2[1])
    e = np.eye(3)
    slope = np.zeros((4, 3))
    slope[0] = 0.9 * 2 * beta * c * (e[0] - e[1])
    slope[1] = -0.6 * a * beta * (e[1] - e[0]) - 0.9 * 2 * beta * c * (e[0] - np.exp(log[1]))
    slope[2] = -0.6 * b * beta * (e[0] - e[1]) + 0.9 * 2 * beta * c * (e[1] - np.exp(log[2]))
    np.testing.assert_allclose(log_p(learner), normalised(start - 0.5 * slope), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("w", "steps"), [(0.1, 300), (0.5, 300), pytest.param(0.9, 1500, marks=pytest.mark.slow)])
def test_srpo_ends_at_its_solution_from_anywhere_whatever_the_weights(w: float, steps: int) -> None:
    """The Borda trap, mu uniform, beta = .2; the generator prefers what is beaten least by its improver, not what wins most."""
    P, mu = game("borda-trap"), np.full(3, 1 / 3)
    expected = [
        (0.385009, 0.518148, 0.096843),
        (0.344535, 0.327732, 0.327732),
        (0.487451, 0.463678, 0.048871),
        (0.091106, 0.822232, 0.086663),
    ]
    np.testing.assert_allclose(np.exp(solution(P.numpy(), mu, 0.2)), expected, atol=6e-7)
    start = np.random.default_rng(int(10 * w)).normal(size=(4, 3))
    learner = improving(methods.srpo(0.2, 1 - w, w), start, np.zeros((4, 3)), 12.0)
    pairs = all_pairs(P)
    for number in range(steps):
        told = play(learner, P, number, feed=pairs)
    np.testing.assert_allclose(learner.policy.probabilities(), np.exp(solution(P.numpy(), mu, 0.2)), rtol=0, atol=1e-8)
    assert told["loss"] < 1e-16


@pytest.mark.parametrize(("beta", "first"), [(0.2, 0.385), (0.05, 0.457), (0.01, 0.682)])
def test_srpo_goes_slowly_to_the_least_worst_loss_as_the_pull_falls(beta: float, first: float) -> None:
    """max_y' P(y' beats y) in the Borda trap: .50 for response 0, .51 for response 1, .95 for response 2. Both losses are 0 there."""
    P = game("borda-trap")
    end = solution(P.numpy(), np.full(3, 1 / 3), beta)
    learner = improving(methods.srpo(beta), end, np.zeros((4, 3)), 1.0)
    told = play(learner, P, feed=all_pairs(P))
    assert told["loss"] < 1e-25 and abs(np.exp(end[0, 0]) - first) < 6e-4


def test_srpo_stays_at_the_reference_where_nothing_is_preferred() -> None:
    mu = np.random.default_rng(3).normal(size=(4, 3))
    learner = improving(methods.srpo(), mu, mu, 1.0)
    told = play(learner, RPS, feed=all_pairs(torch.full((3, 3), 0.5, dtype=torch.float64)))
    assert told["loss"] == 0 and np.array_equal(learner.policy.logits.detach(), mu)


def test_a_table_without_laws_for_drafts_says_so() -> None:
    with pytest.raises(PreftuneError, match="TabularPolicy.improving"):
        play(learn(methods.srpo(), START, LOG_MU, 1.0), P5, feed=one_pair())


# --- on-policy samples and negative gradients -----------------------------------------------------------------------


def enumerated_extremes(p: Array, value: Array, n: int) -> Array:
    """P(best, worst) of n draws, by going through all p^n of them; of equal values the first is the worst and the last the best."""
    found = np.zeros((len(p), len(p)))
    for draw in itertools.product(range(len(p)), repeat=n):
        order = sorted(draw, key=lambda y: (value[y], y))
        found[order[-1], order[0]] += np.prod(p[list(draw)])
    return found


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_law_of_best_and_worst_is_that_of_all_samples(n: int) -> None:
    draw = np.random.default_rng(n)
    p, value = draw.dirichlet(np.ones(4)), np.array([0.3, 0.9, 0.3, 0.1])
    found = extremes_law(torch.as_tensor(p)[None], torch.as_tensor(value)[None], n)[0]
    np.testing.assert_allclose(found, enumerated_extremes(p, value, n), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["none", "worst", "mean", "contrastive"])
def test_sampled_gradients_of_best_and_worst_are_the_exact_ones_in_expectation(kind: str) -> None:
    """Sure outcomes of a transitive game, where a sample of three orders itself as the whole law does. As above, 20000 rows."""
    sure = torch.arange(5, dtype=torch.float64)
    P = 0.5 + 0.5 * (sure[:, None] - sure).sign()
    knobs = {"contrastive": {"beta": 0.3}, "none": {}}.get(kind, {"push": 0.5})
    method = methods.on_policy(responses=3, negative_gradient=kind, **knobs)
    exact = per_row(method, True, Rows(("game",), (0,)), P=P)[0]
    drawn = per_row(method, False, Rows(tuple(map(str, range(20000))), (0,) * 20000), P=P)
    error = drawn.std(0) / 20000**0.5
    assert (error < 0.06 * exact.abs().max()).all()
    assert ((drawn.mean(0) - exact).abs() < 4 * error).all()


def test_a_share_of_given_pairs_enters_a_step_by_its_share() -> None:
    """Enumerated, the gradient is the mixture; drawn, each row is one or the other, and what is not read is not scored."""
    pair = one_pair(1.0)
    mixed, given, fresh = (per_row(methods.on_policy(f, beta=0.3), True, pair)[0] for f in (0.3, 0.0, 1.0))
    torch.testing.assert_close(mixed, 0.7 * given + 0.3 * fresh, rtol=0, atol=1e-14)
    learner = learn(methods.on_policy(0.3), START, LOG_MU, 1.0, exact=False)
    many = pair.take([0] * 2000).replace(id=tuple(map(str, range(2000))))
    rows = learner.method.collect(Context(learner.roles, many, (PreferenceTable(torch.as_tensor(P5)),), key=Key.of(1)))
    own = rows.extra["calibration"][:, 2:].sum(1)
    assert set(own.tolist()) == {0.0, 1.0} and abs(float(own.mean()) - 0.3) < 4 * (0.21 / 2000) ** 0.5
    assert not rows.present[own == 0, 2:].any() and not rows.present[own == 1, :2].any() and (rows.present.sum(1) <= 2).all()


def test_a_margin_drops_pairs_of_similar_quality() -> None:
    learner = learn(methods.on_policy(margin=0.6), START, LOG_MU, 1.0)
    assert play(learner, P5)["decided"] == 0 and np.array_equal(learner.policy.logits.detach(), START)


def bandit(centre: int, method: Method, steps: int, lr: float, refresh: bool) -> float:
    """Mean reward e^-((a - centre) / 10)^2 of 100 actions after steps from a reference about action 20, judged by sure comparisons."""
    a = torch.arange(100, dtype=torch.float64)
    reward = torch.exp(-(((a - centre) / 10) ** 2))
    P = 0.5 + 0.5 * (reward[:, None] - reward).sign()
    start = -0.5 * ((a - 20) / 20) ** 2
    learner = learn(method, start[None], start[None], lr)
    ctx = Context(learner.roles, learner.policy.rows(), (PreferenceTable(P),))
    once = method.collect(ctx)
    for _ in range(steps):
        learner.descend(method.collect(ctx) if refresh else once)
    return float(learner.policy.probabilities()[0] @ reward)


def test_fresh_samples_help_where_the_reward_is_rare_and_negative_gradients_settle_early() -> None:
    """Mean reward after 150 steps, best of 10; steps of both losses are alike at the start (beta lr / 2 = 1).

    Reward at 70, rare under the reference: best-of-10 of its samples is .12, and of fresh ones .97; fresh contrastive pairs, dpo or
    ipo, lead after 50 steps (.170 against .141) and then shrink onto action 64, .697: with nothing of the width left, best and worst
    of ten are alike. Contrastive pairs of the first samples, .04, are worse than either. Reward at 20, the reference's peak: all four
    end above .88.
    """
    contrast, ipo, likely = (
        methods.on_policy(responses=10, **knobs) for knobs in ({"beta": 0.01}, {"beta": 0.01, "loss": "ipo"}, {"negative_gradient": "none"})
    )
    far = [bandit(70, contrast, 150, 200.0, True), bandit(70, ipo, 150, 0.01, True), bandit(70, likely, 150, 1.0, False)]
    np.testing.assert_allclose(far, [0.697, 0.697, 0.122], atol=1e-3)
    np.testing.assert_allclose([bandit(70, likely, 150, 1.0, True), bandit(70, contrast, 150, 200.0, False)], [0.973, 0.041], atol=1e-3)
    early = [bandit(70, method, 50, lr, True) for method, lr in ((contrast, 200.0), (likely, 1.0))]
    np.testing.assert_allclose(early, [0.170, 0.141], atol=1e-3)
    near = [bandit(20, method, 150, lr, fresh) for method, lr in ((contrast, 200.0), (likely, 1.0)) for fresh in (True, False)]
    assert min(near) > 0.88 and min(near[0], near[2]) > 0.99


def test_the_rewards_of_both_responses_of_a_pair_may_fall() -> None:
    """0 beats 1, and 2 beats both: mass leaves 0 and 1, though dpo orders them as told."""
    P = torch.tensor([[0.5, 0.7, 0.1], [0.3, 0.5, 0.1], [0.9, 0.9, 0.5]], dtype=torch.float64)
    learner = learn(methods.dpo(0.5), np.zeros((1, 3)), np.zeros((1, 3)), 2.0)
    for _ in range(50):
        learner.descend(all_pairs(P))
    s = learner.score(one_pair())
    told = learner.method.objective(s).metrics
    assert told["accuracy"] == 1 and told["reward_rejected"] < told["reward_chosen"] < -0.3


def test_a_run_by_rounds_with_some_given_pairs_keeps_its_rows(tmp_path: Path) -> None:
    """Two rounds of two epochs: rows are stored with their weights, read back, and trained on twice."""
    policy = TabularPolicy(torch.as_tensor(LOG_MU), exact=False)
    method = methods.on_policy(0.5, refresh="round", responses=3)
    feed = one_pair(1.0).take([0] * 16).replace(id=tuple(map(str, range(16))))
    config = TrainConfig(rounds=2, epochs=2, batch=4, lr=0.1, optimiser="sgd")
    log = Log(tmp_path, 16, progress=False)
    outcome = training.run(policy, method, RowsFeed(feed), config, tmp_path, log, judges=(PreferenceTable(torch.as_tensor(P5)),))
    kept = [store.load(store.path(tmp_path / "rounds", number), policy) for number in range(2)]
    assert outcome.steps == 16
    assert all(rows.response.shape == (16, 5) and set(rows.extra) == {"calibration", "worse", "pairs"} for rows in kept)
    assert not torch.equal(kept[0].response.index, kept[1].response.index)
