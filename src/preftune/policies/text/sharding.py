"""Weights in shards (FSDP2): every process holds a part of each tensor, and a layer is put together while it runs.

Layers are units of their own; the root unit, the `Network`, holds what lies around them (embeddings, last norm, head) and stays
together from a pass to its backward pass, so that the head can be applied outside of the decoder. Gradients come back as shards of
the sum over the processes. `torch.distributed.fsdp.fully_shard` is called directly: accelerate's `prepare` wraps one model with one
optimiser around one loss, and knows no frozen copies that share a network. What accelerate's configuration says is read here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ... import processes
from ...types import PreftuneError
from .memory import Footprint, count

if TYPE_CHECKING:
    from .logprob import Network


def configured() -> Any:
    """accelerate's FSDP settings, if they are such that preftune can follow them all."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    plugin: Any = FullyShardedDataParallelPlugin()
    wrong = {
        f"fsdp_version is {plugin.fsdp_version}": plugin.fsdp_version != 2,
        "fsdp_cpu_ram_efficient_loading is on": plugin.cpu_ram_efficient_loading,
        "fsdp_activation_checkpointing is on": plugin.activation_checkpointing,
        "fsdp_offload_params is on": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "mixed_precision is set": os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no",
    }
    for found, refused in wrong.items():
        if refused:
            raise PreftuneError(
                f"{found} in accelerate's configuration, needed fsdp_version: 2, mixed_precision: 'no', and the others off: precision and "
                "checkpointing are load options of preftune, and processes read the model in turn; see examples/accelerate-8gpu.yaml"
            )
    return plugin


class Shards:
    """The shards of a network, made in place. `trained` are the tensors that train, which an optimiser and copies hold."""

    def __init__(self, network: Network, layers: nn.ModuleList) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self.footprint = in_parts(count(network), network, layers)
        self.reshard, mesh = bool(configured().reshard_after_forward), processes.mesh()
        # float32 weights travel in the precision that autocast computes a layer in; states between the layers stay as they are
        cast = MixedPrecisionPolicy(param_dtype=network.mixed, reduce_dtype=torch.float32, cast_forward_inputs=False)
        whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        for layer in layers:
            fully_shard(layer, reshard_after_forward=self.reshard, mp_policy=cast, mesh=mesh)
        self.root: Any = fully_shard(network, reshard_after_forward=False, mp_policy=whole, mesh=mesh)
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # into which nobody writes
        self.layers: list[Any] = list(layers)
        for unit in (self.root, *self.layers):
            unit.set_gradient_divide_factor(1.0)  # a sum: the learner divides by what the whole batch counts
            unit.set_force_sum_reduction_for_comms(True)
        self.trained: dict[str, Tensor] = {name: p for name, p in network.module.named_parameters() if p.requires_grad}

    def run(self, overlay: Mapping[str, Tensor] | None, call: Callable[[], Any]) -> Any:
        """Call with the weights in place, those of a frozen copy where it has an overlay."""
        self.root.reshard()  # it stays together after a pass whose gradient may be asked for: other weights may stand there by now
        with exchanged(self.trained, overlay or {}):
            try:
                return self.root(call)
            finally:
                if not torch.is_grad_enabled():
                    self.root.reshard()

    @contextmanager
    def together(self) -> Iterator[None]:
        """All layers put together, so that passes need no other process: for sampling, which makes as many as it happens to need."""
        self.root.set_reshard_after_forward(False)
        for layer in self.layers:
            layer.unshard()
        try:
            yield
        finally:
            for layer in self.layers:
                layer.set_reshard_after_forward(self.reshard)
                layer.reshard()


def in_parts(found: Footprint, network: Network, layers: Iterable[nn.Module]) -> Footprint:
    """What one process holds: its part of everything, and the units that are together at a time, which are two layers in the precision
    of a pass, one layer's gradient in that and in float32, and the root with its gradient."""
    parts = lambda number: -(-number // processes.size())
    inside = {id(p) for layer in layers for p in layer.parameters()}
    layer = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    root = [p for p in network.module.parameters() if id(p) not in inside]
    head = 0 if network.mixed is None else network.lm.get_output_embeddings().weight.numel() * found.size
    trains = any(p.requires_grad for layer in layers for p in layer.parameters())
    return replace(
        found,
        weights=parts(found.weights),
        trained=parts(found.trained),
        gradients=parts(found.gradients),
        casts=2 * layer * found.size + sum(p.nbytes for p in root) + head,
        largest=layer * (found.size + 4) * trains + sum(p.nbytes for p in root if p.requires_grad),
    )


@contextmanager
def exchanged(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Iterator[None]:
    """The numbers of two sets of shards change places, and back: functional calls cannot hand shards to a network."""

    @torch.no_grad()
    def exchange() -> None:
        for name, value in theirs.items():
            here, there = (processes.local(tensor) for tensor in (mine[name], value))
            kept = here.clone()
            here.copy_(there)
            there.copy_(kept)

    exchange()
    try:
        yield
    finally:
        exchange()
