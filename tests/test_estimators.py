"""Sampled gradients are exact ones in expectation: answers of two tokens, every outcome of every draw, weighted by its probability.

Nothing is estimated here. A method's collector runs once on as many rows as its draws have outcomes, each row with draws of its own;
the gradients of these rows, times their probabilities, are summed and compared with the gradient of the same method where policies
answer with their laws, and with a formula that knows neither.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from all_facts import merged
from preftune import methods
from preftune.collect.draw import against_opponent
from preftune.exact.games import random_game
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.methods import METHODS
from preftune.objectives import policy_gradient
from preftune.policies.language import LanguagePolicy, sequence_logp
from preftune.policies.tabular import TableResponses
from preftune.reference import frozen
from preftune.types import Context, Key, Loss, Method, Rows, Scored, needs
from preftune.update import plain

V, N = 2, 4  # tokens, answers
MOST = 6  #     draws of a prompt: 4^6 outcomes
EXACT = 1e-10  # float64 sums of a few thousand terms of order one


# --- every outcome of every draw --------------------------------------------------------------------------------------


class Tape:
    """What the draws of outcome b are, b = 0 .. N^draws - 1: its digits in base N, first draw first; and how likely it is."""

    def __init__(self, draws: int = 0):
        self.draws, self.used = draws, 0
        self.chance = torch.ones(N**draws, dtype=torch.float64)
        self.keys: set[bytes] = set()

    def draw(self, rows: Rows, law: Tensor, n: int, key: Key) -> Tensor:
        """Numbers of answers [B, n] for one row of every outcome, by its id; draws with one key would be the same draw."""
        assert key.digest not in self.keys, "two draws of one step have the same key"
        self.keys.add(key.digest)
        outcome = torch.tensor(outcomes(rows))
        place = self.used + torch.arange(n)
        self.used += n
        index = outcome[:, None] // N ** (self.draws - 1 - place).clamp(min=0) % N
        self.chance[outcome] *= law.gather(1, index).prod(1)
        return index


def outcomes(rows: Rows) -> list[int]:
    return [int(name.split()[0]) for name in rows.id]


class Enumerated:
    """An exact policy that answers by the tape."""

    def __init__(self, policy: LanguagePolicy, tape: Tape):
        self.policy, self.tape = policy, tape

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def sample(self, rows: Rows, n: int, key: Key, **decoding: Any) -> TableResponses:
        y = self.policy.sample(rows, 1, key, **decoding)
        return TableResponses(self.tape.draw(rows, y.law, n, key), tokens=y.tokens)

    def copy(self) -> Enumerated:
        return Enumerated(self.policy.copy(), self.tape)

    def lerp(self, other: Enumerated, w: float) -> Enumerated:
        return Enumerated(self.policy.lerp(other.policy, w), self.tape)

    def mix(self, other: Enumerated, w: float) -> Enumerated:
        return Enumerated(self.policy.mix(other.policy, w), self.tape)


@dataclass(frozen=True)
class World:
    """A game of four answers with rewards, and a policy for every role, all of them different."""

    P: Tensor = field(default_factory=lambda: random_game(N, 5))
    reward: Tensor = field(default_factory=lambda: normal(7, N))
    heads: Tensor = field(default_factory=lambda: normal(8, N))

    def policy(self, role: str) -> LanguagePolicy:
        return LanguagePolicy(normal(5 + sum(map(ord, role)), 1 + V, V))

    def logp(self, role: str) -> Tensor:
        """log pi [N] of whole answers."""
        return sequence_logp(self.policy(role).logits.detach())[0]

    def roles(self, method: Method, tape: Tape | None) -> dict[str, Any]:
        names = ("current", "reference", "opponent", *method.roles)
        return {name: self.policy(name) if tape is None else Enumerated(self.policy(name), tape) for name in names}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WORLD = World()


def collected(method: Method, tape: Tape | None) -> tuple[GradientLearner, Rows]:
    """A learner with the method's heads, and one collection of rows."""
    roles = WORLD.roles(method, tape)
    learner = GradientLearner(roles["current"], method, roles, optimiser="sgd")
    for head in roles["current"].heads.values():  # the same in every learner; a fresh head of zeros would hide its part
        head.data = WORLD.heads[None, :, None].expand_as(head).clone()
    feed = Rows(tuple(map(str, range(1 if tape is None else N**tape.draws))), (0,) * (1 if tape is None else N**tape.draws))
    return learner, method.collect(Context(roles, feed, (PreferenceTable(WORLD.P, WORLD.reward),), key=Key.of(0)))


def draws_of(method: Method) -> int:
    """Answers that one collection draws for a prompt."""
    tape = Tape()
    collected(method, tape)
    return tape.used


def mean_gradient(method: Method, tape: Tape | None = None) -> Tensor:
    """d / d logits [1 + V, V] of the learner's loss: exact, or the mean over all outcomes of a tape."""
    learner, rows = collected(method, tape)
    chance = torch.ones(1, dtype=torch.float64) if tape is None else tape.chance
    assert abs(float(chance.sum()) - 1) < 1e-12
    of = torch.tensor(outcomes(rows))
    # an objective that couples rows sees one outcome at a time, as a learner would
    parts = [(of == b).nonzero().flatten().tolist() for b in range(len(chance))] if learner.needs.batch else [list(range(len(of)))]
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        few, here = rows.take(part), of[part]
        loss = learner.objective(learner.score(few))
        count = torch.ones_like(loss.row) if loss.count is None else loss.count.to(loss.row)
        counts = torch.zeros(len(chance), dtype=torch.float64).index_add(0, here, count.detach())
        weight = 1.0 if few.weight is None else few.weight
        total = total + (chance[here] * weight * loss.row / counts[here]).sum()
    (found,) = torch.autograd.grad(total, [learner.policy.logits])
    return found[0]


def sampled_gradient(method: Method) -> Tensor:
    return mean_gradient(method, Tape(draws_of(method)))


# --- what the gradient should be --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """The world as a formula sees it: laws over the four answers."""

    logp: Tensor  # [N], differentiable
    reference: Tensor = field(default_factory=lambda: WORLD.logp("reference"))
    opponent: Tensor = field(default_factory=lambda: WORLD.logp("opponent").exp())
    P: Tensor = field(default_factory=lambda: WORLD.P)
    reward: Tensor = field(default_factory=lambda: WORLD.reward)

    @property
    def pi(self) -> Tensor:
        """The law, as a constant."""
        return self.logp.detach().exp()

    @property
    def h(self) -> Tensor:
        return self.logp - self.reference

    def role(self, name: str) -> Tensor:
        return WORLD.logp(name)

    def objective(self, gain: Tensor, beta: float) -> Tensor:
        """-(E_pi[gain] - beta KL(pi || mu)), differentiated through the law itself."""
        return -(self.logp.exp() * (gain - beta * self.h)).sum()


Formula = Callable[[Exact], Tensor]


def gradient_of(formula: Formula) -> Tensor:
    logits = WORLD.policy("current").logits
    (found,) = torch.autograd.grad(formula(Exact(sequence_logp(logits)[0])), [logits])
    return found[0]


def spread(law: Tensor, u: Tensor) -> Tensor:
    """Variance of u under the law."""
    return (law * u * u).sum() - (law * u).sum() ** 2


def soft_pairs(w: Exact, beta: float) -> Tensor:
    """Cross-entropy of all pairs drawn from pi that are not one answer twice."""
    pairs = w.pi[:, None] * w.pi
    loss = binary_cross_entropy_with_logits(beta * (w.h[:, None] - w.h), w.P, reduction="none")
    apart = 1 - torch.eye(N, dtype=torch.float64)
    return (pairs * apart * loss).sum() / (pairs * apart).sum()


@dataclass(frozen=True)
class Fact:
    """A method at settings of few draws, and its loss as a function of the law.

    formula  what the exact mode has the gradient of; None: not written down here
    drawn    what sampled gradients have the mean of, where that is known to be something else
    shrunk   the mean of sampled gradients over the exact one, where both point the same way
    apart    why nothing of the kind relates them; the test holds that they do differ
    """

    method: Callable[[], Method]
    formula: Formula | None = None
    drawn: Formula | None = None
    shrunk: float = 1.0
    apart: str = ""


# Of pairs drawn from pi some are one answer twice, which no enumerated pair is: they pull nothing, and count
TWICE = float(1 - (WORLD.logp("current").exp() ** 2).sum())

FACTS: dict[str, Fact] = {
    "online-ipo": Fact(methods.online_ipo, lambda w: 2 * spread(w.pi, w.h - w.P @ w.pi)),
    "online-ipo of three": Fact(partial(methods.online_ipo, responses=3), lambda w: 2 * spread(w.pi, w.h - w.P @ w.pi)),
    "online-ipo against fresh draws": Fact(
        partial(methods.online_ipo, tau=0.3, opponents=2), lambda w: 2 * spread(w.pi, w.h - w.P @ w.opponent / 0.3)
    ),
    "online-ipo of uniform pairs": Fact(
        partial(methods.online_ipo, pairs="uniform"), lambda w: 2 * spread(torch.full((N,), 1 / N).double(), w.h - w.P @ w.opponent)
    ),
    "egpo": Fact(methods.egpo, lambda w: 2 * spread(torch.full((N,), 1 / N).double(), w.h - w.P @ w.opponent / 0.1)),
    "osp": Fact(partial(methods.osp, responses=3), lambda w: soft_pairs(w, 0.1), shrunk=TWICE),
    "sppo": Fact(methods.sppo, apart="the best and the worst of five are no draws of the policy"),
    "sppo on all": Fact(
        partial(methods.sppo, eta=2.0, responses=3, train_on="all"),
        lambda w: (w.pi * (w.h - 2 * (w.P @ w.pi - 0.5)) ** 2).sum(),
        # a response is one of the three that it is judged against, at 1/2
        drawn=lambda w: (w.pi * (w.h - 2 * 2 / 3 * (w.P @ w.pi - 0.5)) ** 2).sum(),
    ),
    "rloo": Fact(methods.rloo, lambda w: w.objective(w.reward, 0.05)),
    "rloo by comparisons": Fact(partial(methods.rloo, responses=3, reward="winrate"), lambda w: w.objective(w.P @ w.pi, 0.05)),
    "rloo by rounds": Fact(partial(methods.rloo, collect_every="round"), lambda w: w.objective(w.reward, 0.05)),
    "spo-minimax": Fact(methods.spo_minimax, lambda w: w.objective(w.P @ w.pi, 0.05)),
    "copg": Fact(methods.copg, lambda w: spread(w.pi, w.reward - 0.06 * w.h) / 0.06),
    "grpo": Fact(
        partial(methods.grpo, responses=3),
        apart="rewards are divided by the spread of a group, whose mean over groups is no spread of the law",
    ),
    "grpo undivided": Fact(
        partial(methods.grpo, responses=3, loss_type="dr_grpo", scale_rewards="none", max_completion_length=2),
        lambda w: w.objective(w.reward, 0.0) / 2,
        shrunk=2 / 3,  # the group's mean holds the response itself
    ),
    "ppo": Fact(methods.ppo, apart="advantages are divided by their spread over the batch"),
    "ppo undivided": Fact(partial(methods.ppo, whiten=False)),
    "ppo without discount": Fact(
        # the mean over tokens, of which there are two
        partial(methods.ppo, whiten=False, lam=1.0),
        lambda w: w.objective(w.reward, 0.05) / 2,
    ),
}


def online(method: Method) -> bool:
    """Trains on what it draws, by steps or by rounds."""
    return method.collect_every != "run" and not method.offline


def small(make: Callable[..., Method]) -> Method:
    """The method at its defaults, or with fewer responses where these have too many outcomes."""
    for responses in (None, 3, 2):
        method = make() if responses is None else make(responses=responses)
        if draws_of(method) <= MOST or "responses" not in inspect.signature(make).parameters:
            return method
    return method


def _facts() -> dict[str, Fact]:
    """The table, and every other online method at its defaults."""
    makes = {name: partial(make, **merged("SETTINGS").get(name, {})) for name, make in METHODS.items() if name not in FACTS}
    return FACTS | {name: Fact(partial(small, make)) for name, make in makes.items() if online(make())}


ALL = _facts()


@pytest.mark.parametrize("name", ALL)
def test_the_mean_over_all_draws_is_the_exact_gradient(name: str) -> None:
    fact = ALL[name]
    method = fact.method()
    assert draws_of(method) <= MOST, f"{name} draws {draws_of(method)} answers a prompt, needed {MOST} at most; give FACTS fewer responses"
    drawn, exact = sampled_gradient(method), mean_gradient(method)
    assert exact.abs().max() > 1e-3, "a gradient of zero says nothing"
    if fact.apart:
        assert distance(drawn, exact) > 1e-2, f"{name}: nothing to excuse"
    else:
        expected = fact.shrunk * exact if fact.drawn is None else gradient_of(fact.drawn)
        assert distance(drawn, expected) < EXACT


@pytest.mark.parametrize("name", [name for name, fact in FACTS.items() if fact.formula is not None])
def test_the_exact_gradient_is_that_of_the_loss_as_a_function_of_the_law(name: str) -> None:
    fact = FACTS[name]
    assert fact.formula is not None
    assert distance(mean_gradient(fact.method()), gradient_of(fact.formula)) < EXACT


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry expected."""
    return float((found - expected).abs().max() / expected.abs().max())


# --- what the comparison finds ----------------------------------------------------------------------------------------


def played(objective: Callable[[Scored], Loss], responses: int = 1) -> Method:
    """Draws of the policy against one draw of the opponent."""
    return Method(objective, partial(against_opponent, responses=responses, opponents=1), frozen, plain, collect_every="step")


BETA = 0.5
GAME: Formula = lambda w: w.objective(w.P @ w.opponent, BETA)


def test_the_policy_gradient_of_the_regularised_game_is_right_with_any_baseline() -> None:
    expected = gradient_of(GAME)
    for method in (
        played(partial(policy_gradient.regularised_pg, beta=BETA)),
        played(partial(policy_gradient.regularised_pg, beta=BETA, baseline="leave_one_out"), responses=2),
    ):
        assert distance(mean_gradient(method), expected) < EXACT and distance(sampled_gradient(method), expected) < EXACT


@needs(columns="K", labels=("winrate",), optional=("law",), wants=("segments",))
def kl_by_token(s: Scored) -> Loss:
    """The log-ratio of a token pulls at this token alone, as a popular trainer of Nash-MD has it."""
    assert s.rows.winrate is not None and s.segment_logp is not None
    token = s.segment_logratio.detach() * s.segment_logp
    gain = (s.rows.winrate - 0.5) * s.logp - BETA * token.sum(2)
    return Loss(-policy_gradient.mean(s, gain))


def test_a_kl_by_token_forgets_what_a_first_token_leads_to() -> None:
    """Right for the second token, which nothing follows; for the first the KL of the second is missing:

    sum_a d pi(a) KL(pi(. | a) || mu(. | a)), times beta.
    """
    found, expected = sampled_gradient(played(kl_by_token)), gradient_of(GAME)
    assert distance(found[1:], expected[1:]) < EXACT
    assert distance(found[:1], expected[:1]) > 0.05

    logits = WORLD.policy("current").logits
    pi, mu = logits[0].log_softmax(-1), WORLD.policy("reference").logits[0].detach().log_softmax(-1)
    after = (pi[1:].exp() * (pi[1:] - mu[1:])).sum(1).detach()  # KL of the second token after each first
    (missing,) = torch.autograd.grad(BETA * (pi[0].exp() * after).sum(), [logits])
    assert distance(found + missing[0], expected) < EXACT


@needs(columns="K", labels=("winrate",), optional=("law",))
def pg_that_moves_its_gain(s: Scored) -> Loss:
    """Without the stop-gradient."""
    assert s.rows.winrate is not None
    return Loss(-policy_gradient.mean(s, (s.rows.winrate - 0.5 - BETA * s.logratio) * s.logp))


@needs(columns="K", labels=("winrate",), optional=("law",))
def kl_differentiated(s: Scored) -> Loss:
    """The mean of log-ratios as a penalty: right in value, but draws do not move with the policy."""
    assert s.rows.winrate is not None
    return Loss(-policy_gradient.mean(s, (s.rows.winrate - 0.5) * s.logp - BETA * s.logratio))


def test_a_gain_that_is_differentiated_is_found_by_the_formula() -> None:
    """Its sampled gradients do agree with its exact one: both are the mean of the same wrong thing."""
    method = played(pg_that_moves_its_gain)
    assert distance(sampled_gradient(method), mean_gradient(method)) < EXACT
    assert distance(mean_gradient(method), gradient_of(GAME)) > 0.05


def test_a_kl_that_is_differentiated_pulls_at_nothing() -> None:
    method = played(kl_differentiated)
    without = gradient_of(lambda w: w.objective(w.P @ w.opponent, 0.0))
    assert distance(sampled_gradient(method), without) < EXACT
    assert distance(sampled_gradient(method), gradient_of(GAME)) > 0.05


def test_draws_that_share_a_key_are_found() -> None:
    """As a collector that judges its answers against themselves, and takes them for an opponent's."""

    def careless(ctx: Context) -> Rows:
        y, z = (ctx.roles[name].sample(ctx.feed, 2, ctx.key) for name in ("current", "opponent"))
        return ctx.feed.replace(response=y, law=y.law, winrate=ctx.judge.prefer(ctx.feed, y, z, ctx.key).mean(2))

    with pytest.raises(AssertionError, match="the same key"):
        sampled_gradient(replace(played(policy_gradient.regularised_pg), collect=careless))
