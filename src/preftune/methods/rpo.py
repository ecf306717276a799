"""Regularised preference optimisation (Liu et al. 2024), arXiv:2405.16436: DPO plus the likelihood of the chosen."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..numerics import positive
from ..objectives.auxiliary import add, nll, scale
from ..objectives.pairwise import PULL, dpo
from ..reference import frozen
from ..types import Method
from ..update import plain


def rpo(beta: float = 0.01, eta: float = 0.005, label_smoothing: float = 0.0) -> Method:
    """DPO plus the likelihood of the chosen, summed over its tokens: dpo - eta * beta * logp(chosen). The paper's main form.

    The likelihood term keeps the chosen response from losing probability with the rejected one. It reads column 0 also
    under soft labels: the likelier winner. eta = 0 is dpo.
    """
    positive("beta", beta, PULL)
    likelihood = scale(partial(nll, aggregation="seq_sum"), eta * beta)
    return Method(add(partial(dpo, beta=beta, label_smoothing=label_smoothing), likelihood), given, frozen, plain)


def rpo_avg(beta: float = 0.01, eta: float = 0.2, label_smoothing: float = 0.0) -> Method:
    """DPO plus the likelihood of the chosen per token: dpo - eta * logp(chosen) / length. Their appendix F.

    At alpha = eta this is also the loss of iterative reasoning preference optimisation (arXiv:2404.19733). Against rpo
    its term is 1 / (beta length) times as strong at equal eta; the authors find this form better for reasoning.
    """
    likelihood = scale(partial(nll, aggregation="seq_mean"), eta)
    return Method(add(partial(dpo, beta=beta, label_smoothing=label_smoothing), likelihood), given, frozen, plain)
