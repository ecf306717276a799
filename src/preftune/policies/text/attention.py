"""Attention over a pack, piece by piece, under names of our own in transformers' registry.

A model whose attention goes through that registry needs no change: it is set to "preftune-sdpa" or "preftune-eager", and a pass
whose mask is a `pack_mask` is computed here; any other pass, generation among them, goes on to sdpa or to the model's own eager
code. The mask is the one thing that every model hands from its first layer to its last, untouched, recomputed passes included.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from . import attention_cpu
from .attention_cuda import WAYS, lowered, way_for
from .layout import Segments

if TYPE_CHECKING:
    from .decode import Shared

NAMES = {"sdpa": "preftune-sdpa", "eager": "preftune-eager"}


def use(lm: Any, packed: bool) -> bool:
    """Let a model's attention take packs, or give it back its own; False where it cannot."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import eager_mask, sdpa_mask

    AttentionInterface.register(NAMES["sdpa"], over(lambda module: sdpa_attention_forward))
    AttentionInterface.register(NAMES["eager"], over(own_eager))
    AttentionMaskInterface.register(NAMES["sdpa"], sdpa_mask)
    AttentionMaskInterface.register(NAMES["eager"], eager_mask)
    plain = {ours: theirs for theirs, ours in NAMES.items()}
    now = lm.config._attn_implementation
    wanted = NAMES.get(now, now) if packed else plain.get(now, now)
    if wanted != now:
        lm.config._attn_implementation = wanted
    return wanted in plain


def own_eager(module: Any) -> Any:
    """The eager attention of the file that an attention layer comes from."""
    return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]


def over(plain: Any) -> Any:
    """An attention function in transformers' form that computes packs and leaves everything else to `plain(module)`."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any) -> tuple[Tensor, Any]:
        segments: Segments | None = getattr(attention_mask, "segments", None)
        writing: Shared | None = getattr(attention_mask, "writing", None)
        if segments is None and writing is None:
            return plain(module)(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
        if options.get("s_aux") is not None or options.get("position_bias") is not None:
            raise Unpackable("attention sinks or a bias of positions")
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        window, softcap = options.get("sliding_window"), options.get("softcap")
        query, key, value = lowered(query, key, value)
        if writing is not None and segments is not None:
            writing.keep_prompts(module.layer_idx, key, value)
        if segments is None:
            return writing.attend(module.layer_idx, query, key, value, scale, window, softcap), None  # type: ignore[union-attr]
        if softcap is None and attention_cpu.suits(query, segments, window):
            return attention_cpu.attend(query, key, value, segments, scale), None
        way = WAYS.get(way_for(query, softcap), pieces)
        return way(query, key, value, segments, scale, window, softcap), None

    return attend


class Unpackable(Exception):
    """A layer wants something of its attention that packs do not have; the model is then scored by whole sequences."""


def pack_mask(device: torch.device, segments: Segments | None, writing: Shared | None = None) -> Tensor:
    """A mask of no size that carries the segments of a pack, the samples that follow its prompts, or for one token of these the samples
    alone. Having four dimensions, it keeps transformers from making one of its own: out of the positions it would cut every response
    off from its prompt."""
    mask = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)
    mask.segments, mask.writing = segments, writing  # type: ignore[attr-defined]
    return mask


def pieces(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """[1, N, H, D] for queries [1, H, N, D] and keys and values [1, H_kv, N, D].

    A prompt is one causal call; a response is one call over [prompt | itself], causal from the lower right: its i-th token stands
    at position P + i. One split and one cat a tensor: a slice per piece would make a tensor of full length in the backward pass.
    """
    queries, keys, values = (x.split(segments.lengths, 2) for x in (q, k, v))
    out, at = [], 0
    for _, responses in segments.groups:
        base = at
        out.append(one(queries[at], keys[at], values[at], segments, scale, window, softcap))
        at += 1
        for length in responses:
            if length:
                behind = [torch.cat([x[base], x[at]], 2) for x in (keys, values)]
                out.append(one(queries[at], behind[0], behind[1], segments, scale, window, softcap))
                at += 1
    return torch.cat(out, 2).transpose(1, 2)


def one(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """[1, H, n, D]: n queries that are the last of the S keys."""
    n, s = q.shape[2], k.shape[2]
    near = window is not None and window < s
    if softcap is not None:
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = softcap * torch.tanh(q @ k.transpose(2, 3) * scale / softcap)
        return (scores + mask_of(segments, n, s, window, q)).softmax(-1, dtype=torch.float32).to(q.dtype) @ v
    if n == s and not near:
        return sdpa(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    return sdpa(q, k, v, attn_mask=mask_of(segments, n, s, window, q), scale=scale, enable_gqa=True)


def mask_of(segments: Segments, n: int, s: int, window: int | None, like: Tensor) -> Tensor:
    """[n, S], 0 where a query sees a key and -inf elsewhere; made once for all layers of a pass."""
    key = (n, s, window, like.dtype)
    if key not in segments.made:
        ahead = torch.arange(s, device=like.device) - torch.arange(s - n, s, device=like.device)[:, None]  # key minus query
        seen = ahead <= 0 if window is None else (ahead <= 0) & (ahead > -window)
        segments.made[key] = torch.zeros(n, s, dtype=like.dtype, device=like.device).masked_fill_(~seen, -torch.inf)
    return segments.made[key]  # type: ignore[no-any-return]
