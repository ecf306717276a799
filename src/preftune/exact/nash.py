"""Duality gaps, equilibria and closed-form steps of preference games.

P [..., n, n] holds win probabilities with P + P^T = 1, A = P - 1/2 is skew; policies are logits or log-probabilities
[..., n], reference log mu [..., n]. All leading dimensions broadcast: a batch of games takes one call. `beta` is the
pull to the reference (the papers' tau), `eta` a step size; in the steps both may be tensors [..., 1].

The regularised game is V(p, q) = p^T P q - beta KL(p || mu) + beta KL(q || mu). Its unique equilibrium fulfils
log p* = log mu + P p* / beta + const. The game without regulariser is V(p, q) = p^T P q, of value 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..types import PreftuneError
from .games import validate

Rate = float | Tensor


# --- how far from equilibrium -----------------------------------------------------------------------------------------


def duality_gap(P: Tensor, p: Tensor) -> Tensor:
    """max_q V(q, p) - min_q V(p, q) = 2 max_i (A p)_i of the game without regulariser, [...] for probabilities p [..., n].

    Limits  0 exactly at an equilibrium, at most 1
    Not     exploitability, which is half of it
    """
    return 2 * ((P - 0.5) @ p.unsqueeze(-1)).squeeze(-1).amax(-1)


def regularised_gap(P: Tensor, log_p: Tensor, log_mu: Tensor, beta: Rate) -> Tensor:
    """max_q V(q, p) - min_q V(p, q) of the regularised game, [...].

    gap = 2 beta [ logsumexp(log mu + A p / beta) + KL(p || mu) ]

    With A in place of P nothing of size 1/beta cancels. Values below about 1e-15 are rounding and may be negative.
    Logits are normalised here; they have to be finite.
    Limits  0 at the regularised equilibrium only, where `duality_gap` stays away from 0 (by about beta, game dependent)
    Source  arXiv:2503.08942
    """
    log_p, log_mu = torch.log_softmax(log_p, -1), torch.log_softmax(log_mu, -1)
    p = log_p.exp()
    margin = ((P - 0.5) @ p.unsqueeze(-1)).squeeze(-1)
    soft_max = torch.logsumexp(log_mu + margin / beta, -1, keepdim=True)
    divergence = (p * (log_p - log_mu)).sum(-1, keepdim=True)
    gap: Tensor = 2 * beta * (soft_max + divergence)
    return gap.squeeze(-1)


def best_response(P: Tensor, log_p: Tensor, log_mu: Tensor, beta: Rate) -> Tensor:
    """log of argmax_q V(q, p) = softmax(log mu + P p / beta), [..., n], against the policy softmax(log_p)."""
    return torch.log_softmax(log_mu + _winrate(P, log_p) / beta, -1)


def spectrum(P: Tensor, log_p: Tensor) -> Tensor:
    """How fast play rotates about p, direction by direction: s [..., n - 1], largest first.

    The eigenvalues of A C, C = diag(p) - p p^T, apart from that of the constant vector, are +-i s. With u = sqrt(p) and Q an
    orthonormal basis of what is orthogonal to u, C = B B^T for B = diag(u) Q, so that they are those of the skew B^T A B, whose
    singular values are s: pairs and, for even n, one 0.
    """
    u = (0.5 * torch.log_softmax(log_p, -1)).exp()
    first = torch.zeros_like(u)
    first[..., 0] = 1
    mirror = u + first  # Householder: I - 2 m m^T / |m|^2 maps u to -first, its other columns are Q
    mirror = mirror / mirror.norm(dim=-1, keepdim=True)
    reflect = torch.diag_embed(torch.ones_like(u)) - 2 * mirror.unsqueeze(-1) * mirror.unsqueeze(-2)
    skew = reflect @ (u.unsqueeze(-1) * (P - 0.5) * u.unsqueeze(-2)) @ reflect
    found: Tensor = torch.linalg.svdvals(skew[..., 1:, 1:])
    return found


def rotation(P: Tensor, log_p: Tensor) -> Tensor:
    """s = largest |eigenvalue| of A (diag(p) - p p^T), [...]; the eigenvalues are imaginary, so s is how fast play rotates about p."""
    return spectrum(P, log_p)[..., :1].sum(-1)  # a game of one response has none: 0


def rotation_bound(P: Tensor) -> Tensor:
    """2 max|A| / pi [...], which `rotation` exceeds at no policy; 1/pi for any game. The cycle of many responses comes close at its centre.

    s = E[f_i A_ij g_j] for independent i, j ~ p and some f, g of mean 0 and variance 1 under p, uncorrelated. A is skew, so
    s <= max|A| / 2 E|f_i g_j - f_j g_i| = max|A| / 2 E[r_i r_j |sin(t_i - t_j)|] with (f, g) = r (cos t, sin t) and E r^2 = 2.
    |sin t| = 2/pi - 4/pi sum_k cos(2 k t) / (4 k^2 - 1): all terms but the first lower the mean, which leaves 2/pi (E r)^2 <= 4/pi.
    """
    return 2 / math.pi * (P - 0.5).abs().amax((-1, -2))


def mirror_descent_limit(s: Rate, beta: Rate) -> Rate:
    """The step 2 beta / (beta^2 + s^2) above which `mirror_descent_step` leaves an equilibrium of rotation s."""
    return 2 * beta / (beta * beta + s * s)


# --- equilibria -------------------------------------------------------------------------------------------------------


def nash(P: Tensor) -> Tensor:
    """An equilibrium [..., n] of the game without regulariser (maximal lottery, minimax winner), by linear programming.

    maximise v  subject to  p^T A >= v in every column,  p in the simplex

    Random games have one equilibrium, on an odd number of responses; where there are several, this is a vertex of their set.
    """
    tables = validate(P).detach().double().cpu().numpy().reshape(-1, *P.shape[-2:])
    return torch.from_numpy(np.stack([_maximal_lottery(table - 0.5) for table in tables])).reshape(P.shape[:-1])


def _maximal_lottery(A: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.optimize import linprog

    n = len(A)
    solved = linprog(
        c=np.append(np.zeros(n), -1.0),
        A_ub=np.column_stack([-A.T, np.ones(n)]),  # v - (p^T A)_j <= 0
        b_ub=np.zeros(n),
        A_eq=np.append(np.ones(n), 0.0)[None],
        b_eq=np.ones(1),
        bounds=[(0, None)] * n + [(None, None)],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if solved.status != 0:
        raise PreftuneError(f"the linear program of a game of {n} responses ended with {solved.message!r}, needed an optimum; check P")
    p = np.maximum(solved.x[:n], 0)
    return np.asarray(p / p.sum(), dtype=np.float64)


def regularised_nash(P: Tensor, log_mu: Tensor, beta: float) -> Tensor:
    """log p* [..., n]: the equilibrium of the regularised game, by Newton's method with backtracking.

    F(theta) = theta - log mu - A softmax(theta) / beta = 0,   J = I - A (diag(p) - p p^T) / beta

    The eigenvalues of J are 1 + i s: it is never singular, and Newton's direction always lowers |F|. From beta = 1 down
    to the target 40 equilibria in geometric steps are solved, each started from the one before.
    """
    if not (beta > 0 and math.isfinite(beta)):
        raise PreftuneError(f"beta is {beta}, needed a finite number above 0; without a pull to the reference use nash(P)")
    A = validate(P).double() - 0.5
    log_mu = torch.log_softmax(log_mu.double(), -1)
    identity = torch.eye(A.shape[-1], dtype=A.dtype)

    def solve(beta: float, start: Tensor) -> Tensor:
        return newton(
            lambda theta: theta - log_mu - _winrate(A, theta) / beta,
            lambda theta: identity - A @ _covariance(torch.softmax(theta, -1)) / beta,
            start,
        )

    theta = log_mu + torch.zeros_like(A[..., 0])
    for stage in [beta ** (k / 39) for k in range(40)] if beta < 1 else [beta]:
        theta = solve(stage, theta)
    return torch.log_softmax(theta, -1)


def newton(residual: Callable[[Tensor], Tensor], jacobian: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A root of residual [..., n] from x [..., n]; jacobian [..., n, n] has to be invertible everywhere.

    Every problem of the batch halves its own step until |residual| falls; ends where rounding leaves nothing to gain.
    """
    f = residual(x)
    for _ in range(100):
        size = f.norm(dim=-1, keepdim=True)
        direction = torch.linalg.solve(jacobian(x), f)
        length = torch.ones_like(size)
        for _ in range(40):
            trial = x - length * direction
            if torch.equal(trial, x):  # the step has become rounding
                f_trial, better = f, torch.zeros_like(size, dtype=torch.bool)
                break
            f_trial = residual(trial)
            better = f_trial.norm(dim=-1, keepdim=True) <= (1 - 1e-4 * length) * size
            if better.all():
                break
            length = torch.where(better, length, length / 2)
        x, f = torch.where(better, trial, x), torch.where(better, f_trial, f)
        if not better.any() or (f == 0).all():
            break
    rest, scale = f.abs().max().item(), 1 + x.abs().max().item()
    if not rest <= 1e-9 * scale:
        raise PreftuneError(f"Newton's method stopped at a residual of {rest:.1e}, needed {1e-9 * scale:.1e}; take a larger beta")
    return x


def _covariance(p: Tensor) -> Tensor:
    """diag(p) - p p^T, [..., n, n]: the derivative of softmax."""
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


# --- one step in closed form ------------------------------------------------------------------------------------------
# Logits in, logits out, [..., n]; a constant added to logits is another name for the same policy.


def _winrate(P: Tensor, logits: Tensor) -> Tensor:
    """P softmax(logits): how often each response beats that policy, [..., n]."""
    return (P @ torch.softmax(logits, -1).unsqueeze(-1)).squeeze(-1)


def _pulled(theta: Tensor, log_mu: Tensor, eta: Rate, beta: Rate) -> Tensor:
    """The geometric mixture (1 - eta beta) theta + eta beta log mu."""
    return (1 - eta * beta) * theta + eta * beta * log_mu


def mirror_descent_step(theta: Tensor, log_mu: Tensor, P: Tensor, eta: Rate, beta: Rate) -> Tensor:
    """Online mirror descent: (1 - eta beta) theta + eta beta log mu + eta P p. Also INPO, and online IPO with uniform pairs.

    Converges to the regularised equilibrium for eta < `mirror_descent_limit`; circles around it above.
    """
    return _pulled(theta, log_mu, eta, beta) + eta * _winrate(P, theta)


def extragradient_step(theta: Tensor, log_mu: Tensor, P: Tensor, eta: Rate, beta: Rate) -> Tensor:
    """EGPO: the mirror-descent step from theta, against the policy that the mirror-descent step leads to.

    half = (1 - eta beta) theta + eta beta log mu + eta P softmax(theta)
    next = (1 - eta beta) theta + eta beta log mu + eta P softmax(half)

    Converges to the regularised equilibrium at rate 1 - eta beta while eta s is below about 1 (s = `rotation`).
    Not     the textbook extragradient, whose second line pulls half, not theta, to the reference
    Source  arXiv:2503.08942 alg. 1
    """
    half = mirror_descent_step(theta, log_mu, P, eta, beta)
    return _pulled(theta, log_mu, eta, beta) + eta * _winrate(P, half)


def extragradient_safe(P: Tensor, beta: Rate) -> Tensor:
    """2 / (beta + sqrt(beta^2 + 4 max|A|^2)) [...]: the step up to which `extragradient_step` contracts from every start.

    With a = eta beta and p*, p, h, q the equilibrium, the start, the half step and the step, exactly

        KL(p*, q) = (1 - a) KL(p*, p) - [(1 - a) KL(h, p) - KL(h, q)] - a KL(h, p*)

    since log q = (1 - a) log p + a log p* + eta A (h - p*) + const and (h - p*)^T A (h - p*) = 0. Here log q - log h =
    eta A (h - p) + const spans at most 2 eta max|A| |h - p|_1, so KL(h, q) <= (eta max|A|)^2 KL(h, p) (Hoeffding, Pinsker): the
    bracket is not negative for (eta max|A|)^2 <= 1 - eta beta, and KL(p*, p_t) <= (1 - eta beta)^t KL(p*, p_0).

    Not     the best step, which is 1 / sqrt(beta^2 + s^2) near the equilibrium: often several times as long
    """
    edge = (P - 0.5).abs().amax((-1, -2))
    safe: Tensor = 2 / (beta + (beta * beta + 4 * edge * edge).sqrt())
    return safe


def optimistic_safe(P: Tensor, beta: Rate) -> Tensor:
    """2 / (beta + sqrt(beta^2 + 16 max|A|^2)) [...]: the step up to which `optimistic_step` contracts from every start.

    With h- the half step before, log q - log h = eta A (h - h-) + const in the identity of `extragradient_safe`, so that
    KL(h, q) <= 2 (eta max|A|)^2 [KL(h, p) + KL(h-, p)]. For (2 eta max|A|)^2 <= 1 - eta beta, therefore,

        KL(p*, q) + KL(h, q) <= (1 - eta beta) [KL(p*, p) + KL(h-, p)]
    """
    return extragradient_safe(2 * P - 0.5, beta)  # twice the margins


def optimistic_step(theta: Tensor, previous: Tensor, log_mu: Tensor, P: Tensor, eta: Rate, beta: Rate) -> Tensor:
    """Optimistic EGPO: the half step takes the win rates of the half step before, so that a step asks the judge once.

    half = (1 - eta beta) theta + eta beta log mu + eta P softmax(half before) = theta + (1 - eta beta) (theta - previous)
    next = (1 - eta beta) theta + eta beta log mu + eta P softmax(half)

    The opponent is the policy extrapolated from where it came from. Fixed point: theta = previous is that of mirror descent,
    the regularised equilibrium. Near it, with m = 1 - eta beta, in a direction of rotation s the factor z of a step solves

        z^2 - (m + i eta s (1 + m)) z + i eta s m = 0

    Stable near the equilibrium up to eta s = 1/sqrt(3) if beta << s, where it halves in the fastest direction in two steps at
    eta s = 1/2; from every start up to `optimistic_safe`.
    Limits  previous = theta (the start): `mirror_descent_step`
    Not     `omwu_step`, which extrapolates the win rates instead of the policy
    """
    opponent = theta + (1 - eta * beta) * (theta - previous)
    return _pulled(theta, log_mu, eta, beta) + eta * _winrate(P, opponent)


def mmd_step(theta: Tensor, log_magnet: Tensor, P: Tensor, eta: Rate, beta: Rate) -> Tensor:
    """Magnetic mirror descent (the inner step of MPO): (theta + eta beta log magnet + eta P p) / (1 + eta beta).

    Limits  equal to `mirror_descent_step` with step eta / (1 + eta beta)
    Source  arXiv:2206.05825; arXiv:2410.16714
    """
    return (theta + eta * beta * log_magnet + eta * _winrate(P, theta)) / (1 + eta * beta)


def nash_md_step(theta: Tensor, log_mu: Tensor, P: Tensor, eta: Rate, beta: Rate) -> Tensor:
    """Nash-MD: the mirror-descent step against the mixture softmax((1 - eta beta) theta + eta beta log mu).

    With a constant step the mixture converges to the equilibrium of beta / (1 - eta beta), not to that of beta.
    Source  arXiv:2312.00886
    """
    mixture = _pulled(theta, log_mu, eta, beta)
    return mixture + eta * _winrate(P, mixture)


def hedge_step(theta: Tensor, P: Tensor, eta: Rate) -> Tensor:
    """Multiplicative weights: theta + eta P p. The exact step of SPPO and DNO; its average converges, its last iterate circles."""
    return theta + eta * _winrate(P, theta)


def omwu_step(theta: Tensor, previous: Tensor, P: Tensor, eta: Rate) -> Tensor:
    """Optimistic multiplicative weights: theta + eta (2 P p_t - P p_t-1), with `previous` the logits of p_t-1. The exact step of ONPO."""
    return theta + eta * (2 * _winrate(P, theta) - _winrate(P, previous))
