"""Judges made of judges: both orders, means, votes, agreement, and a dear judge asked where a cheap one is unsure.

All work on any judge, of texts or of tables. Grids of answers are [B, K, M] and NaN is "no answer", as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..types import Judge, Key, PreftuneError, Rows

EXAMPLE = "combine: mean\njudges:\n  - ratings\n  - {judge: 'length,target=200', weight: 0.5}"


class BothOrders:
    """The mean of both orders of presentation: (p(a, b) + 1 - p(b, a)) / 2, NaN where either has no answer. P(a, b) + P(b, a) = 1."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        if hasattr(judge, "score"):
            self.score = judge.score

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M]."""
        first = self.judge.prefer(rows, a, b, key.fold("first")).double()
        second = self.judge.prefer(rows, b, a, key.fold("second")).double()
        return (first + 1 - second.mT) / 2


class Panel:
    """Several judges asked alike, their answers put together by `together`, a function of [J, B, K, M] answers and [J] weights.

    how     the same in words
    scores  the mean of the judges' scores is its score, where all have some: on one scale, which is for the user to see to
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        weights: Sequence[float] | None,
        together: Callable[[Tensor, Tensor], Tensor],
        how: str,
        *,
        scores: bool = False,
    ) -> None:
        self.judges, self.together, self.how = list(judges), together, how
        self.weights = checked(weights if weights is not None else [1.0] * len(self.judges), len(self.judges))
        if scores and all(hasattr(judge, "score") for judge in self.judges):
            self.score = self.scored

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M]; every judge has a key of its own."""
        asked = [judge.prefer(rows, a, b, key.fold(i)).double().cpu() for i, judge in enumerate(self.judges)]
        return self.together(torch.stack(asked), self.weights)

    def scored(self, rows: Rows, y: Any, key: Key) -> Tensor:
        """float64 [B, K]."""
        asked = [judge.score(rows, y, key.fold(i)).double().cpu() for i, judge in enumerate(self.judges)]  # type: ignore[attr-defined]
        return mean_of(torch.stack(asked), self.weights)


class Route:
    """The cheap judge where it is sure, |p - 1/2| > unsure, and the dear one elsewhere, about those pairs alone."""

    def __init__(self, cheap: Judge, dear: Judge, unsure: float) -> None:
        self.cheap, self.dear, self.unsure = cheap, dear, unsure
        self.pairs = self.passed_on = 0  # that were asked about, and of these to the dear judge

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """float64 P(a beats b) [B, K, M]. A pair without the cheap judge's answer goes to the dear one."""
        found = self.cheap.prefer(rows, a, b, key.fold("cheap")).double().cpu().clone()
        open_ = ~((found - 0.5).abs() > self.unsure)
        self.pairs += found.numel()
        self.passed_on += int(open_.sum())
        for k, m in open_.any(0).nonzero().tolist():
            here = open_[:, k, m].nonzero().flatten().tolist()
            mine, theirs = a.take(rows=here, columns=[k]), b.take(rows=here, columns=[m])
            found[here, k, m] = self.dear.prefer(rows.take(here), mine, theirs, key.fold("dear", k, m)).double().cpu()[:, 0, 0]
        return found


def checked(weights: Sequence[float], count: int) -> Tensor:
    """Weights of so many judges, float64 [J] with sum 1."""
    if count < 1:
        raise PreftuneError("a panel was given no judges, needed at least one; name them")
    if len(weights) != count or not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
        raise PreftuneError(
            f"the weights are {list(weights)} for {count} judges, needed one of at least 0 for each and not all 0; correct it"
        )
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)


def mean_of(answers: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean [...] of [J, ...] over the judges that answered; NaN where none did, or only some without weight."""
    shares = weights.reshape(-1, *[1] * (answers.ndim - 1)) * ~answers.isnan()
    total = shares.sum(0)
    return torch.where(total > 0, (shares * answers.nan_to_num()).sum(0) / total, torch.nan)


def votes_of(answers: Tensor, weights: Tensor) -> Tensor:
    """The weighted share [...] of the judges that answered which prefer a; 1/2 counts half."""
    return mean_of(torch.where(answers.isnan(), torch.nan, ((answers - 0.5).sign() + 1) / 2), weights)


def agreed(answers: Tensor, weights: Tensor, least: float) -> Tensor:
    """The mean [...] where judges of a weight of at least `least` are on one side of 1/2; NaN elsewhere. Silence is on no side."""
    shares = weights.reshape(-1, *[1] * (answers.ndim - 1))
    side = torch.maximum((shares * (answers > 0.5)).sum(0), (shares * (answers < 0.5)).sum(0))
    return torch.where(side >= least - 1e-9, mean_of(answers, weights), torch.nan)  # shares are sums of rounded thirds


def both_orders(judge: Judge) -> BothOrders:
    """A judge without a taste for the first place; it costs two questions a pair."""
    return BothOrders(judge)


def mean(judges: Sequence[Judge], weights: Sequence[float] | None = None) -> Panel:
    """The weighted mean of the judges' probabilities, and of their scores where all have some. Who gives no answer is left out."""
    return Panel(judges, weights, mean_of, "mean", scores=True)


def vote(judges: Sequence[Judge], weights: Sequence[float] | None = None) -> Panel:
    """Every judge says which is better; the answer is the weighted share of votes. The majority is where it exceeds 1/2."""
    return Panel(judges, weights, votes_of, "vote")


def agreement(judges: Sequence[Judge], least: float = 1.0, weights: Sequence[float] | None = None) -> Panel:
    """The mean where at least this share of the judges prefers the same one, otherwise no answer (NaN).

    For data and measurements, in which pairs may stay without an answer. Methods that play leave rows with such a pair out of the step,
    and end where these are more than half.
    """
    if not 0.5 < least <= 1:
        raise PreftuneError(f"least is {least}, needed a share of the judges above 0.5 and up to 1; 1 asks for all")
    return Panel(judges, weights, lambda answers, weights: agreed(answers, weights, least), f"agreement {least}")


def route(cheap: Judge, dear: Judge, unsure: float = 0.2) -> Route:
    """Ask the dear judge only where the cheap one's probability is within `unsure` of 1/2."""
    if not 0 <= unsure < 0.5:
        raise PreftuneError(f"unsure is {unsure}, needed 0 <= unsure < 0.5: how far from 1/2 the cheap judge is not trusted; 0.2 is usual")
    return Route(cheap, dear, unsure)


# --- panels in files --------------------------------------------------------------------------------------------------

COMBINATIONS: dict[str, tuple[Callable[..., Judge], int | None, tuple[str, ...]]] = {  # function, how many judges, settings
    "both": (both_orders, 1, ()),
    "mean": (mean, None, ()),
    "vote": (vote, None, ()),
    "agreement": (agreement, None, ("least",)),
    "route": (route, 2, ("unsure",)),
}


def panel(file: str | Path, resolve: Callable[[str], Judge]) -> Judge:
    """The judge that a YAML file describes; `resolve` makes a judge of its name.

    combine   both, mean, vote, agreement, or route (the cheap judge first, then the dear one)
    judges    names with options, {judge: NAME, weight: 0.5}, or further combinations
    least     of agreement; unsure: of route
    """
    if not Path(file).is_file():
        raise PreftuneError(f"there is no file {file}, needed a YAML file that describes judges; check the path")
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PreftuneError(f"{file} cannot be read ({error}), needed a YAML file such as:\n{EXAMPLE}\n; correct it") from None
    return described(found, resolve, str(file))


def described(found: Any, resolve: Callable[[str], Judge], where: str) -> Judge:
    """A judge's name, or a combination."""
    if isinstance(found, str):
        return resolve(found)
    known = f"combine ({', '.join(COMBINATIONS)}) and a list of judges"
    if not isinstance(found, Mapping) or found.get("combine") not in COMBINATIONS or not isinstance(found.get("judges"), list):
        raise PreftuneError(f"{where} holds {str(found)[:80]}, needed {known}, such as:\n{EXAMPLE}\n; correct it")
    name = found["combine"]
    function, count, settings = COMBINATIONS[name]
    given = settings_of(found, settings, f"{where}: {name}")
    judges, weights = members(found["judges"], resolve, where)
    if count is not None and len(judges) != count:
        raise PreftuneError(f"{where}: {name} was given {len(judges)} judges, needed {count}; name as many")
    if count is None:
        return function(judges, weights=weights, **given)
    if any(weight != 1.0 for weight in weights):
        raise PreftuneError(f"{where}: {name} was given weights, needed none, for it weighs no judges; leave them out")
    return function(*judges, **given)


def settings_of(found: Mapping[str, Any], known: Sequence[str], where: str) -> dict[str, float]:
    """The numbers of a combination besides its judges; an unknown name is refused."""
    given = {key: value for key, value in found.items() if key not in ("combine", "judges")}
    for key, value in given.items():
        if key not in known:
            raise PreftuneError(f"{where} was given {key}, needed a setting that it has ({', '.join(known) or 'none'}); remove it")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PreftuneError(f"{where}: {key} is {value!r}, needed a number; correct it")
    return given


def members(listed: Sequence[Any], resolve: Callable[[str], Judge], where: str) -> tuple[list[Judge], list[float]]:
    """The judges of a list and their weights, 1 where none is said."""
    judges, weights = [], []
    for one in listed:
        weighed = one if isinstance(one, Mapping) and "judge" in one else {"judge": one}
        weight = weighed.get("weight", 1.0)
        if weighed.keys() - {"judge", "weight"} or isinstance(weight, bool) or not isinstance(weight, int | float):
            raise PreftuneError(f"{where}: {one} was found in judges, needed judge and a number as weight; correct it")
        judges.append(described(weighed["judge"], resolve, where))
        weights.append(float(weight))
    return judges, weights
