"""A tokenizer of characters: judges read texts through it where no language model is at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

START, END = "\ufdd0", "\ufdd1"  # code points that Unicode keeps out of texts: around the role and the content of a message


class Characters:
    """What `tokens.encode` and `tokens.Inverse` ask of a tokenizer; a token is a character's number, so that lengths are characters.

    It has no vocabulary and no model. Nothing is lost: a prompt is read back as the text or the messages that it was made of.
    """

    chat_template = "messages one after another"
    bos_token_id, eos_token_id = None, ord(END)
    all_special_ids = (ord(START), ord(END))
    added_tokens_decoder: Mapping[int, Any] = {}

    def __call__(self, texts: str | Sequence[str], add_special_tokens: bool = True) -> dict[str, Any]:
        return {"input_ids": self.ids(texts) if isinstance(texts, str) else [self.ids(text) for text in texts]}

    def ids(self, text: str) -> list[int]:
        """The number of every character."""
        return [ord(character) for character in text]

    def decode(self, tokens: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of these characters, with the two marks or without."""
        return "".join(chr(token) for token in tokens if not (skip_special_tokens and token in self.all_special_ids))

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """All messages, and where the answer begins."""
        written = "".join(f"{START}{message['role']}\n{message['content']}{END}\n" for message in messages)
        return written + (f"{START}assistant\n" if add_generation_prompt else "")
