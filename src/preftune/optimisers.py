"""Optimisers by name, and how many bytes each keeps for a parameter that trains.

What is not in torch comes from kept libraries, imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from .processes import sharded
from .types import PreftuneError

Groups = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Optimiser:
    """How it is made of (groups, lr, beta1, weight decay), and what it holds."""

    make: Callable[[Groups, float, float, float], torch.optim.Optimizer]
    state: float  #             bytes of state per parameter, where these are in float32 (`sixteen`: in bfloat16)
    sixteen: bool = False  #    made for parameters that are themselves kept in bfloat16
    outside: bool = False  #    from a package of its own, which knows tensors that lie in one process only


def adamw_8bit(groups: Groups, lr: float, beta1: float, decay: float) -> torch.optim.Optimizer:
    """Both moments in 8 bits with a scale for every 256 (arXiv:2110.02861); tensors below 4096 numbers keep theirs in float32."""
    bitsandbytes = imported("bitsandbytes", "adamw8bit", "optim")
    return bitsandbytes.optim.AdamW8bit(groups, lr=lr, betas=(beta1, 0.999), weight_decay=decay)  # type: ignore[no-any-return]


def adamw_bf16(groups: Groups, lr: float, beta1: float, decay: float) -> torch.optim.Optimizer:
    """Weights and moments in bfloat16; what rounding takes from a weight is kept in a fourth number and given back (Kahan).

    beta2 is 0.99: of a moment in bfloat16 a change by 0.1 %, as 0.999 asks for, is less than half a unit in the last place.
    """
    optimi = imported("optimi", "adamw-bf16", "optim")
    return optimi.AdamW(groups, lr=lr, betas=(beta1, 0.99), weight_decay=decay, eps=1e-8)  # type: ignore[no-any-return]


OPTIMISERS: dict[str, Optimiser] = {
    # fused: one kernel over all parameters, several times faster than the loop on every device
    "adamw": Optimiser(lambda p, lr, beta1, decay: torch.optim.AdamW(p, lr=lr, betas=(beta1, 0.999), weight_decay=decay, fused=True), 8),
    "adamw8bit": Optimiser(adamw_8bit, 2 + 2 * 4 / 256, outside=True),
    "adamw-bf16": Optimiser(adamw_bf16, 6, sixteen=True, outside=True),
    "rmsprop": Optimiser(lambda p, lr, beta1, decay: torch.optim.RMSprop(p, lr=lr, weight_decay=decay), 4),
    "sgd": Optimiser(lambda p, lr, beta1, decay: torch.optim.SGD(p, lr=lr, weight_decay=decay), 0),
}


def make(name: str, groups: Groups, lr: float, beta1: float, decay: float) -> torch.optim.Optimizer:
    """The optimiser of that name over groups of parameters; refuses a precision in which its steps would be lost."""
    if name not in OPTIMISERS:
        raise PreftuneError(f"optimiser is {name!r}, needed one of {', '.join(OPTIMISERS)}")
    if OPTIMISERS[name].outside and any(sharded(p) for group in groups for p in group["params"]):
        raise PreftuneError(
            f"{name} was asked to train weights in shards, which its package does not know, needed one of torch's; choose adamw, or a "
            "configuration without FSDP"
        )
    found = {p.dtype for group in groups for p in group["params"]}
    short = sorted(str(dtype).removeprefix("torch.") for dtype in found & {torch.bfloat16, torch.float16})
    if short and not (OPTIMISERS[name].sixteen and short == ["bfloat16"]):
        raise PreftuneError(
            f"{name} was asked to train weights in {' and '.join(short)}, where most steps are rounded away; needed float32, or bfloat16 "
            "with optimiser=adamw-bf16; load with masters=true, or choose that optimiser"
        )
    if OPTIMISERS[name].sixteen and not short:
        raise PreftuneError(
            f"{name} keeps its moments in the precision of what trains, which is float32 here; needed bfloat16: "
            "load with dtype=bfloat16 and masters=false, or choose adamw or adamw8bit"
        )
    return OPTIMISERS[name].make(groups, lr, beta1, decay)


def imported(package: str, optimiser: str, extra: str) -> Any:
    """The library that an optimiser comes from."""
    try:
        return import_module(package)
    except ImportError as error:
        raise PreftuneError(
            f'optimiser={optimiser} comes from the package {package}, which is not installed; pip install "preftune[{extra}]", '
            "or choose adamw"
        ) from error
