"""Log-probabilities of completions: one causal pass, the head at completion positions only, in float32.

Sequences are right-padded inside a batch, so that a causal model never sees the padding; what counts is told by lengths,
never by a pad id. With `tokens_per_batch = 0` every sequence runs alone: no padding, and each value depends on its own prompt
and response only. That is the default on a CPU, where it costs about 7 % on a 135M model and saves the padding.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from ...types import PreftuneError, Rows, Scored
from .tokens import Tokens

CHUNK = 1 << 24  # logits that the head makes at a time: 64 MiB in float32
PROBE = 24  #      tokens of the sequence that checks the cuts of a model
NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


class PassThrough(nn.Module):
    """Stands in for the decoder: its input is already the last hidden state."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Any:
        """[N, T, d] -> the same, in the envelope of a decoder."""
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)  # type: ignore[arg-type]


def twin(module: nn.Module, **children: nn.Module) -> Any:
    """A shallow copy that shares all parameters, with some children replaced."""
    other = copy.copy(module)
    other._modules = {**module._modules, **children}
    return other


class Network(nn.Module):
    """A causal language model together with the cuts that scoring needs: decoder (trunk and top) and head.

    Where only the last layers train, `trunk` are the frozen layers below; their hidden states of a sequence are computed
    once and kept in memory up to `trunk_bytes` (least recently used go first), for the policy, its copies and all epochs.
    """

    def __init__(self, module: Any, *, tokens_per_batch: int = 0, trunk_bytes: int = 1 << 30, checkpointing: bool = False) -> None:
        super().__init__()
        self.module = module
        self.tokens_per_batch, self.trunk_bytes, self.checkpointing = tokens_per_batch, trunk_bytes, checkpointing
        lm = module.get_base_model() if hasattr(module, "peft_config") else module
        decoder = getattr(lm, lm.base_model_prefix)
        # kept outside the module tree: these share their parameters with `module`
        self.parts = {"lm": lm, "decoder": decoder, "head": twin(lm, **{lm.base_model_prefix: PassThrough()})}
        self.states: OrderedDict[tuple[Tokens, Tokens], Tensor] = OrderedDict()
        self.state_bytes = 0
        self.exact_target = False
        self.digests: dict[str, bytes] = {}  # of tensors that do not train
        self.trunk_note = "none: every layer or an adapter trains"
        self.check_head()
        self.cut_trunk()

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
        """The precision of the hidden states."""
        weight: Tensor = self.lm.get_input_embeddings().weight
        return weight.dtype if weight.dtype.is_floating_point else torch.float32

    def forward(self, run: Callable[..., Any], *args: Any) -> Any:
        """Call `run(*args)`; torch.func.functional_call puts an overlay of parameters in place around it."""
        return run(*args)

    def mode(self) -> None:
        """Training mode only where checkpointing asks for it; dropout is zero in both."""
        wanted = self.checkpointing and torch.is_grad_enabled()
        if self.lm.training != wanted:
            self.module.train(wanted)

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
        hidden = self.hidden_batch([self.probe()[0]])[0]
        ours = self.logits(hidden)
        if not close(ours, whole):
            raise PreftuneError(
                f"the hidden states and the output head of {type(self.lm).__name__} do not give the logits of the whole model "
                f"(largest difference {(ours - whole).abs().max().item():.2g}); a decoder-only model is needed; use another architecture"
            )
        head = self.lm.get_output_embeddings()
        self.exact_target = (
            self.dtype in (torch.bfloat16, torch.float16)
            and type(head) is nn.Linear
            and close(linear(hidden.float(), head.weight.float(), head.bias if head.bias is None else head.bias.float()), whole)
        )

    @torch.no_grad()
    def cut_trunk(self) -> None:
        """Cut the decoder below the first layer that trains, if the two halves give what the whole gives."""
        decoder = self.parts["decoder"]
        trainable = {id(p) for p in self.module.parameters() if p.requires_grad}
        lists = [(name, child) for name, child in decoder.named_children() if isinstance(child, nn.ModuleList)]
        if not trainable or not self.trunk_bytes or not lists:
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
        whole = self.run_decoder(decoder, input_ids=self.probe())
        halves = self.run_decoder(top, inputs_embeds=self.run_decoder(trunk, input_ids=self.probe()))
        if not torch.allclose(whole.float(), halves.float(), rtol=1e-5, atol=1e-5 * whole.abs().max().item()):
            self.trunk_note = (
                f"none: {type(decoder).__name__} in two halves differs from the whole by {(whole - halves).abs().max().item():.2g}"
            )
            return
        self.parts |= {"trunk": trunk, "top": top}
        self.trunk_note = f"the first {cut} of {len(layers)} layers are frozen and computed once per sequence"

    # --- hidden states ----------------------------------------------------------------------------------------------

    def run_decoder(self, decoder: Any, **inputs: Any) -> Tensor:
        """Last hidden state [N, T, d]."""
        return decoder(use_cache=False, return_dict=True, **inputs).last_hidden_state  # type: ignore[no-any-return]

    def run_batch(self, decoder: Any, name: str, batch: Sequence[Tensor]) -> list[Tensor]:
        """Hidden states [T_i, d] of sequences of ids [T_i] or of lower hidden states [T_i, d], right-padded together."""
        lengths = [len(x) for x in batch]
        padded = nn.utils.rnn.pad_sequence(list(batch), batch_first=True)  # [N, T] or [N, T, d]; zeros, hidden by causality and mask
        inputs = {name: padded}
        if min(lengths) < max(lengths):
            steps = torch.arange(max(lengths), device=padded.device)
            inputs["attention_mask"] = (steps < torch.tensor(lengths, device=padded.device)[:, None]).long()
        hidden = self.run_decoder(decoder, **inputs)
        return [h[:n] for h, n in zip(hidden.unbind(0), lengths, strict=True)]

    def hidden_batch(self, batch: Sequence[Tensor]) -> list[Tensor]:
        """Hidden states of whole sequences of ids, by the whole decoder."""
        return self.run_batch(self.parts["decoder"], "input_ids", batch)

    def hidden(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Tensor]:
        """Hidden states [T_i, d] that predict the T_i tokens of each response; the last prompt position predicts the first."""
        self.mode()
        lengths = [len(prompt) + len(response) - 1 for prompt, response in pairs]
        out: list[Tensor] = [torch.empty(0)] * len(pairs)
        for group in groups(lengths, self.tokens_per_batch):
            chosen = [pairs[i] for i in group]
            if "trunk" in self.parts:
                states = self.run_batch(self.parts["top"], "inputs_embeds", self.trunk_states(chosen))
            else:
                states = self.hidden_batch([self.ids(*pair) for pair in chosen])
            for i, state in zip(group, states, strict=True):
                out[i] = state[len(pairs[i][0]) - 1 :]
        return out

    def ids(self, prompt: Tokens, response: Tokens) -> Tensor:
        """What is fed: all but the last token, which nothing follows."""
        return torch.tensor(prompt + response[:-1], device=self.device)

    @torch.no_grad()
    def trunk_states(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Tensor]:
        """Frozen hidden states [T_i, d] at the cut, from memory or computed and kept."""
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self.states]
        fresh = dict(
            zip(missing, self.run_batch(self.parts["trunk"], "input_ids", [self.ids(*p) for p in missing]) if missing else (), strict=True)
        )
        found = []
        for pair in pairs:
            if pair in self.states:
                self.states.move_to_end(pair)
            found.append(fresh[pair] if pair in fresh else self.states[pair])
        for pair, state in fresh.items():
            self.states[pair] = state.clone()  # a slice would keep its whole batch alive
            self.state_bytes += state.numel() * state.element_size()
        while self.state_bytes > self.trunk_bytes:
            _, old = self.states.popitem(last=False)
            self.state_bytes -= old.numel() * old.element_size()
        return found

    # --- head -------------------------------------------------------------------------------------------------------

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, d] -> [N, V] by the model's own head, scaling and capping included."""
        return self.parts["head"](inputs_embeds=hidden[None], use_cache=False).logits[0]  # type: ignore[no-any-return]

    def chunk_logp(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """log softmax(head(hidden))[targets], float32 [N].

        In 16 bits the target's logit is computed apart in float32 (32 times smaller error than the rounded logit), and the
        log-sum-exp is taken over upcast logits.
        """
        logits = self.logits(hidden).float()
        if not self.exact_target:
            return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
        head = self.lm.get_output_embeddings()
        target = (hidden.float() * head.weight[targets].float()).sum(1)
        return target - logits.logsumexp(1) if head.bias is None else target + head.bias[targets].float() - logits.logsumexp(1)

    def head_logp(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """float32 [N]; several chunks are recomputed in the backward pass, so that [N, V] never exists at once."""
        step = max(1, CHUNK // self.lm.get_output_embeddings().weight.shape[0])
        if len(targets) <= step:
            return self.chunk_logp(hidden, targets)
        keep = torch.is_grad_enabled() and hidden.requires_grad or torch.is_grad_enabled() and self.head_trains()
        parts = zip(hidden.split(step), targets.split(step), strict=True)
        return torch.cat([checkpoint(self.chunk_logp, h, t, use_reentrant=False) if keep else self.chunk_logp(h, t) for h, t in parts])

    def head_trains(self) -> bool:
        """Whether a gradient may flow into the head's weights."""
        return any(p.requires_grad for p in self.lm.get_output_embeddings().parameters())

    def token_logps(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Tensor]:
        """Per-token log-probabilities float32 [T_i] of each response given its prompt."""
        if not pairs:
            return []
        targets = torch.tensor([token for _, response in pairs for token in response], device=self.device)
        return list(self.head_logp(torch.cat(self.hidden(pairs)), targets).split([len(response) for _, response in pairs]))


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of b's precision."""
    scale = b.float().abs().max().item()
    return bool((a.float() - b.float()).abs().max().item() <= 8 * torch.finfo(b.dtype).eps * max(scale, 1e-3))


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


def present_pairs(rows: Rows) -> list[tuple[int, int]]:
    """(b, k) of the responses that exist."""
    width = rows.response.shape[1]
    here = rows.present.tolist() if rows.present is not None else [[True] * width] * len(rows)
    return [(b, k) for b in range(len(rows)) for k in range(width) if here[b][k]]


def pairs_of(rows: Rows, bos: int | None) -> list[tuple[Tokens, Tokens]]:
    """(prompt, response) of every response that exists, checked."""
    pairs = []
    for b, k in present_pairs(rows):
        prompt, response = tuple(rows.prompt[b]), rows.response.tokens[b][k]
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


def assemble(rows: Rows, values: Sequence[Tensor]) -> Scored:
    """Scored from the float32 values [T_i] of the present responses: float64 sums, 0 and length 1 where absent. On the CPU."""
    where = present_pairs(rows)
    logp = torch.zeros(rows.response.shape, dtype=torch.float64)
    length = torch.ones(rows.response.shape, dtype=torch.int64)
    if where:
        flat = torch.cat(list(values)).cpu().double()
        sums = torch.stack([part.sum() for part in flat.split([len(v) for v in values])])
        index = tuple(torch.tensor(where).T)
        logp = logp.index_put(index, sums)
        length = length.index_put(index, torch.tensor([len(v) for v in values]))
    return Scored(rows=rows, logp=logp, length=length)


def engine(network: Network) -> str:
    """What the numbers depend on besides weights and tokens, for the key of the cache."""
    import transformers

    return " ".join(
        [
            "preftune-text-1",
            f"torch-{torch.__version__} transformers-{transformers.__version__}",
            f"{network.device.type} {network.dtype} {network.lm.config._attn_implementation}",
            f"batch-{'alone' if network.tokens_per_batch <= 0 else 'padded'} {sys.byteorder}",
        ]
    )
