"""The output head: log-probabilities of target tokens without a table of all logits.

Logits exist a chunk at a time, and are turned in place into the slope of the loss with respect to them, p - onehot.
What both passes cost together, in units of the head's own product (2 N d V operations):

    the head trains   3 where the slopes of a pass may wait for the backward pass (`room`); otherwise 4, logits are made again
    it is frozen      2: all that is kept is U_t = (p_t - onehot) W, [N, d], and an upstream gradient g gives -g_t U_t
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from .kernels import cap_, token_logp_
from .layers import product

CHUNK = 1 << 23  #  logits that exist at a time otherwise: 32 MiB in float32
KEEP = 128 << 20  # bytes of slopes that wait for the backward pass in any case


@dataclass(frozen=True)
class Head:
    """logits = cap(scale * (h W^T + b)), cap(z) = softcap tanh(z / softcap): what a head computes, in the precision of its products."""

    weight: Tensor  #             [V, d]
    bias: Tensor | None  #        [V]
    scale: float = 1.0
    softcap: float | None = None
    dtype: torch.dtype = torch.float32

    def cast(self) -> Head:
        """The same with weights in that precision."""
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return Head(self.weight.to(self.dtype), bias, self.scale, self.softcap, self.dtype)

    def cap(self, logits: Tensor) -> Tensor:
        """In place."""
        return cap_(logits, self.softcap, self.scale)


def token_logp(
    head: Head, hidden: Tensor, targets: Tensor, *, collision: bool = False, keep: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """log p(target) float32 [N] for hidden states [N, d], and log sum_v p_v^2 [N], without gradient, where it is asked for.

    `keep` bytes of slopes may wait for the backward pass, those of all tokens or none; KEEP if left out.
    """
    weight, bias = head.weight, head.bias
    if not torch.is_grad_enabled():  # a function is told of weights that train, not of passes without gradient
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    logp, second = TokenLogp.apply(hidden, weight, bias, targets, head, collision, KEEP if keep is None else keep)
    return logp, second if collision else None


def chunk(head: Head, hidden: Tensor, targets: Tensor, *, slope: bool, collision: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """For a cast head: log p float32 [n]; where asked for -d log p / d (h W^T + b), [n, V]; log sum_v p_v^2 [n].

    In 16 bits the target's logit is computed apart in float32 (32 times smaller error than the rounded logit).
    """
    logits = product(hidden, head.weight, head.bias)
    apart = None
    if logits.dtype in (torch.bfloat16, torch.float16):
        apart = (hidden.float() * head.weight[targets].float()).sum(1)
        apart = apart if head.bias is None else apart + head.bias[targets].float()
    logp, second = token_logp_(
        logits, targets, slope=slope, softcap=head.softcap, scale=head.scale, collision=collision, target_logits=apart
    )
    return logp, logits, second


def room(tokens: int, width: int, layers: int, size: int) -> int:
    """Bytes of slopes that may wait for the backward pass of so many tokens: KEEP, or a quarter of what the layers keep until then, some
    16 numbers for each of the width."""
    return max(KEEP, 4 * tokens * width * layers * size)


class TokenLogp(torch.autograd.Function):
    """`token_logp`, differentiable in the hidden states and in the head's weights."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, collision: bool, room: int
    ) -> tuple[Tensor, Tensor]:
        states, given, *_ = ctx.needs_input_grad
        ctx.trains = given or ctx.needs_input_grad[2]
        with torch.autocast(hidden.device.type, enabled=False):
            cast, h = head.cast(), hidden.to(head.dtype)
            keep = ctx.trains and len(h) * len(weight) * h.element_size() <= room
            step = len(h) if keep else max(1, CHUNK // len(weight))
            kept = h.new_empty(0, len(weight))
            moves = h.new_empty(h.shape if states and not ctx.trains else (0, h.shape[1]))
            logp, second = [], []
            for a in range(0, len(h), step):
                b = min(a + step, len(h))
                lp, slope, more = chunk(cast, h[a:b], targets[a:b], slope=keep or len(moves) > 0, collision=collision)
                kept = slope if keep else kept
                logp.append(lp)
                second.append(lp if more is None else more)
                if len(moves):
                    moves[a:b] = product(slope, cast.weight.T)
        ctx.head, ctx.step = head, step
        ctx.save_for_backward(hidden, weight, bias, targets, kept, moves)
        both = torch.cat(logp), torch.cat(second)
        ctx.mark_non_differentiable(both[1])
        return both

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, targets, kept, moves = ctx.saved_tensors
        if not ctx.trains:
            return (moves * -g[:, None]).to(hidden.dtype), *[None] * 6
        with torch.autocast(hidden.device.type, enabled=False):
            cast = Head(weight, bias, ctx.head.scale, ctx.head.softcap, ctx.head.dtype).cast()
            h = hidden.to(cast.dtype)
            to_hidden = torch.empty_like(h)
            to_weight = to_bias = None
            for a in range(0, len(h), ctx.step):
                b = min(a + ctx.step, len(h))
                slope = kept if len(kept) else chunk(cast, h[a:b], targets[a:b], slope=True, collision=False)[1]
                up = -g[a:b, None].to(cast.dtype)
                to_hidden[a:b] = product(slope, cast.weight.T).mul_(up)
                to_weight = added(to_weight, slope.T, up * h[a:b], weight.dtype)
                to_bias = None if bias is None else added(to_bias, slope.T, up, bias.dtype)
        return to_hidden.to(hidden.dtype), to_weight, None if to_bias is None else to_bias[:, 0], *[None] * 4


def added(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """total + a b, summed in `dtype`."""
    if total is None:
        return (a @ b).to(dtype)
    return total.addmm_(a, b) if a.dtype == dtype else total.add_(a @ b)


class Tied:
    """A tensor that is embedding and head at once, for the passes of one measurement. Its gradient is that of the head, with the rows of
    the embeddings added in place: autograd alone would make a second table of zeros for them, and add the two tables up.

    The head of every pass must read `weight`, and every pass look its tokens up by `look_up`.
    """

    def __init__(self, table: nn.Embedding) -> None:
        self.table = table
        self.rows: list[tuple[Tensor, Tensor]] = []  # token ids [N] and the slopes [N, d] of their embeddings
        self.weight, self.ticket = TiedWeight.apply(table.weight, self.rows)

    def look_up(self, ids: Tensor) -> Tensor:
        """Embeddings [N, d] of tokens [N]."""
        return LookUp.apply(self.ticket, self.table.weight.detach(), ids, self.table.padding_idx, self.rows)  # type: ignore[no-any-return]


class TiedWeight(torch.autograd.Function):
    """The weight for the head, and a tensor of no size for look-ups: its backward pass comes after those of all of them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        ctx.rows, ctx.shape = rows, weight.shape
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.new_empty(0)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, ticket: Tensor | None) -> tuple[Tensor | None, None]:  # type: ignore[override]
        if g is None and ctx.rows:
            g = ctx.rows[0][1].new_zeros(ctx.shape)
        for ids, slopes in ctx.rows:
            g.index_add_(0, ids, slopes.to(g.dtype))  # type: ignore[union-attr]
        ctx.rows.clear()
        return g, None


class LookUp(torch.autograd.Function):
    """Rows of a table, whose slopes are put down for `TiedWeight`."""

    @staticmethod
    def forward(ctx: Any, ticket: Tensor, weight: Tensor, ids: Tensor, padding: int | None, rows: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.rows = padding, rows
        return embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        [ids] = ctx.saved_tensors
        counts = slice(None) if ctx.padding is None else ids != ctx.padding  # as torch has it, a padding token trains nothing
        ctx.rows.append((ids[counts], g[counts]))
        return g.new_zeros(0), *[None] * 4
