"""Mixed preference optimisation (Wang et al. 2024, InternVL2-MPO), arXiv:2411.10442."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives.absolute import Shift, bco_pair
from ..objectives.auxiliary import add, nll, scale
from ..objectives.pairwise import dpo
from ..reference import frozen
from ..types import Method
from ..update import plain


def mpo_mixed(beta: float = 0.1, w_p: float = 0.8, w_q: float = 0.2, w_g: float = 1.0, shift: Shift = "running") -> Method:
    """Which response is better, how good each is, and how the good one is written: w_p dpo + w_q bco_pair + w_g nll.

    The likelihood is the mean over the chosen response's tokens, each row alike. w_q = w_g = 0 is dpo, w_q = 0 rpo_avg
    times w_p. With shift = "none" the middle term is TRL's bco_pair since its running shift was lost. TRL's "sft" term is a mean over
    the tokens of a micro-batch, in which long responses count more.
    """
    pair, quality = partial(dpo, beta=beta), partial(bco_pair, beta=beta, shift=shift)
    return Method(add(scale(pair, w_p), scale(quality, w_q), scale(nll, w_g)), given, frozen, plain)
