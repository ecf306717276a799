"""A judge of English sentences fitted on human ratings: word statistics and a ridge, no neural network.

It is of another family than the language models it judges and is fitted on texts that no pair contains, so it can be
read as an independent witness. It is refitted from the texts in about a second and never saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data.ratings import Texts, Votes, above, movie_reviews, texts_of
from ..types import Key, PreftuneError, Rows
from .words import rated, ridge, slope_of

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["harsh", "kind"]


class RatingsJudge:
    """TF-IDF of words and word pairs, ridge regression on the mean rating; probabilities by a slope fitted to single raters.

    rate    the mean rating expected of each text, float64 [N], whatever the direction
    score   the rating expected from people, -4 to 4, negated where the direction is "harsh"
    prefer  sigmoid(slope * (score of a - score of b)); the slope is fitted on pairs of texts that the ridge has not seen
    """

    def __init__(self, texts: Texts, votes: Votes, *, direction: Direction = "harsh", alpha: float = 1.0, seed: int = 0) -> None:
        import numpy

        if direction not in ("harsh", "kind"):
            raise PreftuneError(f"direction is {direction!r}, needed 'harsh' or 'kind': which end of the ratings is better")
        if len(texts) < 20:
            raise PreftuneError(f"{len(texts)} texts were given, needed at least 20 to fit and to calibrate; pass more texts")
        self.sign = -1.0 if direction == "harsh" else 1.0
        ids = list(texts)
        order = [ids[i] for i in Key.of(seed).fold("ratings judge").numpy().permutation(len(ids))]
        aside, fitted = order[: len(order) // 5], order[len(order) // 5 :]  # the slope needs texts that the ridge has not seen
        self.rate = ridge([texts[i] for i in fitted], [float(numpy.mean(votes[i])) for i in fitted], alpha)
        half = len(aside) // 2
        pairs = list(zip(aside[:half], aside[half : 2 * half], strict=True))
        a, b = (self.rate([texts[pair[side]] for pair in pairs]) for side in (0, 1))
        self.slope = slope_of(a - b, numpy.array([above(votes[i], votes[j]) for i, j in pairs]))

    def score(self, rows: Rows, y: Any, key: Key) -> Tensor:
        """float64 [B, K], higher is better in the judge's direction."""
        return self.sign * rated(self.rate, y)

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M] among people."""
        return (self.slope * (self.score(rows, a, key)[:, :, None] - self.score(rows, b, key)[:, None, :])).sigmoid()


def ratings(direction: Direction = "harsh", archive: str | Path | None = None) -> RatingsJudge:
    """The judge of film review sentences, fitted on the texts set apart for judges (fetched where they are not in the cache)."""
    texts, votes = movie_reviews(archive)
    return RatingsJudge(texts_of(texts, "judge"), votes, direction=direction)
