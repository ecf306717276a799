"""How good a judge is on labelled responses: right, calibrated, fair to both places and to short answers, and transitive.

`measure` asks a judge about held-out records and returns a `JudgeTest`. Every two responses of a record are asked about in both orders;
P(i beats j) is then (p_ij + 1 - p_ji) / 2, where p_ij is the answer with i shown first.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .collect.label import preferences
from .collect.reward import has_scores
from .data.columns import Record
from .evaluation import Evaluation, Statistic, calibration_error_of, intervals, mean_of, ready
from .exact.games import bradley_terry
from .exact.voting import bradley_terry_fit, circles
from .judges.shared import calls
from .policies.text.characters import Characters
from .policies.text.tokens import encode
from .types import Judge, Key, PreftuneError, Rows

Numbers = NDArray[np.float64]

BATCH = 64  #       records of one call to the judge
DRAWN = 5  #        responses of a list that is drawn to look for circles
BINS = 10  #        of calibration, and of differences
DRAWS = 1000  #     of each test
PRIOR = 0.1  #      wins added to both sides of a pair: two comparisons of a pair may leave strengths infinite
ROUNDING = 1e-9  #  differences of probabilities below this are none

SECTIONS: dict[str, tuple[str, ...]] = {  # of RewardBench, arXiv:2403.13787: its subsets, named as in its data
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
KNOWN = frozenset(name for names in SECTIONS.values() for name in names)
SECOND = ("Factuality", "Focus", "Math", "Precise IF", "Safety", "Ties")  # subsets of RewardBench 2, arXiv:2506.01937
COUNTS_AS = {"math-prm": 984 / 447}  # its 447 rows weigh as much as the 984 of code


@dataclass(frozen=True)
class Group:
    """Pairs that belong together: of one subset, or of one tenth by difference."""

    name: str
    pairs: int  #                        answered, with a right order
    accuracy: dict[str, float | None]
    longer: dict[str, float | None]  #   accuracy of taking the longer response


@dataclass(frozen=True)
class Bin:
    """Pairs whose favourite the judge gave a chance within the same part of [1/2, 1]."""

    low: float
    high: float
    pairs: int
    confidence: float | None  # the mean chance that the judge gave
    right: float | None  #      how often the favourite won by the labels


@dataclass(frozen=True)
class Transitivity:
    """Circles in lists of three and more responses; `circle_test` and `additive_test` say what the p-values are of."""

    lists: int
    triples: int  #                    without a tie, by the mean of both orders
    circles: int  #                    of them
    share: dict[str, float | None]  #  circles over triples; coin flips make 1/4
    verdicts: int  #                   circles where both orders count as a verdict each, and a pair that they split is a tie
    expected: float  #                 how many of these strengths and independent verdicts make on average
    p_circles: float  #                how often they make as many
    unexplained: float | None  #       share of the squared log-odds that no strengths explain; None where the judge is sure of an answer
    noise: float | None  #             the same of what differs between the two orders
    p_additive: float | None  #        how often noise alone leaves as much unexplained


@dataclass(frozen=True)
class JudgeTest:
    """What was measured. Numbers with an interval are {"value", "low", "high"}; None where the data cannot give one."""

    rows: int
    pairs: int  #                       labelled pairs of responses, those without an answer included
    measures: Evaluation
    subsets: list[Group]
    sections: Evaluation  #             of RewardBench or of RewardBench 2, where the subsets are theirs
    deciles: list[Group]  #             by the size of the judge's difference, the smallest first
    bins: list[Bin]
    transitivity: Transitivity | None  # None without lists of three
    asked: int  #                       answers that were needed: of all pairs, in both orders
    silent: int  #                      of them without an answer
    seconds: float
    calls: dict[str, int] = field(default_factory=dict)  # of a judge that counts: asked now, known before, silent
    notes: list[str] = field(default_factory=list)


# --- labels and answers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """A record and what the judge said of its K responses."""

    record: Record
    beats: Numbers  #        [K, K] P(i beats j), i shown first; NaN: silent, and on the diagonal
    score: Numbers | None  # [K] on the judge's scale, where it has one

    @property
    def fair(self) -> Numbers:
        """P(i beats j) [K, K] from both orders; NaN where either is silent."""
        return (self.beats + 1 - self.beats.T) / 2

    @property
    def value(self) -> Numbers:
        """The judge's score [K], without scores the mean of its preferences over the others."""
        return np.nanmean(self.fair, 1) if self.score is None else self.score

    @property
    def complete(self) -> bool:
        """Whether every question has an answer."""
        return int(np.isnan(self.beats).sum()) == len(self.beats)

    @property
    def lengths(self) -> Numbers:
        """Characters [K]."""
        return np.array([len(text) for text in self.record.responses], dtype=float)


def truth(record: Record) -> Numbers:
    """P(i beats j) [K, K] by the labels: prefer, scores, the order, or desirable before undesirable. NaN: they say nothing."""
    k = len(record.responses)
    if record.prefer is not None and k == 2:
        said = np.array([[np.nan, record.prefer], [1 - record.prefer, np.nan]])
    elif record.scores is not None:
        said = _ahead(np.asarray(record.scores, dtype=float))
    elif record.ranked:
        said = _ahead(-np.arange(k, dtype=float))
    elif record.desirable is not None:
        said = _ahead(np.asarray(record.desirable, dtype=float))
    else:
        said = np.full((k, k), np.nan)
    np.fill_diagonal(said, np.nan)
    return said


def _ahead(value: Numbers) -> Numbers:
    return 0.5 + 0.5 * np.sign(value[:, None] - value)


def squares(judge: Judge, rows: Rows, y: Any, key: Key) -> Tensor:
    """P(column i beats column j) [B, K, K], i shown first. A judge that only compares is not asked to compare a response with itself."""
    k = y.shape[1]
    if has_scores(judge):
        return preferences(judge, rows, y, y, key).double().cpu()
    beats = torch.full((len(rows), k, k), torch.nan, dtype=torch.float64)
    for i in range(k):
        others = [j for j in range(k) if j != i]
        asked = preferences(judge, rows, y.take(columns=[i]), y.take(columns=others), key.fold(i))
        beats[:, i, others] = asked[:, 0].double().cpu()
    return beats


def ask(judge: Judge, records: Sequence[Record], key: Key) -> list[Answered]:
    """Every two responses of every record in both orders; records with equally many responses together."""
    sizes = sorted({len(record.responses) for record in records})
    same = [[n for n, record in enumerate(records) if len(record.responses) == k] for k in sizes]
    batches = [some[at : at + BATCH] for some in same for at in range(0, len(some), BATCH)]
    found: dict[int, Answered] = {}
    for batch in batches:
        rows, _ = encode([records[n] for n in batch], Characters())
        beats = squares(judge, rows, rows.response, key.fold("prefer"))
        wrong = (beats < 0) | (beats > 1)
        if wrong.any():
            raise PreftuneError(
                f"the judge {type(judge).__name__} gave {float(beats[wrong][0]):.4g}, needed probabilities from 0 to 1, NaN for no answer; "
                "correct its `prefer`"
            )
        score = judge.score(rows, rows.response, key.fold("score")).double().cpu().numpy() if has_scores(judge) else None  # type: ignore[attr-defined]
        for b, n in enumerate(batch):
            square = beats[b].numpy().copy()
            np.fill_diagonal(square, np.nan)
            found[n] = Answered(records[n], square, None if score is None else score[b])
    return [found[n] for n in range(len(records))]


@dataclass(frozen=True)
class Pairs:
    """Two responses of a record with a label, N of them."""

    row: NDArray[np.int64]  # [N] the record
    label: Numbers  #         [N] P(the first wins)
    first: Numbers  #         [N] the judge's P(the first wins), the first shown first
    second: Numbers  #        [N] the judge's P(the second wins), the second shown first
    longer: Numbers  #        [N] characters of the first less those of the second
    gap: Numbers  #           [N] how far the judge has them apart: |difference of scores|, without scores |P - 1/2|

    @property
    def p(self) -> Numbers:
        """P(the first wins) from both orders [N]; NaN where either is silent."""
        return (self.first + 1 - self.second) / 2

    @property
    def right(self) -> Numbers:
        """Which of the two is right by the label [N]: 1 the first, -1 the second, 0 neither or no answer."""
        return np.where(np.isnan(self.p), 0.0, _sign(self.label - 0.5))

    @property
    def base(self) -> Numbers:
        """What a pair counts [N]: those of one record count 1 together."""
        return 1 / np.bincount(self.row)[self.row]


def _sign(x: Numbers) -> Numbers:
    return np.sign(_chopped(x))


def _chopped(x: Numbers) -> Numbers:
    """Rounding is nothing."""
    return np.where(np.abs(x) < ROUNDING, 0.0, x)


def pairs_of(answers: Sequence[Answered]) -> Pairs:
    """All labelled pairs, as (i, j) with i before j in the record."""
    found: list[tuple[float, ...]] = []
    for n, answered in enumerate(answers):
        label, beats, fair, length = truth(answered.record), answered.beats, answered.fair, answered.lengths
        apart = np.abs(fair - 0.5) if answered.score is None else np.abs(answered.score[:, None] - answered.score)
        for i, j in zip(*np.triu_indices(len(length), 1)):
            if not np.isnan(label[i, j]):
                found.append((n, label[i, j], beats[i, j], beats[j, i], length[i] - length[j], apart[i, j]))
    if not found:
        raise PreftuneError(
            f"none of {len(answers)} rows says which response is better, needed labelled pairs or lists; "
            "give chosen and rejected, prefer, scores, ranks or desirable"
        )
    row, *columns = np.array(found).T
    return Pairs(row.astype(np.int64), *columns)


def agreement(verdict: Numbers, right: Numbers) -> Numbers:
    """1 where the signs of verdict and right agree, 0 where they differ, 1/2 where the verdict is a tie; NaN where nothing is right [N]."""
    return np.where(right == 0, np.nan, 0.5 + 0.5 * _sign(verdict) * right)


def best_found(answered: Answered) -> float:
    """1 / (how many share the judge's highest value) where the one best response of a list is among them, otherwise 0.

    NaN for pairs, for lists without one best response, and where an answer is missing. Four responses and a judge who holds all alike
    make 1/4.
    """
    label = truth(answered.record)
    k = len(label)
    best = [i for i in range(k) if (np.delete(label[i], i) > 0.5).all()]
    if k < 3 or not best or not answered.complete:
        return np.nan
    value = answered.value
    top = np.abs(value - value.max()) < ROUNDING
    return float(top[best[0]] / top.sum())


def ties_of(answers: Sequence[Answered]) -> Statistic:
    """RewardBench 2's score of prompts with several right answers, "tied:7" by their ids, and of twins with one, "ref:7".

    .3 accuracy(tied) + .3 accuracy(ref) + .2 share(gap of tied > spread) + .2 share(lesser gap > spread)
    + .01 mean tanh(lesser gap / spread - 1)

    gap: the value of the worst right answer less that of the best wrong one, accurate where above 0; spread: that of the best right answer
    less the worst right one, of tied; the lesser gap: of a prompt and its twin. Where both are 0 the tanh counts 0.

    Limits  right answers all alike and above the wrong ones: 1.01; a judge who holds all alike: 0
    Source  arXiv:2506.01937 and its code (rewardbench/utils.py, process_single_model)
    """
    gaps: dict[tuple[str, str], tuple[int, float, float]] = {}
    for n, answered in enumerate(answers):
        kind, _, number = answered.record.id.partition(":")
        right, value = np.array(answered.record.desirable or [], dtype=bool), answered.value
        if kind in ("tied", "ref") and right.any() and not right.all() and answered.complete:
            of = value[right]
            gaps[kind, number] = n, float(_chopped(of.min() - value[~right].max())), float(_chopped(of.max() - of.min()))
    parts = np.full((5, len(answers)), np.nan)
    for (kind, number), (n, gap, spread) in gaps.items():
        parts[0 if kind == "tied" else 1, n] = gap > 0
        if kind == "tied" and ("ref", number) in gaps:
            lesser = min(gap, gaps["ref", number][1])
            ratio = lesser / spread if spread else math.copysign(math.inf, lesser) if lesser else math.nan
            parts[2:, n] = gap > spread, lesser > spread, 0.0 if math.isnan(ratio) else math.tanh(ratio - 1)
    means = [weighed(part, np.ones(len(answers))) for part in parts]
    return lambda weight: sum(share * mean(weight) for share, mean in zip((0.3, 0.3, 0.2, 0.2, 0.01), means, strict=True))  # type: ignore[return-value]


# --- statistics ---------------------------------------------------------------------------------------------------------


def weighed(values: Numbers, base: Numbers) -> Statistic:
    """The mean of values [N], each counted `base` times; NaN is left out."""
    known = np.where(np.isnan(values), 0.0, base)
    filled = np.where(np.isnan(values), 0.0, values) * known
    return lambda weight: (weight @ filled) / (weight @ known)


def cross_entropy(p: Numbers, y: Numbers) -> Numbers:
    """-y log p - (1 - y) log(1 - p) in nats [N]; infinite where the judge is sure of what did not happen. Of y with itself: its entropy."""
    with np.errstate(divide="ignore", invalid="ignore"):
        nats: Numbers = -(np.where(y > 0, y * np.log(p), 0.0) + np.where(y < 1, (1 - y) * np.log1p(-p), 0.0))
    return np.where(np.isnan(p), np.nan, nats)


def length_weight_of(p: Numbers, label: Numbers, longer: Numbers, base: Numbers) -> Statistic:
    """What length adds to the judge's log-odds once the label is known: b of P = sigmoid(a (2 label - 1) + b tanh(d / sd of d)).

    d [N] is the first response's characters less the second's. b > 0: the longer one is liked more than the labels like it. No
    constant, since the order of a pair is arbitrary. The penalty (a^2 + b^2) / 2, as of one row, keeps both finite where they separate.
    Source  the length term of length-controlled AlpacaEval, arXiv:2404.04475, whose d has the other sign
    """
    known = ~np.isnan(p)
    spread = math.sqrt(float((longer[known] ** 2).mean())) if known.any() else 0.0
    d = np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)
    x = np.stack([2 * label - 1, d], 1)
    y, count = np.where(known, p, 0.5), np.where(known, base, 0.0)
    square = np.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], 1)

    def fit(weight: Numbers) -> Numbers:
        w, ab = weight * count, np.zeros((len(weight), 2))
        for _ in range(100):
            chance = 1 / (1 + np.exp(-(ab @ x.T)))
            slope = (w * (y - chance)) @ x - ab
            aa, mixed, bb = ((w * chance * (1 - chance)) @ square).T + np.array([[1.0], [0.0], [1.0]])
            step = np.stack([bb * slope[:, 0] - mixed * slope[:, 1], aa * slope[:, 1] - mixed * slope[:, 0]], 1)
            step /= (aa * bb - mixed**2)[:, None]
            ab = ab + step / (1 + np.abs(step).sum(1, keepdims=True))  # shortened while far away: the likelihood rises from everywhere
            if np.abs(step).max() < 1e-6:
                break
        return np.where((w.sum(1) > 0) & (spread > 0), ab[:, 1], np.nan)

    return fit


def statistics_of(pairs: Pairs) -> dict[str, Statistic]:
    """The measures of labelled pairs, by name."""
    p, y, right, base = pairs.p, pairs.label, pairs.right, pairs.base
    verdict, longer = agreement(p - 0.5, right), _sign(pairs.longer)
    answered = np.where(np.isnan(p), np.nan, y)
    alike = _sign(pairs.first - 0.5) == _sign(0.5 - pairs.second)
    return {
        "accuracy": weighed(verdict, base),
        "length_baseline": weighed(agreement(longer, right), base),
        "accuracy_longer_right": weighed(np.where(longer * right > 0, verdict, np.nan), base),
        "accuracy_shorter_right": weighed(np.where(longer * right < 0, verdict, np.nan), base),
        "length_weight": length_weight_of(p, y, pairs.longer, base),
        "order_bias": weighed(_chopped(pairs.first + pairs.second - 1), base),
        "consistency": weighed(np.where(np.isnan(p), np.nan, alike), base),
        "calibration_error": calibration_error_of(p, y, BINS),
        "brier": weighed((p - y) ** 2, base),
        "log_loss": weighed(cross_entropy(p, y), base),
        "label_entropy": weighed(cross_entropy(answered, answered), base),
    }


def bins_of(pairs: Pairs) -> list[Bin]:
    """The calibration table: favourites by the chance that the judge gave them, in equal parts of [1/2, 1]."""
    p, y = pairs.p[~np.isnan(pairs.p)], pairs.label[~np.isnan(pairs.p)]
    confidence, right = np.maximum(p, 1 - p), np.where(p == 0.5, 0.5, np.where(p > 0.5, y, 1 - y))
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    found = []
    for at in range(BINS):
        here = place == at
        means = [float(values[here].mean()) if here.any() else None for values in (confidence, right)]
        found.append(Bin(0.5 + at / BINS / 2, 0.5 + (at + 1) / BINS / 2, int(here.sum()), *means))
    return found


def tenths(pairs: Pairs) -> dict[str, NDArray[np.bool_]]:
    """Which pairs [N] lie in each tenth by the judge's difference; fewer parts where differences repeat."""
    counted = (pairs.right != 0) & ~np.isnan(pairs.gap)
    if not counted.any():
        return {}
    edges = np.unique(np.quantile(pairs.gap[counted], np.linspace(0, 1, BINS + 1)))
    place = np.clip(np.searchsorted(edges, pairs.gap, side="right") - 1, 0, max(len(edges) - 2, 0))
    ends = [(edges[at], edges[min(at + 1, len(edges) - 1)]) for at in range(max(len(edges) - 1, 1))]
    parts = {f"{at + 1}: {low:.3g} to {high:.3g}": counted & (place == at) for at, (low, high) in enumerate(ends)}
    return {name: here for name, here in parts.items() if here.any()}


# --- circles ------------------------------------------------------------------------------------------------------------


def lists_of(records: Sequence[Record], count: int, key: Key) -> list[Record]:
    """At most `count` lists of `DRAWN` responses to a same prompt, three at least; no response is in two of them."""
    answers: dict[str, tuple[Record, dict[str, None]]] = {}
    for record in records:
        answers.setdefault(repr((record.system, record.prompt)), (record, {}))[1].update(dict.fromkeys(record.responses))
    found = []
    for prompt, (record, texts) in answers.items():
        mixed = [list(texts)[i] for i in key.fold(prompt).numpy().permutation(len(texts))]
        parts = [mixed[at : at + DRAWN] for at in range(0, len(mixed), DRAWN)]
        whole = [part for part in parts if len(part) > 2]
        found += [Record(f"list {record.id} {n}", record.prompt, part, system=record.system) for n, part in enumerate(whole)]
    return [found[i] for i in key.fold("which").numpy().permutation(len(found))[:count]]


def verdict_counts(beats: Tensor) -> Tensor:
    """Wins [L, K, K] of the two verdicts on every pair, from answers [L, K, K] in both orders; a tie is half a win for each."""
    lead = beats - 0.5
    won = 0.5 + 0.5 * torch.sign(torch.where(lead.abs() < ROUNDING, 0.0, lead))
    wins: Tensor = won + 1 - won.mT
    return wins.masked_fill(torch.eye(beats.shape[-1], dtype=torch.bool), 0.0)


def circle_test(wins: Sequence[Tensor], key: Key) -> tuple[int, float, float]:
    """(circles, circles on average, p) where every list has Bradley-Terry strengths and each verdict is drawn by itself.

    wins: lists [L, K, K] of equal K, as of `verdict_counts`. Strengths are fitted list by list, less the spread that estimation adds to
    them over all lists; p = (1 + draws with as many circles) / (1 + draws).

    Limits  a judge without noise who follows a scale makes no circle: p = 1. One whose verdict on a pair depends on that pair alone,
            whoever is shown first, is called intransitive where that makes circles, and is
    Not     sensitive to preferences off a scale that turn no majority: see `additive_test`
    """
    generator = key.numpy()
    seen, drawn = 0.0, np.zeros(DRAWS)
    fitted = [(w, bradley_terry_fit(w + PRIOR * (w + w.mT > 0))) for w in wins]
    variance = sum(float(_variances(w, v).sum()) for w, v in fitted)
    size = sum(float(v.square().sum()) for _, v in fitted)
    kept = math.sqrt(max(0.0, 1 - variance / size)) if size > ROUNDING else 0.0
    for w, v in fitted:
        i, j = np.triu_indices(w.shape[-1], 1)
        chance = bradley_terry(kept * v).numpy()[:, i, j]
        seen += float(circles(w / 2)[0].sum())
        for some in np.array_split(np.arange(DRAWS), max(1, DRAWS * w.numel() // 2**21)):
            again = np.zeros((len(some), *w.shape))
            again[..., i, j] = generator.binomial(2, chance, size=(len(some), *chance.shape))
            again[..., j, i] = 2 - again[..., i, j]
            drawn[some] += circles(torch.from_numpy(again) / 2)[0].sum(-1).numpy()
    return round(seen), float(drawn.mean()), (1 + int((drawn >= seen - ROUNDING).sum())) / (1 + DRAWS)


def _variances(wins: Tensor, v: Tensor) -> Tensor:
    """Of fitted strengths [L, K], from the second derivative of the likelihood."""
    win = bradley_terry(v)
    weight = (wins + wins.mT + 2 * PRIOR * (wins + wins.mT > 0)) * win * win.mT
    return torch.linalg.pinv(torch.diag_embed(weight.sum(-1)) - weight).diagonal(dim1=-2, dim2=-1)


def cyclic(flow: Tensor) -> Tensor:
    """The squares [L] of what strengths leave of skew log-odds [L, K, K], summed over pairs: v_i = the mean of row i fits best."""
    v = flow.mean(-1)
    return (flow - (v[..., :, None] - v[..., None, :])).square().sum((-1, -2)) / 2


def additive_test(beats: Sequence[Tensor], key: Key) -> tuple[float, float, float]:
    """(unexplained, noise, p): is what Bradley-Terry leaves of the judge's log-odds more than the two orders differ among themselves?

    beats: answers [L, K, K] strictly between 0 and 1. With l_ij the log-odds of p_ij, m_ij = (l_ij - l_ji) / 2 is the preference, and
    d_ij = (l_ij + l_ji) / 2 less its mean (a liking for the first place) is noise of the same size. A general preference fits every
    m; strengths v fit m_ij = v_i - v_j. Where they hold, the cyclic parts of m and d are alike in every list, so that exchanging them
    list by list is as likely: p = (1 + exchanges with as large a sum of m's parts less d's) / (1 + draws).

    Limits  exactly additive: unexplained 0 and p = 1; a judge without noise and not additive: the least p that the draws and the number
            of lists (2^-L) allow. Assumes noise that is alike and independent in both orders, on the scale of log-odds
    """
    odds = [torch.logit(b.masked_fill(torch.eye(b.shape[-1], dtype=torch.bool), 0.5)) for b in beats]
    both = [(o + o.mT) / 2 for o in odds]
    bias = sum(float(d.sum()) for d in both) / sum(d.numel() - d.shape[0] * d.shape[1] for d in both)
    apart = [(d - bias).triu(1) - (d - bias).triu(1).mT for d in both]
    skew = [(o - o.mT) / 2 for o in odds]
    of_skew, of_noise = (torch.cat([cyclic(x) for x in parts]).numpy() for parts in (skew, apart))
    whole = sum(float(m.square().sum()) / 2 for m in skew)
    more = of_skew - of_noise
    sides = key.numpy().integers(2, size=(DRAWS, len(more))) * 2 - 1
    p = (1 + int((sides @ more >= more.sum() - ROUNDING * max(1.0, whole)).sum())) / (1 + DRAWS)
    shares = np.array([of_skew.sum(), of_noise.sum()]) / (whole or 1.0)
    unexplained, noise = _chopped(shares).tolist()
    return unexplained, noise, p


def transitivity_of(answers: Sequence[Answered], key: Key, resamples: int, seed: int) -> Transitivity | None:
    """Circles among the lists whose every answer is there; None where there is no such list."""
    full = [answered for answered in answers if len(answered.beats) > 2 and answered.complete]
    if not full:
        return None
    sizes = sorted({len(answered.beats) for answered in full})
    ordered = [answered for k in sizes for answered in full if len(answered.beats) == k]
    beats = [torch.from_numpy(np.stack([a.beats for a in ordered if len(a.beats) == k])).nan_to_num(nan=0.5) for k in sizes]
    counted = [circles((b + 1 - b.mT) / 2) for b in beats]
    turns, triples = (torch.cat([found[part] for found in counted]).numpy() for part in (0, 1))
    clusters = clusters_of([answered.record for answered in ordered])
    share = intervals({"share": lambda w: (w @ turns) / (w @ triples)}, len(ordered), clusters, n=resamples, seed=seed)
    tested = circle_test([verdict_counts(b) for b in beats], key.fold("circles"))
    sure = any(bool(((b <= 0) | (b >= 1)).any()) for b in beats)
    additive = (None, None, None) if sure else additive_test(beats, key.fold("additive"))
    decided, circular = (round(float(number.sum())) for number in (triples, turns))
    return Transitivity(len(full), decided, circular, ready(share)["share"], *tested, *additive)


# --- the test -----------------------------------------------------------------------------------------------------------


def clusters_of(records: Sequence[Record]) -> list[Hashable]:
    """What was sampled together [B]: a prompt. Under one common prompt the texts, where rows share some; otherwise each row."""
    prompts: list[Hashable] = [repr((record.system, record.prompt)) for record in records]
    if len(set(prompts)) > 1:
        return prompts
    repeated = max(Counter(text for record in records for text in set(record.responses)).values()) > 1
    return [frozenset(record.responses) if repeated else n for n, record in enumerate(records)]


def subsets_of(records: Sequence[Record], column: str | None) -> list[str]:
    """The subset of every record [B], from a column of the data; without a name from `subset` where the data have it, [] otherwise."""
    found = [record.meta.get(column or "subset") for record in records]
    if any(value is not None for value in found):
        return ["none" if value is None else str(value) for value in found]
    if column is None:
        return []
    there = sorted({key for record in records for key in record.meta})
    raise PreftuneError(
        f"no row has a column {column!r} beside its labels, needed one that names subsets; the columns are {', '.join(there) or 'none'}"
    )


def measure(
    judge: Judge, records: Sequence[Record], *, subset_column: str | None = None, lists: int = 0, seed: int = 0, resamples: int = 2000
) -> JudgeTest:
    """Ask the judge about every two responses of the records in both orders, and about `lists` lists drawn from responses to a same prompt.

    Intervals are bootstraps over prompts. Pairs of one record count 1 together. A pair with a silent order counts nowhere; pairs that
    the labels hold equal have no accuracy and stay in the calibration.
    Errors  no labelled pair; not one answer; answers that are no probabilities; a column of subsets that no row has
    """
    if lists < 0:
        raise PreftuneError(f"lists is {lists}, needed 0 or more: lists of responses to a same prompt in which circles are looked for")
    usable = [record for record in records if len(record.responses) > 1]
    if not usable:
        raise PreftuneError(f"none of {len(records)} rows has two responses, needed pairs or lists with labels; see docs/data.md")
    key, notes = Key.of(seed).fold("judge test"), []
    if len(usable) < len(records):
        notes.append(f"{len(records) - len(usable)} rows are left out: fewer than two responses")
    subsets, further = subsets_of(usable, subset_column), lists_of(usable, lists, key.fold("lists"))
    if len(further) < lists:
        notes.append(f"{len(further)} of {lists} lists were drawn: there are no more responses to a same prompt")
    before, begun = calls(judge), time.perf_counter()
    answers, more = ask(judge, usable, key), ask(judge, further, key.fold("lists"))
    seconds = time.perf_counter() - begun
    everything = [*answers, *more]
    asked = sum(len(a.beats) * (len(a.beats) - 1) for a in everything)
    silent = sum(int(np.isnan(a.beats).sum()) - len(a.beats) for a in everything)
    pairs = pairs_of(answers)
    if np.isnan(pairs.p).all():
        raise PreftuneError(
            f"the judge gave no answer to {silent} of {asked} questions, needed both orders of one labelled pair at least; "
            "ask it about one pair by hand, and see what it says"
        )
    if silent:
        notes.append(f"{silent} of {asked} answers are missing; a pair without both orders counts nowhere")
    if not (pairs.right != 0).any():
        notes.append("the labels hold all answered pairs equal, so there is no accuracy")
    if np.isinf(cross_entropy(pairs.p, pairs.label)).any():
        notes.append("the log loss is infinite: the judge gave probability 0 to what the labels hold possible")
    clusters = clusters_of(usable)
    if len(set(clusters)) < 2:
        notes.append("there are no intervals: all rows are of one prompt and have the same texts, or there is one row")
    return JudgeTest(
        rows=len(usable),
        pairs=len(pairs.row),
        **_measured(pairs, answers, subsets, clusters, resamples, seed),
        bins=bins_of(pairs),
        transitivity=transitivity_of(everything, key.fold("transitivity"), resamples, seed),
        asked=asked,
        silent=silent,
        seconds=seconds,
        calls={name: number - before[name] for name, number in calls(judge).items()},
        notes=notes,
    )


def _measured(
    pairs: Pairs, answers: Sequence[Answered], subsets: Sequence[str], clusters: Sequence[Hashable], resamples: int, seed: int
) -> dict[str, Any]:
    """Everything that has an interval, from the same resamples."""
    verdict, longer = agreement(pairs.p - 0.5, pairs.right), agreement(pairs.longer, pairs.right)
    of = np.array([subsets[n] for n in pairs.row]) if subsets else np.array([])
    groups = {"subsets": {name: of == name for name in sorted(set(subsets))}, "deciles": tenths(pairs)}
    statistics = statistics_of(pairs)
    for kind, parts in groups.items():
        for name, here in parts.items():
            for what, right in (("accuracy", verdict), ("longer", longer)):
                statistics[f"{kind} {name} {what}"] = weighed(np.where(here, right, np.nan), pairs.base)
    sections = _sections(verdict, of, pairs.base) if subsets and set(subsets) <= KNOWN else {}
    statistics |= {f"section {name}": statistic for name, statistic in sections.items()}
    found = ready(intervals(statistics, len(pairs.row), [clusters[n] for n in pairs.row], n=resamples, seed=seed))
    measures = {name: found[name] for name in statistics_of(pairs)}
    best = np.array([best_found(answered) for answered in answers])
    if not np.isnan(best).all():
        measures |= ready(intervals({"best_of_list": mean_of(best)}, len(best), clusters, n=resamples, seed=seed))
    if subsets and set(subsets) <= set(SECOND):
        twins = [answered.record.id.partition(":")[2] or cluster for answered, cluster in zip(answers, clusters, strict=True)]
        sections = _second(answers, best, np.array(subsets))
        found |= {f"section {name}": value for name, value in ready(intervals(sections, len(best), twins, n=resamples, seed=seed)).items()}
    told = {
        kind: [
            Group(name, int((here & (pairs.right != 0)).sum()), found[f"{kind} {name} accuracy"], found[f"{kind} {name} longer"])
            for name, here in parts.items()
        ]
        for kind, parts in groups.items()
    }
    return {"measures": measures, "sections": {name: found[f"section {name}"] for name in sections}, **told}


def _sections(verdict: Numbers, of: NDArray[Any], base: Numbers) -> dict[str, Statistic]:
    """The sections of RewardBench that have rows here: means weighted by rows; `overall`, their mean, where all four have."""
    counts = base * np.array([COUNTS_AS.get(name, 1.0) for name in of])
    means = {name: weighed(np.where(np.isin(of, names), verdict, np.nan), counts) for name, names in SECTIONS.items()}
    there = {name: mean for name, mean in means.items() if np.isin(of, SECTIONS[name]).any()}
    return _with_overall(there, len(SECTIONS))


def _second(answers: Sequence[Answered], best: Numbers, of: NDArray[Any]) -> dict[str, Statistic]:
    """The subsets of RewardBench 2 that have rows here, by rows: best of four, and `ties_of`; `overall`, their mean, where all have."""
    means = {name: weighed(np.where(of == name, best, np.nan), np.ones(len(best))) for name in SECOND if (of == name).any()}
    if "Ties" in means:
        means["Ties"] = ties_of(answers)
    return _with_overall(means, len(SECOND))


def _with_overall(means: dict[str, Statistic], all_of_them: int) -> dict[str, Statistic]:
    """`overall`, the mean of the sections, beside them where none is missing."""
    if len(means) < all_of_them:
        return means
    return {**means, "overall": lambda weight: np.mean([mean(weight) for mean in means.values()], axis=0)}
