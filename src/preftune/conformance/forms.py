"""One step of every method in closed form, and where its iteration rests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..exact import nash

# --- one step in closed form ------------------------------------------------------------------------------------------

State = tuple[Tensor, ...]  # logits [..., n] of the policy, then of the further policies that a method keeps


@dataclass(frozen=True)
class Setting:
    P: Tensor  #       [..., n, n]
    log_mu: Tensor  #  [..., n]
    eta: float
    beta: float

    @property
    def n(self) -> int:
        return self.P.shape[-1]


Step = Callable[[State, Setting, int], State]  # the state after step t = 0, 1, ...
B, DECAY, K, ALPHA = 0.125, 0.9, 100, 0.3  # mixture, running average, steps of a magnet, momentum: the suite's


def beaten(P: Tensor, logits: Tensor) -> Tensor:
    """P p, [..., n]."""
    return (P @ logits.softmax(-1).unsqueeze(-1)).squeeze(-1)


def mixed(g: Setting, theta: Tensor, w: float) -> Tensor:
    return (1 - w) * theta + w * g.log_mu


def ascend(g: Setting, theta: Tensor, law: Tensor, opponent: Tensor, beta: float | None = None) -> Tensor:
    """theta + eta n law (c - E_law c),  c = P q - beta log p / mu: mirror descent if the law is uniform, the policy gradient if it is p."""
    c = beaten(g.P, opponent) - (g.beta if beta is None else beta) * (theta - g.log_mu)
    return theta + g.eta * g.n * law * (c - (law * c).sum(-1, keepdim=True))


def surprise(g: Setting, theta: Tensor, law: Tensor) -> Tensor:
    """eta n sum_j W_ij [P_ij - sigmoid(beta (u_i - u_j))],  u = log p / mu, W how often a pair is drawn, in either order."""
    u = theta - g.log_mu
    margin = g.beta * (u.unsqueeze(-1) - u.unsqueeze(-2))
    return g.eta * g.n * ((law + law.mT) / 2 * (g.P - margin.sigmoid())).sum(-1)


def pairs_of(first: Tensor, second: Tensor) -> Tensor:
    return first.unsqueeze(-1) * second.unsqueeze(-2)


def own_pairs(theta: Tensor) -> Tensor:
    return pairs_of(theta.softmax(-1), theta.softmax(-1))


def xpo_step(s: State, g: Setting, t: int, alpha: float = 1e-5) -> State:
    """One response of the pair is the policy's, one the reference's; the bonus, alpha E_mu log p to be lowered, repels from mu."""
    p, mu = s[0].softmax(-1), g.log_mu.softmax(-1)
    return (s[0] + surprise(g, s[0], pairs_of(p, mu)) + g.eta * g.n / (2 * g.beta) * alpha * (p - mu),)


def vpo_step(s: State, g: Setting, t: int, alpha: float = 1e-4) -> State:
    p, mu = s[0].softmax(-1), g.log_mu.softmax(-1)
    return (s[0] + surprise(g, s[0], own_pairs(s[0])) + g.eta * g.n / 2 * alpha * (p - mu),)


def optimistic_step(s: State, g: Setting, t: int) -> State:
    theta, before = s
    opponent = theta + (1 - g.eta * g.beta) * (theta - before)
    return mixed(g, theta, g.eta * g.beta) + g.eta * beaten(g.P, opponent), theta


def average_step(s: State, g: Setting, t: int) -> State:
    theta, slow = s
    theta = ascend(g, theta, theta.softmax(-1), slow)
    return theta, DECAY * slow + (1 - DECAY) * theta


def magnet_step(s: State, g: Setting, t: int, every: int = K) -> State:
    theta, magnet = s
    theta = nash.mmd_step(theta, magnet, g.P, g.eta, g.beta)
    return theta, theta if (t + 1) % every == 0 else magnet


def momentum_step(s: State, g: Setting, t: int, alpha: float = ALPHA) -> State:
    """From pi_t the round goes to hat_t+1 by multiplicative weights, and then on by alpha of the way from hat_t."""
    theta, hat = s
    solved = nash.hedge_step(theta, g.P, g.eta)
    return solved + alpha * (solved - hat), solved


def sppo_step(s: State, g: Setting, t: int) -> State:
    """The minimiser of E_p (log q / p - z)^2 over policies q, z = eta (P p - 1/2), which the normaliser keeps off log q / p = z.

    Stationary where log q / p = z - c q / p with a number c >= 0, that is log q / p = r = z - W(c e^z), W Lambert's. The total of q
    is convex and falls in c, dr / dc = -e^r / (1 + W): Newton's method from c = 0 stays below the root.
    """
    from scipy.special import lambertw

    p = s[0].softmax(-1).numpy()
    z = (g.eta * (beaten(g.P, s[0]) - 0.5)).numpy()
    c = np.zeros_like(z[..., :1])
    for _ in range(12):
        W = lambertw(c * np.exp(z)).real
        q = p * np.exp(z - W)
        c = c + (q.sum(-1, keepdims=True) - 1) / (q * q / p / (1 + W)).sum(-1, keepdims=True)
    return (s[0].log_softmax(-1) + torch.from_numpy(z - lambertw(c * np.exp(z)).real),)


def standardised_step(s: State, g: Setting, t: int) -> State:
    """GRPO, lr = eta n / 10: win rates are divided by their standard deviation under p, + 1e-4."""
    p = s[0].softmax(-1)
    away = beaten(g.P, s[0]) - 0.5
    return (s[0] + g.eta * g.n / 10 * p * away / ((p * away**2).sum(-1, keepdim=True).sqrt() + 1e-4),)


# --- where it ends ------------------------------------------------------------------------------------------------------

Limit = Callable[[Setting], Tensor]  # log p [..., n]


def equilibrium(g: Setting) -> Tensor:
    return nash.regularised_nash(g.P, g.log_mu, g.beta)


def biased(share: Callable[[Setting], float]) -> Limit:
    """The best response to the equilibrium of beta / (1 - b), which is where the mixture with share b of mu goes."""

    def limit(g: Setting) -> Tensor:
        return nash.best_response(g.P, nash.regularised_nash(g.P, g.log_mu, g.beta / (1 - share(g))), g.log_mu, g.beta)

    return limit


def lottery(g: Setting) -> Tensor:
    return nash.nash(g.P).clamp(min=1e-300).log()


def lottery_of_log_odds(g: Setting) -> Tensor:
    """The equilibrium of the game whose payoffs are log-odds; another one unless there is a sure winner."""
    odds = g.P.logit()
    return lottery(replace(g, P=0.5 + odds / (2 * odds.abs().amax((-1, -2), keepdim=True))))


def at_rest(step: Step, drawn: Callable[[Tensor, Tensor], Tensor] = lambda p, mu: p) -> Limit:
    """Where a step of one policy leaves it as it is, found by roots for beta = 1 and then ever smaller ones; nan where none was found.

    drawn   the law of the responses that are compared: those which are rarely drawn hardly move
    """

    def limit(g: Setting) -> Tensor:
        from scipy.optimize import root

        def one(P: Tensor, mu: Tensor) -> Tensor:
            x = mu.numpy()
            for beta in [g.beta ** (k / 9) for k in range(10)] if g.beta < 1 else [g.beta]:
                alone = Setting(P, mu, 1.0 / g.n, beta)

                def moved(x: NDArray[np.float64], alone: Setting = alone) -> NDArray[np.float64]:
                    theta = torch.from_numpy(x)
                    away = (step((theta,), alone, 0)[0] - theta) / drawn(theta.softmax(-1), mu.softmax(-1))
                    return (away + theta.mean() - mu.mean()).numpy()

                x = root(moved, x, tol=1e-14).x
            return torch.from_numpy(np.where(np.abs(moved(x)).max() < 1e-9, x, np.nan)).log_softmax(-1)

        P, mu = g.P.reshape(-1, g.n, g.n), g.log_mu.expand(g.P.shape[:-1]).reshape(-1, g.n)
        return torch.stack([one(*pair) for pair in zip(P, mu, strict=True)]).reshape(g.P.shape[:-1])

    return limit
