"""DPO under f-divergences (Wang et al. 2023), arXiv:2309.16240."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives import divergences
from ..reference import frozen
from ..types import Method, PreftuneError
from ..update import plain


def f_dpo(
    beta: float = 0.1,
    divergence: divergences.Divergence = "js",
    alpha: float | None = None,
    alpha_trl: float | None = None,
    label_smoothing: float = 0.0,
) -> Method:
    """DPO with f'(pi / pi_ref) in place of its logarithm: divergence reverse_kl (is dpo), forward_kl, js or alpha.

    divergence="alpha" takes exactly one of alpha, the paper's and its code's (0: reverse KL, 1: forward KL; they run 0.3,
    0.5, 0.7), and alpha_trl = 1 - alpha, what TRL's f_alpha_divergence_coef means since 0.29. They agree at 0.5 only.
    forward_kl and alpha pull with the exponential of what a chosen response has lost: keep the learning rate small. TRL
    leaves forward KL unclamped and silences the gradient of alpha far out; here rows beyond the dtype are an error.
    The authors give no default for the divergence (their "jsd" is js); beta 0.1 is that of their dialogue runs.
    """
    given_alphas = [value for value in (alpha, alpha_trl) if value is not None]
    if len(given_alphas) != (divergence == "alpha"):
        raise PreftuneError(
            f"f_dpo was given divergence={divergence}, alpha={alpha} and alpha_trl={alpha_trl}, needed exactly one of the alphas with "
            "divergence='alpha' and none with another; the paper's alpha is one minus TRL's"
        )
    paper = alpha if alpha_trl is None else 1 - alpha_trl
    objective = partial(divergences.f_dpo, beta=beta, divergence=divergence, alpha=paper, label_smoothing=label_smoothing)
    return Method(objective, given, frozen, plain)
