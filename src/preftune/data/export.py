"""Rows that a run collected, as people read them and as rows of a data file; records in the formats of TRL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..policies.text.tokens import Inverse, encode, end_of_turn
from ..types import PreftuneError, Rows
from .columns import Dropped, Record, convert

Seen = dict[str, Any]  # one row: id, prompt, responses with what is known of each, what is known of all
MANY = 16  # numbers of a label that one method alone reads; more are not shown
EACH = ("score", "winrate", "desirable", "law")  # labels [B, K]


# --- as people read them ------------------------------------------------------------------------------------------------


def seen(rows: Rows) -> list[Seen]:
    """Every row with its prompt and responses as text, labels by their names in Rows, and the log-probs that were kept, in nats.

    `trained` is False for a response that the method drew and left out. Labels that one method alone reads stand under their own names.
    """
    texts = hasattr(rows.response, "tokens") and hasattr(rows.response, "tokenizer")
    inverse = Inverse(rows.response.tokenizer) if texts else lambda prompt: prompt

    def said(prompt: Any) -> Any:
        found = inverse(prompt)
        return [{"role": role, "content": content} for role, content in found] if isinstance(found, tuple) else found

    shown, kept = rows.response.show(), getattr(rows.response, "logp", None)
    found = []
    for b, name in enumerate(rows.id):
        answers: list[Seen] = []
        for k, text in enumerate(shown[b]):
            if texts and not rows.response.tokens[b][k]:
                continue  # a shorter list
            answer: Seen = {"text": text, "tokens": int(rows.response.length[b, k]), "column": k}
            answer |= {label: value[b, k].item() for label in EACH if (value := getattr(rows, label)) is not None}
            if kept is not None:
                answer["logp"] = sum(kept[b][k])
            if rows.present is not None:
                answer["trained"] = bool(rows.present[b, k])
            if rows.prompts is not None:
                answer["prompt"] = said(rows.prompts[b][k])
            answers.append(answer)
        row: Seen = {"id": name, "prompt": said(rows.prompt[b]), "responses": answers}
        row |= {label: value[b].tolist() for label in ("prefer", "beats") if (value := getattr(rows, label)) is not None}
        row |= {} if rows.weight is None or rows.weight[b] == 1 else {"weight": rows.weight[b].item()}
        row |= {label: value[b].tolist() for label, value in rows.extra.items() if value[b].numel() <= MANY}
        found.append(row | ({"ranked": True} if rows.ranked else {}))
    return found


def seen_record(record: Record) -> Seen:
    """The same of a row of a data file."""
    answers: list[Seen] = [{"text": text} for text in record.responses]
    for k, answer in enumerate(answers):
        for label, values in (("score", record.scores), ("desirable", record.desirable)):
            if values is not None:
                answer[label] = values[k]
    row: Seen = {"id": record.id, "prompt": messages(record) if spoken(record) else record.prompt, "responses": answers}
    row |= {name: value for name, value in (("prefer", record.prefer), ("weight", record.weight)) if value not in (None, 1.0)}
    return row | record.meta | ({"ranked": True} if record.ranked else {})


# --- as rows of a data file ---------------------------------------------------------------------------------------------


def records(rows: Rows, number: int, counts: Counter[str]) -> Iterator[Record]:
    """Rows of texts of round (or step) `number` as records of the schema, all responses that were drawn in them, also those left out.

    Scores are the judge's scores, otherwise win rates, otherwise mean wins over the others of the list; a pair that was compared has
    `prefer`. The columns `round` and `sampled_logp` (nats, as drawn) are passed on. counts: rows dropped by reason, empty and unended
    responses, and what would not be the same tokens again.
    """
    if not hasattr(rows.response, "tokenizer"):
        raise PreftuneError("these rows are numbers of a table, needed texts to export; `preftune data show` shows them")
    if rows.prompts is not None:
        raise PreftuneError("the responses of these rows answer prompts of their own, needed one prompt a row; they cannot be exported")
    end = end_of_turn(rows.response.tokenizer)
    found: list[tuple[Record, int, list[int]]] = []  # with its row and where its responses stand there
    for b, row in enumerate(seen(rows)):
        answers = [answer for answer in row["responses"] if answer["text"].strip()]
        counts["empty response"] += len(row["responses"]) - len(answers)
        counts["without an end"] += sum(rows.response.tokens[b][answer["column"]][-1] != end for answer in answers)
        if not answers:
            counts["dropped: no response"] += 1
            continue
        made = convert(schema(row, answers, number), f"round {number}, row {row['id']}", "responses")
        if isinstance(made, Dropped):
            counts[f"dropped: {made.reason}"] += 1
            continue
        columns = [answer["column"] for answer in answers]
        found.append((made, b, [columns[k] for k in made.order] if made.order else columns))
    again, _ = encode([made for made, _, _ in found], rows.response.tokenizer)
    for i, (made, b, columns) in enumerate(found):
        now, then = again.response.tokens[i], [rows.response.tokens[b][k] for k in columns]
        # an end that a response lacked counts for nothing
        same = all(old in (new, new[:-1]) for old, new in zip(then, now, strict=False))
        counts["other tokens"] += not (same and tuple(again.prompt[i]) == tuple(rows.prompt[b]))
        yield made


def schema(row: Seen, answers: Sequence[Seen], number: int) -> dict[str, Any]:
    """A row of the format `responses`; the order of the responses is that of the columns where nothing else is known of it."""
    columns = [answer["column"] for answer in answers]
    made: dict[str, Any] = {
        "id": f"{row['id']} of {number}",
        "prompt": row["prompt"],
        "responses": [answer["text"] for answer in answers],
        "round": number,
    }
    beats = row.get("beats")
    if len(answers) == 2 and "prefer" in row and row.get("ranked"):
        made["prefer"] = row["prefer"]
    elif len(answers) == 2 and beats is not None:
        i, j = columns
        made["prefer"] = (beats[i][j] + 1 - beats[j][i]) / 2
    elif row.get("ranked"):
        made["ranked"] = True
    for label in ("score", "winrate"):
        if "scores" not in made and "prefer" not in made and all(label in answer for answer in answers):
            made["scores"] = [float(answer[label]) for answer in answers]
    if beats is not None and len(answers) > 2 and "scores" not in made:
        made["scores"] = [sum(beats[i][j] for j in columns if j != i) / (len(columns) - 1) for i in columns]
    if all("desirable" in answer for answer in answers):
        made["desirable"] = [answer["desirable"] for answer in answers]
    if len(answers) > 1 and not {"prefer", "scores", "desirable", "ranked"} & made.keys():
        made["ranked"] = False
    if all("logp" in answer for answer in answers):
        made["sampled_logp"] = [answer["logp"] for answer in answers]
    return made | ({"weight": row["weight"]} if "weight" in row else {})


# --- as rows of TRL -----------------------------------------------------------------------------------------------------


def trl(some: Iterable[Record], counts: Counter[str], *, chat: bool = False) -> Iterator[dict[str, Any]]:
    """Rows as TRL's trainers read them, conversational where `chat` says so or a prompt is a chat, otherwise plain text.

    Ranked responses or such with scores: prompt, chosen, rejected, of a list the best and the worst, with score_chosen and
    score_rejected. Desirable labels: prompt, completion, label, a row for each response. One response: prompt, completion. None: prompt.
    counts: rows without an order ("no order") and ties ("tie") are left out. All rows must be of one kind.
    """
    first: str | None = None
    for record in some:
        kind, made = kind_of(record), trl_rows(record, chat)
        if kind == "pair" and not made:
            counts["tie"] += 1
            continue
        if kind == "none":
            counts["no order"] += 1
            continue
        first = first or kind
        if kind != first:
            raise PreftuneError(
                f"{record.where or record.id}: found a row of the kind {kind} after rows of the kind {first}, needed one kind in a file; "
                "split the data, or export in the format preftune"
            )
        yield from made


def kind_of(record: Record) -> str:
    """pair | label | single | prompt, and none for responses in no order."""
    if len(record.responses) > 1 and (record.ranked or record.scores is not None):
        return "pair"
    if record.desirable is not None:
        return "label"
    return {0: "prompt", 1: "single"}.get(len(record.responses), "none")


def trl_rows(record: Record, chat: bool) -> list[dict[str, Any]]:
    """The rows of TRL that a record becomes; of a tie none."""
    chat = chat or spoken(record)
    prompt = {"prompt": messages(record) if chat else record.prompt}
    said = lambda text: [{"role": "assistant", "content": text}] if chat else text
    kind = kind_of(record)
    if kind == "label":
        labels = zip(record.responses, record.desirable or (), strict=True)
        return [{**prompt, "completion": said(text), "label": label} for text, label in labels]
    if kind != "pair":
        return [{**prompt, "completion": said(text)} for text in record.responses] or [prompt]
    best, worst = 0, len(record.responses) - 1
    if record.scores is not None and not record.ranked:
        best, worst = (record.scores.index(pick(record.scores)) for pick in (max, min))
    if record.tied or (record.scores is not None and record.scores[best] == record.scores[worst]):
        return []
    made = {**prompt, "chosen": said(record.responses[best]), "rejected": said(record.responses[worst])}
    if record.scores is not None:
        made |= {"score_chosen": record.scores[best], "score_rejected": record.scores[worst]}
    return [made | ({} if record.prefer is None else {"prefer": record.prefer})]


def spoken(record: Record) -> bool:
    """Whether the prompt is more than one text of the user."""
    return record.system is not None or not isinstance(record.prompt, str)


def messages(record: Record) -> list[dict[str, Any]]:
    """The prompt as a chat."""
    said = [{"role": "user", "content": record.prompt}] if isinstance(record.prompt, str) else list(record.prompt)
    return [*([] if record.system is None else [{"role": "system", "content": record.system}]), *said]  # type: ignore[return-value]
