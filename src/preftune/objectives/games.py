"""Objectives of self-play against an opponent, whose win rates come with the rows."""

from __future__ import annotations

from ..numerics import positive, variance
from ..types import Loss, PreftuneError, Scored, needs
from .pairwise import PULL


@needs(columns="K", labels=("winrate",), optional=("law",))
def online_ipo(s: Scored, *, beta: float = 0.1) -> Loss:
    """Online IPO: regress differences of log-ratios to differences of win rates over beta.

    loss = E_{y, y'} [(u(y) - u(y'))^2] = 2 Var(u),   u = logratio - winrate / beta

    Over an enumerated law [B, K] the expectation is exact; over K drawn responses it is the unbiased estimate, and for
    K = 2 the familiar squared pair loss.

    Reads   winrate [B, K] = P(response beats the opponent); law [B, K] where the columns enumerate a distribution
    Limits  0 at log pi = log pi_ref + winrate / beta + const: the best answer to that opponent. With uniform law over n
            actions an SGD step lr is the mirror-descent step eta with eta beta = 4 lr / n
    Not     offline IPO, whose target 1 / (2 beta) is a hard label; here a sure win moves the target by 1 / beta at most
    Source  arXiv:2403.08635 eq. 10 and arXiv:2503.08942 (generic online IPO loss)
    """
    positive("beta", beta, PULL)
    if s.rows.winrate is None:
        raise PreftuneError("online_ipo reads winrate, but the rows carry none; collect with a judge against an opponent")
    winrate = s.rows.winrate.to(s.logratio.dtype)
    spread = 2 * variance(s.logratio - winrate / beta, s.rows.law)
    return Loss(spread, {"winrate": winrate.mean(1) if s.rows.law is None else (s.rows.law * winrate).sum(1)})
