"""Statistics that an objective carries from step to step, in `Scored.running` and `Loss.running`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Scored


def running_mean(s: Scored, name: str, values: Tensor, present: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean of all `values` of all steps so far, this batch's included, and what `Loss.running` has to hold for the next step.

    mean' = mean + (sum(values) - n mean) / (count + n),   count' = count + n,   n = number of values

    Reads   s.running["<name>_mean"], s.running["<name>_count"]; nothing of either at the first step. `present`, of the
            shape of `values`, is False where a value does not count
    Gives   the mean, a constant (no gradient), and {"<name>_mean": mean', "<name>_count": count'}. Every value counts alike,
            whatever the sizes of the batches; no value so far gives 0
    Not     an exponential average: old steps are never forgotten, so the mean lags behind a reward that drifts
    """
    values = values.detach()
    counts = torch.ones_like(values) if present is None else present.to(values.dtype)
    zero = values.new_zeros(())
    mean, count = (s.running.get(f"{name}_{part}", zero) for part in ("mean", "count"))
    n = counts.sum()
    mean = mean + ((values * counts).sum() - n * mean) / (count + n).clamp(min=1)
    return mean, {f"{name}_mean": mean, f"{name}_count": count + n}
