"""Sampled gradients are exact ones in expectation: answers of two tokens, every outcome of every draw, weighted by its probability.

Nothing is estimated here. A method's collector runs once on as many rows as its draws have outcomes, each row with draws of its own;
the gradients of these rows, times their probabilities, are summed and compared with the gradient of the same method where policies
answer with their laws, and with a formula that knows neither.
"""

from __future__ import annotations

import inspect
import itertools
import sys
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
from preftune.exact.games import bradley_terry, random_game
from preftune.judges.exact import PreferenceTable
from preftune.learner import GradientLearner
from preftune.methods import METHODS
from preftune.objectives import policy_gradient
from preftune.policies.language import LanguagePolicy, sequence_logp, sequence_mixture
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
        index = outcome[:, None] // N ** (self.draws - 1 - place) % N if self.draws else place[None] % N  # or only counted
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

    P: Tensor = field(default_factory=lambda: random_game(N, 3))  # two of its four triples are circles
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


def collected(method: Method, tape: Tape | None, repeats: int = 1, key: Key = Key.of(0)) -> tuple[GradientLearner, Rows]:  # noqa: B008
    """A learner with the method's heads, and one collection of rows; each outcome as many times as it is repeated."""
    roles = WORLD.roles(method, tape)
    learner = GradientLearner(roles["current"], method, roles, optimiser="sgd")
    for head in roles["current"].heads.values():  # the same in every learner; a fresh head of zeros would hide its part
        head.data = WORLD.heads[None, :, None].expand_as(head).clone()
    ids = [f"{b} {again}" for again in range(repeats) for b in range(1 if tape is None else len(tape.chance))]
    feed = Rows(tuple(ids), (0,) * len(ids))
    if method.reads == "responses":  # and draws more: given is the pair of answers 2 and 1
        feed = feed.replace(response=TableResponses(torch.tensor([[2, 1]] * len(ids)), tokens=2), ranked=True)
    return learner, method.collect(Context(roles, feed, (PreferenceTable(WORLD.P, WORLD.reward),), key=key))


def draws_of(method: Method) -> int:
    """Answers that one collection draws for a prompt."""
    tape = Tape()
    collected(method, tape)
    return tape.used


def mean_gradient(method: Method, tape: Tape | None = None, repeats: int = 1, key: Key = Key.of(0)) -> Tensor:  # noqa: B008
    """d / d logits [1 + V, V] of the learner's loss: exact, or the mean over all outcomes of a tape."""
    learner, rows = collected(method, tape, repeats, key)
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

    def mixed(self, name: str, w: float) -> Tensor:
        """The law of the role mixed with the reference at every token."""
        return WORLD.policy(name).mix(WORLD.policy("reference"), w).probabilities()[0]

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


UNIFORM = torch.full((N,), 1 / N, dtype=torch.float64)


def ordered(w: Exact, first: Tensor, second: Tensor, beta: float, P: Tensor) -> Tensor:
    """Cross-entropy of pairs of one draw of either law, with P as soft labels."""
    loss = binary_cross_entropy_with_logits(beta * (w.h[:, None] - w.h), P, reduction="none")
    return (first[:, None] * second * loss).sum()


def squares(w: Exact, beta: float) -> Tensor:
    """ipo on pairs of pi, each in the order that the judge draws."""
    g = w.h[:, None] - w.h
    return 2 * (w.pi[:, None] * w.pi * w.P * (g - 1 / (2 * beta)) ** 2).sum()


def best_of_three(w: Exact) -> Tensor:
    """The law of the draw of the highest reward among three."""
    no_better = (w.reward[:, None] >= w.reward) * w.pi
    worse = (w.reward[:, None] > w.reward) * w.pi
    return no_better.sum(1) ** 3 - worse.sum(1) ** 3


def hinges(w: Exact, beta: float) -> Tensor:
    """slic on pairs of pi, each in the order that the judge draws."""
    g = w.h[:, None] - w.h
    return 2 * (w.pi[:, None] * w.pi * w.P * (1 - beta * g).clamp(min=0)).sum()


def graded(w: Exact) -> Tensor:
    """dpo, beta = .1, on pairs of pi whose rewards are .2 apart."""
    drawn = w.pi[:, None] * w.pi * (w.reward[:, None] - w.reward >= 0.2)
    return -(drawn * torch.nn.functional.logsigmoid(0.1 * (w.h[:, None] - w.h))).sum() / drawn.sum()


def ends_of_three(w: Exact) -> Tensor:
    """dpo, beta = .1, on the best and the worst of three draws, where their rewards differ."""
    ends = torch.zeros(N, N, dtype=torch.float64)
    for drawn in itertools.product(range(N), repeat=3):
        best, worst = (of(drawn, key=lambda i: float(w.reward[i])) for of in (max, min))
        ends[best, worst] += (best != worst) * w.pi[list(drawn)].prod()
    return -(ends * torch.nn.functional.logsigmoid(0.1 * (w.h[:, None] - w.h))).sum() / ends.sum()


# Of pairs drawn from pi some are one answer twice, which no enumerated pair is: they pull nothing, and count
CURRENT = WORLD.logp("current").exp()
APART = float(1 - (CURRENT**2).sum())
APART_AT_FIRST = float(1 - (2 * WORLD.logp("reference")).exp().sum())
GRADED = float(2 * (CURRENT[:, None] * CURRENT * (WORLD.reward[:, None] - WORLD.reward >= 0.2)).sum())  # two draws make a pair at all

FACTS: dict[str, Fact] = {
    # win rates against one another or an opponent
    "online-ipo": Fact(methods.online_ipo, lambda w: 2 * spread(w.pi, w.h - w.P @ w.pi)),
    "online-ipo of three": Fact(partial(methods.online_ipo, responses=3), lambda w: 2 * spread(w.pi, w.h - w.P @ w.pi)),
    "online-ipo against fresh draws": Fact(
        partial(methods.online_ipo, tau=0.3, opponents=2), lambda w: 2 * spread(w.pi, w.h - w.P @ w.opponent / 0.3)
    ),
    "online-ipo of uniform pairs": Fact(
        partial(methods.online_ipo, pairs="uniform"), lambda w: 2 * spread(UNIFORM, w.h - w.P @ w.opponent)
    ),
    "egpo": Fact(methods.egpo, lambda w: 2 * spread(UNIFORM, w.h - w.P @ w.opponent / 0.1)),
    "egpo of the policy's pairs": Fact(
        partial(methods.egpo, pairs="policy", opponents=2), lambda w: 2 * spread(w.pi, w.h - w.P @ w.opponent / 0.1)
    ),
    "egpo-optimistic": Fact(methods.egpo_optimistic, lambda w: 2 * spread(UNIFORM, w.h - w.P @ w.opponent / 0.1)),
    "mpo": Fact(methods.mpo, lambda w: 2 * spread(UNIFORM, w.h - w.P @ w.opponent / 0.1)),
    "ipo-md": Fact(partial(methods.ipo_md, b=0.4), lambda w: 2 * spread(w.mixed("current", 0.4), w.h - w.P @ w.mixed("current", 0.4))),
    "nash-md": Fact(partial(methods.nash_md, mixture=0.4), lambda w: 2 * spread(UNIFORM, w.h - w.P @ w.mixed("opponent", 0.4) / 0.1)),
    "nash-md-pg": Fact(partial(methods.nash_md_pg, tau=0.5, mixture=0.4), lambda w: w.objective(w.P @ w.mixed("opponent", 0.4), 0.5)),
    "nash-md-pg with a baseline": Fact(
        partial(methods.nash_md_pg, tau=0.5, responses=2, baseline="leave_one_out"),
        lambda w: w.objective(w.P @ w.mixed("opponent", 0.125), 0.5),
    ),
    "nash-ema-pg": Fact(partial(methods.nash_ema_pg, tau=0.5), lambda w: w.objective(w.P @ w.role("slow").exp(), 0.5)),
    "nash-ema-pg with a baseline": Fact(
        partial(methods.nash_ema_pg, tau=0.5, responses=2, baseline="leave_one_out"),
        lambda w: w.objective(w.P @ w.role("slow").exp(), 0.5),
    ),
    # by rounds, win rates or scores of all against all
    "sppo": Fact(methods.sppo, apart="the best and the worst of five are no draws of the policy"),
    "sppo on all": Fact(
        partial(methods.sppo, eta=2.0, responses=3, train_on="all"),
        lambda w: (w.pi * (w.h - 2 * (w.P @ w.pi - 0.5)) ** 2).sum(),
        # a response is one of the three that it is judged against, at 1/2
        drawn=lambda w: (w.pi * (w.h - 2 * 2 / 3 * (w.P @ w.pi - 0.5)) ** 2).sum(),
    ),
    "sppo on all, centred": Fact(
        partial(methods.sppo, eta=2.0, responses=3, train_on="all", centred=True),
        lambda w: spread(w.pi, w.h - 2 * w.P @ w.pi),
        shrunk=2 / 3,  # the variance of three draws about their own mean
    ),
    "gpo": Fact(methods.gpo, apart="the best and the worst of five are no draws of the policy"),
    "gpo on all": Fact(
        partial(methods.gpo, beta=0.5, responses=3, train_on="all"),
        lambda w: (w.pi * (w.h - 2 * torch.logit(w.P) @ w.pi) ** 2).sum(),
        drawn=lambda w: (w.pi * (w.h - 2 * 2 / 3 * torch.logit(w.P) @ w.pi) ** 2).sum(),  # as for sppo
    ),
    "inpo": Fact(
        partial(methods.inpo, tau=0.1, responses=3),
        lambda w: 2 * spread(w.pi, w.logp - w.reference / 3 - w.role("previous") * 2 / 3 - w.P @ w.pi / 0.3),
    ),
    "dno": Fact(
        methods.dno,
        lambda w: ordered(w, w.pi, w.pi, 0.1, torch.sigmoid((w.P @ w.pi)[:, None] - w.P @ w.pi)),
        apart="labels are sigmoids of win rates, and the mean of a sigmoid is not that of the mean",
    ),
    "dno-prct": Fact(partial(methods.dno_prct, responses=2, least=-9.0, own_margin=0.2), graded, shrunk=GRADED),
    "self-rewarding": Fact(partial(methods.self_rewarding, responses=3), ends_of_three, shrunk=float(1 - (CURRENT**3).sum())),
    # pairs compared with one another
    "osp": Fact(partial(methods.osp, responses=3), lambda w: soft_pairs(w, 0.1), shrunk=APART),
    "online-dpo": Fact(methods.online_dpo, lambda w: ordered(w, w.pi, w.pi, 0.1, w.P)),
    "online-dpo of three": Fact(partial(methods.online_dpo, responses=3), lambda w: ordered(w, w.pi, w.pi, 0.1, w.P)),
    "online-dpo as ipo": Fact(partial(methods.online_dpo, beta=1.0, loss="ipo"), lambda w: squares(w, 1.0)),
    "online-dpo as hinge": Fact(partial(methods.online_dpo, beta=0.5, loss="hinge"), lambda w: hinges(w, 0.5)),
    "apo-nesterov": Fact(methods.apo_nesterov, lambda w: ordered(w, w.pi, w.pi, 0.1, w.P)),
    "apo-nesterov of ipo": Fact(partial(methods.apo_nesterov, inner="ipo", beta=0.5), lambda w: squares(w, 0.5)),
    "apo-nesterov of sppo": Fact(
        partial(methods.apo_nesterov, inner="sppo", beta=0.5),
        lambda w: spread(w.pi, w.h - w.P @ w.pi / 0.5),
        shrunk=1 / 2,  # the variance of two draws about their own mean
    ),
    "xpo": Fact(
        partial(methods.xpo, alpha=0.3),
        lambda w: ordered(w, w.pi, w.reference.exp(), 0.1, w.P) + 0.3 * (w.reference.exp() * w.logp).sum(),
    ),
    "vpo beside the reference": Fact(  # xpo with alpha beta for its alpha
        partial(methods.vpo, alpha=3.0, partner="reference"),
        lambda w: ordered(w, w.pi, w.reference.exp(), 0.1, w.P) + 0.3 * (w.reference.exp() * w.logp).sum(),
    ),
    "vpo": Fact(partial(methods.vpo, alpha=3.0), lambda w: ordered(w, w.pi, w.pi, 0.1, w.P) + 0.3 * (w.reference.exp() * w.logp).sum()),
    "hypo": Fact(
        partial(methods.hypo, lam=0.3), lambda w: -torch.nn.functional.logsigmoid(0.1 * (w.h[2] - w.h[1])) + w.objective(0 * w.P[0], 0.3)
    ),
    "on-policy": Fact(methods.on_policy, apart="which of four is best is said by how they fare against one another, not against the law"),
    "best-of-n": Fact(partial(methods.best_of_n, n=3), lambda w: -(best_of_three(w) * w.logp).sum()),
    "rso": Fact(
        partial(methods.rso, candidates=3, responses=2), apart="few candidates: survivors have another law than the one that is sought"
    ),
    "rso of the first responses": Fact(  # nothing is rejected
        partial(methods.rso, beta=float("inf"), gamma=0.1, candidates=4, responses=4, label="soft"),
        lambda w: ordered(w, w.reference.exp(), w.reference.exp(), 0.1, w.P) / APART_AT_FIRST,
        shrunk=APART_AT_FIRST,
    ),
    # rewards
    "rloo": Fact(methods.rloo, lambda w: w.objective(w.reward, 0.05)),
    "rloo by comparisons": Fact(partial(methods.rloo, responses=3, reward="winrate"), lambda w: w.objective(w.P @ w.pi, 0.05)),
    "rloo by rounds": Fact(partial(methods.rloo, collect_every="round"), lambda w: w.objective(w.reward, 0.05)),
    "rloo of three": Fact(partial(methods.rloo, responses=3), lambda w: w.objective(w.reward, 0.05)),
    "spo-minimax": Fact(methods.spo_minimax, lambda w: w.objective(w.P @ w.pi, 0.05)),
    "copg": Fact(methods.copg, lambda w: spread(w.pi, w.reward - 0.06 * w.h) / 0.06),
    "copg in nats": Fact(partial(methods.copg, scale="logratio"), lambda w: 2 * spread(w.pi, w.h - w.reward / 0.06)),
    "copg by comparisons": Fact(partial(methods.copg, reward="winrate"), lambda w: spread(w.pi, w.P @ w.pi - 0.06 * w.h) / 0.06),
    "grpo": Fact(
        partial(methods.grpo, responses=3), apart="rewards are divided by the spread of a group, whose mean is no spread of the law"
    ),
    "grpo undivided": Fact(
        partial(methods.grpo, responses=3, loss_type="dr_grpo", scale_rewards="none", max_completion_length=2),
        lambda w: w.objective(w.reward, 0.0) / 2,
        shrunk=2 / 3,  # the group's mean holds the response itself
    ),
    "grpo undivided, by rounds": Fact(  # the first step on a round, at ratio one
        partial(methods.grpo, responses=3, loss_type="dr_grpo", scale_rewards="none", max_completion_length=2, collect_every="round"),
        lambda w: w.objective(w.reward, 0.0) / 2,
        shrunk=2 / 3,
    ),
    "ppo": Fact(methods.ppo, apart="advantages are divided by their spread over the batch"),
    "ppo undivided": Fact(partial(methods.ppo, whiten=False)),
    "ppo by steps": Fact(partial(methods.ppo, whiten=False, collect_every="step"), lambda w: w.objective(w.reward, 0.05) / 2),
    "ppo without discount": Fact(
        partial(methods.ppo, whiten=False, lam=1.0),
        lambda w: w.objective(w.reward, 0.05) / 2,  # a mean over tokens, of which there are two
    ),
}


NO_ESTIMATE = {
    "curry-dpo": "a round's rows are the pairs of the data's lists: nothing is drawn",
    "zo-ranksgd": "a step is made of ranks of perturbed policies: there is no loss whose gradient it would be the mean of",
}


def online(method: Method) -> bool:
    """Descends on what it draws, by steps or by rounds."""
    return method.collect_every != "run" and not method.offline and method.objective is not None


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


def test_every_method_that_collects_more_than_once_is_held_to_its_exact_gradient_or_said_to_have_none() -> None:
    plays = {name for name, make in METHODS.items() if make(**merged("SETTINGS").get(name, {})).collect_every != "run"}
    assert plays - set(ALL) == set(NO_ESTIMATE) and not set(ALL) & set(NO_ESTIMATE)
    assert plays - set(FACTS) == set(NO_ESTIMATE), "give FACTS a line: what the method should have the gradient of"


@pytest.mark.parametrize("name", ALL)
def test_the_mean_over_all_draws_is_the_exact_gradient(name: str) -> None:
    fact = ALL[name]
    method = fact.method()
    assert draws_of(method) <= MOST, f"{name} draws {draws_of(method)} answers a prompt, needed {MOST} at most; give FACTS fewer responses"
    drawn, exact = sampled_gradient(method), mean_gradient(method)
    assert exact.abs().max() > 1e-3, "a gradient of zero says nothing"
    if fact.apart:
        assert distance(drawn, exact) > 1e-3, f"{name}: nothing to excuse"
    else:
        expected = fact.shrunk * exact if fact.drawn is None else gradient_of(fact.drawn)
        assert distance(drawn, expected) < EXACT


@pytest.mark.parametrize("name", [name for name, fact in FACTS.items() if fact.formula is not None])
def test_the_exact_gradient_is_that_of_the_loss_as_a_function_of_the_law(name: str) -> None:
    fact = FACTS[name]
    assert fact.formula is not None
    assert distance(mean_gradient(fact.method()), gradient_of(fact.formula)) < EXACT


@pytest.mark.parametrize("negative", ["none", "worst", "mean", "contrastive"])
def test_the_best_and_the_worst_of_a_transitive_judge_have_an_exact_law(negative: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Bradley-Terry the order by win rates is the order of the rewards, whoever one is compared with."""
    monkeypatch.setattr(sys.modules[__name__], "WORLD", World(P=bradley_terry(WORLD.reward)))
    method = methods.on_policy(responses=3, negative_gradient=negative)
    drawn, exact = sampled_gradient(method), mean_gradient(method)
    assert exact.abs().max() > 1e-3 and distance(drawn, exact) < EXACT


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry expected."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo"])
def test_the_kl_of_grpo_is_unbiased_beside_rewards_that_are_not(loss_type: policy_gradient.Aggregation) -> None:
    """What beta adds to the gradient, drawn and exact: minus the slope of the cross-entropy of the reference's next tokens.

    A mean over the two tokens: KL(mu || pi) of the first, and of the second after each first, weighed by pi(first), a constant.
    Not the KL in the other order, whose value the estimate has.
    """
    make = partial(methods.grpo, responses=2, loss_type=loss_type, scale_rewards="none")
    with_kl, without = make(beta=0.3), make(beta=0.0)
    drawn = sampled_gradient(with_kl) - sampled_gradient(without)
    assert distance(drawn, mean_gradient(with_kl) - mean_gradient(without)) < EXACT

    logits = WORLD.policy("current").logits
    pi, mu = logits[0].log_softmax(-1), WORLD.policy("reference").logits[0].detach().log_softmax(-1).exp()
    reached = torch.cat([torch.ones(1), pi[0].exp().detach()])
    (slope,) = torch.autograd.grad(-0.3 / 2 * (reached * (mu * pi).sum(1)).sum(), [logits])
    assert distance(drawn, slope[0]) < EXACT


SAMPLED_LABELS = {
    "online-dpo": (methods.online_dpo(label="sampled"), methods.online_dpo()),
    "inpo": (methods.inpo(tau=0.3, responses=2, labels="sampled"), methods.inpo(tau=0.3)),
}


@pytest.mark.parametrize("name", SAMPLED_LABELS)
def test_labels_drawn_with_the_judges_probability_train_as_the_probability_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are no draws of a policy: 60 times 20 labels for every pair, within 4.5 standard errors.

    Power: the error is below 3 % of the largest entry, asserted; a label the wrong way round is off by 200 %.
    """
    monkeypatch.setattr(sys.modules[__name__], "WORLD", World(P=random_game(N, 5)))  # whose gradient is large beside the noise
    drawn, soft = SAMPLED_LABELS[name]
    exact, n = mean_gradient(soft), 60
    found = torch.stack([mean_gradient(drawn, Tape(draws_of(drawn)), 20, Key.of(seed)) for seed in range(n)])
    error = found.std(0) / n**0.5
    assert error.max() < 0.03 * exact.abs().max()
    assert ((found.mean(0) - exact).abs() < 4.5 * error).all()


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


def test_against_a_mixture_of_whole_answers_the_gradient_is_another() -> None:
    """The theory of Nash-MD means that one; policies, text among them, mix token by token."""
    whole = sequence_mixture(WORLD.policy("opponent"), WORLD.policy("reference"), 0.4)[0]
    method = methods.nash_md_pg(tau=0.5, mixture=0.4)
    assert distance(mean_gradient(method), gradient_of(lambda w: w.objective(w.P @ whole, 0.5))) > 1e-3


def test_draws_that_share_a_key_are_found() -> None:
    """As a collector that judges its answers against themselves, and takes them for an opponent's."""

    def careless(ctx: Context) -> Rows:
        y, z = (ctx.roles[name].sample(ctx.feed, 2, ctx.key) for name in ("current", "opponent"))
        return ctx.feed.replace(response=y, law=y.law, winrate=ctx.judge.prefer(ctx.feed, y, z, ctx.key).mean(2))

    with pytest.raises(AssertionError, match="the same key"):
        sampled_gradient(replace(played(policy_gradient.regularised_pg), collect=careless))
