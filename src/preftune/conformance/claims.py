"""Claims of papers, measured at stated settings, with a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from ..exact import nash
from ..exact.games import game
from ..playing import Match
from .forms import Setting, State, at_rest, biased, equilibrium, mixed, momentum_step, sppo_step
from .record import DISAGREE, HEDGE, RECORDS
from .runs import apart_from, gap_of, iterate, named, predicted


def momentum_of_adam(steps: int = 3000) -> dict[tuple[str, float], tuple[int | None, float]]:
    """Composed, rps, beta = .1, Adam at .01, by method and beta1: (first step with a gap of 1e-6 at most, mean gap of the last 500)."""
    g, found = named("rps", 1.0, 0.1), {}
    for name in ("online-ipo, uniform pairs", "egpo"):
        for beta1 in (0.9, 0.5, 0.0):
            match = Match(RECORDS[name].compose(1.0, 0.1), g.P[None], g.log_mu[None], lr=0.01, optimiser="adamw", beta1=beta1)
            gaps = []
            for _ in range(steps):
                match.step()
                gaps.append(gap_of(g, match.log_p()[0]))
            found[name, beta1] = next((t + 1 for t, x in enumerate(gaps) if x <= 1e-6), None), sum(gaps[-500:]) / 500
    return found


def best_calls(name: str, game_name: str, beta: float, etas: Sequence[float], steps: int = 11000) -> str:
    record, g = RECORDS[name], named(game_name, 1.0, beta)
    calls = {"egpo": 2}.get(name, 1)
    found: list[tuple[int, float]] = []
    for eta in etas:
        state, tried = (g.log_mu,) * record.states, replace(g, eta=eta)
        limit = min([steps, *(count // calls + 1 for count, _ in found)])
        for t in range(limit):
            if gap_of(g, state[0]) <= 1e-6:
                found.append((calls * t, eta))
                break
            state = record.step(state, tried, t)
    return f"{min(found)[0]} (eta {min(found)[1]:g})"


def authors_step() -> str:
    g = named("rand10", 0.8, 0.01)
    limit = nash.mirror_descent_limit(float(nash.rotation(g.P, equilibrium(g))), 0.01)
    plain, extra = (gap_of(g, iterate(name, g, 5000)[0]) for name in ("online-ipo, uniform pairs", "egpo"))
    small = gap_of(g, iterate("online-ipo, uniform pairs", replace(g, eta=0.1), 10865)[0])
    return (
        f"rand10, beta .01, eta .8, 5000 steps: gap {plain:.2f} for mirror descent, {extra:.0e} for EGPO. But .8 is above mirror descent's "
        f"stability limit, {limit:.3f}; at eta .1 it is at {small:.1e} after 10865 steps"
    )


def fair_steps() -> str:
    lines = [
        f"{game_name}, beta {beta:g}: {best_calls('online-ipo, uniform pairs', game_name, beta, etas)} against "
        f"{best_calls('egpo', game_name, beta, etas)} and {best_calls('egpo-optimistic', game_name, beta, etas)}"
        for game_name, beta, etas in (
            ("rand10", 1.0, (0.1, 0.2, 0.5, 1.0)),
            ("bt10", 0.1, (0.5, 1.0, 2.0, 5.0)),
            ("rand10", 0.1, (0.5, 1.0, 2.0, 5.0)),
            ("rand10", 0.01, (0.1, 0.2, 0.5, 1.0, 2.0)),
        )
    ]
    return (
        "judge calls to a gap of 1e-6, mirror descent against EGPO and its optimistic form, each at its best of these steps. "
        + "; ".join(lines)
    )


def constant_nash_md() -> str:
    found = []
    for eta in (0.4, 0.5):
        g = named("rand10", eta, 0.1)
        log_p, _ = iterate("nash-md", g, 2000)
        solved = float((mixed(g, log_p, eta * 0.1).log_softmax(-1) - equilibrium(replace(g, beta=0.1 / (1 - eta * 0.1)))).abs().max())
        found.append(f"eta {eta}: gap {gap_of(g, log_p):.1e}, its mixture within {solved:.0e} of the equilibrium of beta / (1 - eta beta)")
    return "rand10, beta .1, constant steps: " + "; ".join(found)


def mixtures() -> str:
    g = named("rand10", 1.0, 0.3)
    gaps = {b: gap_of(g, biased(partial(lambda b, g: b, b))(g)) for b in (0.125, 0.5)}
    return "rand10, beta .3, at rest: " + "; ".join(f"b {b}: gap {gap:.1e}" for b, gap in gaps.items())


def uncentred() -> str:
    skewed = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    found = []
    for eta in (1.0, 5.0):
        g = Setting(game("rps"), skewed, eta, 0.0)
        exact, regressed = HEDGE((skewed,), g, 0)[0].softmax(-1), sppo_step((skewed,), g, 0)[0].softmax(-1)
        found.append(f"eta {eta:g}: total variation {float((exact - regressed).abs().sum() / 2):.4f}")
    return "rps from (.6, .3, .1), the minimiser of the loss against multiplicative weights: " + "; ".join(found)


def circling() -> str:
    g = named("rps", 0.1)
    last, mean = iterate("sppo, centred", g, 10000)
    return f"rps, eta .1, 10,000 rounds: gap {gap_of(g, last):.3f} of the last policy, {gap_of(g, mean):.4f} of the average"


def gradient_players() -> str:
    g = named("rand10", 0.1)
    last, mean = iterate("spo-minimax", g, 10000)
    _, hedged = iterate("dno", g, 10000)
    return (
        f"rand10, eta .1, 10,000 exact steps: gap of the average {gap_of(g, mean):.3f}, of multiplicative weights' {gap_of(g, hedged):.4f}"
    )


def slow_opponents() -> str:
    g = named("rps", 0.5, 0.1)
    itself, average = (predicted(RECORDS[name], g, equilibrium(g)) or math.nan for name in ("online-ipo", "nash-ema-pg"))
    return f"rps, beta .1, eta .5, rate at the equilibrium: {itself:.4f} against itself, {average:.4f} against its average of decay .9"


def momentum() -> str:
    g = named("rps", 0.1)
    gaps = []
    for alpha in (0.0, 0.5):
        state: State = (g.log_mu, g.log_mu)
        for t in range(300):
            state = momentum_step(state, g, t, alpha)
        gaps.append(f"alpha {alpha:g}: {gap_of(g, state[0]):.3f}")
    return f"rps, eta .1, gap after 300 rounds of sppo ({gap_of(g, g.log_mu):.3f} at the start): " + ", ".join(gaps)


def no_solvers() -> str:
    settings = {name: named(name, 1.0, 0.3) for name in ("rps", "rand10", "bt10")}
    found = [f"{name} {apart_from(g, at_rest(DISAGREE)(g)):.3f}" for name, g in settings.items()]
    return "total variation between where it rests and the equilibrium, beta .3 in both: " + ", ".join(found)


def no_rest() -> str:
    g = named("rand10", 0.5, 0.1)
    shares = [float(iterate("vpo", g, steps)[0].exp().min()) for steps in (2000, 20000)]
    return (
        f"rand10, beta .1, alpha 1e-4: the rarest response has probability {shares[0]:.0e} after 2000 steps, {shares[1]:.0e} after 20,000"
    )


def magnets() -> str:
    found = []
    for name in ("rps", "rand10", "gpm20"):
        g = named(name, 0.1, 0.1)
        found.append(f"{name} {gap_of(replace(g, beta=0.0), iterate('mpo', g, 20000)[0]):.1e}")
    return "pull .1, eta .1, magnet moved every 100 steps, gap after 20,000 steps: " + ", ".join(found)


def rare_responses() -> str:
    g = named("rand10", 0.4, 0.1)
    own, uniformly = (gap_of(g, iterate(name, g, 1000)[0]) for name in ("online-ipo", "online-ipo, uniform pairs"))
    return f"rand10, beta .1, eta .4, 1000 steps: gap {own:.1e} with its own pairs, {max(uniformly, 0):.0e} with uniform ones"


def adam() -> str:
    short = {"online-ipo, uniform pairs": "online IPO", "egpo": "EGPO"}
    found = [
        f"{short[name]}, beta1 {beta1:g}: {'not' if first is None else f'first at step {first}'}, late gap {late:.0e}"
        for (name, beta1), (first, late) in momentum_of_adam().items()
    ]
    return "rps, beta .1, Adam at .01, 3000 composed steps, gap of 1e-6: " + "; ".join(found)


CLAIMS: tuple[tuple[str, str, Callable[[], str], str], ...] = (
    (
        "Plain self-play and Nash-MD fail where EGPO arrives",
        "2503.08942, simulations",
        authors_step,
        "holds for the step, not for the methods",
    ),
    ("Extragradient converges faster", "2503.08942", fair_steps, "holds for cyclic games with little pull; elsewhere it costs up to twice"),
    (
        "Nash-MD goes to the equilibrium",
        "2312.00886, theorem 1",
        constant_nash_md,
        "holds for decreasing steps only; a constant one is biased",
    ),
    ("IPO-MD and Nash-MD-PG solve the regularised game", "2403.08635, 2312.00886", mixtures, "biased for every b > 0"),
    (
        "The loss makes the step of multiplicative weights",
        "2405.00675, eq. 4.7",
        uncentred,
        "not unless centred: the normaliser is missing",
    ),
    (
        "Self-play by rounds finds the winner",
        "2405.00675, 2404.03715",
        circling,
        "of the average; the last policy circles, and it is the one handed out",
    ),
    (
        "Self-play on win rates, with any learner",
        "2401.04056",
        gradient_players,
        "holds for multiplicative weights; the policy gradient's average is far off where mu leaves a response little",
    ),
    (
        "Momentum accelerates",
        "2410.06293",
        momentum,
        "under a fixed reward, as a larger step would; on a cyclic game it is worse than its base",
    ),
    ("Online DPO learns what the judge prefers", "2402.04792", no_solvers, "not the equilibrium, as 2403.08635 says"),
    ("Optimism costs little", "2405.19320, 2405.21046", no_rest, "without a schedule for alpha rare responses are pushed down without end"),
    (
        "The last iterate finds the equilibrium without a pull",
        "2410.16714",
        magnets,
        "on rps; far off where few responses carry the equilibrium",
    ),
    ("Online IPO solves the game", "2403.08635, prop. 4.1", rare_responses, "holds; its own pairs make rare responses slow"),
    ("(Defaults of AdamW for self-play)", "none", adam, "momentum orbits: beta1 = 0, which these methods recommend"),
)
