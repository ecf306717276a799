"""What self-play holds: one copy of the weights that do not train, and of those that do one for each role.

Counted are storages of tensors, by address: those that can be reached from a policy or a snapshot, and all that are alive in the process.
"""

from __future__ import annotations

import copy
import gc
from collections import deque
from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from preftune.collect.drawing import drawing
from preftune.learner import GradientLearner
from preftune.methods import METHODS
from preftune.policies.text.model import TextPolicy
from preftune.types import Key, Policy, Rows
from text_fixtures import tiny_model, tiny_policy, tiny_records

Storages = dict[int, int]  # address -> bytes

ELSEWHERE = (str, bytes, int, float, type, FunctionType, BuiltinFunctionType, ModuleType)


def storages(tensors: Iterable[Tensor]) -> Storages:
    found = {}
    for tensor in tensors:
        held = tensor.untyped_storage()
        if held.nbytes():
            found[held.data_ptr()] = held.nbytes()
    return found


def reachable(root: Any) -> Storages:
    """Of all tensors in attributes, containers and modules below the root, gradients included."""
    seen: set[int] = set()
    tensors: list[Tensor] = []
    waiting = deque([root])
    while waiting:
        one = waiting.popleft()
        if id(one) in seen or isinstance(one, ELSEWHERE):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            tensors += [one] if one.grad is None else [one, one.grad]
        elif isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset | deque):
            waiting += one
        else:
            waiting.append(getattr(one, "__dict__", {}))
    return storages(tensors)


def alive() -> Storages:
    """Of all tensors that Python knows in this process."""
    gc.collect()
    return storages(one for one in gc.get_objects() if type(one) in (Tensor, Parameter))  # others may hold no numbers


def total(found: Storages) -> int:
    return sum(found.values())


def beside(found: Storages, other: Storages) -> int:
    """Bytes that are in the first alone."""
    return sum(size for address, size in found.items() if address not in other)


class Watched(GradientLearner):
    """Keeps hold of the snapshot that an update rule takes."""

    taken: Any = None

    def snapshot(self) -> dict[str, Any]:
        self.taken = super().snapshot()
        return self.taken


class Longer:
    """Prefers the longer answer."""

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        return torch.sigmoid((a.length[:, :, None] - b.length[:, None, :]).double())


def language(train: str | int) -> TextPolicy:
    """Frozen weights far larger than those that train."""
    policy = tiny_policy(train, model=tiny_model(width=128, layers=4))
    policy.max_new_tokens = 4
    return policy


def sizes(policy: TextPolicy) -> tuple[int, int]:
    """Bytes that train, and of all weights."""
    trained = total(storages(policy.weights().values()))
    return trained, total(storages(policy.network.module.parameters()))


ADDED = {
    "egpo": 1,
    "egpo-optimistic": 2,
    "online-ipo": 0,
    "nash-ema-pg": 0,
}  # copies beside the roles: the half step; where it was, where it goes


@pytest.mark.parametrize("train", ["lora", "dora", 1])
@pytest.mark.parametrize("name", ADDED)
def test_all_roles_share_one_copy_of_what_does_not_train(name: str, train: str | int) -> None:
    """Every policy beside the current one holds what trains, once, and a snapshot twice that more: the moments of AdamW."""
    method, policy = METHODS[name](), language(train)
    trained, weights = sizes(policy)
    assert trained < weights / (10 if train != 1 else 3)
    roles: dict[str, Policy] = {"current": policy, "reference": policy.reference(), **{role: policy.copy() for role in method.roles}}
    learner = Watched(policy, method, roles, lr=1e-3)
    feed, _ = policy.encode(tiny_records(2))
    seen: dict[str, Any] = {}

    def rows_against(opponent: Policy) -> Rows:
        seen.update(opponent=opponent, alive=alive())
        return drawn(opponent)

    drawn = drawing(method.collect, learner.roles, feed, Key.of(0), judges=(Longer(),))
    method.update(learner, rows_against)  # the moments exist from here on
    learner.taken = None
    before = alive()
    method.update(learner, rows_against)

    current = reachable(policy)
    for other in [*(role for key, role in learner.roles.items() if key != "current"), seen["opponent"]]:
        assert other is policy or beside(reachable(other), current) == trained
    copies = len({id(policy), *map(id, learner.roles.values())})
    assert total(reachable(learner.roles)) == total(current) + (copies - 1) * trained

    # what a step adds while it draws for the last time; a quarter of a copy is room for rows and keys
    held = total(seen["alive"]) - total(before)
    snapshot = 0 if learner.taken is None else total(reachable(learner.taken))
    assert snapshot <= 3 * trained + 100 * len(policy.parameters())  # each parameter has a counter of its steps
    assert (snapshot > 0) == (name == "egpo")
    assert held <= snapshot + (ADDED[name] + 0.25) * trained


def test_a_mixture_holds_one_copy_of_what_trains_for_each_of_the_two() -> None:
    policy = language("lora")
    trained, _ = sizes(policy)
    reference = policy.reference()
    assert beside(reachable(policy.mix(reference, 0.5)), reachable(policy)) == 2 * trained
    assert beside(reachable(reference.mix(policy.copy(), 0.5)), reachable(policy)) == 2 * trained


def test_the_count_finds_a_second_model() -> None:
    policy = language("lora")
    before = alive()
    other = copy.deepcopy(policy)
    assert beside(reachable(other), reachable(policy)) >= sizes(policy)[1]
    assert total(alive()) - total(before) >= sizes(policy)[1]
