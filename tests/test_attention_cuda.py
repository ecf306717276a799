"""Attention of packed rows as on CUDA devices: what is gathered and masked, against float64 and a mask made by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.policies.text.attention_cuda import (
    Capabilities,
    Gathered,
    Row,
    attend,
    attend_dense,
    attend_varlen,
    capabilities_of,
    pick,
    varlen_is_right,
)
from preftune.types import PreftuneError

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
ROWS = {
    "one prompt alone": [(5, ())],
    "a pair": [(4, (3, 2))],
    "one token each": [(1, (1, 1))],
    "lists, singles, and a response whose only token is not fed": [(3, (2, 1, 4)), (1, (5,)), (6, ()), (2, (0, 3)), (4, (0,))],
}


def drawn(tokens: int, heads: int = 4, shared: int = 2, size: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """q [1, H, N, D], k and v [1, H_kv, N, D], with gradients."""
    generator = torch.Generator().manual_seed(tokens)
    shape = lambda h: (1, h, tokens, size)
    q, k, v = (torch.randn(shape(h), generator=generator, dtype=torch.float64).to(dtype) for h in (heads, shared, shared))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def lower_right(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None, window_size: tuple[int, int], enable_gqa: bool, corner: bool = True,
) -> Tensor:  # fmt: skip
    """What `varlen_attn` does, piece by piece: query i of n sees keys up to i + m - n of m, and window_size[0] before that one.

    `corner=False` is the other convention, aligned at the upper left.
    """
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert q.shape[1] == k.shape[1] or enable_gqa
    assert max_q == cu_q.diff().max()
    assert max_k == cu_k.diff().max()
    share, out = q.shape[1] // k.shape[1], []
    for (a, b), (c, d) in zip(itertools.pairwise(cu_q.tolist()), itertools.pairwise(cu_k.tolist()), strict=True):
        last = torch.arange(b - a)[:, None] + (d - c - (b - a) if corner else 0)
        at = torch.arange(d - c)
        seen = at <= last + window_size[1]
        if window_size[0] >= 0:
            seen &= at >= last - window_size[0]
        keys, values = (x[c:d].repeat_interleave(share, 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[a:b], keys) * (scale or q.shape[2] ** -0.5)
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(2), values))
    return torch.cat(out)


def one_by_one(
    q: Tensor, k: Tensor, v: Tensor, groups: Sequence[tuple[int, Sequence[int]]], window: int | None, softcap: float | None
) -> Tensor:
    """Every prompt with each of its responses as a sequence of its own, token by token: the definition. [1, N, H, D]."""
    out = torch.zeros(q.shape[2], q.shape[1], q.shape[3], dtype=q.dtype)
    start = 0
    for prompt, responses in groups:
        end = start + prompt
        branches = [[]]
        for tokens in responses:
            branches.append(list(range(end, end + tokens)))
            end += tokens
        for branch in branches:
            sequence = [*range(start, start + prompt), *branch]
            for position, at in enumerate(sequence):
                seen = sequence[max(0, position + 1 - (window or len(sequence))) : position + 1]
                for head in range(q.shape[1]):
                    shared = head * k.shape[1] // q.shape[1]
                    scores = k[0, shared, seen] @ q[0, head, at] / math.sqrt(q.shape[3])
                    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                    out[at, head] = scores.softmax(0) @ v[0, shared, seen]
        start = end
    return out[None]


def gradients(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Of a fixed linear function of the output."""
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad((out.double() * weight).sum(), inputs))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("groups", ROWS.values(), ids=ROWS)
def test_the_dense_way_is_the_definition(groups: Any, window: int | None, softcap: float | None) -> None:
    row = Row(groups, CPU)
    q, k, v = (x.detach() for x in drawn(row.tokens))
    ours = attend("dense", q, k, v, row, window=window, softcap=softcap)
    assert torch.allclose(ours, one_by_one(q, k, v, groups, window, softcap), atol=1e-13)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("groups", ROWS.values(), ids=ROWS)
def test_gathered_keys_give_the_numbers_and_gradients_of_the_dense_mask(groups: Any, window: int | None, heads: tuple[int, int]) -> None:
    row = Row(groups, CPU)
    q, k, v = drawn(row.tokens, *heads)
    truth = attend_dense(q, k, v, row, 0.3, window, None)
    ours = attend_varlen(q, k, v, row, 0.3, window, None, lower_right)
    assert ours.shape == (1, row.tokens, heads[0], 8)
    assert ours.is_contiguous()
    assert torch.allclose(ours, truth, atol=1e-13)
    for a, b in zip(gradients(ours, q, k, v), gradients(truth, q, k, v), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_a_prompt_is_copied_for_every_response_but_the_first() -> None:
    """(4, (3, 2)) and (2, (1,)): pieces of 4 + 3, 2 and 2 + 1 queries, with 7, 4 + 2 and 3 keys."""
    g = Gathered.of([(4, (3, 2)), (2, (1,))], CPU)
    assert g.query_starts.tolist() == [0, 7, 9, 12]
    assert g.key_starts.tolist() == [0, 7, 13, 16]
    assert g.keys.tolist() == [*range(7), 0, 1, 2, 3, 7, 8, 9, 10, 11]
    assert (g.longest_query, g.longest_key) == (7, 7)


@pytest.mark.parametrize("window", [None, 3])
def test_the_call_fits_the_kernel_of_this_torch(window: int | None) -> None:
    """On the device without numbers, where torch checks arguments and shapes, forward and backward."""
    meta = torch.device("meta")
    row = Row([(4, (3, 2)), (2, (1,))], meta)
    q, k, v = (x.detach().to(meta, torch.bfloat16).requires_grad_() for x in drawn(row.tokens))
    out = attend("varlen", q, k, v, row, scale=0.3, window=window)
    assert (out.shape, out.dtype) == ((1, 12, 4, 8), torch.bfloat16)
    assert [x.shape for x in torch.autograd.grad(out.sum(), (q, k, v))] == [q.shape, k.shape, v.shape]


def test_under_autocast_the_kernel_gets_16_bits() -> None:
    met = set()

    def kernel(*inputs: Any, **options: Any) -> Tensor:
        met.update(x.dtype for x in inputs[:3])
        return lower_right(*inputs, **options)

    q, k, v = drawn(8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        attend_varlen(q, k, v, Row([(5, (3,))], CPU), None, None, None, kernel)
    assert met == {torch.bfloat16}


def test_a_kernel_that_aligns_at_the_upper_left_is_found_out() -> None:
    assert varlen_is_right(CPU, lower_right)
    assert not varlen_is_right(CPU, partial(lower_right, corner=False))


def test_a_kernel_that_counts_windows_otherwise_is_found_out() -> None:
    def wider(*inputs: Any, window_size: tuple[int, int], **options: Any) -> Tensor:
        return lower_right(*inputs, window_size=(window_size[0] + (window_size[0] >= 0), 0), **options)

    assert not varlen_is_right(CPU, wider)


def test_shares_of_a_prompts_gradient_are_added_in_float32() -> None:
    """In bfloat16 a sum of ones stops at 256, since 257 is rounded back to it; 300 has a place of its own."""
    from preftune.policies.text.attention_cuda import take

    x = torch.zeros(2, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(take(x, torch.zeros(300, dtype=torch.int64)).sum(), x)
    assert gradient.flatten().tolist() == [300.0, 0.0]


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (None, 2.0)])
def test_flex_attention_gives_the_numbers_of_the_dense_mask(window: int | None, softcap: float | None) -> None:
    """Forward only: it has no backward pass on a CPU."""
    row = Row(ROWS["lists, singles, and a response whose only token is not fed"], CPU)
    q, k, v = (x.detach() for x in drawn(row.tokens, dtype=torch.float32, size=16))
    truth = attend("dense", q.double(), k.double(), v.double(), row, window=window, softcap=softcap)
    ours = attend("flex", q, k, v, row, window=window, softcap=softcap)
    assert ours.is_contiguous()
    assert (ours - truth).abs().max() < 2e-6


def test_the_block_mask_leaves_out_what_no_token_sees_and_is_made_once() -> None:
    """Two prompts of 256 and their responses of 128, in blocks of 128: 3 + 2 + 1 and 4 blocks each, of 64."""
    row = Row([(256, (128, 128))] * 2, CPU)
    mask = row.block_mask(None)
    assert row.block_mask(None) is mask
    assert row.block_mask(128) is not mask
    dense = mask.to_dense()[0, 0]
    assert dense.shape == (8, 8)
    one = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert torch.equal(dense, torch.block_diag(*[torch.tensor(one)] * 2).to(dense))


@pytest.mark.parametrize(
    ("device", "able", "dtype", "size", "softcap", "way", "why"),
    [
        (CUDA, Capabilities((9, 0), True, True), torch.bfloat16, 128, None, "varlen", "gathered"),
        (CUDA, Capabilities((9, 0), True, True), torch.bfloat16, 128, 50.0, "flex", "capped"),
        (CUDA, Capabilities((9, 0), True, True), torch.float32, 128, None, "flex", "float32"),
        (CUDA, Capabilities((9, 0), True, True), torch.bfloat16, 100, None, "flex", "100"),
        (CUDA, Capabilities((9, 0), True, True), torch.bfloat16, 512, None, "flex", "512"),
        (CUDA, Capabilities((9, 0), False, True), torch.bfloat16, 128, None, "flex", "aligns"),
        (CUDA, Capabilities((9, 0), False, False), torch.bfloat16, 128, None, "segments", "compiler"),
        (CUDA, Capabilities((7, 5), True, True), torch.float16, 128, None, "segments", "7.5"),
        (CPU, Capabilities(), torch.float32, 64, None, "segments", "cpu"),
    ],
)  # fmt: skip
def test_the_choice_says_what_is_used_and_why(
    device: torch.device, able: Capabilities, dtype: torch.dtype, size: int, softcap: float | None, way: str, why: str
) -> None:
    choice = pick(device, able, dtype=dtype, head_dim=size, softcap=softcap)
    assert choice.way == way
    assert why in choice.note


def test_a_cpu_is_able_to_do_none_of_it() -> None:
    assert capabilities_of(CPU) == Capabilities()


def test_a_row_that_is_not_the_one_described_is_refused() -> None:
    q, k, v = drawn(9)
    with pytest.raises(PreftuneError, match="row of 8 tokens"):
        attend("dense", q, k, v, Row([(5, (3,))], CPU))


def test_capped_scores_are_refused_by_the_kernel_that_knows_no_caps() -> None:
    q, k, v = drawn(8)
    with pytest.raises(PreftuneError, match="pick"):
        attend("varlen", q, k, v, Row([(5, (3,))], CPU), softcap=50.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", ["varlen", "flex"])
@pytest.mark.parametrize("window", [None, 40])
def test_on_a_card_both_ways_give_the_numbers_and_gradients_of_float64(way: str, window: int | None) -> None:
    groups = [(150, (70, 33, 1)), (20, (90,)), (64, (64, 64))]
    here, there = Row(groups, CPU), Row(groups, CUDA)
    inputs = drawn(here.tokens, 6, 2, 64)
    moved = [x.detach().cuda().bfloat16().requires_grad_() for x in inputs]
    rounded = [x.detach().cpu().double().requires_grad_() for x in moved]
    truth = attend_dense(*rounded, here, None, window, None)
    ours = attend(way, *moved, there, window=window)
    assert (ours.cpu() - truth).abs().max() < 0.02
    weight = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = torch.autograd.grad((ours * weight.cuda().bfloat16()).float().sum(), moved)
    for a, b in zip(theirs, torch.autograd.grad((truth * weight).sum(), rounded), strict=True):
        assert (a.cpu().double() - b).norm() / b.norm() < 0.01
