"""Contests without language models: tables of verdicts whose law is known."""

from __future__ import annotations

import numpy as np

from preftune.standings import Verdicts


def verdicts(beats: np.ndarray, length: np.ndarray | None = None, equal: np.ndarray | None = None) -> Verdicts:
    """A table of beats [M, M, B, n] whose models are called a, b, c, ...; all answers are equally long unless said."""
    models = len(beats)
    beats = beats.astype(float)
    beats[np.arange(models), np.arange(models)] = np.nan
    return Verdicts(
        names=tuple("abcdefghijkl"[:models]),
        beats=beats,
        equal=np.zeros(beats.shape, bool) if equal is None else equal,
        length=np.ones((models, *beats.shape[2:])) if length is None else length.astype(float),
    )


def same_in_both_orders(wins: np.ndarray) -> np.ndarray:
    """beats [M, M, B, n] of a judge without order bias, from its wins above the diagonal."""
    models = len(wins)
    upper = np.triu(np.ones((models, models), bool), 1)[:, :, None, None]
    return np.where(upper, wins, 1 - wins.swapaxes(0, 1))


def bradley_terry_contest(strengths: np.ndarray, prompts: int, answers: int, rng: np.random.Generator, alike: float = 0.5) -> Verdicts:
    """The judge prefers the better answer for sure; qualities are strengths plus Gumbel noise, so that P(i beats j) = sigmoid(v_i - v_j).

    An answer is as good as the first to its prompt with probability `alike`: verdicts of one prompt depend on each other, and those
    on one answer do too.
    """
    quality = strengths[:, None, None] + rng.gumbel(size=(len(strengths), prompts, answers))
    quality = np.where(rng.random(quality.shape) < alike, quality[:, :, :1], quality)
    return verdicts(same_in_both_orders((quality[:, None] > quality[None]).astype(float)))


def circular_contest(models: int, edge: float, prompts: int, answers: int, rng: np.random.Generator, alike: float = 0.5) -> Verdicts:
    """Each of the first three models beats the next with probability `edge` and the third the first; all else are coin flips."""
    P = np.full((models, models), 0.5)
    P[0, 1] = P[1, 2] = edge
    P[0, 2] = 1 - edge
    uniform = rng.random((models, models, prompts, answers))
    uniform = np.where(rng.random(uniform.shape) < alike, uniform[..., :1], uniform)
    return verdicts(same_in_both_orders((uniform < P[:, :, None, None]).astype(float)))
