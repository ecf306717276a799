"""Losses as formulas: truth tables, compilation, decompilation, entailment, the parser, the picture and the command."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import Run
from facts import close, gradient, row
from facts_logic import EQUAL, known, said
from preftune.cli.logic import draw
from preftune.logic.display import polynomial, shortest
from preftune.logic.known import KNOWN, named, resolve
from preftune.logic.picture import svg
from preftune.logic.structure import Structure, apart, compose, covers, decompile, probability, relation, with_reference
from preftune.methods import METHODS, logic
from preftune.objectives.logic import log_ratio
from preftune.policies.tabular import TableResponses
from preftune.types import PreftuneError, Rows, Scored, needs_of
from vector_rows import VECTORS

TABLES = [Structure(("w", "l"), top, bottom) for top, bottom in itertools.product(range(1, 16), repeat=2)]
SPACE = VECTORS["logic"]["space"]
OURS = {"CEUnl": "CE-unlikelihood", "unconstrained_implies": "unCPO", "implies_given_or": "cCPO", "winner_given_loser": "given-loser"}
ATOM = {"M(x,yw)": "w", "M(x,yl)": "l", "Ref(x,yw)": "rw", "Ref(x,yl)": "rl"}


def scored(w: float, l: float, rw: float | None = None, rl: float | None = None) -> Scored:  # noqa: E741
    """One pair of one-token responses at these log-probabilities."""
    rows = Rows(("only",), (0,), TableResponses(torch.arange(2)[None]), ranked=True)
    reference = None if rw is None else torch.tensor([[rw, rl]], dtype=torch.float64)
    return Scored(rows, torch.tensor([[w, l]], dtype=torch.float64).requires_grad_(), reference, torch.ones(1, 2, dtype=torch.float64))


def random_structure(n: int, draw: random.Random) -> Structure:
    some = lambda: draw.randrange(1, 1 << (1 << n))
    return Structure(("w", "l", "rw", "rl", "m", "x")[:n], some(), some())


# --- vectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["logic"]["structures"], ids=lambda case: case["name"])
def test_probabilities_ratios_and_losses_are_those_of_the_vectors(case: dict) -> None:
    structure = KNOWN[OURS.get(case["name"], case["name"])].structure
    p = {ATOM[name]: value for name, value in zip(case["props"], case["probs"], strict=True)}
    assert probability(structure.top, structure.atoms, p) == pytest.approx(case["wmc_top"], rel=1e-12)
    assert probability(structure.bottom, structure.atoms, p) == pytest.approx(case["wmc_bottom"], rel=1e-12)
    s = scored(*(math.log(p[name]) for name in ("w", "l", "rw", "rl") if name in p))
    loss = known(OURS.get(case["name"], case["name"]))(s)
    assert loss.metrics["rho"].item() == pytest.approx(case["rho"], rel=1e-12)
    assert loss.row.item() == pytest.approx(case["loss_beta1"], rel=1e-12)
    if "direct_dpo_margin" in case:
        assert loss.metrics["rho"].item() == pytest.approx(case["direct_dpo_margin"], rel=1e-12)


def test_the_space_of_tables_over_two_atoms_is_that_of_the_vectors() -> None:
    """4^(2^2) = 256 labellings, of which 15 * 15 have worlds on both sides; equal ratios counted in exact fractions."""
    assert SPACE["labelled_tables"] == 4 ** (2**2)
    assert len(TABLES) == len(set(TABLES)) == SPACE["with_both_sides_nonempty"]
    p = {"w": Fraction(3, 10), "l": Fraction(2, 10)}
    assert len({one.odds(p) for one in TABLES}) == SPACE["distinct_rho_at_these_probs"]


# --- round trips ----------------------------------------------------------------------------------------------------


def test_every_table_comes_back_from_its_ratio() -> None:
    back = [decompile(f"({polynomial(one.top, one.atoms)}) / ({polynomial(one.bottom, one.atoms)})").over(one.atoms) for one in TABLES]
    assert sum(a == b for a, b in zip(back, TABLES, strict=True)) == 225 == SPACE["decompile_compile_roundtrips_ok"]


def test_every_table_comes_back_from_its_formula() -> None:
    """Decompiling gives core, condition and addition; these compile to the table again, in three texts and in one."""
    assert sum(compose(*one.clauses).over(one.atoms) == one for one in TABLES) == 225
    assert sum(compose(str(one)).over(one.atoms) == one for one in TABLES) == 225


def test_larger_tables_come_back_as_well() -> None:
    draw = random.Random(0)
    for n in (1, 2, 3, 4, 4, 4, 5, 6):
        one = random_structure(n, draw)
        ratio = f"({polynomial(one.top, one.atoms)}) / ({polynomial(one.bottom, one.atoms)})"
        assert decompile(ratio, extra=("x",)).over(one.atoms) == one
        assert compose(str(one), extra=("x",)).over(one.atoms) == one


def test_the_displayed_ratio_has_the_value_of_the_structure() -> None:
    """What cancels is left out: another table, the same value."""
    for one in TABLES:
        shown = decompile(one.ratio)
        assert shown.over(("w", "l")).equals(one)


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_loss_decompiles_to_its_formula_and_its_name(name: str) -> None:
    one = KNOWN[name].structure
    same, alike = named(decompile(one.ratio))
    assert name in [*same, *alike]
    assert compose(KNOWN[name].formula) == resolve(name.upper()) == one


# --- compilation ----------------------------------------------------------------------------------------------------


def test_what_the_registry_is_said_to_equal_is_what_is_compared_with_it() -> None:
    """The comparisons themselves stand in the table of limits, values and gradients."""
    claimed = {(name, equal.label): equal for name, one in KNOWN.items() for equal in one.equals}
    assert set(claimed) == set(EQUAL)
    for key, equal in claimed.items():
        assert equal.method in METHODS
        settings = EQUAL[key][0].keywords  # type: ignore[attr-defined]
        assert (settings["link"], settings["scale"]) == (equal.link, equal.scale)


def test_the_log_ratio_is_that_of_the_sums_over_worlds() -> None:
    """Random tables over four atoms: value and gradient against adding up products, at probabilities that float64 can."""
    draw = random.Random(1)
    torch.manual_seed(0)
    for _ in range(40):
        one = random_structure(4, draw)
        p = {name: (0.02 + 0.96 * torch.rand(20, dtype=torch.float64)).requires_grad_() for name in one.atoms}
        plain = torch.log(one.odds(p))
        compiled = log_ratio(one, {name: x.log() for name, x in p.items()})
        close(compiled, plain)
        if plain.requires_grad and compiled.requires_grad:
            ours, theirs = (torch.autograd.grad(rho.sum(), list(p.values()), materialize_grads=True) for rho in (compiled, plain))
            for a, b in zip(ours, theirs, strict=True):
                close(a, b, rtol=1e-9, atol=1e-9)


def test_rare_sequences_keep_dpo_exact() -> None:
    """At -500 nats products of probabilities are 0; the worlds that differ in a free atom are summed out before any logarithm."""
    s = scored(-500.0, -503.0, -501.0, -502.0)
    assert known("DPO", scale="sequence")(s).metrics["rho"].item() == 2.0
    assert known("CPO", scale="sequence")(s).metrics["rho"].item() == 3.0
    assert gradient(row(known("DPO", scale="sequence", link="squared", beta=1.0)), s).tolist() == [[3.0, -3.0]]  # 2 (2 - 1/2)


def test_rare_and_sure_answers_have_finite_losses_and_gradients_in_every_table() -> None:
    extreme = [-2000.0, -500.0, -50.0, -1.0, -1e-3, -1e-12]
    for dtype in (torch.float32, torch.float64):
        grid = torch.tensor(list(itertools.product(extreme, repeat=2)), dtype=dtype)
        for one in TABLES:
            w, l = (grid[:, i].clone().requires_grad_() for i in (0, 1))  # noqa: E741
            rho = log_ratio(one, {"w": w, "l": l})
            assert rho.isfinite().all()
            if rho.requires_grad:
                slopes = torch.autograd.grad(rho.sum(), [w, l], materialize_grads=True)
                assert all(slope.isfinite().all() for slope in slopes)


def test_an_answer_of_probability_one_is_refused_by_row_only_where_its_negation_is_read() -> None:
    sure = scored(0.0, -1.0)
    assert known("CPO")(sure).metrics["rho"].item() == 1.0
    with pytest.raises(PreftuneError, match="the atom w has probability 1 in rows only"):
        known("ORPO")(sure)
    assert known("CE-unlikelihood").keywords["structure"].negated == {"w", "l"}  # type: ignore[attr-defined]
    assert KNOWN["cCPO"].structure.negated == {"w"}
    assert KNOWN["DPO"].structure.negated == set()


@pytest.mark.parametrize(
    ("formula", "columns", "labels", "reference"),
    [
        ("l -> w", 2, ("ranked",), False),
        ("w", 1, (), False),
        ("w & (l | ~l)", 1, (), False),  # what is said to depend on l does not
        ("l -> w given l", 1, (), False),
        ("w given w xor rw", 1, (), True),
        ("w & (rl -> rl)", 1, (), False),
        ("rl -> w", 2, ("ranked",), True),
        ("DPO", 2, ("ranked",), True),
    ],
)
def test_what_a_loss_needs_follows_from_its_formula(formula: str, columns: int, labels: tuple, reference: bool) -> None:
    method = logic(formula)
    needs = needs_of(method.objective)
    assert (needs.columns, needs.labels, needs.reference) == (columns, labels, reference)
    assert (method.reference.__name__ == "frozen") == reference


# --- entailment -----------------------------------------------------------------------------------------------------


def entailing(structures: Sequence[Structure]) -> list[tuple[int, int]]:
    return [(i, j) for i, j in itertools.permutations(range(len(structures)), 2) if relation(structures[i], structures[j]) == "entails"]


def test_what_entails_has_the_larger_loss_at_all_probabilities() -> None:
    """All entailing pairs of tables over two atoms, at random points: no violation beyond rounding in 80,000 checks."""
    pairs = torch.tensor(entailing(TABLES))
    points = 20
    draw = torch.Generator().manual_seed(0)
    uniform = torch.rand(2, points // 2, generator=draw, dtype=torch.float64)
    rare = 10 ** (-12 * torch.rand(2, points // 2, generator=draw, dtype=torch.float64))
    w, l = torch.cat([uniform, rare], 1).log()  # noqa: E741
    rho = torch.stack([log_ratio(one, {"w": w, "l": l}).expand(points) for one in TABLES])
    assert pairs.shape[0] * points == 80_000
    assert (pairs.shape[0] + len(TABLES)) * points == SPACE["entailment_checks"]  # with each table beside itself
    excess = rho[pairs[:, 0]] - rho[pairs[:, 1]]
    assert int((excess > 1e-12 * rho.abs().max()).sum()) == SPACE["monotonicity_violations"] == 0
    assert int((excess < -1e-6).sum()) > 40_000  # and the comparison is not one of equals
    # the same of the losses, with the exact arithmetic of fractions at one point of general position
    p = {"w": Fraction(577, 1000), "l": Fraction(211, 1000)}
    odds = [one.odds(p) for one in TABLES]
    assert all(odds[i] <= odds[j] for i, j in pairs.tolist())


def test_entailment_holds_for_four_atoms_too() -> None:
    """Structures made to be entailed, by adding winning and taking away losing worlds."""
    draw = random.Random(2)
    torch.manual_seed(1)
    for _ in range(60):
        one = random_structure(4, draw)
        lost = one.bottom & draw.getrandbits(16)
        other = Structure(one.atoms, one.top | draw.getrandbits(16), lost or one.bottom)
        assert relation(one, other) in ("entails", "equivalent") and relation(other, one) in ("entailed", "equivalent")
        logp = {name: torch.rand(50, dtype=torch.float64).log() for name in one.atoms}
        assert (log_ratio(one, logp) <= log_ratio(other, logp) + 1e-12).all()


def test_entailment_is_an_order() -> None:
    below = set(entailing(TABLES))
    assert not any((j, i) in below for i, j in below)
    above: dict[int, set[int]] = {}
    for i, j in below:
        above.setdefault(i, set()).add(j)
    assert all(above.get(j, set()) <= above[i] for i, j in below)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("ORPO", "cCPO", "entails"),
        ("cCPO", "ORPO", "entailed"),
        ("CPO", "cCPO", "entails"),
        ("cCPO", "unCPO", "entails"),
        ("CE-unlikelihood", "ORPO", "entails"),
        ("CE-unlikelihood", "CPO", "entails"),
        ("SimPO", "CPO", "entails"),
        ("ORPO", "CPO", "incomparable"),
        ("DPO", "CPO", "incomparable"),
        ("given-loser", "CE", "incomparable"),
        ("l -> w", "~w -> ~l", "equivalent"),
        ("l -> w given w | l both w & l", "CPO", "equivalent"),
        ("w", "w | l", "entails"),
    ],
)
def test_known_relations(a: str, b: str, expected: str) -> None:
    assert relation(resolve(a), resolve(b)) == expected


def test_incomparable_losses_are_shown_by_two_points_and_equal_ones_by_none() -> None:
    orpo, cpo = KNOWN["ORPO"].structure, KNOWN["CPO"].structure
    higher, lower = apart(orpo, cpo)
    assert higher and lower
    assert orpo.odds(higher) > cpo.odds(higher) and orpo.odds(lower) < cpo.odds(lower)
    assert apart(KNOWN["given-loser"].structure, KNOWN["CE"].structure) == (None, None)
    assert KNOWN["given-loser"].structure.equals(KNOWN["CE"].structure) and not orpo.equals(cpo)


def test_a_reference_joined_to_cpo_gives_dpo_and_keeps_the_order() -> None:
    assert relation(with_reference(KNOWN["CPO"].structure), KNOWN["DPO"].structure) == "equivalent"
    for i, j in entailing(TABLES)[::37]:
        assert relation(with_reference(TABLES[i]), with_reference(TABLES[j])) in ("entails", "equivalent")


# --- the languages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("~w & l | rw", "((not w) and l) or rw"),
        ("w | l & rw", "w | (l & rw)"),
        ("w ^ l | rw", "(w xor l) | rw"),
        ("w ^ l & rw", "w xor (l & rw)"),
        ("w -> l -> rw", "w -> (l -> rw)"),
        ("w | l -> rw", "(w | l) -> rw"),
        ("w -> l <-> rw", "(w -> l) <-> rw"),
        ("~~w", "w"),
        ("winner => loser", "w -> l"),
        ("reference_winner ∧ ¬reference_loser", "rw & !rl"),
        ("w <=> l", "w iff l"),
        ("w ∨ l", "w || l"),
        ("true -> w", "w | false"),
        ("w implies l", "w → l"),
    ],
)
def test_operators_have_their_usual_strength_and_spellings(a: str, b: str) -> None:
    assert relation(compose(a), compose(b)) == "equivalent"


PLACES = {
    "": "at the end of '' stands nothing, needed an atom",
    "l -> ": "at the end of 'l -> ' stands nothing, needed an atom",
    "l -> -> w": "at character 6 stands '->', needed an atom",
    "(l -> w": "at the end of '(l -> w' stands nothing, needed ')' for the bracket opened at character 1",
    "l -> w)": "at character 7 stands ')', needed one of and, xor, or, implies, iff between two operands, or the end",
    "w l": "at character 3 stands 'l', needed one of and",
    "w $ l": "at character 3 stands '$'",
    "w & 2": "at character 5 stands '2', needed an atom",
    "w not l": "at character 3 stands 'not'",
    "l -> winer": "at character 6 there is an unknown atom 'winer', needed one of winner (w), .*; did you mean winner?",
    "__import__('os')": "at character 1 there is an unknown atom '__import__'",
    "w given": "at the end of 'w given' stands nothing",
    "w given l given w": "at character 11 stands a second `given`",
    "given w": "at character 1 stands 'given', needed an atom",
    "(w given l)": "at character 4 stands 'given', needed '\\)'",
    "(" * 70 + "w" + ")" * 70: "at character 62 begins level 61, needed at most 60 levels",
    "~" * 5000 + "w": "begins level 61",
}


@pytest.mark.parametrize("text", PLACES, ids=lambda text: text[:20])
def test_a_mistake_in_a_formula_is_answered_with_its_place(text: str) -> None:
    message = PLACES[text]
    pattern = message if message.endswith("'\\)'") or ".*" in message else re.escape(message)
    with pytest.raises(PreftuneError, match=pattern.replace("(w), .*", r"\(w\), .*")):
        compose(text)


def test_a_long_formula_without_depth_is_read() -> None:
    assert relation(compose(" & ".join(["w"] * 5000)), compose("w")) == "equivalent"


def test_six_atoms_are_read_and_seven_refused() -> None:
    six = "w & l & rw & rl & m & x"
    assert len(compose(six, extra=("x",)).atoms) == 6
    with pytest.raises(PreftuneError, match=r"at character 28 stands atom number 7 of 7 .*, needed at most 6"):
        compose(f"{six} -> y", extra=("x", "y"))


def test_a_clause_is_said_once() -> None:
    with pytest.raises(PreftuneError, match="the formula has its own `given`, needed it once, but 'l' was given too"):
        compose("w given l", given="l")
    assert compose("w", given="l", both="rw") == compose("w given l both rw") == compose("w both rw given l")


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        ("w + l", "at character 3 two terms are true together"),
        ("w*w/l", "at character 2 both factors contain w, needed factors over different atoms"),
        ("w*(1 - w)/l", "both factors contain w"),
        ("w/l + 1", "a fraction is added or subtracted"),
        ("w - l", "what is subtracted is no part of the rest"),
        ("2*w/l", "at character 1 stands '2', needed an atom such as w, the number 1"),
        ("w^2/l", "at character 2 stands '\\^', needed one of \\+, -, \\*, / between two operands"),
        ("w/(1 - 1)", "the denominator of 'w/\\(1 - 1\\)' is 0"),
        ("(w - w)/l", "the numerator of .* is 0"),
        ("w/x", "unknown atom 'x'"),
        ("w/(l", "needed '\\)' for the bracket opened at character 3"),
        ("", "stands nothing"),
    ],
)
def test_a_ratio_that_is_none_of_disjoint_multilinear_polynomials_is_refused(ratio: str, message: str) -> None:
    with pytest.raises(PreftuneError, match=message):
        decompile(ratio)


@pytest.mark.parametrize(
    ("ratio", "name"),
    [
        ("w/(1-w)", "CE"),
        ("w*(1-l)/(1-w*(1-l))", "CE-unlikelihood"),
        ("w/l", "CPO"),
        ("w*(1-l)/(l*(1-w))", "ORPO"),
        ("w/(1-w) * (1-l)/l", "ORPO"),
        ("(1-l*(1-w))/(l*(1-w))", "unCPO"),
        ("w/(l*(1-w))", "cCPO"),
        ("w*l/(l*(1-w))", "given-loser"),
        ("w*rl/(l*rw)", "DPO"),
        ("(w/rw) / (l/rl)", "DPO"),
        ("(w/l)*(reference_loser/reference_winner)", "DPO"),
        ("w*m/l", "SimPO"),
        ("(w*l + w*(1-l)) / (l*w + (l - l*w))", "CPO"),
    ],
)
def test_ratios_as_they_are_written_decompile_to_the_known_losses(ratio: str, name: str) -> None:
    assert named(decompile(ratio))[0] == [name]


@pytest.mark.parametrize(
    ("formula", "shown"),
    [
        ("~l | w", "l -> w"),
        ("~(l & rw) | w & rl", "l & rw -> w & rl"),
        ("w & ~l | ~w & l", "w xor l"),
        ("w & l | ~w & ~l", "w <-> l"),
        ("w & l | w & ~l", "w"),
        ("(w | l) & (w | rl)", "w | l & rl"),
        ("(w | l) & (rw | rl)", "(w | l) & (rw | rl)"),
        ("(l -> w) & (rw -> rl)", "(l -> w) & (rw -> rl)"),
        ("~w & ~l", "~w & ~l"),
        ("~(w & l)", "~w | ~l"),
    ],
)
def test_formulas_are_shown_short(formula: str, shown: str) -> None:
    one = compose(formula)
    assert shortest(one.top, one.atoms) == shown
    assert relation(compose(shown), one) == "equivalent"


# --- the picture ----------------------------------------------------------------------------------------------------


def test_the_lines_of_the_hasse_diagram() -> None:
    structures = {name: one.structure for name, one in KNOWN.items() if not name.endswith("-ref")}
    assert covers(structures) == [
        ("CE", "cCPO"),
        ("CE-unlikelihood", "CE"),
        ("CE-unlikelihood", "CPO"),
        ("CE-unlikelihood", "ORPO"),
        ("CPO", "cCPO"),
        ("ORPO", "cCPO"),
        ("SimPO", "CPO"),
        ("cCPO", "unCPO"),
        ("given-loser", "cCPO"),
    ]


def drawn(structures: dict[str, Structure], **more: object) -> tuple[str, list[tuple[float, ...]], list[str]]:
    """-> text, rectangles (x, y, width, height) of the boxes, paths."""
    picture = svg(structures, **more)  # type: ignore[arg-type]
    root = ElementTree.fromstring(picture)
    tag = lambda name: root.findall(f"{{http://www.w3.org/2000/svg}}{name}")
    boxes = [tuple(float(r.get(key)) for key in ("x", "y", "width", "height")) for r in tag("rect")[1:]]
    assert float(root.get("width")) >= max(x + width for x, _, width, _ in boxes)
    return " ".join("".join(text.itertext()) for text in tag("text")), boxes, [str(p.get("d")) for p in tag("path")]


@pytest.mark.parametrize("seed", range(4))
def test_boxes_lie_apart_and_lines_lead_upward_past_them(seed: int) -> None:
    draw = random.Random(seed)
    structures = {f"number {i}": one for i, one in enumerate(draw.sample(TABLES, 14))}
    _, boxes, paths = drawn(structures, methods={})
    assert len(boxes) == 14
    for (x, y, width, height), (u, v, wide, high) in itertools.combinations(boxes, 2):
        assert x + width <= u or u + wide <= x or y + height <= v or v + high <= y
    for path in paths:
        ax, ay, *_, bx, by, end = map(float, re.findall(r"-?\d+(?:\.\d+)?", path))
        assert end <= by < ay  # upward from the foot of one level to the next, then straight past what stands beside
        assert not any(x < ax < x + width and y < ay - 1 < y + height for x, y, width, height in boxes)
        assert not any(
            x < bx < x + width and y < by - 1 and end + 1 < y + height and y + 1 < by < y + height for x, y, width, height in boxes
        )


def test_the_picture_names_every_loss_and_the_methods_of_the_registry() -> None:
    methods = {name: ", ".join(equal.label for equal in one.equals) for name, one in KNOWN.items()}
    text, boxes, _ = drawn({name: one.structure for name, one in KNOWN.items()}, methods=methods, marked=["cCPO"])
    assert len(boxes) == len(KNOWN)
    assert all(name in text for name in KNOWN)
    assert all(part in text for one in KNOWN.values() for equal in one.equals for part in equal.label.split())


def test_the_picture_in_the_docs_is_that_of_today(tmp_path: Path) -> None:
    """Otherwise: preftune logic --lattice docs/losses.svg"""
    draw(tmp_path / "losses.svg", None)
    assert (tmp_path / "losses.svg").read_text() == (Path(__file__).parent.parent / "docs" / "losses.svg").read_text()


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def preftune(preftune: Run) -> Run:
    """The verb `logic` of the command."""
    return partial(preftune, "logic")


def test_a_formula_is_described_with_its_ratio_its_value_and_its_name(preftune: Run) -> None:
    code, said, _ = preftune("l -> w", "--given", "w | l", "--both", "w & l")
    assert code == 0
    assert "w / l" in said and "CPO" in said and "cpo (preference term)" in said and "rho = 0.4055" in said
    assert "4: 1 win, 1 lose, 1 both, 1 none" in said


def test_under_json_all_is_there(preftune: Run) -> None:
    facts = json.loads(preftune("dpo", "--at", "w=0.5", "--json")[1])
    assert facts["known"] == ["DPO"] and facts["reference"] and len(facts["table"]) == 16
    assert facts["rho"] == pytest.approx(math.log(0.5 * 0.35 / (0.2 * 0.25)))
    assert facts["slopes"] == pytest.approx({"w": 1, "l": -1, "rw": -1, "rl": 1})


def test_a_ratio_is_decompiled(preftune: Run) -> None:
    facts = json.loads(preftune("--decompile", "w*(1-l)/(l*(1-w))", "--json")[1])
    assert (facts["formula"], facts["given"], facts["both"]) == ("l -> w", "w xor l", "false")
    assert facts["known"] == ["ORPO"] and facts["entails"] == ["cCPO"] and facts["entailed by"] == ["CE-unlikelihood"]


def test_two_losses_are_compared(preftune: Run) -> None:
    assert "ORPO entails cCPO" in preftune("--compare", "orpo", "ccpo")[1]
    assert "ORPO entails cCPO" in preftune("--compare", "ccpo", "orpo")[1]
    said = preftune("--compare", "orpo", "cpo")[1]
    assert "incomparable" in said and said.count("the ratios are") == 2
    assert "their ratios are equal" in preftune("--compare", "given-loser", "ce")[1]
    assert "are equivalent" in preftune("--compare", "l -> w", "~w -> ~l")[1]


def test_the_lattice_is_written_with_the_formula_in_it(preftune: Run, tmp_path: Path) -> None:
    assert preftune("--lattice", "known.svg")[0] == 0
    assert "dpo-norm" in (tmp_path / "known.svg").read_text(encoding="utf-8")
    facts = json.loads(preftune("w & (l -> rw)", "--lattice", "sub/mine.html", "--json")[1])
    assert "your formula" in facts["lattice"]["losses"] and ["your formula", "CE"] in facts["lattice"]["lines"]
    assert "<svg" in (tmp_path / "sub" / "mine.html").read_text(encoding="utf-8")
    assert "your formula" not in json.loads(preftune("~l | w", "--lattice", "a.svg", "--json")[1])["lattice"]["losses"]


def test_without_arguments_the_known_losses_are_listed(preftune: Run) -> None:
    assert set(json.loads(preftune("--json")[1])["known"]) == set(KNOWN)
    said = preftune()[1]
    assert all(name in said for name in KNOWN)


def test_the_command_that_is_shown_trains_the_formula_that_was_given(preftune: Run) -> None:
    import shlex

    for formula in ("rl -> w", "w & (l -> rw) given w | l both w & l & rw", "cpo", "SimPO"):
        words = shlex.split(json.loads(preftune(formula, "--json")[1])["trains"])
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        margin = {"margin": float(settings.pop("margin"))} if "margin" in settings else {}
        assert words[:3] == ["preftune", "train", "logic"]
        trained = logic(**settings, **margin).objective.keywords["structure"]  # type: ignore[attr-defined]
        assert relation(trained, resolve(formula)) == "equivalent"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["l -> "], "at the end of 'l -> '"),
        (["w | ~w"], "tautology"),
        (["w", "--compare", "cpo", "dpo"], "a formula and --compare came"),
        (["--given", "w"], "no formula came"),
        (["--compare", "cpo", "dpo", "--lattice", "a.svg"], "--compare came with other"),
        (["--lattice", "a.png"], "--lattice is 'a.png'"),
        (["w", "--at", "w=1"], "--at w is 1.0"),
        (["w", "--at", "w"], "--at was given 'w'"),
        (["w", "--at", "w=much"], "w is 'much', needed a number"),
        (["x"], "unknown atom 'x'"),
    ],
)
def test_bad_input_ends_with_3_and_a_reason(preftune: Run, arguments: list[str], message: str) -> None:
    code, said, _ = preftune(*arguments, "--json")
    assert code == 3 and message in json.loads(said)["error"]


def test_a_loss_that_nothing_learns_from_is_described_and_says_so(preftune: Run) -> None:
    code, said, _ = preftune("rw")
    assert code == 0 and "cannot train" in said and "does not depend on the policy" in said
    assert preftune("x -> w", "--at", "x=0.5")[0] == 0


def test_a_formula_trains_like_any_other_method(tmp_path: Path) -> None:
    """On a table the loss of cCPO falls and the winner gains on the loser."""
    from preftune.learner import GradientLearner
    from preftune.policies.tabular import TabularPolicy

    method = logic("cCPO", scale="sequence")
    policy = TabularPolicy(torch.zeros(1, 3, dtype=torch.float64))
    rows = policy.rows().replace(response=TableResponses(torch.tensor([[0, 1]])), ranked=True)
    learner = GradientLearner(policy, method, {"current": policy}, lr=1.0, optimiser="sgd", clip=None)
    before = method.objective(policy.score(rows)).row.item()
    for _ in range(20):
        learner.descend(rows)
    after: Tensor = policy.score(rows)
    assert method.objective(after).row.item() < before / 2
    assert after.logp[0, 0] > after.logp[0, 1] + 2
    assert said("l -> w given w | l")(after).row.item() == pytest.approx(method.objective(after).row.item())
