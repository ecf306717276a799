"""Statistical rejection sampling optimisation (Liu et al. 2023), arXiv:2309.06657 alg. 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from ..collect.rejection import Draws, Label, Odds, Pairing, by_rejection
from ..numerics import one_of, positive
from ..objectives.auxiliary import scale
from ..objectives.pairwise import PULL, dpo, hinge, hinge_free
from ..reference import frozen, none
from ..types import Method, Objective, PreftuneError
from ..update import plain

LOSSES: dict[str, Callable[[float], Objective]] = {
    "sigmoid-norm": lambda gamma: partial(dpo, beta=gamma),
    "hinge-norm": lambda gamma: partial(hinge, beta=gamma),
    "hinge": lambda gamma: scale(partial(hinge_free, delta=1 / gamma), gamma),  # max(0, 1 - gamma (logp_w - logp_l))
}


def rso(
    beta: float = 0.5,
    gamma: float = 0.05,
    loss: Literal["sigmoid-norm", "hinge-norm", "hinge"] = "sigmoid-norm",
    candidates: int = 64,
    responses: int = 8,
    draws: Draws = "without_replacement",
    pairing: Pairing = "first_round",
    label: Label = "threshold",
    reward: Odds | None = None,
    eps: float = 0.0,
) -> Method:
    """Pairs that the policy which is sought would answer, ref * exp(r / beta) / Z, from the first model by rejection; then dpo or a hinge.

    beta and gamma are two numbers: beta is how greedy the resampling is (inf keeps the first responses, the paper's sft-sample-rank;
    near 0 the best), gamma the slope of the loss. Under a judge of Bradley-Terry with label="soft" and loss="sigmoid-norm" the
    optimum is ref * exp(r / gamma), wherever the pairs lie.

    draws="independent" takes draws with replacement: without, only the first survivor follows the law that is sought. A judge without
    scores gives log-odds against one more response; one that is sure needs eps, within which probabilities are kept. The authors draw
    candidates at temperature 0.7 and top_k 40, here as the policy decodes; which pairing and labels they trained with was not
    read. Pairs that the judge finds alike are left out under label="threshold". loss="hinge" is SLiC's, without a reference.
    """
    positive("gamma", gamma, PULL)
    objective = one_of("loss", loss, LOSSES, ": the loss of a pair")(gamma)
    if label == "soft" and loss != "sigmoid-norm":
        raise PreftuneError(f"label is 'soft' with loss {loss!r}, which reads the order alone; take sigmoid-norm, threshold or sampled")
    sampler = "proposal" if loss == "hinge" else "reference"
    collect = by_rejection(
        sampler=sampler,
        candidates=candidates,
        responses=responses,
        beta=beta,
        draws=draws,
        pairing=pairing,
        label=label,
        reward=reward,
        eps=eps,
    )
    pairs = responses // 2 if pairing == "first_round" else responses * (responses - 1) // 2
    roles, move = (("proposal",), none) if loss == "hinge" else ((), frozen)
    return Method(objective, collect, move, plain, collect_every="round", recipe={"epochs": float(pairs)}, roles=roles)
