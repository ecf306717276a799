"""DPO under other divergences than the reverse KL: the log-ratio gives way to f'(u), u = pi / pi_ref of the whole response."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..numerics import LN2, logsigmoid, one_of
from ..types import Loss, PreftuneError, Scored, needs
from .pairwise import dpo

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]

# f'(u) up to a constant, as a function of a = log u and of alpha
SCORES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reverse_kl": lambda a, _: a,  #                                 f = u log u
    "forward_kl": lambda a, _: -torch.expm1(-a),  #                  f = -log u,  f' = -1 / u
    "js": lambda a, _: LN2 + logsigmoid(a),  #                       f = u log u - (u + 1) log((u + 1) / 2)
    "alpha": lambda a, alpha: -torch.expm1(-alpha * a) / alpha,  #   f' = (1 - u^-alpha) / alpha
}


def under(s: Scored, *, divergence: Divergence, alpha: float | None = None) -> Scored:
    """The rows as they look under a divergence: their `logratio` is f'(u), for any loss that reads log-ratios with a reference.

    reverse_kl  log u
    forward_kl  1 - 1 / u                  alpha -> 1
    js          log(2 u / (1 + u))         below log 2, and log u + log 2 for u -> 0
    alpha       (1 - u^-alpha) / alpha     0 < alpha < 1; alpha -> 0 is reverse_kl

    Not     TRL's alpha since 0.29, which is one minus this. Losses of absolute log-ratios feel f's constant: f'(1) = 0 here
    """
    one_of("divergence", divergence, SCORES, "; reverse_kl is plain DPO")
    if (alpha is not None) != (divergence == "alpha"):
        raise PreftuneError(
            f"divergence is {divergence} and alpha is {alpha}: needed a number for divergence='alpha' and none for the others"
        )
    if alpha is not None and not 0 < alpha < 1:
        raise PreftuneError(f"alpha is {alpha}, needed 0 < alpha < 1; its limits are reverse_kl (0) and forward_kl (1)")
    score = SCORES[divergence](s.logratio, 1.0 if alpha is None else alpha)
    finite = torch.isfinite(score).all(1)
    if not finite.all():
        ids = [s.rows.id[i] for i in (~finite).nonzero().flatten().tolist()]
        furthest = float(s.logratio.detach()[~finite].min())
        raise PreftuneError(
            f"the {divergence} score of rows {ids[:10]}{' ...' if len(ids) > 10 else ''} is beyond what {str(score.dtype)[6:]} holds: "
            f"it is an exponential of minus the log-ratio, which fell to {furthest:.6g} nats; needed responses that the policy has not "
            "all but lost; lower the learning rate, raise beta, or use divergence=js or reverse_kl"
        )
    return replace(s, logp=score, ref_logp=torch.zeros_like(score))


@needs(columns=2, labels=("ranked",), optional=("prefer",), domain=80.0)
def f_dpo(s: Scored, *, beta: float = 0.1, divergence: Divergence = "js", alpha: float | None = None, label_smoothing: float = 0.0) -> Loss:
    """DPO regularised by an f-divergence: `dpo` on f'(u) in place of log u.

    loss = -logsigmoid(beta f'(u0) - beta f'(u1)),   u = pi / pi_ref,   f' by divergence: see `under`

    Limits  reverse_kl is dpo; optimum under Bradley-Terry rewards R: beta f'(u) = R + const. js: a winner gained (u >> 1) pulls
            no more; forward_kl and alpha: a loser lost pulls no more, a winner lost pulls with e^(-log u): finite in float32
            down to log u = -80, in float64 to about -700 (alpha: those numbers over alpha)
    Not     chi-square or total variation, whose f'(0) is finite: there the optimum has zeros that this loss cannot express
    Source  arXiv:2309.16240 and its code (f-divergence-dpo), whose alpha is ours
    """
    return dpo(under(s, divergence=divergence, alpha=alpha), beta=beta, label_smoothing=label_smoothing)
