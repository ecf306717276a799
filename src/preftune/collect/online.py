"""Pairs drawn while training, with what a judge says of every two of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..numerics import average
from ..types import Collect, Context, Key, PreftuneError, Rows
from .label import heard
from .thin import both_orders

Label = Literal["soft", "sampled", "threshold"]


def _antisymmetric(upper: Tensor) -> Tensor:
    """P [B, K, K] from its entries i < j; 1/2 on the diagonal."""
    return upper.triu(1) + (1 - upper.mT).tril(-1) + 0.5 * torch.eye(upper.shape[1], dtype=upper.dtype)


LABELS: dict[str, Callable[[Tensor, Rows, Key], Tensor]] = {
    "soft": lambda P, rows, key: P,
    "sampled": lambda P, rows, key: _antisymmetric((torch.from_numpy(key.uniform(rows.id, *P.shape[1:])) < P).to(P)),
    "threshold": lambda P, rows, key: (P > 0.5).to(P),  # equals have 0 in both places: no pair
}


def compared(ctx: Context, y: Any, label: Label, *more: Tensor) -> tuple[Any, ...]:
    """(ctx, y, P, *more) of the rows that the judge answered about: P(column i beats column j) [B, K, K], asked in both orders, or hard
    labels made of it."""
    P, _ = both_orders(ctx.judge, ctx.feed, y, ctx.key.fold("judge"))
    ctx, y, P, *more_ = heard(ctx, y, P.cpu(), *more)
    return ctx, y, LABELS[label](P, ctx.feed, ctx.key.fold("label")), *more_


def own(ctx: Context, *, responses: int = 2, label: Label = "soft") -> Rows:
    """`responses` of the current policy, each compared with each."""
    y = ctx.roles["current"].sample(ctx.feed, responses, ctx.key.fold("pair"))
    ctx, y, beats = compared(ctx, y, label)
    return ctx.feed.replace(response=y, law=y.law, beats=beats)


def beside_reference(ctx: Context, *, partner: Literal["reference", "policy"] = "reference", label: Label = "soft") -> Rows:
    """A pair, one response of the policy and one of the reference or of the policy again, and a response of the reference as calibration.

    Where the policies enumerate their laws there is one list of all responses. extra: pairs [B, K, K], how often a pair is drawn;
    calibration [B, K], the reference's law.
    """
    current, reference = ctx.roles["current"], ctx.roles["reference"]
    mine = current.sample(ctx.feed, 1 + (partner == "policy"), ctx.key.fold("pair"))
    theirs = reference.sample(ctx.feed, 1, ctx.key.fold("reference"))
    if mine.law is not None and theirs.law is not None:
        y, first, calibration = mine, mine.law, theirs.law
        second = first if partner == "policy" else calibration
    else:
        y = mine.join(theirs)
        eye = torch.eye(y.shape[1], dtype=torch.float64).expand(len(ctx.feed), -1, -1)
        first, second, calibration = eye[:, 0], eye[:, 1], eye[:, -1]
    ctx, y, beats, first, second, calibration = compared(ctx, y, label, first, second, calibration)
    extra = {"pairs": first[:, :, None] * second[:, None, :], "calibration": calibration}
    return ctx.feed.replace(response=y, beats=beats, extra=extra)


beside_reference.makes = ("pairs", "calibration")  # type: ignore[attr-defined]


def calibrated(ctx: Context, *, by: Literal["chosen", "logged"] = "chosen") -> Rows:
    """Given pairs. extra: calibration [B, K], all of it on the preferred response, or the same on both."""
    weights = {"chosen": [1.0, 0.0], "logged": [0.5, 0.5]}[by]
    return ctx.feed.replace(extra={**ctx.feed.extra, "calibration": torch.tensor([weights] * len(ctx.feed), dtype=torch.float64)})


calibrated.makes = ("calibration",)  # type: ignore[attr-defined]


def with_samples(ctx: Context, *, responses: int = 2) -> Rows:
    """Given pairs, joined by fresh responses of the policy from column 2 on; where these enumerate a law, it is 0 on the pair."""
    rows, y = ctx.feed, ctx.roles["current"].sample(ctx.feed, responses, ctx.key.fold("sample"))
    more = y.shape[1]
    present = None if rows.present is None else torch.cat([rows.present, torch.ones(len(rows), more, dtype=torch.bool)], 1)
    law = None if y.law is None else torch.cat([torch.zeros(len(rows), rows.response.shape[1], dtype=y.law.dtype), y.law], 1)
    return rows.replace(response=rows.response.join(y), present=present, law=law)


def after_drafts(ctx: Context) -> Rows:
    """Given pairs y1, y2 as six columns with prompts of their own: y1 | x, y2 | x, y2 | x y1, y1 | x y1, y1 | x y2, y2 | x y2."""
    rows, order = ctx.feed, [0, 1, 1, 0, 0, 1]
    asked = ctx.roles["current"].revise(rows.replace(response=rows.response.take(columns=[0, 1])))
    prompts = tuple((x, x, first, first, second, second) for x, (first, second) in zip(rows.prompt, asked, strict=True))
    present = None if rows.present is None else rows.present[:, order]
    return rows.replace(response=rows.response.take(columns=order), prompts=prompts, present=present)


# --- the best and the worst of several ------------------------------------------------------------------------------

Negative = Literal["none", "worst", "mean", "contrastive"]


def extremes_law(law: Tensor, value: Tensor, n: int) -> Tensor:
    """P(column i is the best and j the worst of n draws) [B, K, K] from the law [B, K] and the columns' values.

    With M(j, i) the mass of what lies between two columns in the order of values, both counted: all n draws lie there, less those
    samples that miss one end, M(j, i)^n - M(j + 1, i)^n - M(j, i - 1)^n + M(j + 1, i - 1)^n.
    """
    rank = value.argsort(dim=1, stable=True).argsort(dim=1)
    below = torch.nn.functional.pad(law.gather(1, value.argsort(dim=1, stable=True)).cumsum(1), (1, 0))  # [B, K + 1]
    mass = lambda last, first: (below[:, last][:, :, None] - below[:, first][:, None, :]).clamp(min=0) ** n
    upto, before = slice(1, None), slice(0, -1)
    inner = mass(before, upto)  # of neighbours nothing lies between, and clamp makes it 0 where first > last
    ordered = (mass(upto, before) - mass(upto, upto) - mass(before, before) + inner).tril().clamp(min=0)
    return ordered.gather(1, rank[:, :, None].expand_as(ordered)).gather(2, rank[:, None, :].expand_as(ordered))


class Ends(NamedTuple):
    """What the columns of rows are trained for."""

    beats: Tensor  # [B, K, K] sure outcomes
    best: Tensor  #  [B, K] the law of the best
    worse: Tensor  # [B, K] the law of what is pushed down
    pairs: Tensor  # [B, K, K] how often two columns are best and worst


def ends_given(rows: Rows) -> Ends:
    """Column 0 and column 1 of ranked pairs."""
    if not rows.ranked or rows.response is None:
        raise PreftuneError("a part of the rows is to be given pairs, but the data have no ranked pairs; give them, or fraction=1")
    first, second = torch.eye(2, dtype=torch.float64).expand(len(rows), -1, -1).unbind(1)
    p = torch.ones(len(rows), dtype=torch.float64) if rows.prefer is None else rows.prefer.double().cpu()
    upper = p[:, None, None].expand(-1, 2, 2)
    return Ends(_antisymmetric(upper), first, second, first[:, :, None] * second[:, None, :])


def ends_drawn(P: Tensor, law: Tensor | None, n: int, negative: Negative, margin: float) -> Ends:
    """Of n draws whose preferences are P [B, K, K]: of K = n columns, or in expectation where the columns enumerate a law."""
    value = average(P, law)
    if law is None:
        best, worst = (torch.nn.functional.one_hot(at, n).to(P) for at in (value.argmax(1), value.argmin(1)))
        both = best[:, :, None] * worst[:, None, :]
    else:
        both = extremes_law(law, value, n)
    apart = (value[:, :, None] - value[:, None, :] > margin).to(P)
    best, pairs = both.sum(2), both * apart
    drawn = torch.full_like(best, 1 / n) if law is None else law
    return Ends(apart, best, (n * drawn - best) / (n - 1) if negative == "mean" else pairs.sum(1), pairs)


def side_by_side(one: Ends, other: Ends, share: Tensor) -> Ends:
    """The columns of both; `share` [B] of a row is the other's."""
    weighed = [(1 - share, one), (share, other)]
    wide = lambda name: torch.cat([w[:, None] * getattr(ends, name) for w, ends in weighed], 1)
    blocks = lambda square: torch.stack([torch.block_diag(*parts) for parts in zip(*square, strict=True)])
    pairs = blocks([w[:, None, None] * ends.pairs for w, ends in weighed])
    return Ends(blocks([one.beats, other.beats]), wide("best"), wide("worse"), pairs)


def best_and_worst(ctx: Context, *, responses: int, negative: Negative, margin: float, fraction: float) -> Rows:
    """Of `responses` answers of the policy the best and what is to become rarer; with fraction < 1 some rows have given pairs instead.

    A response's value is its mean win rate against the others, or against the policy's law. Where the law is enumerated, best and
    worst are so in expectation over that many draws, and given pairs count 1 - fraction of each row; drawn, a row is one or the other.

    extra: calibration [B, K], the law of the best; worse [B, K], of what is pushed down; pairs [B, K, K], of best and worst together.
    Best and worst whose values are no farther apart than `margin` make no pair; with "mean" the others are pushed down all the same.
    """
    rows = ctx.feed
    if fraction == 0:
        ends, y = ends_given(rows), rows.response.take(columns=[0, 1])
    else:
        y = ctx.roles["current"].sample(rows, responses, ctx.key.fold("pair"))
        ctx, y, P = compared(ctx, y, "soft")
        rows, ends = ctx.feed, ends_drawn(P, y.law, responses, negative, margin)
    if 0 < fraction < 1:
        tossed = (torch.from_numpy(ctx.key.fold("source").uniform(rows.id)) < fraction).double()
        ends = side_by_side(ends_given(rows), ends, torch.full_like(tossed, fraction) if y.law is not None else tossed)
        y = rows.response.take(columns=[0, 1]).join(y)
    extra = {"calibration": ends.best, "worse": ends.worse * (negative != "none"), "pairs": ends.pairs}
    read = extra["calibration"] + extra["worse"] > 0
    return rows.replace(response=y, present=None if read.all() else read, ranked=False, prefer=None, beats=ends.beats, extra=extra)


best_and_worst.makes = ("beats", "calibration", "worse", "pairs")  # type: ignore[attr-defined]


def known(label: Label) -> Label:
    """Refuse a kind of label that does not exist, when a method is composed."""
    if label not in LABELS:
        raise PreftuneError(
            f"label is {label!r}, needed one of {', '.join(LABELS)}: the judge's probability, an outcome drawn with it, or whether it "
            "exceeds one half"
        )
    return label


def among(*, responses: int, label: Label) -> Collect:
    """`own` with its numbers checked when a method is composed."""
    if responses < 2:
        raise PreftuneError(f"responses is {responses}, needed 2 or more: the answers to a prompt are compared with one another")
    return partial(own, responses=responses, label=known(label))
