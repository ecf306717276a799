"""Heads: a linear layer on the pooled last hidden states of a response. They train beside a policy and are no part of its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..types import Head, Key, PreftuneError

PREFIX = "heads."  # of their parameters' names in a policy's state
POOLS: dict[str, Callable[[Tensor], Tensor]] = {  # [T, d] -> [d], in float32 whatever the states are in
    "mean": lambda states: states.float().mean(0),
    "last": lambda states: states[-1].float(),
}


class PooledHead(nn.Module):
    """float32 throughout: in 16 bits the outputs of two similar responses would be the same number.

    The weights come from the key alone, so that torch's generators neither enter nor move.
    """

    def __init__(self, head: Head, width: int, key: Key, device: torch.device) -> None:
        super().__init__()
        if head.pool not in POOLS:
            raise PreftuneError(f"a head pools by {head.pool!r}, needed one of {', '.join(POOLS)}; mean is usual")
        self.pool = POOLS[head.pool]
        self.linear = nn.utils.skip_init(nn.Linear, width, head.size, device=device, dtype=torch.float32)
        with torch.no_grad():
            std = (width + 1) ** -0.5 if head.std is None else head.std
            self.linear.weight.copy_(std * torch.from_numpy(key.numpy().standard_normal((head.size, width))))
            self.linear.bias.zero_()
        for parameter in self.linear.parameters():
            parameter.lr_scale = head.lr_scale  # type: ignore[attr-defined]  # the learner groups by it

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Hidden states [T_i, d] of each response's own tokens -> [N, C]."""
        if not states:
            return self.linear.weight.new_empty(0, self.linear.out_features)
        return self.linear(torch.stack([self.pool(of_one) for of_one in states]))  # type: ignore[no-any-return]


def make_heads(heads: Mapping[str, Head], width: int, key: Key, device: torch.device) -> dict[str, PooledHead]:
    """One module per head; each is drawn from its name, so that a further head changes no other."""
    return {name: PooledHead(head, width, key.fold(name), device) for name, head in heads.items()}


def head_parameters(heads: Mapping[str, PooledHead]) -> dict[str, Tensor]:
    """ "heads.<name>.weight" and "heads.<name>.bias" of all."""
    return {f"{PREFIX}{name}.{part}": value for name, head in heads.items() for part, value in head.linear.named_parameters()}


def without_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a policy's state is its model's."""
    return {name: value for name, value in state.items() if not name.startswith(PREFIX)}
