"""Named preference games: tables P [n, n] of win probabilities, P[i, j] = P(response i beats response j).

P + P^T = 1 and P[i, i] = 1/2. A policy is p = softmax(theta) over the n responses. Names say where a game comes from;
`docs/games.md` lists their equilibria. Everything is float64 and the same on every machine.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..types import PreftuneError


def _cycle(edge: float) -> Tensor:
    """Margins P - 1/2 [3, 3] of a three-cycle: 1 beats 0, 2 beats 1 and 0 beats 2, each by `edge`."""
    return edge * torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64)


def rps() -> Tensor:
    """Rock, paper, scissors [3, 3]: every win is certain. Nash: uniform."""
    return 0.5 + _cycle(0.5)


def dice() -> Tensor:
    """Intransitive dice [3, 3]: the cycle of `rps` at 5/9. Nash: uniform."""
    return 0.5 + _cycle(1 / 18)


def rps_dom() -> Tensor:
    """`rps` with a fourth response that loses to all at .9 [4, 4]. Nash: uniform on the first three."""
    P = torch.full((4, 4), 0.5, dtype=torch.float64)
    P[:3, :3], P[:3, 3], P[3, :3] = rps(), 0.9, 0.1
    return P


def condorcet() -> Tensor:
    """Response 0 beats the others at .6, and these beat each other in a cycle at .9 [4, 4]. Nash: response 0."""
    P = torch.full((4, 4), 0.5, dtype=torch.float64)
    P[0, 1:], P[1:, 0], P[1:, 1:] = 0.6, 0.4, 0.5 + _cycle(0.4)
    return P


def borda_trap() -> Tensor:
    """Response 0 beats both others narrowly, response 1 wins on average [3, 3]. Nash: response 0; Borda: response 1."""
    return torch.tensor([[0.5, 0.51, 0.51], [0.49, 0.5, 0.95], [0.49, 0.05, 0.5]], dtype=torch.float64)


def munos(e: float = 0.1) -> Tensor:
    """Three groups of raters who each care for one pair only and tie elsewhere [3, 3].

    Shares 1/3 - e: 1 over 0;  1/3 + e/2: 0 over 2;  1/3 + e/2: 2 over 1.   Nash: (1/3 + e/2, 1/3 + e/2, 1/3 - e).
    Source  arXiv:2312.00886, whose text fixes the first share and the equilibrium; the two other shares follow from it
    """
    if not 0 <= e <= 1 / 3:
        raise PreftuneError(f"e is {e}, needed 0 <= e <= 1/3, since 1/3 - e is a share of the raters; take e = 0.1")
    few, many = (1 / 3 - e) / 2, (1 / 3 + e / 2) / 2
    return 0.5 + torch.tensor([[0, -few, many], [few, 0, -many], [-many, many, 0]], dtype=torch.float64)


def random_game(n: int, seed: int = 0) -> Tensor:
    """Every pair decided by its own uniform draw [n, n]; the lower triangle comes from default_rng(seed).random((n, n))."""
    lower = np.tril(np.random.default_rng(seed).random((n, n)), -1)
    return torch.from_numpy(lower + np.triu(1 - lower.T, 1) + 0.5 * np.eye(n))


def rand10() -> Tensor:
    """`random_game(10)`. Nash: five responses."""
    return random_game(10)


def rand50() -> Tensor:
    """`random_game(50)`. Nash: 29 responses."""
    return random_game(50)


def gpm20() -> Tensor:
    """A general preference model with two rotation planes [20, 20]: P = sigmoid(S), S skew of rank 4. Nash: 13 responses.

    Source  arXiv:2410.02197
    """
    V = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 4)))
    S = V[:, 0::2] @ V[:, 1::2].T
    return torch.sigmoid(S - S.T)


def bradley_terry(reward: Tensor) -> Tensor:
    """P[..., i, j] = sigmoid(reward[i] - reward[j]) for reward [..., n]. Nash: the largest reward."""
    return torch.sigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))


def bt10() -> Tensor:
    """Bradley-Terry with ten normal rewards [10, 10]. Nash: response 6."""
    return bradley_terry(torch.from_numpy(np.random.default_rng(0).normal(size=10)))


GAMES: dict[str, Callable[[], Tensor]] = {
    "rps": rps,
    "dice": dice,
    "rps-dom": rps_dom,
    "condorcet": condorcet,
    "borda-trap": borda_trap,
    "munos": munos,
    "rand10": rand10,
    "rand50": rand50,
    "gpm20": gpm20,
    "bt10": bt10,
}


def game(name: str) -> Tensor:
    """The win probabilities [n, n] of a named game."""
    if name not in GAMES:
        close = difflib.get_close_matches(name, GAMES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "pick one of these."
        raise PreftuneError(f"{name!r} is not a game; needed one of {', '.join(GAMES)}; {hint}")
    return GAMES[name]()


def reference_logits(n: int, *, uniform: bool = False) -> Tensor:
    """log mu [n], normalised: the softmax of default_rng(1).normal(size=n), or 1/n each with uniform=True."""
    logits = torch.zeros(n, dtype=torch.float64) if uniform else torch.from_numpy(np.random.default_rng(1).normal(size=n))
    return torch.log_softmax(logits, -1)


def symmetrise(P: Tensor) -> Tensor:
    """(P + 1 - P^T) / 2: the game of a judge that is asked in both orders. Leaves a game as it is."""
    return (P + 1 - P.mT) / 2


def validate(P: Tensor, *, tolerance: float = 1e-6) -> Tensor:
    """P itself if it is a game: [..., n, n], no NaN, within [0, 1], P + P^T = 1 up to `tolerance`. If not, an error names the entry."""
    if P.ndim < 2 or P.shape[-1] != P.shape[-2] or P.shape[-1] == 0:
        raise PreftuneError(f"win probabilities have shape {list(P.shape)}, needed [..., n, n]; give a row and a column to every response")
    i, j = _first(P.isnan())
    if i:
        raise PreftuneError(f"P{i} is NaN, needed a probability; ask the judge again for this pair or enter 0.5 for a tie")
    i, j = _first((P < 0) | (P > 1))
    if i:
        raise PreftuneError(f"P{i} is {P[tuple(i)].item():g}, needed a probability in [0, 1]; give win rates, not scores or per cent")
    i, j = _first((P + P.mT - 1).abs() > tolerance)
    if i:
        a, b = P[tuple(i)].item(), P[tuple(j)].item()
        raise PreftuneError(f"P{i} is {a:g} and P{j} is {b:g}, needed a sum of 1; average both orders of the judge with symmetrise(P)")
    return P


def _first(wrong: Tensor) -> tuple[list[int], list[int]]:
    """Index of the first True entry of [..., n, n] and that of its mirror image; two empty lists if there is none."""
    found: list[list[int]] = wrong.nonzero()[:1].tolist()
    return (found[0], [*found[0][:-2], found[0][-1], found[0][-2]]) if found else ([], [])
