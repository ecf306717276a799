"""Tiny random language models with a byte-level BPE tokenizer trained here from Python's own help texts."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from preftune.policies.text.logprob import Network
from preftune.policies.text.model import TextPolicy, no_dropout, wrap

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class Record:
    """The attributes of a data row that encoding reads."""

    id: str
    prompt: Any
    responses: list[str]
    ranked: bool = False
    scores: list[float] | None = None
    prefer: float | None = None
    desirable: list[bool] | None = None
    weight: float = 1.0
    system: str | None = None


@functools.cache
def trained_bpe() -> str:
    """JSON of a byte-level BPE of 400 tokens."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    return bpe.to_str()


def tiny_tokenizer(*, template: bool = True, pad_is_eos: bool = False, bos: bool = False) -> Any:
    """Three special tokens: 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|>; eos is 0, turns end with 2 where there is a template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained_bpe()),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>" if pad_is_eos else "<|im_start|>",
        bos_token="<|im_start|>" if bos else None,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE if template else None
    return tokenizer


def tiny_model(*, seed: int = 0, vocabulary: int = 400, layers: int = 3, width: int = 32, tied: bool = True, scale: float = 0.2) -> Any:
    """A random Llama with weights large enough that its predictions are far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=scale,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def tiny_policy(train: str | int = "full", *, model: Any = None, tokenizer: Any = None, seed: int = 0, **network: Any) -> TextPolicy:
    """A policy around a tiny model, without going through files."""
    lm = model if model is not None else tiny_model(seed=seed)
    no_dropout(lm)
    module = wrap(lm, train, None, 4, 8.0, "all-linear", None, seed).eval()
    tokenizer = tokenizer if tokenizer is not None else tiny_tokenizer()
    return TextPolicy(Network(module, **network), tokenizer, fresh=train in ("lora", "dora"))


def tiny_folder(folder: Path, *, tokenizer: Any = None, **model: Any) -> Path:
    """The same as an ordinary model folder."""
    tiny_model(**model).save_pretrained(folder)
    (tokenizer if tokenizer is not None else tiny_tokenizer()).save_pretrained(folder)
    return folder


def tiny_records(n: int = 5) -> list[Record]:
    """Pairs of different lengths."""
    sentence = "the value of this object is a list with items that are numbers or names and may be empty"
    words = sentence.split()
    return [
        Record(
            id=f"row-{i}",
            prompt=" ".join(words[: 2 + i]),
            responses=[" ".join(words[i : 2 * i + 3]), " ".join(reversed(words[: 7 - i]))],
            ranked=True,
        )
        for i in range(n)
    ]
