"""Attention of a pack (`layout`) on CUDA devices, in one call: every prompt once, its responses behind it, several prompts back to back.

A token sees what stands before it in its own sequence, that is in its prompt and its own response, and nothing else. A sliding
window of w lets it see w positions, its own among them; the position of a response's token counts from the start of its prompt.

Two ways give this, `pick` says which, and a third is what both are tested against:

"varlen"    one call of torch's variable-length flash kernel on gathered keys. A prompt and its first response are one causal
            piece of the pack as they stand. Of each further response the queries are a piece, and its keys are the prompt's,
            copied, with its own behind them: the kernel's causal mask is aligned at the lower right, where the last query meets
            the last key. The copies' gradients are added up in the backward pass, by index_add in float32 and in no fixed order:
            as with the kernel's own, their last bits differ from run to run
"flex"      FlexAttention with a block mask: for capped scores and for float32, which the flash kernel does not take
"dense"     an explicit mask [N, N]. Any device and precision, and as much memory as it says
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...types import PreftuneError
from .layout import Segments

Groups = Sequence[tuple[int, Sequence[int]]]  # of each prompt its tokens, and those of each response, in the order of the pack
Sees = Callable[[Tensor, Tensor], Tensor]  #    places of queries and of keys -> which sees which


@dataclass(frozen=True)
class Gathered:
    """The pieces of a pack for a variable-length kernel. Queries stand in the pack's order, so they need no gathering."""

    keys: Tensor  #          int64 [M] places in the pack of the keys of all pieces, piece by piece
    query_starts: Tensor  #  int32 [S + 1] where each piece's queries start, and the end
    key_starts: Tensor  #    int32 [S + 1]
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, groups: Groups, device: torch.device) -> Gathered:
        """The `pieces` of the pack, one behind the other."""
        queries, keys = zip(*pieces(groups), strict=True)
        lengths = [sum(map(len, parts)) for parts in keys]
        index = torch.cat([torch.arange(part.start, part.stop) for parts in keys for part in parts])
        return cls(index.to(device), starts(queries, device), starts(lengths, device), max(queries), max(lengths))


def pieces(groups: Groups) -> Iterator[tuple[int, list[range]]]:
    """The number of queries and the places of the keys of each piece. Responses without tokens are none."""
    start = 0
    for prompt, responses in groups:
        first, *others = [tokens for tokens in responses if tokens] or [0]
        end = start + prompt + first
        yield prompt + first, [range(start, end)]
        for tokens in others:
            yield tokens, [range(start, start + prompt), range(end, end + tokens)]
            end += tokens
        start = end


def starts(lengths: Sequence[int], device: torch.device) -> Tensor:
    """int32 [S + 1]: 0 and the running sums."""
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


@dataclass(frozen=True)
class Places:
    """What each token of a pack is, int64 [N] each."""

    group: Tensor  #     number of its prompt
    branch: Tensor  #    0 in a prompt, 1, 2, ... in its responses
    position: Tensor  #  from the start of its prompt

    @classmethod
    def of(cls, groups: Groups, device: torch.device) -> Places:
        """Three lists, token by token."""
        tokens = [
            (number, branch, position)
            for number, (prompt, responses) in enumerate(groups)
            for branch, (start, length) in enumerate([(0, prompt), *((prompt, tokens) for tokens in responses)])
            for position in range(start, start + length)
        ]
        return cls(*torch.tensor(tokens).reshape(-1, 3).T.to(device).contiguous())

    def sees(self, window: int | None) -> Sees:
        """Whether a query sees a key, given their places in the pack."""
        group, branch, position = self.group, self.branch, self.position

        def sees(query: Tensor, key: Tensor) -> Tensor:
            back = position[query] - position[key]
            same = (group[query] == group[key]) & ((branch[key] == 0) | (branch[key] == branch[query]))
            return same & (back >= 0) & (back < window) if window else same & (back >= 0)

        return sees


def places(segments: Segments, device: torch.device) -> Places:
    """Of a pack."""
    return kept(segments, (Places, device), lambda: Places.of(segments.groups, device))  # type: ignore[no-any-return]


def block_mask(segments: Segments, window: int | None, device: torch.device) -> Any:
    """FlexAttention's mask of a pack; N^2 bytes while it is made."""
    from torch.nn.attention.flex_attention import create_block_mask

    sees, n = places(segments, device).sees(window), len(segments)
    make = lambda: create_block_mask(lambda b, h, query, key: sees(query, key), None, None, n, n, device=device)
    return kept(segments, ("blocks", window, device), make)


def kept(segments: Segments, key: Any, make: Callable[[], Any]) -> Any:
    """Made once for a pack, when first asked for, and used by all layers."""
    if key not in segments.made:
        segments.made[key] = make()
    return segments.made[key]


def check(q: Tensor, k: Tensor, segments: Segments) -> None:
    """A kernel would read beyond its keys without a word."""
    n = len(segments)
    if q.shape[0] != 1 or q.shape[2] != n or k.shape[2] != n:
        raise PreftuneError(
            f"queries {tuple(q.shape)} and keys {tuple(k.shape)} were given for a pack of {n} tokens; "
            "[1, heads, tokens, d] is needed; give a pack as one sequence, without padding and without kept keys"
        )


# --- the three ways: q [1, H, N, D], k and v [1, H_kv, N, D], H a multiple of H_kv -> [1, N, H, D], contiguous ------------


def attend_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
    softcap: float | None,
    kernel: Callable[..., Any] | None = None,
) -> Tensor:
    """By one call of `torch.nn.attention.varlen.varlen_attn`, or of a kernel with its signature."""
    if softcap is not None:
        raise PreftuneError(
            f"scores capped at {softcap} were asked of the variable-length kernel, which knows no caps; 'flex' or 'dense' is needed; "
            "let `pick` choose"
        )
    check(q, k, segments)
    q, k, v = lowered(q, k, v)
    g: Gathered = kept(segments, (Gathered, q.device), lambda: Gathered.of(segments.groups, q.device))
    out = (kernel or varlen())(
        q[0].transpose(0, 1),
        take(k[0].transpose(0, 1), g.keys),
        take(v[0].transpose(0, 1), g.keys),
        g.query_starts,
        g.key_starts,
        g.longest_query,
        g.longest_key,
        scale=scale,
        window_size=(window - 1 if window and window < g.longest_key else -1, 0),  # keys to the left besides the token's own
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[None].contiguous()


def attend_flex(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """By FlexAttention, compiled on CUDA. On a CPU it runs uncompiled and has no backward pass."""
    check(q, k, segments)
    q, k, v = lowered(q, k, v)
    options: dict[str, Any] = {"score_mod": None if softcap is None else capped(softcap), "scale": scale}
    if q.is_cuda:  # the kernel for decoding, which short rows would get, wants a power of two of heads that share keys
        options["kernel_options"] = {"BACKEND": "TRITON"}
    run = compiled_flex() if q.is_cuda else flex()
    out: Tensor = run(q, k, v, block_mask=block_mask(segments, window, q.device), enable_gqa=q.shape[1] != k.shape[1], **options)
    return out.transpose(1, 2).contiguous()


def attend_dense(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """By the formula: softmax(softcap * tanh(scale q k / softcap)) v over what each token sees."""
    check(q, k, segments)
    share = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = q @ keys.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    at = torch.arange(len(segments), device=q.device)
    seen = places(segments, q.device).sees(window)(at[:, None], at[None])
    return (scores.masked_fill(~seen, -torch.inf).softmax(3) @ values).transpose(1, 2).contiguous()


WAYS: dict[str, Callable[..., Tensor]] = {"varlen": attend_varlen, "flex": attend_flex, "dense": attend_dense}


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In autocast's precision, where that is on: its list of operations does not hold these kernels, and norms of queries in
    float32 weights give float32."""
    kind = tensors[0].device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors)


class Take(torch.autograd.Function):
    """x[index], whose gradient is added up in float32: a prompt's keys have one share from each of its responses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        """[N, ...] -> [M, ...]."""
        ctx.save_for_backward(index)
        ctx.n = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """[M, ...] -> [N, ...]."""
        (index,) = ctx.saved_tensors
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        return wide.new_zeros(ctx.n, *wide.shape[1:]).index_add_(0, index, wide).to(gradient.dtype), None


def take(x: Tensor, index: Tensor) -> Tensor:
    """x[index]; see `Take`."""
    return Take.apply(x, index)  # type: ignore[no-any-return]


def varlen() -> Any:
    """The variable-length kernel as it comes."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def flex() -> Any:
    """FlexAttention as it comes."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@functools.cache
def compiled_flex() -> Any:
    """FlexAttention, compiled once for the process."""
    return torch.compile(flex())


@functools.cache
def capped(softcap: float) -> Any:
    """The change of scores that caps them; one function for all layers, so that nothing is compiled twice."""
    return lambda score, b, h, query, key: softcap * torch.tanh(score / softcap)


# --- which way ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Capabilities:
    """What a device and the libraries around it can do."""

    compute: tuple[int, int] = (0, 0)  # of the card
    varlen: bool = False  #               torch has the kernel, and it gives the right numbers on a probe
    flex: bool = False  #                 torch has the compiler behind FlexAttention


@dataclass(frozen=True)
class Choice:
    """A way of attending, and why it is that one."""

    way: str  #   a name in WAYS, or "segments": another call for every piece, which any device can do
    note: str


def pick(device: torch.device, capabilities: Capabilities, *, dtype: torch.dtype, head_dim: int, softcap: float | None = None) -> Choice:
    """The fastest way that is exact for such heads on such a device."""
    if device.type != "cuda":
        return Choice("segments", f"attention by segments: {device.type} has no kernel for packs")
    if capabilities.compute < (8, 0):
        return Choice("segments", f"attention by segments: compute capability {'.'.join(map(str, capabilities.compute))}, kernels need 8.0")
    hindrances = {
        "scores are capped": softcap is not None,
        f"{str(dtype).removeprefix('torch.')} where 16 bits are needed": dtype not in (torch.bfloat16, torch.float16),
        f"heads of size {head_dim} where a multiple of 8 up to 256 is needed": head_dim % 8 != 0 or head_dim > 256,
        "torch's kernel is missing or aligns its causal mask elsewhere": not capabilities.varlen,
    }
    hindrance = next((reason for reason, holds in hindrances.items() if holds), None)
    if hindrance is None:
        return Choice("varlen", "variable-length flash attention on gathered keys")
    if capabilities.flex and dtype != torch.float64:
        return Choice("flex", f"FlexAttention: {hindrance}")
    more = "FlexAttention takes no float64" if capabilities.flex else "there is no Triton to compile FlexAttention"
    return Choice("segments", f"attention by segments: {hindrance}, and {more}")


def way_for(q: Tensor, softcap: float | None) -> str:
    """What `pick` says for these queries."""
    return pick(q.device, capabilities_of(q.device), dtype=lowered(q)[0].dtype, head_dim=q.shape[3], softcap=softcap).way


@functools.cache
def capabilities_of(device: torch.device) -> Capabilities:
    """Asked once for a device."""
    if device.type != "cuda":
        return Capabilities()
    compute = torch.cuda.get_device_capability(device)
    return Capabilities(compute, compute >= (8, 0) and varlen_is_right(device), find_spec("triton") is not None)


@torch.no_grad()
def varlen_is_right(device: torch.device, kernel: Callable[..., Any] | None = None) -> bool:
    """Whether the variable-length kernel is there and gives what the formula gives, with a window and without.

    A causal mask aligned at the upper left would let the second response see too little, without a word.
    """
    if kernel is None and not (find_spec("torch.nn.attention.varlen") and torch.backends.cuda.is_flash_attention_available()):
        return False
    one = Segments(((5, (3, 4, 1)), (2, (6,))))
    q, k, v = (torch.randn(1, h, len(one), 64, generator=torch.Generator().manual_seed(0)).to(device).bfloat16() for h in (4, 2, 2))
    for window in (None, 4):
        with torch.autocast(device.type, enabled=False):
            theirs = attend_varlen(q, k, v, one, 0.125, window, None, kernel).float()
            ours = attend_dense(q.float(), k.float(), v.float(), one, 0.125, window, None)
        if (theirs - ours).abs().max() > 0.05:
            return False
    return True
