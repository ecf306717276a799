"""Contrastive preference optimisation (Xu et al. 2024), arXiv:2401.08417."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import reference_free
from ..objectives.auxiliary import add, nll, scale
from ..reference import none
from ..types import Method
from ..update import plain


def cpo(
    beta: float = 0.1,
    alpha: float = 1.0,
    link: reference_free.Link = "logistic",
    per_token: bool = False,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
) -> Method:
    """A pair without a reference plus alpha times the likelihood of the chosen response per token.

    alpha = 0 is dpo with a reference to which both responses are alike. TRL's CPOTrainer calls alpha cpo_alpha; its loss_type
    "hinge" is link=hinge (the nearest it has to SLiC-HF), "ipo" link=squared with per_token, "simpo" the method simpo with
    sft_weight = cpo_alpha, "alphapo" the method alphapo. link=hinge with per_token and alpha = 0 is the hinge of SimPO's authors,
    gamma its margin in reward units (beta times their gamma_beta_ratio). TRL's likelihood is a mean over the tokens of
    a micro-batch; here every row counts alike, whatever the micro-batches.
    """
    preference = partial(reference_free.cpo, beta=beta, gamma=gamma, link=link, per_token=per_token, label_smoothing=label_smoothing)
    return Method(add(preference, scale(nll, alpha)), given, none, plain)
