"""How one step is made of draws and descents. A rule sees the learner and `rows_against(opponent)`, nothing else."""

from __future__ import annotations

from .types import Learner, Metrics, RowsAgainst


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
