"""Pairs with scores become pairs with a goal: the same question asked for a good answer and for a worse one.

A pair (x, y_w, y_l) with scores r_w > r_l becomes two rows. Asked for r_w, y_w is preferred; asked for r_l, y_l is: under a
goal g the reward of an answer is -(g - r)^2. Both responses of a row stand behind the same prompt, so the partition
function cancels as in DPO. When the model is used it is asked for the top goal, in the very words that it learnt.

Source  arXiv:2410.08067; the authors' script leaves the answers of its second rows unswapped where a model has no system
        role; here both rows are made by one function
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

from ..types import Key, PreftuneError
from .columns import Record

Place = Literal["system", "prompt"]
Rejected = Literal["random", "worst"]

TEXT = "Give an answer whose overall score, on a scale from 1 (worst) to 10 (best), is {goal}."
TEXTS = {"system": "as a system message", "prompt": "in front of the user's message, for models without a system role"}


def shown(goal: float) -> str:
    """8.0 as 8, 7.5 as it is."""
    return str(int(goal)) if float(goal).is_integer() else repr(float(goal))


def asked(record: Record, goal: float, text: str = TEXT, place: Place = "system") -> Record:
    """The record with the goal in its prompt; an own system message comes first."""
    if "{goal}" not in text:
        raise PreftuneError(f"the goal's text is {text!r}, needed one with {{goal}} in it, where the number goes")
    if place not in TEXTS:
        raise PreftuneError(f"the goal's place is {place!r}, needed one of {', '.join(TEXTS)}")
    words = text.replace("{goal}", shown(goal))
    if place == "system":
        return replace(record, system=words if record.system is None else f"{record.system}\n\n{words}")
    if isinstance(record.prompt, str):
        return replace(record, prompt=f"{words}\n\n{record.prompt}")
    first = next(i for i, turn in enumerate(record.prompt) if turn["role"] == "user")
    turns = [{**turn, "content": f"{words}\n\n{turn['content']}"} if i == first else turn for i, turn in enumerate(record.prompt)]
    return replace(record, prompt=turns)


def row(record: Record, **columns: Any) -> dict[str, Any]:
    """A row for a file: the prompt's columns and these."""
    system = {} if record.system is None else {"system": record.system}
    return {"id": record.id, "prompt": record.prompt, **system, **columns}


def rows_with_goals(
    records: Iterable[Record],
    counts: Counter[str],
    *,
    text: str = TEXT,
    place: Place = "system",
    rejected: Rejected = "random",
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Two rows for every record with scores: chosen, rejected and the goal under which that holds. `counts` says what was left out.

    rejected  of a longer list the best is paired with another response, drawn by the record's id, or with the worst
    """
    if rejected not in ("random", "worst"):
        raise PreftuneError(f"rejected is {rejected!r}, needed random or worst: which response of a list the best is paired with")
    for record in records:
        counts["read"] += 1
        scores = record.scores
        if scores is None or len(scores) < 2:
            counts["no scores"] += 1
            continue
        best = max(range(len(scores)), key=lambda k: scores[k])
        others = [k for k in range(len(scores)) if k != best]
        drawn = int(Key.of(seed).fold("goals", record.id).numpy().integers(len(others)))
        other = others[drawn] if rejected == "random" else min(others, key=lambda k: scores[k])
        if scores[best] == scores[other]:
            counts["tie"] += 1
            continue
        if text == TEXT and (scores[other] < 1 or scores[best] > 10):
            found = f"the scores {shown(scores[best])} and {shown(scores[other])}"
            raise PreftuneError(
                f"{record.where or record.id}: found {found}, needed 1 to 10, as the goal's text says; rescale them, or say it otherwise "
                "with --text '... {goal} ...'"
            )
        weight = {} if record.weight == 1 else {"weight": record.weight}
        for mark, chosen, worse in (("+", best, other), ("-", other, best)):
            one = replace(asked(record, scores[chosen], text, place), id=f"{record.id}{mark}")
            yield row(one, chosen=record.responses[chosen], rejected=record.responses[worse], goal=scores[chosen], **weight)
        counts["pairs"] += 1


def prompts_with_goal(records: Iterable[Record], goal: float, *, text: str = TEXT, place: Place = "system") -> Iterator[dict[str, Any]]:
    """The prompts alone, asked for this goal: what the model is used and measured with."""
    if not math.isfinite(goal) or (text == TEXT and not 1 <= goal <= 10):
        raise PreftuneError(f"the goal is {goal}, needed a number from 1 to 10, as the goal's text says; or say it otherwise with --text")
    for record in records:
        yield row(asked(record, goal, text, place), goal=goal)
