"""The parts of a layer, computed in less time and keeping less for the backward pass.

A gated unit, silu(gate) * up, keeps its two inputs and makes silu(gate) again; written out, torch keeps three tensors of the inner
width. A root mean square norm keeps its input and a number a token, and makes the normalised input again. A quarter of what a layer
keeps goes. Products in float32 on a CPU are oneDNN's, which torch brings beside MKL: the same sums, some 5 % faster on AMD's.

`use` replaces the forward functions of a model's own modules, whichever family they come from, where ours give the same numbers.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")  # a gated unit, as Llama and those after it name its parts
TOGETHER = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")  # which read one tensor, in this order
PACKED_FROM = 64  # rows and columns of a weight: smaller ones, as those of adapters, are left as they are
ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")

Weights = tuple[Tensor, Tensor | None]  # of a linear layer, with its bias

_in_use: Packed = {}  # what `using` has put in place


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, [..., d] and [V, d] -> [..., V]."""
    if not ONEDNN or x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class Linear(torch.autograd.Function):
    """`product`, differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows = g.reshape(-1, g.shape[-1])
        to_x = product(g, weight.T) if ctx.needs_input_grad[0] else None
        to_weight = None if x is None else rows.T @ x.reshape(-1, x.shape[-1])
        return to_x, to_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


class Gated(torch.autograd.Function):
    """silu(gate) * up, of one shape."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        to_gate = g * up
        torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return to_gate, silu(gate).mul_(g)


def normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What a root mean square norm gives, and the reciprocal root."""
    wide = x.float()
    out = wide.square()
    inverse = out.mean(-1, keepdim=True).add_(eps).rsqrt_()
    out = torch.mul(wide, inverse, out=out).to(x.dtype)
    return out.mul_(weight) if torch.promote_types(out.dtype, weight.dtype) == out.dtype else out * weight, inverse


class Norm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension, in float32; what is multiplied by the weight has x's precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, inverse = normalised(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        unit, g = x.float() * inverse, g.float()
        each = g * unit
        with torch.autocast(x.device.type, enabled=False):
            to_weight = each.reshape(-1, x.shape[-1]).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
            along = each.matmul(weight.float()).div_(x.shape[-1])[..., None]  # the part along x, which a norm does not let through
        to_x = torch.mul(g, weight, out=each).sub_(unit.mul_(along)).mul_(inverse)
        return to_x.to(x.dtype), to_weight, None


def multiplied(module: Any, x: Tensor) -> Tensor:
    """The forward function of a linear layer."""
    if (weights := _in_use.get(module)) is not None:
        return weights[0](x, weights[1])
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return linear(x, module.weight, module.bias)
    return Linear.apply(x, module.weight, module.bias)  # type: ignore[no-any-return]


class Together:
    """Linear layers that read the same tensor one after the other, as one product with packed weights: the first that is asked computes
    it, the others take their part."""

    def __init__(self, parts: Sequence[Weights], rows: int, dtype: torch.dtype) -> None:
        """`parts`: weight [V, d] and bias [V] of each, all with a bias or none."""
        self.dtype, self.sizes = dtype, [len(weight) for weight, _ in parts]
        joint = torch.cat([weight.detach().to(dtype) for weight, _ in parts])
        self.weight = torch.ops.mkldnn._reorder_linear_weight(joint, rows)
        biases = [bias for _, bias in parts if bias is not None]
        self.bias = torch.cat(biases).detach().to(dtype) if biases else None
        self.read: Tensor | None = None
        self.parts: Sequence[Tensor] = ()

    def __call__(self, x: Tensor, part: int) -> Tensor:
        """[..., d] -> [..., V] of one of them."""
        if self.read is not x:
            out = self.all(x)
            if len(self.sizes) == 1:
                return out  # type: ignore[no-any-return]
            self.read, self.parts = x, out.split(self.sizes, -1)
        if part == len(self.sizes) - 1:
            self.read = None
        return self.parts[part]

    def all(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., sum of all V], in one tensor."""
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """`all` and a tensor of its shape."""
        if to.dtype != self.dtype:
            return to + self.all(x)
        return torch.ops.mkldnn._linear_pointwise.binary(x.to(self.dtype), to, self.weight, self.bias, "add")  # type: ignore[no-any-return]


Packed = Mapping[nn.Module, tuple[Together, int]]
PACKABLE = (torch.float32, torch.bfloat16)


def packed(model: nn.Module, rows: int, dtype: torch.dtype) -> Packed:
    """Weights of linear layers in the order in which oneDNN reads them for products of so few rows: half the time of a product that
    would bring them into that order each time. They are copies, and know nothing of later changes."""
    found: dict[nn.Module, tuple[Together, int]] = {}
    if dtype not in PACKABLE or not can_pack():
        return found
    for module in model.modules():
        for names in TOGETHER:
            some: list[Any] = [getattr(module, name, None) for name in names]
            if all(suits(one) for one in some) and len({one.bias is None for one in some}) == 1:
                together = Together([(one.weight, one.bias) for one in some], rows, dtype)
                found |= {one: (together, i) for i, one in enumerate(some)}
    for module in model.modules():
        if module not in found and suits(module):
            found[module] = Together([(module.weight, module.bias)], rows, dtype), 0  # type: ignore[list-item]
    return found


@cache
def can_pack() -> bool:
    """Whether this build of torch knows both operators, which are not part of its public interface."""
    try:
        x = torch.eye(64)
        packed = torch.ops.mkldnn._reorder_linear_weight(x, 4)
        return ONEDNN and torch.equal(torch.ops.mkldnn._linear_pointwise(x[:4], packed, None, "none", [], ""), x[:4])
    except (RuntimeError, AttributeError):
        return False


def suits(module: Any) -> bool:
    """Whether it is a linear layer whose product is ours, on a CPU, and worth another copy of its weights."""
    return replaced(module, multiplied) and module.weight.device.type == "cpu" and min(module.weight.shape) >= PACKED_FROM


def weights_of(module: Any) -> Weights | None:
    """What a linear layer multiplies by, a LoRA adapter as it is set now added in; None where it does something else."""
    if suits(module):
        return module.weight, module.bias
    base: Any = getattr(module, "base_layer", None)
    if not suits(base) or not hasattr(module, "get_delta_weight"):
        return None
    used = [] if module.disable_adapters else [name for name in module.active_adapters if name in module.lora_A]
    if any(module.use_dora.get(name, False) or module.lora_bias.get(name, False) for name in used):
        return None
    return base.weight.float() + sum(module.get_delta_weight(name).float() for name in used) if used else base.weight, base.bias


def replaced(module: Any, function: Any) -> bool:
    """Whether this function stands in the place of the module's own, so that the module is known to compute it."""
    return isinstance(module, nn.Module) and getattr(vars(module).get("forward"), "__func__", None) is function


@contextmanager
def using(weights: Packed) -> Iterator[None]:
    """Products with these weights in the place of the modules' own; for passes without gradient."""
    global _in_use
    before, _in_use = _in_use, weights
    try:
        yield
    finally:
        _in_use = before


def gated(unit: Any, x: Tensor) -> Tensor:
    """The forward function of a gated unit."""
    if not torch.is_grad_enabled():
        return unit.down_proj(silu(unit.gate_proj(x)).mul_(unit.up_proj(x)))  # type: ignore[no-any-return]
    return unit.down_proj(Gated.apply(unit.gate_proj(x), unit.up_proj(x)))  # type: ignore[no-any-return]


def norm(module: Any, x: Tensor) -> Tensor:
    """The forward function of a root mean square norm."""
    if not torch.is_grad_enabled():
        return normalised(x, module.weight, module.variance_epsilon)[0]  # a function costs more than these few numbers
    return Norm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-any-return]


def ours(module: nn.Module) -> Any:
    """The function that may take the place of a module's own, by its parts; whether it does the same, `use` finds out."""
    if type(module) is nn.Linear:  # no subclass: what is quantised or adapted multiplies in its own way
        return multiplied if ONEDNN else None
    if all(hasattr(module, part) for part in GATED):
        return gated
    return norm if hasattr(module, "variance_epsilon") and isinstance(getattr(module, "weight", None), Tensor) else None


@torch.no_grad()
def use(model: nn.Module) -> set[str]:
    """Replace what can be; names of the classes whose modules were. One module of a class answers for all of them."""
    same: dict[type, bool] = {}
    for module in model.modules():
        function, kind = ours(module), type(module)
        if function is None or "forward" in vars(module):  # somebody else's wrapper is left alone
            continue
        if kind not in same:
            same[kind] = alike(module, function)
        if same[kind]:
            module.forward = MethodType(function, module)
    return {kind.__name__ for kind, replaced in same.items() if replaced}


def alike(module: Any, function: Any) -> bool:
    """Whether both give the same numbers for two tokens."""
    width = module.gate_proj.in_features if function is gated else module.weight.shape[-1]
    like = next(module.parameters())
    tokens = torch.arange(2.0 * width, device=like.device).cos().view(1, 2, width)  # no draw: nobody's random numbers move
    tokens = tokens.to(like.dtype if like.dtype.is_floating_point else torch.float32)
    return close(function(module, tokens), module(tokens))


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of b's precision."""
    scale = b.float().abs().max().item()
    return bool((a.float() - b.float()).abs().max().item() <= 8 * torch.finfo(b.dtype).eps * max(scale, 1e-3))
