"""Update rules iterated to an equilibrium, fast: thousands of small games in one tensor, or one game of thousands of responses.

P [..., n, n] and log mu [..., n] as in `nash`; a step is the one of the same name there, done in place and without autograd.
The cost is that of the matrix-vector products A p (a call of the judge). A gap is computed from the product that the step
needs anyway. Games do not know each other: each stops by itself, and its result is that of solving it alone.

Layout: policies are [n, games] and A is [n, n, games], so that small games fill vector registers side by side; above `ALONE`
responses a game is solved by itself, A [n, n], by matrix-vector products limited by memory bandwidth. float32 stays float32.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..types import PreftuneError
from .games import validate
from .nash import Rate, extragradient_safe, optimistic_safe

ALONE = 40  #   responses above which one matrix-vector product costs more than what surrounds it
CACHE = 2**17  # numbers of a table that are iterated together: one MiB of float64, the size of a second-level cache
GROWTH = 1.5  #  of an adaptive step, at most


@dataclass(frozen=True)
class Solution:
    """Where a rule arrived, for every game."""

    log_p: Tensor  #   [..., n] the policy whose gap is given, normalised
    gap: Tensor  #     [...] regularised duality gap; the plain one for beta = 0
    steps: Tensor  #   int64 [...] steps taken before it
    calls: Tensor  #   int64 [...] matrix-vector products of these steps; one more showed the gap
    arrived: Tensor  # bool [...] the gap is at most what was asked for


@dataclass
class _State:
    """The games that are iterated together. Rules change it in place."""

    A: Tensor  #     [n, n, G] with the opponent's response first, or [n, n] for one game
    mu: Tensor  #    [n, G] logs, as all that follows
    theta: Tensor  # the iterate
    eta: Tensor  #   [G] or [1]
    beta: float
    step: int = 0
    p: Tensor = field(init=False)  #      the policy asked about last
    w: Tensor = field(init=False)  #      A p
    base: Tensor = field(init=False)  #   (1 - eta beta) theta + eta beta log mu
    half: Tensor = field(init=False)  #   a half step
    before: Tensor = field(init=False)  # the half step before
    turned: Tensor = field(init=False)  # the w before

    def __post_init__(self) -> None:
        for name in BUFFERS:
            setattr(self, name, torch.zeros_like(self.theta))

    def ask(self, logits: Tensor) -> Tensor:
        """w = A softmax(logits): one call of the judge."""
        torch.softmax(logits, 0, out=self.p)
        if self.A.ndim == 2:
            torch.mv(self.A, self.p[:, 0], out=self.w[:, 0])
        else:
            torch.mul(self.A[0], self.p[0], out=self.w)
            for column, share in zip(self.A[1:].unbind(0), self.p[1:].unbind(0), strict=True):
                self.w.addcmul_(column, share)
        return self.w

    def pulled(self) -> Tensor:
        return torch.lerp(self.theta, self.mu, self.eta * self.beta, out=self.base)

    def gap(self, logits: Tensor) -> Tensor:
        """The duality gap [G] of softmax(logits), whose win rates are in w (`nash.regularised_gap`, `nash.duality_gap`)."""
        if self.beta == 0:
            return 2 * self.w.amax(0)
        soft_max = torch.logsumexp(torch.add(self.mu, self.w, alpha=1 / self.beta), 0)
        divergence = (self.p * (logits - self.mu)).sum(0) - torch.logsumexp(logits, 0)
        return 2 * self.beta * (soft_max + divergence)

    def keep(self, games: Tensor) -> None:
        """Go on with these games alone."""
        self.A, self.eta = self.A[..., games], self.eta[games]
        for name in ("mu", "theta", *BUFFERS):
            setattr(self, name, getattr(self, name)[:, games])


BUFFERS = ("p", "w", "base", "half", "before", "turned")


@dataclass(frozen=True)
class Rule:
    """ask returns the policy whose win rates are in `w` afterwards; move does the step that goes on from there."""

    ask: Callable[[_State], Tensor]
    move: Callable[[_State], None]
    calls: int  # per step, ask and move together
    own: bool = True  # the gap is that of the policy asked about; if not, that of the iterate, by a product of its own
    first: Callable[[Tensor, float], Tensor] | None = None  # (P, beta) -> the first eta of a rule that finds its own


def _ask_iterate(s: _State) -> Tensor:
    s.ask(s.theta)
    return s.theta


def _descend(s: _State) -> None:
    """theta <- (1 - eta beta) theta + eta beta log mu + eta w, with the w that was asked for."""
    torch.addcmul(s.pulled(), s.w, s.eta, out=s.theta)


def _extragradient(s: _State) -> None:
    torch.addcmul(s.pulled(), s.w, s.eta, out=s.half)
    torch.addcmul(s.base, s.ask(s.half), s.eta, out=s.theta)


def _ask_mixture(s: _State) -> Tensor:
    s.ask(s.pulled())
    return s.base


def _omwu(s: _State) -> None:
    if not s.step:
        s.turned.copy_(s.w)
    torch.lerp(s.turned, s.w, 2.0, out=s.half)  # 2 w_t - w_t-1
    s.turned.copy_(s.w)
    torch.addcmul(s.pulled(), s.half, s.eta, out=s.theta)


def _ask_half(s: _State) -> Tensor:
    """The half step with the win rates of the half step before; at the start there are none, and it is the start itself."""
    if s.step:
        torch.addcmul(s.pulled(), s.w, s.eta, out=s.half)
    else:
        s.half.copy_(s.theta)
    s.ask(s.half)
    return s.half


def _extragradient_if_sure(s: _State) -> None:
    """The step where KL(half, next) <= (1 - eta beta) KL(half, theta), a shorter eta elsewhere.

    There KL(p*, next) <= (1 - eta beta) KL(p*, theta): see `nash.extragradient_safe`.
    """
    torch.addcmul(s.pulled(), s.w, s.eta, out=s.half)
    step = torch.addcmul(s.base, s.ask(s.half), s.eta)
    log_half = torch.log_softmax(s.half, 0)
    sure = _certify(s, step, log_half, _divergence(s.p, log_half - torch.log_softmax(s.theta, 0)))
    torch.where(sure, step, s.theta, out=s.theta)


def _ask_half_of_last(s: _State) -> Tensor:
    """The half step with the win rates of the last half step that led to a step; at the start, the start itself."""
    if s.step:
        torch.addcmul(s.pulled(), s.turned, s.eta, out=s.half)
    else:
        s.half.copy_(s.theta)
    s.ask(s.half)
    return s.half


def _optimistic_if_sure(s: _State) -> None:
    """The step where 2 KL(half, next) <= (1 - eta beta) [KL(half, theta) + KL(half before, theta)], a shorter eta elsewhere.

    There KL(p*, next) + KL(half, next) <= (1 - eta beta) [KL(p*, theta) + KL(half before, theta)]: see `nash.optimistic_safe`.
    """
    log_half = torch.log_softmax(s.half, 0)
    if not s.step:  # this call was for the win rates alone
        s.before.copy_(log_half)
        s.turned.copy_(s.w)
        return
    step, log_theta = torch.addcmul(s.base, s.w, s.eta), torch.log_softmax(s.theta, 0)
    moved = _divergence(s.p, log_half - log_theta) + _divergence(s.before.exp(), s.before - log_theta)
    sure = _certify(s, step, log_half, moved / 2)
    for kept, new in ((s.theta, step), (s.before, log_half), (s.turned, s.w)):
        torch.where(sure, new, kept, out=kept)


def _certify(s: _State, step: Tensor, log_half: Tensor, moved: Tensor) -> Tensor:
    """Is KL(half, step) <= (1 - eta beta) moved, [G]? Sets eta to .9 of what would make it an equality, if rotation stays the same.

    Where policies differ in their last digits only, the divergences are rounding: such a step is taken and eta stays.
    """
    rounding = (64 * torch.finfo(moved.dtype).eps) ** 2
    missed = _divergence(s.p, log_half - torch.log_softmax(step, 0))
    sure = missed <= (1 - s.eta * s.beta) * moved + rounding
    speed2 = missed / (moved.clamp(min=rounding) * s.eta * s.eta)  # missed = (eta speed)^2 moved
    best = 1.8 / (s.beta + (s.beta**2 + 4 * speed2).sqrt())
    found = torch.minimum(best, torch.where(sure, GROWTH * s.eta, 0.9 * s.eta))
    s.eta = torch.where(moved > rounding, found, s.eta)
    return sure


def _divergence(p: Tensor, x: Tensor) -> Tensor:
    """KL(p, q) for x = log p - log q, as the sum of the positive p (e^-x - 1 + x), which rounding of x enters squared."""
    return (p * (torch.expm1(-x) + x)).sum(0)


RULES: dict[str, Rule] = {
    "omd": Rule(_ask_iterate, _descend, 1),
    "mmd": Rule(_ask_iterate, _descend, 1),  # with eta / (1 + eta beta)
    "hedge": Rule(_ask_iterate, _descend, 1),  # beta = 0
    "omwu": Rule(_ask_iterate, _omwu, 1),
    "nash-md": Rule(_ask_mixture, _descend, 1, own=False),
    "egpo": Rule(_ask_iterate, _extragradient, 2),
    "optimistic": Rule(_ask_half, _descend, 1),
    "adaptive": Rule(_ask_half_of_last, _optimistic_if_sure, 1, first=optimistic_safe),
    "adaptive-egpo": Rule(_ask_iterate, _extragradient_if_sure, 2, first=extragradient_safe),
}


@torch.no_grad()
def solve(
    P: Tensor,
    log_mu: Tensor,
    beta: float,
    *,
    rule: str = "adaptive",
    eta: Rate | None = None,
    gap: float = 1e-10,
    steps: int = 100_000,
    check: int = 1,
    start: Tensor | None = None,
) -> Solution:
    """Iterate a rule until the duality gap of the game with pull beta is at most `gap`.

    P, log_mu  [..., n, n] and [..., n]; leading dimensions broadcast
    beta       0 is the game without a pull; the rules start at log mu there and forget it
    rule       "omd", "mmd", "nash-md", "egpo", "omwu", "hedge" (beta = 0): the steps of `nash`, where their limits stand
               "optimistic"     EGPO with one product a step, `nash.optimistic_step`. The policy returned is the half step, whose
                                product the next step needs; same fixed point
               "adaptive"       the same with the longest eta for which a contraction by 1 - eta beta is sure (`_optimistic_if_sure`).
                                A step that would not be is not taken; it counts, as does the first call, for win rates
               "adaptive-egpo"  EGPO likewise (`_extragradient_if_sure`)
    eta        a number or one for every game [...]; adaptive rules need none. `steps.advise` gives the best
    check      measure the gap every so many steps: where products are cheap, it costs as much as half a step
    start      logits, log mu if none

    A game whose logits overflow ends with gap nan.
    """
    if rule not in RULES:
        close = difflib.get_close_matches(rule, RULES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "pick one of these"
        raise PreftuneError(f"rule is {rule!r}, needed one of {', '.join(RULES)}; {hint}")
    chosen = RULES[rule]
    if not (beta >= 0 and math.isfinite(beta)):
        raise PreftuneError(f"beta is {beta}, needed a finite number of at least 0; it is the pull towards the reference")
    if rule == "hedge" and beta:
        raise PreftuneError(f"beta is {beta} with hedge, which has no pull to a reference; give beta 0, or take omd")
    if min(steps, check - 1) < 0:
        raise PreftuneError(f"steps is {steps} and check {check}, needed steps >= 0 and check >= 1")
    if eta is None and chosen.first is None:
        raise PreftuneError(
            f"{rule} needs a step eta; take one from steps.advise(P, log_mu, beta), or rule='adaptive', which finds its own"
        )
    dtype = P.dtype if P.dtype.is_floating_point else torch.float64
    P = validate(P).to(dtype)
    eta = torch.as_tensor(chosen.first(P, beta) if eta is None else eta, dtype=dtype)  # type: ignore[misc]
    eta = eta / (1 + eta * beta) if rule == "mmd" else eta
    log_mu = torch.log_softmax(log_mu.to(dtype), -1)
    start = log_mu if start is None else start.to(dtype)
    n, games = P.shape[-1], (P[..., 0, 0] + log_mu[..., 0] + start[..., 0] + eta).shape
    P, log_mu, start = P.expand(*games, n, n).reshape(-1, n, n), *(x.expand(*games, n).reshape(-1, n) for x in (log_mu, start))
    eta, together = eta.expand(games).reshape(-1), max(1, CACHE // n**2) if n <= ALONE else 1
    parts = []
    for first in range(0, len(P), together):
        some = slice(first, first + together)
        A = (P[some] - 0.5).permute(2, 1, 0).contiguous() if len(P[some]) > 1 else P[first] - 0.5
        state = _State(A, log_mu[some].T.contiguous(), start[some].T.clone(memory_format=torch.contiguous_format), eta[some], beta)
        parts.append(_iterate(chosen, state, gap, steps, check))
    log_p, gaps, taken = (torch.cat(found, -1) for found in zip(*parts, strict=True))
    return Solution(
        log_p.T.reshape(*games, n),
        gaps.reshape(games),
        taken.reshape(games),
        chosen.calls * taken.reshape(games),
        (gaps <= gap).reshape(games),
    )


def _iterate(rule: Rule, s: _State, gap: float, steps: int, check: int) -> tuple[Tensor, Tensor, Tensor]:
    """log p [n, G], gap [G] and steps [G]. Games that have ended run on, harmlessly, until half of those together have."""
    log_p, gaps = torch.empty_like(s.theta), torch.empty_like(s.theta[0])
    taken, games = torch.empty_like(gaps, dtype=torch.int64), torch.arange(len(gaps))
    running = torch.ones_like(games, dtype=torch.bool)
    while True:
        logits = rule.ask(s)
        if s.step % check == 0 or s.step == steps:
            if not rule.own:
                asked, logits = s.w.clone(), s.theta
                s.ask(logits)
            now = s.gap(logits)
            ended = running & ~(now > gap) if s.step < steps else running  # nan ends too
            if ended.any():
                log_p[:, games[ended]] = torch.log_softmax(logits[:, ended], 0)
                gaps[games[ended]], taken[games[ended]] = now[ended], s.step
                running = running & ~ended
                if not running.any():
                    return log_p, gaps, taken
            if not rule.own:
                s.w.copy_(asked)
            if 2 * running.sum() <= len(running):
                s.keep(running)
                games, running = games[running], running[running]
        rule.move(s)
        s.step += 1
