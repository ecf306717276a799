"""Keys, rows, the responses of tables and the draws of a tabular policy."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from preftune import methods
from preftune.judges.exact import PreferenceTable
from preftune.objectives.pairwise import dpo
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.types import Context, Key, Method, PreftuneError, Responses, Rows, Scored, needs_of
from preftune.update import extragradient

# --- keys -----------------------------------------------------------------------------------------------------------


def test_equal_parts_give_equal_keys() -> None:
    assert Key.of(3).fold("step", 1, "row 7") == Key.of(3).fold("step", 1, "row 7")


def test_different_parts_give_different_keys() -> None:
    """Numbers are not texts, and no two ways of cutting a text into parts collide."""
    root = Key.of(0)
    parts = [
        (1,),
        ("1",),
        (1, 1),
        (11,),
        ("1", "1"),
        ("11",),
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("",),
        (-1,),
        (True,),
        ("a:", "b"),
        ("a", ":b"),
    ]
    keys = [root, Key.of(1), Key.of(-1), *(root.fold(*part) for part in parts)]
    assert len({key.digest for key in keys}) == len(keys)
    assert len({key.seed for key in keys}) == len(keys) and all(0 <= key.seed < 2**63 for key in keys)


def test_a_key_is_the_same_in_every_process() -> None:
    """Python's own hash() differs from process to process."""
    code = "from preftune.types import Key; k = Key.of(5).fold('pair', 'row'); print(k.digest.hex(), *k.uniform(['a'], 3)[0])"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    key = Key.of(5).fold("pair", "row")
    assert there[0] == key.digest.hex()
    assert [float(x) for x in there[1:]] == key.uniform(["a"], 3)[0].tolist()


def test_a_rows_draw_depends_on_its_id_and_not_on_the_batch() -> None:
    key = Key.of(0).fold("pair")
    ids = [f"row {i}" for i in range(20)]
    draws = key.uniform(ids, 2, 3)
    assert draws.shape == (20, 2, 3) and draws.dtype == np.float64
    assert np.array_equal(key.uniform(ids[::-1], 2, 3), draws[::-1])
    assert np.array_equal(np.concatenate([key.uniform(ids[:7], 2, 3), key.uniform(ids[7:], 2, 3)]), draws)
    assert key.uniform([], 4).shape == (0, 4)


def test_draws_over_rows_are_uniform_and_unrelated() -> None:
    """Chi-square over 20 bins of 8000 rows: below 43.8 (99.9 % of 19 degrees of freedom). Correlations below 4 / sqrt(8000)."""
    u = Key.of(1).uniform([str(i) for i in range(8000)], 2)
    for column in u.T:
        counts = np.bincount((column * 20).astype(int), minlength=20)
        assert ((counts - 400.0) ** 2 / 400).sum() < 43.8
    neighbours = np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]
    steps = np.corrcoef(u[:, 0], Key.of(2).uniform([str(i) for i in range(8000)], 2)[:, 0])[0, 1]
    assert max(abs(neighbours), abs(np.corrcoef(u.T)[0, 1]), abs(steps)) < 4 / 8000**0.5


# --- rows -----------------------------------------------------------------------------------------------------------


def table_rows() -> Rows:
    """Four rows of three responses with every field filled."""
    grid = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    return Rows(
        id=("a", "b", "c", "d"),
        prompt=[10, 11, 12, 13],
        response=TableResponses(grid.long(), grid / 100),
        present=grid > 2,
        ranked=True,
        score=grid,
        prefer=grid[:, 0],
        winrate=grid + 1,
        desirable=grid > 5,
        weight=grid[:, 1],
        law=grid / 100,
        extra={"margin": grid[:, 2]},
        segments=grid[:, :, None],
        segment_label=grid[:, :, None] + 1,
    )


def test_taking_rows_takes_them_in_every_field_and_in_the_order_asked_for() -> None:
    rows = table_rows()
    part = rows.take([2, 0, 2])
    order = [2, 0, 2]
    assert part.id == ("c", "a", "c") and list(part.prompt) == [12, 10, 12] and part.ranked and len(part) == 3
    for name in ("present", "score", "prefer", "winrate", "desirable", "weight", "law", "segments", "segment_label"):
        assert torch.equal(getattr(part, name), getattr(rows, name)[order]), name
    assert torch.equal(part.extra["margin"], rows.extra["margin"][order])
    assert torch.equal(part.response.index, rows.response.index[order]) and torch.equal(part.response.law, rows.response.law[order])


def test_taking_rows_leaves_absent_fields_absent() -> None:
    part = Rows(("a", "b"), (0, 1)).take([1])
    assert part == Rows(("b",), (1,))


def test_a_replaced_field_leaves_the_original_alone() -> None:
    rows = Rows(("a",), (0,))
    assert rows.replace(ranked=True).ranked and not rows.ranked


def test_log_ratio_and_mean_name_what_is_missing() -> None:
    s = Scored(Rows(("a",), (0,)), torch.zeros(1, 2))
    with pytest.raises(PreftuneError, match=r"ref_logp.*reference=frozen"):
        _ = s.logratio
    with pytest.raises(PreftuneError, match="lengths"):
        _ = s.mean_logp


def test_a_method_that_needs_a_judge_says_so() -> None:
    with pytest.raises(PreftuneError, match="judge"):
        _ = Context({}, Rows((), ())).judge


def test_needs_are_found_through_partial_and_stated_where_missing() -> None:
    assert needs_of(partial(partial(dpo, beta=0.2), label_smoothing=0.1)) is dpo.needs
    with pytest.raises(PreftuneError, match=r"nothing_declared.*@needs"):
        needs_of(partial(nothing_declared, beta=0.1))


def nothing_declared(s: Scored, *, beta: float) -> None:
    raise AssertionError


@pytest.mark.parametrize("collect_every", ["run", "round"])
def test_an_update_that_draws_twice_refuses_rows_that_are_drawn_seldom(collect_every: str) -> None:
    online = methods.egpo()
    with pytest.raises(PreftuneError, match=f"extragradient.*{collect_every}.*collect_every='step'"):
        Method(online.objective, online.collect, online.reference, extragradient, collect_every=collect_every)


# --- responses and policies of tables -------------------------------------------------------------------------------


def test_table_responses_are_responses() -> None:
    y = TableResponses(torch.tensor([[0, 1], [2, 0]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    assert isinstance(y, Responses) and y.shape == (2, 2)
    assert y.show() == [["0", "1"], ["2", "0"]]
    assert torch.equal(y.take(rows=[1]).index, torch.tensor([[2, 0]])) and torch.equal(y.take(rows=[1]).law, torch.tensor([[0.5, 0.5]]))
    assert torch.equal(y.take(columns=[1, 0]).index, torch.tensor([[1, 0], [0, 2]]))
    assert torch.equal(y.take(rows=[1, 0], columns=[0]).law, torch.tensor([[0.5], [0.25]]))


def test_joined_responses_stand_side_by_side_and_enumerate_no_law() -> None:
    y = TableResponses(torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.75]]))
    both = y.join(TableResponses(torch.tensor([[2]]), torch.tensor([[1.0]])))
    assert torch.equal(both.index, torch.tensor([[0, 1, 2]])) and both.law is None


LOGITS = torch.tensor([[0.0, 1.0, -1.0, 0.5], [2.0, 0.0, 0.0, -30.0]], dtype=torch.float64)


def test_an_exact_policy_answers_with_its_law_whatever_the_number_of_samples() -> None:
    policy = TabularPolicy(LOGITS)
    y = policy.sample(policy.rows(), 2, Key.of(0))
    assert torch.equal(y.index, torch.arange(4).expand(2, 4))
    assert torch.equal(y.law, policy.probabilities())
    flat = policy.sample(policy.rows(), 2, Key.of(0), **policy.uniform)
    assert torch.equal(flat.law, torch.full((2, 4), 0.25, dtype=torch.float64))


def test_the_score_is_the_log_probability_with_gradient() -> None:
    policy = TabularPolicy(LOGITS)
    scored = policy.score(Rows(("x", "y"), (1, 0), TableResponses(torch.tensor([[0, 3], [2, 1]]))))
    expected = LOGITS.log_softmax(1)
    assert torch.equal(scored.logp, torch.stack([expected[1, [0, 3]], expected[0, [2, 1]]])) and scored.logp.requires_grad
    assert torch.equal(scored.length, torch.ones(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 2.0, float("inf")])
def test_draws_follow_the_probabilities(temperature: float) -> None:
    """Chi-square of 6000 rows x 2 draws on the first game: below 16.3 (99.9 % of 3 degrees of freedom)."""
    policy = TabularPolicy(LOGITS, exact=False)
    rows = Rows(tuple(map(str, range(6000))), (0,) * 6000)
    y = policy.sample(rows, 2, Key.of(4), temperature=temperature)
    assert y.shape == (6000, 2) and y.law is None
    expected = 12000 * (LOGITS[0] / temperature).softmax(0)
    counts = torch.bincount(y.index.flatten(), minlength=4)
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_draws_of_a_row_do_not_depend_on_the_others() -> None:
    policy = TabularPolicy(LOGITS, exact=False)
    rows = Rows(tuple(map(str, range(40))), tuple(i % 2 for i in range(40)))
    key = Key.of(0).fold("step", 3)
    whole = policy.sample(rows, 3, key).index
    order = list(range(39, -1, -3))
    assert torch.equal(policy.sample(rows.take(order), 3, key).index, whole[order])
    assert not torch.equal(policy.sample(rows, 3, Key.of(0).fold("step", 4)).index, whole)


def test_a_copy_is_frozen_and_stays_when_the_policy_moves() -> None:
    policy = TabularPolicy(LOGITS)
    for frozen in (policy.copy(), policy.reference()):
        assert not any(parameter.requires_grad for parameter in frozen.parameters())
        policy.logits.data += torch.randn(2, 4, dtype=torch.float64)
        assert not torch.equal(frozen.logits, policy.logits)
        policy.load(frozen.state())
        assert torch.equal(frozen.logits, policy.logits) and policy.logits.requires_grad


def test_a_state_is_a_copy() -> None:
    policy = TabularPolicy(LOGITS)
    state = policy.state()
    policy.logits.data.zero_()
    assert torch.equal(state["logits"], LOGITS)


def test_lerp_mixes_parameters() -> None:
    a, b = TabularPolicy(LOGITS), TabularPolicy(LOGITS + torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(a.lerp(b, 0.25).logits.detach(), LOGITS + torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    assert torch.equal(a.lerp(b, 0.0).logits, a.logits) and torch.equal(a.lerp(b, 1.0).logits, b.logits)
    assert torch.equal(a.logits, LOGITS)


def test_tables_that_make_no_policy_or_no_judge_are_refused() -> None:
    for logits in (torch.tensor([0.0, torch.nan]), torch.zeros(1, 2, 2), torch.tensor([0.0, torch.inf])):
        with pytest.raises(PreftuneError, match="logits"):
            TabularPolicy(logits)
    for table, needed in (
        (torch.zeros(2, 3), "n, n"),
        (torch.full((2, 2), 0.6), "sum of 1"),
        (torch.full((2, 2), torch.nan), "probability"),
    ):
        with pytest.raises(PreftuneError, match=f"needed .*{needed}"):
            PreferenceTable(table)
    with pytest.raises(PreftuneError, match="temperature is 0"):
        TabularPolicy(LOGITS).sample(TabularPolicy(LOGITS).rows(), 1, Key.of(0), temperature=0.0)


def test_the_exact_judge_reads_the_table_of_each_rows_game() -> None:
    tables = torch.tensor([[[0.5, 0.9], [0.1, 0.5]], [[0.5, 0.3], [0.7, 0.5]]], dtype=torch.float64)
    rows = Rows(("x", "y", "z"), (1, 0, 1))
    a = TableResponses(torch.tensor([[0, 1], [0, 1], [1, 1]]))
    b = TableResponses(torch.tensor([[1], [1], [0]]))
    beats = PreferenceTable(tables).prefer(rows, a, b, Key.of(0))
    assert torch.equal(beats, torch.tensor([[[0.3], [0.5]], [[0.9], [0.5]], [[0.7], [0.7]]], dtype=torch.float64))
