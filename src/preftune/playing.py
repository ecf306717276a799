"""A method on exact games: `play`, the laboratory bench of self-play, and `Match`, one method on a batch of games."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .api import prepare
from .collect.drawing import drawing
from .exact import nash
from .exact.games import game as named_game
from .exact.games import random_game, reference_logits, validate
from .exact.steps import advise
from .judges.exact import PreferenceTable
from .learner import GradientLearner
from .minimiser import Minimiser
from .policies.tabular import TableResponses, TabularPolicy
from .registry import resolve_method, signature_of
from .training import check_labels
from .types import Context, Key, Learner, Method, PreftuneError, Rows
from .update import plain

PULLS = ("beta", "tau", "kl_coef")  # what papers call the pull to the reference


class Match:
    """A method on games P [G, n, n] that start at, and are pulled to, references log_mu [G, n]: problems of their own, in one batch.

    `step` is one step of the method as it would train a language model: the same collector, objective, update and reference. A
    method that learns by rounds makes a round of it, whose inner problem is solved exactly (`Minimiser`).
    """

    def __init__(
        self,
        method: Method,
        P: Tensor,
        log_mu: Tensor,
        *,
        lr: float = 0.0,
        exact: bool = True,
        key: Key | None = None,
        feed: Rows | None = None,
        start: Tensor | None = None,
        optimiser: str = "sgd",
        beta1: float = 0.0,
    ):
        self.method, self.key, self.number = method, key or Key.of(0), 0
        self.policy = TabularPolicy(log_mu if start is None else start, exact=exact)
        self.judge = PreferenceTable(P)
        self.feed = self.policy.rows() if feed is None else feed
        roles = {"current": self.policy, "reference": TabularPolicy(log_mu, exact=exact).reference()}
        roles |= {name: self.policy.copy() for name in method.roles}
        self.anchor = roles["reference"]
        self.by_rounds = method.collect_every == "round"
        if self.by_rounds and not exact:
            raise PreftuneError(
                "the method learns by rounds, whose problem is solved over all responses, needed exact play; leave draws out"
            )
        self.learner: Learner = (
            Minimiser(self.policy, method, roles)
            if self.by_rounds
            else GradientLearner(
                self.policy, method, roles, optimiser=optimiser, lr=lr, beta1=beta1, clip=0.0, micro_batch=max(len(self.feed), 1)
            )
        )
        self.past: list[Rows] = []

    def step(self) -> None:
        """One step, or one round."""
        at = {"round": self.number, "past": self.past} if self.by_rounds else {"step": self.number}
        rows_against = drawing(self.method.collect, self.learner.roles, self.feed, self.key.fold(self.number), judges=(self.judge,), **at)
        if self.by_rounds:
            rows = rows_against(self.policy)
            self.past.append(rows)
            self.method.update(self.learner, lambda opponent: rows)
        else:
            self.method.update(self.learner, rows_against)
        self.number += 1
        every = self.method.reference_every
        if self.by_rounds if every == "round" else self.number % every == 0:
            self.learner.roles = dict(self.method.reference(self.learner.roles))

    def log_p(self) -> Tensor:
        """float64 [G, n]."""
        return self.policy.logits.detach().log_softmax(1)

    @property
    def calls(self) -> int:
        """How often the judge was asked for win rates so far."""
        return self.judge.calls

    @property
    def anchored(self) -> bool:
        """The reference is still the first one; where it moves, a method is after the game without regulariser."""
        return self.learner.roles.get("reference") is self.anchor


class Closed:
    """A closed-form iteration on games P [G, n, n], with the face of a `Match`: the reference family."""

    def __init__(self, step: Step, P: Tensor, log_mu: Tensor, eta: float, beta: float):
        self.rule, self.P, self.log_mu, self.eta, self.beta = step, P, log_mu, eta, beta
        self.theta = self.before = log_mu
        self.calls = 0

    def step(self) -> None:
        after = self.rule(self.theta, self.before, self.log_mu, self.P, self.eta, self.beta)
        self.theta, self.before = after, self.theta
        self.calls += 1

    def log_p(self) -> Tensor:
        return self.theta.log_softmax(-1)


Step = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]  # theta, the one before, log mu, P, eta, beta
CLOSED: dict[str, Step] = {
    "omd": lambda theta, before, mu, P, eta, beta: nash.mirror_descent_step(theta, mu, P, eta, beta),
    "mmd": lambda theta, before, mu, P, eta, beta: nash.mmd_step(theta, mu, P, eta, beta),
    "hedge": lambda theta, before, mu, P, eta, beta: nash.hedge_step(theta, P, eta),
    "omwu": lambda theta, before, mu, P, eta, beta: nash.omwu_step(theta, before, P, eta),
}
UNREGULARISED = ("hedge", "omwu")


def rate(method: Method, n: int, eta: float) -> float:
    """The learning rate whose plain gradient step, from a uniform reference over n responses, adds eta times the win rates to the logits.

    With uniform pairs that is lr = eta beta n / 4 and holds everywhere: mirror descent with step eta. Other objectives weigh a
    response by its probability or have another scale, so it is measured on a game of random win rates, and holds where they start.
    """
    if method.objective is None:
        return eta
    P, mu = random_game(n, seed=1)[None], torch.zeros(1, n, dtype=torch.float64)
    match = Match(replace(method, update=plain), P, mu, lr=1.0)
    match.step()
    moved, winrate = match.policy.logits.detach()[0], P[0].mean(1) - 0.5
    gain = float(((moved - moved.mean()) * winrate).sum() / (winrate * winrate).sum())
    if not gain > 0:
        raise PreftuneError(f"a step of this method moves the logits by {gain:.3g} times the win rates, needed more than 0; give lr")
    return eta / gain


# --- one game, watched ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Play:
    """A method on an exact game: the gap to the equilibrium after every step, and where it ended."""

    method: str
    game: str
    beta: float | None  #  pull to the reference; None: the method plays the game without regulariser
    eta: float | None  #   step of mirror descent; None: by rounds, each solved exactly, or lr was given
    gap: list[float] = field(repr=False)  #   duality gap of the game that is played, step 0 first
    gap0: list[float] = field(repr=False)  #  duality gap without regulariser
    calls: list[int] = field(repr=False)  #   times the judge was asked before each of these
    policy: list[float] = field(repr=False)
    equilibrium: list[float] = field(repr=False)  # of the game that is played
    path: list[list[float]] = field(repr=False)  #   probabilities after every step where there are three responses, else empty

    @property
    def steps(self) -> int:
        return len(self.gap) - 1

    @property
    def arrived(self) -> int | None:
        """The step after which the gap stays below 1e-6; None where it does not."""
        above = [step for step, gap in enumerate(self.gap) if not gap < 1e-6]
        return None if above and above[-1] == self.steps else (above[-1] + 1 if above else 0)

    @property
    def calls_to_arrive(self) -> int | None:
        """How often the judge was asked until then."""
        return None if self.arrived is None else self.calls[self.arrived]


def play(
    method: str | Callable[..., Method],
    *,
    game: str | Tensor = "rps",
    beta: float | None = None,
    eta: float | None = None,
    lr: float | None = None,
    steps: int = 1000,
    seed: int = 0,
    uniform_reference: bool = False,
    exact: bool = True,
    **settings: Any,
) -> Play:
    """Run a method on a table of win probabilities with plain gradient steps, or by rounds whose inner problem is solved exactly.

    method    a method, or a closed form: omd, mmd, hedge, omwu
    game      a name (exact.games.GAMES) or a matrix P [n, n] with P + P^T = 1
    beta      the pull to the reference, whatever the method calls it (beta, tau or kl_coef); default: the method's own
    eta       the step of mirror descent that a gradient step from the reference equals (see `rate`); left out, the best one for this
              game and pull (`exact.steps.advise`). Where the method has a hyperparameter of this name (sppo, inpo), it is that
    lr        a plain learning rate instead of eta
    exact     enumerate all responses; False draws them, as on text
    settings  the method's other hyperparameters

    Offline methods see every pair of responses with its win probability as a soft label. Methods whose reference moves, or that have
    no pull, are after the game without regulariser: `gap` is then that of this game.
    """
    P = named_game(game) if isinstance(game, str) else validate(torch.as_tensor(game, dtype=torch.float64))
    mu = reference_logits(len(P), uniform=uniform_reference)
    for given, value, what in (("eta", eta, "the step of mirror descent"), ("lr", lr, "the learning rate of a plain gradient step")):
        if value is not None and not 0 < value < float("inf"):
            raise PreftuneError(f"{given} is {value}, needed a finite number above 0; it is {what}")
    match: Match | Closed
    if isinstance(method, str) and method in CLOSED:
        if settings or lr is not None or not exact:
            raise PreftuneError(f"{method} is a closed form, needed only game, beta, eta and steps; use online-ipo or egpo for the rest")
        if beta is not None and method in UNREGULARISED:
            raise PreftuneError(f"beta is {beta}, but {method} has no pull to a reference; leave beta out, or play omd or mmd")
        if beta is not None and not 0 < beta < float("inf"):
            raise PreftuneError(f"beta is {beta}, needed a finite number above 0; it is the pull to the reference")
        name, pulled = method, None if method in UNREGULARISED else 0.1 if beta is None else beta
        eta = _advised("omd", P, mu, pulled) if eta is None else eta
        match = Closed(CLOSED[method], P[None], mu[None], eta, pulled or 0.0)
    else:
        name, pulled, eta, match = _match(method, P, mu, beta, eta, lr, seed, exact, settings)
    regularised: list[float] = []
    gaps0: list[float] = []
    calls: list[int] = []
    path: list[list[float]] = []
    for step in range(steps + 1):
        log_p = match.log_p()[0]
        if not torch.isfinite(log_p).all():
            raise PreftuneError(f"{name} left the finite numbers at step {step}, needed logits that stay finite; take a smaller eta or lr")
        if pulled is not None:
            regularised.append(float(nash.regularised_gap(P, log_p, mu, pulled)))
        gaps0.append(float(nash.duality_gap(P, log_p.exp())))
        calls.append(match.calls)
        if len(P) == 3:
            path.append(log_p.exp().tolist())
        if step < steps:
            match.step()
    if isinstance(match, Match) and not match.anchored:
        pulled = None
    equilibrium = nash.nash(P) if pulled is None else nash.regularised_nash(P, mu, pulled).softmax(-1)
    title = game if isinstance(game, str) else f"{len(P)} responses"
    return Play(
        method=name,
        game=title,
        beta=pulled,
        eta=eta,
        gap=gaps0 if pulled is None else regularised,
        gap0=gaps0,
        calls=calls,
        policy=match.log_p()[0].exp().tolist(),
        equilibrium=equilibrium.tolist(),
        path=path,
    )


def _match(
    method: str | Callable[..., Method],
    P: Tensor,
    mu: Tensor,
    beta: float | None,
    eta: float | None,
    lr: float | None,
    seed: int,
    exact: bool,
    settings: dict[str, Any],
) -> tuple[str, float | None, float | None, Match]:
    """(name, pull to the reference, step, match) of a method and its settings."""
    known = signature_of(resolve_method(method) if isinstance(method, str) else method)
    pull = next((name for name in PULLS if name in known), None)
    if beta is not None and pull is None:
        raise PreftuneError(f"beta is {beta}, but {method} has no pull to a reference, needed {' or '.join(PULLS)}; leave beta out")
    own = {name: value for name, value in ((pull, beta), ("eta", eta)) if value is not None and name in known}
    eta = None if "eta" in own else eta
    chosen = prepare(method, {**settings, **own})
    composed, n = chosen.method, len(P)
    pulled = (float(chosen.hyperparameters[pull]) or None) if pull is not None else None  # 0 is no pull
    if composed.offline and pulled is None:
        raise PreftuneError(f"{chosen.name} has no pull to a reference, needed {' or '.join(PULLS)}; only self-play does without")
    if composed.collect_every == "round" or composed.objective is None:
        if eta is not None or lr is not None:
            why = "takes no gradients" if composed.objective is None else "learns by rounds, each solved exactly"
            raise PreftuneError(f"{chosen.name} {why}, needed neither eta nor lr; see `preftune show {chosen.name}` for its settings")
        lr = 0.0
    elif eta is not None and lr is not None:
        raise PreftuneError(
            f"eta is {eta} and lr {lr}, needed one of them: eta is a learning rate as a step of mirror descent; leave one out"
        )
    elif lr is None:
        if eta is None:
            eta = 1.0 if composed.offline else _advised(getattr(composed.update, "advised", "omd"), P, mu, pulled)
        # the pairs of the data are enumerated, so that dpo and ipo take the step that uniform pairs take in self-play
        lr = eta * (pulled or 1.0) * n / 4 if composed.offline else rate(composed, n, eta)
    feed = all_pairs(P) if composed.reads == "responses" or composed.offline else None
    match = Match(composed, P[None], mu[None], lr=lr, exact=exact, key=Key.of(seed), feed=feed)
    if composed.offline:
        check_labels(composed, composed.collect(Context(match.learner.roles, match.feed, (match.judge,), key=match.key)))
    return chosen.name, pulled, eta, match


def _advised(kind: str, P: Tensor, mu: Tensor, beta: float | None) -> float:
    """The step that a run of this kind should start with on this game; 1 without a pull, where no step brings it to rest."""
    return 1.0 if beta is None else float(getattr(advise(P, mu, beta), f"{kind}_start"))


def all_pairs(P: Tensor) -> Rows:
    """Every pair of responses, the likelier winner first, with its win probability as the label."""
    pairs: Sequence[tuple[int, int]] = [(i, j) if P[i, j] >= 0.5 else (j, i) for i in range(len(P)) for j in range(i)]
    return Rows(
        id=tuple(f"{i} over {j}" for i, j in pairs),
        prompt=(0,) * len(pairs),
        response=TableResponses(torch.tensor(pairs)),
        ranked=True,
        prefer=torch.stack([P[i, j] for i, j in pairs]),
    )
