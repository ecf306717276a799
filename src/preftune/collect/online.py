"""Pairs drawn while training, with what a judge says of every two of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..types import Collect, Context, Key, PreftuneError, Rows
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


def compared(ctx: Context, y: Any, label: Label) -> Tensor:
    """P(column i beats column j) [B, K, K], the judge asked in both orders, or hard labels made of it."""
    P, _ = both_orders(ctx.judge, ctx.feed, y, ctx.key.fold("judge"))
    return LABELS[label](P.cpu(), ctx.feed, ctx.key.fold("label"))


def own(ctx: Context, *, responses: int = 2, label: Label = "soft") -> Rows:
    """`responses` of the current policy, each compared with each."""
    y = ctx.roles["current"].sample(ctx.feed, responses, ctx.key.fold("pair"))
    return ctx.feed.replace(response=y, law=y.law, beats=compared(ctx, y, label))


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
    extra = {"pairs": first[:, :, None] * second[:, None, :], "calibration": calibration}
    return ctx.feed.replace(response=y, beats=compared(ctx, y, label), extra=extra)


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
