"""How far a text was degraded, read off the policy's hidden states by a head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from ..numerics import one_of
from ..types import Loss, PreftuneError, Scored, needs

SURROGATES = {"logistic": lambda gap: softplus(-gap), "hinge": lambda gap: relu(1 - gap)}


def labelled(s: Scored) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of the head [B, K, C], degrees [B, K], and which responses have one [B, K]."""
    if "degree" not in s.heads or s.rows.label("degree") is None:
        raise PreftuneError("the degree loss reads a head and a label degree; collect with `degraded_copies`, heads={'degree': Head(...)}")
    head, label = s.heads["degree"].to(s.logp.dtype), s.rows.label("degree")
    return head, label, label >= 0 if s.rows.present is None else (label >= 0) & s.rows.present


@needs(columns=2, labels=("degree",), reference=False)
def degree(s: Scored) -> Loss:
    """Which of the degrees a response has: cross-entropy, mean over a row's labelled responses.

    loss = -mean_d log q_d(z_d),   q = softmax(head at z_d)

    Reads   head degree [B, K, N]; label degree [B, K] in 0 .. N - 1, -1 where a response has none. Not logp: it acts through
            the hidden states
    Limits  a head at zero: ln N, and no gradient reaches the policy
    Not     knowledge of preference by itself: length and grammar give a degree away, see the controls of the method
    Source  arXiv:2409.17791 names the loss; its exact form there was not available and is ours
    """
    head, label, there = labelled(s)
    target = torch.where(there, label, torch.zeros_like(label)).long()
    loss = -head.log_softmax(2).gather(2, target[:, :, None])[:, :, 0]
    row = (loss * there).sum(1) / there.sum(1)
    right = (head.detach().argmax(2) == target) & there
    return Loss(row, {"degree_loss": row.detach(), "degree_accuracy": right.sum(1) / there.sum(1)})


@needs(columns=2, labels=("degree",), reference=False)
def ordinal(s: Scored, *, surrogate: str = "logistic") -> Loss:
    """That a less degraded response scores higher: a loss for every pair of a row's labelled responses, and their mean.

    loss = mean over degree_i < degree_j of l(s_i - s_j),   l(x) = log(1 + e^-x) | max(0, 1 - x)

    Reads   head degree [B, K, 1], a scale; label degree [B, K], -1 where a response has none
    Limits  a head at zero: ln 2 (logistic), 1 (hinge); one response alone: 0
    Source  the ordered variant of `degree`; ours
    """
    one_of("surrogate", surrogate, SURROGATES)
    head, label, there = labelled(s)
    gap = head - head.transpose(1, 2)  # [B, K, K]: score of i minus score of j
    pair = (label[:, :, None] < label[:, None, :]) & there[:, :, None] & there[:, None, :]
    count = pair.sum((1, 2)) + (pair.sum((1, 2)) == 0)
    row = (SURROGATES[surrogate](gap) * pair).sum((1, 2)) / count
    return Loss(row, {"degree_loss": row.detach(), "degree_accuracy": ((gap.detach() > 0) & pair).sum((1, 2)) / count})
