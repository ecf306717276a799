"""What a trained policy did, with an interval for every number.

Pure functions of scored rows and samples; `evaluate` calls them in order and returns what evaluation.json holds:
name -> {"value", "low", "high"}, where null stands for a number that the data cannot give.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import processes
from .numerics import sigmoid
from .types import Judge, Key, Loss, Policy, PreftuneError, Rows, Scored

Statistic = Callable[[np.ndarray], np.ndarray]  # row weights [R, B] -> [R]: the statistic of R weighted data sets at once
Evaluation = dict[str, dict[str, float | None]]

PLAIN_DECODING = {"temperature": (None, 1), "top_k": (None, 0), "top_p": (None, 1), "min_p": (None, 0)}


# --- pairs ----------------------------------------------------------------------------------------------------------


def preference_metrics(s: Scored, beta: float = 0.1) -> dict[str, Tensor]:
    """What policy and reference say about each pair; column 0 is the chosen response, or `prefer` says how often it is.

    accuracy_raw        [B] does log pi itself order the pair as labelled? 1 yes, 0 no, 1/2 a tie
    accuracy_per_token  [B] the same for the mean log-probability of a token, where lengths are known
    accuracy            [B] the same for the implicit reward beta (log pi - log pi_ref): 1/2 everywhere at the reference
    margin              [B] implicit reward of column 0 minus column 1; reward_chosen, reward_rejected [B] are its two terms
    logp_chosen, logp_rejected  [B] log pi - log pi_ref of the two columns, nats per response: how far likelihood drifted
    probability, label  [B] sigmoid(margin) and P(column 0 wins) by the label: what calibration compares
    length_chosen, length_rejected  [B] tokens

    Rows labelled exactly one half have no right order: their accuracies are NaN. So is a row with one response only.
    The names that need a reference are absent without one.
    Not     the accuracy printed while training, which counts a tie as an error
    """
    if s.logp.shape[1] < 2:
        raise PreftuneError(
            f"preference metrics compare two responses of a prompt, but these rows have {s.logp.shape[1]}; "
            "evaluate on pairs, or leave the held-out rows away and evaluate on samples with a judge"
        )
    if not s.rows.ranked and s.rows.prefer is None:
        raise PreftuneError("these rows say neither `ranked` nor `prefer`, so no column is the better one; evaluate on labelled pairs")
    logp = s.logp.detach()[:, :2].double()
    label = torch.ones_like(logp[:, 0]) if s.rows.prefer is None else s.rows.prefer.to(logp)
    right = torch.sign(label - 0.5)

    def agreement(gap: Tensor) -> Tensor:
        return torch.where(right == 0, torch.nan, 0.5 + 0.5 * torch.sign(gap) * right)

    out = {"accuracy_raw": agreement(logp[:, 0] - logp[:, 1])}
    if s.length is not None:
        length = s.length[:, :2].to(logp)
        per_token = logp / length
        out |= {"accuracy_per_token": agreement(per_token[:, 0] - per_token[:, 1])}
        out |= {"length_chosen": length[:, 0], "length_rejected": length[:, 1]}
    if s.ref_logp is not None:
        drift = logp - s.ref_logp.detach()[:, :2].double()
        margin = beta * (drift[:, 0] - drift[:, 1])
        out |= {"accuracy": agreement(margin), "margin": margin}
        out |= {"reward_chosen": beta * drift[:, 0], "reward_rejected": beta * drift[:, 1]}
        out |= {"logp_chosen": drift[:, 0], "logp_rejected": drift[:, 1]}
        out |= {"probability": sigmoid(margin), "label": label}
    if s.rows.present is not None:
        both = s.rows.present[:, :2].all(1).to(logp.device)
        out = {name: torch.where(both, value, torch.nan) for name, value in out.items()}
    return out


# --- samples --------------------------------------------------------------------------------------------------------


def kl_estimate(logp: Tensor, ref_logp: Tensor) -> dict[str, Tensor]:
    """Two unbiased estimates of KL(pi || pi_ref) from each sample y ~ pi, in nats per response; average them.

    kl     log r,               r = pi(y|x) / pi_ref(y|x)     a single value may be negative
    kl_k3  log r + 1 / r - 1                                  never negative; less variance while the two are close

    Reads   log-probabilities of samples drawn from pi itself, with no temperature and no truncation of the law
    Limits  both 0 where the policies agree; far apart kl_k3 is ruled by rare samples with small r, and kl is the better one
    Source  J. Schulman, "Approximating KL divergence", 2020: k1 and k3
    """
    logratio = logp.double() - ref_logp.double()
    return {"kl": logratio, "kl_k3": logratio + torch.expm1(-logratio)}


def win_rate(judge: Judge, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
    """P(a response of `a` beats one of `b`) [B], mean over all pairs of their columns and over both orders.

    Each pair counts (prefer(a, b) + 1 - prefer(b, a)) / 2, which takes out a liking for whatever stands first. A pair
    that the judge leaves open in either order is left out; a row without any answer is NaN. Columns that enumerate a law
    count with their probability.
    """
    first = judge.prefer(rows, a, b, key.fold("first")).double()
    second = judge.prefer(rows, b, a, key.fold("second")).double().transpose(1, 2)
    both = (first + 1 - second) / 2  # [B, K, M]
    weight = torch.ones_like(both)
    if a.law is not None:
        weight = weight * a.law[:, :, None]
    if b.law is not None:
        weight = weight * b.law[:, None, :]
    return _mean(both.flatten(1), weight.flatten(1))


def _mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """The weighted mean of each row of x [B, N] -> [B]; NaN is no value, and a row without values is NaN."""
    if weight is None:
        return x.nanmean(1)
    return (weight * x).nansum(1) / (weight * ~x.isnan()).sum(1)


@dataclass(frozen=True)
class Drawn:
    """Samples of one policy and the judge's opinion of them."""

    rows: Rows  #                    rows.response [B, n]
    score: Tensor | None = None  #   [B, n] on the judge's scale; None where the judge only compares
    plain: bool = True  #            drawn from the policy's own law, so that they may estimate its KL


@torch.no_grad()
def draw(
    policy: Policy, rows: Rows, n: int = 1, key: Key | None = None, *, judge: Judge | None = None, decoding: Mapping[str, Any] | None = None
) -> Drawn:
    """n responses to each prompt of `rows`, scored by the judge where it has a scale."""
    key = key or Key.of(0)
    decoding = dict(decoding or {})
    response = policy.sample(rows, n, key.fold("sample"), **decoding)
    asked = Rows(id=rows.id, prompt=rows.prompt, response=response)
    score = judge.score(asked, response, key.fold("score")).double() if judge is not None and hasattr(judge, "score") else None
    return Drawn(asked, score, plain=all(decoding.get(name) in neutral for name, neutral in PLAIN_DECODING.items()))


def sample_lines(prompts: Sequence[str], before: Drawn, after: Drawn) -> list[dict[str, Any]]:
    """The lines of samples.jsonl: readable prompts with the samples drawn before and after, column by column."""

    def score(drawn: Drawn, i: int, k: int) -> float | None:
        return None if drawn.score is None or drawn.score[i, k].isnan() else float(drawn.score[i, k])

    texts = zip(prompts, before.rows.response.show(), after.rows.response.show(), strict=True)
    return [
        {"prompt": prompt, "before": old[k], "after": new[k], "judge_before": score(before, i, k), "judge_after": score(after, i, k)}
        for i, (prompt, old, new) in enumerate(texts)
        for k in range(min(len(old), len(new)))
    ]


# --- statistics and their intervals ---------------------------------------------------------------------------------


def mean_of(values: Tensor | np.ndarray | Sequence[float]) -> Statistic:
    """The mean of values [B]; NaN is no value and is left out."""
    x = _array(values)
    known = (~np.isnan(x)).astype(float)
    filled = np.where(np.isnan(x), 0.0, x)
    return lambda weight: (weight @ filled) / (weight @ known)


def deviation_of(values: Tensor | np.ndarray | Sequence[float]) -> Statistic:
    """The standard deviation of values [B] (divided by the number of rows); NaN is left out."""
    x = _array(values)
    centred = x - np.nanmean(x)
    first, second = mean_of(centred), mean_of(centred**2)
    return lambda weight: np.sqrt(np.maximum(second(weight) - first(weight) ** 2, 0.0))


def calibration_error_of(
    probability: Tensor | np.ndarray | Sequence[float], label: Tensor | np.ndarray | Sequence[float], bins: int = 10
) -> Statistic:
    """Expected calibration error: how far confidence and the share of right answers lie apart, averaged over `bins`.

    error = sum_bins |sum of (confidence - right) in the bin| / B,   confidence = max(p, 1 - p),   right = P(the favoured column wins)

    The order of a pair is arbitrary, so the bins are those of the confidence, equally wide on [1/2, 1]: in files column 0
    always wins, and against that label every probability below 1 would look like an error.
    Limits  0 for a calibrated predictor and infinitely many rows; noise within the bins makes it positive on few rows
    Source  Naeini et al., AAAI 2015; Guo et al., arXiv:1706.04599, eq. 3
    """
    p, y = _array(probability), _array(label)
    known = ~(np.isnan(p) | np.isnan(y))
    confidence = np.where(known, np.maximum(p, 1 - p), 0.5)
    right = np.where(p == 0.5, 0.5, np.where(p > 0.5, y, 1 - y))
    excess = np.where(known, confidence - right, 0.0)
    bin_of = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    excess_in_bin = excess[:, None] * (bin_of[:, None] == np.arange(bins))  # [B, bins]
    return lambda weight: np.abs(weight @ excess_in_bin).sum(1) / (weight @ known.astype(float))


def brier_of(probability: Tensor | np.ndarray | Sequence[float], label: Tensor | np.ndarray | Sequence[float]) -> Statistic:
    """Mean squared error of the predicted probability against the label (hard or soft); 1/4 at p = 1/2 and hard labels."""
    return mean_of((_array(probability) - _array(label)) ** 2)


class Interval(NamedTuple):
    """A statistic of the data and the percentile bootstrap interval around it."""

    value: float
    low: float
    high: float


def bootstrap(
    values: Tensor | np.ndarray | Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of values [B] with its percentile bootstrap interval; see `intervals` for clusters and other statistics."""
    return intervals({"mean": mean_of(values)}, len(values), clusters, n=n, seed=seed, level=level)["mean"]


def intervals(
    statistics: Mapping[str, Statistic],
    rows: int,
    clusters: Sequence[Hashable] | None = None,
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile bootstrap of several statistics of the same `rows` rows, on the same n resamples.

    clusters [B] names what was sampled together (the prompt, the text): whole clusters are drawn with replacement. A row
    that belongs to several, as a pair does to its two texts, gives a frozenset; its weight is then the product of their
    counts (the pigeonhole bootstrap, which errs to the wide side; A. B. Owen, arXiv:0712.1111).
    Fewer than two clusters give no interval: low and high are NaN.
    """
    if rows < 1:
        raise PreftuneError("no row to take an interval of; give at least one held-out row")
    if clusters is not None and len(clusters) != rows:
        raise PreftuneError(f"{len(clusters)} cluster names for {rows} rows; give one name for each row")
    membership, groups = _membership(range(rows) if clusters is None else clusters)
    generator = Key.of(seed).numpy()
    chunk = max(1, 4_000_000 // max(groups, membership.size))
    draws: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    with np.errstate(divide="ignore", invalid="ignore"):
        value = {name: float(statistic(np.ones((1, rows)))[0]) for name, statistic in statistics.items()}
        for start in range(0, n if groups > 1 else 0, chunk):
            size = min(chunk, n - start)
            picked = generator.integers(groups, size=(size, groups)) + np.arange(size)[:, None] * (groups + 1)
            counts = np.bincount(picked.ravel(), minlength=size * (groups + 1)).reshape(size, groups + 1).astype(float)
            counts[:, groups] = 1.0  # what `membership` is padded with
            weight = counts[:, membership].prod(2)  # [R, B]
            for name, statistic in statistics.items():
                draws[name].append(statistic(weight))
    tails = [(1 - level) / 2, (1 + level) / 2]

    def interval(name: str) -> Interval:
        drawn = np.concatenate([np.empty(0), *draws[name]])
        finite = drawn[np.isfinite(drawn)]
        low, high = np.quantile(finite, tails) if finite.size else (np.nan, np.nan)
        return Interval(value[name], float(low), float(high))

    return {name: interval(name) for name in statistics}


def _membership(clusters: Iterable[Hashable]) -> tuple[np.ndarray, int]:
    """The numbers of each row's clusters [B, J], padded with the number of clusters, and that number."""
    members = [sorted(map(repr, c)) if isinstance(c, frozenset) else [repr(c)] for c in clusters]
    number = {name: i for i, name in enumerate(dict.fromkeys(itertools.chain.from_iterable(members)))}
    width = max(map(len, members))
    padded = [[number[name] for name in row] + [len(number)] * (width - len(row)) for row in members]
    return np.array(padded, dtype=int), len(number)


def _array(values: Tensor | np.ndarray | Sequence[float]) -> np.ndarray:
    return values.detach().double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)


def ready(found: Mapping[str, Interval]) -> Evaluation:
    """JSON knows no NaN: null stands for what could not be computed."""

    def plain(x: float) -> float | None:
        return x if np.isfinite(x) else None

    return {name: {"value": plain(i.value), "low": plain(i.low), "high": plain(i.high)} for name, i in found.items()}


# --- the whole evaluation -------------------------------------------------------------------------------------------


@torch.no_grad()
def held_out(
    policy: Policy,
    reference: Policy | None,
    rows: Rows | Iterable[Rows],
    *,
    beta: float = 0.1,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Means of `preference_metrics` over labelled pairs, Brier score and calibration error, each with an interval.

    clusters: one name for each row of all batches; without it the pairs of one prompt are a cluster. Where all rows share
    one prompt, it is a condition of the experiment and not a sample, and each row stands for itself.
    """
    parts: list[dict[str, Tensor]] = []
    prompts: list[str] = []
    for batch in [rows] if isinstance(rows, Rows) else rows:
        scored = processes.score(policy, batch)
        if reference is not None:
            ref_logp = processes.score(reference, batch).logp
            scored = Scored(rows=batch, logp=scored.logp, ref_logp=ref_logp, length=scored.length)
        parts.append(preference_metrics(scored, beta))
        prompts.extend(map(repr, batch.prompt))
    if not parts:
        raise PreftuneError("no held-out rows to evaluate on; give at least one batch of labelled pairs")
    values = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
    if clusters is None and len(set(prompts)) > 1:
        clusters = prompts
    statistics = {name: mean_of(value) for name, value in values.items() if name not in ("probability", "label")}
    if "probability" in values:
        statistics["brier"] = brier_of(values["probability"], values["label"])
        statistics["calibration_error"] = calibration_error_of(values["probability"], values["label"])
    return ready(intervals(statistics, len(prompts), clusters, n=resamples, seed=seed))


def judged(parts: Sequence[tuple[Rows, Loss]], *, resamples: int = 2000, seed: int = 0) -> Evaluation:
    """Means of what an objective of judges said about held-out rows: its loss and metrics; where they hold a probability that column 0
    wins, its Brier score and calibration error. The rows of one prompt are a cluster, unless all rows have the same.

    A pair that is labelled one half has no right order: it has no accuracy.
    """
    names = [*parts[0][1].metrics]
    values = {name: torch.cat([loss.metrics[name].double().cpu() for _, loss in parts]) for name in names}
    row = torch.cat([loss.row.double().cpu() for _, loss in parts])
    count = torch.cat([torch.ones_like(loss.row).double().cpu() if loss.count is None else loss.count.double().cpu() for _, loss in parts])
    total, each = mean_of(row), mean_of(count)
    statistics: dict[str, Statistic] = {"loss": lambda weight: total(weight) / each(weight)}
    if "probability" in values:
        labels = [torch.ones(len(rows)) if rows.prefer is None else rows.prefer.cpu() for rows, _ in parts]
        label = torch.cat([one.double() for one in labels])
        values["accuracy"] = torch.where(label == 0.5, torch.nan, values["accuracy"])
        statistics["brier"] = brier_of(values["probability"], label)
        statistics["calibration_error"] = calibration_error_of(values["probability"], label)
    statistics |= {name: mean_of(value) for name, value in values.items() if name != "probability"}
    prompts = [repr(prompt) for rows, _ in parts for prompt in rows.prompt]
    return ready(intervals(statistics, len(row), prompts if len(set(prompts)) > 1 else None, n=resamples, seed=seed))


@torch.no_grad()
def on_samples(
    policy: Policy,
    drawn: Drawn,
    *,
    reference: Policy | None = None,
    against: Drawn | None = None,
    judge: Judge | None = None,
    key: Key | None = None,
    chunk: int = 16,
    resamples: int = 2000,
) -> Evaluation:
    """What a policy's own samples say; the prompt is the unit of the intervals.

    length          mean tokens of a sample
    judge, judge_sd mean and standard deviation of the judge's score over prompts (each the mean of its n samples)
    winrate         P(a sample beats one of `against`) by the judge, both orders
    kl, kl_k3       KL(policy || reference) in nats per response; absent where temperature, top-k or top-p changed the law
    """
    key = key or Key.of(0)
    statistics: dict[str, Statistic] = {}
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(drawn.rows), chunk):
        batch = drawn.rows.take(range(start, min(start + chunk, len(drawn.rows))))
        part = {"length": batch.response.length.double()}
        if reference is not None and drawn.plain:
            part |= kl_estimate(*(processes.score(one, batch).logp for one in (policy, reference)))
        parts.append({name: _mean(value, batch.response.law).cpu() for name, value in part.items()})
    if parts:
        statistics |= {name: mean_of(torch.cat([part[name] for part in parts])) for name in parts[0]}
    if drawn.score is not None:
        by_prompt = _mean(drawn.score, drawn.rows.response.law)
        statistics |= {"judge": mean_of(by_prompt), "judge_sd": deviation_of(by_prompt)}
    if judge is not None and against is not None:
        statistics["winrate"] = mean_of(win_rate(judge, drawn.rows, drawn.rows.response, against.rows.response, key.fold("winrate")))
    return ready(intervals(statistics, len(drawn.rows), n=resamples, seed=key.seed))


def evaluate(
    policy: Policy,
    reference: Policy | None,
    rows: Rows | Iterable[Rows] | None,
    *,
    beta: float = 0.1,
    judge: Judge | None = None,
    sample_rows: Rows | None = None,
    n: int = 1,
    key: Key | None = None,
    decoding: Mapping[str, Any] | None = None,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 2000,
) -> Evaluation:
    """Held-out pairs (`rows`) and n samples for each prompt of `sample_rows`, judged against the reference's own samples.

    The reference's samples come from another key: a win rate is a statement about independent draws.
    To keep the samples or to draw the reference once for several policies, call `draw`, `held_out` and `on_samples`.
    """
    key = key or Key.of(0)
    if rows is None and sample_rows is None:
        raise PreftuneError("neither held-out rows nor prompts to sample from were given; give one of them")
    if judge is not None and sample_rows is None:
        raise PreftuneError("a judge was given but no prompts to sample from; give sample_rows as well, or no judge")
    found: Evaluation = {}
    if rows is not None:
        found |= held_out(policy, reference, rows, beta=beta, clusters=clusters, resamples=resamples, seed=key.seed)
    if sample_rows is not None:
        drawn = draw(policy, sample_rows, n, key.fold("policy"), judge=judge, decoding=decoding)
        against = None
        if judge is not None and reference is not None:
            against = draw(reference, sample_rows, n, key.fold("reference"), decoding=decoding)
        found |= on_samples(policy, drawn, reference=reference, against=against, judge=judge, key=key, resamples=resamples)
    return found
