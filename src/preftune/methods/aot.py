"""Alignment via optimal transport (Melnyk et al. 2024), arXiv:2406.05882."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import transport
from ..reference import frozen
from ..types import Method
from ..update import plain


def aot(beta: float = 0.01, label_smoothing: float = 0.0) -> Method:
    """The distribution of the policy's margins over the batch has to dominate that of the reference's, quantile by quantile.

    Sorts over the whole global batch, whatever the micro-batches; a batch of one pair is dpo. TRL's "aot" sorts within
    each device's micro-batch.
    """
    return Method(partial(transport.aot, beta=beta, label_smoothing=label_smoothing), given, frozen, plain)


def aot_unpaired(beta: float = 0.01, label_smoothing: float = 0.0) -> Method:
    """The log-ratios of all chosen responses of a batch have to dominate those of all rejected ones, quantile by quantile.

    TRL's "aot_unpaired", called "aot_pair" until 2026. Who was paired with whom is ignored; a batch of one pair is dpo.
    """
    return Method(partial(transport.aot_unpaired, beta=beta, label_smoothing=label_smoothing), given, frozen, plain)
