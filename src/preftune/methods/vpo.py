"""Value-incentivised preference optimisation (Cen et al. 2024), arXiv:2405.19320; the loss is derived in `objectives.online.value`."""

from __future__ import annotations

from functools import partial
from typing import Literal

from ..collect.online import Label, beside_reference, calibrated, known
from ..numerics import positive
from ..objectives.auxiliary import add
from ..objectives.online import judged_pairs, value
from ..objectives.pairwise import PULL, dpo
from ..reference import frozen
from ..types import Method, PreftuneError
from ..update import plain
from .online_ipo import SELF_PLAY


def vpo(
    beta: float = 0.1,
    alpha: float = 1e-4,
    calibration: Literal["reference", "chosen", "logged"] = "reference",
    partner: Literal["policy", "reference"] = "policy",
    label: Label = "soft",
) -> Method:
    """DPO plus alpha times the value of the best policy under its implicit reward, optimistic online and pessimistic offline.

    calibration  "reference": online. Pairs of the policy (partner="reference": one response of the reference, then it is xpo with
                 alpha_xpo = alpha beta), and the policy is repelled from the reference's law; "chosen", "logged": on given pairs,
                 and the policy is attracted by the preferred responses (then it is rpo with eta = alpha), or by both alike

    alpha = 0 is online_dpo or dpo. The optimistic term has no minimum for large alpha and grows with the length of responses:
    alpha is small for that reason (the default is ours; the paper's were not available) and should fall to 0.
    """
    positive("beta", beta, PULL)
    if calibration in ("chosen", "logged"):
        if (partner, label) != ("policy", "soft"):
            raise PreftuneError(
                f"partner is {partner!r} and label {label!r} with calibration {calibration!r}, but given pairs bring both; leave them out"
            )
        term = partial(value, alpha=alpha * beta, sign=-1)
        return Method(add(partial(dpo, beta=beta), term), partial(calibrated, by=calibration), frozen, plain)
    if calibration != "reference" or partner not in ("policy", "reference"):
        raise PreftuneError(
            f"calibration is {calibration!r} and partner {partner!r}, needed 'reference', 'chosen' or 'logged', and 'policy' or 'reference'"
        )
    objective = add(partial(judged_pairs, beta=beta), partial(value, alpha=alpha * beta, sign=1))
    collect = partial(beside_reference, partner=partner, label=known(label))
    return Method(objective, collect, frozen, plain, collect_every="step", recipe=SELF_PLAY)
