"""What the tables of facts are written with: random pairs, points on them, and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from preftune.policies.tabular import TableResponses
from preftune.types import Method, Objective, Rows, Scored

Formula = Callable[[Scored], Tensor]
Limit = tuple[Formula, Formula, Callable[[], Scored]]  # left, right, the rows that they are compared on
Value = tuple[Formula, float, Callable[[], Scored]]  #   formula, its value in every row, the rows
Refusal = tuple[Callable[[], object], str]  #            attempt, what its message matches


@dataclass(frozen=True)
class Facts:
    """A method and what is claimed of its objective."""

    method: Method
    steady: bool = False  #   pulls the winner up and the loser not up at every point, not only at the reference
    apart: bool = True  #     does so at the reference; False needs a reason beside it
    shift: bool = False  #    a constant added to all log-ratios of a row changes nothing
    swap: bool = False  #     columns exchanged together with their labels change nothing
    coupled: bool = False  #  the gradient of a row's loss reaches other rows
    smooth: bool = True  #    finite differences give the gradient at any point; False needs a reason beside it
    beyond: bool = True  #    refuses rows beyond a domain smaller than usual; False needs a reason beside it


def gradient(formula: Callable[[Scored], Tensor], s: Scored) -> Tensor:
    """d sum(formula) / d logp [B, K]; through the segments too, which share out what logp has."""
    moved = at(s, s.logp)
    (found,) = torch.autograd.grad(formula(moved).sum(), moved.logp, allow_unused=True, retain_graph=True)
    return torch.zeros_like(s.logp) if found is None else found


def at(s: Scored, logp: Tensor, *, leaf: bool = True) -> Scored:
    """The same rows with other log-probabilities of the policy; what moves is shared out evenly over the segments."""
    new = logp.detach().requires_grad_() if leaf else logp
    if s.segment_logp is None:
        return replace(s, logp=new)
    parts = s.segment_logp.detach() + (new - s.logp.detach())[:, :, None] / s.segment_logp.shape[2]
    return replace(s, logp=new, segment_logp=parts.to(new.dtype))


def at_ratio(s: Scored, ratio: Tensor) -> Scored:
    """The same rows at these log-ratios [B, K], in their dtype, spread evenly over the segments."""
    reference = torch.full_like(ratio, -ratio.abs().max().item() - 1)
    s = replace(s, logp=reference, length=s.length.to(ratio.dtype))
    if s.ref_logp is not None:
        s = replace(s, ref_logp=reference)
    s = replace(s, other={name: logp.to(ratio.dtype) for name, logp in s.other.items()})
    for name in ("states", "collision"):
        if getattr(s, name) is not None:
            s = replace(s, **{name: getattr(s, name).to(ratio.dtype)})
    if s.segment_logp is not None:
        even = (reference / s.segment_logp.shape[2])[:, :, None].expand(-1, -1, s.segment_logp.shape[2])
        s = replace(s, segment_logp=even, segment_ref_logp=None if s.segment_ref_logp is None else even)
    return at(replace(s, heads={name: out.to(ratio.dtype) for name, out in s.heads.items()}), reference + ratio)


def take(s: Scored, rows: list[int]) -> Scored:
    """Some rows, in the order asked for."""
    pick = lambda x: None if x is None else x[rows]
    names = ("ref_logp", "length", "segment_ref_logp", "states", "collision")
    more = {name: pick(getattr(s, name)) for name in names}
    segments = None if s.segment_logp is None else s.segment_logp[rows].detach()
    more |= {name: {key: out[rows] for key, out in getattr(s, name).items()} for name in ("heads", "other")}
    found = replace(s, rows=s.rows.take(rows), logp=s.logp[rows].detach(), segment_logp=segments, **more)
    return at(found, found.logp)


def row(objective: Objective) -> Callable[[Scored], Tensor]:
    return lambda s: objective(s).row


def close(a: Tensor, b: Tensor, rtol: float = 1e-11, atol: float = 1e-12) -> None:
    """Same shape, same numbers up to a few thousand roundings of float64."""
    torch.testing.assert_close(a.detach(), b.detach(), rtol=rtol, atol=atol)


def trained_columns(s: Scored) -> int:
    """Labelled columns; further ones only estimate a constant."""
    return s.logp.shape[1] if s.rows.desirable is None else s.rows.desirable.shape[1]


DRAW = torch.Generator().manual_seed(0)
B = 50


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def pairs(*, equal_length: float | None = None, per_token: float = -1.5, **labels: Tensor) -> Scored:
    """B ranked pairs, log-ratios with standard deviation 8, lengths 5 to 40 or all alike."""
    length = torch.randint(5, 41, (B, 2), generator=DRAW).double() if equal_length is None else torch.full((B, 2), equal_length).double()
    logp = length * per_token * (1 + 0.3 * torch.rand(B, 2, generator=DRAW, dtype=torch.float64))
    rows = Rows(tuple(map(str, range(B))), tuple(range(B)), TableResponses(torch.arange(2).expand(B, 2)), ranked=True, **labels)
    return Scored(rows, logp.requires_grad_(), logp.detach() + 8 * normal(B, 2), length)


def soft_pairs() -> Scored:
    return pairs(prefer=torch.rand(B, generator=DRAW, dtype=torch.float64))


def judged_pairs() -> Scored:
    """Pairs judged against one another, themselves at 1/2: winrate = (1/2 + p) / 2 and (1/2 + 1 - p) / 2, p = prefer."""
    p = torch.rand(B, generator=DRAW, dtype=torch.float64)
    return pairs(prefer=p, winrate=torch.stack([0.25 + p / 2, 0.75 - p / 2], 1))


def at_reference(s: Scored) -> Scored:
    if s.segment_ref_logp is not None:
        s = replace(s, segment_logp=s.segment_ref_logp.detach(), logp=s.ref_logp.detach())
    return at(s, s.ref_logp)


def labelled(z0: float = 0.0) -> Scored:
    """One good and one bad response each, and two mismatched ones at log-ratio z0 (plus a spread of mean zero)."""
    s = pairs()
    spread = normal(B, 2)
    mismatched = s.ref_logp + z0 + spread - spread.mean()
    rows = s.rows.replace(ranked=False, desirable=torch.tensor([[True, False]] * B))
    return Scored(rows, torch.cat([s.logp, mismatched], 1).detach().requires_grad_(), torch.cat([s.ref_logp, s.ref_logp], 1))


def h(s: Scored, beta: float) -> Tensor:
    return beta * (s.logratio[:, 0] - s.logratio[:, 1])


def swapped(s: Scored) -> Scored:
    """The other response preferred: columns exchanged, labels as they are."""
    return columns(s, [1, 0])


def columns(s: Scored, order: list[int]) -> Scored:
    """The scores of some columns; the rows keep their labels."""
    names = ("logp", "ref_logp", "length", "segment_logp", "segment_ref_logp", "states", "collision")
    more = {name: getattr(s, name)[:, order] for name in names if getattr(s, name) is not None}
    more |= {name: {key: out[:, order] for key, out in getattr(s, name).items()} for name in ("heads", "other")}
    return replace(s, **more)


def labels_off(s: Scored) -> Scored:
    return replace(s, rows=s.rows.replace(prefer=None))


def prefer(p: float, s: Scored) -> Scored:
    return replace(s, rows=s.rows.replace(prefer=torch.full((B,), p, dtype=torch.float64)))


def law(*p: float) -> Callable[[Scored], Scored]:
    return lambda s: replace(s, rows=s.rows.replace(law=torch.tensor([p] * B, dtype=torch.float64)))


def at_gap(s: Scored, gap: Tensor) -> Scored:
    """Log-probabilities of column 0 moved so that the gap of log-ratios is `gap`; still a function of s.logp."""
    first = s.ref_logp[:, 0] + s.logratio[:, 1] + gap
    return replace(s, logp=torch.stack([first, s.logp[:, 1]], 1))


def over_count(objective: Objective, s: Scored) -> Tensor:
    """The learner's quotient sum(row) / sum(count), as [1]."""
    loss = objective(s)
    return loss.row.sum()[None] / (len(loss.row) if loss.count is None else loss.count.sum())


def gap_of(g: float) -> Scored:
    s = pairs()
    return at(s, s.ref_logp + torch.tensor([g, 0.0], dtype=torch.float64) + normal(B, 1))


def equal_means() -> Scored:
    s = pairs()
    return at(s, -1.5 * s.length)
