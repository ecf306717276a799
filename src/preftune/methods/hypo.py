"""Hybrid preference optimisation (Song et al. 2024), arXiv:2406.01462: offline pairs, with the KL to the reference kept online."""

from __future__ import annotations

from functools import partial

from ..collect.online import with_samples
from ..objectives.auxiliary import add, scale
from ..objectives.pairwise import dpo
from ..objectives.policy_gradient import reverse_kl
from ..reference import frozen
from ..types import Method, PreftuneError
from ..update import plain


def hypo(beta: float = 0.1, lam: float = 0.01, responses: int = 2) -> Method:
    """DPO on given pairs plus lam KL(pi || pi_ref), estimated on fresh responses of the policy to the same prompts.

    DPO alone says nothing about responses that no pair names and may leave the KL unbounded there; the online term asks for no
    label. lam = 0 is dpo; beta regularises already, so lam is small. Each step generates `responses` answers a prompt, each
    other's baseline. Under sure labels no pair has a finite optimum, and a small lam does not stop the drift.
    lam and responses are ours; the paper's table of values was not available. Not the later method of this name, which
    conditions the reference within DPO's loss.
    """
    if responses < 2:
        raise PreftuneError(f"responses is {responses}, needed 2 or more: each sample is compared with the others")
    objective = add(partial(dpo, beta=beta), scale(partial(reverse_kl, first=2), lam))
    collect = partial(with_samples, responses=responses)
    return Method(objective, collect, frozen, plain, collect_every="step", reads="responses", columns=2)
