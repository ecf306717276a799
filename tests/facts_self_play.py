"""Facts of self-play around Nash-MD and by rounds: ipo-md, nash-md and its policy gradients, mpo."""

from __future__ import annotations

import math

from facts import Facts, Refusal
from preftune import methods
from preftune.reference import ema

SHIPPED = {
    "ipo-md": Facts(methods.ipo_md(), shift=True, swap=True),
    "nash-md": Facts(methods.nash_md(), shift=True, swap=True),
    # smooth=False: win rates and KL are constants for the gradient, and parts of the value; apart=False: a response that wins less
    # than the others may still win more than half
    "nash-md-pg": Facts(methods.nash_md_pg(), apart=False, swap=True, smooth=False),
    "nash-md-pg leave one out": Facts(methods.nash_md_pg(responses=4, baseline="leave_one_out"), shift=True, swap=True, smooth=False),
    "nash-ema-pg": Facts(methods.nash_ema_pg(), apart=False, swap=True, smooth=False),
    "mpo": Facts(methods.mpo(), shift=True, swap=True),
}

REFUSED: dict[str, Refusal] = {
    "a mixture of ipo-md beyond the reference": (lambda: methods.ipo_md(b=1.5), "mixture is 1.5"),
    "a negative mixture": (lambda: methods.nash_md(mixture=-0.1), "mixture is -0.1"),
    "a NaN mixture": (lambda: methods.nash_md_pg(mixture=math.nan), "mixture is nan"),
    "nash-md without an opponent": (lambda: methods.nash_md(opponents=0), "opponents is 0"),
    "nash-md-pg without an opponent": (lambda: methods.nash_md_pg(opponents=0), "opponents is 0"),
    "nash-ema-pg without an opponent": (lambda: methods.nash_ema_pg(opponents=0), "opponents is 0"),
    "a baseline of one response": (lambda: methods.nash_md_pg(baseline="leave_one_out"), "responses is 1"),
    "an average that grows": (lambda: methods.nash_ema_pg(decay=1.1), "decay is 1.1"),
    "an average that is no number": (lambda: ema(math.nan), "decay is nan"),
    "a magnet that never waits": (lambda: methods.mpo(K=0), "K is 0"),
}

BETAS = {
    "ipo-md": lambda v: methods.ipo_md(tau=v),
    "nash-md": lambda v: methods.nash_md(tau=v),
    "mpo": lambda v: methods.mpo(tau=v),
}
