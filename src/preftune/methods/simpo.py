"""Simple preference optimisation (Meng et al. 2024), arXiv:2405.14734 eq. 6."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..numerics import positive
from ..objectives import reference_free
from ..objectives.auxiliary import add, nll, scale
from ..reference import none
from ..types import Method, PreftuneError
from ..update import plain


def simpo(
    beta: float = 2.0,
    gamma: float | None = None,
    gamma_beta_ratio: float | None = None,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
) -> Method:
    """Mean log-probs without a reference; exactly one of gamma and gamma_beta_ratio = gamma / beta has to be given.

    The authors and HALOs publish the ratio (start at 0.5), TRL and LLaMA-Factory take gamma: a recipe copied from one to
    the other is off by a factor beta. Their beta: 2.0 for base models, 2.5 to 10 for instruct models. sft_weight adds the
    likelihood of the chosen response per token (their option; CPO-SimPO where TRL leaves cpo_alpha at 1).
    """
    if (gamma is None) == (gamma_beta_ratio is None):
        raise PreftuneError(
            f"simpo was given gamma={gamma} and gamma_beta_ratio={gamma_beta_ratio}, needed exactly one of them; "
            "the authors' starting point is gamma_beta_ratio=0.5"
        )
    positive("beta", beta, reference_free.SCALE)
    margin = gamma if gamma is not None else gamma_beta_ratio * beta  # type: ignore[operator]
    notes = (f"simpo: gamma = {margin:g}, gamma / beta = {margin / beta:g}",)
    preference = partial(reference_free.simpo, beta=beta, gamma=margin, label_smoothing=label_smoothing)
    return Method(add(preference, scale(nll, sft_weight)) if sft_weight else preference, given, none, plain, notes=notes)
