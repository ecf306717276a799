"""Facts of single responses that fit no table: vectors, running statistics in the learner, collectors, self-play on games."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from facts import at, close, gradient, labelled, row
from facts_pointwise import every_second_good, lists, reward
from preftune import methods, training
from preftune.collect.draw import labelled as with_labels
from preftune.collect.select import extremes, self_judged
from preftune.exact.games import game, reference_logits
from preftune.exact.nash import duality_gap, hedge_step
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.log import Log
from preftune.objectives import pointwise
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.training import RowsFeed, TrainConfig
from preftune.types import Context, Key, Method, Rows, Scored
from vector_rows import VECTORS, labelled_with_baseline

RPS = game("rps")

# --- vectors that were made for pairs ---------------------------------------------------------------------------------


def case(name: str, **params: float) -> dict[str, list[float]]:
    return next(case for case in VECTORS["pairwise"] if case["name"] == name and case["params"] == params)


def shifted_by(delta: float, s: Scored) -> Scored:
    """The same rows after so many values of this mean that the batch's own cannot move it."""
    tensor = partial(torch.tensor, dtype=torch.float64)
    return replace(s, running={"delta_mean": tensor(delta), "delta_count": tensor(1e20)})


@pytest.mark.parametrize(
    ("name", "params", "objective"),
    [
        ("apo_zero", {"beta": 0.1}, pointwise.apo_zero_unpaired),
        ("bco_pair", {"beta": 0.1, "delta": 0.0}, pointwise.bco),
        ("bco_pair", {"beta": 0.1, "delta": 0.5}, pointwise.bco),
    ],
)
def test_one_good_and_one_bad_response_give_the_vectors_of_the_pair(name: str, params: dict[str, float], objective) -> None:
    """apo-zero and bco on pairs are sums of two terms, one for each response."""
    s = shifted_by(params.get("delta", 0.0), labelled_with_baseline(0.0))
    expected = case(name, **params)
    found = objective(s, beta=params["beta"]).row
    (pull,) = torch.autograd.grad(found.sum(), s.logp)
    for computed, numbers in ((found, "loss"), (pull[:, 0], "d_chosen"), (pull[:, 1], "d_rejected")):
        torch.testing.assert_close(computed.detach(), torch.tensor(expected[numbers], dtype=torch.float64), rtol=1e-12, atol=1e-15)
    assert not pull[:, 2:].any()


# --- running statistics -----------------------------------------------------------------------------------------------


def test_the_gradient_of_bco_is_that_of_the_loss_at_the_delta_of_the_step() -> None:
    s = shifted_by(0.7, every_second_good())
    s = replace(s, rows=s.rows.take(range(4)), logp=s.logp[:4].detach().requires_grad_(), ref_logp=s.ref_logp[:4])
    assert torch.autograd.gradcheck(lambda logp: pointwise.bco(at(s, logp, leaf=False)).row, (s.logp,))


@pytest.mark.parametrize("count", [1, 3])
def test_bco_keeps_the_mean_of_all_rewards_of_all_steps(count: int) -> None:
    """Steps of 50, 20 and 1 rows: the mean over all 142 rewards, not the mean of three means."""
    whole, running, seen = every_second_good(), {}, []
    for n in (50, 20, 1)[:count]:
        s = replace(whole, rows=whole.rows.take(range(n)), logp=whole.logp[:n], ref_logp=whole.ref_logp[:n], running=running)
        loss = pointwise.bco(s, beta=0.5)
        running, seen = dict(loss.running), [*seen, reward(s, 0.5).detach().flatten()]
        close(loss.metrics["delta"][0], torch.cat(seen).mean())
    assert running["delta_count"] == sum(len(part) for part in seen)


def test_bco_and_kto_leave_absent_responses_out_of_what_they_remember() -> None:
    s = labelled(3.0)
    present = torch.ones(50, 4, dtype=torch.bool)
    present[:10] = False
    s.logp.data[:10] += 1e6
    part = replace(s, rows=s.rows.replace(present=present))
    assert pointwise.bco(part).running["delta_count"] == 80 and pointwise.bco(part).row[:10].eq(0).all()
    assert pointwise.kto(part, baseline="running").running["kl_count"] == 80
    assert pointwise.kto(part, baseline="running").metrics["kl_baseline"].max() < 100
    for balanced in (False, True):
        loss = pointwise.kto(part, balanced=balanced)
        assert loss.row[:10].eq(0).all() and loss.row.isfinite().all() and loss.count.sum() == 80


def test_kto_balanced_pulls_both_classes_alike_whatever_their_shares() -> None:
    """At the reference every response is pulled by beta / 4 times its weight: nine good ones together as hard as one bad one."""
    s = labelled(-1.0)
    good = torch.ones(50, 2, dtype=torch.bool)
    good[:5] = False
    s = at(replace(s, rows=s.rows.replace(desirable=good)), s.ref_logp)
    pull = gradient(row(partial(pointwise.kto, balanced=True)), s)[:, :2]
    close(-pull[good].sum(), pull[~good].sum())
    plain = gradient(row(pointwise.kto), s)[:, :2]
    close(-plain[good].sum(), 9 * plain[~good].sum())


@pytest.mark.parametrize(
    "method",
    [methods.kto(), methods.kto(baseline="running"), methods.kto(balanced=True), methods.bco(), methods.apo_zero_unpaired()],
    ids=["kto", "running", "balanced", "bco", "apo-zero-unpaired"],
)
def test_micro_batches_change_neither_the_step_nor_what_is_remembered(method: Method) -> None:
    """Twelve single responses of six prompts with uneven labels, three steps, in one piece and in pieces of 5 and 1."""
    good = torch.tensor([[i % 4 != 0] for i in range(12)])
    feed = Rows(tuple(map(str, range(12))), tuple(i % 6 for i in range(12)), TableResponses(torch.arange(12)[:, None] % 4), desirable=good)
    found = []
    for size in (12, 5, 1):
        policy = TabularPolicy(torch.linspace(-1, 1, 24).reshape(6, 4))
        roles = {"current": policy, "reference": TabularPolicy(torch.zeros(6, 4)).reference()}
        learner = GradientLearner(policy, method, roles, optimiser="sgd", lr=3.0, clip=0.0, micro_batch=size)
        for _ in range(3):
            learner.descend(method.collect(Context(roles, feed)))
        found.append((policy.logits.detach().clone(), dict(learner.running)))
    for logits, running in found[1:]:
        close(logits, found[0][0])
        assert running.keys() == found[0][1].keys()
        for name, value in running.items():
            close(value, found[0][1][name])


# --- which responses are trained on -------------------------------------------------------------------------------------


def test_of_ranked_responses_the_first_is_desirable() -> None:
    rows = Rows(("a", "b"), (0, 0), TableResponses(torch.arange(3).expand(2, 3)), ranked=True)
    assert with_labels(Context({}, rows)).desirable.tolist() == [[True, False, False]] * 2
    given = rows.replace(desirable=torch.tensor([[False, True, True]] * 2))
    assert with_labels(Context({}, given)).desirable is given.desirable


def test_the_best_and_the_worst_stay_and_ties_keep_two() -> None:
    winrate = torch.tensor([[0.2, 0.9, 0.5, 0.1], [0.5, 0.5, 0.5, 0.5], [0.7, 0.7, 0.2, 0.2], [0.1, 0.9, 0.3, 0.3]], dtype=torch.float64)
    here = torch.tensor([[True] * 4, [True] * 4, [True] * 4, [False, False, True, True]])
    rows = Rows(tuple("abcd"), (0,) * 4, TableResponses(torch.arange(4).expand(4, 4)), winrate=winrate, present=here)
    kept = extremes(rows)
    assert kept.present.int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1], [0, 0, 1, 1]]
    assert kept.winrate is winrate and kept.response is rows.response
    alone = extremes(rows.replace(present=torch.tensor([[False, True, False, False]] * 4)))
    assert alone.present.int().tolist() == [[0, 1, 0, 0]] * 4


def test_self_judged_responses_have_win_rates_among_themselves_with_themselves_at_one_half() -> None:
    """Five draws of rock, paper and scissors: the mean of the five comparisons, one of which is with the response itself."""
    policy = TabularPolicy(torch.zeros(1, 3), exact=False)
    feed = Rows(tuple(map(str, range(40))), (0,) * 40)
    ctx = Context({"current": policy, "opponent": policy}, feed, (PreferenceTable(RPS),), key=Key.of(1))
    rows = self_judged(ctx, responses=5, train_on="all")
    drawn = rows.response.index
    expected = RPS[drawn[:, :, None], drawn[:, None, :]].mean(2)
    close(rows.winrate, expected)
    kept = self_judged(ctx, responses=5)
    assert kept.present.sum(1).tolist() == [2] * 40 and kept.law is None
    best = kept.winrate.masked_fill(~kept.present, -1).amax(1)
    close(best, expected.amax(1))


# --- sppo on games --------------------------------------------------------------------------------------------------------

START = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()


def regress(start: Tensor, P: Tensor, eta: float, *, centred: bool) -> Tensor:
    """log p [n] that minimises sppo's loss over the exact law of `start` [1, n], over normalised policies."""
    frozen = TabularPolicy(start)
    policy = TabularPolicy(start)
    ctx = Context({"current": frozen, "opponent": frozen}, frozen.rows(), (PreferenceTable(P),))
    method = methods.sppo(eta=eta, train_on="all", centred=centred)
    rows = method.collect(ctx)
    learner = GradientLearner(policy, method, {"current": policy, "reference": frozen.reference()}, clip=0.0)
    solver = torch.optim.LBFGS([policy.logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = method.objective(learner.score(rows)).row.sum()
        loss.backward()
        return loss

    solver.step(closure)
    return policy.logits.detach().log_softmax(1)[0]


@pytest.mark.parametrize(("eta", "distance"), [(1.0, 0.0012), (5.0, 0.082)])
def test_the_exact_minimum_of_sppo_misses_multiplicative_weights_and_centred_it_hits_them(eta: float, distance: float) -> None:
    """From (.6, .3, .1) on rock-paper-scissors: total variation .0012 at eta = 1 and .082 at eta = 5, where log Z is .014, .377."""
    step = hedge_step(START, RPS, eta).log_softmax(1)[0]
    plain, centred = (regress(START, RPS, eta, centred=centred) for centred in (False, True))
    torch.testing.assert_close(centred, step, rtol=0, atol=1e-9)
    assert abs(float((plain.exp() - step.exp()).abs().sum() / 2) - distance) < 0.05 * distance
    log_z = float(torch.logsumexp(START + eta * (RPS @ START.exp()[0] - 0.5), 1))
    assert math.isclose(log_z, {1.0: 0.014, 5.0: 0.377}[eta], abs_tol=5e-4)


def test_on_a_random_game_of_ten_the_miss_is_as_large() -> None:
    """rand10 from its reference: total variation .0003 at eta = 1 and .055 at eta = 5."""
    P, mu = game("rand10"), reference_logits(10)[None]
    for eta, distance in ((1.0, 0.0003), (5.0, 0.055)):
        step = hedge_step(mu, P, eta).log_softmax(1)[0]
        torch.testing.assert_close(regress(mu, P, eta, centred=True), step, rtol=0, atol=1e-9)
        found = float((regress(mu, P, eta, centred=False).exp() - step.exp()).abs().sum() / 2)
        assert abs(found - distance) < 0.1 * distance + 5e-5


def rounds_of(P: Tensor, start: Tensor, eta: float, rounds: int, folder: Path) -> list[Tensor]:
    """Probabilities [n] at the end of each round of a run of sppo, centred: 120 steps on one exact collection each.

    On a law the loss is quadratic in the log-ratios, so plain descent arrives within a round; what the rounds do is the method's.
    """
    policy, found = TabularPolicy(start), []
    method = methods.sppo(eta=eta, train_on="all", centred=True)
    config = TrainConfig(rounds=rounds, epochs=120, batch=1, lr=2.0, schedule="constant", warmup=0.0, optimiser="sgd", save_every=0)
    each = lambda event: found.append(event.learner.policy.probabilities()[0]) if event.step % 120 == 0 else None
    judge = PreferenceTable(P)
    training.run(policy, method, RowsFeed(policy.rows()), config, folder, Log(folder, 0, progress=False), judges=[judge], callbacks=[each])
    return found


def test_rounds_of_a_run_are_steps_of_multiplicative_weights(tmp_path: Path) -> None:
    """Each round asks the judge about its own first policy and takes it as reference: three rounds, three steps."""
    found = rounds_of(RPS, START, 1.0, 3, tmp_path)
    theta = START
    for probabilities in found:
        theta = hedge_step(theta, RPS, 1.0).log_softmax(1)
        torch.testing.assert_close(probabilities, theta.exp()[0], rtol=0, atol=1e-6)
    assert len(found) == 3


def play(P: Tensor, start: Tensor, eta: float, rounds: int) -> tuple[Tensor, Tensor]:
    """Last and average probabilities [n] of so many exact steps, by the closed form that the test above checks the rounds against."""
    theta, total = start, torch.zeros_like(start)
    for _ in range(rounds):
        total += theta.softmax(-1)
        theta = hedge_step(theta, P, eta).log_softmax(-1)
    return theta.softmax(-1)[0], (total / rounds)[0]


@pytest.mark.parametrize("name", ["bt10", "condorcet"])
def test_with_a_response_that_beats_all_others_the_last_policy_goes_there(name: str) -> None:
    P = game(name)
    best = int(P.fill_diagonal_(1.0).amin(1).argmax())
    P.fill_diagonal_(0.5)
    last, _ = play(P, reference_logits(len(P))[None], 0.1, 10000)
    assert last.argmax() == best == {"bt10": 6, "condorcet": 0}[name] and float(duality_gap(P, last)) < 1e-12


@pytest.mark.parametrize(("name", "last", "average"), [("rps", 0.376, 0.0046), ("rps-dom", 0.376, 0.0047), ("rand10", 0.520, 0.0059)])
def test_in_a_cyclic_game_the_average_settles_and_the_last_policy_does_not(name: str, last: float, average: float) -> None:
    """Gaps after 10 000 steps of 0.1 from the reference, as an independent code found them."""
    P = game(name)
    final, mean = play(P, reference_logits(len(P))[None], 0.1, 10000)
    assert abs(float(duality_gap(P, final)) - last) < 0.01 and abs(float(duality_gap(P, mean)) - average) < 2e-4


def test_the_authors_targets_lie_hundreds_of_nats_away() -> None:
    """eta = 1000: a win rate of 1 asks for 500 nats, so that the first gradient is 500 / K times two for each response."""
    s = lists(2)
    s = at(replace(s, rows=s.rows.replace(winrate=torch.tensor([[1.0, 0.0]] * 50, dtype=torch.float64))), s.ref_logp)
    np.testing.assert_allclose(gradient(row(methods.sppo().objective), s)[0], [-500.0, 500.0])


def test_sppo_reads_nothing_of_an_absent_response_not_even_that_its_win_rate_is_missing() -> None:
    ratio = torch.tensor([[0.3, -0.2, 9.0]], dtype=torch.float64)
    winrate = torch.tensor([[0.8, 0.3, torch.nan]], dtype=torch.float64)
    rows = Rows(("a",), (0,), TableResponses(torch.arange(3).expand(1, 3)), winrate=winrate)
    three = Scored(rows.replace(present=torch.tensor([[True, True, False]])), ratio.clone().requires_grad_(), torch.zeros_like(ratio))
    two = Scored(rows.replace(winrate=winrate[:, :2]), ratio[:, :2], torch.zeros(1, 2, dtype=torch.float64))
    loss = pointwise.sppo(three, beta=0.5)
    close(loss.row, pointwise.sppo(two, beta=0.5).row)
    (slope,) = torch.autograd.grad(loss.row.sum(), three.logp)
    assert torch.isfinite(slope).all() and slope[0, 2] == 0
    close(loss.metrics["winrate"], torch.tensor([0.55], dtype=torch.float64))
