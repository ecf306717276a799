"""Sampling: prompts are run once for all their samples, one token a step for all lines, finished samples leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import Tensor

from ... import processes
from ...types import Key, PreftuneError, Rows
from .tokens import Shifted, TextResponses, Tokens

if TYPE_CHECKING:
    from .decode import Writer
    from .mixture import Pen, TextMixture
    from .model import TextPolicy

BLOCK = 256  # columns of a distribution function that are added up together


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
    min_p: float = 0.0,
    stop: Sequence[str] = (),
    max_new_tokens: int = 64,
    tokens_per_batch: int = 16384,
) -> TextResponses:
    """n responses [B, n] to each prompt, with the log-probability of every token kept (full vocabulary, temperature one).

    Token t of sample s of a row is the inverse of the tempered, truncated distribution function at one uniform number that
    depends on (key, row id, s, t) only: batch size, batch mates and n do not change a draw, as far as rounding allows.
    temperature 0 takes the likeliest token. top_k = 0, top_p = 1 and min_p = 0 do not truncate; top_k acts before top_p, and that
    before min_p, the share of the likeliest token's probability below which a token is not drawn. Where they do, the log of the mass
    that they leave of the tempered law is kept as well. A response ends with its end-of-turn token, with the token that completes one of
    the texts in `stop`, or without either after max_new_tokens. tokens_per_batch bounds the cache, not the result.
    """
    prompts = checked(policy, rows, n, temperature, top_k, top_p, min_p, stop, max_new_tokens)
    uniforms = numpy.stack([key.fold("sample", s).uniform(rows.id, max_new_tokens) for s in range(n)], axis=1)  # [B, n, T]
    choose, ends = Choice(temperature, top_k, top_p, min_p), Ends(policy.stops, policy.tokenizer, stop)
    found: dict[tuple[int, int], Sample] = {}
    together = parts(prompts, n, max_new_tokens, tokens_per_batch)
    writer = policy.writer(max((len(part) * len(part[0][1]) for part in together), default=0), max_new_tokens)
    for part in together:
        numbers = numpy.stack([uniforms[tuple(zip(*samples, strict=True))] for _, samples in part])  # [G, samples, T]
        drawn = draw(writer, [prompt for prompt, _ in part], torch.from_numpy(numbers), choose, ends)
        found |= zip((at for _, samples in part for at in samples), drawn, strict=True)
    policy.network.drawn += sum(len(sample.tokens) for sample in found.values())
    table = [[found[b, s] for s in range(n)] for b in range(len(prompts))]
    pick = lambda name: tuple(tuple(getattr(sample, name) for sample in row) for row in table)
    return TextResponses(pick("tokens"), pick("logp"), policy.tokenizer, kept=pick("kept") if choose.truncates else None)


def checked(
    policy: TextPolicy | TextMixture,
    rows: Rows,
    n: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    stop: Sequence[str],
    max_new_tokens: int,
) -> list[Tokens]:
    """The prompts [B] as they are written behind, once all that is asked for can be done."""
    if n < 1 or max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or not 0 <= min_p < 1 or "" in stop:
        raise PreftuneError(
            f"n={n}, max_new_tokens={max_new_tokens}, temperature={temperature}, top_k={top_k}, top_p={top_p}, min_p={min_p}, stop={stop}; "
            "needed are n and max_new_tokens from 1, temperature and top_k from 0, 0 < top_p <= 1, 0 <= min_p < 1 and stops that are not "
            "empty; correct the value"
        )
    if any(isinstance(p, Shifted) for p in rows.prompt):
        raise PreftuneError("responses to prompts with moved embeddings were asked for; only scoring knows them; sample before perturbing")
    prompts = [tuple(p) or ((policy.bos,) if policy.bos is not None else ()) for p in rows.prompt]
    for name, prompt in zip(rows.id, prompts, strict=True):
        if not prompt:
            raise PreftuneError(f"row {name}: the prompt has no tokens and the tokenizer no bos token; give the row a prompt")
    policy.network.check_length(max(map(len, prompts), default=0) + max_new_tokens)
    return prompts


class Sample(NamedTuple):
    """One response: its tokens, their log-probs, and the log of the mass that was left to draw each from."""

    tokens: Tokens
    logp: tuple[float, ...]
    kept: tuple[float, ...]


class Ends:
    """Where a response ends."""

    def __init__(self, tokens: frozenset[int], tokenizer: Any, texts: Sequence[str]) -> None:
        self.tokens, self.tokenizer, self.texts = torch.tensor(sorted(tokens)), tokenizer, tuple(texts)

    def __call__(self, written: Tensor) -> Tensor:
        """Bool [N] for responses [N, t] so far."""
        over = torch.isin(written[:, -1], self.tokens)
        if self.texts:
            texts = self.tokenizer.batch_decode(written.tolist())
            over |= torch.tensor([any(end in text for end in self.texts) for text in texts], dtype=torch.bool)
        return over


Part = list[tuple[Tokens, list[tuple[int, int]]]]  # prompts with the (row, sample) that answer each, equally many


def parts(prompts: Sequence[Tokens], n: int, steps: int, budget: int) -> list[Part]:
    """What is drawn together: prompts of similar length, whose keys and values fit into `budget` tokens with those of their samples. A
    prompt that several rows ask is one where all are asked equally often."""
    asked: dict[Tokens, list[tuple[int, int]]] = {}
    for b, prompt in enumerate(prompts):
        asked.setdefault(prompt, []).extend((b, s) for s in range(n))
    each = list(asked.items())
    if len({len(samples) for _, samples in each}) > 1:
        each = [(prompt, [(b, s) for s in range(n)]) for b, prompt in enumerate(prompts)]
    found: list[Part] = []
    for prompt, samples in sorted(each, key=lambda one: -len(one[0])):
        width = max(1, min(len(samples), (budget - len(prompt)) // steps))
        for first in range(0, len(samples), width):
            block = samples[first : first + width]
            last = found[-1] if found else []
            if last and len(last[0][1]) == len(block) and (len(last) + 1) * (len(last[0][0]) + len(block) * steps) <= budget:
                last.append((prompt, block))
            else:
                found.append([(prompt, block)])
    return found


def by_row(rows: Rows, sample: Callable[[Rows], TextResponses], tokenizer: Any) -> TextResponses:
    """Responses to all rows; of several processes each samples for its share, and all have them all."""
    if processes.size() == 1:
        return sample(rows)

    def own(mine: list[int]) -> dict[str, Any]:
        found = sample(rows.take(mine))
        return {"tokens": found.tokens, "logp": found.logp, "kept": found.kept}

    return TextResponses(**processes.by_row([len(prompt) + 1 for prompt in rows.prompt], own), tokenizer=tokenizer)


def draw(writer: Writer | Pen, prompts: Sequence[Tokens], uniforms: Tensor, choose: Choice, ends: Ends) -> list[Sample]:
    """The samples, prompt by prompt; uniforms [G, n, T]. Those that are finished leave the batch once they are a fifth of it."""
    g, n, steps = uniforms.shape
    numbers = uniforms.reshape(g * n, steps)
    tokens = torch.zeros(g * n, steps, dtype=torch.int64)
    logp, kept, length = torch.zeros(g * n, steps), torch.zeros(g * n, steps), torch.zeros(g * n, dtype=torch.int64)
    logits, writing = writer.begin(prompts, n, steps)
    device = logits.device
    logits = logits.repeat_interleave(n, 0)
    lines, alive = torch.arange(g * n), torch.ones(g * n, dtype=torch.bool)  # which sample a line is, and whether it goes on
    for t in range(steps):
        picked, value, mass = (x.cpu() for x in choose(logits, numbers[lines, t]))
        here = lines[alive]
        tokens[here, t], logp[here, t], kept[here, t], length[here] = picked[alive], value[alive], mass[alive], t + 1
        going = alive.clone()
        going[alive] = ~ends(tokens[here, : t + 1])
        alive = going
        if t + 1 == steps or not alive.any():
            break
        if (some := fewer(alive.view(-1, n))) is not None:
            writing.select(some.to(device))
            n, some = some.shape[1], some.reshape(-1)
            lines, alive, picked = lines[some], alive[some], picked[some]
        logits = writing.step(picked.to(device))
    cut = lambda x: [tuple(row[:t]) for row, t in zip(x.tolist(), length.tolist(), strict=True)]
    return [Sample(*one) for one in zip(cut(tokens), cut(logp), cut(kept), strict=True)]


def fewer(alive: Tensor) -> Tensor | None:
    """Lines [G', n'] that hold all samples under way of [G, n], where they are fewer by a fifth; a group with fewer of them than another
    takes finished ones along."""
    count = alive.sum(1)
    groups, most = count.nonzero()[:, 0], int(count.max())
    if len(groups) * most > 0.8 * alive.numel():
        return None
    order = (~alive[groups]).int().argsort(dim=1, stable=True)[:, :most]
    return groups[:, None] * alive.shape[1] + order


class Choice:
    """Which token follows: the inverse of the distribution function in vocabulary order."""

    def __init__(self, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> None:
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.truncates = temperature > 0 and (top_k > 0 or top_p < 1 or min_p > 0)

    def __call__(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [N] for logits [N, V] and numbers in [0, 1) [N]; their log-probs float32 at temperature one, from all tokens; and the
        log of the mass of the tempered law that they were drawn from."""
        z, uniform = logits.float(), uniform.to(logits.device if logits.device.type != "mps" else "cpu")
        kept = torch.zeros(len(z), device=z.device)
        if self.temperature == 0:
            tokens = z.argmax(-1)
        elif self.truncates:
            law = self.law(logits.to(uniform.device))
            total = law.cumsum(-1)
            tokens = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)[:, 0].to(z.device)
            kept = total[:, -1].log().to(z)
        else:
            top = z.amax(-1, keepdim=True)
            p = z - top
            tokens, total = inverse((p if self.temperature == 1 else p.div_(self.temperature)).exp_(), uniform)
            if self.temperature == 1:
                return tokens, ((z.gather(1, tokens[:, None]) - top)[:, 0] - total.log().to(z)), kept
        return tokens, z.gather(1, tokens[:, None])[:, 0] - z.logsumexp(-1), kept

    def law(self, logits: Tensor) -> Tensor:
        """Tempered and truncated probabilities [N, V], float64; what is left of them adds up to the mass that is kept."""
        scores = logits.double() / self.temperature
        law = scores.softmax(-1)
        if 0 < self.top_k < scores.shape[-1]:
            law = law.masked_fill(scores < scores.topk(self.top_k, dim=-1).values[:, -1:], 0)
        if self.top_p < 1:
            # the smallest set whose mass reaches top_p; tokens below the floor hold less than 1 - top_p together, so none is in it
            whole = law.sum(-1, keepdim=True)
            floor = whole * (1 - self.top_p) / law.shape[-1]
            falling, order = law.topk(max(1, int((law >= floor).sum(-1).max())), dim=-1)
            inside = falling.cumsum(-1) - falling < self.top_p * whole
            law = law * torch.zeros_like(law).scatter(1, order, inside.double())
        return law.masked_fill(law < self.min_p * law.amax(-1, keepdim=True), 0) if self.min_p else law


def inverse(p: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The first column [N] at which the running sum of a row of p [N, V] exceeds `uniform` of the row's sum, and that sum: first the block
    of columns in which that happens, then the column in it, so that running sums in float64 are few."""
    n, v = p.shape
    p = torch.nn.functional.pad(p, (0, -v % BLOCK)).view(n, -1, BLOCK)
    sums = p.sum(-1).to(uniform.device).double()
    running = sums.cumsum(1)
    wanted = uniform[:, None] * running[:, -1:]
    block = torch.searchsorted(running, wanted, right=True).clamp_(max=sums.shape[1] - 1)  # [N, 1]
    share = (wanted - (running - sums).gather(1, block)) / sums.gather(1, block)  # of the block's sum that is passed in it
    inner = p[torch.arange(n, device=p.device), block[:, 0].to(p.device)].to(uniform.device).double().cumsum(1)
    column = torch.searchsorted(inner, share.clamp_(0, 1 - 2**-50) * inner[:, -1:], right=True).clamp_(max=BLOCK - 1)
    return (block * BLOCK + column)[:, 0].to(p.device), running[:, -1].to(p.device)
