"""How fast games are solved: judge calls of every update rule, and seconds beside the matrix-vector product and two other libraries.

    OMP_NUM_THREADS=1 python benchmarks/games.py --out games.json

calls       matrix-vector products until the regularised gap is 1e-6 or less for the first time, from the reference, on every named game
large       one EGPO step on one game against two torch.mv with the same table; closed form and composed from learner, judge and method
many        a thousand random games of ten responses in one tensor; microseconds per game and step
equilibrium the regularised equilibrium of a random game to a gap of 1e-10
others      open_spiel and nashpy on the same games, where they are installed: pip install open_spiel cvxpy ecos nashpy (here 2.0.2,
            1.9.3, 2.0.14, 0.0.43). None is a dependency

Everything runs on one thread in float64. What is compared is measured in turns, in CPU time of the process, and each figure is the
median of the turns: other work on the machine takes its share of the clock, of caches and of memory.

Name parts to run them alone: `python benchmarks/games.py many others`. Part `profile` says which operators the composed steps spend
their time in.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from preftune import provenance
from preftune.collect.drawing import drawing
from preftune.exact.games import GAMES, game, random_game, reference_logits
from preftune.exact.nash import duality_gap, nash, regularised_gap, regularised_nash
from preftune.exact.solver import RULES, _iterate, _State, solve
from preftune.exact.steps import FACTORS, advise, advise_unseen
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.methods import METHODS
from preftune.policies.tabular import TabularPolicy
from preftune.types import Key

BETAS = (1.0, 0.1, 0.01, 0.001)
CAP, GRID = 10_000, 16  # steps of a run; steps that a tuned rule tries
FOREVER = -1.0  # a gap that no policy has


def turns(programs: dict[str, Callable[[], Any]], *, times: int = 7) -> dict[str, float]:
    """Median CPU seconds of each, all of them once a turn."""
    for program in programs.values():
        program()
    took: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(times):
        for name, program in programs.items():
            begin = time.process_time()
            program()
            took[name].append(time.process_time() - begin)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def repeat(count: int, program: Callable[[], Any]) -> Callable[[], None]:
    def many() -> None:
        for _ in range(count):
            program()

    return many


# --- judge calls ------------------------------------------------------------------------------------------------------


def calls() -> list[dict[str, Any]]:
    """One row per game and beta. `tuned`: the best of GRID steps up to a little beyond the local limit, each run from the reference."""
    found = []
    for beta in BETAS:
        for name in GAMES:
            P = game(name)
            log_mu = reference_logits(len(P))
            advice, unseen = advise(P, log_mu, beta), advise_unseen(P, beta)
            row: dict[str, Any] = {"beta": beta, "game": name, "rotation": advice.rotation}
            for rule in FACTORS:
                grid = getattr(advice, f"{rule}_limit") * torch.logspace(-2, 0.05, GRID, dtype=torch.float64)
                runs = solve(P, log_mu, beta, rule=rule, eta=grid, gap=1e-6, steps=CAP)
                row[f"{rule} tuned"] = int(runs.calls[runs.arrived].min()) if runs.arrived.any() else None
                row[f"{rule} advised"] = arrival(P, log_mu, beta, rule, getattr(advice, f"{rule}_start"))
                row[f"{rule} unseen"] = arrival(P, log_mu, beta, rule, getattr(unseen, f"{rule}_best"))
            for rule in ("adaptive-egpo", "adaptive"):
                row[rule] = arrival(P, log_mu, beta, rule, None)
            found.append(row)
    return found


def arrival(P: Tensor, log_mu: Tensor, beta: float, rule: str, eta: float | None) -> int | None:
    found = solve(P, log_mu, beta, rule=rule, eta=eta, gap=1e-6, steps=CAP)
    return int(found.calls) if found.arrived else None


# --- composed from learner, judge and method --------------------------------------------------------------------------


def composed(P: Tensor, log_mu: Tensor, beta: float, eta: float) -> Callable[[], Any]:
    """One step of the method egpo on a table of games, by gradients."""
    method = METHODS["egpo"](beta=beta, pairs="uniform")
    policy = TabularPolicy(log_mu.expand(P.shape[:-1]))
    games, n = policy.logits.shape
    roles = {"current": policy, "reference": policy.reference()}
    learner = GradientLearner(policy, method, roles, optimiser="sgd", lr=eta * beta * n / 4, clip=0.0, micro_batch=games)
    judges, feed, keys = (PreferenceTable(P),), policy.rows(), Key.of(0)

    def step() -> None:
        method.update(learner, drawing(method.collect, learner.roles, feed, keys.fold(learner.steps), judges=judges, step=learner.steps))

    return step


# --- speed ------------------------------------------------------------------------------------------------------------


def large(sizes: tuple[int, ...] = (1000, 2000, 5000), beta: float = 0.1, eta: float = 1.0) -> list[dict[str, float]]:
    """Milliseconds a step, the gap measured after each; checking and copying the table, once a run, is not part of it.

    A run of k steps asks for 2 k + 1 products, the last of which shows its gap, and is compared with as many.
    """
    found = []
    for n in sizes:
        P, log_mu, steps = random_game(n), reference_logits(n), max(10, 20_000_000 // n**2)
        x, y = log_mu.softmax(-1), torch.empty(n, dtype=torch.float64)
        column = log_mu[:, None]
        state = _State(P - 0.5, column, column.clone(), torch.tensor([eta], dtype=torch.float64), beta)

        def run(state: _State = state, steps: int = steps) -> None:
            state.step = 0
            _iterate(RULES["egpo"], state, FOREVER, steps, 1)

        programs = {
            "two products": repeat(2 * steps + 1, lambda A=state.A, x=x, y=y: torch.mv(A, x, out=y)),
            "closed form": run,
            "composed": repeat(steps, composed(P, log_mu, beta, eta)),
        }
        took = {name: 1e3 * seconds / steps for name, seconds in turns(programs, times=9).items()}
        ratios = {f"{name} ratio": took[name] / took["two products"] for name in ("closed form", "composed")}
        found.append({"n": n} | took | ratios)
    return found


def random_games(count: int, n: int) -> Tensor:
    lower = torch.rand(count, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tril(-1)
    return lower + (1 - lower.mT).triu(1) + 0.5 * torch.eye(n, dtype=torch.float64)


def many(count: int = 1000, n: int = 10, beta: float = 0.1, eta: float = 1.0, steps: int = 200) -> dict[str, float]:
    """Microseconds per game and step, the gap of every game measured after every step; and the seconds for all equilibria."""
    P, log_mu = random_games(count, n), reference_logits(n)

    def run(rule: str, check: int = 1) -> Callable[[], Any]:
        own = None if rule.startswith("adaptive") else eta
        return lambda: solve(P, log_mu, beta, rule=rule, eta=own, gap=FOREVER, steps=steps, check=check)

    rules = ("omd", "egpo", "optimistic", "adaptive-egpo", "adaptive")
    programs: dict[str, Callable[[], Any]] = {rule: run(rule) for rule in rules}
    programs["egpo, gap at the end only"] = run("egpo", steps)
    programs["egpo composed"] = repeat(steps, composed(P, log_mu, beta, eta))
    took = {name: 1e6 * seconds / count / steps for name, seconds in turns(programs).items()}
    whole = turns(
        {f"all to 1e-10, beta {beta:g}, seconds": lambda beta=beta: solve(P, log_mu, beta, gap=1e-10) for beta in (0.1, 0.01)}, times=5
    )
    return took | whole


def equilibrium(n: int = 1000, beta: float = 0.01) -> dict[str, Any]:
    """Seconds to a gap of 1e-10, checks of the table included."""
    P, log_mu = random_game(n), reference_logits(n)
    eta = advise(P, log_mu, beta).egpo_start

    def run(rule: str, eta: float | None = None) -> Callable[[], Any]:
        return lambda: solve(P, log_mu, beta, rule=rule, eta=eta, gap=1e-10)

    programs = {"adaptive": run("adaptive"), "adaptive-egpo": run("adaptive-egpo"), "egpo advised": run("egpo", eta)}
    took: dict[str, Any] = turns(programs)
    for name, program in programs.items():
        found = program()
        took[f"{name}, gap and calls"] = (float(regularised_gap(P, found.log_p, log_mu, beta)), int(found.calls))
    took["advise"] = turns({"advise": lambda: advise(P, log_mu, beta)}, times=1)["advise"]
    return took


# --- other libraries --------------------------------------------------------------------------------------------------


def others(sizes: tuple[int, ...] = (10, 50), beta: float = 0.1) -> list[dict[str, Any]]:
    """Milliseconds a game, and the gap of what came out. Plain: no pull, solved exactly; pull: uniform reference, to a gap of 1e-6."""
    absent = [name for name in ("pyspiel", "nashpy", "cvxpy", "ecos") if not importlib.util.find_spec(name)]
    if absent:
        print(f"not installed, and left out: {', '.join(absent)}")
    found: list[dict[str, Any]] = []
    for n in sizes:
        P, log_mu = random_game(n), reference_logits(n, uniform=True)
        A = (P - 0.5).numpy()
        programs: dict[str, Callable[[], Any]] = {
            "plain: preftune nash": lambda P=P: nash(P),
            "pull: preftune adaptive": lambda P=P, log_mu=log_mu: solve(P, log_mu, beta, gap=1e-6).log_p.exp(),
            "pull: preftune regularised_nash": lambda P=P, log_mu=log_mu: regularised_nash(P, log_mu, beta).exp(),
        }
        programs |= _nashpy(A) | _open_spiel(A, beta, P, log_mu)
        for name, seconds in turns(programs, times=3).items():
            p = torch.as_tensor(numpy.asarray(programs[name]()), dtype=torch.float64).flatten()
            gap = duality_gap(P, p) if name.startswith("plain") else regularised_gap(P, p.log(), log_mu, beta)
            found.append({"n": n, "solver": name, "milliseconds": 1e3 * seconds, "gap": float(gap)})
    return found


def _nashpy(A: numpy.ndarray) -> dict[str, Callable[[], Any]]:
    if not importlib.util.find_spec("nashpy"):
        return {}
    import nashpy

    name = f"nashpy {importlib.metadata.version('nashpy')}"
    programs: dict[str, Callable[[], Any]] = {f"plain: {name} linear_program": lambda: nashpy.Game(A).linear_program()[0]}
    if len(A) <= 10:  # of 50 responses its tableau overflows, and it did not end within a minute
        programs[f"plain: {name} lemke_howson"] = lambda: nashpy.Game(A).lemke_howson(initial_dropped_label=0)[0]
    return programs


def _open_spiel(A: numpy.ndarray, beta: float, P: Tensor, log_mu: Tensor) -> dict[str, Callable[[], Any]]:
    if not importlib.util.find_spec("pyspiel"):
        return {}
    import pyspiel
    from open_spiel.python.algorithms import mmd_dilated

    name = f"open_spiel {importlib.metadata.version('open_spiel')}"
    matrix = pyspiel.create_matrix_game(A.tolist(), (-A).tolist())
    programs: dict[str, Callable[[], Any]] = {}
    if importlib.util.find_spec("cvxpy") and importlib.util.find_spec("ecos"):
        from open_spiel.python.algorithms import lp_solver

        programs[f"plain: {name} lp_solver"] = lambda: lp_solver.solve_zero_sum_matrix_game(matrix)[0]
    tree = pyspiel.convert_to_turn_based(matrix)

    def magnetic(step: float | None) -> Tensor:
        """Its magnetic mirror descent, a gap of its first player's policy taken every 10 steps; the set-up of its tree counts."""
        solver = mmd_dilated.MMDDilatedEnt(tree, beta, stepsize=step)
        for taken in range(20_000):
            p = torch.from_numpy(numpy.asarray(solver.sequences[0][1:], dtype=numpy.float64))
            if taken % 10 == 0 and regularised_gap(P, p.log(), log_mu, beta) <= 1e-6:
                return p
            solver.update_sequences()
        raise RuntimeError(f"open_spiel's magnetic mirror descent with step {step} did not arrive within 20000 steps")

    best = advise(P, log_mu, beta).omd_start  # of omd; in its terms eta / (1 - eta beta)
    programs[f"pull: {name} MMD, its own step"] = lambda: magnetic(None)
    programs[f"pull: {name} MMD, advised step"] = lambda: magnetic(best / (1 - best * beta))
    return programs


# --- where the composed steps spend their time ------------------------------------------------------------------------


def profile() -> dict[str, str]:
    found = {}
    for name, P in {"n = 5000": random_game(5000), "1000 games, n = 10": random_games(1000, 10)}.items():
        step = composed(P, reference_logits(P.shape[-1]), 0.1, 1.0)
        repeat(3, step)()
        with torch.profiler.profile() as seen:
            repeat(10, step)()
        found[name] = seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40)
        print(name, found[name], sep="\n")
    return found


PARTS: dict[str, Callable[[], Any]] = {f.__name__: f for f in (calls, large, many, equilibrium, others)}
ON_REQUEST: dict[str, Callable[[], Any]] = {"profile": profile}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; a dash where there is nothing."""

    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(cell(row.get(head)) for head in heads) + " |" for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join([*PARTS, *ON_REQUEST])}; all but the last if none are named")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"commit": provenance.commit(), "versions": provenance.versions()}
    for part in arguments.parts or PARTS:
        found[part] = (PARTS | ON_REQUEST)[part]()
        if part not in ON_REQUEST:
            rows = found[part] if isinstance(found[part], list) else [found[part]]
            print(f"\n{part}\n\n{table(rows)}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
