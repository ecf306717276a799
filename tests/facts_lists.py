"""Facts of lists and trees: lipo, list-mle, list-softmax, pair-logistic, pair-hinge, tpo."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from facts import DRAW, B, Facts, Limit, Refusal, Value, at, at_reference, columns, gradient, normal, pairs, row
from preftune import methods
from preftune.objectives import absolute, pairwise
from preftune.objectives.listwise import (
    graded,
    lipo,
    list_mle,
    list_nca,
    list_softmax,
    pair_hinge,
    pair_logistic,
    pointwise_mse,
    pointwise_sigmoid,
)
from preftune.objectives.tree import tpo
from preftune.policies.tabular import TableResponses
from preftune.probe import probe
from preftune.types import Rows, Scored

K = 5
TWO = 1 / math.log(2) - 1 / math.log(3)  # the lambda weight of a list of two with grades 1 and 0
dpo, dpo5 = pairwise.dpo, partial(pairwise.dpo, beta=0.5)
lipo5, mle5, softmax5 = partial(lipo, beta=0.5), partial(list_mle, beta=0.5), partial(list_softmax, beta=0.5)
logistic5, hinge5 = partial(pair_logistic, beta=0.5), partial(pair_hinge, beta=0.5)
LOSSES = {
    "lipo": lipo5,
    "lipo by labels": partial(lipo5, ranks="labels", reduction="mean"),
    "list_mle": mle5,
    "list_softmax": softmax5,
    "list_softmax with alpha": partial(softmax5, alpha=0.3),
    "pair_logistic": logistic5,
    "pair_hinge": hinge5,
    "pointwise_mse": partial(pointwise_mse, beta=0.5),
    "pointwise_sigmoid": partial(pointwise_sigmoid, beta=0.5),
    "list_nca": partial(list_nca, beta=0.5, alpha=0.3),
}
RELATIVE = {name: loss for name, loss in LOSSES.items() if "pointwise" not in name and name != "list_nca"}


def lists(k: int = K, *, score: Tensor | None = None, **labels: Tensor) -> Scored:
    """B lists of k responses in any order, scores in [0, 1], log-ratios with standard deviation 3."""
    score = torch.rand(B, k, generator=DRAW, dtype=torch.float64) if score is None else score
    length = torch.randint(5, 41, (B, k), generator=DRAW).double()
    logp = -length * (1 + torch.rand(B, k, generator=DRAW, dtype=torch.float64))
    rows = Rows(tuple(map(str, range(B))), tuple(range(B)), TableResponses(torch.arange(k).expand(B, k)), score=score, **labels)
    return Scored(rows, logp.requires_grad_(), logp.detach() + 3 * normal(B, k), length)


def like(*psi: float) -> Callable[[], Scored]:
    """Lists with these grades in every row."""
    return lambda: lists(len(psi), score=torch.tensor([psi] * B, dtype=torch.float64))


def best_first() -> Scored:
    """Lists ranked without scores."""
    s = lists()
    return replace(s, rows=s.rows.replace(score=None, ranked=True))


def relabelled(s: Scored, order: list[int]) -> Scored:
    """Columns in another order (or some of them) together with their labels."""
    pick = lambda x: None if x is None else x[:, order]
    return replace(columns(s, order), rows=s.rows.replace(score=pick(s.rows.score), present=pick(s.rows.present)))


def absent() -> Scored:
    """Column 2 is no response: its score is NaN and its numbers are arbitrary."""
    s = lists()
    s.rows.score[:, 2] = torch.nan
    present = torch.ones(B, K, dtype=torch.bool)
    present[:, 2] = False
    return replace(s, rows=s.rows.replace(present=present))


def without(s: Scored) -> Scored:
    """The same lists without column 2."""
    s = relabelled(s, [0, 1, 3, 4])
    return replace(s, rows=s.rows.replace(present=None))


def scores(s: Scored, beta: float = 0.5) -> Tensor:
    return beta * s.logratio


def by_hand(s: Scored, *, beta: float, ranks: str = "model", mean: bool = False) -> Tensor:
    """LiPO-lambda with loops over pairs, as its formula stands."""
    out = []
    for z, psi in zip(beta * s.logratio, s.rows.score.tolist(), strict=True):
        keys = z.tolist() if ranks == "model" else psi
        tau = [1 + sum(other > key for other in keys) for key in keys]
        found = [
            abs(2 ** psi[i] - 2 ** psi[j]) * abs(1 / math.log(1 + tau[i]) - 1 / math.log(1 + tau[j])) * -logsigmoid(z[i] - z[j])
            for i in range(len(psi))
            for j in range(len(psi))
            if psi[i] > psi[j]
        ]
        out.append(torch.stack(found).mean() if mean else torch.stack(found).sum())
    return torch.stack(out)


def nca_by_hand(s: Scored, beta: float, alpha: float) -> Tensor:
    """Every response by itself: weight t_i as data, 1 / K as noise."""
    out = []
    for z, psi in zip(beta * s.logratio, s.rows.score.tolist(), strict=True):
        whole = sum(math.exp(grade / alpha) for grade in psi)
        out.append(-sum(math.exp(g / alpha) / whole * logsigmoid(x) + logsigmoid(-x) / len(psi) for x, g in zip(z, psi, strict=True)))
    return torch.stack(out)


def at_nca_target() -> Scored:
    """beta logratio = log(K t), t = softmax(score / 0.3), beta 0.5."""
    s = lists()
    target = (K * (s.rows.score / 0.3).softmax(1)).log() / 0.5
    return replace(s, ref_logp=s.logp.detach() - target)


def mle_by_hand(s: Scored, beta: float) -> Tensor:
    """Plackett-Luce with loops: the best of what is left, again and again."""
    out = []
    for z, psi in zip(beta * s.logratio, s.rows.score.tolist(), strict=True):
        order = sorted(range(len(psi)), key=lambda i: -psi[i])
        out.append(sum(z[order[k:]].logsumexp(0) - z[order[k]] for k in range(len(psi))))
    return torch.stack(out)


# --- trees ----------------------------------------------------------------------------------------------------------

S = 3


def trees(*, same: bool = False, orthogonal: bool = False, steps: int = S, k: int = 4) -> Scored:
    """Lists whose responses consist of three steps. same: one state for all; orthogonal: those of the best at right angles."""
    s = lists(k)
    cuts = torch.cat([torch.zeros(B, k, 1, dtype=torch.int64), torch.randint(2, 9, (B, k, steps), generator=DRAW).cumsum(2)], 2)
    states = normal(B, k, steps, 8)
    best = s.rows.score.argmax(1)[:, None, None, None].expand(-1, 1, steps, 8)
    if same:
        states = states[:, :1].expand(-1, k, -1, -1) * torch.rand(B, k, steps, 1, generator=DRAW, dtype=torch.float64)
    if orthogonal:
        first = states.gather(1, best)
        states = states - first * (states * first).sum(3, keepdim=True) / (first * first).sum(3, keepdim=True)
        states = states.scatter(1, best, first)
    share = torch.rand(B, k, steps, generator=DRAW, dtype=torch.float64)
    share = share / share.sum(2, keepdim=True)
    logp, reference = s.logp.detach(), s.ref_logp
    s = replace(s, rows=s.rows.replace(segments=cuts), length=cuts[:, :, -1].double(), states=states)
    return at(replace(s, segment_logp=share * logp[:, :, None], segment_ref_logp=share.flip(2) * reference[:, :, None]), logp)


def one_step(k: int = 4) -> Scored:
    s = trees(steps=1, k=k)
    return replace(s, segment_logp=s.logp[:, :, None], segment_ref_logp=s.ref_logp[:, :, None])


def shortened(s: Scored) -> Scored:
    """Without the last step: its boundaries are equal and it has no log-probability."""
    cuts = s.rows.segments.clone()
    cuts[:, :, -1] = cuts[:, :, -2]
    keep = torch.tensor([1.0] * (S - 1) + [0.0], dtype=torch.float64)
    return replace(s, rows=s.rows.replace(segments=cuts), segment_logp=s.segment_logp * keep, segment_ref_logp=s.segment_ref_logp * keep)


def cut(s: Scored) -> Scored:
    """The same without the place of the last step."""
    rows = s.rows.replace(segments=s.rows.segments[:, :, :-1])
    return replace(
        s,
        rows=rows,
        segment_logp=s.segment_logp[:, :, :-1],
        segment_ref_logp=s.segment_ref_logp[:, :, :-1],
        states=s.states[:, :, :-1],
    )


tree = partial(tpo, beta=0.5, unit=1.0)
none = partial(tree, weight="none")
SHIPPED = {
    "lipo": Facts(methods.lipo(), steady=True, shift=True),
    "lipo labels": Facts(methods.lipo(0.5, ranks="labels", reduction="mean", unit=0.2), steady=True, shift=True),
    "list-mle": Facts(methods.list_mle(), steady=True, shift=True),
    "list-softmax": Facts(methods.list_softmax(), shift=True),  # turns back beyond its target
    "nca of lists": Facts(methods.nca(alpha=0.1)),
    "list-softmax infonca": Facts(methods.list_softmax(alpha=0.1), shift=True),
    "pair-logistic": Facts(methods.pair_logistic(), steady=True, shift=True),
    "pair-logistic sum": Facts(methods.pair_logistic(reduction="sum"), steady=True, shift=True),
    "pair-hinge": Facts(methods.pair_hinge(), shift=True),  # flat for pairs in order
    "tpo": Facts(methods.tpo(unit=1.0), steady=True),
    "tpo none": Facts(methods.tpo(weight="none", unit=1.0), steady=True, shift=True),
    "tpo mean": Facts(methods.tpo(step="mean", unit=1.0), steady=True),
    "tpo distance": Facts(methods.tpo(weight="distance", unit=1.0), apart=False),  # the best path itself has weight 0
}

# sentence: (left, right, rows)
LIMITS: dict[str, Limit] = {
    "list_nca is its formula": (row(partial(list_nca, beta=0.5, alpha=0.3)), lambda s: nca_by_hand(s, 0.5, 0.3), lists),
    "list_nca of two whose grades are far apart is nca": (
        row(partial(list_nca, beta=0.5, alpha=0.001)),
        row(partial(absolute.nca, beta=0.5)),
        like(1.0, 0.0),
    ),
    "list_mle of two is dpo": (row(mle5), row(dpo5), pairs),
    "list_softmax of two graded 1 and 0 is dpo": (row(softmax5), row(dpo5), pairs),
    "pair_logistic of two is dpo": (row(logistic5), row(dpo5), pairs),
    "pair_hinge of two is hinge": (row(hinge5), row(partial(pairwise.hinge, beta=0.5)), pairs),
    "lipo of two is 1 / ln 2 - 1 / ln 3 times dpo": (row(lipo5), lambda s: TWO * dpo5(s).row, pairs),
    "lipo of two by labels is the same": (row(partial(lipo5, ranks="labels")), row(lipo5), pairs),
    "lipo of two graded a and b is |2^a - 2^b| times as much": (
        row(lipo5),
        lambda s: (2**0.9 - 2**0.3) * TWO * dpo5(s).row,
        like(0.9, 0.3),
    ),
    "lipo of two: exchanging columns and grades changes nothing": (
        row(lipo5),
        lambda s: lipo5(relabelled(s, [1, 0])).row,
        lambda: lists(2),
    ),
    "list_softmax of two graded p and 1 - p is dpo with that soft label": (
        row(softmax5),
        lambda s: dpo5(replace(s, rows=s.rows.replace(prefer=torch.full((B,), 0.7, dtype=torch.float64)))).row,
        like(0.7, 0.3),
    ),
    "lipo is its formula": (row(lipo5), partial(by_hand, beta=0.5), lists),
    "lipo by labels is its formula": (row(partial(lipo5, ranks="labels")), partial(by_hand, beta=0.5, ranks="labels"), lists),
    "lipo's mean is its formula": (row(partial(lipo5, reduction="mean")), partial(by_hand, beta=0.5, mean=True), lists),
    "lipo's mean is its sum over the pairs": (row(partial(lipo5, reduction="mean")), lambda s: lipo5(s).row / 10, lists),
    "lipo: scores over their unit are the grades": (
        row(partial(lipo5, unit=10.0)),
        lambda s: lipo5(replace(s, rows=s.rows.replace(score=s.rows.score / 10))).row,
        lambda: lists(score=10 * torch.rand(B, K, generator=DRAW, dtype=torch.float64)),
    ),
    "lipo: a constant on all grades scales the gains": (
        row(lipo5),
        lambda s: lipo5(replace(s, rows=s.rows.replace(score=s.rows.score + 3))).row / 8,
        lists,
    ),
    "list_mle is its formula": (row(mle5), partial(mle_by_hand, beta=0.5), lists),
    "list_mle is a choice among all and then the list without the best": (
        row(mle5),
        lambda s: -scores(s).log_softmax(1)[:, 0] + mle5(relabelled(s, [1, 2, 3])).row,
        like(0.9, 0.5, 0.3, 0.0),
    ),
    "list_mle only reads the order of the grades": (
        row(mle5),
        lambda s: mle5(replace(s, rows=s.rows.replace(score=torch.expm1(9 * s.rows.score)))).row,
        lists,
    ),
    "list_mle of equal grades draws each from all": (row(mle5), lambda s: -scores(s).log_softmax(1).sum(1), like(0.5, 0.5, 0.5)),
    "list_mle with a tie at the top draws both from all": (
        row(mle5),
        lambda s: -scores(s).log_softmax(1)[:, :2].sum(1),
        like(0.9, 0.9, 0.1),
    ),
    "list_mle with a tie at the bottom draws both from the two": (
        row(mle5),
        lambda s: -scores(s).log_softmax(1)[:, 0] - scores(s)[:, 1:].log_softmax(1).sum(1),
        like(0.9, 0.1, 0.1),
    ),
    "list_mle of two equal ones is both orders of dpo": (
        row(mle5),
        lambda s: -logsigmoid(scores(s)[:, 0] - scores(s)[:, 1]) - logsigmoid(scores(s)[:, 1] - scores(s)[:, 0]),
        like(0.2, 0.2),
    ),
    "list_softmax is its formula": (
        row(softmax5),
        lambda s: -(s.rows.score / s.rows.score.sum(1, keepdim=True) * scores(s).log_softmax(1)).sum(1),
        lists,
    ),
    "list_softmax does not read the scale of the scores": (
        row(softmax5),
        lambda s: softmax5(replace(s, rows=s.rows.replace(score=100 * s.rows.score))).row,
        lists,
    ),
    "list_softmax with a cold alpha is the likelihood of the best among the list": (
        row(partial(softmax5, alpha=0.005)),
        lambda s: -scores(s).log_softmax(1)[:, 1],
        like(0.1, 0.9, 0.4),
    ),
    "list_softmax with alpha 1 and logarithms as grades has these as shares": (
        row(partial(softmax5, alpha=1.0)),
        lambda s: softmax5(replace(s, rows=s.rows.replace(score=s.rows.score.exp()))).row,
        lists,
    ),
    "list_softmax with a constant on all grades is the same under alpha": (
        row(partial(softmax5, alpha=0.3)),
        lambda s: softmax5(replace(s, rows=s.rows.replace(score=s.rows.score - 7)), alpha=0.3).row,
        lists,
    ),
    "pair_logistic is the mean of dpo over the pairs": (
        row(logistic5),
        lambda s: sum(dpo5(columns(s, [i, j])).row for i, j in [(0, 1), (0, 2), (1, 2)]) / 3,
        like(0.9, 0.5, 0.1),
    ),
    "pair_logistic's sum is ten times its mean in lists of five": (
        row(partial(logistic5, reduction="sum")),
        lambda s: 10 * logistic5(s).row,
        lists,
    ),
    "pair_hinge is the mean of hinge over the pairs": (
        row(hinge5),
        lambda s: sum(pairwise.hinge(columns(s, [i, j]), beta=0.5).row for i, j in [(0, 1), (0, 2), (1, 2)]) / 3,
        like(0.9, 0.5, 0.1),
    ),
    "equal grades make no pair": (
        row(logistic5),
        lambda s: (dpo5(columns(s, [0, 2])).row + dpo5(columns(s, [1, 2])).row) / 2,
        like(0.9, 0.9, 0.1),
    ),
    "a list of equal grades has no pair and no loss": (row(logistic5), lambda s: 0 * s.logp.sum(1), like(0.5, 0.5, 0.5)),
    "pointwise_mse is a square per response": (
        row(partial(pointwise_mse, beta=0.5)),
        lambda s: ((scores(s) - s.rows.score) ** 2).mean(1),
        lists,
    ),
    "pointwise_sigmoid is a soft classification per response": (
        row(partial(pointwise_sigmoid, beta=0.5)),
        lambda s: -(s.rows.score * scores(s).sigmoid().log() + (1 - s.rows.score) * (-scores(s)).sigmoid().log()).mean(1),
        lists,
    ),
    "a list without scores is graded by the share that stands below": (
        row(lipo5),
        lambda s: lipo5(replace(s, rows=s.rows.replace(score=torch.tensor([[1.0, 0.75, 0.5, 0.25, 0.0]] * B)))).row,
        best_first,
    ),
    **{
        f"{name}: responses in another order change nothing": (
            row(loss),
            lambda s, loss=loss: loss(relabelled(s, [3, 1, 4, 0, 2])).row,
            lists,
        )
        for name, loss in LOSSES.items()
    },
    **{
        f"{name}: an absent response takes no part": (row(loss), lambda s, loss=loss: loss(without(s)).row, absent)
        for name, loss in LOSSES.items()
    },
    "tpo without weights is lipo, however the steps are cut": (row(none), row(lipo5), trees),
    "tpo without weights is lipo by labels": (row(partial(none, ranks="labels")), row(partial(lipo5, ranks="labels")), trees),
    "tpo with one step and no weight is lipo": (row(none), row(lipo5), one_step),
    "tpo of two with one step is 1 / ln 2 - 1 / ln 3 times dpo": (
        lambda s: none(ranked(s)).row,
        lambda s: TWO * dpo5(ranked(s)).row,
        lambda: one_step(2),
    ),
    "tpo of two with one step and means per token is that of log-ratios per token (dpo-norm)": (
        lambda s: none(ranked(s), step="mean").row,
        lambda s: TWO * -logsigmoid(0.5 * (s.logratio / s.length)[:, 0] - 0.5 * (s.logratio / s.length)[:, 1]),
        lambda: one_step(2),
    ),
    "tpo on steps that are all alike is lipo at twice the beta": (row(tree), row(partial(lipo, beta=1.0)), lambda: trees(same=True)),
    "tpo on steps at right angles to the best's is lipo where the best's own count twice": (
        row(tree),
        lambda s: lipo5(doubled(s)).row,
        lambda: trees(orthogonal=True),
    ),
    "tpo: similarity and distance share out twice the score": (
        lambda s: tree(s, weight="similarity").metrics["weight"] + tree(s, weight="distance").metrics["weight"] + 0 * s.logp.sum(1),
        lambda s: 2 + 0 * s.logp.sum(1),
        trees,
    ),
    "tpo: a step that nobody has is as if it were not there": (
        lambda s: tree(shortened(s)).row,
        lambda s: tree(cut(shortened(s))).row,
        trees,
    ),
    "tpo with the step's means: a step that nobody has is as if it were not there": (
        lambda s: tree(shortened(s), step="mean").row,
        lambda s: tree(cut(shortened(s)), step="mean").row,
        trees,
    ),
    "tpo: paths in another order change nothing": (
        row(tree),
        lambda s: tree(replace(relabelled(s, [2, 0, 3, 1]), rows=reordered(s, [2, 0, 3, 1]))).row,
        trees,
    ),
}


def ranked(s: Scored) -> Scored:
    """The same pair, the first response better."""
    return replace(s, rows=s.rows.replace(score=None, ranked=True))


def doubled(s: Scored) -> Scored:
    """The log-ratio of the response of the highest grade times two."""
    best = torch.nn.functional.one_hot(s.rows.score.argmax(1), s.logp.shape[1]).double()
    return replace(s, logp=s.logp + best * s.logratio)


def reordered(s: Scored, order: list[int]) -> Rows:
    return s.rows.replace(score=s.rows.score[:, order], segments=s.rows.segments[:, order])


def lambda_sum(s: Scored) -> Tensor:
    """Sum of lipo's weights: its value at the reference over ln 2."""
    psi = graded(s, s.logp).psi[0].tolist()
    tau = [1 / math.log(k + 2) for k in range(len(psi))]
    return sum(abs(2 ** psi[i] - 2 ** psi[j]) * abs(tau[i] - tau[j]) for i in range(len(psi)) for j in range(i)) * torch.ones(B).double()


def imitating() -> Scored:
    """softmax(s) at beta .5 is the shares of the scores."""
    s = lists()
    return at(s, s.ref_logp + s.rows.score.log() / 0.5 + normal(B, 1))


def on_target(shape: Callable[[Tensor], Tensor]) -> Callable[[], Scored]:
    def make() -> Scored:
        s = lists()
        return at(s, s.ref_logp + shape(s.rows.score) / 0.5)

    return make


# sentence: (formula, value of every row, rows)
VALUES: dict[str, Value] = {
    "list_nca leaves every response at beta logratio = log(K t)": (
        lambda s: gradient(row(partial(list_nca, beta=0.5, alpha=0.3)), s),
        0.0,
        at_nca_target,
    ),
    "list_nca at the reference is 2 ln 2": (row(list_nca), 2 * math.log(2), lambda: at_reference(lists())),
    **{
        f"{name}: pulls on a list add up to 0": (lambda s, loss=loss: gradient(row(loss), s).sum(1), 0.0, lists)
        for name, loss in RELATIVE.items()
    },
    "tpo without weights: pulls on a list add up to 0": (lambda s: gradient(row(none), s).sum(1), 0.0, trees),
    "lipo at the reference is ln 2 times its weights": (
        lambda s: lipo5(s).row / lambda_sum(s),
        math.log(2),
        lambda: at_reference(best_first()),
    ),
    "list_mle at the reference is ln K!": (row(mle5), math.log(120), lambda: at_reference(lists())),
    "list_softmax at the reference is ln K": (row(softmax5), math.log(5), lambda: at_reference(lists())),
    "pair_logistic at the reference is ln 2": (row(logistic5), math.log(2), lambda: at_reference(lists())),
    "pair_hinge at the reference is 1": (row(hinge5), 1.0, lambda: at_reference(lists())),
    "pointwise_sigmoid at the reference is ln 2": (row(partial(pointwise_sigmoid, beta=0.5)), math.log(2), lambda: at_reference(lists())),
    "pointwise_mse is 0 at logratio = psi / beta": (row(partial(pointwise_mse, beta=0.5)), 0.0, on_target(lambda psi: psi)),
    "pointwise_sigmoid stops at logit(psi)": (
        lambda s: gradient(row(partial(pointwise_sigmoid, beta=0.5)), s),
        0.0,
        on_target(torch.logit),
    ),
    "list_softmax stops where its softmax is the shares": (lambda s: gradient(row(softmax5), s), 0.0, imitating),
    "list_mle of equal grades stops at equal scores": (
        lambda s: gradient(row(mle5), s),
        0.0,
        lambda: at_reference(lists(score=torch.full((B, K), 0.5, dtype=torch.float64))),
    ),
    "tpo by distance never raises the best path": (
        lambda s: gradient(row(partial(tree, weight="distance")), s).gather(1, s.rows.score.argmax(1, keepdim=True)),
        0.0,
        trees,
    ),
}

BETAS = {
    "lipo": lambda v: methods.lipo(beta=v),
    "list-mle": lambda v: methods.list_mle(beta=v),
    "list-softmax": lambda v: methods.list_softmax(beta=v),
    "pair-logistic": lambda v: methods.pair_logistic(beta=v),
    "pair-hinge": lambda v: methods.pair_hinge(beta=v),
    "tpo": lambda v: methods.tpo(beta=v),
}


def unscored() -> Scored:
    """Row 3 has no score for its response 1."""
    s = lists()
    s.rows.score[3, 1] = torch.nan
    return s


REFUSED: dict[str, Refusal] = {
    "a list without scores and without an order": (lambda: lipo(replace(lists(), rows=lists().rows.replace(score=None))), "neither scores"),
    "a list with a score that is missing": (lambda: list_mle(unscored()), r"rows \['3'\] have a response without"),
    "an infinite score": (lambda: lipo(like(0.5, math.inf)()), "without a finite score"),
    "gains beyond the numbers": (lambda: lipo(like(2000.0, 1.0)()), "grade of 2000 has the gain"),
    "a unit of zero": (lambda: lipo(lists(), unit=0.0), "unit is 0.0"),
    "ranks by chance": (lambda: probe(methods.lipo(ranks="random")), "ranks is 'random', needed one of model, labels"),
    "the median of pairs": (lambda: probe(methods.pair_logistic(reduction="median")), "reduction is 'median', needed one of sum, mean"),
    "shares below zero": (lambda: list_softmax(like(0.5, -0.1)()), "no shares of a whole"),
    "shares of nothing": (lambda: list_softmax(like(0.0, 0.0)()), "no shares of a whole"),
    "an alpha of zero in nca": (lambda: probe(methods.nca(alpha=0.0)), "alpha is 0.0"),
    "an alpha of zero in list_softmax": (lambda: probe(methods.list_softmax(alpha=0.0)), "alpha is 0.0"),
    "grades that are no probabilities": (lambda: pointwise_sigmoid(like(0.5, 7.0)()), r"\[0.5, 7\], needed \[0, 1\]"),
    "weights of steps that tpo does not have": (lambda: probe(methods.tpo(weight="cosine")), "weight is 'cosine'"),
    "sums of steps that tpo does not have": (lambda: probe(methods.tpo(step="last")), "step is 'last'"),
    "a tree whose steps are not marked": (lambda: tree(replace(one_step(), rows=lists(4).rows)), "carry no segments"),
}
