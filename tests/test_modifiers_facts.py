"""Facts of the small changes of dpo that fit no table: signs, optima on tables, weights, cuts, pairs out of lists, repaired labels."""

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
from torch.nn.functional import logsigmoid

import vector_rows
from facts import B, at, close, gap_of, gradient, normal, pairs, row
from facts_modifiers import scored_pairs, segmented
from preftune import methods
from preftune.collect.repair import flip_weakest
from preftune.collect.segment import common_length
from preftune.collect.thin import both_orders, ranked_pairs, temper
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.objectives import absolute, auxiliary, modifiers, pairwise
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.types import Context, Key, Method, Objective, PreftuneError, Rows, Scored, formula_of, needs_of, parts_of
from test_composition_on_text import judge, language, rate_against, run, sentences
from text_fixtures import Record, tiny_policy, tiny_records

# --- numbers worked by hand -----------------------------------------------------------------------------------------


def numbers(found: Tensor, *expected: float) -> None:
    """To the last of six decimals, as worked out with a calculator."""
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6e-7)


def test_cal_dpo_of_the_first_vector_row() -> None:
    """a = -42.5 + 45 = 2.5, b = -57.25 + 55 = -2.25, beta = .1, t = 5.

    log(1 + e^-4.75) = 0.008614; (2.5 - 5)^2 = 6.25; (-2.25 + 5)^2 = 7.5625; sum 13.821114; with the code's weight 1/2 6.914864.
    d/da = -1 / (1 + e^4.75) + 2 (2.5 - 5) = -0.008577 - 5;   d/db = 0.008577 + 2 (-2.25 + 5) = 5.508577
    """
    s = vector_rows.pairs()
    numbers(modifiers.cal_dpo(s, beta=0.1).row[:1], 13.821114)
    numbers(modifiers.cal_dpo(s, beta=0.1, weight=0.5).row[:1], 6.914864)
    numbers(gradient(row(partial(modifiers.cal_dpo, beta=0.1)), s)[0], -5.008577, 5.508577)


def test_mpo_mixed_of_the_first_vector_row() -> None:
    """beta = .1: h = .475, log(1 + e^-.475) = 0.483589; r = (.25, -.225), log(1 + e^-.25) + log(1 + e^-.225) = 0.575940 + 0.586961 =
    1.162901; 42.5 / 34 = 1.25; .8 * 0.483589 + .2 * 1.162901 + 1.25 = 1.869451.

    d/da = -.8 * .1 * .383433 - .2 * .1 * .437823 - 1 / 34 = -0.030675 - 0.008756 - 0.029412;  d/db = 0.030675 + .2 * .1 * .443986
    """
    s, objective = vector_rows.pairs(), methods.mpo_mixed(0.1, shift="none").objective
    numbers(objective(s).row[:1], 1.869451)
    numbers(gradient(row(objective), s)[0], -0.068843, 0.039554)


def test_weights_of_wpo_on_a_vocabulary_of_three() -> None:
    """Token law (1/2, 1/4, 1/4): sum of squares 3/8. Chosen: two tokens of 1/2, w = (1/2) / (3/8) = 4/3. Rejected: one of 1/4, w = 2/3.

    At the reference dpo is ln 2: aligned 4/3 * 2/3 * ln 2 = 8/9 * 0.693147 = 0.616131; plain 1/2 * 1/4 * ln 2 = 0.086643.
    With the chosen response as both: 16/9 ln 2 = 1.232262, and ln 2 where the limit is 1.
    """
    number = partial(torch.tensor, dtype=torch.float64)
    logp = number([[2 * math.log(0.5), math.log(0.25)], [2 * math.log(0.5)] * 2])
    collision = number([[2.0, 1.0], [2.0, 2.0]]) * math.log(3 / 8)
    rows = Rows(("a", "b"), (0, 1), TableResponses(torch.tensor([[0, 1]] * 2)), ranked=True)
    s = Scored(rows, logp.requires_grad_(), logp.detach(), number([[2.0, 1.0], [2.0, 2.0]]), collision=collision)
    numbers(modifiers.wpo(pairwise.dpo)(s).row, 0.616131, 0.693147)
    numbers(modifiers.wpo(pairwise.dpo, limit=math.inf)(s).row, 0.616131, 1.232262)
    numbers(modifiers.wpo_plain(pairwise.dpo)(s).row, 0.086643, 0.173287)


# --- weights --------------------------------------------------------------------------------------------------------


def step(method: Method, start: Tensor, rows: Rows, lr: float = 1.0) -> Tensor:
    """How far one SGD step moves the logits of a table."""
    policy = TabularPolicy(start)
    roles = {"current": policy, "reference": policy.reference()}
    GradientLearner(policy, method, roles, optimiser="sgd", lr=lr, clip=0.0).descend(rows)
    return policy.logits.detach() - start


@pytest.mark.parametrize(("weights", "expected"), [("aligned without limit", 4 / 3 * 2 / 3), ("aligned", 4 / 3 * 2 / 3), ("plain", 1 / 8)])
def test_a_step_of_wpo_is_a_step_of_dpo_times_its_weight(weights: Any, expected: float) -> None:
    """Through the learner: the policy computes the collision probability, and no gradient passes the weight."""
    start = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    rows = Rows(("a",), (0,), TableResponses(torch.tensor([[0, 1]])), ranked=True)
    close(step(methods.wpo(0.1, weights), start, rows), expected * step(methods.dpo(0.1), start, rows))


def test_an_aligned_weight_is_one_on_average_and_at_most_the_root_of_the_vocabulary() -> None:
    """sum_y pi(y) pi(y) / sum_v pi(v)^2 = 1;  pi(y)^2 / (sum_v pi(v)^2)^2 <= 1 / sum_v pi(v)^2 <= V."""
    policy = TabularPolicy(3 * normal(200, 7))
    rows = policy.rows()
    s = policy.score(rows.replace(response=policy.sample(rows, 7, Key.of(0))), ("collision",))
    weight = (s.logp - s.collision).detach().exp()
    close((weight * s.logp.detach().exp()).sum(1), torch.ones(200, dtype=torch.float64))
    assert weight.max() < math.sqrt(7) and weight.max() > 1.5
    assert s.mean_logp.sum(1).exp().max() < 1  # the unaligned product needs no clamp at 1


def test_a_weighted_objective_says_what_it_wants_and_prints_its_weight() -> None:
    weighted = methods.wpo(0.05).objective
    assert needs_of(weighted).wants == ("collision",) and needs_of(weighted).optional == ("prefer",)
    assert formula_of(weighted) == "w_aligned * dpo(beta=0.05, label_smoothing=0.0)"
    assert list(parts_of(weighted)) == [pairwise.dpo]
    assert needs_of(methods.wpo(weights="plain").objective).wants == ()
    both = needs_of(modifiers.wpo(modifiers.ld_dpo))
    assert both.wants == ("segments", "collision")
    assert needs_of(auxiliary.add(weighted, auxiliary.nll)).wants == ("collision",)


# --- signs ----------------------------------------------------------------------------------------------------------


def test_rdpo_length_asks_less_of_a_longer_winner_and_more_against_a_longer_loser() -> None:
    s, objective = pairs(), partial(modifiers.rdpo_length, alpha=0.01)
    longer = lambda column: replace(s, length=s.length + torch.eye(2, dtype=torch.float64)[column])
    assert (objective(longer(0)).row < objective(s).row).all()
    assert (objective(longer(1)).row > objective(s).row).all()


def test_dpo_norm_moves_winner_and_loser_by_their_own_lengths() -> None:
    s = pairs()
    pull = gradient(row(modifiers.dpo_norm), s) * s.length
    close(pull[:, 0], -pull[:, 1])


def test_a_larger_margin_of_the_scores_pulls_harder() -> None:
    small, large = (gradient(row(modifiers.odpo), replace(s, rows=s.rows.replace(prefer=None))) for s in two_margins())
    assert (large[:, 0] < small[:, 0]).all() and (large[:, 1] > small[:, 1]).all()


def two_margins() -> tuple[Scored, Scored]:
    s = scored_pairs(0.5)
    return s, replace(s, rows=s.rows.replace(score=3 * s.rows.score))


def test_odpo_counts_the_rows_that_its_logarithm_cannot_use() -> None:
    s = scored_pairs()
    found = modifiers.odpo_log(s).metrics["unused"]
    assert torch.equal(found.bool(), s.rows.score[:, 0] <= s.rows.score[:, 1]) and 0 < found.mean() < 1


def test_rewards_that_are_logged_use_each_sides_own_strength() -> None:
    s = pairs()
    metrics = modifiers.flex_dpo(s, beta_w=0.3, beta_l=0.2).metrics
    close(metrics["reward_chosen"], 0.3 * s.logratio[:, 0])
    close(metrics["reward_rejected"], 0.2 * s.logratio[:, 1])


def test_dpo_pushes_a_vanishing_loser_without_end_and_flex_dpo_by_a_share_of_it() -> None:
    """In probabilities p = e^logp: |d loss / d q| / |d loss / d p| = (beta_l / beta_w) p / q, however small q is."""
    s = pairs()
    for beta_l in (0.1, 0.02):
        pull = gradient(row(partial(modifiers.flex_dpo, beta_w=0.1, beta_l=beta_l)), s)
        log_ratio = (pull[:, 1].log() - s.logp[:, 1]) - ((-pull[:, 0]).log() - s.logp[:, 0])
        close(log_ratio, math.log(beta_l / 0.1) + s.logp[:, 0] - s.logp[:, 1], rtol=1e-9)


def test_cal_dpo_stops_a_little_beyond_its_target() -> None:
    """a = -b and 2 weight (a - t) = sigmoid(-2a): fixed-point iteration from t = 1 / (2 beta) = 1.25."""
    for weight in (0.5, 1.0):
        a = 1.25
        for _ in range(60):
            a = 1.25 + 1 / (1 + math.exp(2 * a)) / (2 * weight)
        s = at(pairs(), pairs().ref_logp)
        s = at(s, s.ref_logp + torch.tensor([a, -a], dtype=torch.float64))
        assert gradient(row(partial(modifiers.cal_dpo, beta=0.4, weight=weight)), s).abs().max() < 1e-13
        assert 1.25 < a < 1.3 + 0.1 / weight


# --- where they end on a table --------------------------------------------------------------------------------------

N = 5
REWARD = torch.tensor([0.0, 1.0, -0.5, 0.3, 0.8], dtype=torch.float64)
LOG_MU = torch.tensor([0.4, -1.0, 0.0, 0.2, -0.3], dtype=torch.float64).log_softmax(0)
LENGTH = torch.tensor([3.0, 8.0, 5.0, 13.0, 4.0], dtype=torch.float64)
PAIRS = torch.tensor(list(itertools.combinations(range(N), 2)))
OTHER = torch.tensor([1.0, -0.7, 0.4, -0.2, 0.6], dtype=torch.float64)


def optimum(objective: Objective, reward: Tensor = REWARD, mu: Tensor = LOG_MU, **labels: Any) -> Tensor:
    """log pi [N] that minimises the objective over all policies, on every pair once with its Bradley-Terry probability as soft label."""
    prefer = torch.sigmoid(reward[PAIRS[:, 0]] - reward[PAIRS[:, 1]])
    rows = Rows(tuple(map(str, PAIRS.tolist())), (0,) * len(PAIRS), TableResponses(PAIRS), ranked=True, prefer=prefer, **labels)
    logits = mu.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([logits], max_iter=2000, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logp = logits.log_softmax(0)[PAIRS]
        value = objective(Scored(rows, logp, mu[PAIRS], LENGTH[PAIRS])).row.sum()
        value.backward()
        return value

    for _ in range(5):
        optimiser.step(loss)
    return logits.detach().log_softmax(0)


def tilted(reward: Tensor, beta: float, mu: Tensor = LOG_MU) -> Tensor:
    return (mu + reward / beta).log_softmax(0)


def lands(found: Tensor, expected: Tensor) -> None:
    """Quadratic minima are found to the root of a rounding: 1e-7 would do, 1e-6 is asked."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_rdpo_length_ends_at_the_optimum_of_the_reward_minus_a_price_a_token() -> None:
    """max E[r - alpha length] - beta KL: pi = mu e^((r - alpha length) / beta). The other sign would end at + alpha length."""
    lands(optimum(partial(modifiers.rdpo_length, beta=0.5, alpha=0.1)), tilted(REWARD - 0.1 * LENGTH, 0.5))


def test_odpo_ends_at_the_sum_of_the_labels_reward_and_its_scores() -> None:
    lands(optimum(partial(modifiers.odpo, beta=0.5, alpha=0.7), score=OTHER[PAIRS]), tilted(REWARD + 0.7 * OTHER, 0.5))


@pytest.mark.parametrize("w", [0.3, 0.7, 1.0])
def test_modpo_ends_at_the_optimum_of_the_weighted_reward(w: float) -> None:
    """Labels speak of REWARD, other_scores of OTHER: pi = mu e^((w REWARD + (1 - w) OTHER) / beta)."""
    found = optimum(partial(modifiers.modpo, beta=0.5, weights=(w, 1 - w)), extra={"other_scores": OTHER[PAIRS]})
    lands(found, tilted(w * REWARD + (1 - w) * OTHER, 0.5))


def test_modpo_with_three_objectives_ends_there_as_well() -> None:
    third = OTHER.flip(0) ** 2
    scores = torch.stack([OTHER[PAIRS], third[PAIRS]], 2)
    found = optimum(partial(modifiers.modpo, beta=0.5, weights=(0.5, 0.2, 0.3)), extra={"other_scores": scores})
    lands(found, tilted(0.5 * REWARD + 0.2 * OTHER + 0.3 * third, 0.5))


def test_dpo_reference_free_ends_at_the_exponential_of_the_reward() -> None:
    lands(optimum(partial(modifiers.dpo_reference_free, beta=0.5)), tilted(REWARD, 0.5, mu=0 * LOG_MU))


def test_dpo_norm_ends_where_the_log_ratio_of_every_token_is_the_reward() -> None:
    """beta u_i / L_i = r_i + c with sum_i mu_i e^u_i = 1: c is found by bisection."""
    low, high = -10.0, 10.0
    for _ in range(200):
        c = (low + high) / 2
        total = float((LOG_MU + LENGTH * (REWARD + c) / 2.0).logsumexp(0))
        low, high = (c, high) if total < 0 else (low, c)
    lands(optimum(partial(modifiers.dpo_norm, beta=2.0)), LOG_MU + LENGTH * (REWARD + c) / 2.0)


def test_spce_ends_at_the_tilted_reference_with_one_copy_of_each_pair() -> None:
    lands(optimum(partial(modifiers.spce, beta=0.5)), tilted(REWARD, 0.5))


def test_with_sure_labels_spce_has_no_optimum_either() -> None:
    assert gradient(row(partial(modifiers.spce, beta=1.0)), sure_pairs())[:, 0].max() < 0
    assert modifiers.spce(sure_pairs(), beta=1.0).row.max() < 1e-20


def sure_pairs() -> Scored:
    s = gap_of(50.0)
    return replace(s, rows=s.rows.replace(prefer=torch.ones(B, dtype=torch.float64)))


# --- what they are for ----------------------------------------------------------------------------------------------


class LogLinear:
    """log pi = log_softmax(features @ theta) over a few responses, uniform at the start."""

    def __init__(self, features: list[list[float]]):
        self.features = torch.tensor(features, dtype=torch.float64)

    def train(self, objective: Objective, pair: list[list[int]], steps: int, lr: float) -> Tensor:
        """log pi after so many steps of gradient descent."""
        theta = torch.zeros(self.features.shape[1], dtype=torch.float64, requires_grad=True)
        index = torch.tensor(pair)
        rows = Rows(tuple(map(str, pair)), (0,) * len(pair), TableResponses(index), ranked=True)
        reference = torch.full(index.shape, -math.log(len(self.features)), dtype=torch.float64)
        for _ in range(steps):
            logp = (self.features @ theta).log_softmax(0)
            (found,) = torch.autograd.grad(objective(Scored(rows, logp[index], reference, torch.ones_like(reference))).row.mean(), theta)
            theta = (theta - lr * found).detach().requires_grad_()
        return (self.features @ theta).log_softmax(0).detach()


def test_dpop_holds_the_chosen_response_where_dpo_lets_it_fall() -> None:
    """Chosen (1), rejected (2), another (0), one feature: only -theta widens the gap, and it lowers the chosen response as well."""
    model, pair = LogLinear([[1.0], [2.0], [-1.0]]), [[0, 1]]
    fallen = model.train(partial(pairwise.dpo, beta=0.1), pair, 400, 1.0)[0] + math.log(3)
    held = model.train(partial(modifiers.dpop, beta=0.1, lam=50.0), pair, 400, 0.01)[0] + math.log(3)
    assert fallen < -2 and held > -0.2


def test_dpo_sends_mass_to_unseen_responses_and_flex_dpo_with_a_likelihood_less() -> None:
    """Four chosen responses (1, e_i), four rejected ones (2, e_i) of the same features and more of the first, four unseen ones (0, 0).

    The easiest way to widen dpo's gaps is to lower the first feature's weight, which lowers chosen and rejected together: mass goes to
    the unseen. Half the strength on the rejected side slows that, and the likelihood of the chosen stops it.
    """
    unit = torch.eye(4).tolist()
    model = LogLinear([[1.0, *e] for e in unit] + [[2.0, *e] for e in unit] + [[0.0] * 5] * 4)
    pair = [[i, 4 + i] for i in range(4)]
    unseen = lambda objective: float(model.train(objective, pair, 300, 1.0)[8:].exp().sum())
    start, dpo = unseen(lambda s: pairwise.dpo(s, beta=1e-9)), unseen(partial(pairwise.dpo, beta=0.1))
    split, likely = unseen(methods.flex_dpo(0.1, 0.05).objective), unseen(methods.flex_dpo(0.1, 0.05, lam=0.1).objective)
    assert start == pytest.approx(1 / 3, abs=1e-6)
    assert likely < start < split < 0.85 < 0.9 < dpo


# --- cuts -----------------------------------------------------------------------------------------------------------


def test_the_common_length_of_a_pair_of_a_table_is_its_one_token() -> None:
    rows = Rows(("a",), (0,), TableResponses(torch.tensor([[0, 1]])), ranked=True)
    assert common_length(Context({}, rows)).segments.tolist() == [[[0, 1, 1], [0, 1, 1]]]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_ld_dpo_on_a_table_is_dpo(alpha: float) -> None:
    rows = Rows(("a", "b"), (0, 0), TableResponses(torch.tensor([[0, 1], [2, 0]])), ranked=True)
    method = methods.ld_dpo(0.5, alpha)
    start = normal(1, 3)
    assert torch.equal(step(method, start, method.collect(Context({}, rows))), step(methods.dpo(0.5), start, rows))


def text_pairs() -> tuple[Any, Any, Rows]:
    """A tiny model, its reference with other weights, and pairs of different lengths."""
    policy, other = tiny_policy(), tiny_policy(seed=1)
    return policy, other.reference(), common_length(Context({}, policy.encode(tiny_records(5))[0]))


def test_the_cut_of_a_text_pair_is_its_shorter_length() -> None:
    _, _, rows = text_pairs()
    lengths = [[len(tokens) for tokens in row] for row in rows.response.tokens]
    assert rows.segments.tolist() == [[[0, min(row), n] for n in row] for row in lengths]
    assert any(a != b for a, b in lengths)


def test_ld_dpo_on_text_weighs_the_tokens_beyond_the_common_length_in_policy_and_reference() -> None:
    """Token by token: those up to the shorter length count 1, those beyond alpha; alpha = 1 is dpo."""
    policy, reference, rows = text_pairs()
    for alpha in (0.0, 0.5, 1.0):
        method = methods.ld_dpo(0.1, alpha)
        learner = GradientLearner(policy, method, {"current": policy, "reference": reference})
        found = method.objective(learner.score(rows)).row
        expected = []
        for mine, theirs in zip(policy.score_tokens(rows), reference.score_tokens(rows), strict=True):
            common = min(len(tokens) for tokens in mine)
            ratios = [(a.double() - b.double()).detach() for a, b in zip(mine, theirs, strict=True)]
            chosen, rejected = (r[:common].sum() + alpha * r[common:].sum() for r in ratios)
            expected.append(-logsigmoid(0.1 * (chosen - rejected)))
        torch.testing.assert_close(found.detach(), torch.stack(expected), rtol=1e-9, atol=1e-12)
        if alpha == 1.0:
            plain = GradientLearner(policy, methods.dpo(0.1), {"current": policy, "reference": reference})
            torch.testing.assert_close(found, methods.dpo(0.1).objective(plain.score(rows)).row, rtol=1e-12, atol=1e-14)


def test_a_step_of_ld_dpo_on_text_with_alpha_one_is_a_step_of_dpo() -> None:
    """Two float32 gradients of one function, summed in another order."""
    found = []
    for method in (methods.ld_dpo(0.1, alpha=1.0), methods.dpo(0.1)):
        policy = tiny_policy()
        start = torch.cat([p.flatten() for p in policy.state().values()])
        rows = policy.encode(tiny_records(5))[0]
        roles = {"current": policy, "reference": tiny_policy(seed=1).reference()}
        learner = GradientLearner(policy, method, roles, optimiser="sgd", lr=0.1, clip=0.0, micro_batch=2)
        learner.descend(method.collect(Context(roles, rows)))
        found.append(torch.cat([p.flatten() for p in policy.state().values()]) - start)
    assert found[1].norm() > 1e-3 and (found[0] - found[1]).norm() < 1e-5 * found[1].norm()


# --- pairs out of lists ---------------------------------------------------------------------------------------------


class Biased:
    """A judge that knows the table and gives the first place a tenth more than its due."""

    def __init__(self, table: Tensor):
        self.exact = PreferenceTable(table)

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        return self.exact.prefer(rows, a, b, key) + 0.1


def bradley_terry(reward: Tensor) -> Tensor:
    return torch.sigmoid(reward[:, None] - reward[None, :])


def context(judge: Any, policy: TabularPolicy, **more: Any) -> Context:
    return Context({"current": policy}, policy.rows(), (judge,), **more)


def test_both_orders_take_out_a_taste_for_the_first_place_and_measure_it() -> None:
    table = bradley_terry(REWARD / 4)
    policy = TabularPolicy(torch.zeros(1, N))
    y = policy.sample(policy.rows(), N, Key.of(0))
    p, apart = both_orders(Biased(table), policy.rows(), y, Key.of(0))
    close(p[0], table)
    close(apart[0], torch.full((N, N), 0.2, dtype=torch.float64))


def test_all_pairs_of_a_table_stand_in_the_order_of_their_mean_win_probability() -> None:
    """Rewards 0, 1, -.5, .3, .8 rank the responses 1, 4, 3, 0, 2; ids are extended by the columns, labels are P(first beats second)."""
    rows = ranked_pairs(context(Biased(bradley_terry(REWARD / 4)), TabularPolicy(torch.zeros(1, N))))
    expected = list(itertools.combinations([1, 4, 3, 0, 2], 2))
    assert rows.response.index.tolist() == [list(pair) for pair in expected]
    assert rows.id == tuple(f"game 0 {i}-{j}" for i, j in expected) and rows.prompt == (0,) * 10 and rows.ranked
    first, second = (REWARD[rows.response.index[:, k]] for k in (0, 1))
    close(rows.prefer, torch.sigmoid((first - second) / 4))
    assert (rows.prefer > 0.5).all() and rows.law is None and rows.response.law is None
    close(rows.extra["disagreement"], torch.full((10,), 0.2, dtype=torch.float64))
    logp = TabularPolicy(torch.zeros(1, N)).score(rows).logp
    loss = methods.osp().objective(Scored(rows, logp, logp.detach()))
    close(loss.metrics["disagreement"], rows.extra["disagreement"])


def test_a_pair_of_an_enumerated_law_weighs_as_much_as_it_is_drawn() -> None:
    """Weight of (i, j) proportional to p_i p_j, mean one, times the weight of its prompt."""
    policy = TabularPolicy(torch.stack([REWARD, OTHER]))
    feed = policy.rows().replace(weight=torch.tensor([0.5, 1.5], dtype=torch.float64))
    table = PreferenceTable(torch.stack([bradley_terry(REWARD)] * 2))
    rows = ranked_pairs(Context({"current": policy}, feed, (table,)))
    p = policy.probabilities()
    drawn = torch.stack([w * p[g, i] * p[g, j] for g, w in ((0, 0.5), (1, 1.5)) for i, j in rows.response.index[10 * g : 10 * g + 10]])
    close(rows.weight, drawn / drawn.mean())


def test_drawn_answers_weigh_as_their_prompts_and_responses_follow_their_rows() -> None:
    policy = TabularPolicy(torch.stack([REWARD, OTHER]), exact=False)
    feed = policy.rows(["a", "b"]).replace(weight=torch.tensor([0.5, 1.5], dtype=torch.float64))
    table = PreferenceTable(torch.stack([bradley_terry(REWARD)] * 2))
    ctx = Context({"current": policy}, feed, (table,), key=Key.of(2))
    rows = ranked_pairs(ctx, responses=3)
    drawn = policy.sample(feed, 3, Key.of(2).fold("pair")).index
    assert rows.weight.tolist() == [0.5] * 3 + [1.5] * 3
    for name, pair in zip(rows.id, rows.response.index.tolist(), strict=True):
        prompt, columns = name.split()
        assert pair == [int(drawn["ab".index(prompt), int(k)]) for k in columns.split("-")]
    alone = ranked_pairs(replace(ctx, feed=feed.take([1])), responses=3)  # a row's pairs do not depend on the batch
    assert alone.id == rows.id[3:] and torch.equal(alone.response.index, rows.response.index[3:])


def test_temper_is_a_sigmoid_of_the_logit_and_keeps_certainties() -> None:
    p = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    close(temper(p, 0.4), torch.sigmoid(0.4 * torch.logit(p)))
    close(temper(p, 1.0), p)
    assert temper(torch.tensor([0.0, 0.5, 1.0]), 0.3).tolist() == [0, 0.5, 1]


def test_osp_ends_at_the_tilted_reference() -> None:
    """On a table, judged by Bradley-Terry of REWARD: log pi = log mu + REWARD / beta after rounds of its own pairs.

    The pairs of a round are weighed by its policy, which changes the way there and not the end.
    """
    policy = TabularPolicy(LOG_MU[None])
    method = methods.osp(beta=0.5)
    roles = {"current": policy, "reference": policy.reference()}
    learner = GradientLearner(policy, method, roles, optimiser="sgd", lr=10.0, clip=0.0, micro_batch=10)
    for _ in range(8):
        rows = method.collect(Context(roles, policy.rows(), (PreferenceTable(bradley_terry(REWARD)),)))
        for _ in range(200):
            learner.descend(rows)
    torch.testing.assert_close(policy.logits.detach().log_softmax(1)[0], tilted(REWARD, 0.5), rtol=0, atol=1e-10)


def test_a_tempered_judge_shrinks_the_reward_that_osp_ends_at() -> None:
    """sigmoid(T logit sigmoid(R_i - R_j)) = sigmoid(T R_i - T R_j)."""
    rows = methods.osp(T=0.4).collect(context(PreferenceTable(bradley_terry(REWARD)), TabularPolicy(LOG_MU[None])))
    first, second = (REWARD[rows.response.index[:, k]] for k in (0, 1))
    close(rows.prefer, torch.sigmoid(0.4 * (first - second)))


def test_a_sure_judge_makes_osp_dpo() -> None:
    table = PreferenceTable((REWARD[:, None] > REWARD[None, :]).double() + 0.5 * torch.eye(N))
    rows = methods.osp().collect(context(table, TabularPolicy(LOG_MU[None])))
    hard = rows.replace(prefer=None)
    assert torch.equal(step(methods.osp(0.5), LOG_MU[None], rows), step(methods.dpo(0.5), LOG_MU[None], hard))


def test_rows_without_an_answer_are_left_out_and_named() -> None:
    table = PreferenceTable(torch.stack([bradley_terry(REWARD)] * 2))
    table.table = torch.stack([table.table[0], table.table[0] * torch.nan])
    policy, silent = TabularPolicy(torch.zeros(2, N)), []
    rows = ranked_pairs(Context({"current": policy}, policy.rows(["first", "second"]), (table,), silent=silent))
    assert silent == ["second"] and len(rows) and all(name.startswith("first ") for name in rows.id)


# --- labels that reward models have voted on ------------------------------------------------------------------------


def judged(score: Tensor, **labels: Any) -> Rows:
    n = len(score)
    return Rows(tuple(map(str, range(n))), tuple(range(n)), TableResponses(torch.tensor([[0, 1]] * n)), ranked=True, score=score, **labels)


def test_the_weakest_share_of_labels_is_turned() -> None:
    """Margins 2, -1, 0.5, -3, 1: two fifths are the rows of -3 and -1. A soft label is turned as well."""
    margin = torch.tensor([2.0, -1.0, 0.5, -3.0, 1.0], dtype=torch.float64)
    rows = judged(torch.stack([margin + 7, 0 * margin + 7], 1))
    assert flip_weakest(Context({}, rows), share=0.4).prefer.tolist() == [1, 0, 1, 0, 1]
    assert flip_weakest(Context({}, rows), share=0.0).prefer.tolist() == [1, 1, 1, 1, 1]
    soft = rows.replace(prefer=torch.full((5,), 0.75, dtype=torch.float64))
    assert flip_weakest(Context({}, soft), share=0.4).prefer.tolist() == [0.75, 0.25, 0.75, 0.25, 0.75]
    assert soft.prefer.tolist() == [0.75] * 5


def test_scores_that_are_missing_are_refused() -> None:
    for score in (None, torch.tensor([[1.0, math.nan], [1.0, 0.0]])):
        with pytest.raises(PreftuneError, match="no scores"):
            flip_weakest(Context({}, judged(torch.zeros(2, 2)).replace(score=score)), share=0.2)


def logistic_fit(x: np.ndarray, prefer: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """Newton's method on the logistic loss of x @ theta."""
    theta = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ theta))
        hessian = (x.T * (p * (1 - p))) @ x + ridge * np.eye(len(theta))
        theta = theta - np.linalg.solve(hessian, x.T @ (p - prefer) + ridge * theta)
    return theta


def voted_data(n: int = 3000, d: int = 8, models: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray, Rows]:
    """Pairs with reward features x, true weights, which labels are turned (15 in 100), and rows with the mean reward of ten models.

    Each model is fitted on a random half of the data; a pair is judged by the models that have not seen it.
    """
    draw = np.random.default_rng(0)
    truth = 2 * draw.normal(size=d) / math.sqrt(d)
    features = draw.normal(size=(n, 2, d))
    better = (features @ truth).argmax(1)
    features[better == 1] = features[better == 1][:, ::-1]  # column 0 is the better one ...
    turned = draw.random(n) < 0.15
    features[turned] = features[turned][:, ::-1]  # ... except where the label is wrong
    x = features[:, 0] - features[:, 1]
    seen = draw.random((models, n)) < 0.5
    thetas = np.stack([logistic_fit(x[half], np.ones(half.sum())) for half in seen])
    votes = np.einsum("nkd,md->mnk", features, thetas)
    unseen = ~seen[:, :, None]
    score = torch.tensor((votes * unseen).sum(0) / np.maximum(unseen.sum(0), 1))
    return x, truth, turned, judged(score)


def test_the_labels_of_least_strength_are_the_wrong_ones_and_turning_them_helps() -> None:
    """Of the tenth with the least mean margin over 80 in 100 are wrong labels, of all 15. A log-linear policy trained by dpo on
    repaired labels is nearer to the truth on clean pairs than one trained on the labels as they are."""
    x, truth, turned, rows = voted_data()
    margin = (rows.score[:, 0] - rows.score[:, 1]).numpy()
    weakest = np.argsort(margin)[: len(margin) // 10]
    assert turned.mean() < 0.17 and turned[weakest].mean() > 0.8

    method = methods.rlhf_secrets_2(beta=1.0, mode="flip", share=0.15)
    clean = np.random.default_rng(1).normal(size=(4000, len(truth)))
    clean *= np.sign(clean @ truth)[:, None]  # the better one first
    accuracy = {}
    for name, labels in (("repaired", method.collect(Context({}, rows))), ("as they are", rows)):
        theta = fitted(partial(pairwise.dpo, beta=1.0), torch.tensor(x), labels)
        accuracy[name] = (float((clean @ theta > 0).mean()), float(np.logaddexp(0, -clean @ theta).mean()))
    assert accuracy["repaired"][0] > accuracy["as they are"][0] + 0.005
    assert accuracy["repaired"][1] < 0.5 * accuracy["as they are"][1]


def fitted(objective: Objective, x: Tensor, rows: Rows) -> np.ndarray:
    """theta of the policy whose log-ratio gap of a pair is x @ theta, trained to the end."""
    theta = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        gap = x @ theta
        value = objective(Scored(rows, torch.stack([gap, 0 * gap], 1), torch.zeros(len(x), 2, dtype=torch.float64))).row.mean()
        value.backward()
        return value

    optimiser.step(loss)
    return theta.detach().numpy()


def test_margins_are_clipped_on_both_sides() -> None:
    score = torch.tensor([[9.0, 0.0], [0.0, 9.0], [1.0, 0.5]], dtype=torch.float64)
    zero = torch.zeros(3, 2, dtype=torch.float64)
    found = methods.rlhf_secrets_2(largest=2.0).objective(Scored(judged(score), zero, zero))
    close(found.row, -logsigmoid(torch.tensor([-2.0, 2.0, -0.5], dtype=torch.float64)))
    assert found.metrics["offset"].tolist() == [2, -2, 0.5]


# --- mixtures -------------------------------------------------------------------------------------------------------


def test_a_mixture_carries_the_running_shift_of_its_part() -> None:
    """First batch: shift = mean of its rewards. Second: the mean of all so far."""
    objective = methods.mpo_mixed(0.5, 0.0, 1.0, 0.0).objective
    first, second = pairs(), pairs()
    loss = objective(first)
    close(loss.running["bco_mean"], 0.5 * first.logratio.mean())
    after = objective(replace(second, running=loss.running))
    close(after.running["bco_mean"], 0.5 * (first.logratio.mean() + second.logratio.mean()) / 2)
    assert needs_of(objective).batch and float(after.running["bco_count"]) == 4 * B
    assert formula_of(methods.mpo_mixed().objective).startswith("0.8 * dpo(beta=0.1) + 0.2 * bco_pair(beta=0.1, shift=running) + 1 * nll(")


# --- on a language model --------------------------------------------------------------------------------------------


def text_rows(policy: Any, n: int = 32) -> Rows:
    """Two sentences for each prompt, the judge's favourite first, with its scores and its probability."""
    prompts, answers = sentences(n, "prompts"), sentences(2 * n, "answers")
    records = []
    for i, prompt in enumerate(prompts):
        pair = sorted(answers[2 * i : 2 * i + 2], key=lambda text: -float(judge().rate([text])[0]))
        scores = [float(value) for value in judge().rate(pair)]
        prefer = 1 / (1 + math.exp(-judge().slope * (scores[0] - scores[1])))
        records.append(Record(f"row {i}", prompt, pair, ranked=True, scores=scores, prefer=prefer))
    rows = policy.encode(records)[0]
    return rows.replace(extra={"other_scores": -0.01 * rows.response.length.double()})


OFFLINE: dict[str, Callable[[], Method]] = {
    "dpo-norm": methods.dpo_norm,
    "ld-dpo": methods.ld_dpo,
    "rdpo-length": methods.rdpo_length,
    "dpop": methods.dpop,
    "odpo": methods.odpo,
    "odpo linear": lambda: methods.odpo(f="linear"),
    "cal-dpo": lambda: methods.cal_dpo(beta=0.1),
    "flex-dpo": lambda: methods.flex_dpo(lam=0.1),
    "dpo-reference-free": methods.dpo_reference_free,
    "modpo": methods.modpo,
    "wpo": methods.wpo,
    "wpo plain": lambda: methods.wpo(weights="plain"),
    "rlhf-secrets-2": methods.rlhf_secrets_2,
    "rlhf-secrets-2 flip": lambda: methods.rlhf_secrets_2(mode="flip"),
    "rlhf-secrets-2 soft": lambda: methods.rlhf_secrets_2(mode="soft"),
    "mpo-mixed": methods.mpo_mixed,
}


QUICK = ("ld-dpo", "wpo", "rlhf-secrets-2 flip", "mpo-mixed")  # segments, collisions, one round, a running mean: each way once


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in OFFLINE])
def test_a_language_model_learns_the_order_of_its_pairs(name: str, tmp_path: Path) -> None:
    """Sixteen steps on 32 pairs: the loss on all of them falls, and more of them are in the order of their labels."""
    policy, method = language(), OFFLINE[name]()
    rows = text_rows(policy)
    start = policy.reference()
    outcome = run(policy, method, rows, tmp_path, judge(), steps=16, lr=0.01)
    learner = outcome.learner
    context = Context({**learner.roles, "current": policy}, rows)
    (s,) = [learner.score(method.collect(context))]
    before = replace(s, logp=start.score(rows).logp, collision=s.collision)
    if s.segment_logp is not None:
        before = replace(before, segment_logp=start.score(s.rows, ("segments",)).segment_logp)
    after, initial = method.objective(s), method.objective(before)
    assert after.row.isfinite().all()
    assert float(after.row.detach().mean()) < float(initial.row.detach().mean())
    gap = s.logp[:, 0] - s.logp[:, 1] - (before.logp[:, 0] - before.logp[:, 1])
    assert float((gap > 0).double().mean()) > 0.7


def test_osp_on_a_language_model_answers_and_learns_by_rounds(tmp_path: Path) -> None:
    """16 prompts, 4 answers each, 6 pairs of each prompt, kept for each round; the judge then prefers the policy to what it was."""
    policy = language()
    start = policy.reference()
    prompts = policy.encode([Record(f"row {i}", prompt, []) for i, prompt in enumerate(sentences(16, "prompts"))])[0]
    outcome = run(policy, methods.osp(beta=0.05), prompts, tmp_path, judge(), steps=24, lr=0.01)
    assert len(list((tmp_path / "rounds").glob("round-*.pt"))) == 4  # 96 pairs are 6 steps of 16
    assert all("disagreement" in line and line["disagreement"] < 1e-12 for line in outcome.history)  # a judge without a taste for places
    # 96 draws of each, standard error 0.03
    assert rate_against(policy, start) > 0.6


def test_segmented_rows_of_the_tables_add_up() -> None:
    s = segmented()
    close(s.segment_logp.sum(2), s.logp)
    close(absolute.nca(s).row, absolute.nca(replace(s, segment_logp=None, segment_ref_logp=None)).row)
