"""Small changes of DPO: what is done to the lengths, the margin, the sides or the weight of a pair, in this order.

Column 0 is preferred; a and b stand for logratio[:, 0] and logratio[:, 1]. Soft labels `prefer` as in `pairwise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..numerics import logsigmoid, not_negative, one_of, positive
from ..types import Loss, Objective, PreftuneError, Scored, Want, needs, needs_of
from .pairwise import PAIR, PULL, cross_entropy, dpo, gap, lengths, ordered, pair_metrics


def _expected(s: Scored, labelled: Tensor, exchanged: Tensor) -> Tensor:
    """The loss as labelled, or its mean over both orders under soft labels."""
    if s.rows.prefer is None:
        return labelled
    prefer = s.rows.prefer.to(labelled.dtype)
    return prefer * labelled + (1 - prefer) * exchanged


@needs(**PAIR)
def dpo_norm(s: Scored, *, beta: float = 5.0) -> Loss:
    """DPO on log-ratios per token (DPO-LN).

    loss = -logsigmoid(beta (a / length[:, 0] - b / length[:, 1]))

    Limits  both responses of length L: `dpo` with beta / L. Winner and loser are moved by 1 / length each
    Not     `dpo`, whose log-ratios are sums: beta is larger by about a response's length
    Source  Tulu 3, arXiv:2411.15124; loss "dpo_norm" in open-instruct, "sigmoid_norm" in TRL
    """
    positive("beta", beta, PULL)
    reward = beta * s.logratio / lengths(s)
    return Loss(cross_entropy(s, reward[:, 0] - reward[:, 1]), ordered(reward))


@needs(**PAIR, wants=("segments",))
def ld_dpo(s: Scored, *, beta: float = 0.1, alpha: float = 0.5) -> Loss:
    """Length-desensitised DPO: what the longer response has beyond the length of the shorter counts alpha times.

    loss = -logsigmoid(beta (a' - b')),   a' = head of a + alpha tail of a = a - (1 - alpha) tail of a

    Reads   segment_logp, segment_ref_logp [B, 2, 2]: segment 0 is the head, the tokens up to the shorter response's
            length, segment 1 the tail; one segment alone is a head
    Limits  alpha = 1, or equal lengths: `dpo`; alpha = 0: both cut to the shorter length
    Not     LLaMA-Factory's, which weighs the policy's tail and not the reference's and so leaves a constant offset
    Source  arXiv:2409.06411; policy and reference weighed alike as in TRL (ld_alpha)
    """
    positive("beta", beta, PULL)
    if not 0 <= alpha <= 1:
        raise PreftuneError(f"alpha is {alpha}, needed 0 <= alpha <= 1: the share of the tail that counts; 1 is dpo")
    reward = beta * (s.logratio - (1 - alpha) * s.segment_logratio[:, :, 1:].sum(2))
    return Loss(cross_entropy(s, reward[:, 0] - reward[:, 1]), ordered(reward))


@needs(**PAIR)
def rdpo_length(s: Scored, *, beta: float = 0.1, alpha: float = 0.01) -> Loss:
    """Length-regularised DPO (R-DPO): alpha reward units for every token that the chosen response is longer.

    loss = -logsigmoid(beta (a - b) + alpha (length[:, 0] - length[:, 1]))

    The sign: the optimum of r - alpha length has beta logratio = r - alpha length, so r = beta logratio + alpha length.

    Limits  alpha = 0 or equal lengths: `dpo`; a longer winner needs less of a margin
    Not     `rdpo` (robust DPO), another paper; the opposite sign would reward length
    Source  arXiv:2403.19159
    """
    positive("beta", beta, PULL)
    not_negative("alpha", alpha, "it is what a token costs, and below 0 length would be rewarded")
    length = lengths(s).to(s.logratio.dtype)
    return Loss(cross_entropy(s, beta * gap(s) + alpha * (length[:, 0] - length[:, 1])), pair_metrics(s, beta))


def _scores(s: Scored, name: str) -> Tensor:
    """score[:, 0] - score[:, 1] [B]."""
    found = torch.full_like(s.logp, math.nan) if s.rows.score is None else s.rows.score.to(s.logp.dtype)
    missing = [s.rows.id[i] for i in found.isnan().any(1).nonzero().flatten().tolist()]
    if missing:
        raise PreftuneError(f"{name} takes its margin from scores, but rows {missing[:10]} carry none; give both responses a score")
    return found[:, 0] - found[:, 1]


@needs(columns=2, labels=("ranked", "score"), optional=("prefer",))
def odpo(s: Scored, *, beta: float = 0.1, alpha: float = 1.0, clip: float = math.inf) -> Loss:
    """DPO with an offset: the margin that is asked for grows with the difference of two scores.

    loss = -logsigmoid(beta (a - b) - m),   m = alpha (score[:, 0] - score[:, 1]), no farther than clip from 0

    Limits  alpha = 0 or equal scores: `dpo`. Scores that contradict the label lower the margin below 0
    Not     `odpo_log`, the authors' default; `modpo`, which divides by a weight
    Source  arXiv:2402.10571 with f the identity; with clip: the adaptive margin of arXiv:2401.06080
    """
    positive("beta", beta, PULL)
    margin = (alpha * _scores(s, "odpo")).clamp(-clip, clip)
    return Loss(cross_entropy(s, beta * gap(s) - margin), {**pair_metrics(s, beta), "offset": margin})


@needs(columns=2, labels=("ranked", "score"))
def odpo_log(s: Scored, *, beta: float = 0.1, alpha: float = 1.0) -> Loss:
    """DPO with an offset that grows with the logarithm of a difference of scores.

    loss = -logsigmoid(beta (a - b) - alpha log(score[:, 0] - score[:, 1]))

    Limits  scores that differ by 1: `dpo`; as the difference falls to 0 so does the loss, and it is 0 from there on (metric "unused")
    Source  arXiv:2402.10571 with f = log, the authors' code (alpha 0.5 or 1)
    """
    positive("beta", beta, PULL)
    positive("alpha", alpha, "it scales the logarithm of the scores' difference")
    difference = _scores(s, "odpo_log")
    margin = alpha * torch.where(difference > 0, difference, 0.0).log()  # log 0 = -inf, whose loss and gradient are 0
    return Loss(-logsigmoid(beta * gap(s) - margin), {**pair_metrics(s, beta), "unused": (difference <= 0).to(margin.dtype)})


Link = Literal["logistic", "hinge"]
LINKS: dict[str, Callable[[Tensor], Tensor]] = {"logistic": lambda m: -logsigmoid(m), "hinge": lambda m: torch.relu(1 - m)}


@needs(columns=2, labels=("ranked", "other_scores"), optional=("prefer",))
def modpo(s: Scored, *, beta: float = 0.1, weights: tuple[float, ...] = (0.5, 0.5), link: Link = "logistic") -> Loss:
    """Multi-objective DPO: pairs speak for one objective, scores for the others, and the policy learns their weighted sum.

    loss = link((beta (a - b) - sum_j weights[j] (r_j[:, 0] - r_j[:, 1])) / weights[0]),   j = 1 .. J

    Reads   other_scores [B, 2] or [B, 2, J]: rewards of the other objectives, in the units of beta * logratio
    Limits  weights (1, 0): `dpo`; equal other scores: `dpo` with beta / weights[0]. Optimum: log-ratio w.r / beta + const
    Source  arXiv:2310.03708; the authors' code (src/trainer/modpo_trainer.py)
    """
    positive("beta", beta, PULL)
    one_of("link", link, LINKS)
    reward = (beta * s.logratio - _others(s, weights)) / weights[0]
    margin = reward[:, 0] - reward[:, 1]
    return Loss(_expected(s, LINKS[link](margin), LINKS[link](-margin)), ordered(reward))


def _others(s: Scored, weights: tuple[float, ...]) -> Tensor:
    """The weighted sum of the other objectives' rewards [B, 2]."""
    if not (all(w >= 0 for w in weights) and math.isclose(sum(weights), 1.0, abs_tol=1e-6)):
        raise PreftuneError(f"weights are {weights}, needed numbers of at least 0 that add up to 1: the share of each objective")
    if weights[0] < 0.05:
        raise PreftuneError(
            f"the weight of the trained objective is {weights[0]}, needed 0.05 or more: margins are divided by it, "
            "and would be more than twenty times as steep; train on another objective's pairs"
        )
    given = s.rows.label("other_scores")
    scores = s.logp.new_zeros(len(s.rows), 2, 0) if given is None else given.to(s.logp.dtype).reshape(len(given), 2, -1)
    if scores.shape[2] != len(weights) - 1:
        needed = f"needed {len(weights) - 1} for the weights {weights}"
        raise PreftuneError(f"modpo found {scores.shape[2]} other_scores for each response, {needed}; give one for each further weight")
    return scores @ scores.new_tensor(weights[1:])


@needs(**PAIR)
def dpop(s: Scored, *, beta: float = 0.3, lam: float = 50.0) -> Loss:
    """DPO-positive: a chosen response that the policy has made less likely than the reference does costs lam times extra.

    loss = -logsigmoid(beta (a - b - lam max(0, -a)))

    Limits  lam = 0, or a >= 0: `dpo`; a kink at a = 0, where the penalty pulls with 0
    Source  Smaug, arXiv:2402.13228
    """
    positive("beta", beta, PULL)
    not_negative("lam", lam, "it weighs the penalty of a chosen response that falls")
    h, penalty = beta * gap(s), beta * lam * torch.relu(-s.logratio)
    row = _expected(s, -logsigmoid(h - penalty[:, 0]), -logsigmoid(-h - penalty[:, 1]))
    return Loss(row, {**pair_metrics(s, beta), "fallen": (s.logratio[:, 0] < 0).to(h.dtype)})


@needs(**PAIR)
def cal_dpo(s: Scored, *, beta: float = 0.001, weight: float = 1.0) -> Loss:
    """Calibrated DPO: the pair loss at beta 1, and each log-ratio regressed to plus or minus 1 / (2 beta).

    loss = -logsigmoid(a - b) + weight [(a - t)^2 + (b + t)^2],   t = 1 / (2 beta)

    Limits  weight = 0: `dpo` with beta 1. A single pair ends at a = -b a little above t: 2 weight (a - t) = sigmoid(-2 a)
    Not     mild: the authors' beta 0.001 asks for 500 nats. Their code has weight 0.5
    Source  arXiv:2412.14516; scripts/dpo_trainer.py of the authors' code
    """
    positive("beta", beta, "the log-ratios go to plus and minus 1 / (2 beta)")
    not_negative("weight", weight, "it weighs the squares against the pair loss")
    (a, b), t = s.logratio.unbind(1), 1 / (2 * beta)
    squares = _expected(s, (a - t) ** 2 + (b + t) ** 2, (a + t) ** 2 + (b - t) ** 2)
    return Loss(cross_entropy(s, a - b) + weight * squares, pair_metrics(s, 1.0))


@needs(**PAIR)
def flex_dpo(s: Scored, *, beta_w: float = 0.1, beta_l: float = 0.05) -> Loss:
    """DPO with a strength for each side, so that the rejected response is pushed less than the chosen one is pulled.

    loss = -logsigmoid(beta_w a - beta_l b)

    Limits  beta_w = beta_l: `dpo`; ln 2 at the reference; the gradients of b and a have the ratio -beta_l / beta_w
    Not     invariant: a constant on both log-ratios of a row changes it where the betas differ
    Source  arXiv:2406.07327 (Flex-DPO)
    """
    positive("beta_w", beta_w, "it is the pull of the chosen response")
    positive("beta_l", beta_l, "it is the push of the rejected response; at 0 the loss would saturate on the chosen one alone")
    reward = s.logratio * s.logratio.new_tensor([beta_w, beta_l])
    other = beta_w * s.logratio[:, 1] - beta_l * s.logratio[:, 0]
    return Loss(_expected(s, -logsigmoid(reward[:, 0] - reward[:, 1]), -logsigmoid(other)), ordered(reward))


@needs(**PAIR, reference=False)
def dpo_reference_free(s: Scored, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Loss:
    """DPO under a reference that gives every response the same probability.

    loss = -logsigmoid(beta (logp[:, 0] - logp[:, 1])), smoothed and softened as `dpo`

    Not     equal to `dpo` at the start: the loss is ln 2 only where the policy finds both responses alike likely
    Source  arXiv:2305.18290, reference_free in the authors' code; the preference term of CPO, arXiv:2401.08417
    """
    return dpo(replace(s, ref_logp=torch.zeros_like(s.logp)), beta=beta, label_smoothing=label_smoothing)


@needs(columns=2, labels=("ranked", "prefer"), optional=("disagreement",))
def spce(s: Scored, *, beta: float = 0.1) -> Loss:
    """Soft-preference cross-entropy: DPO whose label is the strength of a preference.

    loss = -p logsigmoid(h) - (1 - p) logsigmoid(-h),   h = beta (a - b),   p = prefer

    Limits  p = 1: `dpo`; d loss / d h = sigmoid(h) - p, so h ends at logit(p), finite where p is
    Source  arXiv:2405.14103 (its description; the equation is the cross-entropy of Bradley-Terry with a soft label)
    """
    if s.rows.prefer is None:
        raise PreftuneError("spce reads the soft label prefer, but the rows carry none; give prefer or votes, or use dpo")
    loss, apart = dpo(s, beta=beta), s.rows.label("disagreement")
    return loss if apart is None else replace(loss, metrics={**loss.metrics, "disagreement": apart.to(loss.row.dtype)})


class _Factor(str):
    """A factor that `formula_of` prints by its name, where `scale` has a number."""

    def __format__(self, spec: str) -> str:
        return str(self)


def wpo(objective: Objective, *, limit: float = 1.0) -> Objective:
    """Weighted preference optimisation: a pair counts as much as the policy itself would have written it.

    loss = min(limit, w_0 w_1) times the pair's loss,   w = exp(mean over the tokens of log pi(y_t) - log sum_v pi(v)^2), a constant

    Limits  w = 1 for a uniform policy and for a response the policy is sure of; of one token: 1 on average over the policy's
            own, at most the root of the vocabulary's size
    Not     for objectives that couple rows (AOT sorts them): refused. TRL 1.16 has no limit (inf here); earlier versions had 1
    Source  arXiv:2406.11827 eq. 2; scripts/run_wpo.py of the authors' code (limit 1)
    """
    positive("limit", limit if limit != math.inf else 1.0, "it is the largest weight of a pair; 'inf' sets none")

    def exponent(s: Scored) -> Tensor:
        if s.collision is None:
            raise PreftuneError("wpo reads the collision probabilities, but the scores carry none; declare wants=('collision',)")
        return ((s.logp - s.collision) / lengths(s)).sum(1).clamp(max=math.log(limit))

    return _weighted(objective, exponent, ("collision",), "w_aligned")


def wpo_plain(objective: Objective) -> Objective:
    """WPO without alignment: w = exp(mean log-probability of the response's tokens), a constant.

    Not     `wpo`, whose weights are near 1 on the policy's own samples; these fall with the entropy of the text. open-instruct
            clamps w_0 w_1 at 1, which it never exceeds, and lets the gradient through it; here it is a constant as in the paper
    Source  open_instruct/dpo_utils.py, wpo_loss
    """
    return _weighted(objective, lambda s: s.mean_logp.sum(1), (), "w_plain")


def _weighted(objective: Objective, exponent: Callable[[Scored], Tensor], wants: tuple[Want, ...], name: str) -> Objective:
    declared = needs_of(objective)
    if declared.columns != 2 or declared.batch:
        found = "the whole batch" if declared.batch else f"{declared.columns} responses"
        raise PreftuneError(f"wpo weighs losses of single pairs, but this objective reads {found}; give it one of a pair, such as dpo")

    def weighted(s: Scored) -> Loss:
        loss, weight = objective(s), exponent(s).detach().exp()
        return replace(loss, row=weight * loss.row, metrics={**loss.metrics, "weight": weight})

    weighted.needs = replace(declared, wants=tuple(dict.fromkeys([*declared.wants, *wants])))  # type: ignore[attr-defined]
    weighted.parts, weighted.weight = (objective,), _Factor(name)  # type: ignore[attr-defined]
    return weighted
