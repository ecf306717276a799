"""How much memory a step takes, and from it how many tokens go through the model at once.

`count` asks the model itself: it runs two short sequences and adds up what autograd keeps of each layer, whatever the
architecture, the adapter or the precision. `llama` says the same on paper, for models that are not at hand. `plan` is
arithmetic on either: it changes memory and speed, never what is learned.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ... import processes
from .head import CHUNK, room

if TYPE_CHECKING:
    from .logprob import Network

PROBE = 24  #          tokens of a prompt, and of each of the two responses behind it, that are counted
USED = 0.9  #          share of the free memory that is planned with: allocators leave gaps
LEAST = 1024  #        tokens: rather compute activations of some layers again than go below
HOLES = 0.6  #         of the activations, that the C library holds besides on a CPU: freed blocks between blocks in use
LIMIT = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Footprint:
    """What a model holds in bytes, apart from the optimiser and from frozen copies."""

    weights: int  #               of the whole model, quantised ones as they are stored
    trained: int  #               numbers that train
    gradients: int  #             of these, in their own precision
    largest: int  #               the gradient of the largest tensor that trains, which is made before it is added to what is there
    layers: tuple[float, ...]  #  a token's activations that autograd keeps, layer by layer; 0 where no gradient passes
    entrance: float  #            a token's hidden state: all that is kept of a layer whose activations are computed again
    around: float  #              a token's activations outside the layers: into the final norm, out of it, and what the head reads
    casts: int  #                 weights in the precision of a pass, held from its beginning to its end
    vocabulary: int
    head_trains: bool
    size: int  #                  of a number in the precision of a pass
    a_pass: int = 1 << 14  #      tokens that go through at once; a micro-batch with more of them takes several passes

    def head(self, tokens: int) -> int:
        """As if every token were scored: the slopes that wait for the backward pass if the head trains and they may, otherwise the
        logits at hand at one time, twice in float32 and in 16 bits besides."""
        passes, logits = max(1, math.ceil(tokens / self.a_pass)), tokens * self.vocabulary
        may = passes * room(math.ceil(tokens / passes), round(self.entrance / self.size), len(self.active()), self.size)
        if self.head_trains and logits * self.size <= may:
            return logits * self.size
        return min(logits, CHUNK) * (8 if self.size == 4 else 12)

    def active(self) -> list[float]:
        """The layers that keep something, the lowest first."""
        return [layer for layer in self.layers if layer > self.entrance]

    def kept(self, checkpointed: int) -> float:
        """Of a token from the forward pass to the backward pass."""
        active = self.active()
        idle = sum(layer for layer in self.layers if layer <= self.entrance)
        return idle + sum(active[checkpointed:]) + self.entrance * min(checkpointed, len(active)) + self.around

    def activations(self, tokens: int, checkpointed: int) -> int:
        """The most that is there at one time. When the backward pass begins, everything kept and the head or the gradients of a layer;
        later the inputs of the checkpointed layers, of which one is there again, with its gradients."""
        active = self.active()
        layer = max(active, default=0.0)
        begins = self.kept(checkpointed) * tokens + max(self.head(tokens), layer * tokens * (2 if checkpointed >= len(active) else 1))
        later = (self.entrance * checkpointed + self.around + 2 * layer) * tokens if checkpointed else 0
        return round(max(begins, later))


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a run, the token budget of a micro-batch, and the layers whose activations are computed again.

    peak = weights + gradients + optimiser + copies + states + passing + activations + holes
    """

    device: str
    available: int  #       for the whole run, the model included
    weights: int
    gradients: int
    optimiser: int
    copies: int  #          frozen policies, and what a method's step remembers
    states: int  #          of a frozen trunk, kept from epoch to epoch
    passing: int  #         weights cast for a pass, and the gradient of one tensor before it is added
    per_token: int  #       activations kept of a token, as planned
    per_layer: int  #       of these the largest layer's, where it is not computed again
    head: int
    tokens: int  #          the budget of a micro-batch
    expected: int  #        tokens of the largest micro-batch that the data fill
    activations: int  #     of that
    holes: int  #           that the allocator leaves, on a CPU
    layers: int  #          that keep activations
    checkpointed: int  #    the lowest so many of them are computed again
    peak: int

    @property
    def fits(self) -> bool:
        """Whether the run stays within what there is."""
        return self.peak <= self.available

    def applies(self, network: Network) -> None:
        """Let a model work by this plan."""
        from .model import enable_checkpointing

        network.budget = self.tokens if network.tokens_per_batch else 0
        if network.checkpointing is None:
            enable_checkpointing(network, self.checkpointed)


def plan(
    found: Footprint,
    *,
    state: float,
    copies: float,
    states: int,
    available: int,
    most: int,
    longest: int,
    filled: int,
    checkpointing: int | None = None,
    device: str = "cpu",
) -> MemoryPlan:
    """The largest budget up to `most` tokens that fits, with as few checkpointed layers as leave a budget worth a pass.

    state          bytes that the optimiser keeps of a number that trains
    copies         frozen copies of what trains, in numbers of them
    states         bytes of kept trunk states
    longest        tokens of the longest row, which goes through whole
    filled         tokens of a whole batch: a micro-batch never has more
    checkpointing  the layers if somebody chose them
    """
    optimiser, copied, passing = round(found.trained * state), round(copies * found.gradients), found.casts + found.largest
    fixed = found.weights + found.gradients + optimiser + copied + states + passing
    layers, most, share = len(found.active()), max(most, longest), HOLES if device == "cpu" else 0.0
    choices = range(layers + 1) if checkpointing is None else [min(checkpointing, layers)]

    def budget(checkpointed: int) -> int:
        return bisect_right(range(1, most + 1), available - fixed, key=lambda n: round((1 + share) * found.activations(n, checkpointed)))

    least = max(longest, min(LEAST, most))
    chosen = next((k for k in choices if budget(k) >= least), choices[-1])
    tokens = max(budget(chosen), longest)
    expected = max(longest, min(tokens, filled))
    activations = found.activations(expected, chosen)
    return MemoryPlan(
        device=device,
        available=available,
        weights=found.weights,
        gradients=found.gradients,
        optimiser=optimiser,
        copies=copied,
        states=states,
        passing=passing,
        per_token=round(found.kept(chosen)),
        per_layer=round(max(found.active(), default=0)),
        head=found.head(expected),
        tokens=tokens,
        expected=expected,
        activations=activations,
        holes=round(share * activations),
        layers=layers,
        checkpointed=chosen,
        peak=fixed + activations + round(share * activations),
    )


def relief(made: MemoryPlan, trained: int) -> str:
    """What would make a plan smaller that does not fit, with numbers."""
    size = lambda count: f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
    ways = []
    if made.optimiser > 4 * trained:
        ways.append(f"optimiser=adamw8bit saves {size(made.optimiser - 2.03 * trained)}")
    if made.gradients > made.weights // 2:
        ways.append(f"train=lora about {size(made.gradients + made.optimiser + made.copies)}, and a quantised base (quantize=4) more")
    if made.checkpointed < made.layers:
        ways.append("checkpointing=true most of the activations")
    ways.append(f"shorter max_prompt or max_response {size(made.per_token * 1000)} for every 1000 tokens of the longest row")
    return (
        f"a step holds {size(made.peak)}, of which {size(made.activations + made.holes)} are activations of {made.expected} tokens, but "
        f"{size(made.available)} can be had on {made.device}, needed a step that fits; {', '.join(ways)}"
    )


def told(made: MemoryPlan) -> list[str]:
    """What of a plan is worth a line where nobody asked for it."""
    if not made.checkpointed:
        return []
    return [f"memory: {made.checkpointed} of {made.layers} layers compute their activations again, {made.tokens} tokens a pass"]


# --- the device -----------------------------------------------------------------------------------------------------


def keep_freed(threshold: int = 1 << 30) -> None:
    """Let the C library keep what a step frees for the next one, where it is glibc's and its own variables do not say otherwise: given
    back to the system each time, a step of a small model spends a twentieth of its time on being given the same memory again. Blocks
    from `threshold` bytes on are still given back."""
    told = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ)
    if not told and sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, threshold)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free(device: torch.device) -> int:
    """Bytes that every process can still get, so that all plan alike: what its own allocator keeps idle counts as free."""
    return int(-processes.largest(-_free(device)))


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil

    return min(int(psutil.virtual_memory().available), confined()) // processes.here()[1]


def confined() -> int:
    """What is left of a container's limit; very much where there is none."""
    limit, used = LIMIT / "memory.max", LIMIT / "memory.stat"
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return sys.maxsize
    held = dict(line.split() for line in used.read_text().splitlines())
    return max(0, int(limit.read_text()) - int(held.get("anon", 0)))


# --- counting -------------------------------------------------------------------------------------------------------


def count(network: Network) -> Footprint:
    """Two packs, one twice as long: the difference is what their tokens cost, the rest does not depend on tokens. Weights in shards
    were counted before they were cut: passes of one process alone would wait for the others."""
    if network.shards is not None:
        return network.shards.footprint
    parameters = list(network.module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    most = min(PROBE, (getattr(network.lm.config, "max_position_embeddings", None) or PROBE) // 4)
    tokens = most // 2 * (3 if network.engine == "fast" else 4)  # what the second has more than the first
    short, long = kept(network, most // 2), kept(network, most // 2 * 2)
    per_token = [(b - a) / tokens for a, b in zip(short, long, strict=True)]
    casts = sum(max(0, 2 * a - b) for a, b in zip(short, long, strict=True))
    size, output = torch.finfo(network.dtype).bits // 8, network.lm.get_output_embeddings()
    return Footprint(
        weights=sum(p.nbytes for p in parameters),
        trained=sum(p.numel() for p in trained),
        gradients=sum(p.nbytes for p in trained),
        largest=max((p.nbytes for p in trained), default=0),
        layers=tuple(per_token),
        entrance=network.width * size,
        around=3 * network.width * 4,
        casts=casts + (0 if network.mixed is None else output.weight.numel() * size),
        vocabulary=output.weight.shape[0],
        head_trains=network.head_trains(),
        size=size,
        a_pass=network.tokens_per_batch or 1,
    )


def kept(network: Network, part: int) -> list[int]:
    """Bytes that autograd keeps of each layer for a prompt and two responses of `part` tokens each: distinct storages, parameters
    left out."""
    layers = layers_of(network.parts["decoder"])
    found, place = [0] * len(layers), Place()
    seen = {p.untyped_storage().data_ptr() for p in network.module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            if place.layer is not None:
                found[place.layer] += storage.nbytes()
        return tensor

    size = network.lm.get_input_embeddings().weight.shape[0]
    tokens = lambda first, count: tuple(i % size for i in range(first, first + count))
    prompt, one, other = tokens(0, part), tokens(0, part + 1), tokens(1, part + 1)  # a response's last token is not fed
    with apart(network), place.watched(layers), torch.enable_grad(), network.autocast():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            held = network.measure([(prompt, one), (prompt, other)])  # as long as this lives, no storage is used twice
        del held
    return found


class Place:
    """Which layer is running."""

    layer: int | None = None

    @contextmanager
    def watched(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Follow the layers while they run."""

        def at(layer: int | None) -> Any:
            def enter(*_: Any) -> None:
                self.layer = layer

            return enter

        hooks = [layer.register_forward_pre_hook(at(i)) for i, layer in enumerate(layers)]
        hooks += [layer.register_forward_hook(at(None)) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def apart(network: Network) -> Iterator[None]:
    """Leave no trace of a probe: neither kept states nor checkpointing, which would hide what a layer keeps."""
    from .logprob import Store

    before = network.store, network.checkpointing, network.tokens_per_batch
    network.store, network.checkpointing, network.tokens_per_batch = Store(before[0].limit), 0, 4 * PROBE
    try:
        yield
    finally:
        network.store, network.checkpointing, network.tokens_per_batch = before


def layers_of(decoder: nn.Module) -> Sequence[nn.Module]:
    """The repeated blocks of a decoder; the decoder itself where they are no list of modules."""
    return next((list(child) for child in decoder.children() if isinstance(child, nn.ModuleList)), [decoder])


def repeatable(network: Network) -> bool:
    """Whether the layers can compute their activations again."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return all(isinstance(layer, GradientCheckpointingLayer) for layer in layers_of(network.parts["decoder"]))


PRECISIONS = {  # bytes of a weight, of its gradient, of its cast; of d in a layer's activations, and of any other number there
    "float32": (4, 4, 0, 16, 4),
    "mixed": (4, 4, 2, 18, 2),  #     float32 weights, passes in bfloat16 by autocast, which casts what enters each linear layer
    "bfloat16": (2, 2, 0, 8, 2),
}


def llama(
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: int,
    vocabulary: int,
    tied: bool = False,
    precision: str = "float32",
) -> Footprint:
    """A Llama-shaped model on paper, trained whole, with packs and an attention that keeps what comes in and what goes out.

    A token's activations in a layer (d width, q = heads * head_dim, k = kv_heads * head_dim, f ffn), in float32 4 bytes each:
        two norms       2 (2 d + 1)    what comes in, its scale, and what goes out
        attention       2 q + 2 k      q, k and v after rotation, and the output
        gated linear    3 f            gate, up, and what goes out
    In 16 bits q, k and f have 2 bytes, and so has what enters and leaves a norm. With autocast 4 bytes enter it, and every linear
    layer keeps a cast of its own of what leaves it. Scales always have 4.
    Flash kernels keep a log-sum-exp of every head besides, and where they run piece by piece the keys and values of
    [prompt | response] again; `count` sees that.
    """
    weight, gradient, cast, norms, inner = PRECISIONS[precision]
    q, k = heads * head_dim, kv_heads * head_dim
    block, table = 2 * width * (q + k) + 3 * width * ffn, vocabulary * width
    numbers = layers * (block + 2 * width) + width + (1 if tied else 2) * table
    layer = norms * width + 8 + inner * (2 * q + 2 * k + 3 * ffn)
    size = 4 if precision == "float32" else 2
    return Footprint(
        weights=weight * numbers,
        trained=numbers,
        gradients=gradient * numbers,
        largest=gradient * table,
        layers=(float(layer),) * layers,
        entrance=float(size * width),
        around=12.0 * width,
        casts=cast * (block * layers + table),
        vocabulary=vocabulary,
        head_trains=True,
        size=size,
    )
