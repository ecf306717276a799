"""Text as token ids: chat templates, where a completion begins and ends, truncation. Nothing here is padded."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...types import PreftuneError, Rows

REVISE = "Improve your answer. Reply with the improved answer only."  # what asks for a better response than a draft

Tokens = tuple[int, ...]
Said = str | tuple[tuple[str, str], ...]  # a prompt as a person reads it: text, or (role, content) of every message
Counts = dict[str, int]  # rows, responses, joint_differs, prompt_truncated, response_truncated


@dataclass(frozen=True, eq=False)
class Shifted:
    """A prompt whose token embeddings are moved. It equals itself alone, so that nothing kept for its tokens is taken for it."""

    tokens: Tokens
    offset: Tensor  #           [P, d] float32, added to the embeddings of the tokens
    everywhere: bool = False  # frozen copies feel the offset too; otherwise they score the clean prompt

    def __len__(self) -> int:
        return len(self.tokens)


Prompt = Tokens | Shifted
Pair = tuple[Prompt, Tokens]  # a prompt and a response to it


@dataclass(frozen=True)
class TextResponses:
    """K ragged token lists for each of B prompts; the end-of-turn token, where there is one, is part of the list.

    `logp` keeps the log-probability of every sampled token (full vocabulary, temperature one) in the same ragged shape, and `kept`,
    where sampling was truncated, the log of the mass of the tempered law that was left to draw it from.
    An absent response is the empty tuple. The tokenizer serves `show` only.
    """

    tokens: tuple[tuple[Tokens, ...], ...]  #                         [B][K][T]
    logp: tuple[tuple[tuple[float, ...], ...], ...] | None = None  #  [B][K][T] nats, from sampling
    tokenizer: Any = field(default=None, compare=False, repr=False)
    law: Tensor | None = None  #                                      text is never enumerated
    kept: tuple[tuple[tuple[float, ...], ...], ...] | None = None  #  [B][K][T] nats, at most 0

    @property
    def shape(self) -> tuple[int, int]:
        """(B, K)."""
        return len(self.tokens), len(self.tokens[0]) if self.tokens else 0

    @property
    def length(self) -> Tensor:
        """Tokens of each response, int64 [B, K]; the end of turn counts."""
        return torch.tensor([[len(tokens) for tokens in row] for row in self.tokens], dtype=torch.int64).reshape(self.shape)

    def take(self, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None) -> TextResponses:
        """Some rows and columns, in the order asked for."""
        rows = range(self.shape[0]) if rows is None else [int(i) for i in rows]
        columns = range(self.shape[1]) if columns is None else [int(k) for k in columns]

        def pick(table: Any) -> Any:
            return None if table is None else tuple(tuple(table[i][k] for k in columns) for i in rows)

        return replace(self, tokens=pick(self.tokens), logp=pick(self.logp), kept=pick(self.kept))

    def join(self, other: TextResponses) -> TextResponses:
        """The columns of both, self's first. What is kept from sampling stays only where both have it."""
        if self.shape[0] != other.shape[0]:
            raise PreftuneError(
                f"responses of {self.shape[0]} and of {other.shape[0]} prompts cannot be joined; "
                "both must answer the same prompts; take the same rows of both first"
            )
        beside: Any = lambda a, b: None if a is None or b is None else tuple(x + y for x, y in zip(a, b, strict=True))
        return replace(
            self,
            tokens=beside(self.tokens, other.tokens),
            logp=beside(self.logp, other.logp),
            kept=beside(self.kept, other.kept),
        )

    def show(self) -> list[list[str]]:
        """Text [B][K] without special tokens."""
        if self.tokenizer is None:
            raise PreftuneError("these responses carry no tokenizer, so they cannot be shown; build them with tokenizer=...")
        return [[self.tokenizer.decode(list(tokens), skip_special_tokens=True) for tokens in row] for row in self.tokens]

    def fingerprint(self) -> list[list[str]]:
        """A digest of every response's token ids [B][K]."""
        return [[token_digest(tokens).hex() for tokens in row] for row in self.tokens]

    def pack(self) -> dict[str, Tensor]:
        """Plain tensors for a file: all tokens in a row, lengths [B, K] and the log-probs where there are any."""
        flat = [token for row in self.tokens for tokens in row for token in tokens]
        packed = {
            "tokens": torch.tensor(flat, dtype=torch.int64),
            "length": self.length,
        }
        for name, table in (("logp", self.logp), ("kept", self.kept)):
            if table is not None:
                packed[name] = torch.tensor([v for row in table for values in row for v in values], dtype=torch.float64)
        return packed

    @classmethod
    def unpack(cls, packed: dict[str, Tensor], tokenizer: Any = None) -> TextResponses:
        """What `pack` wrote."""
        lengths = packed["length"].tolist()

        def cut(flat: list[Any]) -> Any:
            ends = iter(torch.tensor([n for row in lengths for n in row]).cumsum(0).tolist())
            return tuple(tuple(tuple(flat[end - n : end]) for n, end in zip(row, ends, strict=False)) for row in lengths)

        known = {name: cut(packed[name].tolist()) for name in ("tokens", "logp", "kept") if name in packed}
        return cls(**known, tokenizer=tokenizer)


def token_digest(*parts: Tokens) -> bytes:
    """16 bytes that tell sequences of token lists apart, boundaries included."""
    digest = hashlib.blake2b(digest_size=16)
    for tokens in parts:
        digest.update(len(tokens).to_bytes(8, "little") + torch.tensor(tokens, dtype=torch.int64).numpy().tobytes())
    return digest.digest()


def end_of_turn(tokenizer: Any) -> int:
    """The token that ends an answer: what the chat template writes after it, otherwise the tokenizer's eos."""
    if tokenizer.chat_template:
        mark = "preftune-answer-mark"
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
        after = tokenizer.apply_chat_template(turn, tokenize=False).rpartition(mark)[2]
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        for token in tokenizer(after, add_special_tokens=False)["input_ids"]:
            if token in special:
                return int(token)
    if tokenizer.eos_token_id is None:
        raise PreftuneError(
            "the tokenizer has no eos token and no chat template that ends a turn with a special token, so a response has no end; "
            "set tokenizer.eos_token, save the tokenizer and load it again"
        )
    return int(tokenizer.eos_token_id)


def render(record: Any, tokenizer: Any) -> str:
    """The prompt as the model sees it, up to where its answer begins."""
    prompt, system = record.prompt, record.system
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    if not isinstance(prompt, str):
        if len(prompt) != 1:
            raise PreftuneError(
                f"row {record.id}: the prompt is a conversation of {len(prompt)} messages, but the tokenizer has no chat template; "
                "a plain model needs a prompt string; write the conversation as one string or set tokenizer.chat_template"
            )
        prompt = prompt[0]["content"]
    return prompt if system is None else f"{system}\n\n{prompt}"


class Frame(NamedTuple):
    """The words that a chat template puts around contents: a prompt of turns that begins with a user's."""

    start: str
    after_system: str | None  # None: no system message is given, though the template may write one of its own into `start`
    after_user: str
    after_answer: str
    tail: str

    def contents(self, text: str) -> list[tuple[str, str]] | None:
        """(role, content) of every turn of a prompt in this frame; None where it is in another one."""
        if not (text.startswith(self.start) and text.endswith(self.tail)):
            return None
        body, found = text[len(self.start) : len(text) - len(self.tail)], []
        if self.after_system is not None:
            system, there, body = body.partition(self.after_system)
            if not there:
                return None
            found.append(("system", system))
        for role, end in itertools.cycle((("user", self.after_user), ("assistant", self.after_answer))):
            content, more, body = body.partition(end)
            found.append((role, content))
            if not more:
                break
        return found


class Inverse:
    """What a tokenizer's chat template was given, found from what it wrote: judges read with templates of their own.

    Learned from the words that the template puts around marks, and rendered again: unless that gives the same text, the answer is the
    text without special tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        frames = [self.frame(system) for system in (False, True)] if tokenizer.chat_template else []
        self.frames = [frame for frame in frames if frame is not None]

    def __call__(self, prompt: Prompt) -> Said:
        """Text where one user speaks or nothing was rendered, otherwise all messages."""
        tokens = list(prompt.tokens if isinstance(prompt, Shifted) else prompt)
        text = self.tokenizer.decode(tokens, skip_special_tokens=False)
        for frame in self.frames:
            messages = frame.contents(text)
            if messages and self.rendered(messages) == text:
                return messages[0][1] if len(messages) == 1 else tuple(messages)
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def frame(self, system: bool) -> Frame | None:
        """The template's words, with a system message or without; None where the template does not write one turn after another."""
        roles = ["system"] * system + ["user", "assistant", "user"]
        marks = [f"preftune-mark-{i}-" for i in range(len(roles))]
        try:
            text = self.rendered(list(zip(roles, marks, strict=True)))
        except Exception:  # templates refuse roles with errors of their own
            return None
        if re.findall("preftune-mark-.-", text) != marks:
            return None
        start, *between, tail = re.split("preftune-mark-.-", text)
        return Frame(start, between[0] if system else None, between[-2], between[-1], tail)

    def rendered(self, messages: Sequence[tuple[str, str]]) -> str:
        """The prompt of these messages."""
        given = [{"role": role, "content": content} for role, content in messages]
        return str(self.tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True))


def token_ids(tokenizer: Any, texts: Sequence[str], special: bool) -> list[Tokens]:
    """Token ids of each text; an eos that the tokenizer appends by itself is taken off, since the answer follows."""
    if not texts:
        return []
    eos = tokenizer.eos_token_id
    found = [tuple(ids) for ids in tokenizer(list(texts), add_special_tokens=special)["input_ids"]]
    if special and eos is not None and tokenizer("", add_special_tokens=True)["input_ids"][-1:] == [eos] != [tokenizer.bos_token_id]:
        return [ids[:-1] if ids[-1:] == (eos,) else ids for ids in found]
    return found


def revision(tokenizer: Any) -> Tokens:
    """What follows a draft in a prompt that asks to improve it: its end of turn, `REVISE` as a turn of the user, and where the answer
    begins. Without a chat template `REVISE` is a paragraph of its own. Tokenised alone, as prompts and responses are."""
    after = f"\n\n{REVISE}\n\n"
    if tokenizer.chat_template:
        mark = "preftune-draft-mark"
        turns = [("user", "a"), ("assistant", mark), ("user", REVISE)]
        messages = [{"role": role, "content": content} for role, content in turns]
        after = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True).rpartition(mark)[2]
    return token_ids(tokenizer, [after], False)[0]


def encode(
    records: Sequence[Any], tokenizer: Any, *, max_prompt: int | None = None, max_response: int | None = None
) -> tuple[Rows, Counts]:
    """Records -> Rows of token ids, with what was cut and what tokenises differently, counted.

    The rendered prompt is tokenised alone, exactly as in generation; responses separately, followed by the end of turn,
    which belongs to them. A prompt loses tokens on its left (a leading bos stays), a response on its right, and then it has
    no end. `joint_differs` counts rows with a response whose tokens would differ if prompt and response were tokenised
    as one string. Labels missing in some rows only are NaN.
    """
    if (max_prompt is not None and max_prompt < 1) or (max_response is not None and max_response < 1):
        raise PreftuneError(
            f"max_prompt is {max_prompt} and max_response {max_response}; both need room for at least one token; raise them"
        )
    end, bos, special = end_of_turn(tokenizer), tokenizer.bos_token_id, not tokenizer.chat_template
    texts = [render(record, tokenizer) for record in records]
    prompts = token_ids(tokenizer, texts, special)
    answers = [(i, answer) for i, record in enumerate(records) for answer in record.responses]
    bodies = token_ids(tokenizer, [answer for _, answer in answers], False)
    joints = token_ids(tokenizer, [texts[i] + answer for i, answer in answers], special)

    differs = {i for (i, _), body, joint in zip(answers, bodies, joints, strict=True) if joint != prompts[i] + body}
    counts = {
        "rows": len(records),
        "responses": len(answers),
        "joint_differs": len(differs),
        "prompt_truncated": 0,
        "response_truncated": 0,
    }
    for i, prompt in enumerate(prompts):
        if not prompt:
            if bos is None:
                raise PreftuneError(
                    f"row {records[i].id}: the prompt has no tokens and the tokenizer no bos token; "
                    "the first token of a response needs something before it; give the row a prompt"
                )
            prompts[i] = (bos,)
        elif max_prompt is not None and len(prompt) > max_prompt:
            counts["prompt_truncated"] += 1
            keep = (bos,) if prompt[0] == bos and max_prompt > 1 else ()
            prompts[i] = keep + prompt[len(prompt) - max_prompt + len(keep) :]
    columns: list[list[Tokens]] = [[] for _ in records]
    for (i, _), body in zip(answers, bodies, strict=True):
        tokens = body if body[-1:] == (end,) else (*body, end)
        if max_response is not None and len(tokens) > max_response:
            counts["response_truncated"] += 1
            tokens = tokens[:max_response]
        columns[i].append(tokens)

    width = max((len(row) for row in columns), default=0)
    ragged = any(len(row) != width for row in columns)
    rows = Rows(
        id=tuple(record.id for record in records),
        prompt=prompts,
        response=TextResponses(tuple(tuple(row) + ((),) * (width - len(row)) for row in columns), tokenizer=tokenizer) if width else None,
        present=torch.tensor([[k < len(row) for k in range(width)] for row in columns]) if ragged else None,
        ranked=bool(records) and all(record.ranked for record in records),
        score=label_table([record.scores for record in records], width),
        prefer=label_column([record.prefer for record in records]),
        desirable=desirable_table([record.desirable for record in records], width, [record.id for record in records]),
        weight=torch.tensor([float(record.weight) for record in records], dtype=torch.float64),
    )
    return rows, counts


def label_table(rows: Sequence[Sequence[float] | None], width: int) -> Tensor | None:
    """[B, width] float64, NaN where a row has no number; None where no row has any."""
    if all(row is None for row in rows):
        return None
    nan = float("nan")
    return torch.tensor([[*(row or ())] + [nan] * (width - len(row or ())) for row in rows], dtype=torch.float64)


def label_column(values: Sequence[float | None]) -> Tensor | None:
    """[B] float64, NaN where a row has no number; None where no row has any."""
    if all(value is None for value in values):
        return None
    return torch.tensor([float("nan") if value is None else float(value) for value in values], dtype=torch.float64)


def desirable_table(rows: Sequence[Sequence[bool] | None], width: int, ids: Sequence[str]) -> Tensor | None:
    """[B, width] bool, False where absent (`present` says so); None where no row is labelled."""
    if all(row is None for row in rows):
        return None
    for row, name in zip(rows, ids, strict=True):
        if row is None:
            raise PreftuneError(
                f"row {name} has no desirable label while other rows have one; every row needs it; label the row or leave it out"
            )
    return torch.tensor([[bool(v) for v in row or ()] + [False] * (width - len(row or ())) for row in rows])
