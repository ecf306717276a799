"""Packs: the fast engine against the plain one, for every architecture; and the hazards that each would pass unnoticed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import ARCHITECTURES, REFUSED, architecture
from preftune.policies.text import load
from preftune.policies.text.tokens import TextResponses
from preftune.types import Rows
from text_fixtures import tiny_folder, tiny_policy


def rows_of(*groups: tuple[int, Sequence[int]], seed: int = 0) -> Rows:
    """Random prompts of these lengths with responses of these lengths."""
    draw = torch.Generator().manual_seed(seed)
    tokens = lambda n: tuple(torch.randint(3, 400, (n,), generator=draw).tolist())
    prompts = [tokens(p) for p, _ in groups]
    return Rows(
        id=tuple(f"r{i}" for i in range(len(groups))),
        prompt=prompts,
        response=TextResponses(tuple(tuple(tokens(c) for c in lengths) for _, lengths in groups)),
        ranked=True,
    )


def both_gradients(fast: Any, plain: Any, rows: Rows) -> tuple[float, float]:
    """Relative error of a DPO loss, and the worst relative L2 error of a tensor's gradient; denominators from 1e-4 of the whole."""
    found = []
    for policy in (fast, plain):
        for p in policy.parameters():
            p.grad = None
        logp = policy.score(rows).logp
        loss = -torch.nn.functional.logsigmoid(0.1 * (logp[:, 0] - logp[:, 1])).sum()
        loss.backward()
        found.append((float(loss.detach()), [p.grad.double() if p.grad is not None else None for p in policy.parameters()]))
    (mine, ours), (right, theirs) = found
    assert [g is None for g in ours] == [g is None for g in theirs]
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    whole = float(torch.cat([b.flatten() for _, b in pairs]).norm())
    return abs(mine - right) / abs(right), max(float((a - b).norm()) / max(float(b.norm()), 1e-4 * whole) for a, b in pairs)


ROWS = rows_of((9, (7, 12)), (14, (1, 5)), (3, (10, 2)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packs_give_the_losses_and_gradients_of_whole_sequences(name: str) -> None:
    lm = architecture(name)
    fast, plain = tiny_policy(model=lm), tiny_policy(model=copy.deepcopy(lm), engine="plain")
    assert fast.network.engine == "fast", fast.network.engine_note
    loss, worst = both_gradients(fast, plain, ROWS)
    assert loss < 1e-5 and worst < 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_what_packs_do_not_suit_is_run_by_whole_sequences_and_says_so(name: str) -> None:
    policy = tiny_policy(model=architecture(name))
    assert policy.network.engine == "plain" and "one row per response" in policy.network.engine_note
    assert torch.isfinite(policy.score(ROWS).logp).all()


@pytest.mark.parametrize("train", ["full", "lora"])
def test_packs_are_used_in_bfloat16_too(tmp_path: Path, train: str) -> None:
    """Under autocast the states are float32 but no more exact than the products: another order of the sums is no reason to fall back."""
    policy = load(tiny_folder(tmp_path, width=128, layers=4), dtype="bfloat16", device="cpu", train=train)
    assert policy.network.engine == "fast", policy.network.engine_note
