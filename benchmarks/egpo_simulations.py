"""The numerical simulations of EGPO (arXiv:2503.08942; settings of github.com/zhourunlong/EGPO, simulations/), and a fair comparison.

    OMP_NUM_THREADS=1 python benchmarks/egpo_simulations.py --out egpo            an hour on a busy machine, less on a quiet one
    OMP_NUM_THREADS=1 python benchmarks/egpo_simulations.py --out egpo --quick    the same path in under a minute

published  each setting as the authors run it: one learning rate for all methods, ten random games at once, start at the reference
tuned      each method with the best of a grid of steps, constant and decreasing, counted in questions to the judge

The policy is a domain from outside the package: a network that gives the logits of all games, or the table of logits where it
has no layers. Methods are compositions of the package: the registry's, `GradientLearner`, `PreferenceTable`. Runs on tables that
would take hours so (1e5 steps, and the grids) use the steps in closed form, exact/nash.py and those below; how far they are from
the compositions is measured at the start of every run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from preftune import provenance
from preftune.collect.drawing import drawing
from preftune.exact.games import random_game
from preftune.exact.nash import (
    extragradient_step,
    mirror_descent_limit,
    mirror_descent_step,
    regularised_gap,
    regularised_nash,
    rotation,
)
from preftune.judges.exact import PreferenceTable
from preftune.learner import Diverged, GradientLearner
from preftune.methods.egpo import egpo
from preftune.methods.nash_md import nash_md
from preftune.methods.nash_md_pg import nash_md_pg
from preftune.methods.online_ipo import online_ipo
from preftune.policies.tabular import TableResponses
from preftune.types import Head, Key, Method, PreftuneError, Rows, Scored, Want

GAMES = 10  #     problems of one run, summed
PAIRS = 100  #    pairs of responses a step and game, where they are drawn
POINTS = 120  #   of a curve
GOAL = 1e-6  #    a gap below which a method has arrived
COLOUR = {"EGPO": "#d1495b", "OIPO1": "#0067a5", "OIPO2": "#3a7d44", "Nash-MD": "#e08e0b", "Nash-MD-PG": "#7a4fa3"}
DASH = {"Nash-MD": ' stroke-dasharray="5 4"'}  # often one line with OIPO1
CALLS = {"OIPO1": 1, "OIPO2": 1, "Nash-MD": 1, "Nash-MD-PG": 1, "EGPO": 2}  # questions to the judge in a step


@dataclass(frozen=True)
class Setting:
    """One panel of the simulations, with the authors' numbers."""

    name: str
    beta: float
    steps: int
    lr: float
    n: int = 10
    neural: bool = False
    exact: bool = True
    closed: bool = False  # steps in closed form, not compositions

    @property
    def eta(self) -> float:
        """The step of mirror descent that a gradient step on uniform pairs of a table equals."""
        return 4 * self.lr / (self.n * self.beta)


SETTINGS = (
    Setting("tabular, exact, beta .001", 1e-3, 100_000, 2e-4, closed=True),
    Setting("tabular, exact, beta .01", 1e-2, 5_000, 2e-2),
    Setting("tabular, exact, beta .1", 1e-1, 1_000, 1e-1),
    Setting("tabular, sampled, beta .01", 1e-2, 100_000, 2e-4, exact=False, closed=True),
    Setting("neural, exact, beta .01", 1e-2, 10_000, 3e-3, n=100, neural=True),
    Setting("neural, sampled, beta .1", 1e-1, 5_000, 1e-3, n=100, neural=True, exact=False),  # the authors take 20,000 steps
)
RATES = ((SETTINGS[4], 4_000, (1e-3, 3e-3, 1e-2, 3e-2)), (SETTINGS[3], 20_000, (2e-4, 1e-3, 5e-3, 2.5e-2)))  # calls, a grid


# --- the games --------------------------------------------------------------------------------------------------------


def games(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """P [G, n, n], every pair decided by its own uniform draw, and normal reference logits [G, n]. Seed 0, n = 10: the first is rand10."""
    P = torch.stack([random_game(n, seed=100 * (seed * GAMES + g)) for g in range(GAMES)])
    return P, torch.from_numpy(numpy.random.default_rng(1 + seed).normal(size=(GAMES, n)))


# --- the domain -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def numbers(prompt: tuple[int, ...]) -> Tensor:
    """Game of every row, [B]."""
    return torch.tensor(prompt)


class Network:
    """A law over n responses for each of G games from one ReLU network, whose input [G, d] is learnt too.

    weights   the input, then matrix and bias of every layer; the input alone is a table of logits
    exact     answer every request with the whole law, as TabularPolicy does

    Draws derive from the key and the number of the row in its batch: equal batches get equal draws.
    """

    uniform: Mapping[str, Any] = {"temperature": math.inf}
    independent = True  # the games are separate problems, although they share the layers: their losses are summed

    def __init__(self, weights: Sequence[Tensor], *, exact: bool = True):
        self.weights = [torch.nn.Parameter(w.detach().clone()) for w in weights]
        self.exact = exact

    @classmethod
    def drawn(cls, n: int, layers: int, width: int, seed: int, *, exact: bool) -> Network:
        """Xavier's normal matrices, no biases, normal inputs."""
        draw = numpy.random.default_rng(1 + seed).normal
        weights = [torch.from_numpy(draw(size=(GAMES, width)))]
        for out in [width] * (layers - 1) + [n]:
            weights += [torch.from_numpy(draw(size=(out, width))) * math.sqrt(2 / (width + out)), torch.zeros(out, dtype=torch.float64)]
        return cls(weights, exact=exact)

    def logits(self) -> Tensor:
        """[G, n]."""
        x, *layers = self.weights
        for i, (matrix, bias) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
            x = torch.nn.functional.linear(x if i == 0 else torch.relu(x), matrix, bias)
        return x

    def sample(self, rows: Rows, n: int, key: Key, *, temperature: float = 1.0) -> TableResponses:
        law = (self.logits().detach() / temperature).softmax(1)
        game, count = numbers(tuple(rows.prompt)), law.shape[1]
        if self.exact:
            return TableResponses(torch.arange(count).expand(len(rows), count), law[game])
        draws = torch.rand(len(rows), n, generator=torch.Generator().manual_seed(key.seed), dtype=torch.float64)
        if math.isinf(temperature):
            return TableResponses((draws * count).long())
        return TableResponses(torch.searchsorted(law.cumsum(1)[game], draws, right=True).clamp(max=count - 1))

    def score(self, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
        if wants or rows.prompts is not None:
            raise PreftuneError("these games have single responses to one prompt; needed a method that reads no more than that")
        logp = self.logits().log_softmax(1)[numbers(tuple(rows.prompt))[:, None], rows.response.index]
        return Scored(rows, logp, length=torch.ones_like(logp))

    def attach(self, heads: Mapping[str, Head], key: Key) -> None:
        if heads:
            raise PreftuneError("these games have no hidden states for heads to read; needed a method without heads")

    def copy(self) -> Network:
        return self._frozen(self.weights)

    reference = copy

    def lerp(self, other: Network, w: float) -> Network:
        return self._frozen([a.detach().lerp(b.detach(), w) for a, b in zip(self.weights, other.weights, strict=True)])

    def mix(self, other: Network, w: float) -> Network:
        return self._frozen([self.logits().detach().lerp(other.logits().detach(), w)])  # a table: normalisers cancel

    def _frozen(self, weights: Sequence[Tensor]) -> Network:
        frozen = Network(weights, exact=self.exact)
        for weight in frozen.weights:
            weight.requires_grad_(False)
        return frozen

    def revise(self, rows: Rows) -> Any:
        raise PreftuneError("these games have no drafts; needed a method that does not revise")

    def parameters(self) -> list[Tensor]:
        return list(self.weights)

    def unpack(self, packed: dict[str, Tensor]) -> TableResponses:
        return TableResponses(**packed)

    def state(self) -> dict[str, Tensor]:
        return {str(i): weight.detach().clone() for i, weight in enumerate(self.weights)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for i, weight in enumerate(self.weights):
            weight.data.copy_(state[str(i)])


# --- the methods ------------------------------------------------------------------------------------------------------


def methods(beta: float, lr: float, n: int) -> dict[str, Method]:
    """The five of the paper. The authors mix 2 lr / n of the reference into Nash-MD's opponent, half of eta beta."""
    mixture = 2 * lr / n
    return {
        "OIPO1": online_ipo(tau=beta, pairs="uniform"),
        "OIPO2": online_ipo(tau=beta, pairs="policy"),
        "Nash-MD": nash_md(tau=beta, mixture=mixture),
        "Nash-MD-PG": nash_md_pg(tau=beta, mixture=mixture),
        "EGPO": egpo(beta=beta),
    }


# The same as steps in closed form: logits [..., n] in, logits out. eta is that of mirror descent, 4 lr / (n beta).


def _winrate(P: Tensor, logits: Tensor) -> Tensor:
    return (P @ logits.softmax(-1).unsqueeze(-1)).squeeze(-1)


def mixed_step(theta: Tensor, log_mu: Tensor, P: Tensor, eta: Any, beta: float, *, share: float) -> Tensor:
    """Nash-MD with `share` of its mixing weight eta beta; share = 1 is `nash_md_step`."""
    towards = eta * beta * (log_mu - theta)
    return theta + towards + eta * _winrate(P, theta + share * towards)


def gradient_step(theta: Tensor, log_mu: Tensor, P: Tensor, eta: Any, beta: float, *, mixture: Any = 0.0) -> Tensor:
    """theta + eta n p (c - E_p c),  c = P q - beta log(p / mu),  q the mixture p^(1 - w) mu^w.

    w = 0 is online IPO on pairs of the policy, an ascent of p that a table's softmax slows by the factor n p; with w > 0 it is
    Nash-MD-PG, whose own lr is eta n: the authors' common lr is a step 4 / beta times smaller for it than for the others.
    """
    p = theta.softmax(-1)
    gain = _winrate(P, (1 - mixture) * theta + mixture * log_mu) - beta * (theta - log_mu)
    return theta + eta * theta.shape[-1] * p * (gain - (p * gain).sum(-1, keepdim=True))


Step = Callable[..., Tensor]


def published_steps(beta: float, lr: float, n: int) -> dict[str, tuple[Step, float]]:
    """Name -> step and its eta at the authors' learning rate."""
    eta = 4 * lr / (n * beta)
    return {
        "OIPO1": (mirror_descent_step, eta),
        "OIPO2": (gradient_step, eta),
        "Nash-MD": (partial(mixed_step, share=0.5), eta),
        "Nash-MD-PG": (partial(gradient_step, mixture=2 * lr / n), lr / n),
        "EGPO": (extragradient_step, eta),
    }


# And over draws, in numpy: [G, m, K] responses and win rates of m rows for each game.

Floats = numpy.ndarray


def squared_gradient(theta: Floats, log_mu: Floats, y: Floats, winrate: Floats, beta: float) -> Floats:
    """Of the mean over rows of (u(y) - u(y'))^2, u = log p / mu - winrate / beta: 2 (u(y) - u(y')) (e_y - e_y')."""
    u = numpy.take_along_axis((theta - log_mu)[:, None], y, 2) - winrate / beta
    pull = 2 * (u[:, :, 0] - u[:, :, 1]) / y.shape[1]
    return at_responses(theta, y[:, :, 0], pull) - at_responses(theta, y[:, :, 1], pull)


def score_gradient(theta: Floats, log_mu: Floats, y: Floats, winrate: Floats, beta: float) -> Floats:
    """Of the mean over rows of -c(y) log p(y), c = winrate - 1/2 - beta log p / mu a constant: -c (e_y - p)."""
    p, mu = law(theta), law(log_mu)
    gain = (winrate - 0.5 - beta * numpy.take_along_axis(numpy.log(p / mu)[:, None], y, 2))[:, :, 0] / y.shape[1]
    return gain.sum(1, keepdims=True) * p - at_responses(theta, y[:, :, 0], gain)


def at_responses(theta: Floats, y: Floats, weight: Floats) -> Floats:
    """sum_m weight_m e_y_m, [G, n]."""
    games, n = theta.shape
    return numpy.bincount((y + n * numpy.arange(games)[:, None]).ravel(), weight.ravel(), games * n).reshape(games, n)


def law(theta: Floats) -> Floats:
    p = numpy.exp(theta - theta.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


GRADIENTS: dict[str, Callable[..., Floats]] = dict.fromkeys(CALLS, squared_gradient) | {"Nash-MD-PG": score_gradient}


def drawn(
    name: str, lr: float, logits: Tensor, P: Tensor, beta: float, steps: int, seed: int, at: Iterable[int], mixture: float
) -> list[list[float]]:
    """The gaps [G] of SGD on PAIRS rows a step and game, drawn as the collectors draw: the composition with other random numbers."""
    draw, log_mu, at = numpy.random.default_rng([seed, list(CALLS).index(name)]), logits.log_softmax(1), set(at)
    theta, mu, beats = log_mu.numpy().copy(), log_mu.numpy(), P.numpy()
    games, n = theta.shape
    game = numpy.arange(games)[:, None, None]

    def responses(p: Floats, k: int) -> Floats:
        u = draw.random((games, PAIRS * k))
        return (u[:, :, None] > p.cumsum(1)[:, None, :-1]).sum(2).reshape(games, PAIRS, k)

    def rows(opponent: Floats) -> tuple[Floats, Floats]:
        """Who answers and whom they meet: uniform pairs against a draw of the opponent, or the policy's own responses."""
        if name == "OIPO2":
            y = responses(law(theta), 2)
            return y, beats[game[..., None], y[:, :, :, None], y[:, :, None, :]].mean(3)
        y = responses(law(theta), 1) if name == "Nash-MD-PG" else draw.integers(n, size=(games, PAIRS, 2))
        return y, beats[game, y, responses(law(opponent), 1)]

    gaps = []
    for t in range(steps + 1):
        if t in at:
            gaps.append(regularised_gap(P, torch.from_numpy(theta), log_mu, beta).tolist())
        opponent = (1 - mixture) * theta + mixture * mu if name in ("Nash-MD", "Nash-MD-PG") else theta
        if name == "EGPO":
            opponent = theta - lr * squared_gradient(theta, mu, *rows(theta), beta)
        theta = theta - lr * GRADIENTS[name](theta, mu, *rows(opponent), beta)
    return gaps


# --- published --------------------------------------------------------------------------------------------------------


def marks(steps: int) -> list[int]:
    """The steps at which a curve has points."""
    return sorted({round(steps * i / POINTS) for i in range(POINTS + 1)})


def composed(
    method: Method, policy: Network, P: Tensor, beta: float, lr: float, steps: int, seed: int, at: Iterable[int]
) -> dict[str, Any]:
    """Descend, and measure the gap [G] at the steps `at`. calls: questions to the judge in all."""
    reference, judge, at = policy.reference(), PreferenceTable(P), set(at)
    roles = {"current": policy, "reference": reference, **{name: policy.copy() for name in method.roles}}
    learner = GradientLearner(policy, method, roles, optimiser="sgd", lr=lr, clip=0.0, micro_batch=10**9)
    prompt = tuple(g for g in range(GAMES) for _ in range(1 if policy.exact else PAIRS))
    feed, key, log_mu = Rows(id=tuple(map(str, range(len(prompt)))), prompt=prompt), Key.of(seed), reference.logits().log_softmax(1)
    gaps = []
    for step in range(steps + 1):
        if step in at:
            gaps.append(regularised_gap(P, policy.logits().detach(), log_mu, beta).tolist())
        if step < steps:
            try:
                method.update(learner, drawing(method.collect, learner.roles, feed, key.fold(step), judges=(judge,), step=step))
            except Diverged:
                gaps += [[math.inf] * GAMES] * (len(at) - len(gaps))
                break
            if isinstance(method.reference_every, int) and (step + 1) % method.reference_every == 0:
                learner.roles = dict(method.reference(learner.roles))
    return {"gap": gaps, "calls": judge.calls}


def constant(eta: Any, beta: float, t: int) -> Any:
    return eta


def decreasing(eta: Any, beta: float, t: int) -> Any:
    """min(eta, 2 / (beta (t + 2))); the theorem of Nash-MD has no cap."""
    return torch.as_tensor(eta).clamp(max=2 / (beta * (t + 2)))


SCHEDULES: dict[str, Callable[[Any, float, int], Any]] = {"constant": constant, "decreasing": decreasing}


def closed(
    step: Step, eta: float, logits: Tensor, P: Tensor, beta: float, steps: int, at: Iterable[int], schedule: Any = constant
) -> list[list[float]]:
    """The gaps [G] of a step in closed form."""
    theta, log_mu, at = logits.log_softmax(-1), logits.log_softmax(-1), set(at)
    gaps = []
    for t in range(steps + 1):
        if t in at:
            gaps.append(regularised_gap(P, theta, log_mu, beta).tolist())
        theta = step(theta, log_mu, P, schedule(eta, beta, t), beta)
    return gaps


def start(setting: Setting, seed: int) -> tuple[Tensor, Network]:
    P, logits = games(setting.n, seed)
    if setting.neural:
        return P, Network.drawn(setting.n, layers=3, width=10, seed=seed, exact=setting.exact)
    return P, Network([logits], exact=setting.exact)


def published(setting: Setting, steps: int, seed: int) -> dict[str, Any]:
    """name -> gap [points][G] and calls, beside the stability of mirror descent in these games."""
    at, found = marks(steps), {}
    P, policy = start(setting, seed)
    if setting.closed:
        forms = published_steps(setting.beta, setting.lr, setting.n)
        for name in CALLS:
            found[name] = {"gap": written_out(setting, forms[name], name, policy, P, steps, seed, at), "calls": CALLS[name] * steps}
    else:
        for name, method in methods(setting.beta, setting.lr, setting.n).items():
            fresh = Network(policy.weights, exact=policy.exact)
            began = time.time()
            found[name] = composed(method, fresh, P, setting.beta, setting.lr, steps, seed, at)
            say(f"  {name}: {time.time() - began:.0f} s, median gap {statistics.median(found[name]['gap'][-1]):.2g}")
    log_mu = policy.logits().detach().log_softmax(1)
    limits = mirror_descent_limit(rotation(P, regularised_nash(P, log_mu, setting.beta)), setting.beta)
    return {"setting": vars(setting) | {"steps": steps, "eta": setting.eta}, "at": at, "limits": limits.tolist(), "methods": found}


def written_out(
    setting: Setting, form: tuple[Step, float], name: str, policy: Network, P: Tensor, steps: int, seed: int, at: Iterable[int]
) -> list[list[float]]:
    logits = policy.logits().detach()
    if setting.exact:
        return closed(*form, logits, P, setting.beta, steps, at)
    return drawn(name, setting.lr, logits, P, setting.beta, steps, seed, at, 2 * setting.lr / setting.n)


def agreement(seed: int, steps: int = 50) -> float:
    """The largest difference between the gaps of compositions and of steps in closed form, and between logits after a step on the same
    draws; refuses where the calls differ from CALLS."""
    setting, worst = SETTINGS[2], 0.0
    P, policy = start(setting, seed)
    forms = published_steps(setting.beta, setting.lr, setting.n)
    for name, method in methods(setting.beta, setting.lr, setting.n).items():
        one = composed(method, Network(policy.weights), P, setting.beta, setting.lr, steps, seed, range(steps + 1))
        two = closed(*forms[name], policy.logits().detach(), P, setting.beta, steps, range(steps + 1))
        worst = max(worst, float(numpy.abs(numpy.array(one["gap"]) - numpy.array(two)).max()))
        if one["calls"] != CALLS[name] * steps:
            raise PreftuneError(f"{name} asked {one['calls']} times in {steps} steps, needed {CALLS[name]} a step; correct CALLS")
        fresh = Network([games(setting.n, seed + 1)[1]], exact=False)  # away from the reference
        roles = {"current": fresh, "reference": Network(policy.weights, exact=False), "opponent": fresh.copy()}
        theta, mu = fresh.copy().logits().numpy(), policy.logits().detach().numpy()
        learner = GradientLearner(fresh, method, roles, optimiser="sgd", lr=setting.lr, clip=0.0, micro_batch=10**9)
        prompt = tuple(g for g in range(GAMES) for _ in range(PAIRS))
        feed = Rows(id=tuple(map(str, range(len(prompt)))), prompt=prompt)
        learner.descend(rows := drawing(method.collect, roles, feed, Key.of(seed), judges=(PreferenceTable(P),))(roles["opponent"]))
        y, winrate = (x.numpy().reshape(GAMES, PAIRS, -1) for x in (rows.response.index, rows.winrate))
        theta = theta - setting.lr * GRADIENTS[name](theta, mu, y, winrate, setting.beta)
        worst = max(worst, float(numpy.abs(theta - fresh.logits().detach().numpy()).max()))
    return worst


# --- tuned ------------------------------------------------------------------------------------------------------------

GRID = [0.005 * 2 ** (k / 2) for k in range(24)]  # eta, .005 to 14.5
TUNED: dict[str, Step] = {
    "OIPO1": mirror_descent_step,
    "OIPO2": gradient_step,  #                           and Nash-MD-PG without mixing
    "Nash-MD": partial(mixed_step, share=1.0),
    "Nash-MD-PG": partial(gradient_step, mixture=0.125),  # the mixture of arXiv:2312.00886; no step size can undo its bias
    "EGPO": extragradient_step,
}
BUDGETS = {0.1: (100, 1_000, 4_000), 0.01: (500, 5_000, 40_000), 0.001: (10_000, 100_000, 100_000)}  # calls; the last is where grids end


def grid(step: Step, schedule: str, beta: float, budgets: Sequence[int], cost: int, seed: int, steps: Sequence[float]) -> dict[str, Any]:
    """Every step size on every game at once, [S, G]: calls until the gap is below GOAL for good, and the gaps after two budgets.

    The gap is looked at every `every` steps, so that calls are rounded up to that: 1, 10 and 25 for the three betas.
    """
    P, logits = games(10, seed)
    log_mu = logits.log_softmax(-1)
    eta = torch.tensor(steps, dtype=torch.float64)[:, None, None]
    theta = log_mu.expand(len(steps), *log_mu.shape).clone()
    *budgets, end = (calls // cost for calls in budgets)
    every = max(1, end * cost // 4000)
    last, after = torch.full((len(steps), GAMES), -every), {}
    for t in range(end + 1):
        if t % every == 0 or t in budgets or t == end:
            gap = regularised_gap(P, theta, log_mu, beta)
            last[~(gap < GOAL)] = t
            after |= {calls: gap.nan_to_num(nan=math.inf).tolist() for calls in budgets if calls == t}
        theta = step(theta, log_mu, P, SCHEDULES[schedule](eta, beta, t), beta)
    arrived = [[cost * (t + every) if t + every <= end else None for t in row] for row in last.tolist()]
    return {"arrived": arrived, "after": [after[calls] for calls in budgets]}


def tuned(beta: float, budgets: Sequence[int], seed: int, steps: Sequence[float]) -> list[dict[str, Any]]:
    """For each method and schedule one step for all games: that with the fewest calls in all, where a game that does not arrive counts
    as the whole grid's length, and those with the least median gap."""
    found = []
    for name, step in TUNED.items():
        for schedule in SCHEDULES:
            run = grid(step, schedule, beta, budgets, CALLS[name], seed, steps)
            there = [[c for c in row if c is not None] for row in run["arrived"]]
            never = budgets[-1] + 1
            soonest = min(range(len(steps)), key=lambda s: sum(c if c is not None else never for c in run["arrived"][s]))
            least = [min(range(len(steps)), key=lambda s, gaps=gaps: statistics.median(gaps[s])) for gaps in run["after"]]
            own = [min((c for c in column if c is not None), default=math.inf) for column in zip(*run["arrived"], strict=True)]
            found.append(
                {
                    "method": name,
                    "schedule": schedule,
                    "own": statistics.median(own),
                    "beta": beta,
                    "games": len(there[soonest]),
                    "eta": steps[soonest] if there[soonest] else None,
                    "calls": statistics.median(there[soonest]) if there[soonest] else None,
                    "worst": max(there[soonest], default=None),
                    "eta_after": [steps[s] for s in least],
                    "after": [statistics.median(gaps[s]) for gaps, s in zip(run["after"], least, strict=True)],
                    "worst_after": [max(gaps[s]) for gaps, s in zip(run["after"], least, strict=True)],
                }
            )
            say(f"  {name} {schedule}: {found[-1]}")
    return found


def tuned_curves(beta: float, calls: int, found: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Each method with the schedule and step that had the least gap after `calls`: a panel."""
    P, logits = games(10, seed)
    at, curves = sorted({2 * round(calls * i / POINTS / 2) for i in range(POINTS + 1)}), {}
    for name, step in TUNED.items():
        best = min((r for r in found if r["method"] == name and r["beta"] == beta), key=lambda r: r["after"][0])
        points = [t // CALLS[name] for t in at]
        gaps = closed(step, best["eta_after"][0], logits, P, beta, points[-1], points, SCHEDULES[best["schedule"]])
        curves[name] = {"gap": gaps}
    return {"setting": {"name": f"tuned, tabular, exact, beta {beta:g}".replace("0.", ".")}, "at": at, "methods": curves, "unit": "calls"}


def rates(setting: Setting, calls: int, seed: int, grid: Sequence[float]) -> list[dict[str, Any]]:
    """Compositions, the gap after `calls` questions for every learning rate; the step of Nash-MD-PG is 4 / beta times the rate."""
    found = []
    for lr in grid:
        P, policy = start(setting, seed)
        for name, method in methods(setting.beta, lr, setting.n).items():
            steps = calls // CALLS[name]
            own = lr * 4 / setting.beta if name == "Nash-MD-PG" else lr
            fresh = Network(policy.weights, exact=policy.exact)
            if setting.closed:
                run = drawn(name, own, policy.logits().detach(), P, setting.beta, steps, seed, [steps], 2 * lr / setting.n)[-1]
            else:
                run = composed(method, fresh, P, setting.beta, own, steps, seed, [steps])["gap"][-1]
            found.append({"setting": setting.name, "method": name, "lr": lr, "after": statistics.median(run), "worst_after": max(run)})
            say(f"  {found[-1]}")
    return found


# --- what is shown ----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, flush=True)


def digits(value: float | None) -> str:
    if value is not None and value < 1e-15:  # rounding
        return "<1e-15"
    return "-" if value is None else "inf" if math.isinf(value) else f"{value:.1e}" if value < 0.001 else f"{value:.3f}".lstrip("0")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def report(results: Mapping[str, Any]) -> str:
    """The tables of the page."""
    names, parts = list(CALLS), []
    if results["published"]:
        header = ["setting", "steps", "eta", "games above the limit", *names, "EGPO at as many calls", "EGPO's rate"]
        parts += [
            "published: median gap [smallest, largest] of ten games, sampled ones over the last fifth of the steps\n",
            table(header, map(published_row, results["published"])),
        ]
    if results["tuned"]:
        header = ["beta", "method, schedule", "games that arrive", "calls to 1e-6, median (worst)", "eta", "each game its own eta"]
        header += ["gap after few calls, median (worst)", "eta", "after many", "eta"]
        parts += ["\ntuned\n", table(header, map(tuned_row, results["tuned"]))]
    for setting in dict.fromkeys(r["setting"] for r in results["rates"]):
        found = {(r["method"], r["lr"]): r for r in results["rates"] if r["setting"] == setting}
        grid = sorted({lr for _, lr in found})
        cells = ([m, *(f"{digits(found[m, lr]['after'])} ({digits(found[m, lr]['worst_after'])})" for lr in grid)] for m in names)
        parts += [f"\nlearning rates, {setting}\n", table(["method", *(f"{lr:g}" for lr in grid)], cells)]
    return "\n".join(parts) + "\n"


def published_row(run: Mapping[str, Any]) -> list[str]:
    setting, ends = run["setting"], [end(run, name) for name in CALLS]
    above = sum(setting["eta"] > limit for limit in run["limits"])
    known = not setting["neural"]
    return [
        setting["name"],
        str(setting["steps"]),
        f"{setting['eta']:.3g}" if known else "",
        f"{above} of {len(run['limits'])}" if known else "",
        *(f"{digits(statistics.median(gaps))} [{digits(min(gaps))}, {digits(max(gaps))}]" for gaps in ends),
        digits(statistics.median(end(run, "EGPO", len(run["at"]) // 2 + 1))),
        rate(run) if known and setting["exact"] else "",
    ]


def end(run: Mapping[str, Any], name: str, points: int | None = None) -> list[float]:
    """The gaps [G] at the end of the first `points` of a curve; the mean over their last fifth where draws make them noisy."""
    gaps = run["methods"][name]["gap"][:points]
    return gaps[-1] if run["setting"]["exact"] else [statistics.mean(g) for g in zip(*gaps[-(len(gaps) // 5) :], strict=True)]


def rate(run: Mapping[str, Any]) -> str:
    """Median over games of the factor a step by which EGPO's gap shrinks between 1e-3 and 1e-11, as a power of 1 - eta beta."""
    slopes = []
    for gaps in zip(*run["methods"]["EGPO"]["gap"], strict=True):
        inside = [(t, math.log(g)) for t, g in zip(run["at"], gaps, strict=True) if 1e-11 < g < 1e-3]
        if len(inside) > 2:
            (t, g), (u, h) = inside[0], inside[-1]
            slopes.append((h - g) / (u - t) / math.log1p(-run["setting"]["eta"] * run["setting"]["beta"]))
    return f"{statistics.median(slopes):.2f}" if slopes else "-"


def tuned_row(r: Mapping[str, Any]) -> list[str]:
    after = [(f"{digits(gap)} ({digits(worst)})", f"{eta:.2g}") for gap, worst, eta in zip(r["after"], r["worst_after"], r["eta_after"])]
    return [
        f"{r['beta']:g}".lstrip("0"),
        f"{r['method']}, {r['schedule']}",
        f"{r['games']} of {GAMES}",
        "-" if r["calls"] is None else f"{r['calls']:.0f} ({r['worst']})",
        "-" if r["eta"] is None else f"{r['eta']:.2g}",
        "-" if math.isinf(r["own"]) else f"{r['own']:.0f}",
        *(cell for pair in after for cell in pair),
    ]


WIDE, HIGH, LEFT, TOP, FOOT = 330, 230, 46, 50, 40  # of a panel; its margins


def figure(results: Mapping[str, Any]) -> str:
    """Median gap over steps, a panel for each setting."""
    runs = [*results["published"], *results["curves"]]
    width, height = 3 * WIDE, HIGH * math.ceil(len(runs) / 3) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" font-family="sans-serif" font-size="10">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, (name, colour) in enumerate(COLOUR.items()):
        parts.append(f'<path d="M{LEFT + 100 * i} 14h20" stroke="{colour}" stroke-width="2"{DASH.get(name, "")}/>')
        parts.append(f'<text x="{LEFT + 100 * i + 25}" y="18" font-size="12">{name}</text>')
    parts += [panel(run, WIDE * (i % 3), 10 + HIGH * (i // 3)) for i, run in enumerate(runs)]
    return "\n".join([*parts, "</svg>\n"])


def panel(run: Mapping[str, Any], x0: float, y0: float) -> str:
    """One setting: lines of log10 of the median gap, cut at 1e-12 and 10."""
    curves = {m: [min(max(math.log10(max(statistics.median(g), 1e-12)), -12), 1) for g in run["methods"][m]["gap"]] for m in run["methods"]}
    low = math.floor(min(map(min, curves.values())))
    high = max(low + 1, math.ceil(max(map(max, curves.values()))))
    left, right, top, bottom = x0 + LEFT, x0 + WIDE - 14, y0 + TOP, y0 + HIGH - FOOT
    steps = run["at"][-1]
    x = lambda t: left + (right - left) * t / steps
    y = lambda v: bottom - (bottom - top) * (v - low) / (high - low)
    parts = [f'<text x="{left}" y="{top - 8}" font-size="12">{run["setting"]["name"]}</text>']
    for tick in range(low, high + 1, max(1, math.ceil((high - low) / 6))):
        parts.append(f'<path d="M{left} {y(tick):.0f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 4}" y="{y(tick) + 3:.0f}" text-anchor="end">1e{tick}</text>')
    unit = run.get("unit", "steps")
    parts.append(f'<text x="{left}" y="{bottom + 14}">0 {unit}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 14}" text-anchor="end">{run["at"][-1]}</text>')
    for name, curve in curves.items():
        line = " ".join(f"{x(t):.0f},{y(v):.1f}" for t, v in zip(run["at"], curve, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOUR[name]}" stroke-width="1.3"{DASH.get(name, "")}/>')
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("egpo"), help="folder for results.json, tables.md and figure.svg")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the steps")
    parser.add_argument("--only", nargs="+", choices=["published", "tuned", "rates"], default=["published", "tuned", "rates"])
    parser.add_argument("--settings", type=int, nargs="+", default=list(range(len(SETTINGS))), help="numbers of the published settings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    short = 50 if options.quick else 1
    steps = GRID[::4] if options.quick else GRID
    began = time.time()
    results: dict[str, Any] = {"command": provenance.command(), "commit": provenance.commit(), "versions": provenance.versions()}
    results |= {"seed": options.seed, "published": [], "tuned": [], "curves": [], "rates": []}

    def save() -> None:
        results["seconds"] = round(time.time() - began)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(results), encoding="utf-8")
        (options.out / "tables.md").write_text(report(results), encoding="utf-8")
        (options.out / "figure.svg").write_text(figure(results), encoding="utf-8")

    results["agreement"] = agreement(options.seed)
    say(f"compositions and closed forms agree within {results['agreement']:.1e}")
    if "published" in options.only:
        for setting in (SETTINGS[i] for i in options.settings):
            say(setting.name)
            results["published"].append(published(setting, setting.steps // short, options.seed))
            save()
    if "tuned" in options.only:
        for beta, budgets in BUDGETS.items():
            budgets = [calls // short for calls in budgets]
            say(f"tuned, beta {beta}: calls {budgets}")
            results["tuned"] += tuned(beta, budgets, options.seed, steps)
            results["curves"].append(tuned_curves(beta, budgets[0], results["tuned"], options.seed))
            save()
    if "rates" in options.only:
        for setting, calls, grid in RATES:
            say(f"learning rates, {setting.name}")
            results["rates"] += rates(setting, calls // short, options.seed, grid[::3] if options.quick else grid)
            save()
    say(report(results))
    say(f"{results['seconds']} s; written to {options.out}")


if __name__ == "__main__":
    main()
