"""Objectives that are trained under attack: what is scored are prompts that an adversary has moved (see `update.adversarial`)."""

from __future__ import annotations

import math

import torch

from ..types import Loss, PreftuneError, Scored, needs

SLOPE = 0.001  # that is left of a term beyond its cut-off


@needs(columns=2, labels=("ranked",), reference=False)
def c_advul(s: Scored, *, toward: float = 0.5, away: float = 0.5, toward_cutoff: float = 0.5, away_cutoff: float = -5.0) -> Loss:
    """Continuous adversarial unlikelihood: likelihood of the safe response, unlikelihood of the other, each up to a cut-off.

    loss = toward * t + away * a,   m = logp / length (mean log-prob of a token; CE = -m)
    t = -m[:, 0]    where -m[:, 0] >= toward_cutoff,   else toward_cutoff + 0.001 * (-m[:, 0])
    a =  m[:, 1]    where  m[:, 1] >= away_cutoff,     else away_cutoff + 0.001 * m[:, 1]

    The sign of away_cutoff is that of a log-prob: the term away * (-CE) is compared as a whole, so -5 means that a response
    whose tokens have a mean probability below e^-5 = 0.7 % is hardly pushed down further. A positive value would cut off every
    response from the start, since m < 0. toward_cutoff has the sign of a cross-entropy: 0.5 stops at e^-0.5 = 61 %.

    Reads   logp, length [B, 2] under the moved prompts; column 0 is safe, column 1 is not
    Limits  cut-offs 0 and -inf: a weighted difference of mean cross-entropies, unbounded below; with away = 0: `nll` times toward.
            At a cut-off the loss jumps by 0.001 of it and its slope falls to a thousandth
    Not     the term on utility data, which are other prompts and stay unattacked, nor the option of the authors' code that
            averages -log(1 - p) over tokens instead of log p
    Source  arXiv:2405.15589, github.com/sophie-xhonneux/Continuous-AdvTrain, adversarial_training.py
    """
    if not (0 <= toward < math.inf and 0 <= away < math.inf and toward + away > 0):
        raise PreftuneError(
            f"toward is {toward} and away {away}, needed finite weights of at least 0, not both 0; the authors take 0.5 and 0.5"
        )
    safe, unsafe = -s.mean_logp[:, 0], s.mean_logp[:, 1]
    t = torch.where(safe < toward_cutoff, toward_cutoff + SLOPE * safe, safe)
    a = torch.where(unsafe < away_cutoff, away_cutoff + SLOPE * unsafe, unsafe)
    return Loss(toward * t + away * a, {"toward_nll": safe.detach(), "away_nll": -unsafe.detach()})
