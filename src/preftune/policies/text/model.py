"""Language models as policies: loading, adapters, frozen copies that hold only what trains, saving."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ... import processes
from ...client import is_address
from ...types import Head, Key, PreftuneError, Rows, Scored, Want
from ..heads import PooledHead, head_parameters, make_heads, without_heads
from .cache import CachedReference, LogpCache, cache_folder, remember
from .decode import Writer
from .generate import by_row, generate
from .logprob import Network, assemble, consecutive, pairs_of, present_pairs, prompt_of
from .memory import keep_freed, layers_of, repeatable
from .mixture import TextMixture
from .sharding import Shards
from .tokens import Counts, Pair, Shifted, TextResponses, Tokens, encode, end_of_turn, revision, token_ids
from .vllm import Vllm

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TextPolicy:
    """A causal language model that answers prompts. `logp` is in nats per response, the sum over its tokens.

    The current policy trains the module's own parameters. Frozen copies are overlays: they hold clones of what trains and share
    everything else, adapter-sized for adapters and k-layer-sized where k layers train. Scores come back on the CPU in float64.
    `uniform` is the field's stand-in for "every response alike": hot, but among the likeliest tokens.
    """

    uniform: Mapping[str, Any] = {"temperature": 2.0, "top_k": 10}
    independent = False

    def __init__(
        self, network: Network, tokenizer: Any, *, overlay: dict[str, Tensor] | None = None, adapter: bool = True, fresh: bool = False
    ) -> None:
        """`overlay`: parameters of a frozen copy by name; `adapter=False` scores with the adapter switched off, which is what the
        overlay's values stand for as long as they are untouched; `fresh`: the adapter was made new."""
        self.network, self.tokenizer = network, tokenizer
        self.overlay, self.adapter, self.fresh = overlay, adapter, fresh
        self.bos: int | None = tokenizer.bos_token_id
        self.end = end_of_turn(tokenizer)
        self.stops = stop_tokens(tokenizer, network.lm, self.end)
        self.heads: dict[str, PooledHead] = {}  # of a method, while it trains; frozen copies have none
        self.hashed: str | None = None
        self.max_new_tokens = 64  # of a sample, where the caller does not say
        self.keeping: LogpCache | None = None  # what takes the log-probs of samples, while it does

    # --- the protocol -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, rows: Rows, n: int, key: Key, **decoding: Any) -> TextResponses:
        """n responses [B, n] with their log-probs kept; decoding options are those of `generate.generate`."""
        decoding = {"max_new_tokens": self.max_new_tokens, **decoding}
        found = by_row(rows, self.writes(n, key, decoding), self.tokenizer)
        if self.keeping is not None:
            remember(self, rows.replace(response=found, present=None), self.keeping)
        return found

    def writes(self, n: int, key: Key, decoding: Mapping[str, Any]) -> Callable[[Rows], TextResponses]:
        """What writes the responses to some of the rows."""
        if (sampler := self.network.sampler) is None:
            return lambda part: self.run(self.generate, part, n, key, **decoding)  # type: ignore[no-any-return]
        model = sampler.hold(self)
        return lambda part: sampler.sample(self, model, part, n, key, **decoding)

    def generate(self, *request: Any, **decoding: Any) -> TextResponses:
        """`generate.generate` of this policy whose parameters are in the module."""
        with self.network.together():
            return generate(self, *request, **decoding)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """The log-probs of samples drawn inside are kept on disk, where a reference of these weights finds them: where it is the policy
        that a round began with, it needs no pass of its own."""
        self.keeping = LogpCache()
        try:
            yield
        finally:
            self.keeping.close()
            self.keeping = None

    def cached(self) -> CachedReference:
        """The same, its log-probs kept on disk."""
        return CachedReference(self)

    def writer(self, lines: int, steps: int) -> Writer:
        """The parameters that are in the module, ready to write samples in so many lines of at most `steps` tokens."""
        return Writer(self.network, lines, steps)

    def score(self, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
        """float64 [B, K] on the CPU, with the number of tokens as length; absent responses are not run: 0 and length 1.

        Heads and "states" read the hidden states at the response's own tokens, end of turn included and prompt never.
        """
        return self.scored(rows, wants, logp=True)

    def score_heads(self, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
        """As `score` with log-probs of 0: the output layer is not run, which with a large vocabulary is much of a pass."""
        return self.scored(rows, wants, logp=False)

    def scored(self, rows: Rows, wants: Sequence[Want], *, logp: bool) -> Scored:
        """`score` or `score_heads`."""
        states = bool(self.heads) or "states" in wants
        found = self.run(self.network.measure, self.pairs(rows), states=states, collision="collision" in wants, logp=logp)
        outputs = {name: head(found.states) for name, head in self.heads.items()}  # outside of autocast: they are float32
        return assemble(rows, found, wants, outputs)

    def attach(self, heads: Mapping[str, Head], key: Key) -> None:
        """Give the policy these heads and no others."""
        if self.overlay is not None:
            raise PreftuneError("heads were given to a frozen policy, which trains nothing; attach them to the policy that trains")
        self.heads = make_heads(heads, self.network.width, key, self.network.device)

    def score_tokens(self, rows: Rows) -> list[list[Tensor]]:
        """float32 [T] per token and response [B][K]; empty where absent."""
        table = [[torch.empty(0)] * rows.response.shape[1] for _ in range(len(rows))]
        for (b, k), values in zip(present_pairs(rows), self.token_logps(self.pairs(rows)), strict=True):
            table[b][k] = values
        return table

    def pairs(self, rows: Rows) -> list[Pair]:
        """(prompt, response) of every response that exists."""
        return pairs_of(rows, self.bos, frozen=self.overlay is not None)

    def tokens(self, rows: Rows) -> list[int]:
        """What each row takes of a pass: its prompt once, where packs are run, and all but the last token of each response."""
        sizes, seen = [0] * len(rows), set()
        for (b, _), (prompt, response) in zip(present_pairs(rows), self.pairs(rows), strict=True):
            again = self.network.engine == "fast" and (b, prompt) in seen
            seen.add((b, prompt))
            sizes[b] += len(response) - 1 + (0 if again else len(self.words(prompt)))
        return sizes

    def parts(self, rows: Rows) -> list[range]:
        """Consecutive rows whose tokens stay within the budget of one pass; a row that is longer stands alone."""
        return consecutive(self.tokens(rows), self.network.budget)

    def token_logps(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """float32 [T_i] for (prompt, response) pairs of token ids."""
        return self.run(self.network.token_logps, pairs)  # type: ignore[no-any-return]

    def run(self, function: Any, *args: Any, **options: Any) -> Any:
        """Call a function with this policy's parameters in the module."""
        if self.network.shards is not None:
            return self.in_shards(self.network.shards, lambda: function(*args, **options))
        if self.overlay is None:
            with self.network.autocast():
                return function(*args, **options)
        off = nullcontext() if self.adapter else self.network.module.disable_adapter()
        values = {f"module.{name}": value for name, value in self.overlay.items()}
        with torch.no_grad(), off, self.network.autocast():
            return torch.func.functional_call(self.network, values, (lambda: function(*args, **options),))

    def in_shards(self, shards: Shards, call: Callable[[], Any]) -> Any:
        """`run` where every process holds a part of the weights."""
        frozen = self.overlay is not None
        off = nullcontext() if self.adapter else self.network.module.disable_adapter()
        with torch.no_grad() if frozen else nullcontext(), off, self.network.autocast():
            return shards.run(self.overlay, call)

    def copy(self) -> TextPolicy:
        """A frozen copy of what trains; the rest is shared."""
        return self.frozen(self.clones(), self.adapter)

    def frozen(self, overlay: dict[str, Tensor], adapter: bool = True) -> TextPolicy:
        """A frozen policy on the same network."""
        policy = TextPolicy(self.network, self.tokenizer, overlay=overlay, adapter=adapter, fresh=self.fresh)
        policy.max_new_tokens = self.max_new_tokens
        return policy

    def reference(self) -> TextPolicy:
        """The weights given, frozen: call it before training begins. `reference_kind` says how it is made."""
        return self.frozen(self.clones(), adapter=self.reference_kind != "adapter switched off")

    @property
    def reference_kind(self) -> str:
        """How `reference` is made: a freshly made adapter is switched off; anything else is copied."""
        if not hasattr(self.network.module, "peft_config"):
            return "copy of the weights that train"
        return "adapter switched off" if self.fresh else "copy of the given adapter"

    def lerp(self, other: Any, w: float) -> TextPolicy:
        """Frozen, parameters (1 - w) * self + w * other; exact at w = 0 and 1. With adapters the factors are mixed, not their products."""
        mine, theirs = self.clones(), without_heads(other.state())
        check_names(mine, theirs)
        mixed = {name: torch.lerp(a.float(), theirs[name].to(a.device).float(), float(w)).to(a.dtype) for name, a in mine.items()}
        return self.frozen(mixed, adapter=self.adapter or w != 0)

    def mix(self, other: Any, w: float) -> TextMixture:
        """Both policies as they are now, answering as one: at every token the geometric mixture self^(1 - w) * other^w / Z."""
        return TextMixture(self, other.policy if isinstance(other, CachedReference) else other, w)

    def revise(self, rows: Rows) -> tuple[tuple[Tokens, ...], ...]:
        """For every response the prompt [B][K] that it answers, the response as a draft, and `tokens.REVISE` as the next turn."""
        after = revision(self.tokenizer)
        draft = lambda tokens: tokens[:-1] if tokens and tokens[-1] in self.stops else tokens
        return tuple(
            tuple((*self.words(prompt_of(rows, b, k)), *draft(tokens), *after) for k, tokens in enumerate(row))
            for b, row in enumerate(rows.response.tokens)
        )

    def parameters(self) -> list[Tensor]:
        """What trains, in the module's order, then the heads; of a frozen copy its own values."""
        return list(self.live().values())

    def live(self) -> dict[str, Tensor]:
        """The tensors themselves, by name."""
        return self.weights() | head_parameters(self.heads)

    def weights(self) -> dict[str, Tensor]:
        """The model's part of `live`."""
        if self.overlay is not None:
            return self.overlay
        if self.network.shards is not None:
            return self.network.shards.trained
        return {name: p for name, p in self.network.module.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """Clones of what trains, by name."""
        return {name: p.detach().clone() for name, p in self.live().items()}

    def clones(self) -> dict[str, Tensor]:
        """The model's part of `state`: what frozen copies hold."""
        return {name: p.detach().clone() for name, p in self.weights().items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a `state` back, in place; a frozen copy leaves out the heads. An adapter that was switched off is used again if
        other values come in."""
        live = self.live()
        state = state if self.overlay is None else without_heads(state)
        check_names(live, state)
        if not self.adapter:
            self.adapter = any(processes.gather(any(differ(p, state[name]) for name, p in live.items())))
        for name, p in live.items():
            p.copy_(processes.like(state[name], p))
        self.hashed = None

    # --- prompts as points of the embedding space -------------------------------------------------------------------

    def offsets(self, rows: Rows) -> list[Tensor]:
        """For each row zeros [P, d] float32, one vector for every token of its prompt."""
        with torch.no_grad():
            width = self.run(self.network.embedded, (0,)).shape[1]
        return [torch.zeros(len(self.words(prompt)), width, device=self.network.device) for prompt in rows.prompt]

    def perturb(self, rows: Rows, offsets: Sequence[Tensor], *, everywhere: bool = False) -> Rows:
        """The rows with these offsets, and no earlier ones, added to the token embeddings of their prompts.

        A score of such rows is differentiable with respect to the offsets. What is kept of clean prompts (reference log-probs,
        states of a frozen trunk) is neither read nor written. Frozen copies, references among them, score the clean prompts
        unless `everywhere` is true.
        """
        self.network.check_embeddings()
        if rows.prompts is not None:
            raise PreftuneError("the columns have prompts of their own, needed one prompt a row to move; score them as they are")
        known = self.offsets(rows)
        if [o.shape for o in offsets] != [o.shape for o in known]:
            raise PreftuneError(
                f"offsets of shapes {[tuple(o.shape) for o in offsets]}, needed {[tuple(o.shape) for o in known]}: "
                "one vector for every token of each prompt; start from `offsets(rows)`"
            )
        moved = [Shifted(self.words(prompt), offset, everywhere) for prompt, offset in zip(rows.prompt, offsets, strict=True)]
        return rows.replace(prompt=moved)

    def embedding_scale(self) -> float:
        """The mean length of a token's embedding over the vocabulary: what radii of offsets are measured in."""
        return self.run(self.network.embedding_scale)  # type: ignore[no-any-return]

    def words(self, prompt: Any) -> Tokens:
        """The token ids of a prompt, moved or not."""
        tokens = prompt.tokens if isinstance(prompt, Shifted) else tuple(prompt)
        return tokens if tokens or self.bos is None else (self.bos,)

    # --- beyond the protocol ----------------------------------------------------------------------------------------

    def unpack(self, packed: dict[str, Tensor]) -> TextResponses:
        """Responses from what their `pack` gave."""
        return TextResponses.unpack(packed, self.tokenizer)

    def answer(self, texts: Sequence[Sequence[str | None]]) -> TextResponses:
        """Texts [B][K] as responses, tokenised alone and with the end of turn, as in `encode`; None is an absent response."""
        flat = [text for row in texts for text in row if text is not None]
        bodies = iter(token_ids(self.tokenizer, flat, False))
        ended = lambda body: body if body[-1:] == (self.end,) else (*body, self.end)
        tokens = tuple(tuple(() if text is None else ended(next(bodies)) for text in row) for row in texts)
        return TextResponses(tokens, tokenizer=self.tokenizer)

    def encode(self, records: Sequence[Any], *, max_prompt: int | None = None, max_response: int | None = None) -> tuple[Rows, Counts]:
        """`tokens.encode` with this policy's tokenizer."""
        return encode(records, self.tokenizer, max_prompt=max_prompt, max_response=max_response)

    @property
    def trunk_note(self) -> str:
        """Whether the frozen layers are computed once per sequence, and if not why."""
        return self.network.trunk_note

    def fingerprint(self) -> str:
        """Hash of all effective weights and of the configuration that enters the arithmetic; equal for equal weights however they train."""
        if self.hashed is not None:
            return self.hashed
        overlay = self.overlay or {}
        digest = hashlib.blake2b(config_text(self.network.lm).encode(), digest_size=16)
        for name, p in sorted(self.network.module.named_parameters(), key=lambda item: plain_name(item[0])):
            if self.adapter or not is_adapter(name):
                trains = name in overlay or p.requires_grad
                digest.update(plain_name(name).encode() + (tensor_digest(overlay.get(name, p)) if trains else self.once(name, p)))
        found = digest.hexdigest()
        if self.overlay is not None:
            self.hashed = found
        return found

    def once(self, name: str, value: Tensor) -> bytes:
        """Digest of a tensor that does not train."""
        known: dict[str, bytes] = self.network.digests
        if name not in known:
            known[name] = tensor_digest(value)
        return known[name]


def check_names(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """The same parameters in the same shapes, or an error."""
    if mine.keys() != theirs.keys():
        odd = sorted(mine.keys() ^ theirs.keys())
        raise PreftuneError(
            f"these parameters do not belong to this policy: {len(theirs)} given, {len(mine)} needed, first difference {odd[0]}; "
            "load the model with the same train=... as the one that was saved"
        )
    for name, value in mine.items():
        if value.shape != theirs[name].shape:
            raise PreftuneError(
                f"parameter {name} has shape {tuple(theirs[name].shape)}, needed {tuple(value.shape)}; "
                "use the model that these were saved from"
            )


def differ(mine: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors hold other numbers, of shards as far as this process sees."""
    own = processes.local(mine)
    return not torch.equal(own, processes.local(processes.like(theirs, mine)).to(own.device))


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to a LoRA or DoRA adapter."""
    return "lora_" in name


def plain_name(name: str) -> str:
    """The name that a parameter has without adapter wrapping."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def tensor_digest(value: Tensor) -> bytes:
    """16 bytes of dtype, shape and content."""
    head = f"{value.dtype} {tuple(value.shape)}".encode()
    content = processes.whole(value.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(head + hashlib.blake2b(content.data, digest_size=16).digest(), digest_size=16).digest()


def config_text(lm: Any) -> str:
    """The configuration without what names places, versions and generation habits."""
    idle = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"}
    config = {k: v for k, v in lm.config.to_dict().items() if k not in idle and not k.endswith("_token_id")}
    return json.dumps(config, sort_keys=True, default=str)


def stop_tokens(tokenizer: Any, lm: Any, end: int) -> frozenset[int]:
    """Tokens that end an answer: the end of turn, and eos in the tokenizer's and the model's words."""
    eos = lm.generation_config.eos_token_id if lm.generation_config is not None else None
    more = eos if isinstance(eos, list) else [eos]
    return frozenset(int(t) for t in (end, tokenizer.eos_token_id, *more) if t is not None)


# --- loading --------------------------------------------------------------------------------------------------------


def load(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    train: str | int = "auto",
    lora_r: int = 16,
    lora_alpha: float = 32.0,
    lora_targets: str | Sequence[str] = "all-linear",
    quantize: int | None = None,
    checkpointing: bool | int | None = None,
    masters: bool = True,
    trust_remote_code: bool = False,
    resize_embeddings: bool = False,
    tokens_per_batch: int | None = None,
    engine: str = "fast",
    trunk_bytes: int = 1 << 30,
    trunk_tokens: int | None = None,
    sampler: str | None = None,
    sampler_args: str = "",
    seed: int = 0,
) -> TextPolicy:
    """A policy from a folder, a hub id, a PEFT adapter folder or a .gguf file. Weights are read from safetensors only.

    train             "full", "lora", "dora", or k: the last k layers (embeddings, final norm and head stay frozen);
                      "auto": the adapter of an adapter folder, "lora" on a quantised base, otherwise "full"
    device            "auto", "cpu", "cuda", "cuda:1", "mps"; "auto" takes the best that is there
    dtype             "auto": bfloat16 where a CUDA device has it, otherwise float32, so that numbers do not depend on the kind of
                      processor; "bfloat16" is faster where it has that. In 16 bits what trains is kept in float32
    lora_targets      names of linear layers, or "all-linear"; `seed` draws the adapter's first matrices
    quantize          4 or 8: the frozen base through bitsandbytes
    checkpointing     compute activations again in the backward pass, for less memory and about a third more time: true all layers, a
                      number the lowest so many, false none; None: as few as the memory of the device asks for
    masters           false keeps what trains in the 16 bits it was loaded in, for optimiser=adamw-bf16
    tokens_per_batch  tokens of one scoring pass, padding included; 0 runs every response alone, so that no value depends
                      on the batch; None: 2048 on a CPU, 16384 elsewhere
    engine            "fast": packs, each prompt once, its responses behind it, no padding; "plain": whole padded sequences, what the
                      fast one is compared with, and what models are scored by that packs do not suit
    trunk_bytes       memory for hidden states of frozen lower layers (train=k); 0 switches that off
    trunk_tokens      tokens_per_batch of those layers; None: 16384, on a CPU 1024, or 0 where a number's last bits depend on what is
                      computed with it, so that a resumed run repeats every bit
    sampler           "vllm", a Python interpreter that has vLLM, or the address of a vLLM server: it writes the samples, and gets the
                      weights when they have moved; None: the loop of this package. See docs/vllm.md
    sampler_args      further arguments for a vLLM that is started here: "--gpu-memory-utilization 0.3"
    resize_embeddings say so if you added tokens to the tokenizer on purpose
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if engine not in ("fast", "plain"):
        raise PreftuneError(f"engine is {engine!r}; known are fast and plain; use one of them")
    for name, value in (("tokens_per_batch", tokens_per_batch), ("trunk_tokens", trunk_tokens)):
        if value is not None and value < 0:
            raise PreftuneError(f"{name} is {value}, needed a number of tokens, or 0 for one response a pass; leave it out for the default")
    if sampler and processes.sharding():
        raise PreftuneError(
            f"sampler={sampler} was asked for together with FSDP, whose shards are not handed to vLLM; leave one of them out: samples "
            "are then written by this package's loop"
        )
    if sampler_args and (not sampler or is_address(sampler)):
        raise PreftuneError(
            f"sampler_args is {sampler_args!r} and sampler {sampler!r}, needed a vLLM that is started here to give them to: sampler=vllm"
        )
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    if place.type == "cpu":
        keep_freed()
    source = find_source(model)
    adapter = source if (Path(source) / "adapter_config.json").is_file() else None
    base = adapter_base(Path(adapter)) if adapter else source
    if train == "auto":
        train = "adapter" if adapter else "lora" if quantize else "full"
    check_train(train, adapter, quantize)
    if quantize and processes.sharding():
        raise PreftuneError(
            f"quantize={quantize} was asked for together with FSDP, which cannot cut quantised weights; leave quantize out, or use a "
            "configuration without FSDP: a quantised base is small enough for every device"
        )
    check_folder(base)
    words = adapter if adapter and has_tokenizer(Path(adapter)) else base
    if Path(words).is_dir() and not has_tokenizer(Path(words)):
        raise PreftuneError(
            f"{words} holds a model but no tokenizer; text needs tokenizer.json or its relatives beside the weights; "
            "save the model's tokenizer into the folder with tokenizer.save_pretrained(folder)"
        )
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(words, **options)
        if quantize:
            options |= {"quantization_config": quantization(quantize, precision, place), "device_map": {"": place}}
        with quiet() if Path(base).is_dir() else nullcontext():  # a download shows its progress, reading a folder need not
            lm = AutoModelForCausalLM.from_pretrained(base, dtype=precision, use_safetensors=True, **options)
    except OSError as error:  # a hub that cannot be reached, a repository that is not there or holds no safetensors
        raise PreftuneError(
            f"{model} could not be loaded: {error}; a folder or hub id with safetensors weights and a tokenizer is needed; "
            "check the name and the network, or give a local folder"
        ) from error
    fit_vocabulary(lm, tokenizer, resize_embeddings)
    no_dropout(lm)
    keep_gradients(lm)
    if not quantize:
        lm.to("cpu" if processes.sharding() else place)  # from where every process takes its part only
    module = wrap(lm, train, adapter, lora_r, lora_alpha, lora_targets, quantize, seed)
    if not quantize and masters:
        master_weights(module)
    module.eval()
    network = Network(
        module,
        tokens_per_batch=(2048 if place.type == "cpu" else 16384) if tokens_per_batch is None else tokens_per_batch,
        engine=engine,
        trunk_bytes=trunk_bytes,
        trunk_tokens=trunk_tokens,
        checkpointing=checkpointing,
        precision=precision,
    )
    if checkpointing:
        enable_checkpointing(network, len(layers_of(network.parts["decoder"])) if checkpointing is True else checkpointing)
    if processes.sharding():
        network.shard()
    if sampler:
        network.sampler = Vllm(sampler, base, precision, sampler_args)
    return TextPolicy(network, tokenizer, fresh=train in ("lora", "dora") and adapter is None)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of transformers, which would run into ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def pick_device(name: str) -> torch.device:
    """The device asked for, if it is there."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if cuda and name in ("auto", "cuda") and processes.size() > 1:
        return torch.device("cuda", torch.cuda.current_device())  # which `processes.start` has chosen
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise PreftuneError(f"device is {name!r}; known are auto, cpu, cuda, cuda:N and mps; use one of them")
    if (name.startswith("cuda") and not cuda) or (name == "mps" and not mps):
        raise PreftuneError(
            f"device {name} was asked for, but torch {torch.__version__} sees none here; use device=cpu or install a torch build for it"
        )
    place = torch.device(name)
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise PreftuneError(f"device {name} was asked for, but there are {torch.cuda.device_count()} CUDA devices; use a smaller number")
    return place


def pick_dtype(name: str, place: torch.device) -> torch.dtype:
    """bfloat16 where a CUDA device has it, float32 elsewhere, or what was asked for."""
    if name == "auto":
        return torch.bfloat16 if place.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if name not in DTYPES:
        raise PreftuneError(f"dtype is {name!r}; known are auto, {', '.join(DTYPES)}; use one of them")
    return DTYPES[name]


def computes_in_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16 itself; otherwise they are converted first."""
    return any(there for name, there in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def slow_precision(place: torch.device, precision: torch.dtype) -> list[str]:
    """What to say about a precision that the processor is slower in than in float32."""
    if place.type != "cpu" or precision == torch.float32 or (precision == torch.bfloat16 and computes_in_bfloat16()):
        return []
    name = str(precision).removeprefix("torch.")
    better = "bfloat16 or float32" if computes_in_bfloat16() else "float32"
    return [f"this processor does not compute in {name}: dtype={better} is faster here"]


def find_source(model: str | Path) -> str:
    """A folder or a hub id; a .gguf file is converted once and the folder kept in the cache, named by the file's content."""
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        from .gguf import convert

        with path.open("rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return str(convert(path, cache_folder() / "gguf" / f"{path.stem}-{content}"))
    if path.is_dir():
        return str(path)
    if path.is_file() or path.suffix == ".gguf" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(model)):
        kind = "a file of another kind" if path.is_file() else "not there"
        raise PreftuneError(f"{model} is {kind}; a model folder, a hub id such as org/name or a .gguf file is needed; check the path")
    return str(model)


def adapter_base(folder: Path) -> str:
    """The base model that an adapter folder names."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise PreftuneError(
            f"{folder} has no adapter_model.safetensors; adapters are read from safetensors only; save it again in that format"
        )
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise PreftuneError(
            f"{folder} is an adapter of type {config.get('peft_type')}; LoRA and DoRA adapters are supported; train one of these"
        )
    base = config.get("base_model_name_or_path") or ""
    return find_source(base)


def check_train(train: str | int, adapter: str | None, quantize: int | None) -> None:
    """Refuse what cannot be combined."""
    if (
        isinstance(train, bool)
        or (isinstance(train, str) and train not in ("full", "lora", "dora", "adapter"))
        or (isinstance(train, int) and train < 1)
    ):
        raise PreftuneError(f"train is {train!r}; known are auto, full, lora, dora, or a number of last layers from 1; use one of them")
    if adapter and train != "adapter":
        raise PreftuneError(
            f"{adapter} is an adapter, but train is {train!r}; an adapter folder trains its adapter; "
            "leave train at 'auto' or merge the adapter first"
        )
    if train == "adapter" and not adapter:
        raise PreftuneError("train is 'adapter', but the model folder holds none; use lora or dora for a new adapter")
    if quantize not in (None, 4, 8):
        raise PreftuneError(f"quantize is {quantize}; 4 and 8 bits are known; use one of them or leave it out")
    if quantize and train not in ("lora", "dora", "adapter"):
        raise PreftuneError(
            f"quantize={quantize} freezes the base, but train is {train!r}; a quantised base needs an adapter; use train=lora"
        )


def check_folder(base: str) -> None:
    """A local folder must hold a configuration and safetensors."""
    folder = Path(base)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise PreftuneError(f"{folder} has no config.json, so it is no model folder; give the folder that save_pretrained wrote")
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        described = None
    if not isinstance(described, dict) or "model_type" not in described:
        raise PreftuneError(
            f"{folder / 'config.json'} names no model_type, needed a model's configuration; give the folder that save_pretrained wrote"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(f.name for f in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
        raise PreftuneError(
            f"{folder} has no safetensors weights{f', only {pickled[0]}' if pickled else ''}; "
            "safetensors are needed, since pickled files can run code and are never opened; "
            "convert it where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"))


def fit_vocabulary(lm: Any, tokenizer: Any, resize: bool) -> None:
    """Every token of the tokenizer needs a row of the embedding."""
    rows, needed = lm.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values()) + 1
    if needed > rows and not resize:
        raise PreftuneError(
            f"the tokenizer has tokens up to {needed - 1}, but the model's embedding has {rows} rows: they belong to different models, "
            "or tokens were added; use the model's own tokenizer, or resize_embeddings=True if you added tokens on purpose"
        )
    if needed > rows:
        lm.resize_token_embeddings(needed, mean_resizing=False)


def no_dropout(lm: nn.Module) -> None:
    """Log-probabilities are those of one fixed function: every dropout rate becomes zero."""
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    config = lm.config
    for name, value in config.to_dict().items():  # type: ignore[union-attr,operator]
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)


def keep_gradients(lm: nn.Module) -> None:
    """bitsandbytes repacks 4-bit layers for its CPU kernel when no gradient is wanted; the packed layer has no backward pass."""
    for module in lm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quantization(bits: int, precision: torch.dtype, place: torch.device) -> Any:
    """The bitsandbytes configuration of QLoRA (NF4, double quantisation) or of 8 bits."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise PreftuneError(
            f"quantize={bits} needs the package bitsandbytes, which is not installed; pip install bitsandbytes, or leave quantize out"
        )
    if place.type == "mps":
        raise PreftuneError(f"quantize={bits} was asked for on mps, where bitsandbytes does not run; leave quantize out or use device=cpu")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=precision
    )


def wrap(
    lm: Any,
    train: str | int,
    adapter: str | None,
    lora_r: int,
    lora_alpha: float,
    lora_targets: str | Sequence[str],
    quantize: int | None,
    seed: int,
) -> Any:
    """Choose what trains, with an adapter around the model where that is asked for."""
    if train == "full":
        return lm.requires_grad_(True)
    lm.requires_grad_(False)
    if isinstance(train, int):
        decoder = getattr(lm, lm.base_model_prefix)
        layers = next((c for c in decoder.children() if isinstance(c, nn.ModuleList)), None)
        if layers is None or train > len(layers):
            found = "no list of layers was found" if layers is None else f"the model has {len(layers)} layers"
            raise PreftuneError(f"train={train} asks for the last {train} layers, but {found}; use a smaller number, full or lora")
        layers[-train:].requires_grad_(True)
        return lm
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

    if quantize:
        lm = prepare_model_for_kbit_training(lm, use_gradient_checkpointing=False)
    if adapter:
        module = PeftModel.from_pretrained(lm, adapter, is_trainable=True)
        no_dropout(module)
        return module
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora_r,
        lora_alpha=lora_alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=lora_targets if isinstance(lora_targets, str) else list(lora_targets),
        use_dora=train == "dora",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(lm, config)


def master_weights(module: nn.Module) -> None:
    """What trains is kept in float32; passes run in the model's precision by autocast.

    A step of 1e-6 is lost on most 16-bit weights, which have 8 bits behind the first: measured, 0.1 % of them moved.
    """
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def enable_checkpointing(network: Network, count: int) -> None:
    """Compute the activations of the lowest `count` layers that train again in the backward pass: when their turn comes, what the
    layers above kept is gone."""
    trains = lambda module: any(p.requires_grad for p in module.parameters())
    layers = layers_of(network.parts["decoder"])
    if not trains(network.lm.get_input_embeddings()):
        layers = layers[next((i for i, layer in enumerate(layers) if trains(layer)), len(layers)) :]
    if count and not repeatable(network):
        raise PreftuneError(
            f"checkpointing was asked for, but {type(network.lm).__name__} does not support it; leave it out or choose a smaller batch"
        )
    for i, layer in enumerate(layers):
        layer.gradient_checkpointing = i < count  # type: ignore[assignment]
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # type: ignore[assignment]
    network.checkpointing = min(count, len(layers))


# --- saving ---------------------------------------------------------------------------------------------------------


def save(policy: TextPolicy, folder: str | Path, card: str) -> Path:
    """Write an ordinary Hugging Face folder, or a PEFT adapter folder, with tokenizer and README.md = card.

    Written aside and renamed; an existing folder is replaced.
    """
    out = Path(folder)
    module = policy.network.module
    if hasattr(module, "peft_config") and not policy.adapter:
        raise PreftuneError(
            "this policy is the base model with its adapter switched off; there is nothing of its own to save; save the trained policy"
        )
    overlay = {id(p): policy.overlay[name] for name, p in module.named_parameters() if policy.overlay and name in policy.overlay}
    kept = module.state_dict(keep_vars=True)
    full = {id(p): first_whole(overlay.get(id(p), p).detach()) for p in kept.values()}  # tied weights are one tensor, also in shards
    state = {name: full[id(p)] for name, p in kept.items()}
    if not processes.first():
        return out
    if policy.network.mixed is not None:  # the folder has the precision it was loaded in
        state = {name: p.to(policy.network.mixed) if p.dtype == torch.float32 else p for name, p in state.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    with quiet():
        module.save_pretrained(aside, state_dict=state)
    policy.tokenizer.save_pretrained(aside)
    (aside / "README.md").write_text(card, encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    aside.chmod(0o755)
    aside.rename(out)
    return out


def first_whole(tensor: Tensor) -> Tensor:
    """All of a tensor in the first process; the others help and keep nothing."""
    if not processes.sharded(tensor):
        return tensor
    found = processes.whole(tensor)
    return found.cpu() if processes.first() else tensor


def merge_adapter(folder: str | Path, out: str | Path, *, dtype: str = "float32", card: str | None = None) -> Path:
    """Fold an adapter into its base: an ordinary model folder. Without `card` the adapter's own README is kept."""
    if not (Path(folder) / "adapter_config.json").is_file():
        raise PreftuneError(
            f"{folder} holds no adapter; a folder with adapter_config.json is needed; there is nothing to merge in a full model"
        )
    policy = load(folder, device="cpu", dtype=dtype)
    readme = Path(folder) / "README.md"
    text = card if card is not None else readme.read_text(encoding="utf-8") if readme.is_file() else ""
    merged = policy.network.module.merge_and_unload()
    return save(TextPolicy(Network(merged, trunk_bytes=0), policy.tokenizer), out, text)
