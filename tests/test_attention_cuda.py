"""Attention of packs as on CUDA devices: what is gathered and masked, against float64 and a mask made by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.policies.text import attention
from preftune.policies.text.attention_cuda import (
    WAYS,
    Capabilities,
    Gathered,
    attend_dense,
    attend_flex,
    attend_varlen,
    block_mask,
    capabilities_of,
    pick,
    take,
    varlen_is_right,
    way_for,
)
from preftune.policies.text.layout import Segments
from preftune.policies.text.logprob import Network
from preftune.types import PreftuneError

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
PACKS = {
    "one prompt alone": ((5, ()),),
    "a pair": ((4, (3, 2)),),
    "one token each": ((1, (1, 1)),),
    "lists, singles, and a response whose only token is not fed": ((3, (2, 1, 4)), (1, (5,)), (6, ()), (2, (0, 3)), (4, (0,))),
}


def drawn(tokens: int, heads: int = 4, shared: int = 2, size: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """q [1, H, N, D], k and v [1, H_kv, N, D], with gradients."""
    generator = torch.Generator().manual_seed(tokens)
    shape = lambda h: (1, h, tokens, size)
    q, k, v = (torch.randn(shape(h), generator=generator, dtype=torch.float64).to(dtype) for h in (heads, shared, shared))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def lower_right(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *,
    scale: float, window_size: tuple[int, int], enable_gqa: bool, corner: bool = True,
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
        scores = torch.einsum("qhd,khd->hqk", q[a:b], keys) * scale
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
                    scores = 0.3 * k[0, shared, seen] @ q[0, head, at]
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
@pytest.mark.parametrize("groups", PACKS.values(), ids=PACKS)
def test_the_dense_way_is_the_definition(groups: Any, window: int | None, softcap: float | None) -> None:
    one = Segments(groups)
    q, k, v = (x.detach() for x in drawn(len(one)))
    ours = attend_dense(q, k, v, one, 0.3, window, softcap)
    assert torch.allclose(ours, one_by_one(q, k, v, groups, window, softcap), atol=1e-13)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("groups", PACKS.values(), ids=PACKS)
def test_gathered_keys_give_the_numbers_and_gradients_of_the_dense_mask(groups: Any, window: int | None, heads: tuple[int, int]) -> None:
    one = Segments(groups)
    q, k, v = drawn(len(one), *heads)
    truth = attend_dense(q, k, v, one, 0.3, window, None)
    ours = attend_varlen(q, k, v, one, 0.3, window, None, lower_right)
    assert ours.shape == (1, len(one), heads[0], 8)
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
    one = Segments(((4, (3, 2)), (2, (1,))))
    q, k, v = (x.detach().to(meta, torch.bfloat16).requires_grad_() for x in drawn(len(one)))
    out = attend_varlen(q, k, v, one, 0.3, window, None)
    assert (out.shape, out.dtype) == ((1, 12, 4, 8), torch.bfloat16)
    assert [x.shape for x in torch.autograd.grad(out.sum(), (q, k, v))] == [q.shape, k.shape, v.shape]


def test_under_autocast_the_kernel_gets_16_bits() -> None:
    met = set()

    def kernel(*inputs: Any, **options: Any) -> Tensor:
        met.update(x.dtype for x in inputs[:3])
        return lower_right(*inputs, **options)

    q, k, v = drawn(8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        attend_varlen(q, k, v, Segments(((5, (3,)),)), 0.3, None, None, kernel)
        assert way_for(q, None) == "segments"
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
    x = torch.zeros(2, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(take(x, torch.zeros(300, dtype=torch.int64)).sum(), x)
    assert gradient.flatten().tolist() == [300.0, 0.0]


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (None, 2.0)])
def test_flex_attention_gives_the_numbers_of_the_dense_mask(window: int | None, softcap: float | None) -> None:
    """Forward only: it has no backward pass on a CPU."""
    one = Segments(PACKS["lists, singles, and a response whose only token is not fed"])
    q, k, v = (x.detach() for x in drawn(len(one), dtype=torch.float32, size=16))
    truth = attend_dense(q.double(), k.double(), v.double(), one, 0.3, window, softcap)
    ours = attend_flex(q, k, v, one, 0.3, window, softcap)
    assert ours.is_contiguous()
    assert (ours - truth).abs().max() < 2e-6


def test_the_block_mask_leaves_out_what_no_token_sees_and_is_made_once() -> None:
    """Two prompts of 256 and their responses of 128, in blocks of 128: 3 + 2 + 1 and 4 blocks each, of 64."""
    one = Segments(((256, (128, 128)),) * 2)
    mask = block_mask(one, None, CPU)
    assert block_mask(one, None, CPU) is mask
    assert block_mask(one, 128, CPU) is not mask
    dense = mask.to_dense()[0, 0]
    assert dense.shape == (8, 8)
    blocks = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert torch.equal(dense, torch.block_diag(*[torch.tensor(blocks)] * 2).to(dense))


@pytest.mark.parametrize(
    ("device", "able", "dtype", "size", "softcap", "way", "why"),
    [
        (CUDA, Capabilities((9, 0), True, True), torch.bfloat16, 128, None, "varlen", "gathered"),
        (CUDA, Capabilities((9, 0), True, True), torch.bfloat16, 128, 50.0, "flex", "capped"),
        (CUDA, Capabilities((9, 0), True, True), torch.float32, 128, None, "flex", "float32"),
        (CUDA, Capabilities((9, 0), True, True), torch.bfloat16, 100, None, "flex", "100"),
        (CUDA, Capabilities((9, 0), True, True), torch.bfloat16, 512, None, "flex", "512"),
        (CUDA, Capabilities((9, 0), False, True), torch.bfloat16, 128, None, "flex", "aligns"),
        (CUDA, Capabilities((9, 0), False, False), torch.bfloat16, 128, None, "segments", "Triton"),
        (CUDA, Capabilities((9, 0), True, True), torch.float64, 128, None, "segments", "float64"),
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


@pytest.mark.parametrize("way", [attend_varlen, attend_flex, attend_dense])
def test_a_pack_that_is_not_the_one_described_is_refused(way: Any) -> None:
    q, k, v = drawn(9)
    with pytest.raises(PreftuneError, match="pack of 8 tokens"):
        way(q, k, v, Segments(((5, (3,)),)), 0.3, None, None)


def test_capped_scores_are_refused_by_the_kernel_that_knows_no_caps() -> None:
    q, k, v = drawn(8)
    with pytest.raises(PreftuneError, match="pick"):
        attend_varlen(q, k, v, Segments(((5, (3,)),)), 0.3, None, 50.0)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen3", "Gemma2"])
def test_a_model_scored_with_gathered_keys_has_the_plain_engines_numbers_and_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sliding windows of 4 positions in Mistral and Gemma 2; the latter caps scores and logits, so it takes the dense way here."""
    way: Any = attend_dense if kind == "Gemma2" else partial(attend_varlen, kernel=lower_right)
    prompts = [tuple(range(5, 14)), (7, 9, 11)]
    pairs = [(prompts[0], (3, 4, 5, 6)), (prompts[0], (3, 8)), (prompts[1], (9, 9, 2, 4, 5, 6, 7)), (prompts[0], (2,))]
    met = []
    for engine in ("plain", "fast"):
        network = Network(model(kind), engine=engine)
        assert network.engine == engine, network.engine_note
        with monkeypatch.context() as patch:
            patch.setattr(attention, "pieces", way)
            logp = torch.cat(network.token_logps(pairs))
        met.append([logp, *torch.autograd.grad(logp.double().square().sum(), list(network.parameters()))])
    for ours, truth in zip(*reversed(met), strict=True):
        assert (ours - truth).norm() <= 1e-5 * max(float(truth.detach().norm()), 1e-2)


def model(kind: str) -> Any:
    """A tiny random one of that architecture."""
    import transformers

    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.2}
    if kind in ("Mistral", "Gemma2"):
        sizes |= {"sliding_window": 4}
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes, pad_token_id=0)).eval()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", ["varlen", "flex"])
@pytest.mark.parametrize("window", [None, 40])
def test_on_a_card_both_ways_give_the_numbers_and_gradients_of_float64(way: str, window: int | None) -> None:
    groups = ((150, (70, 33, 1)), (20, (90,)), (64, (64, 64)))
    here, there = Segments(groups), Segments(groups)
    inputs = drawn(len(here), 6, 2, 64)
    moved = [x.detach().cuda().bfloat16().requires_grad_() for x in inputs]
    rounded = [x.detach().cpu().double().requires_grad_() for x in moved]
    truth = attend_dense(*rounded, here, 0.125, window, None)
    ours = WAYS[way](*moved, there, 0.125, window, None)
    assert (ours.cpu() - truth).abs().max() < 0.02
    weight = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = torch.autograd.grad((ours * weight.cuda().bfloat16()).float().sum(), moved)
    for a, b in zip(theirs, torch.autograd.grad((truth * weight).sum(), rounded), strict=True):
        assert (a.cpu().double() - b).norm() / b.norm() < 0.01
