"""Supervised fine-tuning on the preferred responses: the likelihood term alone, and the control of every method here."""

from __future__ import annotations

from functools import partial

from ..collect.draw import given
from ..objectives.auxiliary import Aggregation, nll
from ..reference import none
from ..types import Method
from ..update import plain


def sft(aggregation: Aggregation = "tok_mean") -> Method:
    """Negative log-likelihood of the completion, or of the chosen response of a pair.

    tok_mean averages over all response tokens of the global batch, whatever the micro-batches.
    """
    return Method(partial(nll, aggregation=aggregation), given, none, plain)
