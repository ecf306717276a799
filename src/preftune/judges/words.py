"""Judges of word statistics, fitted in seconds on any data with scores or ranks: no neural network, and no prompt is read.

They are of another family than language models, which makes them witnesses of their own and the mark that a trained judge must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..types import Key, PreftuneError, Rows

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..data.columns import Record

Rate = Callable[[Sequence[str]], "np.ndarray"]  # texts -> float64 [N]
LEAST = 20  # texts or pairs, to fit and to calibrate
ASIDE = 5  #  one in so many is kept for the slope


@dataclass(frozen=True)
class WordsJudge:
    """score: what the words of a response are worth; prefer: sigmoid(slope * (score of a - score of b))."""

    rate: Rate
    slope: float

    def score(self, rows: Rows, y: Any, key: Key) -> Tensor:
        """float64 [B, K], higher is better."""
        return rated(self.rate, y)

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M]."""
        return (self.slope * (rated(self.rate, a)[:, :, None] - rated(self.rate, b)[:, None, :])).sigmoid()


def rated(rate: Rate, y: Any) -> Tensor:
    """float64 [B, K] of what the responses say."""
    import torch

    shown = y.show()
    return torch.as_tensor(rate([text for row in shown for text in row]), dtype=torch.float64).reshape(len(shown), -1)


def ridge(texts: Sequence[str], values: Sequence[float], alpha: float) -> Rate:
    """TF-IDF of words and word pairs, ridge regression on the values [N]."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = Ridge(alpha=alpha, solver="sparse_cg").fit(words.fit_transform(texts), values)
    return lambda texts: model.predict(words.transform(texts))


def bradley_terry(better: Sequence[str], worse: Sequence[str], prefer: np.ndarray, alpha: float) -> Rate:
    """The same features w, with the least sum of -p logsigmoid(d) - (1 - p) logsigmoid(-d) + alpha |w|^2 / 2 over pairs, d = w (x_0 - x_1),
    p = prefer [N]."""
    import numpy
    import scipy.sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit([*better, *worse])
    apart = words.transform(better) - words.transform(worse)
    model = LogisticRegression(C=1 / alpha, fit_intercept=False, max_iter=1000)  # a pair counts p as won and 1 - p as lost
    won, both = numpy.ones(len(prefer)), scipy.sparse.vstack([apart, apart])
    model.fit(both, numpy.concatenate([won, 1 - won]), sample_weight=numpy.concatenate([prefer, 1 - prefer]))
    return lambda texts: words.transform(texts) @ model.coef_[0]


def slope_of(difference: np.ndarray, probability: np.ndarray) -> float:
    """The slope >= 0 for which sigmoid(slope * difference) has the least cross-entropy to the probabilities, both [N]."""
    import numpy
    from scipy.optimize import minimize_scalar

    def loss(slope: float) -> float:
        z = slope * difference
        return float(numpy.mean(numpy.logaddexp(0, z) - probability * z))

    return float(minimize_scalar(loss, bounds=(0, 20), method="bounded").x)


def pairs_of(records: Sequence[Record]) -> tuple[list[str], list[str], np.ndarray]:
    """The first and the last response of ranked records, and P(the first beats the last)."""
    import numpy

    ranked = [record for record in records if record.ranked and len(record.responses) > 1]
    prefer = [1.0 if record.prefer is None else record.prefer for record in ranked]
    return [record.responses[0] for record in ranked], [record.responses[-1] for record in ranked], numpy.array(prefer)


def on_scores(records: Sequence[Record], alpha: float, order: np.ndarray) -> WordsJudge:
    """Ridge on the scores; the slope from comparisons of responses that it has not seen, to one prompt where there are several."""
    import numpy

    aside, used = ([records[i] for i in part] for part in (order[: len(order) // ASIDE], order[len(order) // ASIDE :]))
    graded = lambda some: [(text, score) for r in some for text, score in zip(r.responses, r.scores or (), strict=True)]
    known = graded(used)
    if len({score for _, score in known}) < 2:
        raise PreftuneError("all scores are equal, needed scores that differ, to learn from; look at the data's column")
    rate = ridge([text for text, _ in known], [score for _, score in known], alpha)
    lists = [graded([record]) for record in aside]
    met = [(a, b) for some in lists for i, a in enumerate(some) for b in some[i + 1 :]]
    if not met:  # single responses meet those of other prompts
        alone = graded(aside)
        met = list(zip(alone[: len(alone) // 2], alone[len(alone) // 2 :], strict=False))
    label = numpy.array([0.5 * (1 + numpy.sign(a[1] - b[1])) for a, b in met])
    return WordsJudge(rate, slope_of(rate([a for (a, _), _ in met]) - rate([b for _, (b, _) in met]), label))


def on_pairs(records: Sequence[Record], alpha: float, order: np.ndarray) -> WordsJudge:
    """Bradley-Terry on ranked pairs; the slope from pairs that it has not seen."""
    aside, used = (pairs_of([records[i] for i in part]) for part in (order[: len(order) // ASIDE], order[len(order) // ASIDE :]))
    rate = bradley_terry(*used, alpha)
    return WordsJudge(rate, slope_of(rate(aside[0]) - rate(aside[1]), aside[2]))


def words(data: str, alpha: float = 1.0, seed: int = 0) -> WordsJudge:
    """A judge fitted on a file: on its scores where all rows have some, otherwise on its ranked pairs.

    data   a file, folder or hub id with scores or ranks, as training takes it
    alpha  the weight of |w|^2 against the fit;  seed  which fifth of the rows is kept for the slope
    """
    from ..data import load

    if not alpha > 0:
        raise PreftuneError(f"alpha is {alpha}, needed a number above 0: it keeps rare words small; 1 is usual")
    records = list(load(data))
    scored = all(record.scores is not None and record.responses for record in records)
    usable = records if scored else [record for record in records if record.ranked and len(record.responses) > 1]
    if len(usable) < LEAST:
        raise PreftuneError(
            f"{data} has {len(usable)} rows with scores or ranked responses, needed at least {LEAST} to fit and to calibrate; give more"
        )
    order = Key.of(seed).fold("words").numpy().permutation(len(usable))
    return (on_scores if scored else on_pairs)(usable, alpha, order)
