"""Rules by which a step is made: the optimistic extragradient, two learners of different speed, ranks alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from preftune import methods, training
from preftune.exact.games import bradley_terry, game
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.log import Log
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.training import RowsFeed, TrainConfig
from preftune.types import Context, Key, Learner, Loss, Metrics, PreftuneError, Rows, Scored, needs
from preftune.update import extragradient, optimistic, plain, rank_descent, ranking_weights
from test_methods_on_tables import RPS, Array, gap, learn, log_p, normalised, play, random_game, softmax, step_size

# --- the optimistic extragradient -----------------------------------------------------------------------------------


def begin(beta: float, momentum: float, start: Array, mu: Array, eta: float, **settings: Any) -> GradientLearner:
    return learn(methods.egpo_optimistic(beta, momentum), start, mu, step_size(eta, beta, start.shape[1]), **settings)


@pytest.mark.parametrize(("eta", "beta"), [(1.0, 0.1), (0.3, 1.0), (5.0, 0.02)])
def test_five_optimistic_steps_on_random_games_are_the_closed_form(eta: float, beta: float) -> None:
    """theta_t+1 = (1 - eta beta) theta_t + eta beta log mu + eta P softmax(theta_t + (1 - eta beta)(theta_t - theta_t-1)).

    theta_-1 = theta_0.
    """
    P = np.stack([random_game(7, seed) for seed in range(10)])
    start, mu = np.random.default_rng(1).normal(size=(2, 10, 7))
    learner, before, theta = begin(beta, 1 - eta * beta, start, mu, eta), start, start
    for number in range(5):
        play(learner, P, number)
        opponent = theta + (1 - eta * beta) * (theta - before)
        won = np.einsum("gij,gj->gi", P, softmax(opponent))
        theta, before = (1 - eta * beta) * theta + eta * beta * mu + eta * won, theta
        np.testing.assert_allclose(log_p(learner), normalised(theta), rtol=0, atol=1e-12)
        np.testing.assert_allclose(learner.roles["previous"].logits.log_softmax(1).numpy(), normalised(before), rtol=0, atol=1e-12)


def test_optimistic_steps_are_those_of_egpo_whose_half_step_reuses_the_last_win_rates() -> None:
    """half_t = (1 - eta beta) theta_t + eta beta log mu + eta P softmax half_t-1, then a step from theta_t against it; half_0 = theta_0."""
    eta, beta, P, (theta, mu) = 0.8, 0.2, random_game(5, 3), np.random.default_rng(4).normal(size=(2, 5))
    learner, half = begin(beta, 1 - eta * beta, theta[None], mu[None], eta), theta
    base = lambda x: (1 - eta * beta) * x + eta * beta * mu
    for number in range(10):
        if number:
            half = base(theta) + eta * P @ softmax(half)
        theta = base(theta) + eta * P @ softmax(half)
        play(learner, P, number)
        np.testing.assert_allclose(log_p(learner)[0], normalised(theta), rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_without_momentum_an_optimistic_step_is_a_plain_one_bit_for_bit(optimiser: str) -> None:
    start, P = np.random.default_rng(2).normal(size=(1, 5)), random_game(5, 0)
    first, second = (begin(0.05, 0.5, start, np.zeros((1, 5)), 1.0, optimiser=optimiser) for _ in range(2))
    first.method, second.method = (replace(first.method, update=rule) for rule in (optimistic(0.0), plain))
    for number in range(10):
        play(first, P, number)
        play(second, P, number)
        assert torch.equal(first.policy.logits, second.policy.logits)


def test_optimism_arrives_where_the_plain_step_circles_and_asks_the_judge_once() -> None:
    """Rock-paper-scissors, beta = .01, eta = 1: the gap of plain steps stays above .3 (test_methods_on_tables), this one's vanishes."""
    start = np.array([[0.5, 0.0, -0.5]])
    learner, judge = begin(0.01, 0.99, start, np.zeros((1, 3)), 1.0), PreferenceTable(torch.as_tensor(RPS))

    def rows_against(opponent: TabularPolicy) -> Rows:
        return learner.method.collect(Context({**learner.roles, "opponent": opponent}, learner.policy.rows(), (judge,)))

    for _ in range(600):
        learner.method.update(learner, rows_against)
    assert judge.calls == 600
    assert gap(log_p(learner)[0], np.zeros(3), RPS, 0.01) < 1e-6
    extra = replace(learner.method, update=extragradient)
    extra.update(learner, rows_against)
    assert judge.calls == 602


@pytest.mark.parametrize(("eta", "arrives"), [(1.9, True), (2.1, False)])
def test_optimism_is_stable_up_to_a_rotation_of_one_over_the_root_of_three_a_step(eta: float, arrives: bool) -> None:
    """Rock-paper-scissors turns with s = .2887: eta s = .549 and .606 about .577; egpo is stable at both (up to about 1)."""
    learner = begin(0.001, 1 - 0.001 * eta, np.array([[0.02, 0.0, -0.01]]), np.zeros((1, 3)), eta)
    first = gap(log_p(learner)[0], np.zeros(3), RPS, 0.001)
    for number in range(300):
        play(learner, RPS, number)
    assert (gap(log_p(learner)[0], np.zeros(3), RPS, 0.001) < first) == arrives


# --- two learners of different speed --------------------------------------------------------------------------------

MU = np.array([[0.3, -0.2, 0.1]])
START = np.array([[0.1, 0.4, -0.6]])


def pair(p: float = 0.9) -> Rows:
    return Rows(("pair",), (0,), TableResponses(torch.tensor([[0, 1]])), ranked=True, prefer=torch.tensor([p], dtype=torch.float64))


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def margin(theta: Array) -> float:
    return float(0.5 * (theta[0] - theta[1] - MU[0, 0] + MU[0, 1]))


def chased(mine: Array, other: Array) -> float:
    """d -logsigmoid(m) of soft label .9 about the other learner, over beta."""
    return sigmoid(margin(mine) - margin(other)) - 0.9


def drawn_together(mine: Array, other: Array) -> float:
    """d (sigmoid(m) - sigmoid(m'))^2 / d m."""
    own = sigmoid(margin(mine))
    return 2 * (own - sigmoid(margin(other))) * own * (1 - own)


@pytest.mark.parametrize(("g", "slope"), [("chasing", chased), ("gap", drawn_together)])
def test_fast_and_slow_step_together_each_against_the_other_as_it_was(g: str, slope: Callable[[Array, Array], float]) -> None:
    """beta .5, gamma .7, rates 2 and .6: the pair's slope is beta (sigmoid(m) - .9 + .7 slope), up for response 1, down for response 0."""
    learner = learn(methods.ofs_dpo(0.5, gamma=0.7, slow=0.3, g=g), START, MU, 2.0)
    fast, slow, away = START[0], START[0], np.array([1.0, -1.0, 0.0])
    for number in range(3):
        told = play(learner, RPS, number, pair())
        fast, slow = (
            fast - 2.0 * 0.5 * (sigmoid(margin(fast)) - 0.9 + 0.7 * slope(fast, slow)) * away,
            slow - 0.6 * 0.5 * (sigmoid(margin(slow)) - 0.9 + 0.7 * slope(slow, fast)) * away,
        )
        np.testing.assert_allclose(learner.policy.logits.detach()[0], fast, rtol=0, atol=1e-12)
        np.testing.assert_allclose(learner.twin["policy"]["logits"][0], slow, rtol=0, atol=1e-12)
        assert torch.equal(learner.roles["twin"].logits, learner.twin["policy"]["logits"])
        assert told["slow_lr"] == 0.3 * told["lr"] and learner.steps == learner.twin["steps"] == number + 1
    assert abs(margin(slow)) < abs(margin(fast))


def test_without_the_chase_and_with_a_slow_one_at_rest_the_fast_one_is_dpo() -> None:
    found = []
    for method in (methods.dpo(0.5), methods.ofs_dpo(0.5, gamma=0.0, slow=0.0)):
        learner = learn(method, START, MU, 0.1, optimiser="adamw")
        for number in range(5):
            play(learner, RPS, number, pair())
        found.append(learner)
    assert torch.equal(found[0].policy.logits, found[1].policy.logits)
    np.testing.assert_array_equal(found[1].twin["policy"]["logits"], START)


def test_where_the_slow_learner_fails_the_fast_one_is_as_it_was() -> None:
    """A run saves the learner as a failed step leaves it: not with the slow learner's weights."""
    method = methods.ofs_dpo(0.5)

    @needs(columns=2, labels=("ranked",), reference=True, other=("twin",))
    def sour(s: Scored) -> Loss:
        """Not finite for the learner that is behind."""
        behind = s.logp.detach()[:, 0] < s.other["twin"][:, 0]
        return Loss(torch.where(behind, torch.nan, -s.logp[:, 0]))

    learner = learn(replace(method, objective=sour), START, MU, 0.1)
    play(learner, RPS, 0, pair())
    before, twin = learner.policy.logits.detach().clone(), learner.twin["policy"]["logits"].clone()
    with pytest.raises(PreftuneError, match="not finite"):
        play(learner, RPS, 1, pair())
    assert torch.equal(learner.policy.logits, before) and not torch.equal(before, twin)
    assert learner.steps == 1 and torch.equal(learner.twin["policy"]["logits"], twin)


# --- ranks alone ----------------------------------------------------------------------------------------------------


def test_every_win_is_a_loss_so_that_weights_of_ranks_add_up_to_zero() -> None:
    """m = 5, k = 2: the best beats 4; the second beats 3 and loses to 1; three lose to both. Counted edge by edge for every m and k."""
    assert ranking_weights(5, 2) == [4, 2, -2, -2, -2] and ranking_weights(4, 2) == [3, 1, -2, -2]
    assert ranking_weights(4, 4) == [3, 1, -1, -3] and ranking_weights(2, 1) == [1, -1]
    for m in range(2, 9):
        for k in range(1, m + 1):
            edges = [(i, j) for i in range(k) for j in range(i + 1, m)]
            assert len(edges) == k * (k - 1) / 2 + k * (m - k)
            assert ranking_weights(m, k) == [sum((i == x) - (j == x) for i, j in edges) for x in range(m)]
            assert sum(ranking_weights(m, k)) == 0


def ruled_by(loss: Callable[[Tensor], Tensor], rule: Any, start: Tensor, steps: int = 1) -> tuple[GradientLearner, list[Metrics]]:
    """Steps on a table's logits [n] as a point whose loss an oracle compares: its number stands where rows have a win rate."""
    learner = learn(methods.zo_ranksgd(), start[None].numpy(), np.zeros((1, len(start))), 1.0)

    def rows_against(candidate: TabularPolicy) -> Rows:
        found = loss(candidate.logits.detach()[0])
        return Rows(("point",), (0,), winrate=found.reshape(1, 1))

    return learner, [rule(learner, rows_against) for _ in range(steps)]


POINT = torch.tensor([1.0, 0.2, 2.0], dtype=torch.float64)
HESSIAN = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * (HESSIAN * x * x).sum()


def cloud(step: int, m: int, n: int = 3) -> list[Tensor]:
    key = Key.of(0).fold("candidates", step)
    return [torch.from_numpy(key.fold(i).fold("logits").numpy().standard_normal((1, n)))[0] for i in range(m)]


def test_a_step_from_two_candidates_is_their_difference() -> None:
    """m = 2, k = 1, one edge: x + eta (xi_better - xi_worse)."""
    first, second = cloud(0, 2)
    better, worse = sorted((first, second), key=lambda xi: float(quadratic(POINT + 0.3 * xi)))
    learner, _ = ruled_by(quadratic, rank_descent(m=2, k=1, mu=0.3, eta=0.1, line_search=0), POINT)
    torch.testing.assert_close(learner.policy.logits.detach()[0], POINT + 0.1 * (better - worse), rtol=0, atol=1e-14)


def test_a_step_from_five_candidates_of_which_two_are_ranked_is_their_weighted_sum() -> None:
    order = sorted(cloud(0, 5), key=lambda xi: float(quadratic(POINT + 0.3 * xi)))
    expected = sum(w * xi for w, xi in zip((4, 2, -2, -2, -2), order, strict=True)) / 7
    learner, _ = ruled_by(quadratic, rank_descent(m=5, k=2, mu=0.3, eta=0.1, line_search=0), POINT)
    torch.testing.assert_close(learner.policy.logits.detach()[0], POINT + 0.1 * expected, rtol=0, atol=1e-14)


def test_only_the_order_is_used() -> None:
    """The same trajectory under a monotone transform of the loss, and under one that keeps the best three in order and no more."""
    rule = rank_descent(m=6, k=3, mu=0.3, eta=0.2, line_search=3)
    plainly, told = ruled_by(quadratic, rule, POINT, 20)
    bent, told_bent = ruled_by(lambda x: -torch.exp(-quadratic(x)), rule, POINT, 20)
    assert torch.equal(plainly.policy.logits, bent.policy.logits)
    assert [line["taken"] for line in told] == [line["taken"] for line in told_bent]
    assert any(line["taken"] == 0 for line in told) and any(line["taken"] > 0 for line in told)


def cosines(m: int, mu: float, steps: int = 400) -> tuple[float, float]:
    """Of the directions with the descent direction at POINT, over fresh candidates: their mean cosine, and the cosine of their mean."""
    learner = learn(methods.zo_ranksgd(), POINT[None].numpy(), np.zeros((1, 3)), 1.0)
    rule, down, directions = rank_descent(m=m, mu=mu, eta=1.0, line_search=0), -HESSIAN * POINT, []
    for _ in range(steps):
        rule(learner, lambda candidate: Rows(("point",), (0,), winrate=quadratic(candidate.logits[0]).reshape(1, 1)))
        directions.append(learner.policy.logits.detach()[0] - POINT)
        learner.policy.logits.data.copy_(POINT[None])
    found = torch.stack(directions)
    return float(torch.cosine_similarity(found, down, dim=1).mean()), float(torch.cosine_similarity(found.mean(0), down, dim=0))


@pytest.mark.parametrize(("mu", "few", "many", "mean"), [(0.01, 0.74, 0.93, 1.0), (0.3, 0.59, 0.85, 0.97), (1.0, 0.26, 0.51, 0.90)])
def test_directions_point_downhill_the_better_the_more_candidates_and_the_nearer(mu: float, few: float, many: float, mean: float) -> None:
    """Hessian diag(1, 10, .1): known to two digits. Four standard errors of 400 cosines whose spread is below .45 are .09.

    Their mean is along the gradient for small mu only; it lies acos(mean) beside it, plus noise of spread / root 400.
    """
    assert abs(cosines(4, mu)[0] - few) < 0.09
    each, found = cosines(16, mu)
    assert abs(each - many) < 0.05
    assert abs(found - mean) < (0.001 if mu < 0.1 else 0.04)


def test_the_line_search_never_goes_to_a_worse_point_and_stays_at_the_best_one() -> None:
    losses: list[float] = []
    rule = rank_descent(m=8, k=3, mu=0.3, eta=0.5, line_search=3)
    learner, _ = ruled_by(quadratic, rule, POINT)
    for _ in range(60):
        rule(learner, lambda candidate: Rows(("point",), (0,), winrate=quadratic(candidate.logits.detach()[0]).reshape(1, 1)))
        losses.append(float(quadratic(learner.policy.logits.detach()[0])))
    assert all(after <= before for before, after in zip(losses, losses[1:], strict=False)) and losses[-1] < 0.01 * float(quadratic(POINT))
    best, told = ruled_by(quadratic, rule, torch.zeros(3, dtype=torch.float64), 5)
    assert not best.policy.logits.any() and [line["taken"] for line in told] == [0.0] * 5 and best.steps == 5


def test_ranks_find_the_stronger_responses_of_a_game() -> None:
    """Exact win rates of six responses of Bradley-Terry: after 60 steps the policy beats the one it began as in nearly 3 of 4."""
    P = bradley_terry(torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0], dtype=torch.float64))
    learner = learn(methods.zo_ranksgd(mu=0.3, eta=0.5), np.zeros((1, 6)), np.zeros((1, 6)), 1.0)
    won = []
    for number in range(60):
        play_many(learner, P, number)
        won.append(float(learner.policy.probabilities()[0] @ P @ torch.full((6,), 1 / 6, dtype=torch.float64)))
    assert won[-1] > 0.7 and won[29] > won[4]


def play_many(learner: GradientLearner, P: Tensor, number: int) -> Metrics:
    judge = PreferenceTable(P)

    def rows_against(opponent: TabularPolicy) -> Rows:
        return learner.method.collect(Context({**learner.roles, "opponent": opponent}, learner.policy.rows(), (judge,), step=number))

    return learner.method.update(learner, rows_against)


def test_numbers_that_make_no_step_are_refused_when_composed() -> None:
    for message, attempt in [
        ("m is 1", lambda: methods.zo_ranksgd(m=1)),
        ("k 9", lambda: methods.zo_ranksgd(k=9)),
        ("mu is 0", lambda: methods.zo_ranksgd(mu=0.0)),
        ("ratio is 1", lambda: rank_descent(ratio=1.0)),
        ("momentum is 1.5", lambda: methods.egpo_optimistic(momentum=1.5)),
        ("opponents is 0", lambda: methods.egpo_optimistic(opponents=0)),
        ("scale is -1", lambda: methods.ofs_dpo(slow=-1)),
        ("g is 'pull'", lambda: methods.ofs_dpo(g="pull")),
        ("rows carry none", lambda: ruled_without_winrate()),
        ("needed `previous`", lambda: optimistic()(learn(methods.egpo(), START, MU, 1.0), lambda opponent: pair())),
        ("draws anew", lambda: replace(methods.egpo_optimistic(), collect_every="round")),
        ("draws anew", lambda: replace(methods.zo_ranksgd(), collect_every="round")),
    ]:
        with pytest.raises(PreftuneError, match=message):
            attempt()


def ruled_without_winrate() -> Metrics:
    learner: Learner = learn(methods.zo_ranksgd(), START, MU, 1.0)
    return rank_descent()(learner, lambda candidate: pair())


# --- interrupted runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["egpo-optimistic", "ofs-dpo", "zo-ranksgd"])
@pytest.mark.parametrize("exact", [True, False], ids=["enumerated", "drawn"])
def test_an_interrupted_run_goes_on_bit_for_bit(name: str, exact: bool, tmp_path: Path) -> None:
    """Twelve steps at once, and twelve of which the last seven are a new process's: previous, twin and candidates are found again."""

    def run(folder: Path, stop: int = 12, resume: bool = False) -> training.Outcome:
        folder.mkdir(exist_ok=True)
        policy, method = TabularPolicy(torch.tensor([[0.2, 0.0, -0.3]] * 2), exact=exact), methods.METHODS[name]()
        feed = policy.rows() if not method.offline else pair().take([0, 0]).replace(id=("a", "b"), prompt=(0, 1))
        config = TrainConfig(steps=12, batch=1, lr=0.05, save_every=1, **method.recipe)
        judge = PreferenceTable(torch.stack([torch.as_tensor(RPS), game("borda-trap")]))
        stopping = lambda event: event.step == stop
        log = Log(folder, 12, progress=False)
        return training.run(policy, method, RowsFeed(feed), config, folder, log, judges=(judge,), callbacks=(stopping,), resume=resume)

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "parts", stop=5).steps == 5
    parts = run(tmp_path / "parts", resume=True)
    assert whole.steps == parts.steps == 12
    assert torch.equal(whole.learner.policy.logits, parts.learner.policy.logits)
    for role in whole.learner.method.roles:
        assert torch.equal(whole.learner.roles[role].logits, parts.learner.roles[role].logits)
    assert repr(whole.learner.twin) == repr(parts.learner.twin)
    lines = [
        [json.loads(line) | {"seconds": 0} for line in (run / "metrics.jsonl").open()] for run in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == list(range(1, 13))


def test_in_a_run_the_opponent_of_a_step_looks_back_one_step(tmp_path: Path) -> None:
    """After step t the role `previous` is the policy as it was before it, whatever the method's reference does afterwards."""
    policy, method = TabularPolicy(torch.tensor([[0.2, 0.0, -0.3]])), methods.egpo_optimistic()
    seen: list[tuple[Tensor, Tensor]] = []

    def look(event: training.Event) -> None:
        seen.append((event.learner.policy.logits.detach().clone(), event.learner.roles["previous"].logits.clone()))

    config = TrainConfig(steps=4, batch=1, lr=0.05, **method.recipe)
    start = policy.logits.detach().clone()
    judge = PreferenceTable(torch.as_tensor(RPS))
    training.run(
        policy, method, RowsFeed(policy.rows()), config, tmp_path, Log(tmp_path, 4, progress=False), judges=(judge,), callbacks=(look,)
    )
    assert torch.equal(seen[0][1], start)
    assert all(torch.equal(previous, before) for (before, _), (_, previous) in zip(seen, seen[1:], strict=False))
