"""One token of every sample through a decoder in few operations: the layers of Llama and its kin written out.

With few rows the arithmetic of a layer is soon done, and a model's own code spends as long on calling some 150 small operations as
on its products. Written out it takes 40. Which models are of that shape is read off their modules' names; whether they compute what is
written here is found out by the first token, which goes both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from . import layers

if TYPE_CHECKING:
    from .decode import Shared
    from .logprob import Network

PARTS = ("layers", "norm", "embed_tokens", "rotary_emb")
LAYER = {"input_layernorm", "post_attention_layernorm", "self_attn", "mlp"}  # and no other part with weights
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class Block(NamedTuple):
    """A layer's weights, packed for few rows."""

    layer: int
    before: nn.Module  # norms
    after: nn.Module
    heads: int
    kinds: int  #       heads of keys and values
    size: int  #        of a head
    norms: tuple[nn.Module, ...]  # of queries and keys, or none
    qkv: layers.Together
    out: layers.Together
    opened: layers.Together  # gate and up
    down: layers.Together


def blocks(network: Network, rows: int) -> list[Block] | None:
    """The decoder's layers as blocks for so many lines; None where it has another shape. Adapters are added to their weights."""
    decoder = network.parts["decoder"]
    if network.dtype not in layers.PACKABLE or not layers.can_pack() or not all(hasattr(decoder, part) for part in PARTS):
        return None
    found = []
    for i, layer in enumerate(decoder.layers):
        if (made := block(layer, i, rows, network.dtype)) is None:
            return None
        found.append(made)
    return found


def block(layer: Any, index: int, rows: int, dtype: torch.dtype) -> Block | None:
    """A layer as a block; None where it has other parts."""
    children = {name for name, child in layer.named_children() if any(True for _ in child.parameters())}
    if children != LAYER or not all(hasattr(layer.self_attn, name) for name in ATTENTION) or not layers.replaced(layer.mlp, layers.gated):
        return None
    attention, mlp = layer.self_attn, layer.mlp
    norms = [norm for name in ("q_norm", "k_norm") if (norm := getattr(attention, name, None)) is not None]
    if not all(layers.replaced(norm, layers.norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm, *norms)):
        return None
    parts = [
        [layers.weights_of(getattr(of, name)) for name in names]
        for of, names in ((attention, ATTENTION[:3]), (attention, ATTENTION[3:]), (mlp, layers.GATED[:2]), (mlp, layers.GATED[2:3]))
    ]
    if len(norms) == 1 or any(None in some or len({one[1] is None for one in some}) > 1 for some in parts):  # type: ignore[index]
        return None
    qkv, out, opened, down = (layers.Together(some, rows, dtype) for some in parts)  # type: ignore[arg-type]
    heads, kinds = (size // attention.head_dim for size in qkv.sizes[:2])
    around = (layer.input_layernorm, layer.post_attention_layernorm)
    return Block(index, *around, heads, kinds, attention.head_dim, tuple(norms), qkv, out, opened, down)


class Attended(NamedTuple):
    """What a layer's own code asks of its attention."""

    scale: float
    window: int | None
    softcap: float | None


def hidden(of: Sequence[Block], asked: Sequence[Attended], network: Network, writing: Shared, tokens: Tensor, positions: Tensor) -> Tensor:
    """The last hidden states [N, d] for one token [N] of every line; keys and values go to `writing`."""
    decoder = network.parts["decoder"]
    with torch.autocast(tokens.device.type, enabled=False):  # every product says itself what it computes in
        x = decoder.embed_tokens(tokens)
        turned = rotation(of[0], asked[0].scale, decoder.rotary_emb(x[None], positions[None]))
        for block, (_, window, _) in zip(of, asked, strict=True):
            q, k, v = split(block, block.qkv.all(normal(block.before, x)), turned)
            x = block.out.added(writing.mixed(block.layer, q, k, v, window).flatten(1), x)
            gate, up = block.opened.all(normal(block.after, x)).chunk(2, -1)
            x = block.down.added(silu(gate).mul_(up), x)
        return normal(decoder.norm, x)


def rotation(block: Block, scale: float, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What queries and keys are multiplied by, and the halves turned round, [N, H + H_kv, D] float32; queries are scaled besides."""
    cos, sin = (x[0].float()[:, None] for x in angles)
    half = cos.shape[-1] // 2
    sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
    factors = torch.ones(block.heads + block.kinds, 1, device=cos.device)
    factors[: block.heads] = scale
    return cos * factors, sin * factors


def split(block: Block, joint: Tensor, turned: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries [N, H, D], keys and values [N, H_kv, D] of the joint product [N, (H + 2 H_kv) D]; float32, values as they came."""
    h, g, d = block.heads, block.kinds, block.size
    both, values = joint[:, : (h + g) * d].unflatten(1, (h + g, d)), joint[:, (h + g) * d :].unflatten(1, (g, d))
    if block.norms:
        both = torch.cat([normal(norm, x) for norm, x in zip(block.norms, both.split([h, g], 1), strict=True)], 1)
    both = both.float()
    both = torch.addcmul(both * turned[0], both.roll(d // 2, -1), turned[1])
    return both[:, :h], both[:, h:], values


def normal(norm: Any, x: Tensor) -> Tensor:
    """A root mean square norm, in one call."""
    return rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def suits(asked: Sequence[Attended]) -> bool:
    """Whether all layers ask for what is written here."""
    return len({one.scale for one in asked}) == 1 and all(one.softcap is None for one in asked)


def agree(a: Tensor, b: Tensor, precision: torch.dtype) -> bool:
    """Whether two ways give the same hidden states [N, d], up to the rounding of some dozen layers."""
    return bool((a.float() - b.float()).norm() <= 16 * torch.finfo(precision).eps * b.float().norm())
