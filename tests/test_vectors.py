"""Objectives against numbers that were computed elsewhere, in float64: losses and both derivatives.

`vectors.json` was made by complex-step differentiation of independent numpy formulas and compared with TRL;
`vectors_added.json` was worked by hand, the arithmetic stands beside each case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from all_facts import FAMILIES
from preftune import methods
from preftune.objectives import auxiliary, games, pairwise, pointwise, reference_free
from preftune.policies.tabular import TableResponses
from preftune.types import Objective, Rows, Scored
from vector_rows import ADDED, VECTORS, labelled_with_baseline, pairs

# name in vectors.json -> the objective built from the case's parameters
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "dpo": lambda beta: partial(pairwise.dpo, beta=beta),
    "cdpo": lambda beta, eps: partial(pairwise.dpo, beta=beta, label_smoothing=eps),
    "rdpo": lambda beta, eps: partial(pairwise.rdpo, beta=beta, label_smoothing=eps),
    "ipo_sum": lambda tau: partial(pairwise.ipo, beta=tau),
    "ipo_avg": lambda tau: partial(pairwise.ipo_avg, beta=tau),
    "simpo": lambda beta, gamma: partial(reference_free.simpo, beta=beta, gamma=gamma),
    "orpo_or": lambda: reference_free.odds_ratio,
    "orpo": lambda lam: methods.orpo(lam).objective,
    "kto": lambda beta, z0, wd, wu: partial(pointwise.kto, beta=beta, desirable_weight=wd, undesirable_weight=wu),
    "rpo_sum": lambda beta, eta: methods.rpo(beta, eta).objective,
    "rpo_avg": lambda beta, eta: methods.rpo_avg(beta, eta).objective,
}
for family in FAMILIES:  # a family of objectives brings its own part of the table, and what its rows are where they are no pairs
    OBJECTIVES |= getattr(family, "VECTORS", {})
SETTINGS: dict[str, Callable[[dict[str, Any]], Scored]] = {"kto": lambda params: labelled_with_baseline(params["z0"])}
for family in FAMILIES:
    SETTINGS |= getattr(family, "VECTOR_ROWS", {})
CASES = [case for case in VECTORS["pairwise"] if case["name"] in OBJECTIVES]


def same(computed: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(computed, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("case", CASES, ids=[f"{case['name']} {case['params']}" for case in CASES])
def test_losses_and_derivatives_are_those_of_the_vectors(case: dict[str, Any]) -> None:
    objective = OBJECTIVES[case["name"]](**case["params"])
    s = SETTINGS[case["name"]](case["params"]) if case["name"] in SETTINGS else pairs()
    row = objective(s).row
    (gradient,) = torch.autograd.grad(row.sum(), s.logp)
    same(row.detach(), case["loss"])
    same(gradient[:, 0], case["d_chosen"])
    same(gradient[:, 1], case["d_rejected"])
    assert not gradient[:, 2:].any()  # the baseline is a constant


def test_every_case_of_the_vectors_is_checked_and_none_is_null() -> None:
    """Lists are checked in test_lists_facts.py, batches in test_losses_facts.py, formulas in test_logic.py."""
    assert VECTORS["pairwise"] == CASES and {case["name"] for case in CASES} == set(OBJECTIVES)
    assert all(None not in case[part] for case in CASES for part in ("loss", "d_chosen", "d_rejected"))


@pytest.mark.parametrize("case", ADDED["sft"], ids=[case["aggregation"] for case in ADDED["sft"]])
def test_likelihood_has_three_aggregations(case: dict[str, Any]) -> None:
    """-logp of the seven rows sums to 42.5 + 80 + 30 + 10 + 90 + 0.5 + 1000 = 1253 nats over 34 + 64 + 25 + 20 + 60 + 3 + 500 = 706 tokens.

    The batch means are 1253 / 7 (seq_sum), 1253 / 706 (tok_mean), and the mean of the seven quotients (seq_mean).
    """
    s = pairs()
    loss = auxiliary.nll(s, aggregation=case["aggregation"])
    (gradient,) = torch.autograd.grad(loss.row.sum(), s.logp)
    count = torch.ones(len(loss.row), dtype=torch.float64) if loss.count is None else loss.count
    same(loss.row.detach(), case["loss"])
    same(gradient[:, 0], case["d_chosen"])
    same(count, case["count"])
    assert not gradient[:, 1].any()
    assert math.isclose(float(loss.row.detach().sum() / count.sum()), case["batch"], rel_tol=1e-14)


@pytest.mark.parametrize("case", ADDED["online_ipo"], ids=[case["name"] for case in ADDED["online_ipo"]])
def test_online_ipo_is_the_mean_squared_difference_over_pairs(case: dict[str, Any]) -> None:
    """u = logp - ref_logp - winrate / beta. With u = (1, 2, 4):

    three draws          mean of (1-2)^2, (1-4)^2, (2-4)^2 = (1 + 9 + 4) / 3 = 14/3
    uniform law          two of nine ordered pairs each: 2 (1 + 9 + 4) / 9 = 28/9
    law .5 .3 .2         2 Var = 2 (.5 (1-1.9)^2 + .3 (2-1.9)^2 + .2 (4-1.9)^2) = 2.58
    """
    tensor = lambda name: torch.tensor([case[name]], dtype=torch.float64)
    law = None if case["law"] is None else tensor("law")
    logp = tensor("logp").requires_grad_()
    response = TableResponses(torch.arange(logp.shape[1])[None], law)
    rows = Rows(("row",), ("prompt",), response, winrate=tensor("winrate"), law=law)
    loss = games.online_ipo(Scored(rows, logp, tensor("ref_logp")), beta=case["beta"])
    (gradient,) = torch.autograd.grad(loss.row.sum(), logp)
    same(loss.row.detach(), [case["loss"]])
    same(gradient[0], case["d_logp"])
