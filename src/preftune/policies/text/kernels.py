"""The softmax behind the head: log-probs of targets from a chunk of logits, which then holds the slope of the loss -logp.

    u = scale * z, or softcap * tanh(scale * z / softcap) where the model caps its logits z
    logp = u[target] - log sum_v exp(u_v)
    -d logp / d z_v = (softmax(u)_v - 1[v = target]) * du_v / dz_v

A chunk is read and written where it stands; no second tensor of its size is made. On a CUDA device one Triton kernel does it
(`kernels_triton.py`, imported when it is first used), elsewhere a few passes of torch over blocks that a processor's cache holds.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

BLOCK = 1 << 20  # logits that the passes on a CPU take together: 4 MiB in float32


@torch.no_grad()
def token_logp_(
    logits: Tensor,
    targets: Tensor,
    *,
    slope: bool,
    softcap: float | None = None,
    scale: float = 1.0,
    collision: bool = False,
    target_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """logp [n] of the targets, and log sum_v p_v^2 [n] where `collision` asks for it; both float32 (float64 from float64 logits).

    logits         [n, V] products of hidden states and head, as they come. They are used up: with `slope` they become
                   -d logp / d logits in their own precision, without it they hold nothing of use
    targets        [n] int64
    target_logits  [n] logits of the targets computed apart in float32, where the rounded ones are not good enough
    """
    if logits.is_cuda and logits.dtype != torch.float64 and find_spec("triton") is not None:  # torch for CUDA on Linux brings it
        from .kernels_triton import launch

        return launch(logits, targets, slope, softcap, scale, collision, target_logits)
    return in_blocks(logits, targets, slope, softcap, scale, collision, target_logits)


def in_blocks(
    logits: Tensor,
    targets: Tensor,
    slope: bool,
    softcap: float | None,
    scale: float,
    collision: bool,
    target_logits: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """`token_logp_` by torch, a block of rows at a time, in float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    logp, second = (logits.new_empty(len(logits), dtype=wide) for _ in range(2))
    apart = None if target_logits is None else cap_(target_logits.to(wide, copy=True), softcap, scale)
    step = max(1, BLOCK // logits.shape[1])
    for start in range(0, len(logits), step):
        here = slice(start, start + step)
        z = cap_(logits[here].to(wide), softcap, scale)  # the chunk itself where that is wide already
        bend = bend_of(z, softcap, scale) if slope else None
        chosen = z.gather(1, targets[here, None])[:, 0] if apart is None else apart[here]
        top = z.amax(1)
        p = z.sub_(top[:, None]).exp_()
        mass = p.sum(1)  # in parts: torch.softmax adds one after the other, and p is then off by 1e-6 and more, all of it to one side
        p.div_(mass[:, None])
        highest = -mass.log()  # log-prob of the likeliest token
        logp[here] = chosen - top + highest
        if collision:
            second[here] = (p * mass[:, None]).mul_(p).sum(1).log() + highest
        if slope:
            p[torch.arange(len(p), device=p.device), targets[here]] -= 1
            if bend is not None:
                p.mul_(bend)
            if p.dtype != logits.dtype:
                logits[here] = p
    return logp, second if collision else None


def cap_(z: Tensor, softcap: float | None, scale: float) -> Tensor:
    """What the softmax sees of raw logits, in their place."""
    if softcap is not None:
        return z.mul_(scale / softcap).tanh_().mul_(softcap)
    return z if scale == 1 else z.mul_(scale)


def bend_of(u: Tensor, softcap: float | None, scale: float) -> Tensor | float | None:
    """du / dz, from u; None where it is 1."""
    if softcap is not None:
        return (u / softcap).square_().neg_().add_(1).mul_(scale)
    return None if scale == 1 else scale
