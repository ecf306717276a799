"""What `preftune solve` computes: by hand, against other solvers, on real data, and how often its test is right."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import preftune as package
from conftest import Run
from preftune.data.comparisons import from_wins, load
from preftune.exact.games import GAMES, bradley_terry, game, random_game
from preftune.exact.nash import nash, regularised_gap
from preftune.exact.optimum import dpo_optimum
from preftune.exact.voting import (
    borda,
    bradley_terry_fit,
    circle_strength,
    circles,
    condorcet_winner,
    deviance,
    intransitivity,
    lottery_draws,
    lottery_range,
    only_equilibrium,
    shrunk,
    undefeated,
)
from preftune.solving import solve
from preftune.types import Key, PreftuneError

ROOT = Path(__file__).parent.parent
TYPES = ROOT / "examples" / "type_chart.csv"
SOUND = os.environ.get("PREFTUNE_SOUND_QUALITY", "")  # what examples/sound_quality.py wrote

# a beats b 7:3, b beats c 6:4, c beats a 8:2
CYCLE = torch.tensor([[0, 7, 2], [3, 0, 6], [8, 4, 0]], dtype=torch.float64)


def counts(P: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """Every pair compared `number` times, won with probability P [n, n]."""
    n, draw = len(P), Key.of(seed).fold("counts").numpy()
    wins = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i):
            wins[i, j] = draw.binomial(number, float(P[i, j]))
            wins[j, i] = number - wins[i, j]
    return wins


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_a_cycle_of_three_by_hand() -> None:
    """The lottery of a cycle of three gives each item the margin of the pair without it: margins a-b .2, b-c .1, c-a .3, so
    a : b : c = .1 : .3 : .2. Smoothing shrinks all margins alike. Wins are 9, 9, 12 of 20; Bradley-Terry makes c win 12 of 20
    against two equals, so v_c - v_a = ln(.6 / .4), and its deviance is twice the sum of wins times log(frequency / fit)."""
    found = solve(from_wins(CYCLE, ["a", "b", "c"]), bootstrap=0)
    assert found.lottery == pytest.approx([1 / 6, 1 / 2, 1 / 3], abs=1e-12)
    assert found.unique and found.range is None and found.condorcet is None and found.test is None and found.interval is None
    assert (found.circles, found.triples) == (1, 1)
    smooth = lambda wins: (wins + 0.5) / 11
    assert found.borda == pytest.approx([(smooth(7) + smooth(2)) / 2, (smooth(3) + smooth(6)) / 2, (smooth(8) + smooth(4)) / 2])
    v = math.log(0.6 / 0.4)
    assert found.bradley_terry == pytest.approx([-v / 3, -v / 3, 2 * v / 3], abs=1e-12)
    expected = 7 * math.log(0.7 / 0.5) + 3 * math.log(0.3 / 0.5) + 6 * math.log(0.6 / 0.4)
    expected += 4 * math.log(0.4 / 0.6) + 8 * math.log(0.8 / 0.6) + 2 * math.log(0.2 / 0.4)
    assert float(deviance(CYCLE, bradley_terry_fit(CYCLE))) == pytest.approx(2 * expected, abs=1e-12)
    assert float(circle_strength(CYCLE)) == pytest.approx(4 / 10**0.5 * 2 / 10**0.5 * 6 / 10**0.5)
    assert found.warnings == []


def test_two_items() -> None:
    found = solve(from_wins([[0, 3], [1, 0]], ["a", "b"]), bootstrap=50)
    assert found.lottery == [1, 0] and found.condorcet == "a" and found.triples == 0
    assert found.bradley_terry == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    assert found.test is not None and found.test.degrees == 0 and found.test.p_deviance == 1  # two items cannot disagree with themselves


def test_the_regularised_lottery_is_the_equilibrium_for_its_reference() -> None:
    mu = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    found = solve(from_wins(CYCLE), beta=0.05, reference=[2, 3, 5], bootstrap=0)
    gap = regularised_gap(load_free(CYCLE), torch.tensor(found.regularised).double().log(), mu.log(), 0.05)
    assert abs(float(gap)) < 1e-12 and found.reference == pytest.approx(mu.tolist())


def load_free(wins: torch.Tensor) -> torch.Tensor:
    """Smoothed probabilities, written anew."""
    P = (wins + 0.5) / (wins + wins.mT + 1)
    return P.fill_diagonal_(0.5)


# --- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_bradley_terry_fit_is_where_dpo_ends_on_the_same_counts(seed: int) -> None:
    v = torch.linspace(-1, 1, 6, dtype=torch.float64)
    wins = counts(bradley_terry(v), 30, seed)
    wins[0, 5] = wins[5, 0] = 0  # pairs need not be compared equally often, or at all
    N = wins + wins.mT
    ended = dpo_optimum(torch.where(N > 0, wins / N, 0.5), torch.zeros(6, dtype=torch.float64), 1.0, law=N)
    torch.testing.assert_close(bradley_terry_fit(wins), ended - ended.mean(), atol=1e-9, rtol=0)


def test_the_bradley_terry_fit_matches_wins_and_is_batched() -> None:
    tables = torch.stack([counts(random_game(7, seed=k).clamp(0.1, 0.9), 40, k) for k in range(4)])
    v = bradley_terry_fit(tables)
    expected = (tables + tables.mT) * bradley_terry(v)
    torch.testing.assert_close(expected.sum(-1), tables.sum(-1), atol=1e-9, rtol=0)  # the score equations
    torch.testing.assert_close(v[2], bradley_terry_fit(tables[2]), atol=1e-9, rtol=0)


def test_the_bradley_terry_fit_recovers_strengths_from_many_comparisons() -> None:
    v = torch.tensor([1.0, 0.3, -0.2, -1.1], dtype=torch.float64)
    exact = 1e6 * bradley_terry(v) * (1 - torch.eye(4))
    torch.testing.assert_close(bradley_terry_fit(exact), v, atol=1e-9, rtol=0)


def test_the_bradley_terry_fit_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PreftuneError, match="infinity"):
        bradley_terry_fit(torch.tensor([[0, 5, 5], [0, 0, 3], [0, 2, 0]], dtype=torch.float64))


def test_undefeated_names_the_smallest_group_that_never_lost() -> None:
    chain = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.float64)
    assert undefeated(chain) == [0, 1] and undefeated(CYCLE) == []


def test_circles_are_counted_as_by_enumeration() -> None:
    P = random_game(9, seed=3)
    P[0, 1] = P[1, 0] = 0.5
    beats = P > 0.5
    triples = [(i, j, k) for i in range(9) for j in range(i) for k in range(j)]
    decided = [t for t in triples if not {0, 1} <= set(t)]
    turning = [(i, j, k) for i, j, k in decided if beats[i, j] == beats[j, k] == beats[k, i]]
    assert [float(number) for number in circles(P)] == [len(turning), len(decided)]
    wins = counts(P, 25, 0)
    Z = (wins - wins.mT) / 5
    strength = sum(
        abs(float(Z[i, j] * Z[j, k] * Z[k, i])) for i, j, k in triples if Z[i, j].sign() == Z[j, k].sign() == Z[k, i].sign() != 0
    )
    assert float(circle_strength(wins)) == pytest.approx(strength)


def test_a_quarter_of_the_triples_of_coin_flips_is_circular() -> None:
    P = random_game(200, seed=1)  # majorities are 19,900 fair coins
    turns, triples = circles(P)
    assert float(turns / triples) == pytest.approx(0.25, abs=0.003)  # six standard errors; triples are uncorrelated


@pytest.mark.parametrize("name", GAMES)
def test_condorcet_winner_and_borda_of_the_named_games(name: str) -> None:
    P = game(name)
    best = condorcet_winner(P)
    assert (best is None) == (float(nash(P).max()) < 1 - 1e-9)  # in these games nothing else gets all the weight
    torch.testing.assert_close(borda(P), (P.sum(1) - 0.5) / (len(P) - 1))


def test_equilibria_are_found_to_be_several_as_an_enumeration_of_all_vertices_finds_them() -> None:
    nashpy = pytest.importorskip("nashpy")
    chain = torch.tensor([[0.5, 0.7, 0.5], [0.3, 0.5, 0.9], [0.5, 0.1, 0.5]], dtype=torch.float64)
    tied = torch.full((3, 3), 0.5, dtype=torch.float64)
    for P in (game("rps"), game("borda-trap"), game("condorcet"), random_game(5, 2), chain, tied):
        vertices = torch.tensor(np.array([p for p, _ in nashpy.Game(P.numpy(), P.T.numpy()).vertex_enumeration()]))
        several = bool((vertices.amax(0) - vertices.amin(0)).max() > 1e-9)
        assert only_equilibrium(P, nash(P)) is not several
        torch.testing.assert_close(lottery_range(P), torch.stack([vertices.amin(0), vertices.amax(0)], -1), atol=1e-8, rtol=0)


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_disagreements_of_lottery_and_rankings_are_said() -> None:
    trap = solve(game("borda-trap"))
    assert trap.condorcet == "0" and trap.lottery == [1, 0, 0]
    assert trap.warnings == [
        "0 beats every other item and is the whole lottery, but Borda puts 1 first",
        "0 beats every other item and is the whole lottery, but Bradley-Terry puts 1 first",
    ]
    # 0, 1 and 2 run in a circle and each beat 3 by a hair; 3 alone always beats 4, which makes it the first by Borda
    P = torch.tensor([[0.5, 0.6, 0.4, 0.51], [0.4, 0.5, 0.6, 0.51], [0.6, 0.4, 0.5, 0.51], [0.49, 0.49, 0.49, 0.5]], dtype=torch.float64)
    weak = torch.full((5, 5), 0.5, dtype=torch.float64)
    weak[:4, :4], weak[3, 4], weak[4, 3], weak[:3, 4], weak[4, :3] = P, 1.0, 0.0, 0.55, 0.45
    assert "Borda puts 3 first, but the lottery gives it no weight" in solve(weak).warnings[0]


def test_ties_everywhere_leave_every_mixture_an_equilibrium() -> None:
    found = solve(torch.full((3, 3), 0.5))
    assert not found.unique and found.range == [(0, 1)] * 3
    assert found.regularised == pytest.approx([1 / 3] * 3) and found.borda == [0.5] * 3
    assert "one of several equilibria" in found.warnings[-1]


def test_a_group_that_never_lost_is_named_with_what_smoothing_does() -> None:
    wins = [[0, 4, 3], [0, 0, 2], [0, 3, 0]]
    found = solve(from_wins(wins, ["a", "b", "c"]), bootstrap=20)
    assert found.warnings[0].startswith("a never lost to the rest") and found.bradley_terry is not None
    torch.testing.assert_close(
        torch.tensor(found.bradley_terry), bradley_terry_fit(torch.tensor(wins).double() + 0.5 - 0.5 * torch.eye(3)).float()
    )
    with pytest.raises(PreftuneError, match="a never lost to the rest, needed .* --smoothing 0.5"):
        solve(from_wins(wins, ["a", "b", "c"], smoothing=0))
    certain = solve([[0.5, 1, 1], [0, 0.5, 0.4], [0, 0.6, 0.5]])
    assert certain.bradley_terry is None and certain.warnings == ["Bradley-Terry has no finite fit: 0 never lose to the rest"]


def test_what_is_left_out_is_said() -> None:
    assert "whole number" in solve(from_wins([[0, 1.5], [0.7, 0]])).warnings[0]
    many = solve(from_wins(torch.ones(60, 60) - torch.eye(60)), bootstrap=2)
    assert many.interval is None and many.test is not None and "beyond 50 items" in many.warnings[0]
    never = solve(from_wins([[0, 2, 0], [1, 0, 1], [0, 4, 0]], ["a", "b", "c"]), bootstrap=0)
    assert never.warnings[-1] == "pairs never compared, which count as ties: a and c"


# --- the test of intransitivity ---------------------------------------------------------------------------------------


def planted(edge: float) -> torch.Tensor:
    """Bradley-Terry with strengths 1, 0, 0, 0, -1 and a cycle of this margin among the three in the middle."""
    P = bradley_terry(torch.tensor([1, 0, 0, 0, -1], dtype=torch.float64))
    for i, j in ((1, 2), (2, 3), (3, 1)):
        P[i, j], P[j, i] = 0.5 + edge, 0.5 - edge
    return P


def rejections(P: torch.Tensor, number: int, sets: int) -> dict[str, float]:
    """How often each p-value is at most .05, over data sets with `number` comparisons of every pair."""
    found = []
    for seed in range(sets):
        wins = counts(P, number, seed)
        v = bradley_terry_fit(wins + (0.5 * (wins + wins.mT > 0) if undefeated(wins) else 0))
        found.append(intransitivity(wins, v, draws=99, seed=seed))
    return {name: sum(getattr(one, f"p_{name}") <= 0.05 for one in found) / sets for name in ("deviance", "strength", "circles")}


def test_a_planted_cycle_is_found_and_bradley_terry_is_not_rejected() -> None:
    """40 data sets each; 100 comparisons a pair. Measured over 200: strength .885, deviance .685 (edge .1)."""
    power, level = rejections(planted(0.1), 100, 40), rejections(bradley_terry(torch.linspace(-1, 1, 5).double()), 100, 40)
    assert power["strength"] > 0.7 and power["deviance"] > 0.4  # three standard errors below
    assert max(level.values()) < 0.16  # three standard errors above .05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edge", "number", "strength", "deviance"),
    [(0.1, 25, 0.34, 0.17), (0.1, 50, 0.63, 0.37), (0.1, 100, 0.89, 0.69), (0.1, 200, 1.0, 0.97), (0.2, 25, 0.86, 0.69)],
)
def test_the_power_in_the_documents(edge: float, number: int, strength: float, deviance: float) -> None:
    found = rejections(planted(edge), number, 300)
    assert found["strength"] == pytest.approx(strength, abs=0.12)  # three standard errors of two runs
    assert found["deviance"] == pytest.approx(deviance, abs=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("number", [5, 20])
def test_bradley_terry_is_rejected_as_often_as_it_should(spread: float, number: int) -> None:
    """Equal strengths are the hard case: draws from the fit as it stands would reject the circles of noise up to twice too often."""
    found = rejections(bradley_terry(spread * torch.linspace(-1, 1, 8).double()), number, 500)
    assert max(found.values()) < 0.05 + 3.5 * (0.05 * 0.95 / 500) ** 0.5


def test_equal_draws_for_equal_seeds() -> None:
    v = bradley_terry_fit(CYCLE)
    assert intransitivity(CYCLE, v, draws=30, seed=1) == intransitivity(CYCLE, v, draws=30, seed=1)
    assert intransitivity(CYCLE, v, draws=30, seed=1) != intransitivity(CYCLE, v, draws=30, seed=2)
    torch.testing.assert_close(lottery_draws(CYCLE, 0.5, draws=5, seed=1), lottery_draws(CYCLE, 0.5, draws=5, seed=1), atol=0, rtol=0)


def test_shrinking_takes_the_noise_of_the_estimates_and_nothing_else() -> None:
    v = torch.tensor([1.0, 0, -1], dtype=torch.float64)
    many = 1e8 * bradley_terry(v) * (1 - torch.eye(3))
    torch.testing.assert_close(shrunk(many, v), v, atol=1e-6, rtol=0)
    assert shrunk(CYCLE, bradley_terry_fit(CYCLE)).abs().max() == 0  # .4 of difference on 30 comparisons is less than their noise
    assert shrunk(CYCLE, torch.zeros(3).double()).abs().max() == 0


def test_undefeated_items_do_not_stop_the_test() -> None:
    wins = torch.triu(torch.full((12, 12), 30.0, dtype=torch.float64), 1)  # no upset in 1,980 comparisons
    found = solve(from_wins(wins), bootstrap=30)
    assert found.test is not None and found.test.circles == 0 and found.test.p_strength == 1 and math.isfinite(found.test.deviance)


# --- real data --------------------------------------------------------------------------------------------------------


def test_the_type_chart_has_the_known_equilibrium_and_it_is_one_of_several() -> None:
    """Printed digits; and what they do not say: ghost ties all nine of them, so it may take up to .033."""
    found = solve(TYPES)
    weight = dict(zip(found.names, found.lottery))
    known = dict(steel=0.211, ground=0.155, flying=0.152, dragon=0.144, electric=0.133, water=0.120, grass=0.050, fairy=0.035, ice=0.001)
    assert {name: round(value, 3) for name, value in weight.items() if value > 1e-6} == known
    assert (found.circles, found.condorcet, found.unique) == (42, None, False)
    assert max(zip(found.borda, found.names))[1] == "steel" and min(zip(found.borda, found.names))[1] == "grass"
    P, ghost = load(TYPES).P, found.names.index("ghost")
    assert found.range is not None and found.range[ghost] == pytest.approx((0, 0.0334), abs=1e-4)
    other = torch.tensor(found.lottery, dtype=torch.float64) * (1 - 0.03)
    other[ghost] = 0.03
    assert float(((P - 0.5) @ other).max()) < 1e-9  # another equilibrium


@pytest.mark.skipif(not SOUND, reason="needs the file of examples/sound_quality.py in PREFTUNE_SOUND_QUALITY")
def test_the_sound_formats_have_the_lottery_that_another_solver_finds() -> None:
    import nashpy

    found = solve(SOUND)
    ((other, _),) = nashpy.Game(load(SOUND).P.numpy() - 0.5).support_enumeration()
    assert found.unique and found.lottery == pytest.approx(other.tolist(), abs=1e-9)
    assert {name: round(weight, 4) for name, weight in zip(found.names, found.lottery) if weight > 1e-6} == {
        "Stereo": 0.5676,
        "Matrix": 0.4054,
        "Original": 0.0270,
    }
    assert found.circles == 1 and found.comparisons == 783 * 28
    assert found.test is not None and found.test.p_strength > 0.05 and found.test.p_deviance > 0.05  # the circle is within noise


def test_the_type_chart_is_what_its_script_makes_of_the_package(tmp_path: Path) -> None:
    """On a made-up package of two types: water is super effective against fire, which resists nothing and is resisted."""
    import zipfile

    chart = {"fire": {"damageTaken": {"Fire": 2, "Water": 1}}, "water": {"damageTaken": {"Fire": 2, "Water": 2}}}
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.writestr("poke_env/data/static/typechart/gen9typechart.json", json.dumps(chart))
    out = tmp_path / "chart.csv"
    subprocess.run([sys.executable, ROOT / "examples" / "type_chart.py", tmp_path / "package.whl", out], check=True)
    assert load(out).P.flatten().tolist() == pytest.approx([0.5, 0.2, 0.8, 0.5])  # payoff -1 - 1 = -2, and 2^-2 / (1 + 2^-2) = .2


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    (tmp_path / "votes.csv").write_text(",a,b,c\na,0,7,2\nb,3,0,6\nc,8,4,0\n", encoding="utf-8")
    return tmp_path / "votes.csv"


def test_solve_prints_a_table_and_the_test(preftune: Run, votes: Path) -> None:
    code, said, _ = preftune("solve", votes, "--bootstrap", "50")
    assert code == 0
    assert all(word in said for word in ("30 comparisons", "0.1667", "0.5000", "0.3333", "Condorcet winner: none", "1 of 1", "50 draws"))
    rows = [line.split()[0] for line in said.splitlines() if line[:2] in ("a ", "b ", "c ")]
    assert rows == ["b", "c", "a"]  # by weight


def test_solve_as_json_is_what_python_returns(preftune: Run, votes: Path) -> None:
    options = ["--beta", "0.1", "--smoothing", "1", "--bootstrap", "20", "--seed", "3", "--format", "counts", "--json"]
    found = json.loads(preftune("solve", votes, *options)[1])
    here = package.solve(votes, beta=0.1, smoothing=1, bootstrap=20, seed=3, format="counts")
    assert found["lottery"] == here.lottery and found["regularised"] == here.regularised and found["smoothing"] == 1
    assert here.test is not None and found["test"]["p_deviance"] == here.test.p_deviance
    assert found["interval"] == [list(pair) for pair in here.interval or []]


def test_solve_takes_a_reference_from_a_file(preftune: Run, votes: Path) -> None:
    (votes.parent / "weights.csv").write_text("name,weight\na,8\nb,1\nc,1\n", encoding="utf-8")
    found = json.loads(preftune("solve", votes, "--beta", "100", "--reference", "weights.csv", "--bootstrap", "0", "--json")[1])
    assert found["regularised"] == pytest.approx([0.8, 0.1, 0.1], abs=1e-3) and found["test"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--beta", "0"], "beta is 0"),
        (["--smoothing", "-1"], "smoothing is -1"),
        (["--bootstrap", "-1"], "bootstrap is -1"),
        (["--format", "matrix"], "'matrix'"),
        (["--format", "pairs"], "columns"),
        (["--reference", "none.csv"], "no such file"),
    ],
)
def test_solve_refuses_what_it_cannot_do(preftune: Run, votes: Path, options: list[str], said: str) -> None:
    code, _, complaint = preftune("solve", votes, *options)
    assert code == 3 and said in complaint and "needed" in complaint


def test_a_warning_is_printed(preftune: Run, tmp_path: Path) -> None:
    (tmp_path / "trap.csv").write_text(",a,b,c\na,,.51,.51\nb,.49,,.95\nc,.49,.05,\n", encoding="utf-8")
    said = preftune("solve", "trap.csv")[1]
    assert "warning  a beats every other item and is the whole lottery, but Borda puts b first" in said
    assert "draws" not in said  # probabilities: nothing is known of their noise
