"""A method on an exact game: `play`, the laboratory bench of self-play."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .api import prepare
from .collect.drawing import drawing
from .exact.games import game as named_game
from .exact.games import reference_logits, validate
from .exact.nash import duality_gap, regularised_gap, regularised_nash
from .judges.exact import PreferenceTable
from .learner import GradientLearner
from .policies.tabular import TableResponses, TabularPolicy
from .registry import resolve_method, signature_of
from .training import check_labels
from .types import Context, Key, Method, PreftuneError, Rows


@dataclass(frozen=True)
class Play:
    """A method on an exact game: the gap to the equilibrium after every step, and where it ended."""

    method: str
    game: str
    beta: float
    eta: float
    gap: list[float] = field(repr=False)  #   regularised duality gap, step 0 first; nan for methods that play no game
    gap0: list[float] = field(repr=False)  #  duality gap without regulariser
    policy: list[float] = field(repr=False)
    equilibrium: list[float] = field(repr=False)  # of the regularised game

    @property
    def steps(self) -> int:
        return len(self.gap) - 1

    @property
    def arrived(self) -> int | None:
        """The step after which the gap stays below 1e-6; None where it does not."""
        above = [step for step, gap in enumerate(self.gap) if not gap < 1e-6]
        return None if above and above[-1] == self.steps else (above[-1] + 1 if above else 0)


def play(
    method: str | Callable[..., Method],
    *,
    game: str | torch.Tensor = "rps",
    beta: float | None = None,
    eta: float = 1.0,
    steps: int = 1000,
    seed: int = 0,
    uniform_reference: bool = False,
    exact: bool = True,
    **settings: Any,
) -> Play:
    """Run a method on a table of win probabilities with plain gradient steps of size eta (lr = eta beta n / 4).

    game      a name (exact.games.GAMES) or a matrix P [n, n] with P + P^T = 1
    beta      the pull to the reference, whatever the method calls it (beta or tau); default: the method's own
    eta       the step of mirror descent that a gradient step with uniform pairs equals
    exact     enumerate all responses; False draws them, as on text
    settings  the method's other hyperparameters

    Offline methods see every pair of responses with its win probability as a soft label.
    """
    function = resolve_method(method) if isinstance(method, str) else method
    pull = next((name for name in ("beta", "tau") if name in signature_of(function)), None)
    if pull is None:
        raise PreftuneError(f"{method} has no pull to a reference (beta or tau), so it has no regularised game to play")
    if beta is not None:
        settings = {**settings, pull: beta}
    chosen = prepare(method, settings)
    composed = chosen.method
    if composed.collect_every == "round":
        raise PreftuneError(
            f"{chosen.name} learns by rounds, needed a method that learns by steps, such as egpo, or from pairs, such as dpo"
        )
    beta = float(chosen.hyperparameters[pull])
    P = named_game(game) if isinstance(game, str) else validate(torch.as_tensor(game, dtype=torch.float64))
    n = len(P)
    mu = reference_logits(n, uniform=uniform_reference)
    policy = TabularPolicy(mu, exact=exact)
    learner = GradientLearner(
        policy, composed, {"current": policy, "reference": policy.reference()}, optimiser="sgd", lr=eta * beta * n / 4, clip=0.0
    )
    judges, key = (PreferenceTable(P),), Key.of(seed)
    feed = _all_pairs(P) if composed.offline else policy.rows()
    if composed.offline:
        check_labels(composed, composed.collect(Context(learner.roles, feed, judges, key=key)))
    gaps, gaps0 = [], []
    for step in range(steps + 1):
        log_p = policy.logits.detach()[0].log_softmax(0)
        gaps.append(float(regularised_gap(P, log_p, mu, beta)))
        gaps0.append(float(duality_gap(P, log_p.exp())))
        if step < steps:
            composed.update(learner, drawing(composed.collect, learner.roles, feed, key.fold(step), judges=judges, step=step))
            if composed.reference_every != "round" and (step + 1) % composed.reference_every == 0:
                learner.roles = dict(composed.reference(learner.roles))
    equilibrium = regularised_nash(P, mu, beta).softmax(-1)
    title = game if isinstance(game, str) else f"{n} responses"
    return Play(chosen.name, title, beta, eta, gaps, gaps0, policy.probabilities()[0].tolist(), equilibrium.tolist())


def _all_pairs(P: torch.Tensor) -> Rows:
    """Every pair of responses, the likelier winner first, with its win probability as the label."""
    pairs = [(i, j) if P[i, j] >= 0.5 else (j, i) for i in range(len(P)) for j in range(i)]
    return Rows(
        id=tuple(f"{i} over {j}" for i, j in pairs),
        prompt=(0,) * len(pairs),
        response=TableResponses(torch.tensor(pairs)),
        ranked=True,
        prefer=torch.stack([P[i, j] for i, j in pairs]),
    )
