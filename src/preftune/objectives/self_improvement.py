"""A generator pi(y | x) and an improver pi(y' | x, y) in one model, learned from pairs (SRPO).

Rows have six columns, two of the prompt and four of a prompt that asks to improve on a draft, y1 and y2 a pair:
y1 | x,  y2 | x,  y2 | x y1,  y1 | x y1,  y1 | x y2,  y2 | x y2. With f = logratio of the first two and g(y', y) = logratio of y' | x y,

    P(y2 beats y1) = 1/2 + beta [g(y2, y1) - g(y1, y1)]          the best improver of every draft
    f(y1) - f(y2)  = g(y1, y1) - g(y2, y2)                        the generator whose drafts can be improved least

hold at the solution of min_pi max_pi' E[P(y' beats y) - beta KL(pi' || pi_ref) + beta KL(pi || pi_ref)], and only there.
"""

from __future__ import annotations

from torch import Tensor

from ..numerics import positive
from ..types import Loss, PreftuneError, Scored, needs
from .pairwise import PULL

SIX = dict(columns=6, labels=("ranked",))


def six(s: Scored) -> tuple[Tensor, ...]:
    """f(y1), f(y2), g(y2, y1), g(y1, y1), g(y1, y2), g(y2, y2), each [B]."""
    if s.logratio.shape[1] != 6:
        raise PreftuneError(f"the rows have {s.logratio.shape[1]} columns, needed six: a pair and both answers after each draft")
    return s.logratio.unbind(1)


@needs(**SIX, optional=("prefer",))
def improve(s: Scored, *, beta: float = 0.1) -> Loss:
    """Regress what a draft's improver gains by exchanging it to the preference for the exchange.

    loss = 1/2 sum over both orders of (P(y2 beats y1) - 1/2 - beta [g(y2, y1) - g(y1, y1)])^2

    Reads   prefer = P(y1 beats y2), 1 where rows are ranked without it; hard labels drawn with P add only P (1 - P)
    Limits  0 at pi'(y2 | y1) proportional to pi_ref exp(P(y2 beats y1) / beta). P minus one half is at most 1/2: a g gap of 1 / (2 beta)
    Not     with the pair the other way round, which trains an improver to make drafts worse
    Source  arXiv:2406.01660, the improver's part; derived
    """
    positive("beta", beta, PULL)
    _, _, g21, g11, g12, g22 = six(s)
    prefer = 1.0 if s.rows.prefer is None else s.rows.prefer.to(s.logp)
    first = (1 - prefer) - 0.5 - beta * (g21 - g11)  # from draft y1 to y2
    second = prefer - 0.5 - beta * (g12 - g22)
    return Loss((first**2 + second**2) / 2, {"gain": (beta * (g12 - g22)).detach()})


@needs(**SIX)
def generate(s: Scored, *, beta: float = 0.1) -> Loss:
    """Regress the generator on how much its improver prefers to keep either draft.

    loss = (beta [f(y1) - f(y2) - g(y1, y1) + g(y2, y2)])^2

    Reads   no label: the same for both orders of the pair
    Limits  0 at pi proportional to pi_ref / Z, Z(y) = sum_y' pi_ref exp(P(y' beats y) / beta): drafts that nothing beats by much
    Not     the equilibrium of the preference game; as beta falls it goes, slowly, to the least worst loss max_y' P(y' beats y)
    Source  arXiv:2406.01660, the generator's part; derived
    """
    positive("beta", beta, PULL)
    f1, f2, _, g11, _, g22 = six(s)
    margin = beta * (f1 - f2)
    return Loss((margin - beta * (g11 - g22)) ** 2, {"margin": margin.detach(), "accuracy": (margin > 0).to(margin.dtype)})
