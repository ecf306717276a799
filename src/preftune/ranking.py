"""Learning to rank on plain tensors: B lists of K scores beside K grades. No policy in it; texts, images and judges share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from .numerics import logsigmoid, positive
from .types import PreftuneError

T = TypeVar("T")
Ranks = Literal["model", "labels"]
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class Graded:
    """Graded scores of B lists: what every listwise loss is a function of. No text in it: images have s and psi too."""

    s: Tensor  #     [B, K] the model's scores
    psi: Tensor  #   [B, K] grades, 0 where absent
    here: Tensor  #  [B, K] bool, takes part

    @property
    def gap(self) -> Tensor:
        """s_i - s_j [B, K, K]."""
        return self.s[:, :, None] - self.s[:, None, :]

    @property
    def better(self) -> Tensor:
        """Is (i, j) a pair with psi_i > psi_j, bool [B, K, K]."""
        return (self.psi[:, :, None] > self.psi[:, None, :]) & self.here[:, :, None] & self.here[:, None, :]

    def over_pairs(self, loss: Tensor, reduction: Reduction) -> Tensor:
        """[B]: sum or mean of loss [B, K, K] over the pairs with psi_i > psi_j; 0 in a list without any."""
        total, pairs = torch.where(self.better, loss, 0.0).sum((1, 2)), self.better.sum((1, 2))
        return choose("reduction", {"sum": total, "mean": total / pairs.clamp(min=1)}, reduction)

    def softmax(self, alpha: float) -> Tensor:
        """softmax(psi / alpha) over the responses that take part [B, K]."""
        positive("alpha", alpha, "it is the temperature of the grades")
        return torch.where(self.here, self.psi / alpha, -torch.inf).softmax(1)

    def metrics(self) -> dict[str, Tensor]:
        """Scores of the best and of the worst graded response, their margin, and the share of the pairs in the right order."""
        s = self.s.detach()
        chosen, rejected = (s.gather(1, self.extreme(sign))[:, 0] for sign in (1, -1))
        right = self.over_pairs((self.gap.detach() > 0).to(s.dtype), "mean")
        return {"reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected, "accuracy": right}

    def extreme(self, sign: int) -> Tensor:
        """Column of the highest (1) or lowest (-1) grade, [B, 1]; the first of equal ones."""
        return torch.where(self.here, sign * self.psi, -torch.inf).argmax(1, keepdim=True)


def choose(name: str, table: Mapping[str, T], value: str) -> T:
    """The entry of a table of options."""
    if value not in table:
        raise PreftuneError(f"{name} is {value!r}, needed one of {', '.join(table)}")
    return table[value]


def rank(values: Tensor, here: Tensor) -> Tensor:
    """1-based ranks of values [B, K], highest first, among those present; equal values in the order of their columns."""
    order = torch.where(here, values.detach(), -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) + 1


def lambda_rows(x: Graded, *, ranks: Ranks, reduction: Reduction) -> Tensor:
    """LambdaLoss [B]: logistic loss of every pair, weighed by what exchanging the two would change in the list's gain."""
    by: dict[str, Callable[[], Tensor]] = {"model": lambda: rank(x.s, x.here), "labels": lambda: rank(x.psi, x.here)}
    gain, discount = torch.exp2(x.psi), 1 / torch.log1p(choose("ranks", by, ranks)().to(x.s))
    if not torch.isfinite(gain).all():
        raise PreftuneError(f"a grade of {float(x.psi.max()):g} has the gain 2^psi, beyond {x.s.dtype}; needed smaller grades; raise unit")
    delta = (gain[:, :, None] - gain[:, None, :]).abs() * (discount[:, :, None] - discount[:, None, :]).abs()
    return x.over_pairs(-delta * logsigmoid(x.gap), reduction)


def plackett_luce(x: Graded) -> Tensor:
    """-log P(order) [B]: the best drawn by softmax(s), then the best of the rest, ..; sum_i log sum_{psi_j <= psi_i} e^(s_j - s_i)."""
    rest = (x.psi[:, None, :] <= x.psi[:, :, None]) & x.here[:, None, :] & x.here[:, :, None]
    rest = rest & ~torch.eye(x.s.shape[1], dtype=torch.bool, device=x.s.device)
    some = rest.any(2)  # the last response is certain
    others = torch.where(rest | ~some[:, :, None], -x.gap, -torch.inf).logsumexp(2)
    return torch.where(some, -logsigmoid(-others), 0.0).sum(1)  # log(1 + e^others) keeps its accuracy in both tails
