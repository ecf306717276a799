"""One DPO step, loss and backward pass, as TRL makes it, as full logits make it, and as preftune makes it: same weights, same tokens.

A contestant's `step` leaves its gradients in the parameters and returns the loss. Weights are those of a folder for the
reference, moved a little by a seed for the policy: at equal weights every loss is log 2, and agreement would say nothing.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from preftune.learner import GradientLearner
from preftune.methods import METHODS
from preftune.policies.text import CachedReference, load
from preftune.policies.text.cache import LogpCache
from preftune.policies.text.logprob import Store
from preftune.policies.text.tokens import TextResponses
from preftune.types import Key, Rows

BETA, SEED = 0.1, 0
MOVED = 0.02  # standard deviations of a tensor by which the policy is away from its reference

# --- models and batches -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A Llama by its sizes."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int


SMOLLM2 = Shape(layers=30, width=576, heads=9, kv_heads=3, inner=1536, vocabulary=49152)
CUT = Shape(layers=6, width=576, heads=9, kv_heads=3, inner=1536, vocabulary=49152)
SMALL = Shape(layers=8, width=256, heads=4, kv_heads=4, inner=768, vocabulary=8192)
TINY = Shape(layers=2, width=64, heads=4, kv_heads=2, inner=128, vocabulary=512)


def random_model(shape: Shape, folder: Path) -> Path:
    """A folder with random weights, the same for the same shape, that bfloat16 holds exactly: every precision starts alike."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=8192,
            rope_theta=100000.0,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """Bytes as tokens behind three special ones: what a folder of random weights needs to be opened."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate(["<pad>", "<unk>", "<end>", *letters])}
    bytes_ = Tokenizer(models.BPE(vocab=words, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bytes_.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, pad_token="<pad>", unk_token="<unk>", eos_token="<end>")


def natural_length(rng: Any, median: int, sigma: float = 0.8) -> int:
    """Tokens of a text: log-normal, as in most data."""
    return max(2, round(median * math.exp(sigma * rng.standard_normal())))


@dataclass(frozen=True)
class Sample:
    """Token ids of a prompt and its responses, best first."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]


Batch = list[Sample]


def random_sample(rng: Any, prompt: int, responses: Sequence[int], vocabulary: int) -> Sample:
    """Tokens drawn uniformly, of the lengths given."""
    draw = lambda length: tuple(rng.integers(3, vocabulary, length).tolist())
    return Sample(draw(prompt), tuple(draw(length) for length in responses))


def rows_of(batch: Batch, tokenizer: Any) -> Rows:
    """A batch as preftune's collectors give it."""
    return Rows(
        id=tuple(f"row-{i}" for i in range(len(batch))),
        prompt=[sample.prompt for sample in batch],
        response=TextResponses(tuple(sample.responses for sample in batch), tokenizer=tokenizer),
        ranked=True,
    )


def pairs_of(batch: Batch) -> list[dict[str, list[int]]]:
    """A batch as TRL's collator takes it: every pair of a prompt's responses is an example."""
    return [
        {"prompt_ids": list(sample.prompt), "chosen_ids": list(better), "rejected_ids": list(worse)}
        for sample in batch
        for better, worse in itertools.combinations(sample.responses, 2)
    ]


# --- the contestants ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What all contestants of a race have in common."""

    folder: Path
    train: str | int = "full"
    precision: str = "float32"  # of the matrix products; weights that train are float32 throughout
    responses: int = 2


class Contestant(Protocol):
    """`prepare` is not timed; `step` is."""

    parameters: dict[str, Tensor]

    def prepare(self, batch: Batch) -> Any: ...

    def step(self, prepared: Any) -> Tensor: ...


class Ours:
    """preftune through its public pieces: the learner's gradient of the method's objective, divided as in an optimiser step."""

    def __init__(self, setting: Setting, **options: Any) -> None:
        self.policy = load(setting.folder, device="cpu", dtype=setting.precision, train=setting.train, **options)
        self.parameters = self.policy.live()
        self.method = METHODS["dpo" if setting.responses == 2 else "pair-logistic"](beta=BETA)
        self.use(self.policy.reference())

    def use(self, reference: Any) -> None:
        """Learn against this reference."""
        self.reference, roles = reference, {"current": self.policy, "reference": reference}
        self.learner = GradientLearner(self.policy, self.method, roles, optimiser="sgd")

    def cached(self) -> Ours:
        """The same policy with the reference's log-probs kept on disk."""
        other = copy.copy(self)
        other.scratch = tempfile.TemporaryDirectory()
        other.use(CachedReference(self.reference, LogpCache(Path(other.scratch.name) / "logp.sqlite")))
        return other

    def prepare(self, batch: Batch) -> Rows:
        """Rows; where the reference is cached, it has seen them."""
        rows = rows_of(batch, self.policy.tokenizer)
        if isinstance(self.reference, CachedReference):
            self.reference.score(rows)
        return rows

    def step(self, rows: Rows) -> Tensor:
        """The mean loss; gradients of the mean."""
        _, loss = self.learner._backward(rows)
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(1 / len(rows))
        return loss.row.mean()


class Trl:
    """TRL's DPOTrainer: its collator, its `compute_loss`, its accelerator's backward pass.

    Its settings are its defaults except: no report, the processor, `max_length=None` (1024 would cut the long prompts' responses
    off), and bf16 only where the race asks for it. Checkpointing and precomputed references are switched around each step, so that
    one model serves all of its settings.
    """

    checkpointing = precomputed = False

    def __init__(self, setting: Setting) -> None:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import DPOConfig, DPOTrainer

        opened = lambda: AutoModelForCausalLM.from_pretrained(setting.folder, dtype=torch.float32)
        adapter = setting.train == "lora"
        model = opened()
        if isinstance(setting.train, int):
            model.requires_grad_(False)
            model.model.layers[-setting.train :].requires_grad_(True)
        self.scratch = tempfile.TemporaryDirectory()
        self.trainer = DPOTrainer(
            model,
            ref_model=None if adapter else opened().requires_grad_(False).eval(),
            args=DPOConfig(
                output_dir=self.scratch.name,
                beta=BETA,
                bf16=setting.precision == "bfloat16",
                max_length=None,
                use_cpu=True,
                gradient_checkpointing=False,
                report_to="none",
            ),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),  # a trainer needs one; batches are given
            processing_class=AutoTokenizer.from_pretrained(setting.folder),
            peft_config=lora_of(setting) if adapter else None,
        )
        self.model = self.trainer.accelerator.prepare_model(self.trainer.model).train()
        self.parameters = {name: p for name, p in self.trainer.model.named_parameters() if p.requires_grad}

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """What TRL's collator makes, with the reference's log-probs from TRL's own precomputation where they are wanted."""
        examples: list[dict[str, Any]] = [*pairs_of(batch)]
        if self.precomputed:
            reference = self.trainer.ref_model or self.trainer.model
            known = zip(*self.trainer.compute_ref_log_probs(reference, self.trainer.data_collator(examples)), strict=True)
            examples = [
                example | {"ref_chosen_logps": float(chosen), "ref_rejected_logps": float(rejected)}
                for example, (chosen, rejected) in zip(examples, known, strict=True)
            ]
        return self.trainer.data_collator(examples)  # type: ignore[no-any-return]

    def step(self, inputs: dict[str, Tensor]) -> Tensor:
        """As Trainer.training_step does it, without the optimiser."""
        self.trainer.precompute_ref_logps = self.precomputed
        with self.recomputing() if self.checkpointing else nullcontext(), self.trainer.compute_loss_context_manager():
            loss = self.trainer.compute_loss(self.model, inputs)
            self.trainer.accelerator.backward(loss)
        return loss.detach()  # type: ignore[no-any-return]

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Gradient checkpointing as TRL and its Trainer switch it on: adapters need inputs with gradients besides."""
        model, adapter = self.trainer.model, hasattr(self.trainer.model, "peft_config")
        model.gradient_checkpointing_enable(self.trainer.args.gradient_checkpointing_kwargs)
        if adapter:
            model.enable_input_require_grads()
        try:
            yield
        finally:
            model.gradient_checkpointing_disable()
            if adapter:
                model.disable_input_require_grads()

    def variant(self, *, checkpointing: bool = False, precomputed: bool = False) -> Trl:
        """The same trainer and weights with other settings."""
        other = copy.copy(self)
        other.checkpointing, other.precomputed = checkpointing, precomputed
        return other


class FullLogits:
    """The plain step of older trainers: padded rows, logits of every position, log-softmax, gather."""

    def __init__(self, setting: Setting, *, like: Trl | None = None, dtype: torch.dtype = torch.float32) -> None:
        """`like`: use its weights instead of a second copy. `dtype`: float64 makes the truth that others are compared with."""
        from transformers import AutoModelForCausalLM

        self.autocast = torch.autocast("cpu", torch.bfloat16) if setting.precision == "bfloat16" else nullcontext()
        opened = lambda: in_one_precision(AutoModelForCausalLM.from_pretrained(setting.folder, dtype=torch.float32).to(dtype))
        adapter = setting.train == "lora"
        if like is not None:
            self.model, self.reference = like.trainer.model, like.trainer.ref_model
        else:
            self.model, self.reference = opened(), None if adapter else opened().requires_grad_(False).eval()
            if isinstance(setting.train, int):
                self.model.requires_grad_(False)
                self.model.model.layers[-setting.train :].requires_grad_(True)
            if adapter:
                from peft import get_peft_model

                torch.manual_seed(SEED)
                self.model = get_peft_model(self.model, lora_of(setting))
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Chosen rows over rejected ones, padded on the right."""
        pairs = pairs_of(batch)
        rows = [(pair["prompt_ids"], pair[side]) for side in ("chosen_ids", "rejected_ids") for pair in pairs]
        pad = lambda lists: nn.utils.rnn.pad_sequence([torch.tensor(row) for row in lists], batch_first=True)
        return {
            "input_ids": pad([prompt + response for prompt, response in rows]),
            "attention_mask": pad([[1] * len(prompt + response) for prompt, response in rows]),
            "scored": pad([[0] * len(prompt) + [1] * len(response) for prompt, response in rows]),
        }

    def logps(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """[2B] sums over the responses."""
        with self.autocast:
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
        logits = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
        each = logits.log_softmax(-1).gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
        return (each * inputs["scored"][:, 1:]).sum(1)

    def step(self, inputs: dict[str, Tensor]) -> Tensor:
        """DPO's loss, reference included."""
        logps = self.logps(self.model, inputs)
        with torch.no_grad(), nullcontext() if self.reference is not None else self.model.disable_adapter():
            reference = self.logps(self.reference or self.model, inputs)
        better, worse = (logps - reference).chunk(2)
        loss = -logsigmoid(BETA * (better - worse)).mean()
        loss.backward()
        return loss.detach()


def in_one_precision(model: Any) -> Any:
    """Norms compute in float32 whatever the model is in; in a float64 model that would be the largest error of all."""

    def forward(norm: Any, x: Tensor) -> Tensor:
        return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    if model.dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = MethodType(forward, module)
    return model


def lora_of(setting: Setting) -> Any:
    """The adapter that `load(train="lora")` makes by default, for the others."""
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")


@torch.no_grad()
def same_weights(contestants: Sequence[Contestant]) -> None:
    """Move the first policy away from its reference by noise from the seed, and give all others its weights."""
    first = contestants[0].parameters
    for name, parameter in first.items():
        deviation = float(parameter.std())  # 0 where all values are alike: norms start at 1, half of an adapter at 0
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(Key.of(SEED).fold(name).seed))
        parameter += MOVED * (deviation or 0.5) * noise.to(parameter.dtype)
    for other in contestants[1:]:
        for name, parameter in other.parameters.items():
            parameter.copy_(first[name])


# --- agreement ----------------------------------------------------------------------------------------------------------

SMALLEST = 1e-4  # of the global norm: the least denominator of a tensor's error, since some adapter gradients start at 0


def gradients(contestant: Contestant) -> dict[str, Tensor]:
    """A copy of what the last step left, float64."""
    return {name: p.grad.double() for name, p in contestant.parameters.items() if p.grad is not None}


def clear(contestants: Iterable[Contestant]) -> None:
    """No gradients, so that the next step allocates its own, and no states of frozen layers, so that it is a first epoch's."""
    for contestant in contestants:
        for parameter in contestant.parameters.values():
            parameter.grad = None
        if isinstance(contestant, Ours):
            network = contestant.policy.network
            network.store = Store(network.store.limit)


def worst(ours: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """The largest relative L2 error of a tensor's gradient."""
    if ours.keys() != truth.keys():
        raise SystemExit(f"gradients of different tensors: {sorted(ours.keys() ^ truth.keys())[:3]}")
    whole = torch.stack([g.norm() for g in truth.values()]).norm()
    return max(float((ours[name] - g).norm() / max(g.norm(), SMALLEST * whole)) for name, g in truth.items())


# --- useful FLOPs -------------------------------------------------------------------------------------------------------


def useful_flops(model: nn.Module, batch: Batch, *, reference: bool) -> float:
    """What a step cannot do without: each distinct prompt once, no padding, no recomputation, the head at completions only.

    A linear layer costs 2 FLOPs a weight and token forward, the same again for its input's gradient, and for its own where it
    trains. Attention counts the pairs of positions seen; its backward pass costs two and a half forward ones. Layers below the
    first that trains have no backward pass, and policy and reference share them.
    """
    config: Any = model.config
    prompts = {sample.prompt for sample in batch}
    lengths = [(len(sample.prompt), len(response)) for sample in batch for response in sample.responses]
    tokens = sum(map(len, prompts)) + sum(response - 1 for _, response in lengths)
    scored = sum(response for _, response in lengths)
    seen = sum(len(prompt) ** 2 / 2 for prompt in prompts) + sum(p * c + c**2 / 2 for p, c in lengths)
    number = lambda name: int(found[1]) if (found := re.search(r"layers\.(\d+)\.", name)) else config.num_hidden_layers
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    first = 0 if any("embed" in name for name in trained) else min(map(number, trained))

    def linear(name: str, layer: nn.Linear) -> float:
        passes = 2 + layer.weight.requires_grad + reference if number(name) >= first else 1
        return 2 * layer.weight.numel() * (scored if "lm_head" in name else tokens) * passes

    width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    attention = 4 * width * seen * (first + (config.num_hidden_layers - first) * (3.5 + reference))
    return attention + sum(linear(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
