"""Objectives that train judges: they read heads and labels, no log-probs. Column 0 is preferred where rows are ranked.

Where rows carry a soft label `prefer` = P(column 0 beats column 1), pair losses are its expectation over both labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..numerics import logsigmoid, positive, sigmoid
from ..ranking import Graded, choose, plackett_luce
from ..types import Loss, PreftuneError, Scored, needs
from .listwise import graded
from .pairwise import cross_entropy

Margin = Literal["none", "subtract", "scale"]
MARGINS: dict[str, Callable[[Scored], tuple[Tensor | float, Tensor | float]]] = {  # taken off the gap, and the loss's factor
    "none": lambda s: (0.0, 1.0),
    "subtract": lambda s: (strength(s), 1.0),
    "scale": lambda s: (0.0, strength(s).abs()),
}
Form = Literal["pairs", "plackett_luce"]
FORMS: dict[str, Callable[[Graded], Tensor]] = {"pairs": lambda x: x.over_pairs(-logsigmoid(x.gap), "mean"), "plackett_luce": plackett_luce}


def head(s: Scored, name: str, size: int | None = None) -> Tensor:
    """Outputs [B, K, C] of a head, of C = size where that is fixed."""
    if name not in s.heads or size not in (None, s.heads[name].shape[2]):
        found = {key: out.shape[2] for key, out in s.heads.items()}
        raise PreftuneError(
            f"found heads of sizes {found}, needed {name!r} of size {size or 'any'}; give the method heads={{{name!r}: Head(..)}}"
        )
    return s.heads[name]


def extra(s: Scored, name: str, *, whole: bool = True) -> Tensor:
    """A label of `rows.extra`, in every row where it has to be whole."""
    label = s.rows.extra.get(name)
    empty = torch.ones(len(s.rows), 1) if label is None else label.isnan().reshape(len(label), -1) * whole
    gaps = empty.any(1).nonzero().flatten().tolist()
    if label is None or gaps:
        raise PreftuneError(f"rows {[s.rows.id[i] for i in gaps[:10]]} have no {name}, needed one in every row; fill the column")
    return label


def strength(s: Scored) -> Tensor:
    """The label margin [B]: a number for the row, or the difference of the numbers that its two responses have."""
    m = extra(s, "margin").to(s.heads["reward"].dtype)
    return m if m.ndim == 1 else m[:, 0] - m[:, 1]


def judged(z: Tensor) -> dict[str, Tensor]:
    """The judge's P(column 0 beats column 1), and whether it agrees with the order; a tie is half right."""
    z = z.detach()
    return {"probability": sigmoid(z), "accuracy": (1 + z.sign()) / 2}


@needs(columns=2, labels=("ranked",), optional=("prefer", "margin"), reference=False, logp=False)
def bradley_terry(s: Scored, *, margin: Margin = "none", label_smoothing: float = 0.0, centring: float = 0.0) -> Loss:
    """Reward model: the difference of two rewards is the log-odds of the preference.

    loss = -(1-e) logsigmoid(z) - e logsigmoid(-z) + c (r0 + r1)^2,   z = r0 - r1,   c = centring

    Reads   heads["reward"] [B, K, 1]; label margin m [B] (strength of the preference, or the mean margin of several reward
            models), or [B, K], whose difference is m; under margin="subtract": z = r0 - r1 - m, and "scale": |m| times the logistic part
    Limits  r + f(prompt) has the same loss except for the centring, which draws the mean reward of a pair to 0. On cyclic
            preferences nothing is better than equal rewards, ln 2: see `general_preference`. Large margins rule the batch
    Source  arXiv:2203.02155 eq. 1; subtract: arXiv:2307.09288 eq. 2, arXiv:2401.06080; scale: arXiv:2410.01257;
            centring: arXiv:2312.09244, TRL's center_rewards_coefficient
    """
    r = head(s, "reward", 1)[:, :, 0]
    gap = r[:, 0] - r[:, 1]
    shift, weight = choose("margin", MARGINS, margin)(s)
    row = weight * cross_entropy(s, gap - shift, label_smoothing) + centring * (r[:, 0] + r[:, 1]) ** 2
    return Loss(row, {**judged(gap), "reward_chosen": r[:, 0].detach(), "reward_rejected": r[:, 1].detach()})


def skew(v: Tensor, w: Tensor, gate: Tensor | float = 1.0) -> Tensor:
    """sum_b gate_b (v_2b-1 w_2b - v_2b w_2b-1) [...]: how far v [..., 2k] beats w; skew(w, v) = -skew(v, w)."""
    a, b, c, d = v[..., 0::2], v[..., 1::2], w[..., 0::2], w[..., 1::2]
    return (gate * (a * d - b * c)).sum(-1)


@needs(columns=2, labels=("ranked",), optional=("prefer",), reference=False, logp=False)
def general_preference(s: Scored, *, tau: float = 0.1, gated: bool = False, label_smoothing: float = 0.0) -> Loss:
    """General preference model: a skew-symmetric form of two embeddings is the log-odds of the preference.

    loss = -(1-e) logsigmoid(z) - e logsigmoid(-z),   z = skew(v0, v1) / tau

    gated   weighs the k planes by k softmax(heads["gate"]), averaged over both columns so that the form stays skew

    Reads   heads["embedding"] [B, K, 2k]; gated: heads["gate"] [B, K, k]
    Limits  v = (r, 1): Bradley-Terry with r / tau. k = 1 holds any cycle of three. v = 0 is a saddle: start heads at random
    Not     the released alignment scripts, which normalise v; here, as in the training code, |v| is free
    Source  arXiv:2410.02197; github general-preference-model, models/loss.py
    """
    positive("tau", tau, "it is the temperature of the preference model")
    v = head(s, "embedding")
    planes, odd = divmod(v.shape[2], 2)
    if odd:
        raise PreftuneError(f"the embedding has {v.shape[2]} numbers, needed an even count: two for each plane; change the head's size")
    gate = planes * head(s, "gate", planes)[:, :2].mean(1).softmax(1) if gated else 1.0
    z = skew(v[:, 0], v[:, 1], gate) / tau
    return Loss(cross_entropy(s, z, label_smoothing), judged(z))


@needs(columns=2, labels=("ranked",), optional=("prefer",), reference=False, logp=False)
def pairwise_preference(s: Scored, *, label_smoothing: float = 0.0) -> Loss:
    """A model that reads both responses at once: column 0 shows (preferred, other), column 1 the same two the other way round.

    loss = [ell(l0) + ell(-l1)] / 2,   ell(z) = -(1-e) logsigmoid(z) - e logsigmoid(-z),   l the logit that the first shown wins

    Reads   heads["preference"] [B, K, 1]
    Gives   metrics: probability = (sigmoid(l0) + 1 - sigmoid(l1)) / 2, free of a liking for what is shown first, which `bias` measures
    Limits  l1 = -l0: the logistic loss of l0
    Source  PairRM (arXiv:2306.02561), in both orders
    """
    shown = head(s, "preference", 1)[:, :, 0]
    row = (cross_entropy(s, shown[:, 0], label_smoothing) + cross_entropy(s, -shown[:, 1], label_smoothing)) / 2
    p = sigmoid(shown.detach())
    both = (p[:, 0] + 1 - p[:, 1]) / 2
    return Loss(row, {"probability": both, "accuracy": (1 + (both - 0.5).sign()) / 2, "bias": (p[:, 0] + p[:, 1] - 1) / 2})


@needs(columns="K", labels=("attributes",), reference=False, logp=False)
def attribute_regression(s: Scored) -> Loss:
    """Regress A outputs on A marks of a response (helpfulness, correctness, ..); marks that are missing are NaN and count nothing.

    loss = sum_known (r_a - mark_a)^2 / sum_known 1

    Reads   heads["attributes"] [B, K, A]; label attributes [B, K, A], or [B, K]: one mark that all outputs regress
    Gives   row: sum of a row's squares; count: number of its marks, so that every mark of the global batch counts alike
    Source  arXiv:2406.08673 (HelpSteer2)
    """
    marks = extra(s, "attributes", whole=False)
    r = head(s, "attributes", marks.shape[2] if marks.ndim == 3 else None)
    marks = marks if marks.ndim == 3 else marks[:, :, None].expand_as(r)
    known = ~marks.isnan() if s.rows.present is None else ~marks.isnan() & s.rows.present[:, :, None]
    square = torch.where(known, r - marks.nan_to_num().to(r), 0.0) ** 2
    row, count = square.sum((1, 2)), known.sum((1, 2)).to(r.dtype)
    return Loss(row, {"error": (row.detach() / count.clamp(min=1)).sqrt()}, count)


@needs(columns="K", labels=("ranked",), optional=("score",), reference=False, logp=False)
def k_wise(s: Scored, *, form: Form = "pairs") -> Loss:
    """Reward model of ranked lists, graded as in `listwise`.

    pairs          mean_{psi_i > psi_j} -logsigmoid(r_i - r_j): all pairs of a prompt as one element of the batch
    plackett_luce  -sum_k [r_(k) - log sum_{l >= k} e^r_(l)],   (k) the responses by falling grade, ties as in `list_mle`

    Reads   heads["reward"] [B, K, 1]
    Limits  K = 2 is bradley_terry; r + f(prompt) has the same loss
    Source  arXiv:2203.02155 eq. 1 (InstructGPT); arXiv:2301.11270
    """
    x = graded(s, head(s, "reward", 1)[:, :, 0])
    return Loss(choose("form", FORMS, form)(x), x.metrics())
