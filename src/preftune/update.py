"""How one step is made of draws and descents. A rule sees the learner and `rows_against(opponent)`, nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from .numerics import average, not_negative, positive
from .processes import like
from .types import Key, Learner, Metrics, PreftuneError, Rows, RowsAgainst, Scored, Update


def plain(learner: Learner, rows_against: RowsAgainst) -> Metrics:
    """One descent on rows drawn against the current policy. On an exact game with uniform pairs: online mirror descent."""
    return learner.descend(rows_against(learner.policy))


def extragradient(learner: Learner, rows_against: RowsAgainst) -> Metrics:
    """Half a step to find the opponent, then the step itself from the starting point (EGPO, arXiv:2503.08942 alg. 1).

    theta_half = step from theta_t against pi_t;   theta_t+1 = step from theta_t against pi_half

    Converges to the Nash equilibrium of the regularised game in the last iterate. Not the textbook extragradient: the
    second gradient is taken at theta_t as well, only the opponent is the half-step policy; a version that takes it at
    theta_half also converges on small games and is not this method. Both draws use the same prompts and fresh samples.
    """
    start = learner.snapshot()
    learner.descend(rows_against(learner.policy))
    half = learner.policy.copy()
    learner.restore(start)
    return learner.descend(rows_against(half))


extragradient.redraws = True  # type: ignore[attr-defined]
extragradient.advised = "egpo"  # type: ignore[attr-defined]  # whose step `exact.steps.advise` means


def optimistic(momentum: float = 1.0) -> Update:
    """Extragradient at the price of one draw and one descent: the opponent is the policy extrapolated from where it came from.

    opponent = theta_t + momentum (theta_t - theta_t-1);   theta_t+1 = step from theta_t against it

    With momentum = 1 - eta beta it is `extragradient` whose half step reuses the win rates of the half step before: on a table
    half_t = theta_t+1 of a step against the last opponent = theta_t + (1 - eta beta)(theta_t - theta_t-1). The fixed point is the
    same, the Nash equilibrium of the regularised game; the largest stable step is about 1/sqrt(3) of extragradient's.

    Keeps theta_t-1 in the role `previous`. A method's `reference` must leave it alone: it runs after the step, when theta_t is gone.
    Limits  momentum = 0: `plain`; so is the first step
    """
    if not (0 <= momentum <= 1):
        raise PreftuneError(f"momentum is {momentum}, needed 0 <= momentum <= 1: how far the opponent goes on; 1 - eta beta, 0 is plain")

    def ahead(learner: Learner, rows_against: RowsAgainst) -> Metrics:
        if "previous" not in learner.roles:
            found = ", ".join(learner.roles)
            raise PreftuneError(f"the roles are {found}, needed `previous` for the policy a step ago; compose with roles=('previous',)")
        here = learner.policy.copy()
        rows = rows_against(learner.roles["previous"].lerp(here, 1 + momentum))
        told = learner.descend(rows)
        learner.roles["previous"] = here
        return told

    ahead.advised = "optimistic"  # type: ignore[attr-defined]
    ahead.redraws = True  # type: ignore[attr-defined]
    return ahead


def fast_slow(scale: float = 0.1) -> Update:
    """Two learners of one architecture on the same rows, each against the other as it was before the step.

    fast: descend with roles["twin"] = slow_t at the learning rate;   slow: descend with roles["twin"] = fast_t at scale times it

    The learner's policy is the fast one; the slow one lives in `learner.twin`, with moments of its own, and starts as its copy.
    Metrics of the slow one have "slow_" before their names.
    Limits  scale = 0: the slow one stays where the fast one began
    """
    not_negative("scale", scale, "it is the slow learner's rate over the fast one's")

    def both(learner: Learner, rows_against: RowsAgainst) -> Metrics:
        rows, fast = rows_against(learner.policy), learner.policy.copy()
        slow = learner.policy.copy()
        start = learner.snapshot()
        learner.twin = learner.twin or start
        slow.load(learner.twin["policy"])
        learner.roles["twin"] = slow
        told = learner.descend(rows)
        ahead = learner.snapshot()
        learner.restore(learner.twin)
        learner.roles["twin"] = fast
        try:
            behind = learner.descend(rows, lr_scale=scale)
        except PreftuneError:  # a run saves what it had before a step that failed: the fast learner, not the slow one
            learner.restore(start)
            raise
        learner.twin = learner.snapshot()
        learner.restore(ahead)
        slow.load(learner.twin["policy"])
        learner.roles["twin"] = slow
        return {**told, **{f"slow_{name}": value for name, value in behind.items()}}

    return both


# --- without gradients ----------------------------------------------------------------------------------------------


def ranking_weights(m: int, k: int) -> list[int]:
    """How many of the others a candidate is known to beat, minus those that it is known to lose to, best first, of m of which k are ranked.

    m - 1 - 2 r for rank r = 0 .. k - 1, -k for the rest; they add up to 0.
    Not     the authors' code, whose m - 2 r adds up to k: a drift towards whatever was ranked
    """
    return [m - 1 - 2 * r for r in range(k)] + [-k] * (m - k)


def rank_descent(
    m: int = 8, k: int | None = None, mu: float = 0.05, eta: float = 0.05, line_search: int = 3, ratio: float = 0.5, seed: int = 0
) -> Update:
    """A step from ranks alone: m perturbed copies of the policy are ranked, better ones attract and worse ones repel (ZO-RankSGD).

    direction = 1/|E| sum_i w_i xi_i,   xi_i ~ N(0, I) in all that trains,  w = `ranking_weights`,  |E| = k (k - 1) / 2 + k (m - k)

    A candidate is better the less often the policy beats it: rows_against(policy + mu xi_i) gives win rates of the policy's responses
    against the candidate's, and their mean gives its rank. Nothing but the order is used. k: how many of the best are ranked, all
    by default.

    line_search  0 takes the step eta; otherwise so many candidates eta ratio^s along the direction are ranked with the policy
                 itself, and the best is taken: the policy stays where it is if none beats it

    Not     with the direction averaged over steps that were refused, and the best candidate among the lengths, as in the authors' code
    Source  arXiv:2303.03751
    """
    ranked = m if k is None else k
    if m < 2 or not 1 <= ranked <= m or line_search < 0:
        raise PreftuneError(
            f"m is {m}, k {k} and line_search {line_search}, needed m >= 2, 1 <= k <= m and line_search >= 0: candidates, ranked, lengths"
        )
    positive("mu", mu, "it is how far candidates lie from the policy")
    positive("eta", eta, "it is the step")
    if not 0 < ratio < 1:
        raise PreftuneError(f"ratio is {ratio}, needed 0 < ratio < 1: the line search shortens steps by it; 0.5 is the authors'")
    edges = ranked * (ranked - 1) / 2 + ranked * (m - ranked)

    def step(learner: Learner, rows_against: RowsAgainst) -> Metrics:
        start = learner.snapshot()
        here: dict[str, Tensor] = start["policy"]
        key = Key.of(seed).fold("candidates", start["steps"])

        def moved(along: dict[str, Tensor], far: float) -> dict[str, Tensor]:
            return {name: value + far * along[name] for name, value in here.items()}

        def beaten(state: dict[str, Tensor]) -> float:
            """How often the policy beats this one."""
            candidate = learner.policy.copy()
            candidate.load(state)
            return mean_winrate(rows_against(candidate))

        clouds = [noise(here, key.fold(i)) for i in range(m)]
        losses = [beaten(moved(xi, mu)) for xi in clouds]
        order = sorted(range(m), key=losses.__getitem__)
        weights = ranking_weights(m, ranked)
        direction = {name: torch.stack([w * clouds[i][name] for w, i in zip(weights, order, strict=True)]).sum(0) / edges for name in here}
        lengths = [0.0, *(eta * ratio**s for s in range(line_search))] if line_search else [eta]
        asked = [beaten(moved(direction, far)) for far in lengths] if line_search else [0.0]
        taken = lengths[asked.index(min(asked))]  # the first of equals, which is to stay
        learner.place(moved(direction, taken))
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in direction.values()))
        return {"loss": sum(losses) / m, "spread": max(losses) - min(losses), "grad_norm": norm, "taken": taken}

    step.redraws = True  # type: ignore[attr-defined]
    return step


def noise(state: dict[str, Tensor], key: Key) -> dict[str, Tensor]:
    """A standard normal number for every one of the state, by its tensor's name."""
    drawn = {name: torch.from_numpy(key.fold(name).numpy().standard_normal(tuple(value.shape))) for name, value in state.items()}
    return {name: like(drawn[name].to(value.dtype), value).to(value.device) for name, value in state.items()}


def mean_winrate(rows: Rows) -> float:
    """The mean over prompts of the win rate of the responses, over their law where they enumerate one."""
    if rows.winrate is None:
        raise PreftuneError("candidates are ranked by win rates, but the rows carry none; collect with a judge against an opponent")
    return float(average(rows.winrate, rows.law).mean())


# --- against an adversary who moves the prompts ---------------------------------------------------------------------


@runtime_checkable
class Embedded(Protocol):
    """A policy that reads its prompts as points of a space and can score points beside them."""

    def offsets(self, rows: Rows) -> list[Tensor]:
        """For each row zeros [P, d], one vector for every element of its prompt."""

    def perturb(self, rows: Rows, offsets: Sequence[Tensor], *, everywhere: bool = False) -> Rows:
        """The rows with prompts moved by the offsets; frozen copies feel them only where `everywhere` is true."""

    def embedding_scale(self) -> float:
        """The mean length of an element's vector."""

    def score(self, rows: Rows) -> Scored:
        """As Policy.score, differentiable with respect to the offsets."""


def adversarial(steps: int = 10, step: float = 1e-4, radius: float = 0.05, reference: Literal["clean", "perturbed"] = "clean") -> Update:
    """One descent on prompts whose embeddings an adversary has moved towards the away response, column 1 of ranked pairs.

    delta <- P[delta - step * sign(d CE(y_away | x + delta) / d delta)], `steps` times from 0;   CE = -logp / length
    P: the offset of every prompt token shortened to an L2 length of at most radius * mean_v ||E_v||

    The weights stand still meanwhile and receive no gradient; the descent that follows takes delta as a constant, for both
    columns. All tokens of the prompt are moved, those of a chat template too.

    reference   "clean": the reference scores the prompts as they are (the authors' C-AdvIPO, and cheap: its log-probs are kept
                from epoch to epoch); "perturbed": it feels the offset as the policy does. Two different losses

    Metrics: attack_nll_before and attack_nll_after, CE of the away response; attack_at_radius, the share of tokens that P has
    shortened. An offset grows to steps * step * sqrt(d) at most: where that is less than the radius, the share is 0 and the
    radius changes nothing. With bfloat16 embeddings around 0.02 a step of 1e-4 is about one unit in the last place.

    Limits  steps = 0: the plain update, bit for bit; radius = 0: the same up to rounding
    Not     the best offset met on the way: the last one (the authors' code means to keep the best, but returns the last)
    Source  arXiv:2405.15589, github.com/sophie-xhonneux/Continuous-AdvTrain, embedding_attack.py
    """
    if steps < 0 or not (step > 0 and math.isfinite(step)) or not (radius >= 0 and math.isfinite(radius)):
        raise PreftuneError(
            f"steps is {steps}, step {step} and radius {radius}; needed steps >= 0, a finite step above 0 and a finite radius of "
            "at least 0; the authors take 10, 1e-4 and 0.05"
        )
    if reference not in ("clean", "perturbed"):
        raise PreftuneError(f"reference is {reference!r}, needed 'clean' or 'perturbed': the prompts that the reference scores")

    def attacked(learner: Learner, rows_against: RowsAgainst) -> Metrics:
        rows, policy = rows_against(learner.policy), learner.policy
        if not steps:
            return learner.descend(rows)
        if not isinstance(policy, Embedded):
            raise PreftuneError(
                f"the attack moves embeddings of prompts, which {type(policy).__name__} has none of; use a language model, or steps=0"
            )
        limit = radius * policy.embedding_scale()
        found = [attack(policy, away(part), steps, step, limit) for part in learner.micro(rows)]
        offsets = [offset for part, _, _ in found for offset in part]
        length = torch.cat([offset.norm(dim=1).cpu() for offset in offsets])  # of every token's offset
        return {
            **learner.descend(policy.perturb(rows, offsets, everywhere=reference == "perturbed")),
            "attack_nll_before": float(torch.cat([before for _, before, _ in found]).mean()),
            "attack_nll_after": float(torch.cat([after for _, _, after in found]).mean()),
            "attack_at_radius": float((length > 0.999 * limit).double().mean()),
        }

    return attacked


def away(rows: Rows) -> Rows:
    """Column 1 of ranked pairs alone."""
    absent = [] if rows.present is None else [rows.id[i] for i in (~rows.present[:, :2].all(1)).nonzero().flatten().tolist()]
    if not rows.ranked or rows.response.shape[1] < 2 or absent:
        found = f"rows {absent[:10]} with one response only" if absent else "rows that are no ranked pairs"
        raise PreftuneError(f"the attack found {found}; needed pairs: column 0 is safe, column 1 is where the prompts are moved towards")
    return Rows(id=rows.id, prompt=rows.prompt, response=rows.response.take(columns=[1]))


def attack(policy: Embedded, rows: Rows, steps: int, step: float, limit: float) -> tuple[list[Tensor], Tensor, Tensor]:
    """Offsets under which the only column of the rows is likelier, and its cross-entropy [B] without and with them."""
    offsets: list[Tensor] = policy.offsets(rows)
    entropies: list[Tensor] = []
    for _ in range(steps):
        offsets = [offset.requires_grad_() for offset in offsets]
        entropy = -policy.score(policy.perturb(rows, offsets)).mean_logp[:, 0]
        slopes = torch.autograd.grad(entropy.sum(), offsets)  # of the offsets alone: .grad of the weights stays as it is
        offsets = [within(limit, offset.detach() - step * slope.sign()) for offset, slope in zip(offsets, slopes, strict=True)]
        entropies.append(entropy.detach())
    with torch.no_grad():
        entropies.append(-policy.score(policy.perturb(rows, offsets)).mean_logp[:, 0])
    return offsets, entropies[0], entropies[-1]


def within(limit: float, offset: Tensor) -> Tensor:
    """Every row of [P, d] shortened to a length of at most `limit`."""
    length = offset.norm(dim=1, keepdim=True)
    return torch.where(length > limit, offset * (limit / length), offset)
