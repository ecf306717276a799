"""A language model of 0.9 million weights, made from real sentences in a minute: what the catalogue is trained on.

    OMP_NUM_THREADS=1 python benchmarks/small_model.py

Llama, three layers of width 128, byte-level BPE of 2 048 tokens; text are the film review sentences of the parts `judge` and
`train` (data/ratings.py), whose ratings play no part here; the part `test` stays unseen. Kept in the cache folder under a hash
of texts and recipe.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from preftune.data.ratings import movie_reviews, texts_of
from preftune.policies.text import cache_folder
from preftune.types import Key

PROMPTS = [  # one sentence is asked for in eight ways: kto needs responses to other prompts
    f"{what} {how}:\n" for what in ("Film", "Movie") for how in ("review", "critic", "comment", "verdict")
]
VOCABULARY = 2048
SHAPE = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 384}
RECIPE: dict[str, Any] = {"steps": 350, "batch": 32, "lr": 3e-3, "warmup": 50, "clip": 1.0, "tokens": 64, "seed": 0}


def small_model(log: Any = print) -> Path:
    """The folder of the model, trained if the cache has none of this recipe."""
    texts, _ = movie_reviews()
    corpus = [text for part in ("judge", "train") for text in texts_of(texts, part).values()]
    unseen = list(texts_of(texts, "test").values())
    recipe = json.dumps([PROMPTS, VOCABULARY, SHAPE, RECIPE, corpus])
    folder = cache_folder() / "small-model" / hashlib.blake2b(recipe.encode(), digest_size=8).hexdigest()
    if not (folder / "made.json").exists():
        began = time.monotonic()
        tokenizer = train_tokenizer(corpus)
        model = train_model(tokenizer, corpus)
        nats = nats_of(model, tokenizer, unseen)
        bits = nats / math.log(2) / sum(len(text.encode()) for text in unseen)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made = {"bits_per_byte": bits, "parameters": sum(p.numel() for p in model.parameters()), "seconds": time.monotonic() - began}
        (folder / "made.json").write_text(json.dumps(made))
        log(f"{folder}: {made['parameters']:,} weights, {bits:.3f} bits a byte on unseen sentences, {made['seconds']:.0f} s")
    return folder


def train_tokenizer(corpus: list[str]) -> Any:
    """Byte-level BPE; eos ends a sentence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "<end>"], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([*corpus, *PROMPTS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<end>", clean_up_tokenization_spaces=False)


def encoded(tokenizer: Any, texts: list[str], prompts: list[str], tokens: int) -> list[tuple[list[int], int]]:
    """Prompt, sentence and end as ids, cut to so many tokens; and how many of them are the prompt's."""
    heads = {prompt: tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS}
    bodies = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = [([*heads[prompt], *body, tokenizer.eos_token_id], len(heads[prompt])) for body, prompt in zip(bodies, prompts, strict=True)]
    return [(ids[:tokens], head) for ids, head in rows]


def batch_of(rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [B, T] and labels [B, T], -100 at prompts and padding."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row, _ in rows])
    labels = torch.tensor([[*[-100] * head, *row[head:], *[-100] * (width - len(row))] for row, head in rows])
    return ids, labels


def train_model(tokenizer: Any, corpus: list[str]) -> Any:
    """From scratch: AdamW, warm-up, then a rate that falls linearly to 0."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(RECIPE["seed"])
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, **SHAPE, max_position_embeddings=256, tie_word_embeddings=True, **special)
    ).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RECIPE["lr"], weight_decay=0.0)
    key, steps, size = Key.of(RECIPE["seed"]), RECIPE["steps"], RECIPE["batch"]
    for step in range(steps):
        draw = key.fold("batch", step).numpy()
        chosen = [corpus[i] for i in draw.choice(len(corpus), size, replace=False)]
        ids, labels = batch_of(encoded(tokenizer, chosen, [PROMPTS[i] for i in draw.integers(len(PROMPTS), size=size)], RECIPE["tokens"]))
        for group in optimiser.param_groups:
            group["lr"] = RECIPE["lr"] * min((step + 1) / RECIPE["warmup"], (steps - step) / (steps - RECIPE["warmup"]))
        loss = model(ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE["clip"])
        optimiser.step()
    return model.eval()


@torch.no_grad()
def nats_of(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Negative log-likelihood of the sentences, ends included, each behind the first prompt."""
    rows, total = encoded(tokenizer, texts, [PROMPTS[0]] * len(texts), 256), 0.0
    for at in range(0, len(rows), 64):
        ids, labels = batch_of(rows[at : at + 64])
        total += float(torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="sum"))
    return total


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(small_model())
