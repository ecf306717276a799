"""Attention of a pack on a CPU by blocks of queries and plain matrix products.

torch's flash kernel for CPUs masks what a block must not see after having computed it, and its backward pass in 16 bits takes
longer than all else; here a block of queries meets only the keys up to its last one. Nothing but the output is kept: the backward
pass makes the probabilities of a block again, as flash kernels do. Scores are rounded to the precision of the inputs before the
softmax, whose sums are float32; measured against float64, the gradients are as near as the flash kernel's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .layout import Segments

BLOCK = 64  #  queries at a time
LONG = (
    256  #  tokens of a prompt and a response from which on blocks are faster than the flash kernel in float32; in 16 bits they always are
)


def suits(q: Tensor, segments: Segments, window: int | None) -> bool:
    """Whether blocks are the faster way, and exact: all keys before a query are seen."""
    longest = max(prompt + max(responses, default=0) for prompt, responses in segments.groups)
    everything = window is None or window >= longest
    return q.device.type == "cpu" and everything and (longest >= LONG or q.dtype in (torch.bfloat16, torch.float16))


def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> Tensor:
    """[1, N, H, D] for queries [1, H, N, D] and keys and values [1, H_kv, N, D]."""
    return Blocks.apply(q[0], k[0], v[0], segments, scale)[None]  # type: ignore[no-any-return]


def sequences(segments: Segments) -> Iterator[tuple[int, range, range]]:
    """Of each piece, a prompt or a response: the number of keys before its own, where these stand, and where its own tokens stand."""
    start = 0
    for prompt, responses in segments.groups:
        shared = range(start, start + prompt)
        yield 0, range(0), shared
        start += prompt
        for length in responses:
            if length:
                yield prompt, shared, range(start, start + length)
            start += length


def keys_of(x: Tensor, before: range, own: range) -> Tensor:
    """[H_kv, S, D] of a piece: the prompt's, then its own."""
    mine = x[:, own.start : own.stop]
    return torch.cat([x[:, before.start : before.stop], mine], 1) if before else mine


def probabilities(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """[H_kv, G n, S] for scaled queries [H_kv, G n, D], of which the last key is the last query's own."""
    n = len(mask)
    scores = torch.bmm(queries, keys.transpose(1, 2))
    scores.view(-1, n, scores.shape[2])[:, :, -n:].add_(mask)
    return torch.softmax(scores, -1, out=scores)


def heads_first(x: Tensor, groups: int) -> Tensor:
    """[n, H, D] -> [H_kv, G n, D]: queries that share keys in one matrix."""
    n, h, d = x.shape
    return x.transpose(0, 1).reshape(groups, h // groups * n, d)


def blocks(own: range) -> Sequence[range]:
    """The queries of a piece, some at a time."""
    return [range(a, min(a + BLOCK, own.stop)) for a in range(own.start, own.stop, BLOCK)]


class Blocks(torch.autograd.Function):
    """`attend` for [H, N, D], [H_kv, N, D] twice -> [N, H, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> Tensor:
        (h, n, d), groups = q.shape, len(k)
        out = q.new_empty(n, h, d)
        future = q.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)
        with torch.autocast("cpu", enabled=False):
            scaled = q.transpose(0, 1) * scale
            for p, before, own in sequences(segments):
                keys, values = keys_of(k, before, own), keys_of(v, before, own)
                for block in blocks(own):
                    some, upto = len(block), p + block.stop - own.start
                    queries = heads_first(scaled[block.start : block.stop], groups)
                    law = probabilities(queries, keys[:, :upto], future[:some, :some])
                    out[block.start : block.stop] = torch.bmm(law, values[:, :upto]).view(h, some, d).transpose(0, 1)
        ctx.save_for_backward(q, k, v, out)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        q, k, v, out = ctx.saved_tensors
        (h, n, d), groups = q.shape, len(k)
        to_q = q.new_empty(n, h, d)
        to_k, to_v = (torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
        future = q.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)
        with torch.autocast("cpu", enabled=False):
            scaled = q.transpose(0, 1) * ctx.scale
            inner = (g * out).sum(2, dtype=to_k.dtype).to(q.dtype)  # [N, H], sum over keys of p dp
            for p, before, own in sequences(ctx.segments):
                keys, values = keys_of(k, before, own), keys_of(v, before, own)
                for block in blocks(own):
                    some, upto, here = len(block), p + block.stop - own.start, slice(block.start, block.stop)
                    queries, up = heads_first(scaled[here], groups), heads_first(g[here], groups)
                    law = probabilities(queries, keys[:, :upto], future[:some, :some])
                    slope = torch.bmm(up, values[:, :upto].transpose(1, 2))
                    slope.sub_(inner[here].T.reshape(groups, -1, 1)).mul_(law)
                    to_q[here] = torch.bmm(slope, keys[:, :upto]).view(h, some, d).transpose(0, 1)
                    for total, part in ((to_k, torch.bmm(slope.transpose(1, 2), queries)), (to_v, torch.bmm(law.transpose(1, 2), up))):
                        total[:, before.start : before.stop] += part[:, :p]
                        total[:, own.start : block.stop] += part[:, p:]
        return to_q.transpose(0, 1).mul_(ctx.scale), to_k.to(k.dtype), to_v.to(v.dtype), None, None
