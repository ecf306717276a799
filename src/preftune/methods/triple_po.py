"""Triple preference optimisation (2024), arXiv:2405.16681; TRL calls it TPO."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import reference_free
from ..objectives.auxiliary import add, scale
from ..reference import none
from ..types import Method
from ..update import plain


def triple_po(
    beta: float = 0.01,
    alpha: float = 1.0,
    link: reference_free.Link = "logistic",
    per_token: bool = False,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Method:
    """A pair without a reference plus alpha times the likelihood of a third, gold response. No reference model.

    Rows have the columns chosen, rejected and gold (what TRL calls "reference"), or three responses in this order. With the
    gold response equal to the preferred one this is cpo. TRL's loss_type "tpo-l" is per_token=True with gamma=0.5, in reward
    units; at beta = 0.01 that loss is nearly constant. Not tpo, which learns from trees.
    """
    preference = partial(reference_free.cpo, beta=beta, gamma=gamma, link=link, per_token=per_token, label_smoothing=label_smoothing)
    return Method(add(preference, scale(reference_free.gold_nll, alpha)), given, none, plain)
