"""Self-improving robust preference optimisation (Choi et al. 2024), arXiv:2406.01660; losses derived in `objectives.self_improvement`."""

from __future__ import annotations

from functools import partial

from ..collect.online import after_drafts
from ..numerics import positive
from ..objectives.auxiliary import add, scale
from ..objectives.pairwise import PULL
from ..objectives.self_improvement import generate, improve
from ..reference import frozen
from ..types import Method
from ..update import plain


def srpo(beta: float = 0.1, w_improve: float = 0.5, w_generate: float = 0.5) -> Method:
    """One model learns to answer and to improve on a draft, from pairs alone: no reward, no sampling, three prompts a pair.

    w_improve weighs the improver's loss and w_generate the generator's; the paper joins both by one alpha, of which we do not know
    whose weight it is. On a table both losses vanish together at one point, so the weights set speeds alone; with shared
    weights they matter. After training, draft and then ask for improvements (the authors up to five times).

    The generator ends where drafts are hardest to improve on, which is not the Nash equilibrium of egpo. Win probabilities lie in
    [0, 1]: gaps of log-ratios of the improver are at most 1 / (2 beta). Twelve log-probs a pair, six of them the reference's.
    """
    positive("beta", beta, PULL)
    objective = add(scale(partial(improve, beta=beta), w_improve), scale(partial(generate, beta=beta), w_generate))
    return Method(objective, after_drafts, frozen, plain, columns=2)
