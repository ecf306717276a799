"""Runs an objective on random rows before any model is loaded, so that a mistake shows in the first second."""

from __future__ import annotations

import torch

from .policies.tabular import TableResponses
from .reference import none
from .types import Method, Needs, PreftuneError, Rows, Scored, needs_of


def probe(method: Method) -> None:
    """Check shape [B], finite values, a gradient into logp and none into ref_logp; raises PreftuneError otherwise."""
    declared = needs_of(method.objective)
    scored = random_scored(declared, rows=2)
    name = getattr(method.objective, "func", method.objective)
    name = getattr(name, "__name__", repr(name))
    if declared.reference and method.reference is none:
        raise PreftuneError(f"{name} reads ref_logp, but the method keeps no reference; use reference=frozen or a reference-free objective")
    with torch.enable_grad():
        loss = method.objective(scored)
        if tuple(loss.row.shape) != (2,):
            shape = tuple(loss.row.shape)
            raise PreftuneError(f"{name} returned a loss of shape {shape} for 2 rows, needed [2]; do not reduce over the batch")
        if not torch.isfinite(loss.row).all():
            raise PreftuneError(f"{name} returned {loss.row.tolist()} on two ordinary rows, needed finite values")
        if not loss.row.requires_grad:
            raise PreftuneError(f"no gradient of {name} reaches logp; needed a loss that depends on it; is there a detach too many?")
        inputs = [scored.logp] + ([scored.ref_logp] if scored.ref_logp is not None else [])
        gradients = torch.autograd.grad(loss.row.sum(), inputs, allow_unused=True)
    if len(gradients) > 1 and gradients[1] is not None and gradients[1].any():
        raise PreftuneError(f"a gradient of {name} reaches ref_logp; the reference is a constant: read s.logratio or detach it")
    if gradients[0] is None or not torch.isfinite(gradients[0]).all() or not gradients[0].any():
        raise PreftuneError(f"the gradient of {name} with respect to logp is {gradients[0]}, needed finite and not all zero")


def random_scored(declared: Needs, rows: int, *, spread: float = 2.0, seed: int = 0) -> Scored:
    """Random rows with every label that an objective declares: logp requires gradient, ref_logp does too (to be checked)."""
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
    if "prefer" in wanted:
        labels["prefer"] = 0.5 + torch.rand(rows, generator=draw, dtype=torch.float64) / 2
    table = Rows(
        id=tuple(f"probe {i}" for i in range(rows)),
        prompt=tuple(range(rows)),
        response=TableResponses(torch.arange(columns).expand(rows, columns)),
        **labels,  # type: ignore[arg-type]
    )
    return Scored(table, logp.requires_grad_(), None if reference is None else reference.detach().requires_grad_(), length)
