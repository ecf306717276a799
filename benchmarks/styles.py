"""Three styles of one sentence, told apart by its first word, and judges that go in a circle about them.

A judge that prefers The over A over It's over The leaves nothing to rank: whatever a policy settles on loses to another style. The
equilibrium is a mixture. Reward models, which rank, are fitted to such a judge's answers by maximum likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from preftune.data.ratings import movie_reviews, texts_of
from preftune.exact.nash import regularised_nash
from preftune.exact.voting import bradley_terry_fit
from preftune.types import Key, Rows

OPENINGS = ("The ", "A ", "It's ")  #    a style is one of these; a text with another opening has none
SHARES = (0.5, 0.3, 0.2)  #              of the sentences that the first policy learns
UNSTYLED = 0.9  #                        how often a styled text beats one without style


def style(text: str) -> int:
    """The number of the style that a text is in; len(OPENINGS) for none."""
    return next((i for i, opening in enumerate(OPENINGS) if text.startswith(opening)), len(OPENINGS))


def styles(y: Any) -> Tensor:
    """Styles of responses, int64 [B, K]."""
    return torch.tensor([[style(text) for text in row] for row in y.show()])


def shares(texts: Sequence[Sequence[str]]) -> list[float]:
    """How often each style was written, and none; adds up to 1."""
    found = [style(text) for row in texts for text in row]
    return [found.count(i) / len(found) for i in range(len(OPENINGS) + 1)]


def table(win: float) -> Tensor:
    """P(style i beats style j) float64 [4, 4]: The over A over It's over The with probability `win`, and all of them over none.

    Three raters who each rank the styles, one in every turn of the circle, make 2/3; a higher `win` needs raters who are themselves
    inconsistent.
    """
    P = torch.full((4, 4), 0.5, dtype=torch.float64)
    P[:3, 3], P[3, :3] = UNSTYLED, 1 - UNSTYLED
    for i in range(3):
        P[i, (i + 1) % 3], P[(i + 1) % 3, i] = win, 1 - win
    return P


class Circular:
    """Prefers by style alone, with the probabilities of a table [S, S]."""

    def __init__(self, win: float) -> None:
        self.table = table(win)

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M]."""
        return self.table[styles(a)[:, :, None], styles(b)[:, None, :]]


class Fitted:
    """A reward model over styles: Bradley-Terry strengths, by maximum likelihood on a judge's answers about a policy's own pairs."""

    def __init__(self, judge: Circular) -> None:
        self.table, self.strength = judge.table, torch.zeros(4, dtype=torch.float64)

    def fit(self, texts: Sequence[Sequence[str]]) -> None:
        """All pairs of these texts, judged; a thousandth of a win for either side keeps styles finite that were not written."""
        law = torch.tensor(shares(texts), dtype=torch.float64)
        count = sum(map(len, texts))
        self.strength = bradley_terry_fit(count**2 * law[:, None] * law[None, :] * self.table + 1e-3)

    def score(self, rows: Rows, y: Any, key: Key) -> Tensor:
        """float64 [B, K], the log-odds scale of the fit."""
        return self.strength[styles(y)]

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M] as Bradley-Terry has it."""
        return (self.score(rows, a, key)[:, :, None] - self.score(rows, b, key)[:, None, :]).sigmoid()


def exploited(law: Sequence[float], win: float) -> float:
    """How much more than every second game the best style wins against a policy of these shares: 0 at the equilibrium of the judge."""
    return float((table(win) @ torch.tensor(law, dtype=torch.float64)).max() - 0.5)


def equilibrium(law: Sequence[float], win: float, beta: float) -> list[float]:
    """Shares of the regularised Nash equilibrium, exactly, where `law` are the reference's."""
    return regularised_nash(table(win), torch.tensor(law, dtype=torch.float64).clamp(min=1e-3).log(), beta).exp().tolist()


def sentences(count: int, wordy: Callable[[str], bool] = lambda text: True) -> list[str]:
    """Real sentences of the three styles in their shares, in a fixed order."""
    texts, _ = movie_reviews()
    pool = [text for part in ("judge", "train") for text in texts_of(texts, part).values() if wordy(text)]
    found = []
    for number, (opening, share) in enumerate(zip(OPENINGS, SHARES, strict=True)):
        fitting = [text for text in pool if text.startswith(opening)]
        draw = Key.of(0).fold("style", number).numpy()
        found += [fitting[i] for i in draw.integers(len(fitting), size=round(share * count))]
    return [found[i] for i in Key.of(0).fold("styles").numpy().permutation(len(found))]
