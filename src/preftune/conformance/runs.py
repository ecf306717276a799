"""Runs of the table's methods on named games: gaps, where they end, rates measured and predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..exact import nash
from ..exact.games import game, reference_logits
from ..playing import Match
from ..types import PreftuneError
from .forms import Setting, State, equilibrium
from .record import RECORDS, Record


@dataclass(frozen=True)
class Course:
    """How a method went on one game: duality gaps of the game that it plays, at mu and after every step."""

    gap: NDArray[np.float64]
    average: float  #         the gap of the mean of all policies, at the end
    away: NDArray[np.float64]  # KL(limit, p), nan without a limit
    interior: bool  #         the limit is no sure winner, so that KL is of the second order in the distance
    predicted: float | None  # modulus of the largest eigenvalue of the step's derivative at the limit
    calls: float  #           of the judge, a step, as composed

    @property
    def arrived(self) -> int | None:
        """The step from which the gap stays at or below 1e-6."""
        above = np.flatnonzero(~(self.gap <= 1e-6))
        return 0 if not len(above) else None if above[-1] == len(self.gap) - 1 else int(above[-1]) + 1

    @property
    def rate(self) -> float | None:
        """Factor by which a step shrinks the distance to the limit, by least squares on log KL, from 1e-6 down to 1e-13."""
        first, last = (next((t for t, x in enumerate(self.away) if x < level), len(self.away)) for level in (1e-6, 1e-13))
        if last - first < 4:
            return None
        slope = np.polyfit(np.arange(first, last), np.log(self.away[first:last]), 1)[0]
        return math.exp(slope / (2 if self.interior else 1))

    def __str__(self) -> str:
        measured = "" if self.rate is None else f"{self.rate:.4f} "
        rate = (measured + ("" if self.predicted is None else f"({self.predicted:.4f})")).strip()
        if self.arrived is not None:
            return f"**{self.calls * self.arrived:.0f}** {rate}"
        if self.away[-1] < 1e-9:
            return f"rests at {self.gap[-1]:.1e}{rate and ', ' + rate}"
        half = self.away[len(self.away) // 2] if np.isfinite(self.away[-1]) else self.gap[len(self.gap) // 2]
        falling = (self.away[-1] if np.isfinite(self.away[-1]) else self.gap[-1]) < 0.7 * half
        average = "" if self.average > self.gap[-1] else f", average {self.average:.1e}"
        return f"{'on its way' if falling else 'no rest'}, {self.gap[-1]:.1e}{average}{rate and ', ' + rate}"


def predicted(record: Record, g: Setting, limit: Tensor) -> float | None:
    """The factor by which a step shrinks the distance to the limit, in its neighbourhood; over a period where the map changes, per step.

    Where the limit gives weight to all (None: to a few) the largest modulus of an eigenvalue of the closed form's derivative, seen by
    policies: directions that add a constant to logits are left out. At a sure winner e^-d, d the step by which its logit leads more.
    """

    def period(state: State) -> State:
        for t in range(record.period):
            state = record.step(state, g, t)
        return state

    if not record.pulled and limit.exp().max() > 1 - 1e-9:
        best = int(limit.argmax())
        before: State = (limit.clamp(min=-100.0),) * record.states
        for _ in range(40):  # momentum needs a start
            before, after = period(before), before
        lead = [s[best] - s[s != s[best]].max() for s in (before[0], after[0])]
        return math.exp(-float(lead[0] - lead[1]) / record.period)
    if not record.pulled and not limit.exp().min() > 1e-12:
        return None  # some responses die out, at their own pace

    def whole(flat: Tensor) -> Tensor:
        return torch.stack(period(flat.reshape(record.states, g.n).unbind())).flatten()

    seen = torch.block_diag(*[torch.eye(g.n, dtype=torch.float64) - 1 / g.n] * record.states)
    jacobian = torch.autograd.functional.jacobian(whole, limit.repeat(record.states))
    return float(torch.linalg.eigvals(seen @ jacobian @ seen).abs().max()) ** (1 / record.period)


def composed(record: Record, g: Setting, steps: int, start: Tensor | None = None) -> tuple[Match, float]:
    """The method after so many steps, and how far its log-probabilities ever were from those of the closed form."""
    start = g.log_mu if start is None else start
    match = Match(record.compose(g.eta, g.beta), g.P, g.log_mu, lr=record.lr(g) if record.lr else 0.0, start=start)
    state, apart = (start,) * record.states, 0.0
    for t in range(steps):
        match.step()
        state = record.step(state, g, t)
        apart = max(apart, float((match.log_p() - state[0].log_softmax(-1)).abs().max()))
    return match, apart


def courses(record: Record, names: Sequence[str], eta: float, beta: float, steps: int, first: int = 3) -> dict[str, Course]:
    """Named games of one size from mu: `first` steps composed, all by closed form, until every game is at rest or `steps` are done."""
    P = torch.stack([game(name) for name in names])
    g = Setting(P, reference_logits(P.shape[-1]).log_softmax(-1).expand(P.shape[:-1]), eta, beta)
    match, _ = composed(record, g, first)
    limit = torch.full_like(g.log_mu, torch.nan) if record.limit is None else record.limit(g)
    state, total = (g.log_mu,) * record.states, torch.zeros_like(g.log_mu)
    gaps, away = [], []
    for t in range(steps + 1):
        log_p = state[0].log_softmax(-1)
        total = total + log_p.exp()
        gaps.append(nash.regularised_gap(P, log_p, g.log_mu, beta) if record.pulled else nash.duality_gap(P, log_p.exp()))
        away.append((limit.exp() * (limit - log_p)).sum(-1))
        if (away[-1] < 1e-15).all():
            break
        try:
            state = record.step(state, g, t)
        except (PreftuneError, torch.linalg.LinAlgError):  # a round without a minimum: some response has run out of pairs
            break
    mean = (total / total.sum(-1, keepdim=True)).log()
    average = nash.regularised_gap(P, mean, g.log_mu, beta) if record.pulled else nash.duality_gap(P, mean.exp())
    found = {}
    for i, name in enumerate(names):
        alone = replace(g, P=P[i], log_mu=g.log_mu[i])
        found[name] = Course(
            torch.stack(gaps)[:, i].numpy(),
            float(average[i]),
            torch.stack(away)[:, i].numpy(),
            bool(limit[i].exp().max() <= 1 - 1e-9) or record.pulled,
            predicted(record, alone, limit[i]) if record.smooth and limit[i].isfinite().all() else None,
            match.calls / first,
        )
    return found


def iterate(name: str, g: Setting, steps: int) -> tuple[Tensor, Tensor]:
    """log p after so many steps from mu, and the log of the mean policy of the steps before."""
    record, state, total = RECORDS[name], (g.log_mu,) * RECORDS[name].states, torch.zeros_like(g.log_mu)
    for t in range(steps):
        total = total + state[0].softmax(-1)
        state = record.step(state, g, t)
    return state[0].log_softmax(-1), (total / total.sum(-1, keepdim=True)).log()


def named(name: str, eta: float, beta: float = 0.0) -> Setting:
    P = game(name)
    return Setting(P, reference_logits(len(P)).log_softmax(-1), eta, beta)


def gap_of(g: Setting, log_p: Tensor) -> float:
    return float(nash.regularised_gap(g.P, log_p, g.log_mu, g.beta) if g.beta else nash.duality_gap(g.P, log_p.softmax(-1)))


def apart_from(g: Setting, log_p: Tensor) -> float:
    """Total variation to the equilibrium of the game with the pull."""
    return float((log_p.exp() - equilibrium(g).exp()).abs().sum() / 2)
