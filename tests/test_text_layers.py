"""The parts of a layer: the same values and gradients as torch's own, less kept, and no module touched that does something else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, silu
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from architectures import architecture
from preftune.policies.text import layers
from preftune.policies.text.head import Tied
from text_fixtures import tiny_policy

CONFIG = LlamaConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "linear": (layers.Linear.apply, linear, [(2, 7, 48), (33, 48), (33,)]),
    "gated": (layers.Gated.apply, lambda gate, up: silu(gate) * up, [(2, 7, 48), (2, 7, 48)]),
    "norm": (
        lambda x, w: layers.Norm.apply(x, w, 1e-5),
        lambda x, w: w * (x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()),
        [(2, 7, 48), (48,)],
    ),
}


def drawn(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def slopes(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Value and gradients of a fixed weighted sum of it."""
    out = function(*inputs)
    weights = torch.arange(out.numel(), dtype=torch.float64).cos().view(out.shape)
    return [out.detach(), *torch.autograd.grad((out.double() * weights).sum(), inputs)]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_float64(name: str, dtype: torch.dtype, error: float) -> None:
    ours, theirs, shapes = CASES[name]
    inputs = drawn(shapes, dtype)
    exact = slopes(theirs, [x.detach().double().requires_grad_() for x in inputs])
    for value, truth in zip(slopes(ours, inputs), exact, strict=True):
        assert value.dtype == dtype
        assert (value.double() - truth).norm() <= error * truth.norm()


@pytest.mark.parametrize("name", CASES)
def test_only_gradients_that_are_asked_for_come_back(name: str) -> None:
    ours, _, shapes = CASES[name]
    inputs = drawn(shapes)
    for i, one in enumerate(inputs):
        alone = [x.detach().requires_grad_(j == i) for j, x in enumerate(inputs)]
        everything = slopes(ours, inputs)[1 + i]
        weights = torch.arange(ours(*alone).numel(), dtype=torch.float64).cos().view(ours(*alone).shape)
        assert torch.equal(torch.autograd.grad((ours(*alone).double() * weights).sum(), alone[i])[0], everything)
        assert one.shape == everything.shape


def kept(model: Any, tokens: Tensor) -> int:
    """Bytes that autograd keeps of a pass, each storage once, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(input_ids=tokens, use_cache=False).logits  # held until all is counted, or addresses come twice
    del out
    return sum(found.values())


def test_a_model_gives_the_same_and_keeps_less() -> None:
    torch.manual_seed(0)
    plain = LlamaForCausalLM(CONFIG)
    for norm in (m for m in plain.modules() if isinstance(m, LlamaRMSNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    ours, tokens = copy.deepcopy(plain), torch.arange(60).view(2, 30)
    assert layers.use(ours) >= {"LlamaMLP", "LlamaRMSNorm"}
    assert kept(ours, tokens) < 0.9 * kept(plain, tokens)
    for model in (plain, ours):
        model(input_ids=tokens).logits.square().mean().backward()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert (mine.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()


def test_a_copy_computes_with_its_own_weights() -> None:
    model = LlamaForCausalLM(CONFIG)
    layers.use(model)
    other, tokens = copy.deepcopy(model), torch.arange(8)[None]
    before = model(input_ids=tokens).logits
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not other(input_ids=tokens).logits.any()
    assert torch.equal(model(input_ids=tokens).logits, before)


class OnePlus(LlamaRMSNorm):
    """A norm whose weights are kept as their distance from 1, as Gemma keeps them."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * (1 + self.weight) / self.weight


class Gelu(LlamaMLP):
    """A gated unit with another function."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gelu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


def test_what_computes_something_else_is_left_alone() -> None:
    wrapped = LlamaRMSNorm(48)
    wrapped.forward = lambda x: x  # type: ignore[method-assign,assignment]
    found = nn.ModuleList([OnePlus(48), Gelu(CONFIG), wrapped, LlamaRMSNorm(48)])
    assert layers.use(found) - {"Linear"} == {"LlamaRMSNorm"}
    assert [("forward" in vars(module)) for module in found] == [False, False, True, True]
    assert wrapped(torch.ones(3)).tolist() == [1, 1, 1]


def test_nobodys_random_numbers_move() -> None:
    model = LlamaForCausalLM(CONFIG)
    before = torch.get_rng_state()
    layers.use(model)
    assert torch.equal(torch.get_rng_state(), before)


# --- a tensor that is embedding and head --------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("used", ["both", "embedding", "head"])
def test_a_tied_tensor_has_the_gradient_of_autograd(padding: int | None, used: str) -> None:
    """Over two look-ups with tokens that come twice; asked for by `grad`, twice, and added up by `backward`."""
    table = nn.Embedding(11, 6, padding_idx=padding)
    nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(0))
    batches = torch.tensor([1, 3, 3, 7]), torch.tensor([7, 0, 10])

    def loss(look_up: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
        states = [look_up(ids).tanh() for ids in batches]
        parts = [(h @ weight.T).square().sum() for h in states] if used == "both" else [h.square().sum() for h in states]
        return torch.stack([weight.square().sum()] if used == "head" else parts).sum()

    truth = torch.autograd.grad(loss(table, table.weight), table.weight)[0]
    tied = Tied(table)
    value = loss(tied.look_up, tied.weight)
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(value, table.weight, retain_graph=True)[0], truth)
    value.backward()
    again = Tied(table)
    loss(again.look_up, again.weight).backward()
    torch.testing.assert_close(table.weight.grad, 2 * truth)


def test_embeddings_and_head_are_taken_together_where_they_are_one_tensor_that_trains() -> None:
    policy = tiny_policy()
    assert policy.network.tie() is not None
    with torch.no_grad():
        assert policy.network.tie() is None
    assert tiny_policy(1).network.tie() is None and tiny_policy("lora").network.tie() is None
    assert tiny_policy(model=architecture("Qwen3")).network.tie() is None  # two tensors
    assert tiny_policy(model=architecture("Gemma2")).network.tie() is None  # embeddings of its own kind, scaled
