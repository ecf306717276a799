"""The record, and one converter for each file format that people have.

A converter turns one row (a dict of columns) into a `Record` or says why the row is dropped. What is malformed raises
`PreftuneError` with file, row, column, found, needed; what is well-formed but says nothing (an empty answer, twice the
same answer) is dropped and counted by the caller. To add a format, write one function and one line in FORMATS.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

from ..types import PreftuneError

T = TypeVar("T")
Row = Mapping[str, Any]
Message = dict[str, str]  # {"role": "user" | "assistant" | "tool", "content": text}


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt with K responses and whatever labels came with them: K = 0 prompt only, 1 single, 2 pair, more is a list.

    `prompt` is plain text, or chat messages of which the last comes from the user; a leading system message is in `system`.
    Where `ranked`, responses stand best first; equal `scores` or `prefer` = .5 mark the ties among them.
    """

    id: str  #                              the file's id, or a hash of the content; unique within a data set
    prompt: str | list[Message]
    responses: list[str]  #                 [K]
    ranked: bool = False
    scores: list[float] | None = None  #    [K] higher is better, on the scale of the file
    prefer: float | None = None  #          P(responses[0] beats responses[1]), .5 or more: pairs below are swapped
    desirable: list[bool] | None = None  #  [K]
    weight: float = 1.0  #                  importance; a Dataset hands it out with mean one
    system: str | None = None
    where: str = ""  #                      "file.jsonl, row 17"
    swapped: bool = False  #                the file named the other response first
    order: tuple[int, ...] = ()  #          [K] where the file has each response; () where it has them in this order
    meta: dict[str, Any] = field(default_factory=dict)  # the columns that no converter reads

    @property
    def tied(self) -> bool:
        """The labels single out no response."""
        if self.prefer is not None:
            return self.prefer == 0.5
        return self.scores is not None and len(self.scores) > 1 and min(self.scores) == max(self.scores)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is well-formed and useless, with the reason it is counted under."""

    reason: str


@dataclass(frozen=True)
class Format:
    """One file format: the columns that must be there, how its rows look, and the converter."""

    needs: tuple[str, ...]
    convert: Callable[[Row, str], Record | Dropped]
    reads: tuple[str, ...] = ()  #                          columns read where they are present
    recognise: Callable[[Row], bool] = lambda row: True  #  asked when all of `needs` are there
    example: str = ""


# --- reading cells ----------------------------------------------------------------------------------------------------


def refuse(where: str, column: str, found: Any, needed: str, advice: str) -> NoReturn:
    """Raise the error of a malformed cell."""
    shown = found if isinstance(found, str) else f"{type(found).__name__} {json.dumps(found, default=str)}"
    raise PreftuneError(f"{where}, column {column!r}: found {shown[:120]}, needed {needed}; {advice}")


SURROGATE = re.compile("[\ud800-\udfff]")


def text(value: Any, where: str, column: str) -> str:
    """A cell that holds text."""
    if not isinstance(value, str):
        refuse(where, column, value, "text", "write it as a string")
    if not value.isascii() and SURROGATE.search(value):
        refuse(where, column, "half of a surrogate pair (\\ud800 to \\udfff)", "Unicode text", "remove the broken character")
    return value


def number(value: Any, where: str, column: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A cell that holds a finite number in [low, high]; CSV cells come as text."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(where, column, value if not isinstance(value, str) else repr(value), "a number", "correct the cell or remove the row")
    if isinstance(value, int) and abs(value) > sys.float_info.max:  # JSON has integers of any length
        value = math.inf if value > 0 else -math.inf
    if not math.isfinite(value) or not low <= value <= high:
        bounds = "a finite number" if low == -math.inf else f"a number in [{low:g}, {high:g}]"
        refuse(where, column, repr(value), bounds, "correct the cell or remove the row")
    return float(value)


BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def boolean(value: Any, where: str, column: str) -> bool:
    """A cell that holds true or false; 1 and 0 and their spellings in CSV are taken too."""
    known = BOOLEANS.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if known is None:
        refuse(where, column, value, "true or false (or 1 or 0)", "correct the cell or remove the row")
    return known


def several(value: Any, where: str, column: str, read: Callable[[Any, str, str], T], count: int | None = None) -> list[T]:
    """A cell that holds a list, of `count` items where that is known."""
    if not isinstance(value, list):
        refuse(where, column, value, "a list", "write it as a JSON list")
    if count is not None and len(value) != count:
        refuse(where, column, f"{len(value)} values", f"{count}, one for each response", "make the lists equally long")
    return [read(item, where, column) for item in value]


ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def messages(value: Any, where: str, column: str) -> list[Message]:
    """Chat messages as role and content (or ShareGPT's from and value); content in parts must be text parts."""
    if not isinstance(value, list) or not value or not all(isinstance(item, Mapping) for item in value):
        refuse(where, column, value, 'chat messages [{"role": "user", "content": "..."}, ...]', "write the cell as a list of messages")
    out = []
    for item in value:
        role, content = (item.get("role"), item.get("content")) if "role" in item else (item.get("from"), item.get("value"))
        if isinstance(content, list) and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(role, str) or not isinstance(content, str) or item.get("tool_calls"):
            refuse(where, column, dict(item), 'a message {"role": "user", "content": "..."} of text', "correct the message")
        out.append({"role": ROLES.get(role, role), "content": text(content, where, column)})
    return out


def answer(value: Any, where: str, column: str) -> str:
    """A response: text, or a list with one message of the assistant."""
    if isinstance(value, str):
        return text(value, where, column)
    turns = messages(value, where, column)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        found = f"{len(turns)} messages by {', '.join(turn['role'] for turn in turns)}"
        refuse(where, column, found, "text or one message of the assistant", "move the earlier turns into the prompt")
    return turns[0]["content"]


def question(value: Any, where: str, column: str = "prompt") -> str | list[Message]:
    """A prompt: text or messages."""
    return text(value, where, column) if isinstance(value, str) else messages(value, where, column)


# --- labels -----------------------------------------------------------------------------------------------------------

VOTES = (("votes_chosen", "votes_rejected"), ("votes_a", "votes_b"), ("wins_a", "wins_b"))
PAIR_SCORES = (("score_chosen", "score_rejected"), ("score_a", "score_b"))
WINNERS = {"a": 1.0, "b": 0.0, "tie": 0.5}
PAIR_LABELS = ("prefer", "winrate", "winner", *(name for pair in (*VOTES, *PAIR_SCORES) for name in pair))
LABELLED = frozenset(PAIR_LABELS)


def pair_label(row: Row, where: str) -> float | None | Dropped:
    """P(first beats second) from whichever label column the row fills, None without one."""
    if LABELLED.isdisjoint(row):
        return None
    given = [name for name in ("prefer", "winrate", "winner") if row.get(name) is not None]
    given += [pair[0] for pair in VOTES if row.get(pair[0]) is not None and row.get(pair[1]) is not None]
    if len(given) > 1:
        refuse(where, given[1], f"two labels of the same pair, {given[0]} and {given[1]}", "one of them",
               f"rename the other out of the way with columns={{{given[1]!r}: 'unused'}}")  # fmt: skip
    if not given:
        return None
    name = given[0]
    if name in ("prefer", "winrate"):
        return number(row[name], where, name, 0, 1)
    if name == "winner":
        winner = str(row[name]).strip().lower()
        if winner not in WINNERS:
            refuse(where, name, repr(row[name]), "a, b or tie", "correct the cell or remove the row")
        return WINNERS[winner]
    other = dict(VOTES)[name]
    first, second = number(row[name], where, name, 0), number(row[other], where, other, 0)
    return first / (first + second) if first + second else Dropped("no votes")


def pair_scores(row: Row, where: str) -> list[float] | None:
    """The two scores of a pair, where both cells are filled."""
    if LABELLED.isdisjoint(row):
        return None
    for names in PAIR_SCORES:
        if all(row.get(name) is not None for name in names):
            return [number(row[name], where, name) for name in names]
    return None


# --- putting a record together ----------------------------------------------------------------------------------------

COMMON = ("id", "prompt", "system", "weight")


def record(
    row: Row,
    where: str,
    prompt: str | list[Message],
    responses: list[str],
    *,
    reads: Iterable[str],
    ranked: bool = False,
    scores: list[float] | None = None,
    prefer: float | None = None,
    desirable: list[bool] | None = None,
    order: Sequence[int] = (),
) -> Record | Dropped:
    """The checks and fields that all formats share. `order`: where the file has each response, if they were rearranged."""
    system = row.get("system")
    system = None if system is None else text(system, where, "system")
    if isinstance(prompt, list):
        if prompt[0]["role"] == "system":
            if system is not None and system != prompt[0]["content"]:
                refuse(where, "system", "a system column and another system message in the chat", "one of them", "remove one")
            system, prompt = prompt[0]["content"], prompt[1:]
        if not prompt or prompt[-1]["role"] not in ("user", "tool"):
            last = f"a chat that ends with {prompt[-1]['role']}" if prompt else "a chat without any turn"
            refuse(where, "prompt", last, "a chat whose last message before the response comes from the user",
                   "put the assistant's last turn into the response")  # fmt: skip
    if not (prompt if isinstance(prompt, str) else prompt[-1]["content"]).strip():
        return Dropped("empty prompt")
    if any(not response or response.isspace() for response in responses):
        return Dropped("empty response")
    if len(responses) > 1 and all(response == responses[0] for response in responses):
        return Dropped("identical responses")
    swapped = prefer is not None and prefer < 0.5
    if swapped and prefer is not None:
        prefer, responses, order = 1 - prefer, responses[::-1], (order or range(len(responses)))[::-1]
        scores, desirable = scores and scores[::-1], desirable and desirable[::-1]
    identity, weight, hidden = row.get("id"), row.get("weight"), {*reads, *COMMON}
    return Record(
        id="" if identity is None else str(identity),
        prompt=prompt,
        responses=responses,
        ranked=ranked,
        scores=scores,
        prefer=prefer,
        desirable=desirable,
        weight=1.0 if weight is None else number(weight, where, "weight", 0),
        system=system,
        where=where,
        swapped=swapped,
        order=() if list(order) == sorted(order) else tuple(order),
        meta={name: value for name, value in row.items() if name not in hidden and value is not None},
    )


def ordered(responses: list[str], scores: list[float]) -> tuple[list[str], list[float], list[int]]:
    """Best first, and where each stood; equal scores keep the order of the file."""
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    return [responses[k] for k in order], [scores[k] for k in order], order


# --- the formats ------------------------------------------------------------------------------------------------------

SHARED = "dialogues differ before the last answer"


def shared_prompt(chosen: str, rejected: str, where: str) -> str:
    """What two texts begin with, up to the last white space before they part (the rule of TRL's implicit prompt, kept to whole words)."""
    n = len(os.path.commonprefix([chosen, rejected]))
    cut = max((i for i in range(n - 1, -1, -1) if chosen[i].isspace()), default=0)
    if not chosen[:cut].strip():
        refuse(where, "chosen", "no prompt column, and chosen and rejected that begin differently",
               "a shared beginning, which is then the prompt", "add a prompt column")  # fmt: skip
    return chosen[:cut]


def preference_chat(row: Row, where: str) -> tuple[list[Message], list[str]] | Dropped:
    """Chosen and rejected as messages; the turns they share belong to the prompt, which may also stand in its own column."""
    chosen, rejected = messages(row["chosen"], where, "chosen"), messages(row["rejected"], where, "rejected")
    if chosen == rejected:
        return Dropped("identical responses")
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
    if len(chosen) - shared != 1 or len(rejected) - shared != 1:
        return Dropped(SHARED)
    for column, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1]["role"] != "assistant":
            refuse(where, column, f"a last message by {turns[-1]['role']}", "one by the assistant", "end the chat with the answer")
    head, explicit = chosen[:shared], row.get("prompt")
    if explicit is None and not head:
        refuse(where, "chosen", "no prompt column and chats of one message", "the turns before the answer", "add a prompt column")
    if isinstance(explicit, str):
        explicit_text = text(explicit, where, "prompt")
        head = head or [{"role": "user", "content": explicit_text}]
        if all(turn["content"].strip() != explicit_text.strip() for turn in head):
            refuse(where, "prompt", f"{explicit_text[:50]!r}, which is no turn of the chats (the last is {head[-1]['content'][:50]!r})",
                   "the same prompt in both", "remove the prompt column or correct the row")  # fmt: skip
    elif explicit is not None:
        turns = messages(explicit, where, "prompt")
        if head and head != turns:
            refuse(where, "prompt", "messages that differ from the ones chosen begins with", "the same messages",
                   "remove the prompt column or correct the row")  # fmt: skip
        head = turns
    return head, [chosen[-1]["content"], rejected[-1]["content"]]


GOLD = ("gold", "reference")  # a third response, better than both; the other is TRL's name


def preference(row: Row, where: str) -> Record | Dropped:
    """prompt (or a shared beginning), chosen, rejected; text or messages; soft labels and scores where given."""
    chosen, rejected = row["chosen"], row["rejected"]
    prompt: str | list[Message]
    if isinstance(chosen, list) and isinstance(rejected, list):
        chat = preference_chat(row, where)
        if isinstance(chat, Dropped):
            return chat
        prompt, responses = chat
    else:
        responses = [answer(chosen, where, "chosen"), answer(rejected, where, "rejected")]
        if responses[0] == responses[1]:
            return Dropped("identical responses")
        if any(not response or response.isspace() for response in responses):
            return Dropped("empty response")
        if row.get("prompt") is not None:
            prompt = question(row["prompt"], where)
        else:
            prompt = shared_prompt(responses[0], responses[1], where)
            responses = [response[len(prompt) :] for response in responses]
    label = pair_label(row, where)
    if isinstance(label, Dropped):
        return label
    reads = ("chosen", "rejected", *PAIR_LABELS)
    found = record(row, where, prompt, responses, reads=reads, ranked=True, scores=pair_scores(row, where), prefer=label)
    if row.get("prompt") is None and isinstance(prompt, str) and isinstance(found, Record):
        whole = {name: said for name in GOLD if isinstance(said := row.get(name), str) and said.startswith(prompt)}
        found.meta.update({name: said[len(prompt) :] for name, said in whole.items()})
    return found


def with_gold(pair: Record) -> Record:
    """A pair with the response in its column `gold` as the third, as triple-po reads them; a row without one as it is.

    TRL calls the column `reference`, which is taken where it is a text. Methods that read pairs see neither.
    """
    name = next((name for name in GOLD if filled(pair.meta.get(name))), None)
    if name is None or len(pair.responses) != 2 or (name == "reference" and not isinstance(pair.meta[name], str)):
        return pair
    value, where = pair.meta[name], pair.where or pair.id
    if isinstance(value, list) and len(value) > 1:
        turns = [turn for turn in messages(value, where, name) if turn["role"] != "system"]
        if turns[:-1] != pair.prompt:
            refuse(where, name, "a chat that begins otherwise than the prompt", "the answer, or the same turns before it",
                   "correct the row")  # fmt: skip
        value = value[-1:]
    said, order = (answer if isinstance(value, list) else text)(value, where, name), (*pair.order, 2) if pair.order else ()
    return replace(pair, responses=[*pair.responses, said], scores=None, prefer=None, desirable=None, order=order)


def answers(row: Row, where: str) -> Record | Dropped:
    """RewardBench 2: prompt, and lists of the right answers and of the wrong ones."""
    right, wrong = (several(row[column], where, column, text) for column in ("chosen", "rejected"))
    if not right or not wrong:
        return Dropped("no right answer" if not right else "no wrong answer")
    desirable = [True] * len(right) + [False] * len(wrong)
    return record(row, where, question(row["prompt"], where), right + wrong, reads=("chosen", "rejected"), desirable=desirable)


TURN = re.compile(r"\n\n(Human|Assistant):")


def dialogue(value: Any, where: str, column: str) -> list[Message]:
    """The messages of a transcript in the HH style."""
    head, *parts = TURN.split("\n\n" + text(value, where, column).lstrip())
    if head.strip() or not parts:
        refuse(where, column, repr(str(value)[:60]), r"a transcript '\n\nHuman: ... \n\nAssistant: ...'", "use format='preference'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def transcript(row: Row, where: str) -> Record | Dropped:
    """Chosen and rejected as whole HH dialogues: all but the last answer is the prompt."""
    chosen, rejected = dialogue(row["chosen"], where, "chosen"), dialogue(row["rejected"], where, "rejected")
    if chosen == rejected:
        return Dropped("identical responses")
    if chosen[:-1] != rejected[:-1]:
        return Dropped(SHARED)
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        return Dropped("no answer at the end of the dialogue")
    if not chosen[:-1]:
        return Dropped("empty prompt")
    label = pair_label(row, where)
    if isinstance(label, Dropped):
        return label
    responses, reads = [chosen[-1]["content"], rejected[-1]["content"]], ("chosen", "rejected", *PAIR_LABELS)
    return record(row, where, chosen[:-1], responses, reads=reads, ranked=True, scores=pair_scores(row, where), prefer=label)


def pair(row: Row, where: str) -> Record | Dropped:
    """Two responses in no order, and who won: a probability, a win rate, vote counts, a winner or two scores."""
    responses = [answer(row["response_a"], where, "response_a"), answer(row["response_b"], where, "response_b")]
    label, scores = pair_label(row, where), pair_scores(row, where)
    order: list[int] = []
    if isinstance(label, Dropped):
        return label
    if label is None and scores is None:
        return Dropped("no label")
    if label is None and scores is not None:
        if scores[0] == scores[1]:
            return Dropped("all scores equal")
        responses, scores, order = ordered(responses, scores)
    reads, prompt = ("response_a", "response_b", *PAIR_LABELS), question(row["prompt"], where)
    return record(row, where, prompt, responses, reads=reads, ranked=True, scores=scores, prefer=label, order=order)


def responses(row: Row, where: str) -> Record | Dropped:
    """The schema itself: a prompt with any number of responses, ordered by `ranked: true`, ranks, scores, win rates or prefer."""
    given = row["responses"]
    if isinstance(given, list) and any(item is None for item in given):
        return Dropped("missing response")
    texts = several(given, where, "responses", answer)
    k = len(texts)

    def cells(name: str, read: Callable[[Any, str, str], T]) -> list[T] | None:
        return None if row.get(name) is None else several(row[name], where, name, read, k)

    scores, ranks, desirable = cells("scores", number), cells("ranks", number), cells("desirable", boolean)
    order = [int(place) for place in cells("file_order", number) or range(k)]
    if sorted(order) != list(range(k)):
        refuse(where, "file_order", order, f"the numbers 0 to {k - 1}, each once", "leave the column out: it is what saving writes")
    prefer = None if row.get("prefer") is None else number(row["prefer"], where, "prefer", 0, 1)
    if row.get("winrate") is not None:
        if scores is not None:
            refuse(where, "winrate", "both scores and winrate", "one of them", "rename the other with columns={'winrate': 'unused'}")
        scores = several(row["winrate"], where, "winrate", lambda value, where, column: number(value, where, column, 0, 1), k)
    if prefer is not None and k != 2:
        refuse(where, "prefer", f"a probability with {k} responses", "two responses", "use scores or ranks for lists")
    ranked = None if row.get("ranked") is None else boolean(row["ranked"], where, "ranked")
    if ranked is None and k > 1 and prefer is None:
        if ranks is None and scores is None and desirable is None:
            refuse(where, "responses", f"{k} responses without scores, ranks, prefer or desirable", "a label",
                   "add one, or ranked: true where they stand best first, ranked: false where nothing is known")  # fmt: skip
        key = [-rank for rank in ranks] if ranks is not None else scores
        if key is not None:
            if min(key) == max(key):
                return Dropped("all scores equal")
            best = sorted(range(k), key=lambda i: -key[i])
            texts, order = [texts[i] for i in best], [order[i] for i in best]
            scores, desirable = scores and [scores[i] for i in best], desirable and [desirable[i] for i in best]
            ranked = True
    ranked = bool(ranked) or prefer is not None
    return record(row, where, question(row["prompt"], where), texts, reads=FORMATS["responses"].reads + ("responses",),
                  ranked=ranked, scores=scores, prefer=prefer, desirable=desirable, order=order)  # fmt: skip


def completion_score(item: Row, where: str) -> float | None:
    """UltraFeedback's overall_score, else the fine-grained score, else the mean of the single ratings ("N/A" left out)."""
    for name in ("overall_score", "score", "fine-grained_score"):
        if item.get(name) is not None:
            return number(item[name], where, f"completions.{name}")
    aspects = item.get("annotations") or item.get("ratings") or {}
    cells = aspects.values() if isinstance(aspects, Mapping) else aspects
    found = [cell.get("Rating", cell.get("rating")) if isinstance(cell, Mapping) else cell for cell in cells]
    ratings = [number(value, where, "completions.ratings") for value in found if value not in (None, "N/A")]
    return sum(ratings) / len(ratings) if ratings else None


def completions(row: Row, where: str) -> Record | Dropped:
    """UltraFeedback: instruction (or prompt) and a list of completions, each with its response and its ratings."""
    items = row["completions"]
    if not isinstance(items, list) or not all(isinstance(item, Mapping) and "response" in item for item in items):
        refuse(where, "completions", items, 'a list of {"response": ..., "overall_score": ...}', "correct the cell or remove the row")
    if "prompt" not in row and "instruction" not in row:
        refuse(where, "instruction", f"only {', '.join(row)}", "instruction or prompt", "add the column or rename yours")
    prompt = row.get("instruction") if row.get("prompt") is None else row["prompt"]
    scores = [completion_score(item, where) for item in items]
    if prompt is None or any(item["response"] is None for item in items):
        return Dropped("missing prompt" if prompt is None else "missing response")
    if not items or any(score is None for score in scores):
        return Dropped("missing score" if items else "missing response")
    known = [score for score in scores if score is not None]
    if len(known) > 1 and min(known) == max(known):
        return Dropped("all scores equal")
    texts, known, order = ordered([answer(item["response"], where, "completions.response") for item in items], known)
    reads = ("completions", "instruction")
    return record(row, where, question(prompt, where), texts, reads=reads, ranked=len(texts) > 1, scores=known, order=order)


def stepwise(row: Row, where: str) -> Record | Dropped:
    """TRL's stepwise supervision as one response: steps joined by line ends, desirable if every step is; the steps stay in meta."""
    steps = several(row["completions"], where, "completions", text)
    labels = several(row["labels"], where, "labels", boolean, len(steps))
    out = ["\n".join(steps)] if steps else [""]
    return record(row, where, question(row["prompt"], where), out, reads=(), desirable=[all(labels)])


def unpaired(row: Row, where: str) -> Record | Dropped:
    """prompt, completion, and whether it is desirable."""
    out, label = [answer(row["completion"], where, "completion")], [boolean(row["label"], where, "label")]
    return record(row, where, question(row["prompt"], where), out, reads=("completion", "label"), desirable=label)


def chat(row: Row, where: str) -> Record | Dropped:
    """messages: the assistant's last turn is the response; with a label column it is an unpaired preference."""
    turns = messages(row["messages"], where, "messages")
    if turns[-1]["role"] != "assistant":
        return Dropped("no answer at the end of the dialogue")
    if len(turns) == 1:
        return Dropped("missing prompt")
    label = None if row.get("label") is None else [boolean(row["label"], where, "label")]
    return record(row, where, turns[:-1], [turns[-1]["content"]], reads=("messages", "label"), desirable=label)


def prompt_completion(row: Row, where: str) -> Record | Dropped:
    """prompt and completion: a demonstration."""
    out = [answer(row["completion"], where, "completion")]
    return record(row, where, question(row["prompt"], where), out, reads=("completion",))


def prompts(row: Row, where: str) -> Record | Dropped:
    """prompt alone, for methods that draw the responses themselves."""
    return record(row, where, question(row["prompt"], where), [], reads=())


def plain_text(row: Row, where: str) -> Record | Dropped:
    """Language modelling data hold no preference."""
    refuse(where, "text", "text without prompt (language modelling)", "a prompt with responses",
           "split it into prompt and completion for method sft, or into prompt, chosen and rejected")  # fmt: skip


def is_transcript(row: Row) -> bool:
    """Whole HH dialogues in both columns and no prompt beside them."""
    both = (row["chosen"], row["rejected"])
    return row.get("prompt") is None and all(isinstance(cell, str) and "Human:" in cell and "\n\nAssistant:" in cell for cell in both)


def is_answers(row: Row) -> bool:
    """Lists of texts in both columns."""
    return all(isinstance(cell, list) and cell and isinstance(cell[0], str) for cell in (row["chosen"], row["rejected"]))


def no_response(row: Row) -> bool:
    """Nothing beside the prompt looks like a response under another or a misspelt name: those prompts must be asked for."""
    return not guesses(row) and not (RESPONSES & set(row))


def holds(column: str, kind: type) -> Callable[[Row], bool]:
    """The column is a list of this kind."""
    return lambda row: isinstance(row[column], list) and all(isinstance(item, kind) for item in row[column])


FORMATS: dict[str, Format] = {  # the first that fits is taken
    "transcript": Format(
        ("chosen", "rejected"), transcript, PAIR_LABELS, is_transcript,
        r'{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}',
    ),
    "preference": Format(
        ("chosen", "rejected"), preference, PAIR_LABELS, lambda row: not is_answers(row),
        example='{"prompt": "2 + 2 =", "chosen": "4", "rejected": "5", "prefer": 0.9}',
    ),
    "answers": Format(
        ("prompt", "chosen", "rejected"), answers, recognise=is_answers,
        example='{"prompt": "Name a prime below 4.", "chosen": ["2", "3"], "rejected": ["1", "4"]}',
    ),
    "pair": Format(
        ("prompt", "response_a", "response_b"), pair, PAIR_LABELS,
        example='{"prompt": "2 + 2 =", "response_a": "5", "response_b": "4", "wins_a": 1, "wins_b": 9}',
    ),
    "responses": Format(
        ("prompt", "responses"), responses, ("ranked", "ranks", "scores", "winrate", "prefer", "desirable", "file_order"),
        example='{"prompt": "2 + 2 =", "responses": ["5", "4", "22"], "scores": [2, 9, 1]}',
    ),
    "completions": Format(
        ("completions",), completions, ("instruction",), holds("completions", Mapping),
        '{"instruction": "2 + 2 =", "completions": [{"response": "4", "overall_score": 9}, {"response": "5", "overall_score": 2}]}',
    ),
    "stepwise": Format(
        ("prompt", "completions", "labels"), stepwise, (), holds("completions", str),
        '{"prompt": "2 + 2 + 1 =", "completions": ["2 + 2 = 4", "4 + 1 = 6"], "labels": [true, false]}',
    ),
    "unpaired": Format(
        ("prompt", "completion", "label"), unpaired,
        example='{"prompt": "2 + 2 =", "completion": "4", "label": true}',
    ),
    "prompt-completion": Format(
        ("prompt", "completion"), prompt_completion,
        example='{"prompt": "2 + 2 =", "completion": "4"}',
    ),
    "messages": Format(
        ("messages",), chat, ("label",),
        example='{"messages": [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": "4"}]}',
    ),
    "prompts": Format(("prompt",), prompts, recognise=no_response, example='{"prompt": "2 + 2 ="}'),
    "text": Format(("text",), plain_text),
}  # fmt: skip

NAMES = {  # what people call the columns that have a name here
    "instruction": "prompt", "question": "prompt", "query": "prompt", "input": "prompt", "user": "prompt", "context": "prompt",
    "response": "completion", "answer": "completion", "output": "completion", "assistant": "completion", "target": "completion",
    "preferred": "chosen", "positive": "chosen", "winner_response": "chosen", "accepted": "chosen", "better": "chosen",
    "dispreferred": "rejected", "negative": "rejected", "worse": "rejected", "candidates": "responses", "generations": "responses",
    "conversation": "messages", "conversations": "messages", "rating": "label", "desirable": "label", "rewards": "scores",
}  # fmt: skip


RESPONSES = {column for form in FORMATS.values() for column in form.needs} - {"prompt", "text"}


def guesses(row: Iterable[str], known: Iterable[str] = RESPONSES | {"prompt"}) -> dict[str, str]:
    """Columns that are no known name, with the name they probably mean."""
    known = set(known)
    others = [column for column in row if column not in known]
    near = {column: difflib.get_close_matches(column, known, 1, 0.75) for column in others}
    found = {column: NAMES.get(column) or (near[column][0] if near[column] else None) for column in others}
    return {column: ours for column, ours in found.items() if ours is not None and ours in known and ours not in row}


def recognise(row: Row, where: str) -> str:
    """The name of the format whose columns the row has; the error says which columns are nearest."""
    for name, form in FORMATS.items():
        if all(column in row for column in form.needs) and form.recognise(row):
            return name
    usable = {name: form for name, form in FORMATS.items() if name not in ("text", "prompts", "transcript", "answers")}
    meant = guesses(row)
    seen = {meant.get(column, column) for column in row}
    nearest = min(usable, key=lambda name: (len(set(usable[name].needs) - seen) / len(usable[name].needs), -len(usable[name].needs)))
    lines = f"{' and '.join(usable[nearest].needs)} (format {nearest}; the others are in docs/data.md)"
    advice = f"rename with columns={meant}" if meant else "rename your columns with columns={'theirs': 'ours'}"
    advice += " or, if prompts alone are meant, say format='prompts'" * ("prompt" in row)
    raise PreftuneError(f"{where}: found the columns {', '.join(map(str, row)) or 'none'}, needed {lines}; {advice}")


def convert(row: Row, where: str, name: str) -> Record | Dropped:
    """One row in the named format. A column that is not there is an error, an empty cell a counted drop."""
    form = FORMATS[name]
    for column in form.needs:
        if row.get(column) is None:
            if column in row:
                return Dropped(f"missing {column}")
            near = difflib.get_close_matches(column, row, 1, 0.6)
            advice = f"rename with columns={{{near[0]!r}: {column!r}}}" if near else "add it, or leave the row out"
            raise PreftuneError(f"{where}, column {column!r}: found only {', '.join(row) or 'no column'}, needed {column!r}; {advice}")
    return form.convert(row, where)


# --- identity ---------------------------------------------------------------------------------------------------------


def identify(record: Record) -> tuple[str, bytes]:
    """The record's id (the file's, else a hash of the content) and 8 bytes that stand for all that is trained on.

    Neither depends on meta, on the place in the file or on the file's format.
    """
    labels = (record.ranked, record.scores, record.prefer, record.desirable, record.weight)
    content = json.dumps((record.prompt, record.system, record.responses, *labels)).encode()
    identity = record.id or hashlib.blake2b(content, digest_size=8).hexdigest()
    return identity, hashlib.blake2b(identity.encode(errors="replace") + b"\0" + content, digest_size=8).digest()


def prompt_digest(record: Record) -> bytes:
    """8 bytes for the prompt: a text and one user message of that text are the same prompt, as are other spaces and systems."""
    prompt = record.prompt
    turns = [prompt] if isinstance(prompt, str) else [part for message in prompt for part in (message["role"], message["content"])]
    if len(turns) == 2 and turns[0] == "user":
        turns = turns[1:]
    return hashlib.blake2b(json.dumps([" ".join(turn.split()) for turn in turns]).encode(), digest_size=8).digest()


def filled(value: Any) -> bool:
    """A cell that is neither missing nor blank."""
    return value is not None and not (isinstance(value, str) and not value.strip())


HOLDS = {  # what a method may need of every row -> whether a record has it; kept as bits for each row, see `bits`
    "ranked": lambda record: record.ranked,
    "score": lambda record: record.scores is not None,
    "desirable": lambda record: record.desirable is not None,
    "gold": lambda record: filled(record.meta.get("gold")) or isinstance(said := record.meta.get("reference"), str) and filled(said),
}


def bits(record: Record) -> int:
    """The labels that a record holds, one bit each in the order of HOLDS."""
    return sum(holds(record) << bit for bit, holds in enumerate(HOLDS.values()))


def to_row(record: Record) -> dict[str, Any]:
    """The record as a row of the format `responses`: what `convert` reads back as the same record."""
    row = {"id": record.id, "prompt": record.prompt, "responses": record.responses, "ranked": record.ranked}
    labels = {name: getattr(record, name) for name in ("scores", "prefer", "desirable", "system")}
    if record.weight != 1.0:
        labels["weight"] = record.weight
    if record.order:
        labels["file_order"] = list(record.order)
    return row | {name: value for name, value in labels.items() if value is not None} | record.meta
