"""Plain sampling: the prompts are run once, their cache is repeated for the n samples, finished samples leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from ... import processes
from ...types import Key, PreftuneError, Rows
from .tokens import Shifted, TextResponses, Tokens

if TYPE_CHECKING:
    from .mixture import TextMixture
    from .model import TextPolicy


@torch.no_grad()
def generate(
    policy: TextPolicy | TextMixture,
    rows: Rows,
    n: int,
    key: Key,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int = 64,
    tokens_per_batch: int = 16384,
) -> TextResponses:
    """n responses [B, n] to each prompt, with the log-probability of every token kept (full vocabulary, temperature one).

    Token t of sample s of a row is the inverse of the tempered, truncated distribution function at one uniform number that
    depends on (key, row id, s, t) only: batch size, batch mates and n do not change a draw, as far as rounding allows.
    temperature 0 takes the likeliest token. top_k = 0 and top_p = 1 do not truncate; top_k acts before top_p. A response
    ends with its end-of-turn token, or without one after max_new_tokens. tokens_per_batch bounds the cache, not the result.
    """
    if n < 1 or max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise PreftuneError(
            f"n={n}, max_new_tokens={max_new_tokens}, temperature={temperature}, top_k={top_k}, top_p={top_p}; "
            "needed are n and max_new_tokens from 1, temperature and top_k from 0, 0 < top_p <= 1; correct the value"
        )
    if any(isinstance(p, Shifted) for p in rows.prompt):
        raise PreftuneError("responses to prompts with moved embeddings were asked for; only scoring knows them; sample before perturbing")
    prompts = [tuple(p) or ((policy.bos,) if policy.bos is not None else ()) for p in rows.prompt]
    for name, prompt in zip(rows.id, prompts, strict=True):
        if not prompt:
            raise PreftuneError(f"row {name}: the prompt has no tokens and the tokenizer no bos token; give the row a prompt")
    policy.network.check_length(max(map(len, prompts), default=0) + max_new_tokens)
    uniforms = numpy.stack([key.fold("sample", s).uniform(rows.id, max_new_tokens) for s in range(n)], axis=1)  # [B, n, T]
    choose = Choice(temperature, top_k, top_p)
    tokens: list[list[Tokens]] = [[()] * n for _ in prompts]
    logps: list[list[tuple[float, ...]]] = [[()] * n for _ in prompts]
    for chunk in prompt_chunks([len(p) + max_new_tokens for p in prompts], n, tokens_per_batch):
        width = max(1, tokens_per_batch // (len(prompts[chunk[0]]) + max_new_tokens))
        for first in range(0, n, width):
            columns = range(first, min(n, first + width))
            drawn = draw(policy, [prompts[b] for b in chunk], uniforms[chunk][:, columns], choose)  # type: ignore[misc]
            for (b, s), (ids, values) in zip(((b, s) for b in chunk for s in columns), drawn, strict=True):
                tokens[b][s], logps[b][s] = ids, values
    return TextResponses(tuple(map(tuple, tokens)), tuple(map(tuple, logps)), policy.tokenizer)


def by_row(rows: Rows, sample: Callable[[Rows], TextResponses], tokenizer: Any) -> TextResponses:
    """Responses to all rows; of several processes each samples for its share, and all have them all."""
    if processes.size() == 1:
        return sample(rows)

    def own(mine: list[int]) -> dict[str, Any]:
        found = sample(rows.take(mine))
        return {"tokens": found.tokens, "logp": found.logp}

    return TextResponses(**processes.by_row([len(prompt) + 1 for prompt in rows.prompt], own), tokenizer=tokenizer)


def prompt_chunks(lengths: Sequence[int], n: int, budget: int) -> list[list[int]]:
    """Rows of similar length whose n samples fit into `budget` tokens together; at least one row each."""
    chunks: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if chunks and (len(chunks[-1]) + 1) * n * lengths[chunks[-1][0]] <= budget:
            chunks[-1].append(i)
        else:
            chunks.append([i])
    return chunks


def draw(
    policy: TextPolicy | TextMixture, prompts: Sequence[Tokens], uniforms: numpy.ndarray, choose: Choice
) -> list[tuple[Tokens, tuple[float, ...]]]:
    """(tokens, log-probs) of the samples, row by row; uniforms [B, n, T]."""
    device, (b, n, steps) = policy.network.device, uniforms.shape
    length = max(map(len, prompts))
    distinct = list(dict.fromkeys(prompts))  # each runs once, however many rows ask it
    ids = torch.zeros(len(distinct), length, dtype=torch.int64)
    mask = torch.zeros(len(distinct), length, dtype=torch.int64)
    for i, prompt in enumerate(distinct):  # on the left, so that every prompt ends where generation begins
        ids[i, length - len(prompt) :] = torch.tensor(prompt)
        mask[i, length - len(prompt) :] = 1
    mask, numbers = mask.to(device), torch.from_numpy(uniforms.reshape(b * n, steps))
    logits, cache = policy.step(ids.to(device), mask, None)
    place = {prompt: i for i, prompt in enumerate(distinct)}
    lines = torch.tensor([place[prompt] for prompt in prompts for _ in range(n)], device=device)
    logits, mask = logits[lines], mask[lines]
    cache.batch_select_indices(lines)

    out: list[list[int]] = [[] for _ in range(b * n)]
    kept: list[list[float]] = [[] for _ in range(b * n)]
    alive = torch.arange(b * n)  # which sample each line of the batch is
    for t in range(steps):
        picked = choose(logits, numbers[alive, t])  # [N]
        values = logits.float().log_softmax(-1).gather(1, picked[:, None])[:, 0].tolist()
        for sample, token, value in zip(alive.tolist(), picked.tolist(), values, strict=True):
            out[sample].append(token)
            kept[sample].append(value)
        going = torch.tensor([token not in policy.stops for token in picked.tolist()])
        if t + 1 == steps or not going.any():
            break
        if not going.all():
            lines = going.nonzero()[:, 0].to(device)
            alive, mask, picked = alive[going], mask[lines], picked[lines]
            cache.batch_select_indices(lines)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits, cache = policy.step(picked[:, None], mask, cache)
    return [(tuple(ids), tuple(values)) for ids, values in zip(out, kept, strict=True)]


def step(lm: Any, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits [N, V] after the last of `ids` [N, T], and the cache that now holds them; positions count what the mask shows."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    full = None if bool(mask.all()) else mask
    out = lm(input_ids=ids, attention_mask=full, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1], out.past_key_values


class Choice:
    """Which token follows: the inverse of the distribution function in vocabulary order, float64."""

    def __init__(self, temperature: float, top_k: int, top_p: float) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Tokens [N] for logits [N, V] and numbers in [0, 1) [N]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        place = logits.device if logits.device.type != "mps" else torch.device("cpu")  # no float64 on mps
        total = self.law(logits.to(place)).cumsum(-1)  # [N, V]
        return torch.searchsorted(total, uniform.to(place)[:, None] * total[:, -1:], right=True)[:, 0].to(logits.device)

    def law(self, logits: Tensor) -> Tensor:
        """Tempered and truncated probabilities [N, V], float64."""
        scores = logits.double() / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            lowest = scores.topk(self.top_k, dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < lowest, -torch.inf)
        law = scores.softmax(-1)
        if self.top_p < 1:
            # the smallest set whose mass reaches top_p; tokens below the floor hold less than 1 - top_p together, so none is in it
            floor = (1 - self.top_p) / law.shape[-1]
            falling, order = law.topk(max(1, int((law >= floor).sum(-1).max())), dim=-1)
            inside = falling.cumsum(-1) - falling < self.top_p
            law = law * torch.zeros_like(law).scatter(1, order, inside.double())
        return law
