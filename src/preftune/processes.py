"""The processes of one run: who takes which rows, and how the numbers come together again. Alone, all of it is the identity.

Every process holds all rows of a batch and takes the same decisions on the same numbers. Shared are only the passes of models
and the questions to judges: each process takes some rows, and `gathered` gives every process the answers for all of them. Draws
derive from the ids of rows, so that the answers are those of one process.

Processes are what `torchrun` and `accelerate launch` start: they say in the environment who is who. Without them, or with one
process, `torch.distributed` is neither imported nor started.
"""

from __future__ import annotations

import atexit
import dataclasses
import heapq
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from .types import Policy, PreftuneError, Rows, Scored, Want

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher says
store: Any = None  # where processes leave notes, once they have met
PATIENCE = timedelta(seconds=10)  # with a process that has something to say
BUCKET = 1 << 26  # bytes of gradients that travel together


def _said(name: str, alone: int) -> int:
    return int(os.environ[name]) if all(other in os.environ for other in LAUNCHED) and name in os.environ else alone


@cache
def size() -> int:
    """How many processes there are."""
    return _said("WORLD_SIZE", 1)


@cache
def rank() -> int:
    """The number of this one, from 0."""
    return _said("RANK", 0)


@cache
def here() -> tuple[int, int]:
    """(number, count) of the processes of this machine."""
    return _said("LOCAL_RANK", rank()), _said("LOCAL_WORLD_SIZE", size())


def first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == 0


def start() -> None:
    """Meet the other processes; on a machine with CUDA each takes the device of its number. Once; alone nothing happens."""
    if size() == 1:
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    cuda = torch.cuda.is_available()
    if cuda:
        number, count = here()
        if number >= torch.cuda.device_count():
            raise PreftuneError(
                f"{count} processes were started on a machine with {torch.cuda.device_count()} CUDA devices, needed one device each; "
                "start as many processes as there are devices"
            )
        torch.cuda.set_device(number)
    global store
    store, number, count = next(dist.rendezvous("env://"))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=number, world_size=count)
    atexit.register(stop)


def say_once(say: Callable[[], None]) -> None:
    """Let the process that failed first say why; the others follow from it, and wait until it has spoken: then all are ended."""
    if store is None:
        if first():
            say()
        return
    try:
        if store.add("failed", 1) == 1:
            say()
            store.set("said", "")
        else:
            store.wait(["said"], PATIENCE)
    except RuntimeError:  # whoever kept the notes is gone
        return


def stop() -> None:
    """Leave the others."""
    if size() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


# --- rows -----------------------------------------------------------------------------------------------------------


def shares(costs: Sequence[float], count: int) -> list[list[int]]:
    """Which rows each of `count` processes takes, so that their costs add up to about the same: the dearest first, each to
    whoever has least so far. A function of the costs alone, and no process is without a row while another has two."""
    taken: list[list[int]] = [[] for _ in range(count)]
    load = [(0.0, 0, number) for number in range(count)]
    for row in sorted(range(len(costs)), key=lambda row: (-costs[row], row)):
        cost, rows, number = heapq.heappop(load)
        taken[number].append(row)
        heapq.heappush(load, (cost + costs[row], rows + 1, number))
    return [sorted(rows) for rows in taken]


def share(costs: Sequence[float]) -> list[int]:
    """The rows of this process, ascending."""
    return shares(costs, size())[rank()]


def gathered(mine: Sequence[int], values: Any) -> Any:
    """The values of all rows from those of everyone's: tensors [B, ...], sequences, None, and dicts of these, all by row."""
    if size() == 1:
        return values
    parts = [part for part in gather((list(mine), values)) if part[0]]
    place = sorted(range(sum(len(rows) for rows, _ in parts)), key=[row for rows, _ in parts for row in rows].__getitem__)
    return _in_order([found for _, found in parts], place)


def by_row(costs: Sequence[float], function: Callable[[list[int]], Any]) -> Any:
    """What the function finds for all rows, each process having asked it about its own only. See `gathered` for what it may find."""
    if size() == 1:
        return function(list(range(len(costs))))
    mine, found, error = share(costs), None, None
    try:
        found = function(mine)
    except PreftuneError as raised:
        error = raised
    _raise_together(error)
    return gathered(mine, found)


def costs(rows: Rows) -> list[float]:
    """What the passes of each row cost: its tokens."""
    shared = [len(prompt) if hasattr(prompt, "__len__") else 0 for prompt in rows.prompt]
    return [prompt + tokens for prompt, tokens in zip(shared, rows.response.length.sum(1).tolist(), strict=True)]


def score(policy: Policy, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
    """What the policy scores for all rows, each process having scored its own; without gradient."""
    if size() == 1:
        return policy.score(rows, wants)

    def own(mine: list[int]) -> dict[str, Any] | None:
        if not mine and not sharding():  # in shards every process makes the passes of the others
            return None
        found = policy.score(rows.take(mine), wants)
        return {field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.name not in ("rows", "running")}

    return Scored(rows, **by_row(costs(rows), own))


def _in_order(parts: list[Any], place: list[int]) -> Any:
    if parts[0] is None:
        return None
    if isinstance(parts[0], Mapping):
        return {name: _in_order([part[name] for part in parts], place) for name in parts[0]}
    if hasattr(parts[0], "dtype"):
        import torch

        return torch.cat(parts)[place]
    flat = [value for part in parts for value in part]
    return type(parts[0])(flat[row] for row in place)


# --- values ---------------------------------------------------------------------------------------------------------


def gather(value: T) -> list[T]:
    """Everyone's value, by number. Tensors have to lie on the CPU."""
    if size() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


def same(value: T) -> T:
    """The first process's value, for what may differ in the last bit or between clocks."""
    if size() == 1:
        return value
    import torch.distributed as dist

    told: list[Any] = [value if first() else None]
    dist.broadcast_object_list(told)
    return told[0]  # type: ignore[no-any-return]


def agree(what: str, value: Any) -> None:
    """Refuse to go on where processes were given different things."""
    found = gather(value)
    if any(other != found[0] for other in found):
        raise PreftuneError(
            f"the {size()} processes have different {what}: {', '.join(map(repr, found[:4]))}, needed the same in all of them; "
            "give every machine the same files and the same command"
        )


def once(function: Callable[[], T]) -> T:
    """What the first process finds, told to all; an error in the input is raised by all."""
    if size() == 1:
        return function()
    found, error = None, None
    if first():
        try:
            found = function()
        except PreftuneError as raised:
            error = raised
    _raise_together(error)
    return same(found)  # type: ignore[return-value]


def barrier() -> None:
    """Wait until everyone is here."""
    if size() > 1:
        gather(None)


def in_turn(function: Callable[[], T], *, one_by_one: bool) -> T:
    """Call the function in every process: on each machine one after the other, or in its first process before the others."""
    if size() == 1:
        return function()
    number, count = here()
    turn, turns = (number, count) if one_by_one else (min(number, 1), 2)
    found: list[T] = []
    for now in range(int(largest(turns))):
        error = None
        if now == turn:
            try:
                found.append(function())
            except PreftuneError as raised:
                error = raised
        _raise_together(error)
    return found[0]


def _raise_together(error: PreftuneError | None) -> None:
    """An error of one process is everyone's: nobody waits for a process that has given up."""
    said = next((text for text in gather(None if error is None else str(error)) if text is not None), None)
    if error is not None:
        raise error
    if said is not None:
        raise PreftuneError(said)


def largest(value: float) -> float:
    """The largest of everyone's numbers."""
    return max(gather(value))


# --- shards ---------------------------------------------------------------------------------------------------------


def sharding() -> bool:
    """Whether weights are held in shards: as accelerate's configuration says, and among several processes only."""
    return size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


@cache
def mesh() -> Any:
    """All processes in a row, over which tensors are cut along their first dimension."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (size(),))


def sharded(tensor: Any) -> bool:
    """Whether this process holds a part of the tensor only."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """The numbers that this process holds."""
    return tensor.to_local() if sharded(tensor) else tensor  # type: ignore[no-any-return]


def whole(tensor: Any) -> Tensor:
    """All numbers of a tensor, to all processes."""
    return tensor.full_tensor() if sharded(tensor) else tensor  # type: ignore[no-any-return]


def like(tensor: Tensor, other: Any) -> Tensor:
    """The tensor in shards where the other is, whole where the other is whole."""
    if not sharded(other):
        return whole(tensor)
    if sharded(tensor):
        return tensor
    return cut(tensor.shape, lambda first, last: tensor[first:last])


def cut(shape: Sequence[int], rows: Callable[[int, int], Tensor]) -> Tensor:
    """A tensor of this shape in shards, each process's rows being those from `first` to before `last`."""
    import torch
    from torch.distributed.tensor import DTensor, Shard

    each = -(-shape[0] // size())
    first, last = (min(shape[0], each * at) for at in (rank(), rank() + 1))
    stride = [math.prod(shape[at + 1 :]) for at in range(len(shape))]
    found = rows(first, last).to(mesh().device_type)
    return DTensor.from_local(found, mesh(), [Shard(0)], run_check=False, shape=torch.Size(shape), stride=tuple(stride))


# --- gradients ------------------------------------------------------------------------------------------------------


def summed_gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, added up over the processes in place: 0 counts where no row of a process reached a parameter that others did."""
    if size() == 1:
        return [parameter.grad for parameter in parameters if parameter.grad is not None]
    import torch

    reached = torch.tensor(gather([parameter.grad is not None for parameter in parameters])).any(0).tolist()
    for parameter, somewhere in zip(parameters, reached, strict=True):
        if somewhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    _add_up([gradient for gradient in gradients if not sharded(gradient)])  # of shards the backward pass has done it
    return gradients


def _add_up(tensors: Sequence[Tensor]) -> None:
    """Every tensor becomes the sum of everyone's, in place; small ones travel together."""
    import torch
    import torch.distributed as dist

    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        for tensor, total in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(total.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, of one kind each, and of so many bytes that the next would be too many."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        alike = not bucket or (bucket[0].dtype, bucket[0].device) == (tensor.dtype, tensor.device)
        if bucket and (not alike or sum(other.nbytes for other in bucket) + tensor.nbytes > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def norm(tensors: Sequence[Any]) -> float:
    """The Euclidean norm of all numbers of all tensors, each counted once; what is no shard is the same in every process."""
    import torch

    own = [tensor.to_local() for tensor in tensors if sharded(tensor)]
    whole = [tensor for tensor in tensors if not sharded(tensor)]
    length = lambda some: float(torch.nn.utils.get_total_norm(some)) if some else 0.0
    if not own:
        return length(whole)
    return math.hypot(length(whole), *gather(length(own)))
