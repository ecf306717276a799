"""Runs an objective on random rows before any model is loaded, so that a mistake shows in the first second."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .policies.tabular import TableResponses
from .reference import none
from .types import LABELS, Head, Method, Needs, PreftuneError, Rows, Scored, needs_of

ROWS = 8  # enough for an objective with a flat region to show a slope somewhere


def probe(method: Method) -> None:
    """Check shape [B], finite values, a gradient into logp and none into ref_logp; raises PreftuneError otherwise."""
    if method.objective is None:
        return
    declared = needs_of(method.objective)
    scored = random_scored(declared, ROWS, heads=method.heads)
    name = getattr(method.objective, "func", method.objective)
    name = getattr(name, "__name__", repr(name))
    if declared.reference and method.reference is none:
        raise PreftuneError(f"{name} reads ref_logp, but the method keeps no reference; use reference=frozen or a reference-free objective")
    with torch.enable_grad():
        loss = method.objective(scored)
        if tuple(loss.row.shape) != (ROWS,):
            shape = tuple(loss.row.shape)
            raise PreftuneError(f"{name} returned a loss of shape {shape} for {ROWS} rows, needed [{ROWS}]; do not reduce over the batch")
        if not torch.isfinite(loss.row).all():
            raise PreftuneError(f"{name} returned {loss.row.tolist()} on ordinary rows, needed finite values")
        if not loss.row.requires_grad:
            raise PreftuneError(f"no gradient of {name} reaches logp; needed a loss that depends on it; is there a detach too many?")
        frozen = [x for x in (scored.ref_logp, scored.segment_ref_logp) if x is not None]
        trained = [x for x in (scored.logp, scored.segment_logp, *scored.heads.values()) if x is not None]
        gradients = torch.autograd.grad(loss.row.sum(), [*frozen, *trained], allow_unused=True)
    if any(g is not None and g.any() for g in gradients[: len(frozen)]):
        raise PreftuneError(f"a gradient of {name} reaches ref_logp; the reference is a constant: read s.logratio or detach it")
    found = [g for g in gradients[len(frozen) :] if g is not None]
    if not all(torch.isfinite(g).all() for g in found) or not any(g.any() for g in found):
        raise PreftuneError(f"the gradient of {name} with respect to logp is {found}, needed finite and not all zero")


def random_scored(declared: Needs, rows: int, *, heads: Mapping[str, Head] | None = None, spread: float = 2.0, seed: int = 0) -> Scored:
    """Random rows with every label that an objective declares and everything that it wants: logp, segments and heads require
    gradient, the reference's log-probs do too (to be checked). Labels of `extra` are random numbers [B, K]."""
    draw = torch.Generator().manual_seed(seed)
    columns = declared.columns if isinstance(declared.columns, int) else 4

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    length = torch.randint(5, 30, (rows, columns), generator=draw).double()
    logp = -length * (1 + torch.rand(rows, columns, generator=draw, dtype=torch.float64))
    reference = (logp - spread * normal(rows, columns)) if declared.reference else None
    wanted = declared.labels
    labels: dict[str, object] = {"ranked": "ranked" in wanted}
    if "desirable" in wanted:
        labels["desirable"] = torch.tensor([[(i + j) % 2 == 0 for j in range(columns // 2)] for i in range(rows)])
    for name in ("winrate", "score"):
        if name in wanted:
            labels[name] = torch.rand(rows, columns, generator=draw, dtype=torch.float64)
    if "beats" in wanted:
        lower = torch.rand(rows, columns, columns, generator=draw, dtype=torch.float64).tril(-1)
        labels["beats"] = lower + (1 - lower.mT).triu(1) + 0.5 * torch.eye(columns, dtype=torch.float64)
    if "prefer" in wanted:
        labels["prefer"] = 0.5 + torch.rand(rows, generator=draw, dtype=torch.float64) / 2
    labels["extra"] = {name: torch.rand(rows, columns, generator=draw, dtype=torch.float64) for name in wanted if name not in LABELS}
    more: dict[str, torch.Tensor] = {}
    if "segments" in declared.wants:  # two of them, which add up
        labels["segments"] = torch.stack([torch.zeros_like(length), length // 2, length], 2).long()
        share = torch.rand(rows, columns, 1, generator=draw, dtype=torch.float64)
        more["segment_logp"] = (torch.cat([share, 1 - share], 2) * logp[:, :, None]).requires_grad_()
        if reference is not None:
            more["segment_ref_logp"] = (torch.cat([share, 1 - share], 2) * reference[:, :, None]).requires_grad_()
    if "states" in declared.wants:
        more["states"] = normal(rows, columns, 2, 8)
    if "collision" in declared.wants:
        more["collision"] = logp - 1
    table = Rows(
        id=tuple(f"probe {i}" for i in range(rows)),
        prompt=tuple(range(rows)),
        response=TableResponses(torch.arange(columns).expand(rows, columns)),
        **labels,  # type: ignore[arg-type]
    )
    outputs = {name: normal(rows, columns, head.size).requires_grad_() for name, head in (heads or {}).items()}
    reference = None if reference is None else reference.requires_grad_()
    other = {name: logp.detach() - spread * normal(rows, columns) for name in declared.other}
    return Scored(table, logp.requires_grad_(), reference, length, outputs, other, **more)  # type: ignore[arg-type]
