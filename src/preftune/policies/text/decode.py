"""What a model keeps while it writes: of every prompt once, and of the samples behind it, one token further at a time.

Samples are lines, G groups of n; a group has one prompt, and line g * n + s is its sample s. `Shared` holds the keys and values of a
prompt once for its n samples, which read them by one product, and works through the attention of packs: any model that packs suit.
`Repeated` is transformers' own cache with the prompt's part repeated for every sample, for those that they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from . import attention, layers, lean
from .layout import Branch, Pack
from .memory import free

if TYPE_CHECKING:
    from .logprob import Network
    from .tokens import Tokens

PACKED_FROM = 16  # tokens of a sample from which on another copy of the weights pays


class Writing(Protocol):
    """Samples under way."""

    def step(self, tokens: Tensor) -> Tensor:
        """Feed one token [G n] to every line; logits [G n, V] of the next."""
        ...

    def select(self, lines: Tensor) -> None:
        """Go on with these lines [G', n'] only; a group keeps its prompt, so the lines of a row are of one old group."""
        ...


class Writer:
    """A model as it is now, ready to write: its weights in the order in which few rows are multiplied fastest, where that pays."""

    def __init__(self, network: Network, lines: int, steps: int) -> None:
        self.network = network
        self.weights: layers.Packed = {}
        self.blocks: list[lean.Block] | None = None
        size = sum(p.nbytes for p in network.module.parameters())
        if network.engine == "fast" and steps >= PACKED_FROM and size < free(network.device) / 2:
            self.blocks = lean.blocks(network, lines) if network.lean != () else None
            self.weights = layers.packed(network.lm.get_output_embeddings() if self.blocks else network.lm, lines, network.dtype)

    def begin(self, prompts: Sequence[Tokens], n: int, steps: int) -> tuple[Tensor, Writing]:
        """Logits [G, V] of the first token after each prompt, and the state of n samples of each, of at most `steps` tokens."""
        self.network.mode()
        if self.network.engine == "fast":
            return Shared.begin(self, prompts, n, steps)
        return Repeated.begin(self.network, prompts, n)


class Shared:
    """One copy of a prompt's keys and values [G, H_kv, P, D] in each layer, padded on the right, beside the samples' own
    [G, H_kv, n, T, D]."""

    def __init__(self, writer: Writer, lengths: Sequence[int], n: int, steps: int) -> None:
        network = writer.network
        self.network, self.n, self.steps, self.weights, self.blocks = network, n, steps, writer.weights, writer.blocks
        self.t = 0  # tokens of every line before the one that is fed now
        self.lengths = torch.tensor(lengths, device=network.device)  # [G] tokens of the prompts
        self.prompts: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys and values
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.asked: dict[int, lean.Attended] = {}  # layer -> what its own code wants
        self.masks: dict[Any, Tensor | None] = {}  # by window, of the token that is fed now

    @classmethod
    def begin(cls, writer: Writer, prompts: Sequence[Tokens], n: int, steps: int) -> tuple[Tensor, Shared]:
        """As Writer.begin."""
        state, network = cls(writer, [len(prompt) for prompt in prompts], n, steps), writer.network
        one = Pack(tuple(Branch(prompt, [], []) for prompt in prompts), True)
        hidden = network.run_pack(network.parts["decoder"], "input_ids", network.ids(one.ids()), one, state)
        return network.logits(hidden[state.lengths.cumsum(0) - 1]), state

    def step(self, tokens: Tensor) -> Tensor:
        """As Writing.step."""
        positions = (self.lengths + self.t).repeat_interleave(self.n)
        with layers.using(self.weights):
            logits = self.network.logits(self.hidden(tokens, positions))
        self.t += 1
        self.masks.clear()
        return logits

    def hidden(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The last hidden states [N, d] of one token of every line: by few operations, once the model's own have given the same."""
        network = self.network
        if self.blocks and network.lean is None:
            theirs = self.theirs(tokens, positions)
            asked = tuple(self.asked[block.layer] for block in self.blocks)
            ours = lean.hidden(self.blocks, asked, network, self, tokens, positions) if lean.suits(asked) else None
            network.lean = asked if ours is not None and lean.agree(ours, theirs, network.dtype) else ()
        if self.blocks and network.lean:
            return lean.hidden(self.blocks, network.lean, network, self, tokens, positions)
        return self.theirs(tokens, positions)  # once more where it was compared: it has to keep its own keys and values

    def theirs(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """`hidden` by the model's own code."""
        mask = attention.pack_mask(self.network.device, None, self)
        decoder = self.network.parts["decoder"]
        return decoder(input_ids=tokens[None], attention_mask=mask, position_ids=positions[None], use_cache=False).last_hidden_state[0]  # type: ignore[no-any-return]

    def select(self, lines: Tensor) -> None:
        """As Writing.select."""
        groups, columns = lines[:, 0] // self.n, lines % self.n
        whole = len(groups) == len(self.lengths) and bool((groups == torch.arange(len(groups), device=groups.device)).all())
        for layer, (keys, values) in self.own.items():
            pick = lambda x: x[groups[:, None], :, columns, : self.t].transpose(1, 2)  # [G', n', H_kv, t, D]
            self.own[layer] = tuple(self.room(pick(x)) for x in (keys, values))  # type: ignore[assignment]
        if not whole:
            self.lengths = self.lengths[groups]
            longest = int(self.lengths.max())
            self.prompts = {i: (k[groups, :, :longest], v[groups, :, :longest]) for i, (k, v) in self.prompts.items()}
        self.n = lines.shape[1]

    def room(self, x: Tensor) -> Tensor:
        """[G, H_kv, n, t, D] at the start of a tensor for all steps."""
        wide = x.new_empty(*x.shape[:3], self.steps, x.shape[4])
        wide[:, :, :, : x.shape[3]] = x
        return wide

    # --- what the attention of a layer asks for ---------------------------------------------------------------------

    def keep_prompts(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """[1, H_kv, N, D] of all prompts, back to back."""
        cut = lambda x: [part.transpose(0, 1) for part in x[0].split(self.lengths.tolist(), 1)]
        padded = lambda x: torch.nn.utils.rnn.pad_sequence(cut(x), batch_first=True).transpose(1, 2).contiguous()
        self.prompts[layer] = padded(keys), padded(values)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
        """[1, N, H, D] for one token of every line: queries [1, H, N, D], keys and values [1, H_kv, N, D]."""
        self.asked[layer] = lean.Attended(scale, window, softcap)
        q, k, v = (x[0].transpose(0, 1) for x in (q * scale, k, v))
        return self.mixed(layer, q, k, v, window, softcap).to(v.dtype)[None]

    def mixed(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None = None) -> Tensor:
        """[N, H, D] for one token of every line: scaled queries [N, H, D], keys and values [N, H_kv, D], which are kept."""
        g, n, (_, h, d), kinds = len(self.lengths), self.n, q.shape, k.shape[1]
        own = torch.float32 if v.device.type == "cpu" else v.dtype  # small products: in 16 bits a CPU compiles them for each length anew
        if layer not in self.own:
            self.own[layer] = tuple(x.new_empty(g, kinds, n, self.steps, d, dtype=own) for x in (k, v))  # type: ignore[assignment]
        for mine, new in zip(self.own[layer], (k, v), strict=True):
            mine[:, :, :, self.t] = new.view(g, n, kinds, d).transpose(1, 2)
        before_k, before_v = (x.flatten(0, 1) for x in self.prompts[layer])  # [G H_kv, P, D]
        own_k, own_v = (x.flatten(0, 2)[:, : self.t + 1] for x in self.own[layer])  # [G H_kv n, t + 1, D]
        flat, p = q.view(g, n, kinds, h // kinds, d).transpose(1, 2).reshape(g * kinds, -1, d), before_k.shape[1]
        queries = flat.reshape(g * kinds * n, -1, d)
        scores = torch.empty(*flat.shape[:2], p + self.t + 1, dtype=torch.float32, device=q.device)
        scores[..., :p] = torch.bmm(flat.to(before_k.dtype), before_k.mT)  # [G H_kv, n H / H_kv, P]
        scores[..., p:] = torch.bmm(queries.to(own), own_k.mT).view(*flat.shape[:2], -1)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if (mask := self.mask(window, p)) is not None:
            scores = (scores.view(g, kinds, *scores.shape[1:]) + mask).flatten(0, 1)
        law = torch.softmax(scores, -1)
        near = torch.bmm(law[..., p:].reshape(*queries.shape[:2], -1).to(own), own_v)
        out = near.view(flat.shape) + torch.bmm(law[..., :p].to(before_v.dtype), before_v)
        return out.view(g, kinds, n, -1, d).transpose(1, 2).reshape(g * n, h, d)

    def mask(self, window: int | None, longest: int) -> Tensor | None:
        """[G, 1, 1, P + t + 1], 0 where a key is seen and -inf elsewhere; None where all are."""
        if window not in self.masks:
            at = torch.arange(longest + self.t + 1, device=self.lengths.device)
            after = (at >= longest)[None]
            position = torch.where(after, at - longest + self.lengths[:, None], at)  # [G, P + t + 1]
            seen = after | (at < self.lengths[:, None])
            if window is not None:
                seen = seen & (self.lengths[:, None] + self.t - position < window)
            unseen = torch.zeros(seen.shape, device=at.device).masked_fill(~seen, -torch.inf)[:, None, None]
            self.masks[window] = None if bool(seen.all()) else unseen
        return self.masks[window]


class Repeated:
    """A cache of transformers, all lines of one length by padding on the left."""

    def __init__(self, network: Network, mask: Tensor, cache: Any) -> None:
        self.network, self.mask, self.cache = network, mask, cache

    @classmethod
    def begin(cls, network: Network, prompts: Sequence[Tokens], n: int) -> tuple[Tensor, Repeated]:
        """As Writer.begin."""
        length = max(map(len, prompts))
        ids, mask = (torch.zeros(len(prompts), length, dtype=torch.int64) for _ in range(2))
        for i, prompt in enumerate(prompts):  # on the left, so that every prompt ends where generation begins
            ids[i, length - len(prompt) :] = torch.tensor(prompt)
            mask[i, length - len(prompt) :] = 1
        state = cls(network, mask.to(network.device), None)
        logits = state.run(ids.to(network.device))
        state.pick(torch.arange(len(prompts), device=network.device).repeat_interleave(n))
        return logits, state

    def step(self, tokens: Tensor) -> Tensor:
        """As Writing.step."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        return self.run(tokens[:, None])

    def select(self, lines: Tensor) -> None:
        """As Writing.select."""
        self.pick(lines.reshape(-1))

    def pick(self, lines: Tensor) -> None:
        """Go on with these lines."""
        self.mask = self.mask[lines]
        self.cache.batch_select_indices(lines)

    def run(self, ids: Tensor) -> Tensor:
        """Logits [N, V] after the last of `ids` [N, T]; positions count what the mask shows."""
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        full = None if bool(self.mask.all()) else self.mask
        out = self.network.lm(
            input_ids=ids, attention_mask=full, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.cache = out.past_key_values
        return out.logits[:, -1]  # type: ignore[no-any-return]
