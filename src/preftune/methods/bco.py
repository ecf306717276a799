"""Binary classifier optimisation (Jung et al. 2024), arXiv:2404.04656, on unpaired responses."""

from __future__ import annotations

from functools import partial

from ..collect.draw import labelled
from ..objectives import pointwise
from ..reference import frozen
from ..types import Method
from ..update import plain


def bco(beta: float = 0.1) -> Method:
    """Unpaired responses labelled good or bad, as a classifier whose logit is the implicit reward less its running mean.

    Pairs count as one of each; bco_pair is the same loss on pairs. Where a response is good with probability p its reward ends at
    logit(p) above the mean, which neither kto nor apo_zero_unpaired give. Where the two classes answer different prompts, the paper
    weighs the bad ones by clip(p / (1 - p), 0.5, 10), p = P(good | prompt) of a classifier: put that into the column `weight`.
    """
    return Method(partial(pointwise.bco, beta=beta), labelled, frozen, plain)
