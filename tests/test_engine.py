"""The fast engine under every method: the plain path's losses and gradients, whatever the objective, the batch and the budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from preftune.api import _open, prepare
from preftune.learner import GradientLearner
from preftune.methods import METHODS
from preftune.types import Context, Key, Rows
from test_composition_on_text import judge, language
from test_every_method_on_text import CHOICES, SHORT, data_for

MILD = {"dno-prct": {"least": -5.0, "margin": 0.1, "own_margin": 0.1}}  # so that six rows leave pairs
WITH_OBJECTIVE = [name for name in METHODS if prepare(name, CHOICES.get(name, {})).method.objective is not None]


def moved(policy: Any, size: float, seed: int) -> Any:
    """A frozen copy some way off, so that no log-ratio is 0."""
    draw = torch.Generator().manual_seed(seed)
    other = policy.copy()
    other.load({name: p + size * torch.randn(p.shape, generator=draw) for name, p in other.state().items()})
    return other


def gradient(policy: Any, method: Any, rows: Rows, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
    """The rows' losses, the policy's sums over the batch, and what a step would descend along; the roles are the same for all."""
    roles = {"current": policy, **{name: moved(policy, 0.02, i) for i, name in enumerate(("reference", *method.roles))}}
    learner = GradientLearner(policy, method, roles, micro_batch=micro_batch)
    scored, loss = learner._backward(rows)
    return loss.row, scored.logp, [p.grad for p in learner.parameters]


@pytest.mark.parametrize("name", WITH_OBJECTIVE)
def test_every_objective_has_the_plain_paths_loss_and_gradient(name: str) -> None:
    settings = {**CHOICES.get(name, {}), **SHORT.get(name, {}), **MILD.get(name, {})}
    method = prepare(name, settings).method
    fast, plain = language(tokens_per_batch=60), language(engine="plain")
    assert fast.network.engine == "fast"
    fast.max_new_tokens = 8
    _, feed, _, _ = _open(method, fast, data_for(method), None, 0, None, None, None, 8)
    roles = {name: moved(fast, 0.02, i) for i, name in enumerate(("reference", *method.roles))}
    context = Context({"current": fast, "opponent": fast, **roles}, feed.rows(range(6)), [judge()], key=Key.of(3))
    rows = method.collect(context)
    row, logp, mine = gradient(fast, method, rows, micro_batch=6)
    other, truth, right = gradient(plain, method, rows, micro_batch=4)
    torch.testing.assert_close(logp, truth, rtol=1e-5, atol=1e-5)
    assert (row - other).norm() <= 1e-5 * other.norm() + 1e-7
    known = [(a.double(), b.double()) for a, b in zip(mine, right, strict=True) if a is not None and b is not None]
    whole = torch.cat([b.flatten() for _, b in known]).norm()
    assert len(known) > 5 and whole > 0
    assert all((a - b).norm() <= 1e-5 * max(float(b.norm()), 1e-4 * float(whole)) + 1e-9 for a, b in known)
