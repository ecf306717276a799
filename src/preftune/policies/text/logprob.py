"""Log-probabilities of completions: one causal pass, the head at completion positions only, in float32.

Two engines give the same numbers up to rounding. "fast" runs packs (`layout`): every prompt once, its distinct responses behind it,
no padding; the head makes its gradient on the way (`head`). "plain" runs whole sequences, right-padded together, prompts repeated,
with the model's own attention and head: it is what the fast one is compared with, and what a model is scored by that packs do not
suit. What counts is told by lengths, never by a pad id. `tokens_per_batch = 0` runs every response alone: then a value depends on
its own prompt and response only, by construction. The kept states of a frozen trunk are made that way on a processor whose
products depend on what else is in them (`steady`), since a resumed run would make them in other packs and differ in the last bits.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from ... import processes
from ...types import PreftuneError, Rows, Scored, Want
from . import attention, layers
from .head import Head, Tied, room, token_logp
from .layers import close
from .layout import Branch, Pack, lines, pack, tokens_of
from .sharding import Shards
from .tokens import Pair, Prompt, Shifted, Tokens

if TYPE_CHECKING:
    from .decode import Shared
    from .lean import Attended
    from .vllm import Vllm

CHUNK = 1 << 24  # logits that a head which is not fused makes at a time: 64 MiB in float32
PROBE = 24  #      tokens of the sequence that checks the cuts of a model
FILLER = Branch((0,) * 16, [], [])  # behind a few tokens of a trunk: products of one to three rows take another path in the libraries
KINDS = {"full_attention", "sliding_attention"}  # of layers that packs suit
NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


class LastHidden:
    """What a decoder returns, with the last hidden state and nothing else: any other field is None."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]


class PassThrough(nn.Module):
    """Stands in for the decoder: its input is already the last hidden state."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> LastHidden:
        """[N, T, d] -> the same, in the envelope of a decoder."""
        return LastHidden(inputs_embeds)


def twin(module: nn.Module, **children: nn.Module) -> Any:
    """A shallow copy that shares all parameters, with some children replaced."""
    other = copy.copy(module)
    other._modules = {**module._modules, **children}
    return other


class Store:
    """Hidden states by key within a limit of bytes; the least recently used go first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.kept: OrderedDict[Any, Tensor] = OrderedDict()

    def get(self, key: Any) -> Tensor | None:
        """The tensor, marked as used, or None."""
        if key in self.kept:
            self.kept.move_to_end(key)
        return self.kept.get(key)

    def put(self, key: Any, value: Tensor) -> None:
        """Keep a copy: a slice would keep its whole batch alive."""
        self.size += value.nbytes - (self.kept[key].nbytes if key in self.kept else 0)
        self.kept[key] = value.clone()
        while self.size > self.limit:
            self.size -= self.kept.popitem(last=False)[1].nbytes


@dataclass(frozen=True)
class Measured:
    """What one pass says about each of N responses."""

    logp: list[Tensor]  #                         [T_i] float32 per token
    states: list[Tensor] | None = None  #         [T_i, d] last hidden states at the response's own tokens
    collision: list[Tensor] | None = None  #      [T_i] float32, log sum_v pi(v)^2 where each token was predicted; no gradient


class Network(nn.Module):
    """A causal language model together with the cuts that scoring needs: decoder (trunk and top) and head.

    Where only the last layers train, `trunk` are the frozen layers below; their hidden states of a sequence are computed
    once and kept in memory up to `trunk_bytes`, for the policy, its copies and all epochs. Every cut is compared with the
    whole model on a probe sequence; where it differs it is not used, and `trunk_note` or `engine_note` says so.
    """

    def __init__(
        self,
        module: Any,
        *,
        tokens_per_batch: int = 2048,
        engine: str = "fast",
        trunk_bytes: int = 1 << 30,
        trunk_tokens: int | None = None,
        checkpointing: int | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.module = module
        masters = any(p.requires_grad and p.dtype == torch.float32 for p in module.parameters()) and not hasattr(module, "peft_config")
        self.lean: tuple[Attended, ...] | None = None  # how samples are written by `lean`, () not at all; the first one finds out
        self.mixed = precision if masters and precision != torch.float32 else None  # float32 weights, passes in `precision`
        self.tokens_per_batch, self.engine = tokens_per_batch, engine
        self.checkpointing = checkpointing  #  layers that are computed again; None: a plan of the memory may choose
        self.budget = tokens_per_batch  #      tokens whose activations are held at one time
        self.trunk_tokens = trunk_tokens or 0  # as tokens_per_batch, for the trunk
        lm = module.get_base_model() if hasattr(module, "peft_config") else module
        decoder = getattr(lm, lm.base_model_prefix)
        # kept outside the module tree: these share their parameters with `module`
        self.parts = {"lm": lm, "decoder": decoder, "head": twin(lm, **{lm.base_model_prefix: PassThrough()})}
        self.cut = 0  #                        layers in the trunk
        self.store = Store(trunk_bytes)
        self.plain_head = False  #             the logits are a product with the head's weights, scaled and capped as its config says
        self.embeddings_flaw: str | None = None  # why they cannot take the place of ids; None: not asked yet
        self.shards: Shards | None = None  #   where every process holds a part of the weights
        self.width = 0  #                      d of the last hidden state
        self.sampler: Vllm | None = None  #    what writes samples in place of this network
        self.drawn = 0  #                      tokens of all samples so far, in this process
        self.depth = max((len(child) for child in decoder.children() if isinstance(child, nn.ModuleList)), default=0)  # layers
        self.digests: dict[str, bytes] = {}  # of tensors that do not train
        self.engine_note = f"{engine}, as asked"
        self.trunk_note = "none: every layer or an adapter trains"
        with self.autocast():
            self.check_head()
            self.check_packs()
            self.cut_trunk(trunk_tokens)

    @property
    def lm(self) -> Any:
        """The causal language model without adapter wrapper."""
        return self.parts["lm"]

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the matrix products."""
        if self.mixed is not None:
            return self.mixed
        weight: Tensor = self.lm.get_input_embeddings().weight
        return weight.dtype if weight.dtype.is_floating_point else torch.float32

    def forward(self, run: Callable[..., Any], *args: Any) -> Any:
        """Call `run(*args)`; torch.func.functional_call puts an overlay of parameters in place around it."""
        return run(*args)

    def autocast(self) -> AbstractContextManager[Any]:
        """Passes in 16 bits where the weights that train are kept in 32."""
        return nullcontext() if self.mixed is None else torch.autocast(self.device.type, self.mixed)

    def mode(self) -> None:
        """Training mode only where checkpointing asks for it; dropout is zero in both."""
        wanted = bool(self.checkpointing) and torch.is_grad_enabled()
        if self.lm.training != wanted:
            self.module.train(wanted)

    def check_length(self, tokens: int) -> None:
        """A sequence must fit into the positions that the model knows."""
        limit = getattr(self.lm.config, "max_position_embeddings", None)
        if limit is not None and tokens > limit:
            raise PreftuneError(
                f"a prompt and its response have {tokens} tokens together, but the model knows {limit} positions; "
                "lower max_prompt, max_response or max_new_tokens"
            )

    # --- the cuts ---------------------------------------------------------------------------------------------------

    def probe(self) -> Tensor:
        """A sequence [1, PROBE] of token ids spread over the vocabulary."""
        size = self.lm.get_input_embeddings().weight.shape[0]
        return (torch.arange(PROBE, device=self.device) * 7919 % size)[None]

    @torch.no_grad()
    def check_head(self) -> None:
        """The head alone must give the whole model's logits; find out whether it is a plain matrix product."""
        self.mode()
        whole = self.lm(input_ids=self.probe(), use_cache=False).logits[0]
        hidden = self.run_padded(self.parts["decoder"], "input_ids", [self.probe()[0]])[0]
        self.width = hidden.shape[1]
        ours = self.logits(hidden)
        if not close(ours, whole):
            raise PreftuneError(
                f"the hidden states and the output head of {type(self.lm).__name__} do not give the logits of the whole model "
                f"(largest difference {(ours - whole).abs().max().item():.2g}); a decoder-only model is needed; use another architecture"
            )
        head = self.lm.get_output_embeddings()
        self.plain_head = type(head) is nn.Linear and close(self.head().cap(linear(hidden.float(), head.weight.float(), head.bias)), whole)

    def head(self) -> Head:
        """The head as its weights are now."""
        config, linear_head = self.lm.config, self.lm.get_output_embeddings()
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return Head(linear_head.weight, linear_head.bias, scale, getattr(config, "final_logit_softcapping", None), self.dtype)

    @torch.no_grad()
    def check_packs(self) -> None:
        """A pack must give every response the states that it has alone behind its prompt; otherwise whole sequences are run."""
        if self.engine == "plain":
            return
        kinds = set(getattr(self.lm.config, "layer_types", None) or ()) - KINDS
        if not attention.use(self.lm, True):
            reason = "its attention is not one that can be replaced"
        elif kinds:
            reason = f"it has layers of the kind {min(kinds)}"
        else:
            ids, third = tuple(self.probe()[0].tolist()), PROBE // 3
            pairs: list[Pair] = [(ids[:third], ids[third:]), (ids[:third], ids[-third:]), (ids[2:third], ids[9:])]
            whole = self.hidden_padded(pairs)
            try:
                if alike(torch.cat(self.hidden(pairs)), torch.cat(whole), self.dtype):
                    layers.use(self.lm)
                    if self.lm.get_input_embeddings().weight.requires_grad:
                        self.embeddings_flaw = self.find_embeddings_flaw()  # `tie` wants to know
                    return
                reason = "in packs it gives other numbers"
            except (attention.Unpackable, RuntimeError, TypeError, ValueError, IndexError) as error:
                reason = f"in packs it fails: {error}"
        attention.use(self.lm, False)
        self.engine = "plain"
        self.engine_note = f"plain: {type(self.parts['decoder']).__name__} runs one row per response, since {reason}"

    @torch.no_grad()
    def cut_trunk(self, asked: int | None) -> None:
        """Cut the decoder below the first layer that trains, if the two halves give what the whole gives; `asked` are its tokens."""
        decoder = self.parts["decoder"]
        trainable = {id(p) for p in self.module.parameters() if p.requires_grad}
        lists = [(name, child) for name, child in decoder.named_children() if isinstance(child, nn.ModuleList)]
        if not trainable or not self.store.limit or not lists:
            self.trunk_note = "none: nothing trains, no memory was granted, or the layers were not found"
            return
        name, layers = lists[0]
        cut = next((i for i, layer in enumerate(layers) if any(id(p) in trainable for p in layer.parameters())), 0)
        inside = {id(p) for layer in layers[cut:] for p in layer.parameters()}
        norms = [norm for norm in NORMS if hasattr(decoder, norm)]
        kinds = set(getattr(self.lm.config, "layer_types", None) or ())
        if cut == 0 or hasattr(self.module, "peft_config") or not trainable <= inside:
            return
        if len(norms) != 1 or len(kinds) > 1:
            self.trunk_note = f"none: {type(decoder).__name__} has {len(norms)} known final norms and {len(kinds)} kinds of layers"
            return
        trunk = twin(decoder, **{name: layers[:cut], norms[0]: nn.Identity()})
        top = twin(decoder, **{name: layers[cut:]})
        whole = self.run_padded(decoder, "input_ids", [self.probe()[0]])[0]
        halves = self.run_padded(top, "inputs_embeds", self.run_padded(trunk, "input_ids", [self.probe()[0]]))[0]
        if not close(halves, whole):
            self.trunk_note = f"none: {type(decoder).__name__} gives other numbers in two halves"
            return
        self.parts |= {"trunk": trunk, "top": top}
        self.cut = cut
        if asked is None:
            first = twin(decoder, **{name: layers[:1], norms[0]: nn.Identity()})
            self.trunk_tokens = 16384 if self.device.type != "cpu" else 1024 if self.engine == "fast" and self.steady(first) else 0
        self.trunk_note = f"the first {cut} of {len(layers)} layers are frozen and computed once per sequence"

    def steady(self, layer: Any) -> bool:
        """Whether a sequence has the same bits alone and anywhere in a pack of a thousand tokens, asked of one layer."""
        ids = tuple(self.probe()[0].tolist())
        pairs: list[Pair] = [(ids[:9] + (i,), ids[9 + i % 5 :]) for i in range(32)]
        [full] = pack(pairs, 1 << 20, whole=True)[0]
        run = lambda one: self.run_pack(layer, "input_ids", self.ids(one.ids()), one)
        together = run(full).split([tokens_of(branch, True) for branch in full.branches])
        return all(torch.equal(run(Pack((branch,), True)), there) for branch, there in zip(full.branches, together, strict=True))

    # --- several processes ------------------------------------------------------------------------------------------

    def shard(self) -> None:
        """Keep a part of every weight and leave the rest to the other processes. Nothing of a frozen trunk is kept then: every process
        must make the same passes."""
        lists = [child for child in self.parts["decoder"].children() if isinstance(child, nn.ModuleList)]
        if not lists:
            raise PreftuneError(
                f"no list of layers was found in {type(self.parts['decoder']).__name__}, needed one to cut the weights; use another "
                "architecture, or a configuration without FSDP"
            )
        self.embeddings_flaw = self.find_embeddings_flaw()  # which asks for a gradient outside of any pass
        if self.cut:
            self.cut, self.trunk_note = 0, "none: the weights are in shards"
        self.shards = Shards(self, lists[0])

    def together(self) -> AbstractContextManager[None]:
        """All weights at hand, for passes that other processes do not make."""
        return nullcontext() if self.shards is None else self.shards.together()

    def missing(self, passes: int) -> int:
        """How many passes more another process makes: where weights are in shards all must make as many. Asked before them."""
        return 0 if self.shards is None else int(processes.largest(passes)) - passes

    def made_up(self, values: list[Tensor], missing: int) -> list[Tensor]:
        """The same values after so many passes more, on one token each, whose gradient is 0 and has to be asked for as well."""
        for _ in range(missing):
            idle = self.run_padded(self.parts["decoder"], "input_ids", [self.ids((0,))])[0]
            values = [value + 0 * idle.sum() for value in values[:1]] + values[1:]
        return values

    # --- running a decoder, whole or half: x is ids [T] or lower hidden states [T, d] -------------------------------

    def run_padded(self, decoder: Any, name: str, batch: Sequence[Tensor]) -> list[Tensor]:
        """Hidden states [T_i, d] of whole sequences, right-padded together."""
        lengths = [len(x) for x in batch]
        inputs = {name: nn.utils.rnn.pad_sequence(list(batch), batch_first=True)}  # [N, T] or [N, T, d]
        if min(lengths) < max(lengths):
            inputs["attention_mask"] = self.mask(lengths)
        hidden = decoder(use_cache=False, **inputs).last_hidden_state
        return [h[:n] for h, n in zip(hidden.unbind(0), lengths, strict=True)]

    def run_pack(self, decoder: Any, name: str, x: Tensor, one: Pack, writing: Shared | None = None) -> Tensor:
        """Hidden states [N, d] of a pack, whose keys and values are kept where samples are to follow."""
        return decoder(  # type: ignore[no-any-return]
            **{name: x[None]},
            attention_mask=attention.pack_mask(self.device, one.segments, writing),
            position_ids=one.positions().to(self.device)[None],
            use_cache=False,
        ).last_hidden_state[0]

    def mask(self, lengths: Sequence[int]) -> Tensor:
        """[N, max] int64, one where a sequence is."""
        return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().to(self.device)

    # --- hidden states ----------------------------------------------------------------------------------------------

    def hidden(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Hidden states [T_i, d] that predict the T_i tokens of each response; the last prompt position predicts the first."""
        self.mode()
        if self.engine == "plain":
            return self.hidden_padded(pairs)
        packs, places = pack(pairs, self.tokens_per_batch)
        found = [h for one in packs for h in self.states(one)[one.reads().to(self.device)].split(one.lengths)]
        return [found[i] for i in lines(packs, places)]

    def states(self, one: Pack, tied: Tied | None = None) -> Tensor:
        """Hidden states [N, d] of a pack."""
        if any(isinstance(branch.prompt, Shifted) for branch in one.branches):  # what is kept of the trunk belongs to clean prompts
            return self.run_pack(self.parts["decoder"], "inputs_embeds", torch.cat(self.embedded_branches(one)), one)
        if self.cut:
            return self.run_pack(self.parts["top"], "inputs_embeds", torch.cat(self.trunk_states(one)), one)
        if tied is not None:
            return self.run_pack(self.parts["decoder"], "inputs_embeds", tied.look_up(self.ids(one.ids())), one)
        return self.run_pack(self.parts["decoder"], "input_ids", self.ids(one.ids()), one)

    def tie(self) -> Tied | None:
        """What embeddings and head have in common in passes with gradients, where they are one tensor and embeddings can be given."""
        table, weight = self.lm.get_input_embeddings(), self.lm.get_output_embeddings().weight
        if not (torch.is_grad_enabled() and table.weight is weight and weight.requires_grad and self.plain_head) or self.shards is not None:
            return None
        ordinary = type(table) is nn.Embedding and table.max_norm is None and not table.scale_grad_by_freq and not table.sparse
        return Tied(table) if ordinary and self.embeddings_flaw == "" else None

    def embedded_branches(self, one: Pack) -> list[Tensor]:
        """Embeddings of all prompts and bodies of a pack, in its order."""
        return [x for branch in one.branches for x in (self.embedded(branch.prompt), *map(self.embedded, one.bodies(branch)))]

    @torch.no_grad()
    def trunk_states(self, one: Pack) -> list[Tensor]:
        """Frozen hidden states at the cut of all prompts and bodies of a pack, in its order; kept or computed."""
        pieces = lambda branch, bodies: [(branch.prompt, body) for body in ((), *(body for body in bodies if body))]  # () is the prompt
        wanted = [key for branch in one.branches for key in pieces(branch, one.bodies(branch))]
        known = {key: self.store.get(key) for key in wanted}
        missing: list[Pair] = [key for key, state in known.items() if state is None]
        alone = {prompt for prompt, body in missing if not body} - {prompt for prompt, body in missing if body}
        run = [(prompt, body) for prompt, body in missing if body or prompt in alone]
        for part in pack(run, self.trunk_tokens, whole=True)[0]:
            part = part if len(part.segments) >= len(FILLER.prompt) else Pack((*part.branches, FILLER), True)
            states = iter(self.run_pack(self.parts["trunk"], "input_ids", self.ids(part.ids()), part).split(part.segments.lengths))
            for branch in part.branches:  # the filler's last states are not asked for
                for key in pieces(branch, branch.responses) if branch is not FILLER else ():
                    state = next(states)
                    if known.get(key) is None:
                        known[key] = state
                        self.store.put(key, state)
        return [known[key] for key in wanted]  # type: ignore[misc]

    def hidden_padded(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Whole sequences in padded batches."""
        out: list[Tensor] = [torch.empty(0)] * len(pairs)
        batches = groups([len(prompt) + len(response) - 1 for prompt, response in pairs], self.tokens_per_batch)
        missing = self.missing(len(batches))
        for group in batches:
            clean = [(p, r) for p, r in (pairs[i] for i in group) if not isinstance(p, Shifted)]
            if len(clean) < len(group):
                moved = [torch.cat([self.embedded(p), self.embedded(r[:-1])]) for p, r in (pairs[i] for i in group)]
                states = self.run_padded(self.parts["decoder"], "inputs_embeds", moved)
            elif self.cut:
                states = self.run_padded(self.parts["top"], "inputs_embeds", self.trunk_padded(clean))
            else:
                states = self.run_padded(self.parts["decoder"], "input_ids", [self.ids(p + r[:-1]) for p, r in clean])
            for i, state in zip(group, states, strict=True):
                out[i] = state[len(pairs[i][0]) - 1 :]
        return self.made_up(out, missing)

    @torch.no_grad()
    def trunk_padded(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Tensor]:
        """Frozen hidden states [P + T_i - 1, d] at the cut, kept or computed."""
        known = {pair: self.store.get(pair) for pair in pairs}
        missing = [pair for pair, state in known.items() if state is None]
        for group in groups([len(p) + len(r) - 1 for p, r in missing], self.trunk_tokens):
            chosen = [missing[g] for g in group]
            fresh = self.run_padded(self.parts["trunk"], "input_ids", [self.ids(p + r[:-1]) for p, r in chosen])
            for pair, state in zip(chosen, fresh, strict=True):
                known[pair] = state
                self.store.put(pair, state)
        return [known[pair] for pair in pairs]  # type: ignore[misc]

    def embedded(self, prompt: Prompt) -> Tensor:
        """Embeddings [P, d], moved where the prompt is; in the embeddings' own precision, which bounds how small a move can be."""
        if not isinstance(prompt, Shifted):
            return self.lm.get_input_embeddings()(self.ids(prompt))  # type: ignore[no-any-return]
        clean = self.embedded(prompt.tokens)
        return (clean.float() + prompt.offset.to(clean.device)).to(clean.dtype)

    def check_embeddings(self) -> None:
        """Embeddings in place of ids must give the same states, and a gradient must come back to them."""
        if self.embeddings_flaw is None:
            self.embeddings_flaw = self.find_embeddings_flaw()
        if self.embeddings_flaw:
            raise PreftuneError(
                f"the embeddings of {type(self.lm).__name__} cannot be moved: {self.embeddings_flaw}; a decoder that takes inputs_embeds "
                "and passes gradients on is needed; use another architecture, or load it without quantisation"
            )

    def find_embeddings_flaw(self) -> str:
        """Why embeddings cannot take the place of ids; empty where they can."""
        ids = self.probe()[0]
        moved = Shifted(tuple(ids.tolist()), torch.zeros(PROBE, self.embedded((0,)).shape[1], device=self.device, requires_grad=True))
        with torch.enable_grad(), self.autocast():
            self.mode()
            theirs = self.run_padded(self.parts["decoder"], "input_ids", [ids])[0]
            ours = self.run_padded(self.parts["decoder"], "inputs_embeds", [self.embedded(moved)])[0]
            same = close(ours.detach(), theirs.detach())
            slope = torch.autograd.grad(ours[-1, 0].float(), moved.offset, allow_unused=True)[0] if ours.requires_grad else None
        if not same:
            return "its decoder reads more of a token than its embedding"
        return "" if slope is not None and slope.any() else "no gradient comes back to its embeddings"

    @torch.no_grad()
    def embedding_scale(self) -> float:
        """mean_v ||E_v||_2 over the rows of the embedding table, as the decoder receives them."""
        table = self.lm.get_input_embeddings()
        ids = torch.arange(table.weight.shape[0], device=self.device)
        return float(torch.cat([table(part).float().norm(dim=1).cpu() for part in ids.split(8192)]).double().mean())

    def ids(self, tokens: Sequence[int]) -> Tensor:
        """[T] int64 on the device."""
        return torch.tensor(tokens, dtype=torch.int64, device=self.device)

    # --- head -------------------------------------------------------------------------------------------------------

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, d] -> [N, V] by the model's own head, scaling and capping included."""
        return self.parts["head"](inputs_embeds=hidden[None], use_cache=False).logits[0]  # type: ignore[no-any-return]

    def chunk_logp(self, hidden: Tensor, targets: Tensor, collision: bool = False) -> tuple[Tensor, Tensor | None]:
        """log softmax(head(hidden))[targets], float32 [N], and log sum_v softmax(head(hidden))_v^2 [N] where it is asked for.

        In 16 bits the target's logit is computed apart in float32 (32 times smaller error than the rounded logit), and the
        log-sum-exp is taken over upcast logits.
        """
        logits = self.logits(hidden).float()
        second = log_collision(logits) if collision else None
        if not self.plain_head or self.dtype not in (torch.bfloat16, torch.float16):
            return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1), second
        head = self.lm.get_output_embeddings()
        target = (hidden.float() * head.weight[targets].float()).sum(1)
        target = self.head().cap(target if head.bias is None else target + head.bias[targets].float())
        return target - logits.logsumexp(1), second

    def head_logp(
        self, hidden: Tensor, targets: Tensor, collision: bool = False, tokens: int | None = None, tied: Tied | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`chunk_logp` in chunks, so that [N, V] never exists at once: fused, or several recomputed in the backward pass. `tokens` went
        through the layers for these N, after they were looked up in what is `tied` to the head."""
        if self.engine == "fast" and self.plain_head:
            keep = room(tokens or len(targets), self.width, self.depth - self.cut, hidden.element_size())
            head = self.head() if tied is None else replace(self.head(), weight=tied.weight)
            return token_logp(head, hidden, targets, collision=collision, keep=keep)
        step = max(1, CHUNK // self.lm.get_output_embeddings().weight.shape[0])
        if len(targets) <= step:
            return self.chunk_logp(hidden, targets, collision)
        keep = torch.is_grad_enabled() and hidden.requires_grad or torch.is_grad_enabled() and self.head_trains()
        run = partial(checkpoint, self.chunk_logp, use_reentrant=False) if keep else self.chunk_logp
        parts = [run(h, t, collision) for h, t in zip(hidden.split(step), targets.split(step), strict=True)]
        logp, second = zip(*parts, strict=True)
        return torch.cat(logp), torch.cat(second) if collision else None

    def head_trains(self) -> bool:
        """Whether a gradient may flow into the head's weights."""
        return any(p.requires_grad for p in self.lm.get_output_embeddings().parameters())

    def measure(self, pairs: Sequence[Pair], *, states: bool = False, collision: bool = False, logp: bool = True) -> Measured:
        """Per-token log-probabilities of each response given its prompt, and what is asked for besides; without `logp` they are 0."""
        if not pairs:
            self.made_up([], self.missing(0))
            return Measured([], [], [])
        self.check_length(max(len(prompt) + len(response) for prompt, response in pairs))
        self.mode()
        if not logp and states and not collision:
            return self.states_alone(pairs)
        return (self.measure_packs if self.engine == "fast" else self.measure_padded)(pairs, states, collision)

    def states_alone(self, pairs: Sequence[Pair]) -> Measured:
        """The hidden states at each response's own tokens, and no logits."""
        if self.engine == "fast":
            packs, places = pack(pairs, self.tokens_per_batch, whole=True)
            missing = self.missing(len(packs))
            found = [state for one in packs for state in self.states(one)[one.own().to(self.device)].split(one.lengths)]
            found = self.made_up(found, missing)
            at = [found[i] for i in lines(packs, places)]
        else:
            at = [h[1:] for h in self.both_padded(pairs)]
        return Measured([state.new_zeros(len(state), dtype=torch.float32) for state in at], at)

    def measure_packs(self, pairs: Sequence[Pair], states: bool, collision: bool) -> Measured:
        """Pack by pack."""
        packs, places = pack(pairs, self.tokens_per_batch, whole=states)
        missing = self.missing(len(packs))
        logp: list[Tensor] = []
        second: list[Tensor] = []
        at: list[Tensor] = []
        tied = self.tie()
        for one in packs:
            hidden = self.states(one, tied)
            reads, targets = one.reads().to(self.device), self.ids(one.targets())
            found, more = self.head_logp(hidden[reads], targets, collision, len(hidden), tied)
            logp += found.split(one.lengths)
            at += hidden[one.own().to(self.device)].split(one.lengths) if states else ()
            second += () if more is None else more.split(one.lengths)
        logp = self.made_up(logp, missing)
        where = lines(packs, places)
        pick = lambda values: [values[i] for i in where]
        return Measured(pick(logp), pick(at) if states else None, pick(second) if collision else None)

    def measure_padded(self, pairs: Sequence[Pair], states: bool, collision: bool) -> Measured:
        """Whole sequences in padded batches."""
        targets = self.ids([token for _, response in pairs for token in response])
        lengths = [len(response) for _, response in pairs]
        at = None
        if states:
            both = self.both_padded(pairs)
            hidden, at = [h[:-1] for h in both], [h[1:] for h in both]
        else:
            hidden = self.hidden_padded(pairs)
        logp, second = self.head_logp(torch.cat(hidden), targets, collision)
        return Measured(list(logp.split(lengths)), at, None if second is None else list(second.split(lengths)))

    def both_padded(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """[T_i + 1, d]: all but the last predict the response's tokens, all but the first stand at them. What is run feeds all but the last
        token of a response: with one more, whichever, the true last one is fed too."""
        return self.hidden_padded([(prompt, (*response, response[-1])) for prompt, response in pairs])

    def token_logps(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Per-token log-probabilities float32 [T_i] of each response given its prompt."""
        return self.measure(pairs).logp


@torch.no_grad()
def log_collision(logits: Tensor) -> Tensor:
    """log sum_v p_v^2 = LSE(2 z) - 2 LSE(z), [N]; z is shifted by its largest value, so that nothing large is subtracted."""
    z = logits - logits.amax(1, keepdim=True)
    return (2 * z).logsumexp(1) - 2 * z.logsumexp(1)


def alike(a: Tensor, b: Tensor, precision: torch.dtype) -> bool:
    """The same states up to what another order of the sums in that precision does to them in all layers; a token seen too much or too
    little is more."""
    return bool((a.float() - b.float()).norm() <= min(1000 * torch.finfo(precision).eps, 0.1) * b.float().norm())


def groups(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in batches of similar length whose padded size stays within `budget` tokens; 0 is one sequence a batch."""
    if budget <= 0:
        return [[i] for i in range(len(lengths))]
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):  # longest first: its length is the batch's
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def consecutive(sizes: Sequence[int], budget: int) -> list[range]:
    """Neighbours whose sizes add up to at most the budget; one that is larger stands alone."""
    parts: list[range] = []
    held = 0
    for i, size in enumerate(sizes):
        if parts and held + size <= budget:
            parts[-1], held = range(parts[-1].start, i + 1), held + size
        else:
            parts.append(range(i, i + 1))
            held = size
    return parts


def present_pairs(rows: Rows) -> list[tuple[int, int]]:
    """(b, k) of the responses that exist."""
    width = rows.response.shape[1]
    here = rows.present.tolist() if rows.present is not None else [[True] * width] * len(rows)
    return [(b, k) for b in range(len(rows)) for k in range(width) if here[b][k]]


def prompt_of(rows: Rows, b: int, k: int) -> Any:
    """What response k of row b answers."""
    return rows.prompt[b] if rows.prompts is None else rows.prompts[b][k]


def felt(prompt: Any, frozen: bool) -> Prompt:
    """A prompt as a policy feels it: a frozen one only such offsets as are meant for it too."""
    if isinstance(prompt, Shifted):
        return prompt.tokens if frozen and not prompt.everywhere else prompt
    return tuple(prompt)


def pairs_of(rows: Rows, bos: int | None, frozen: bool = False) -> list[Pair]:
    """(prompt, response) of every response that exists, checked; `frozen` says whose pairs they are."""
    pairs = []
    for b, k in present_pairs(rows):
        prompt, response = felt(prompt_of(rows, b, k), frozen), rows.response.tokens[b][k]
        if not response:
            raise PreftuneError(
                f"row {rows.id[b]}, response {k} has no tokens; a response holds at least its end of turn; encode it with `encode`"
            )
        if not prompt and bos is None:
            raise PreftuneError(
                f"row {rows.id[b]}: the prompt has no tokens and the tokenizer no bos token; "
                "the first token of a response needs something before it; give the row a prompt"
            )
        pairs.append((prompt or (bos,), response))
    return pairs  # type: ignore[return-value]


def assemble(rows: Rows, found: Measured, wants: Sequence[Want] = (), heads: Mapping[str, Tensor] | None = None) -> Scored:
    """Scored from what was measured of the present responses: float64 sums, 0 and length 1 where absent. On the CPU.

    "segments" sums between the boundaries of rows.segments as well; without boundaries a response is one segment.
    `heads` are outputs [N, C] of the present responses.
    """
    where = present_pairs(rows)
    shape, index = rows.response.shape, tuple(torch.tensor(where, dtype=torch.int64).reshape(-1, 2).T)

    def table(values: Sequence[Tensor], *more: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """[B, K, *more] with the values of the present responses in their places and 0 elsewhere."""
        empty = torch.zeros(*shape, *more, dtype=dtype)
        return empty.index_put(index, torch.stack(list(values)).cpu().to(dtype)) if where else empty

    tokens, length = on_cpu(found.logp), torch.ones(shape, dtype=torch.int64)
    length = length.index_put(index, torch.tensor([len(v) for v in found.logp], dtype=torch.int64))
    more: dict[str, Any] = {}
    if {"segments", "states"} & set(wants):
        bounds = bounds_of(rows, where, found.logp)
        s = 1 if rows.segments is None else rows.segments.shape[2] - 1
    if "segments" in wants:
        parts = [torch.stack([v[a:b].sum() for a, b in cuts]) for v, cuts in zip(tokens, bounds, strict=True)]
        more["segment_logp"] = table(parts, s)
    if "states" in wants and found.states is not None:
        means = [
            torch.stack([v[a:b].detach().float().mean(0) if a < b else v.new_zeros(v.shape[1], dtype=torch.float32) for a, b in cuts])
            for v, cuts in zip(found.states, bounds, strict=True)
        ]
        more["states"] = table(means, s, means[0].shape[1] if means else 0, dtype=torch.float32)
    if "collision" in wants and found.collision is not None:
        more["collision"] = table([v.sum() for v in on_cpu(found.collision)])
    outputs = {name: table(out.unbind(0), out.shape[1]) for name, out in (heads or {}).items()}
    return Scored(rows=rows, logp=table([v.sum() for v in tokens]), length=length, heads=outputs, **more)


def on_cpu(values: Sequence[Tensor]) -> list[Tensor]:
    """float64 on the CPU, brought there in one piece."""
    return list(torch.cat(list(values)).cpu().double().split([len(v) for v in values])) if values else []


def bounds_of(rows: Rows, where: Sequence[tuple[int, int]], values: Sequence[Tensor]) -> list[list[tuple[int, int]]]:
    """(first, last + 1) of every segment of every present response; the last boundary must be its length."""
    if rows.segments is None:
        return [[(0, len(v))] for v in values]
    found = []
    for (b, k), v in zip(where, values, strict=True):
        cuts = rows.segments[b, k].tolist()
        if cuts[0] != 0 or cuts[-1] != len(v) or cuts != sorted(cuts):
            raise PreftuneError(
                f"row {rows.id[b]}, response {k}: segments {cuts} of a response of {len(v)} tokens; "
                "boundaries must rise from 0 to its length; build them from the encoded response"
            )
        found.append(list(zip(cuts, cuts[1:], strict=False)))
    return found


def engine(network: Network) -> str:
    """What the numbers depend on besides weights and tokens, for the key of the cache."""
    import transformers

    return " ".join(
        [
            "preftune-text-3",
            f"torch-{torch.__version__} transformers-{transformers.__version__}",
            f"{network.device.type} {network.dtype} {network.lm.config._attn_implementation}",
            f"{network.engine} {'alone' if network.tokens_per_batch <= 0 else 'batched'} cut-{network.cut} {sys.byteorder}",
        ]
    )
