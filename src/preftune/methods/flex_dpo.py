"""Flex-DPO, the regularisers of "3D-Properties" (Yan et al. 2024), arXiv:2406.07327."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives.auxiliary import add, nll, scale
from ..objectives.modifiers import flex_dpo as loss
from ..reference import frozen
from ..types import Method
from ..update import plain


def flex_dpo(beta_w: float = 0.1, beta_l: float = 0.05, lam: float = 0.0) -> Method:
    """DPO that pushes the rejected response less than it pulls the chosen one, plus lam times the chosen's likelihood per token.

    Equal betas and lam = 0 are dpo; equal betas alone are rpo_avg. Against the suppression of both responses: as the
    rejected one's probability q falls, dpo's push on it grows like 1 / q. beta_l has to stay above 0, or the loss
    saturates on the chosen response alone. The values are ours; the paper's are not known to us.
    """
    pair = partial(loss, beta_w=beta_w, beta_l=beta_l)
    return Method(add(pair, scale(nll, lam)) if lam else pair, given, frozen, plain)
