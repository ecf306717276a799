"""The loss of a preference written as a formula: weighted model counting in log space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..logic.structure import Structure
from ..logic.text import ATOMS
from ..numerics import log1mexp, positive
from ..types import Loss, Needs, Objective, PreftuneError, Scored
from .pairwise import lengths
from .reference_free import LINKS, Link

Scale = Literal["per_token", "sequence"]
SCALES: dict[str, Callable[[Scored, Tensor], Tensor]] = {
    "per_token": lambda s, logp: logp / lengths(s),
    "sequence": lambda s, logp: logp,
}
COLUMN = {"w": ("logp", 0), "l": ("logp", 1), "rw": ("ref_logp", 0), "rl": ("ref_logp", 1)}


def semantic(s: Scored, *, structure: Structure, link: Link, beta: float, scale: Scale, margin: float = 0.0) -> Loss:
    """The semantic loss of a preference structure, whose sides top and bottom are sets of worlds.

    loss = f(rho),   rho = log P(top) - log P(bottom),   P(worlds) = sum over worlds of prod_i (p_i if i is true else 1 - p_i)

    logistic  f = -logsigmoid(beta rho)      hinge  f = max(0, 1 - beta rho)      squared  f = (rho - 1 / (2 beta))^2

    Reads   atoms w, l from logp and rw, rl from ref_logp: log p per response (sequence) or per token (per_token); log m = -margin
    Gives   row [B];  metrics: rho, accuracy (rho > 0)
    Limits  the core "l -> w" is CPO, ORPO, cCPO or unCPO by what is given and on both sides, "l & rw -> w & rl" is DPO; of two
            structures of which one entails the other, the entailing one has the smaller rho at all p
    Not     an objective by itself: `compiled` makes one, with the needs of its structure. On the scale sequence 1 - p is 1 up to
            rounding; a p of exactly 1 whose 1 - p is read is refused by row
    Source  arXiv:2412.17696
    """
    atoms = structure.reduced.atoms
    if s.ref_logp is None and {"rw", "rl"} & set(atoms):
        raise PreftuneError(
            "this formula reads ref_logp, but the method keeps no reference; use reference=frozen or a formula without rw and rl"
        )
    logp = {name: SCALES[scale](s, getattr(s, which))[:, i] for name, (which, i) in COLUMN.items() if name in atoms}
    for name in structure.negated & set(logp):
        certain = [row for row, sure in zip(s.rows.id, (logp[name] >= 0).tolist()) if sure]
        if certain:
            raise PreftuneError(
                f"the atom {name} has probability 1 in rows {', '.join(certain)}, needed less, for the formula reads 1 - {name}; "
                "leave these rows out, or take a formula without that negation"
            )
    if "m" in atoms:
        logp["m"] = torch.full_like(s.logp[:, 0], -margin)
    rho = log_ratio(structure, {name: x.detach() if name in ("rw", "rl", "m") else x for name, x in logp.items()})
    return Loss(LINKS[link](beta * rho, beta), {"rho": rho.detach(), "accuracy": (rho.detach() > 0).to(rho.dtype)})


def compiled(
    structure: Structure, *, link: Link = "logistic", beta: float = 1.0, scale: Scale = "per_token", margin: float | None = None
) -> Objective:
    """`semantic` for one structure, as an objective that declares what this structure reads."""
    for name, value, known in (("link", link, LINKS), ("scale", scale, SCALES)):
        if value not in known:
            raise PreftuneError(f"{name} is {value!r}, needed one of {', '.join(known)}")
    positive("beta", beta, "it scales the log-ratio of the two sides")
    atoms = structure.reduced.atoms
    unknown = [name for name in atoms if name not in (*COLUMN, "m")]
    if unknown:
        raise PreftuneError(f"no log-prob of training belongs to the atoms {', '.join(unknown)}, needed atoms among {', '.join(ATOMS)}")
    if not structure.moves_with(("w", "l")):
        raise PreftuneError(
            f"the loss of {str(structure)!r} does not depend on the policy, needed a ratio that moves with w or l; "
            f"its two sides are {structure.ratio}"
        )
    if ("m" in atoms) != (margin is not None):
        raise PreftuneError(
            f"the formula names {'the constant m, but no margin was given' if margin is None else f'no m, but margin is {margin}'}, needed "
            "both or neither: log m = -margin"
        )
    if margin is not None:
        positive("margin", margin, "the constant m has probability e^-margin")
    objective = partial(semantic, structure=structure, link=link, beta=beta, scale=scale, margin=margin or 0.0)
    pair = "l" in atoms or "rl" in atoms
    objective.needs = Needs(  # type: ignore[attr-defined]
        columns=2 if pair else 1, labels=("ranked",) if pair else (), reference="rw" in atoms or "rl" in atoms
    )
    return objective


def log_ratio(structure: Structure, logp: Mapping[str, Tensor]) -> Tensor:
    """rho from the log-probabilities of the atoms, each below 0 where the probability of its negation is read.

    log P = logaddexp(log p_i + log P(worlds if i), log(1 - p_i) + log P(worlds if not i)), atom after atom; an atom on which the
    worlds do not depend is passed over, so that no sum has to come out as log 1.
    """
    one = structure.reduced
    no = {name: log1mexp(logp[name]) for name in one.negated}

    def log_p(worlds: int, n: int) -> Tensor:
        if n == 0:
            return torch.zeros_like(next(iter(logp.values())))
        half = 1 << (n - 1)  # the last atom divides the worlds into two halves
        if_not, if_so = worlds & ((1 << half) - 1), worlds >> half
        if if_not == if_so:
            return log_p(if_so, n - 1)
        name = one.atoms[n - 1]
        ways = [literal[name] + log_p(side, n - 1) for side, literal in ((if_so, logp), (if_not, no)) if side]
        return torch.logaddexp(*ways) if len(ways) == 2 else ways[0]

    n = len(one.atoms)
    return log_p(one.top, n) - log_p(one.bottom, n)
