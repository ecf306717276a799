"""Zeroth-order optimisation from ranks (Tang, Rybin, Chang 2023), arXiv:2303.03751."""

from __future__ import annotations

from ..collect.draw import against
from ..reference import none
from ..types import Method
from ..update import rank_descent


def zo_ranksgd(
    m: int = 8, k: int | None = None, mu: float = 0.05, eta: float = 0.05, line_search: int = 3, responses: int = 2, noise_seed: int = 0
) -> Method:
    """No gradient and no loss: m perturbed policies are ranked by how seldom the policy beats them, and it moves towards the better ones.

    mu is how far the candidates lie away, eta the step, line_search how many lengths eta, eta / 2, .. are tried against staying.
    Only ranks of at most k candidates are used, so any rescaling of the judge leaves a run as it is; a noisy judge does not. A step
    asks m + line_search + 1 times, each with `responses` answers of both sides; every tensor that trains is perturbed, which is
    for few parameters. The authors give no defaults; these are ours. lr and optimiser have no effect, and perturbations
    are drawn from noise_seed alone.
    """
    collect = against(pairs="policy", responses=responses, opponents=responses)
    update = rank_descent(m=m, k=k, mu=mu, eta=eta, line_search=line_search, seed=noise_seed)
    return Method(None, collect, none, update, collect_every="step")
