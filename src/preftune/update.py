"""How one step is made of draws and descents. A rule sees the learner and `rows_against(opponent)`, nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from .types import Learner, Metrics, PreftuneError, Rows, RowsAgainst, Scored, Update


def plain(learner: Learner, rows_against: RowsAgainst) -> Metrics:
    """One descent on rows drawn against the current policy. On an exact game with uniform pairs: online mirror descent."""
    return learner.descend(rows_against(learner.policy))


def extragradient(learner: Learner, rows_against: RowsAgainst) -> Metrics:
    """Half a step to find the opponent, then the step itself from the starting point (EGPO, arXiv:2503.08942 alg. 1).

    theta_half = step from theta_t against pi_t;   theta_t+1 = step from theta_t against pi_half

    Converges to the Nash equilibrium of the regularised game in the last iterate. Not the textbook extragradient: the
    second gradient is taken at theta_t as well, only the opponent is the half-step policy; a version that takes it at
    theta_half also converges on small games and is not this method. Both draws use the same prompts and fresh samples.
    """
    start = learner.snapshot()
    learner.descend(rows_against(learner.policy))
    half = learner.policy.copy()
    learner.restore(start)
    return learner.descend(rows_against(half))


extragradient.redraws = True  # type: ignore[attr-defined]


# --- against an adversary who moves the prompts ---------------------------------------------------------------------


@runtime_checkable
class Embedded(Protocol):
    """A policy that reads its prompts as points of a space and can score points beside them."""

    def offsets(self, rows: Rows) -> list[Tensor]:
        """For each row zeros [P, d], one vector for every element of its prompt."""

    def perturb(self, rows: Rows, offsets: Sequence[Tensor], *, everywhere: bool = False) -> Rows:
        """The rows with prompts moved by the offsets; frozen copies feel them only where `everywhere` is true."""

    def embedding_scale(self) -> float:
        """The mean length of an element's vector."""

    def score(self, rows: Rows) -> Scored:
        """As Policy.score, differentiable with respect to the offsets."""


def adversarial(steps: int = 10, step: float = 1e-4, radius: float = 0.05, reference: Literal["clean", "perturbed"] = "clean") -> Update:
    """One descent on prompts whose embeddings an adversary has moved towards the away response, column 1 of ranked pairs.

    delta <- P[delta - step * sign(d CE(y_away | x + delta) / d delta)], `steps` times from 0;   CE = -logp / length
    P: the offset of every prompt token shortened to an L2 length of at most radius * mean_v ||E_v||

    The weights stand still meanwhile and receive no gradient; the descent that follows takes delta as a constant, for both
    columns. All tokens of the prompt are moved, those of a chat template too.

    reference   "clean": the reference scores the prompts as they are (the authors' C-AdvIPO, and cheap: its log-probs are kept
                from epoch to epoch); "perturbed": it feels the offset as the policy does. Two different losses

    Metrics: attack_nll_before and attack_nll_after, CE of the away response; attack_at_radius, the share of tokens that P has
    shortened. An offset grows to steps * step * sqrt(d) at most: where that is less than the radius, the share is 0 and the
    radius changes nothing. With bfloat16 embeddings around 0.02 a step of 1e-4 is about one unit in the last place.

    Limits  steps = 0: the plain update, bit for bit; radius = 0: the same up to rounding
    Not     the best offset met on the way: the last one (the authors' code means to keep the best, but returns the last)
    Source  arXiv:2405.15589, github.com/sophie-xhonneux/Continuous-AdvTrain, embedding_attack.py
    """
    if steps < 0 or not (step > 0 and math.isfinite(step)) or not (radius >= 0 and math.isfinite(radius)):
        raise PreftuneError(
            f"steps is {steps}, step {step} and radius {radius}; needed steps >= 0, a finite step above 0 and a finite radius of "
            "at least 0; the authors take 10, 1e-4 and 0.05"
        )
    if reference not in ("clean", "perturbed"):
        raise PreftuneError(f"reference is {reference!r}, needed 'clean' or 'perturbed': the prompts that the reference scores")

    def attacked(learner: Learner, rows_against: RowsAgainst) -> Metrics:
        rows, policy = rows_against(learner.policy), learner.policy
        if not steps:
            return learner.descend(rows)
        if not isinstance(policy, Embedded):
            raise PreftuneError(
                f"the attack moves embeddings of prompts, which {type(policy).__name__} has none of; use a language model, or steps=0"
            )
        limit = radius * policy.embedding_scale()
        found = [attack(policy, away(part), steps, step, limit) for part in learner.micro(rows)]
        offsets = [offset for part, _, _ in found for offset in part]
        length = torch.cat([offset.norm(dim=1).cpu() for offset in offsets])  # of every token's offset
        return {
            **learner.descend(policy.perturb(rows, offsets, everywhere=reference == "perturbed")),
            "attack_nll_before": float(torch.cat([before for _, before, _ in found]).mean()),
            "attack_nll_after": float(torch.cat([after for _, _, after in found]).mean()),
            "attack_at_radius": float((length > 0.999 * limit).double().mean()),
        }

    return attacked


def away(rows: Rows) -> Rows:
    """Column 1 of ranked pairs alone."""
    absent = [] if rows.present is None else [rows.id[i] for i in (~rows.present[:, :2].all(1)).nonzero().flatten().tolist()]
    if not rows.ranked or rows.response.shape[1] < 2 or absent:
        found = f"rows {absent[:10]} with one response only" if absent else "rows that are no ranked pairs"
        raise PreftuneError(f"the attack found {found}; needed pairs: column 0 is safe, column 1 is where the prompts are moved towards")
    return Rows(id=rows.id, prompt=rows.prompt, response=rows.response.take(columns=[1]))


def attack(policy: Embedded, rows: Rows, steps: int, step: float, limit: float) -> tuple[list[Tensor], Tensor, Tensor]:
    """Offsets under which the only column of the rows is likelier, and its cross-entropy [B] without and with them."""
    offsets: list[Tensor] = policy.offsets(rows)
    entropies: list[Tensor] = []
    for _ in range(steps):
        offsets = [offset.requires_grad_() for offset in offsets]
        entropy = -policy.score(policy.perturb(rows, offsets)).mean_logp[:, 0]
        slopes = torch.autograd.grad(entropy.sum(), offsets)  # of the offsets alone: .grad of the weights stays as it is
        offsets = [within(limit, offset.detach() - step * slope.sign()) for offset, slope in zip(offsets, slopes, strict=True)]
        entropies.append(entropy.detach())
    with torch.no_grad():
        entropies.append(-policy.score(policy.perturb(rows, offsets)).mean_logp[:, 0])
    return offsets, entropies[0], entropies[-1]


def within(limit: float, offset: Tensor) -> Tensor:
    """Every row of [P, d] shortened to a length of at most `limit`."""
    length = offset.norm(dim=1, keepdim=True)
    return torch.where(length > limit, offset * (limit / length), offset)
