"""Every epsilon, log-sigmoid and sigmoid of preftune. Nothing here clamps a value that an objective would feel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from .types import PreftuneError

__all__ = ["average", "log1mexp", "logsigmoid", "not_negative", "one_of", "positive", "sigmoid", "softplus", "variance"]

T = TypeVar("T")
LN2 = math.log(2.0)


def positive(name: str, value: float, meaning: str) -> None:
    """Refuse a hyperparameter that is not a finite number above 0."""
    if not (value > 0 and math.isfinite(value)):
        raise PreftuneError(f"{name} is {value}, needed a finite number above 0; {meaning}")


def not_negative(name: str, value: float, meaning: str) -> None:
    """Refuse a hyperparameter that is not a finite number of at least 0."""
    if not (value >= 0 and math.isfinite(value)):
        raise PreftuneError(f"{name} is {value}, needed a finite number of at least 0; {meaning}")


def one_of(name: str, value: str, table: Mapping[str, T], meaning: str = "") -> T:
    """The entry of that name; a value that has none is refused."""
    if value not in table:
        raise PreftuneError(f"{name} is {value!r}, needed one of {', '.join(table)}{meaning}")
    return table[value]


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x) through exp(logsigmoid(x)): its derivative keeps its relative accuracy in both tails."""
    return torch.exp(logsigmoid(x))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, accurate at both ends; -inf at x = 0.

    Two branches meet at -ln 2 (Maechler 2012); each is fed values of its own side, so that no NaN reaches a gradient.
    """
    near = x > -LN2
    low = torch.where(near, torch.full_like(x, -1.0), x)
    high = torch.where(near, x, torch.full_like(x, -0.1))
    return torch.where(near, torch.log(-torch.expm1(high)), torch.log1p(-torch.exp(low)))


def average(x: Tensor, law: Tensor | None = None) -> Tensor:
    """Mean over the last axis of x [B, M] or [B, K, M]: under law [B, M] where it enumerates a distribution, otherwise over draws."""
    if law is None:
        return x.mean(-1)
    law = law.to(x)
    return (x * law).sum(-1) if x.ndim == law.ndim else (x @ law.unsqueeze(-1)).squeeze(-1)


def variance(x: Tensor, law: Tensor | None = None) -> Tensor:
    """Variance over the columns of x [B, K] -> [B].

    With law [B, K] the columns enumerate a distribution: population variance under it. Without, they are draws:
    the unbiased sample variance, which for K = 2 is half the squared difference.
    """
    if law is None:
        return x.var(dim=1, unbiased=True)
    centred = x - (law * x).sum(1, keepdim=True)
    return (law * centred * centred).sum(1)
