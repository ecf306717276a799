"""One judge for several processes: each asks about its share of the rows, and all hear every answer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import processes
from ..types import Judge, Rows

ASKED = ("prefer", "winrate", "score")  # about rows; everything else of a judge is the judge's own
INSIDE = ("judge", "judges", "members", "cheap", "dear")  # where judges made of judges keep them


class SharedJudge:
    """Answers as the judge does, whose answers about a row depend on that row alone. It has the questions that the judge has."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        for name in ASKED:
            if hasattr(judge, name):
                setattr(self, name, self.spread(getattr(judge, name)))

    def spread(self, question: Any) -> Any:
        """The same question, asked by row."""

        def ask(rows: Rows, *given: Any) -> Tensor:
            *responses, key = given

            def about(mine: list[int]) -> Tensor | None:
                return question(rows.take(mine), *(y.take(rows=mine) for y in responses), key).cpu() if mine else None

            return processes.by_row([1.0] * len(rows), about)  # type: ignore[no-any-return]

        return ask

    def __getattr__(self, name: str) -> Any:
        return getattr(self.judge, name)


def askers(judge: Any) -> list[Any]:
    """The askers of a judge and of all judges inside it, each once: they count what was asked, known and silent."""
    found, seen, open_ = dict[int, Any](), set[int](), [judge]
    while open_:
        one = open_.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if hasattr(own := getattr(one, "asker", None), "asked"):
            found[id(own)] = own
        for name in INSIDE:
            inner = getattr(one, name, ())
            open_ += inner if isinstance(inner, list | tuple) else [inner]
    return list(found.values())


def calls(judge: Any) -> dict[str, int]:
    """What a judge that counts has done so far in this process: questions asked, known from its store, silent. Empty for others."""
    counting = askers(judge)
    return {name: sum(getattr(one, name) for one in counting) for name in ("asked", "known", "silent")} if counting else {}


def bills(judge: Any) -> dict[str, float]:
    """What judges behind endpoints have cost so far in this process: tokens in and out, and money by the given prices; empty for others."""
    found = [one.answerer.bill for one in askers(judge) if hasattr(one.answerer, "bill")]
    return {name: sum(float(getattr(bill, name)) for bill in found) for name in ("tokens_in", "tokens_out", "money")} if found else {}


def shared(judge: Judge) -> Judge:
    """The judge for all processes; alone the judge itself."""
    return judge if processes.size() == 1 else SharedJudge(judge)  # type: ignore[return-value]
