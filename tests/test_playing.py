"""`play` and `Match`: methods on exact games, their steps, their oracle calls, and what is refused."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Run
from preftune import methods
from preftune.exact.games import game, random_game, reference_logits
from preftune.exact.nash import extragradient_step, hedge_step, mirror_descent_step
from preftune.exact.optimum import rlhf_optimum
from preftune.exact.steps import advise
from preftune.minimiser import Minimiser
from preftune.playing import CLOSED, Match, play, rate
from preftune.policies.tabular import TabularPolicy
from preftune.report.games import gaps, page, triangle
from preftune.types import Context, PreftuneError, Rows
from preftune.update import plain

ETA, BETA = 0.5, 0.1


def rand10() -> tuple[torch.Tensor, torch.Tensor]:
    return game("rand10")[None], reference_logits(10)[None]


# --- the learning rate of a step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 10, 37])
def test_uniform_pairs_take_the_mirror_step_at_a_rate_of_eta_beta_n_over_four(n: int) -> None:
    assert math.isclose(rate(methods.egpo(beta=BETA), n, ETA), ETA * BETA * n / 4, rel_tol=1e-12)
    assert math.isclose(rate(methods.online_ipo(tau=BETA, pairs="uniform"), n, ETA), ETA * BETA * n / 4, rel_tol=1e-12)


def test_from_a_uniform_reference_the_first_step_of_any_pairs_is_that_of_mirror_descent() -> None:
    P, mu = game("rand10")[None], torch.zeros(1, 10, dtype=torch.float64)
    method = methods.online_ipo(tau=BETA)
    match = Match(method, P, mu, lr=rate(method, 10, ETA))
    match.step()
    torch.testing.assert_close(match.log_p(), mirror_descent_step(mu, mu, P, ETA, BETA).log_softmax(1), rtol=0, atol=1e-12)


# --- a match ---------------------------------------------------------------------------------------------------------


def test_a_match_of_many_games_plays_each_as_if_alone() -> None:
    P = torch.stack([random_game(6, seed) for seed in range(5)])
    mu = torch.stack([torch.roll(reference_logits(6), k) for k in range(5)])
    method, lr = methods.egpo(beta=BETA), rate(methods.egpo(beta=BETA), 6, ETA)
    together, alone = Match(method, P, mu, lr=lr), [Match(method, P[g : g + 1], mu[g : g + 1], lr=lr) for g in range(5)]
    theta = mu
    for _ in range(20):
        together.step()
        theta = extragradient_step(theta, mu, P, ETA, BETA)
        for one in alone:
            one.step()
    torch.testing.assert_close(together.log_p(), torch.cat([one.log_p() for one in alone]), rtol=0, atol=1e-14)
    torch.testing.assert_close(together.log_p(), theta.log_softmax(1), rtol=0, atol=1e-12)


def test_every_round_is_solved_exactly() -> None:
    """SPPO with centred residuals over all responses: each round is a step of multiplicative weights."""
    P, mu = rand10()
    match, theta = Match(methods.sppo(eta=2.0, train_on="all", centred=True), P, mu), mu
    for _ in range(10):
        match.step()
        theta = hedge_step(theta, P, 2.0)
    torch.testing.assert_close(match.log_p(), theta.log_softmax(1), rtol=0, atol=1e-12)
    assert not match.anchored and len(match.past) == 10


def test_drawn_play_repeats_itself_and_differs_from_key_to_key() -> None:
    first, again, other = (play("egpo", steps=30, exact=False, seed=seed, beta=BETA) for seed in (0, 0, 1))
    assert first == again and first.gap != other.gap
    assert len(set(first.gap)) > 5


def test_the_judge_is_asked_twice_a_step_by_the_extragradient_and_once_by_mirror_descent() -> None:
    twice, once, closed = (play(name, steps=7, beta=BETA) for name in ("egpo", "online-ipo", "omd"))
    assert (twice.calls[-1], once.calls[-1], closed.calls[-1]) == (14, 7, 7)


# --- play --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_form_is_played_like_a_method(name: str) -> None:
    pulled = {} if name in ("hedge", "omwu") else {"beta": BETA}
    found = play(name, game="rand10", eta=ETA, steps=300, **pulled)
    assert (found.beta is None) == (not pulled) and len(found.gap) == 301
    if name == "omd":
        composed = play("online-ipo", game="rand10", eta=ETA, steps=300, beta=BETA, pairs="uniform")
        assert found.arrived == composed.arrived == 141
        torch.testing.assert_close(torch.tensor(found.policy), torch.tensor(composed.policy), rtol=0, atol=1e-10)


def test_where_the_reference_moves_the_gap_is_that_of_the_game_without_regulariser() -> None:
    found = play("sppo", steps=5, eta=1.0, train_on="all", centred=True)
    assert found.beta is None and found.gap == found.gap0 and found.equilibrium == pytest.approx([1 / 3] * 3)
    assert play("egpo", steps=5).gap != play("egpo", steps=5).gap0


def test_the_path_is_kept_for_three_responses() -> None:
    found = play("egpo", steps=9)
    assert len(found.path) == 10 and all(math.isclose(sum(p), 1.0) for p in found.path) and found.path[-1] == found.policy
    assert play("egpo", game="rand10", steps=3).path == []


def test_offline_methods_see_every_pair_as_before() -> None:
    """DPO on Bradley-Terry labels ends at the optimum of their rewards, and asks no judge."""
    found = play("dpo", game="bt10", beta=1.0, eta=4.0, steps=500)
    best = rlhf_optimum(torch.from_numpy(np.random.default_rng(0).normal(size=10)), reference_logits(10), 1.0)
    assert found.calls[-1] == 0
    torch.testing.assert_close(torch.tensor(found.policy, dtype=torch.float64).log(), best.log_softmax(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "simpo"}, "simpo"),
        ({"method": "egpo", "eta": 0.0}, "eta is 0.0"),
        ({"method": "egpo", "eta": math.nan}, "eta is nan"),
        ({"method": "egpo", "beta": 0.0}, "beta is 0.0"),
        ({"method": "hedge", "beta": 0.1}, "hedge has no pull"),
        ({"method": "omd", "beta": -1.0}, "beta is -1.0"),
        ({"method": "omd", "responses": 2}, "closed form"),
        ({"method": "sppo", "beta": 0.1}, "no pull to a reference"),
        ({"method": "sppo", "exact": False}, "by rounds"),
        ({"method": "sppo"}, "train_on=all"),
        ({"method": "osp"}, "no minimum was found"),
        ({"method": "egpo", "game": torch.tensor([[0.5, 0.9], [0.2, 0.5]])}, "needed a sum of 1"),
        ({"method": "egpo", "responsse": 2}, "did you mean"),
        ({"method": "egpo", "lr": -1.0}, "lr is -1.0"),
        ({"method": "egpo", "lr": math.nan}, "lr is nan"),
        ({"method": "egpo", "lr": 0.1, "eta": 1.0}, "eta is 1.0 and lr 0.1, needed one of them"),
        ({"method": "omd", "eta": 1e200}, "omd left the finite numbers at step 2"),
    ],
    ids=str,
)
def test_play_says_what_it_cannot_play(arguments: dict, message: str) -> None:
    with pytest.raises(PreftuneError, match=message):
        play(**{"steps": 3, **arguments})


# --- the minimiser ---------------------------------------------------------------------------------------------------


def test_a_loss_without_a_minimum_is_refused_and_changes_nothing() -> None:
    """Sure winners send DPO's gap to infinity."""
    policy = TabularPolicy(torch.zeros(1, 2))
    method = methods.dpo()
    learner = Minimiser(policy, method, {"current": policy, "reference": policy.reference()})
    response = policy.sample(policy.rows(), 2, Context({}, policy.rows()).key)
    rows = policy.rows().replace(response=replace(response, law=None), ranked=True)
    with pytest.raises(PreftuneError, match="no minimum was found"):
        learner.descend(rows)
    assert policy.logits.tolist() == [[0.0, 0.0]]


def test_a_minimum_has_no_learning_rate() -> None:
    policy = TabularPolicy(torch.zeros(1, 3))
    learner = Minimiser(policy, methods.egpo(), {"current": policy, "reference": policy.reference()})
    with pytest.raises(PreftuneError, match="lr_scale is 0.5"):
        learner.descend(Rows((), ()), lr_scale=0.5)


def test_self_play_without_half_steps_is_mirror_descent_bit_for_bit() -> None:
    P, mu = rand10()
    one, other = (
        Match(method, P, mu, lr=0.1) for method in (replace(methods.egpo(), update=plain), methods.online_ipo(0.1, pairs="uniform"))
    )
    for _ in range(5):
        one.step()
        other.step()
    assert torch.equal(one.policy.logits, other.policy.logits)


# --- pictures and the command ----------------------------------------------------------------------------------------


def test_pictures_show_every_method_and_need_nothing_from_elsewhere() -> None:
    plays = [play(name, steps=40, beta=0.01) for name in ("egpo", "omd")]
    for picture in (gaps("a < b", plays), triangle("a < b", plays)):
        assert picture.count("<polyline") == 2 and "egpo</text>" in picture and "omd</text>" in picture and "a &lt; b" in picture
    whole = page("both", plays)
    assert whole.count("<svg") == 2 and "http" not in whole.replace("http://www.w3.org/2000/svg", "") and "<script" not in whole
    assert page("no triangle", [play("egpo", game="dice", steps=2), play("egpo", game="rand10", steps=2)]).count("<svg") == 1


def test_several_methods_play_at_once_each_with_its_own_settings(preftune: Run, tmp_path: Path) -> None:
    given = ("egpo,eta=0.5", "online-ipo,pairs=uniform", "hedge", "--game", "rand10", "--beta", "0.1", "--eta", "1", "--steps", "200")
    code, said, _ = preftune("play", *given, "--out", "all.csv")
    assert code == 0 and "* egpo" in said and "o online-ipo" in said and "+ hedge" in said
    table = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith(("egpo", "hedge", "online"))}
    assert table["egpo,eta=0.5"][1:5] == ["0.5", "0.1", "112", "224"]
    written = (tmp_path / "all.csv").read_text().splitlines()
    assert written[0] == "method,step,judge_asked,gap,gap_unregularised" and len(written) == 1 + 3 * 201
    assert [row[0] for row in csv.reader(written)][1::201] == list(given[:3])
    assert "none of egpo, hedge has a setting 'pears'" in preftune("play", "egpo", "hedge", "--set", "pears=uniform")[2]
    assert "eta of egpo is 'much'" in preftune("play", "egpo,eta=much")[2]


def test_a_game_may_come_from_a_file(preftune: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(",rock,paper\nrock,0.5,0.2\npaper,0.8,0.5\n")
    code, said, _ = preftune("play", "egpo", "--game", "mine.csv", "--beta", "0.1", "--steps", "100")
    assert code == 0 and "rock" in said and "egpo on mine" in said
    (tmp_path / "wrong.csv").write_text(",rock,paper\nrock,0.5,0.2\npaper,0.9,0.5\n")
    assert preftune("play", "egpo", "--game", "wrong.csv")[0] == 3


def test_a_step_that_is_not_given_is_the_best_for_the_game_and_the_update_rule() -> None:
    P, mu = game("rand10"), reference_logits(10)
    advised = advise(P, mu, 0.01)
    for name, best in (("egpo", advised.egpo_start), ("egpo-optimistic", advised.optimistic_start), ("omd", advised.omd_start)):
        assert play(name, game="rand10", beta=0.01, steps=1).eta == best
    found = play("egpo", game="rand10", beta=0.01, steps=250)
    assert found.arrived is not None and found.arrived < 244  # the best of the steps .1 to 5 takes 244


@pytest.mark.parametrize("given", [{"eta": 0.5}, {"lr": 0.5}], ids=str)
@pytest.mark.parametrize("name", ["osp", "zo-ranksgd"])
def test_a_step_that_nobody_would_take_is_refused(name: str, given: dict[str, float]) -> None:
    if name == "zo-ranksgd" and "eta" in given:
        assert play(name, steps=1, **given).eta is None  # it has an eta of its own
        return
    with pytest.raises(PreftuneError, match="needed neither eta nor lr"):
        play(name, steps=1, **given)
