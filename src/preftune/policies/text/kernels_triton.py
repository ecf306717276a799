"""The kernel behind `kernels.token_logp_` on CUDA devices. Importing this module imports Triton.

One program per row reads it once for the log-sum-exp, block by block with a running maximum, and a second time, now from the
cache of the card, to write the slope over it. All arithmetic is float32 whatever the logits are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...types import PreftuneError

BLOCK = 8192  # logits of a row that a program holds at a time


@triton.jit
def seen(z, scale, softcap, SOFTCAP: tl.constexpr):
    """What the softmax sees of raw logits: u."""
    x = z.to(tl.float32) * scale
    if SOFTCAP:
        e = tl.exp(-2.0 * tl.abs(x / softcap))  # tanh by an exponential that cannot overflow
        x = tl.where(x < 0, -1.0, 1.0) * softcap * (1.0 - e) / (1.0 + e)
    return x


@triton.jit
def bend(z, scale, softcap, SOFTCAP: tl.constexpr):
    """du / dz."""
    x = z.to(tl.float32) * scale
    if SOFTCAP:
        e = tl.exp(-2.0 * tl.abs(x / softcap))
        return scale * 4.0 * e / ((1.0 + e) * (1.0 + e))
    else:
        return tl.zeros_like(x) + scale


@triton.jit
def row_kernel(
    logits, stride, targets, target_logits, logp, second, V, scale, softcap,
    SLOPE: tl.constexpr, COLLISION: tl.constexpr, SOFTCAP: tl.constexpr, APART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """logp[row], second[row] and, in place, -d logp / d logits of one row."""
    row = tl.program_id(0).to(tl.int64)  # rows times vocabulary passes 2^31
    z_row = logits + row * stride
    target = tl.load(targets + row)
    chosen = tl.load(target_logits + row) if APART else tl.load(z_row + target)  # before anything is written over it
    chosen = seen(chosen, scale, softcap, SOFTCAP)

    top, total, squares = -float("inf"), 0.0, 0.0
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        u = seen(tl.load(z_row + at, at < V, 0.0), scale, softcap, SOFTCAP)
        u = tl.where(at < V, u, -float("inf"))
        higher = tl.maximum(top, tl.max(u, 0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)  # nothing but masked tokens so far
        e, keep = tl.exp(u - shift), tl.exp(top - shift)
        total = total * keep + tl.sum(e, 0)
        if COLLISION:
            squares = squares * keep * keep + tl.sum(e * e, 0)
        top = higher
    log_total = tl.log(total)
    tl.store(logp + row, chosen - top - log_total)
    if COLLISION:
        tl.store(second + row, tl.log(squares) - 2.0 * log_total)

    if SLOPE:
        for start in range(0, V, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z = tl.load(z_row + at, at < V, 0.0)
            p = tl.exp(seen(z, scale, softcap, SOFTCAP) - top) / total
            g = (p - tl.where(at == target, 1.0, 0.0)) * bend(z, scale, softcap, SOFTCAP)
            tl.store(z_row + at, g.to(logits.dtype.element_ty), at < V)


def launch(
    logits: Tensor,
    targets: Tensor,
    slope: bool,
    softcap: float | None,
    scale: float,
    collision: bool,
    target_logits: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """`kernels.token_logp_`, one program per row."""
    n, vocabulary = logits.shape
    if logits.stride(1) != 1:
        raise PreftuneError(
            f"logits with strides {logits.stride()}, needed neighbouring numbers in a row: they are changed in place; "
            "give the matrix product as it comes"
        )
    logp, second = (torch.empty(n, dtype=torch.float32, device=logits.device) for _ in range(2))
    block = min(BLOCK, triton.next_power_of_2(vocabulary))
    apart = logp if target_logits is None else target_logits.float().contiguous()
    if n == 0:
        return logp, second if collision else None
    with torch.cuda.device_of(logits):
        row_kernel[(n,)](
            logits, logits.stride(0), targets.contiguous(), apart, logp, second, vocabulary, scale, softcap or 1.0,
            SLOPE=slope, COLLISION=collision, SOFTCAP=softcap is not None, APART=target_logits is not None,
            BLOCK=block, num_warps=max(1, min(16, block // 512)),
        )  # fmt: skip
    return logp, second if collision else None
