"""Rewards and policy gradients: vectors, exact steps on tables, every draw enumerated, and where the methods end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from facts import B, close, gradient, row
from facts_policy_gradient import drawn_at, group, pair, scored
from preftune import methods
from preftune import training as train
from preftune.collect import store
from preftune.collect.reward import has_scores, rewarded, wins
from preftune.exact.nash import regularised_nash
from preftune.exact.optimum import rlhf_optimum
from preftune.judges.exact import PreferenceTable
from preftune.log import Log
from preftune.objectives import policy_gradient as pg
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.reference import soft
from preftune.types import Context, Key, Loss, Method, Objective, PreftuneError, Rows, Scored
from test_methods_on_tables import RPS, learn, log_p, normalised, play, random_game, softmax
from vector_rows import VECTORS

RL: dict[str, Any] = VECTORS["rl"]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found.detach(), tensor(expected), rtol=1e-12, atol=1e-12)


# --- vectors --------------------------------------------------------------------------------------------------------


def judged(score: list[float]) -> Scored:
    k = len(score)
    rows = Rows(("row",), (0,), TableResponses(torch.arange(k)[None]), score=tensor([score]))
    return Scored(rows, torch.zeros(1, k, dtype=torch.float64), torch.zeros(1, k, dtype=torch.float64))


def test_advantages_are_those_of_the_vectors() -> None:
    case = RL["group_advantage"]
    s = judged(case["rewards"])
    score = s.rows.score
    same(pg.group_advantage(s, score, "group")[0, :, 0], case["grpo_std_ddof1_eps1e4"])
    same(pg.group_advantage(s, score, "none")[0, :, 0], case["dr_grpo"])
    same(pg.without(s, score)[0], case["rloo_leave_one_out"])


def token_rows() -> Scored:
    """Two responses of three and two tokens with their advantages, as one row."""
    case = RL["token_loss"]["inputs"]
    new, old, ref, mask = (tensor([case[name]]) for name in ("new", "old", "ref", "mask"))
    segments = torch.cat([torch.zeros(1, 2, 1), mask.cumsum(2)], 2).long()
    extra = {"old_logp": old, "advantage": tensor([case["advantage"]])}
    rows = Rows(("row",), (0,), TableResponses(torch.arange(2)[None]), score=torch.zeros(1, 2), segments=segments, extra=extra)
    return Scored(rows, new.sum(2), ref.sum(2), mask.sum(2), segment_logp=new, segment_ref_logp=ref)


def test_token_losses_are_those_of_the_vectors() -> None:
    case, s = RL["token_loss"], token_rows()
    beta, eps = case["inputs"]["beta_kl"], case["inputs"]["eps"]
    ratio = (s.segment_logp - s.rows.extra["old_logp"]).exp()
    mask = tensor([case["inputs"]["mask"]])
    same((pg.clipped(ratio, s.rows.extra["advantage"][:, :, None], eps, eps) * mask)[0], case["per_token_surrogate"])
    same(pg.k3(s)[0], case["per_token_k3"])
    grpo = partial(pg.grpo, beta=beta, epsilon=eps, longest=case["inputs"]["max_completion_length"])
    for expected, objective in [
        ("grpo", partial(grpo, aggregation="grpo")),
        ("bnpo_or_dapo_single_batch", partial(grpo, aggregation="bnpo")),
        ("bnpo_or_dapo_single_batch", partial(grpo, aggregation="dapo")),
        ("dr_grpo", partial(grpo, aggregation="dr_grpo")),
        ("gspo_sequence_level_no_kl", partial(grpo, beta=0.0, level="sequence", aggregation="grpo")),
        ("rloo_sequence_clip_no_kl", partial(pg.rloo, beta=0.0, epsilon=eps)),
    ]:
        loss = objective(s)
        same(loss.row.sum() / (1 if loss.count is None else loss.count.sum()), case[expected])


@pytest.mark.parametrize("name", RL["trl"])
def test_losses_are_those_that_trl_gives(name: str) -> None:
    kind, _, level = name.partition("/")
    beta = 0.04 if level == "token" else 0.0
    grpo = partial(pg.grpo, beta=beta, aggregation=kind, level=level or "token", longest=5)
    loss = (partial(pg.rloo, beta=0.0) if kind == "rloo" else grpo)(token_rows())
    same(loss.row.sum() / (1 if loss.count is None else loss.count.sum()), RL["trl"][name]["trl"])


def test_gae_is_that_of_the_vectors() -> None:
    case = RL["gae"]
    advantage = pg.gae(tensor(case["rewards"]), tensor(case["values"]), gamma=case["gamma"], lam=case["lam"])
    same(advantage, case["advantages"])
    same(advantage + tensor(case["values"]), case["returns"])


def test_gae_telescopes_at_its_ends() -> None:
    """lam = 1: the return less the value; lam = 0: the error of one step; zeros beyond the end change nothing before it."""
    draw = np.random.default_rng(0)
    reward, value = tensor(draw.normal(size=(3, 6))), tensor(draw.normal(size=(3, 6)))
    close(pg.gae(reward, value, gamma=1.0, lam=1.0), reward.flip(1).cumsum(1).flip(1) - value)
    after = torch.cat([value[:, 1:], torch.zeros(3, 1)], 1)
    close(pg.gae(reward, value, gamma=0.9, lam=0.0), reward + 0.9 * after - value)
    longer = lambda x: torch.cat([x, torch.zeros(3, 4)], 1)
    close(pg.gae(longer(reward), longer(value), gamma=0.9, lam=0.8)[:, :6], pg.gae(reward, value, gamma=0.9, lam=0.8))


# --- one exact step is the closed form ------------------------------------------------------------------------------


def policy_step(theta: np.ndarray, log_mu: np.ndarray, reward: np.ndarray, beta: float, lr: float) -> np.ndarray:
    """theta + lr d/dtheta (E_p[reward] - beta KL(p || mu)) = theta + lr p (u - E_p u), u = reward - beta log(p / mu)."""
    p = softmax(theta)
    u = reward - beta * (np.log(p) - log_mu + np.log(np.exp(log_mu).sum()))
    return theta + lr * p * (u - p @ u)


def regularised_self_play(beta: float, baseline: pg.Baseline) -> Method:
    """The regularised policy gradient against the policy itself."""
    return replace(methods.online_ipo(tau=beta), objective=partial(pg.regularised_pg, beta=beta, baseline=baseline))


WHOLE = dict(kl_coef=0.3, whiten=False, lam=1.0, vf_coef=0.0)
STEPS: dict[str, tuple[Method, float]] = {  # the method, and how often the gradient of E[reward] - .3 KL its loss has
    "rloo": (methods.rloo(beta=0.3), 1.0),
    "spo-minimax": (methods.spo_minimax(beta=0.3), 1.0),
    "copg": (methods.copg(beta=0.3), 2.0),
    "copg scaled": (methods.copg(beta=0.3, scale="reward"), 2.0 * 2 * 0.3),
    "ppo": (methods.ppo(**WHOLE), 1.0),
    "ppo by steps": (methods.ppo(**WHOLE, collect_every="step"), 1.0),
    "regularised_pg": (regularised_self_play(0.3, "none"), 1.0),
    "regularised_pg centred": (regularised_self_play(0.3, "leave_one_out"), 1.0),
}


@pytest.mark.parametrize("name", STEPS)
def test_one_step_on_random_games_is_the_policy_gradient(name: str) -> None:
    """Twenty games of seven responses in one batch; the reward of a response is its win rate against the policy, (P p)_y."""
    method, factor = STEPS[name]
    P = np.stack([random_game(7, seed) for seed in range(20)])
    start, mu = np.random.default_rng(1).normal(size=(2, 20, 7))
    learner = learn(method, start, mu, 0.7)
    play(learner, P)
    expected = np.stack([policy_step(start[g], mu[g], P[g] @ softmax(start[g]), 0.3, 0.7 * factor) for g in range(20)])
    np.testing.assert_allclose(log_p(learner), normalised(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("divided", [False, True])
def test_one_step_of_grpo_is_that_of_the_standardised_reward(divided: bool) -> None:
    """theta + lr p A,   A = r - E_p r, divided by the law's standard deviation + 1e-4 where groups are scaled."""
    P, start = random_game(5, 2), np.random.default_rng(3).normal(size=5)
    learner = learn(methods.grpo(scale_rewards="group" if divided else "none"), start[None], np.zeros((1, 5)), 0.7)
    play(learner, P)
    p = softmax(start)
    away = P @ p - p @ P @ p
    A = away / (np.sqrt(p @ away**2) + 1e-4) if divided else away
    np.testing.assert_allclose(log_p(learner)[0], normalised(start + 0.7 * p * A), rtol=0, atol=1e-12)


def test_spo_takes_the_replicators_step_on_rock_paper_scissors() -> None:
    """p = (.6, .3, .1): P p = (.4, .75, .35), E_p P p = 1/2, so theta moves by lr (.6 * -.1, .3 * .25, .1 * -.15)."""
    p = np.array([[0.6, 0.3, 0.1]])
    learner = learn(methods.spo_minimax(beta=0.0), np.log(p), np.zeros((1, 3)), 1.0)
    metrics = play(learner, RPS)
    np.testing.assert_allclose(learner.policy.logits.detach().numpy() - np.log(p), [[-0.06, 0.075, -0.015]], atol=1e-15)
    assert math.isclose(metrics["score"], 0.5, rel_tol=1e-14)  # as in every batch


# --- every draw enumerated ------------------------------------------------------------------------------------------


ARMS, BETA = 3, 0.4
REWARD = tensor([1.0, 0.2, -0.5])
P3 = tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.6], [0.8, 0.4, 0.5]])


def expected_gradient(objective: Objective, k: int, labels: Callable[[Rows, TableResponses], dict[str, Tensor]]) -> tuple[Tensor, ...]:
    """The mean gradient over all ARMS^k draws of k responses, each as likely as it is, and the start and reference it is taken at."""
    logits, mu = tensor([[0.3, -0.8, 0.1]]), tensor([[0.0, 0.5, -0.4]])
    policy = TabularPolicy(logits)
    draws = torch.tensor(list(itertools.product(range(ARMS), repeat=k)))
    response = TableResponses(draws)
    rows = Rows(tuple(map(str, range(len(draws)))), (0,) * len(draws), response)
    rows = rows.replace(**labels(rows, response))
    reference = TabularPolicy(mu).score(rows).logp
    s = replace(policy.score(rows, ("segments",)), ref_logp=reference, segment_ref_logp=reference[:, :, None])
    probability = policy.probabilities()[0][draws].prod(1)
    (found,) = torch.autograd.grad((probability * objective(s).row).sum(), policy.logits)
    return found[0], logits[0].log_softmax(0), mu[0].log_softmax(0)


def descent(reward: Tensor, beta: float, log_pi: Tensor, log_mu: Tensor) -> Tensor:
    """d/dtheta of -E_p[reward] + beta KL(p || mu)."""
    u = reward - beta * (log_pi - log_mu)
    return -log_pi.exp() * (u - log_pi.exp() @ u)


def given_reward(rows: Rows, y: TableResponses) -> dict[str, Tensor]:
    return {"score": REWARD[y.index], "winrate": REWARD[y.index]}


@pytest.mark.parametrize(
    ("objective", "k", "factor"),
    [
        (partial(pg.rloo, beta=BETA), 2, 1.0),
        (partial(pg.rloo, beta=BETA), 4, 1.0),
        (partial(pg.copg, beta=BETA), 2, 2.0),
        (partial(pg.copg, beta=BETA), 3, 2.0),
        (partial(pg.regularised_pg, beta=BETA), 1, 1.0),
        (partial(pg.regularised_pg, beta=BETA), 3, 1.0),
        (partial(pg.regularised_pg, beta=BETA, baseline="leave_one_out"), 2, 1.0),
        (partial(pg.regularised_pg, beta=BETA, baseline="leave_one_out"), 3, 1.0),
    ],
)
def test_sampled_gradients_are_exact_in_expectation(objective: Objective, k: int, factor: float) -> None:
    found, log_pi, log_mu = expected_gradient(objective, k, given_reward)
    close(found, factor * descent(REWARD, BETA, log_pi, log_mu))


@pytest.mark.parametrize("k", [2, 3])
def test_the_kl_term_is_exact_in_expectation_and_the_mean_log_ratio_is_no_pull_at_all(k: int) -> None:
    found, log_pi, log_mu = expected_gradient(pg.reverse_kl, k, given_reward)
    close(found, descent(torch.zeros(3, dtype=torch.float64), 1.0, log_pi, log_mu))
    naive, _, _ = expected_gradient(lambda s: replace(pg.reverse_kl(s), row=s.logratio.mean(1)), k, given_reward)
    close(naive, torch.zeros(3, dtype=torch.float64))


def test_the_kl_in_grpos_loss_pulls_like_the_kl_from_the_reference_to_the_policy() -> None:
    """E_p[grad (e^-x - 1 + x)] = E_p[(1 - mu / p) grad log p] = -E_mu[grad log p] = p - mu: the gradient of KL(mu || p)."""
    found, log_pi, log_mu = expected_gradient(lambda s: Loss(pg.k3(s)[:, 0, 0]), 1, given_reward)
    close(found, log_pi.exp() - log_mu.exp())


@pytest.mark.parametrize("objective", [partial(pg.rloo, beta=BETA), partial(pg.copg, beta=BETA)], ids=["rloo", "copg"])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_wins_over_the_other_draws_are_unbiased_if_a_draw_counts_itself(objective: Objective, k: int) -> None:
    """Against the others alone, the leave-one-out baseline holds every match a second time: k / (k - 1) times the reward's gradient."""
    judge, zero = PreferenceTable(P3), torch.zeros(3, dtype=torch.float64)
    factor = 2.0 if objective.func is pg.copg else 1.0
    for itself, much in [(True, 1.0), (False, k / (k - 1))]:
        found, log_pi, log_mu = expected_gradient(
            objective, k, lambda rows, y, itself=itself: {"score": wins(judge, rows, y, Key.of(0), itself=itself)}
        )
        reward, pull = descent(P3 @ log_pi.exp(), 0.0, log_pi, log_mu), descent(zero, BETA, log_pi, log_mu)
        close(found, factor * (much * reward + pull))


@pytest.mark.parametrize("k", [2, 3])
def test_ppos_baseline_is_unbiased_whatever_the_head_says(k: int) -> None:
    """The head's mean over the OTHER draws knows nothing of the response; a head that saw it would be a biased baseline."""
    head, judge = tensor([2.0, -1.0, 0.7]), PreferenceTable(P3)
    ppo = partial(pg.ppo, beta=BETA, whiten=False, value_weight=0.0, lam=0.3)

    def with_head(s: Scored) -> Any:
        return ppo(replace(s, heads={"value": head[s.rows.response.index][:, :, None]}))

    found, log_pi, log_mu = expected_gradient(with_head, k, given_reward)
    close(found, descent(REWARD, BETA, log_pi, log_mu))
    found, _, _ = expected_gradient(with_head, k, lambda rows, y: {"score": wins(judge, rows, y, Key.of(0), itself=False)})
    close(found, descent(P3 @ log_pi.exp(), BETA, log_pi, log_mu))


# --- where they end -------------------------------------------------------------------------------------------------


def bandit(method: Method, lr: float, steps: int, rewards: Tensor | None = None) -> Tensor:
    """log p of a bandit with four arms after so many exact steps from the uniform law."""
    learner = learn(method, torch.zeros(1, 4), LOG_MU, lr)
    judge = PreferenceTable(torch.full((4, 4), 0.5), rewards=REWARDS if rewards is None else rewards)
    for number in range(steps):
        rows = method.collect(Context({**learner.roles, "opponent": learner.policy}, learner.policy.rows(), (judge,), step=number))
        learner.descend(rows)
    return learner.policy.logits.detach().log_softmax(1)


REWARDS, LOG_MU = tensor([[0.0, 1.0, -0.5, 0.3]]), tensor([[0.4, -1.0, 0.0, 0.2]])
ENDS: dict[str, tuple[Method, float]] = {
    "rloo": (methods.rloo(beta=0.5), 4.0),
    "rloo by rounds": (methods.rloo(beta=0.5, collect_every="round"), 4.0),
    "copg": (methods.copg(beta=0.5), 2.0),
    "ppo": (methods.ppo(kl_coef=0.5, whiten=False), 4.0),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_bandit_with_a_reward_ends_at_the_tilted_reference(name: str) -> None:
    """reference * exp(R / beta) / Z; the distance falls by more than a tenth a step or two, so 400 leave roundings alone."""
    method, lr = ENDS[name]
    torch.testing.assert_close(bandit(method, lr, 400), rlhf_optimum(REWARDS, LOG_MU, 0.5), rtol=0, atol=1e-10)


def test_whitened_ppo_does_not_settle_and_plain_ppo_does() -> None:
    best = rlhf_optimum(REWARDS, LOG_MU, 0.5)
    gap = lambda whiten: float((bandit(methods.ppo(kl_coef=0.5, whiten=whiten), 4.0, 400) - best).abs().max())
    assert gap(False) < 1e-10 and gap(True) > 1e-3


def test_grpo_with_its_kl_ends_at_another_law_than_the_tilted_reference() -> None:
    """p (R - E_p R) = beta (p - mu):   p = beta mu / (beta - R + E_p R), the optimum of E_p R - beta KL(mu || p)."""
    p, mu = bandit(methods.grpo(beta=0.5, scale_rewards="none"), 4.0, 400)[0].exp(), LOG_MU[0].softmax(0)
    close(p, 0.5 * mu / (0.5 - REWARDS[0] + p @ REWARDS[0]), atol=1e-10)
    assert (p - rlhf_optimum(REWARDS, LOG_MU, 0.5)[0].exp()).abs().max() > 0.05


def test_grpo_goes_to_the_best_arm_at_a_pace_that_knows_no_unit_of_reward() -> None:
    """The spread is divided away, up to the 1e-4 beside it: .02 % of a spread of .5. Dr. GRPO feels the unit."""
    assert bandit(methods.grpo(), 1.0, 200)[0, 1] > math.log(0.99)
    pace = lambda spread: [bandit(methods.grpo(scale_rewards=spread), 1.0, 5, unit * REWARDS) for unit in (1, 100)]
    ends = {spread: pace(spread) for spread in ("group", "none")}
    torch.testing.assert_close(*ends["group"], rtol=0, atol=2e-3)
    assert (ends["none"][0] - ends["none"][1]).abs().max() > 1


@pytest.mark.parametrize("name", ["rloo", "copg", "spo-minimax"])
def test_self_play_ends_at_the_regularised_equilibrium_if_steps_are_small(name: str) -> None:
    """A random game and rock-paper-scissors against a reference that is not uniform; linearised around the equilibrium each step
    shrinks the distance, since beta p exceeds lr times the square of the rotation."""
    beta, mu = 0.5, np.random.default_rng(5).normal(size=(2, 1, 3)) * 0.3
    for number, P in enumerate((random_game(3, 8), RPS)):
        learner = learn(methods.METHODS[name](beta=beta), np.zeros((1, 3)), mu[number], 1.0 if name != "copg" else 0.5)
        for step in range(1500):
            play(learner, P, step)
        expected = regularised_nash(tensor(P), tensor(mu[number][0]).log_softmax(0), beta)
        torch.testing.assert_close(tensor(log_p(learner)[0]), expected, rtol=0, atol=1e-9)


def test_copg_on_pairs_of_any_law_ends_at_the_optimum() -> None:
    """The paper's bandit: y ~ (.1, .2, .7), y' ~ (.05, .05, .9), R = (2.5, 2, 1), beta = .5, uniform reference.

    The optimum softmax(R / .5) = (.705385, .259496, .035119) makes every pair's loss zero, not only their mean.
    """
    first, second, R = tensor([0.1, 0.2, 0.7]), tensor([0.05, 0.05, 0.9]), tensor([2.5, 2.0, 1.0])
    pairs = torch.tensor(list(itertools.product(range(3), repeat=2)))
    weight = first[pairs[:, 0]] * second[pairs[:, 1]]
    rows = Rows(tuple(map(str, range(9))), (0,) * 9, TableResponses(pairs), score=R[pairs], weight=9 * weight)
    learner = learn(methods.copg(beta=0.5, responses=None), np.zeros((1, 3)), np.zeros((1, 3)), 1.0)
    for _ in range(3000):
        learner.descend(rows)
    np.testing.assert_allclose(learner.policy.probabilities()[0], (0.705385, 0.259496, 0.035119), atol=1e-6)
    with torch.no_grad():
        assert learner.method.objective(learner.score(rows)).row.max() < 1e-12


def off_policy(theta: Tensor, centre: bool) -> Tensor:
    """The policy gradient on responses of either law of the pairs above, with the baseline E_p[R - beta h], or with E_p[R]."""
    R, mu, beta = tensor([2.5, 2.0, 1.0]), tensor([0.075, 0.125, 0.8]), 0.5
    p = theta.softmax(0)
    gain = R - beta * (p.log() + math.log(3))
    gain = gain - (p @ gain if centre else p @ R)
    return mu * gain - (mu @ gain) * p


def test_off_policy_a_baseline_without_the_kl_ends_elsewhere() -> None:
    """Since the mean of grad log pi is not zero there: baselines are not free."""
    for centre, end in [(True, (0.705385, 0.259496, 0.035119)), (False, (0.811548, 0.167525, 0.020927))]:
        theta = torch.zeros(3, dtype=torch.float64)
        for _ in range(20000):
            theta = theta + 0.5 * off_policy(theta, centre)
        np.testing.assert_allclose(theta.softmax(0), end, atol=1e-6)


def test_by_hedge_the_average_of_self_play_settles_and_the_last_iterate_circles() -> None:
    """theta + eta P p, the paper's exact update, out of copg: uniform law, the reference the policy before, lr = n / 4, beta = 1 / eta."""

    def uniformly(ctx: Context) -> Rows:
        rows = rewarded(ctx, responses=3, reward="winrate")
        return rows.replace(law=torch.full_like(rows.law, 1 / 3))

    base = methods.copg(beta=1 / 0.1, scale="logratio")
    hedge = replace(base, collect=uniformly, reference=soft(1.0), reference_every=1)
    p = np.array([[0.6, 0.3, 0.1]])
    learner, mean, gaps, theta = learn(hedge, np.log(p), np.log(p), 3 / 4), np.zeros(3), {}, np.log(p[0])
    for step in range(1, 1001):
        q = learner.policy.probabilities()[0].numpy()
        mean += q
        if step in (100, 1000):
            gaps[step] = ((RPS @ mean / step).max() - 0.5, (RPS @ q).max() - 0.5)
        if step <= 50:
            np.testing.assert_allclose(q, softmax(theta), atol=1e-12)
            theta = theta + 0.1 * RPS @ softmax(theta)
        play(learner, RPS, step)
        learner.roles = dict(hedge.reference(learner.roles))
    assert gaps[1000][0] < 0.02 < 0.1 < gaps[100][0]
    assert gaps[1000][1] > 0.1


# --- the same rows more than once -----------------------------------------------------------------------------------


def test_a_second_step_on_the_same_rows_weighs_by_the_ratio() -> None:
    """After a step to q the gradient of rloo is that of -sum_y p_y clip-free rho A = -sum_y q_y A: q (A - E_q A), A at p."""
    P, (start, mu) = random_game(5, 4), np.random.default_rng(3).normal(size=(2, 5))
    learner = learn(methods.rloo(beta=0.3, collect_every="round"), start[None], mu[None], 0.05)
    judge = PreferenceTable(tensor(P))
    rows = learner.method.collect(Context(learner.roles, learner.policy.rows(), (judge,)))
    p = softmax(start)
    u = P @ p - 0.3 * (np.log(p) - normalised(mu))
    theta = start
    for _ in range(3):
        learner.descend(rows)
        q = softmax(theta)
        theta = theta + 0.05 * q * ((u - p @ u) - q @ (u - p @ u))
    np.testing.assert_allclose(log_p(learner)[0], normalised(theta), rtol=0, atol=1e-12)
    assert abs(softmax(theta) / p - 1).max() < 0.2  # the clip was idle


@pytest.mark.parametrize("objective", [partial(pg.rloo, beta=0.0), pg.grpo, partial(pg.ppo, whiten=False, value_weight=0.0)])
def test_beyond_the_clip_only_what_leads_back_pulls(objective: Objective) -> None:
    """Probabilities grew by e: the good response is left alone, the bad one is pushed by e times as much; shrunk by e the other way."""
    s = scored(1.0, 0.0)(pair())
    s = replace(s, heads={"value": torch.zeros(B, 2, 1, dtype=torch.float64)}, ref_logp=s.logp.detach(), segment_ref_logp=s.segment_logp)
    if getattr(objective, "func", None) is pg.ppo:
        s = scored(1.0, -1.0)(s)  # no baseline: the bad one has to cost
        objective = partial(objective, beta=0.0) if "beta" not in objective.keywords else objective
    plain = gradient(row(objective), s)
    grown, shrunk = gradient(row(objective), drawn_at(s, 1.0)), gradient(row(objective), drawn_at(s, -1.0))
    assert not grown[:, 0].any() and not shrunk[:, 1].any()
    close(grown[:, 1], math.e * plain[:, 1])
    close(shrunk[:, 0], plain[:, 0] / math.e)


def test_ppos_value_is_clipped_around_what_it_was() -> None:
    """One token, R = 1, the head said 0 for every response: from .5 on, clip .2 leaves (.2 - 1)^2 = .64 above (.5 - 1)^2."""
    s = scored(1.0, 1.0)(pair())
    said = lambda v: torch.full((B, 2, 1), v, dtype=torch.float64, requires_grad=True)
    s = replace(s, rows=s.rows.replace(extra={"old_value": said(0.0).detach()}), heads={"value": said(0.5)})
    ppo = partial(pg.ppo, beta=0.0, whiten=False, value_weight=1.0)
    loss = ppo(s)
    close(loss.metrics["value_error"], torch.full((B,), 0.64, dtype=torch.float64))
    (pull,) = torch.autograd.grad(loss.row.sum(), s.heads["value"])
    assert not pull.any()
    (pull,) = torch.autograd.grad(ppo(replace(s, heads={"value": (near := said(0.1))})).row.sum(), near)
    close(pull, torch.full((B, 2, 1), (0.1 - 1) / 2, dtype=torch.float64))  # V - G, the mean over two responses


def test_whitened_advantages_have_mean_zero_and_variance_one_over_tokens_that_are_there() -> None:
    s = group(3, 4)
    there = torch.ones(B, 3, 4, dtype=torch.float64)
    there[:, 1, 2:] = 0
    x = torch.randn(B, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 7 + 3
    kept = pg.whitened(s, x, there)[there > 0]
    assert abs(kept.mean()) < 1e-12 and abs(kept.var() - 1) < 1e-8


def test_absent_responses_take_no_part() -> None:
    """A list of four of which one is absent, with no score, is a list of three."""
    s = group(4)
    present = torch.ones(B, 4, dtype=torch.bool)
    present[:, 3] = False
    nan = s.rows.score.clone()
    nan[:, 3] = torch.nan
    whole = replace(s, rows=s.rows.replace(present=present, score=nan, winrate=nan))
    cut = lambda x: x[:, :3]
    rows = s.rows.replace(score=cut(s.rows.score), winrate=cut(s.rows.winrate), segments=cut(s.rows.segments))
    few = replace(s, rows=rows, logp=cut(s.logp).detach().requires_grad_(), ref_logp=cut(s.ref_logp))
    few = replace(few, segment_logp=cut(s.segment_logp), segment_ref_logp=cut(s.segment_ref_logp), heads={"value": cut(s.heads["value"])})
    leave_one_out = partial(pg.regularised_pg, baseline="leave_one_out")
    for objective in (pg.rloo, pg.grpo, partial(pg.grpo, spread="batch"), pg.ppo, pg.copg, pg.regularised_pg, leave_one_out, pg.reverse_kl):
        close(objective(whole).row, objective(few).row)
        found = gradient(row(objective), whole)
        close(found[:, :3], gradient(row(objective), few))
        assert not found[:, 3].any()


# --- who gives the reward -------------------------------------------------------------------------------------------


def context(judge: PreferenceTable, policy: TabularPolicy, feed: Rows | None = None) -> Context:
    return Context({"current": policy}, policy.rows() if feed is None else feed, (judge,), key=Key.of(3))


def test_wins_of_three_draws_are_their_mean_over_the_other_two() -> None:
    """(.9 + .2) / 2, (.1 + .6) / 2, (.8 + .4) / 2; they add up to 3 / 2, and move with the draws."""
    judge = PreferenceTable(P3)
    for order in itertools.permutations(range(3)):
        index = torch.tensor([order])
        rows = Rows(("row",), (0,), TableResponses(index))
        found = wins(judge, rows, rows.response, Key.of(0), itself=False)
        same(found, [[(0.55, 0.35, 0.60)[i] for i in order]])
        same(wins(judge, rows, rows.response, Key.of(0), itself=True), (2 * found / 3 + 0.5 / 3).tolist())


def test_where_the_columns_enumerate_the_policy_wins_are_over_its_law() -> None:
    policy = TabularPolicy(tensor([[0.3, -0.2, 0.9]]))
    for reward in (None, "winrate"):
        judge = PreferenceTable(P3)
        close(rewarded(context(judge, policy), responses=2, reward=reward).score[0], P3 @ policy.probabilities()[0])
        assert judge.calls == 1


def test_a_judge_with_a_scale_is_asked_for_scores_unless_wins_are() -> None:
    policy, judge = TabularPolicy(torch.zeros(1, 3)), PreferenceTable(P3, rewards=REWARD)
    assert has_scores(judge) and not has_scores(PreferenceTable(P3))
    same(rewarded(context(judge, policy), responses=2).score[0], REWARD.tolist())
    close(rewarded(context(judge, policy), responses=2, reward="winrate").score[0], P3.mean(1))
    with pytest.raises(PreftuneError, match="has no scores"):
        rewarded(context(PreferenceTable(P3), policy), responses=2, reward="score")


def test_draws_are_judged_in_one_request_and_depend_on_no_other_row() -> None:
    policy, judge = TabularPolicy(torch.zeros(1, 3), exact=False), PreferenceTable(P3)
    feed = Rows(tuple(map(str, range(30))), (0,) * 30)
    whole = rewarded(context(judge, policy, feed), responses=4, reward="winrate")
    assert judge.calls == 1 and whole.score.shape == (30, 4)
    part = rewarded(context(judge, policy, feed.take([7, 2])), responses=4, reward="winrate")
    assert torch.equal(part.response.index, whole.response.index[[7, 2]]) and torch.equal(part.score, whole.score[[7, 2]])


def test_rows_without_a_score_are_left_out_by_name() -> None:
    policy, judge = TabularPolicy(torch.zeros(2, 3)), PreferenceTable(torch.stack([P3, P3]), rewards=REWARD.expand(2, 3) * 1)
    judge.rewards[1, 0] = torch.nan
    asked = context(judge, policy, policy.rows(["first", "second"]))
    assert rewarded(asked, responses=2).id == ("first",) and asked.silent == ["second"]
    with pytest.raises(PreftuneError, match="no answer about 1 of 1 rows, second; needed all answers about half of a batch"):
        rewarded(context(judge, policy, policy.rows(["first", "second"]).take([1])), responses=2)


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo"])
def test_a_run_by_rounds_keeps_what_the_policy_thought_when_it_answered(name: str, tmp_path: Path) -> None:
    """Two rounds of three epochs on a table: rows of a round carry the log-probs at its start, and the policy moves on from them."""
    method = methods.METHODS[name](collect_every="round", responses=4, reward="winrate")
    policy = TabularPolicy(torch.zeros(2, 3), exact=False)
    config = train.TrainConfig(rounds=2, epochs=3, batch=2, lr=0.1, optimiser="sgd", schedule="constant", warmup=0, save_every=0)
    out = train.run(
        policy,
        method,
        train.RowsFeed(policy.rows()),
        config,
        tmp_path,
        Log(tmp_path, 6, progress=False),
        judges=(PreferenceTable(torch.stack([P3, P3])),),
    )
    assert out.steps == 6 and len(list((tmp_path / "rounds").iterdir())) == 2
    first, second = (store.load(store.path(tmp_path / "rounds", number), policy) for number in (0, 1))
    same(first.extra["old_logp"], torch.full((2, 4, 1), -math.log(3), dtype=torch.float64).tolist())
    assert (second.extra["old_logp"] - first.extra["old_logp"]).abs().max() > 1e-3
    assert ("old_value" in second.extra) == (name == "ppo")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo", "copg", "spo-minimax"])
def test_a_language_model_learns_what_the_judge_rewards(name: str, tmp_path: Path) -> None:
    """Kind words: ratings of fresh answers start near 0 and rise by 4.3 to 6.3 in 15 steps, over three seeds and all methods."""
    from test_composition_on_text import judge, language, run, sentences
    from text_fixtures import Record

    policy = language()
    policy.max_new_tokens = 8
    method = methods.METHODS[name](responses=4, **({"collect_every": "step"} if name == "ppo" else {}))
    rows = policy.encode([Record(f"row {i}", prompt, []) for i, prompt in enumerate(sentences(48, "prompts"))])[0]
    rating = lambda: float(judge().score(rows, policy.sample(rows, 4, Key.of(5)), Key.of(0)).mean())
    before = rating()
    run(policy, method, rows, tmp_path, judge(), steps=15, lr=0.01, beta1=0.0)
    assert rating() > before + 3.5


def test_under_bradley_terry_win_rates_order_as_rewards_and_the_average_of_self_play_goes_to_the_best() -> None:
    P = torch.sigmoid(REWARD[:, None] - REWARD)
    policy = TabularPolicy(tensor([[-1.0, 0.7, 1.2]]))
    found = rewarded(context(PreferenceTable(P), policy), responses=4, reward="winrate").score[0]
    assert torch.equal(found.argsort(), REWARD.argsort())
    learner, mean = learn(methods.spo_minimax(beta=0.0), policy.logits.detach(), np.zeros((1, 3)), 5.0), np.zeros(3)
    for step in range(400):
        mean += learner.policy.probabilities()[0].numpy() / 400
        play(learner, P, step)
    assert mean.argmax() == int(REWARD.argmax()) and mean.max() > 0.9
