"""Identity preference optimisation (Azar et al. 2023), arXiv:2310.12036 eq. 17."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..numerics import positive
from ..objectives import pairwise
from ..reference import frozen
from ..types import Method
from ..update import plain


def ipo(tau: float = 0.1) -> Method:
    """Regress the gap of summed log-ratios to 1 / (2 tau), in nats per response; soft labels to (2p - 1) / (2 tau).

    The paper's loss. Libraries split: TRL, HALOs and LLaMA-Factory run `ipo_avg` under this name.
    """
    positive("tau", tau, pairwise.PULL)
    return Method(partial(pairwise.ipo, beta=tau), given, frozen, plain)


def ipo_avg(tau: float = 0.1) -> Method:
    """Regress the gap of mean log-ratios to 1 / (2 tau), in nats per token: TRL's loss_type "ipo".

    tau is not ipo's tau: at equal lengths L, ipo_avg(tau) has the minimum of ipo(tau / L).
    """
    positive("tau", tau, pairwise.PULL)
    return Method(partial(pairwise.ipo_avg, beta=tau), given, frozen, plain)
