"""DPO steps of a 7B shape on one card: pairs a second, share of the card's peak, memory. Random weights: time does not ask for sense.

    python benchmarks/gpu.py                       # on a CUDA device, some minutes; writes its section of docs/results.md
    python benchmarks/gpu.py --table               # writes the section from what was measured before
    python benchmarks/gpu.py --tiny --device cpu   # the same code on a small shape; writes nothing

Ours is the learner's whole step: scoring, loss, backward pass, clipping, AdamW. Opponents make the same step of the same
pairs: a plain one (padded rows, logits of all positions, gradient checkpointing), and TRL as it comes where it is installed. The
reference's log-probs are known beforehand for all of them. Weights, gradients, moments and what rounding
takes from a weight are bfloat16, 10 bytes a weight (optimiser=adamw-bf16, for all of them); an adapter trains in float32.

Useful FLOPs count every distinct token once, without padding and recomputation: 2 a weight and token forward, the same for the
gradient of its input and, where it trains, of itself; the head at completions only; attention's causal pairs, 3.5 forward ones.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune import provenance
from preftune.learner import GradientLearner
from preftune.methods.dpo import dpo
from preftune.optimisers import make
from preftune.policies.text import TextPolicy, TextResponses
from preftune.policies.text.attention_cuda import capabilities_of, pick
from preftune.policies.text.logprob import Network
from preftune.policies.text.model import master_weights, wrap
from preftune.types import Key, Rows, Scored, Want

BETA, LR, SEED, CLIP = 0.1, 1e-6, 0, 1.0
PEAK = 989e12  #         dense bfloat16 FLOP/s of an H100 or H200, by its maker
TOKENS = 1 << 14  #      of a step, prompts once
LOGITS = 4 << 30  #      bytes that the plain step may spend on logits, their float32 copy and its gradient
KEPT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parent.parent / "docs" / "results.md"


@dataclass(frozen=True)
class Shape:
    """A Qwen 2 by its sizes; head and embedding are two matrices."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    @property
    def trunk(self) -> int:
        """Weights of the linear layers below the head."""
        kv = self.width * self.kv_heads // self.heads
        return self.layers * (2 * self.width * (self.width + kv) + 3 * self.width * self.inner)


QWEN_7B = Shape(layers=28, width=3584, heads=28, kv_heads=4, inner=18944, vocabulary=152064)
TINY = Shape(layers=2, width=64, heads=4, kv_heads=2, inner=128, vocabulary=512)
LENGTHS = ((64, 64), (512, 128), (128, 512), (1024, 1024))  # tokens of a prompt and of each of its two responses
GOALS = {(512, 128): (15.5, 19.5), (128, 512): (10.0, 12.5), (1024, 1024): (3.7, 4.6)}  # pairs/s of full training: floor and aim
SHARES = (0.50, 0.62)  # of the peak: floor and aim


@dataclass(frozen=True)
class Cell:
    """What was measured at one length."""

    prompt: int
    response: int
    train: str
    pairs: int  #                  of a step
    ours: float  #                 pairs/s
    share: float  #                useful FLOP/s over the peak
    memory: float | None  #        GiB at most, all in all
    off: float  #                  largest difference of a response's log-prob from the plain step's, nats a token
    plain: float  #                pairs/s
    plain_memory: float | None
    trl: float | None = None  #    pairs/s, where it is installed
    trl_memory: float | None = None


def useful_flops(shape: Shape, prompt: int, response: int, train: str) -> float:
    """Of one pair; see the top of this file."""
    units = 3 if train == "full" else 2
    seen = prompt * (prompt + 1) / 2 + 2 * (prompt * response + response * (response + 1) / 2)
    trunk = 2 * shape.trunk * (prompt + 2 * response) * units
    head = 2 * shape.width * shape.vocabulary * 2 * response * units
    return trunk + head + 3.5 * 4 * shape.layers * shape.width * seen


# --- the model and its pairs ----------------------------------------------------------------------------------------------


def random_model(shape: Shape, train: str, device: torch.device) -> Any:
    """Weights in bfloat16, an adapter's in float32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=1 << 15,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        dtype="bfloat16",
    )
    torch.manual_seed(SEED)
    with torch.device(device):
        module = wrap(Qwen2ForCausalLM(config).to(torch.bfloat16), train, None, 16, 32.0, "all-linear", None, SEED)
    if train == "lora":
        master_weights(module.to(device))
    return module.eval()


def byte_tokenizer() -> Any:
    """A policy asks its tokenizer where a turn ends; nothing is tokenised here."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"<end>": 0}, merges=[])), eos_token="<end>")


def random_pairs(shape: Shape, prompt: int, response: int, pairs: int) -> Rows:
    """Tokens drawn uniformly, all of the same lengths."""
    rng = Key.of(SEED).fold(prompt, response).numpy()
    draw = lambda length: tuple(rng.integers(1, shape.vocabulary, length).tolist())
    return Rows(
        id=tuple(f"pair {i}" for i in range(pairs)),
        prompt=[draw(prompt) for _ in range(pairs)],
        response=TextResponses(tuple((draw(response), draw(response)) for _ in range(pairs))),
        ranked=True,
    )


# --- who makes a step -----------------------------------------------------------------------------------------------------


class Kept:
    """A reference whose log-probs of these rows are known."""

    def __init__(self, rows: Rows, logp: Tensor) -> None:
        self.logp = dict(zip(rows.id, logp, strict=True))

    def score(self, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
        """As a policy's, of rows that were seen."""
        return Scored(rows, torch.stack([self.logp[row] for row in rows.id]))


def optimiser_of(parameters: Sequence[Tensor]) -> str:
    """AdamW for the precision that trains."""
    return "adamw-bf16" if parameters[0].dtype == torch.bfloat16 else "adamw"


class Ours:
    """The learner of `preftune train`."""

    def __init__(self, module: Any, rows: Rows, tokens: int) -> None:
        policy = TextPolicy(Network(module, tokens_per_batch=tokens, precision=torch.bfloat16), byte_tokenizer())
        with torch.no_grad():
            self.logp = policy.score(rows).logp
        roles = {"current": policy, "reference": Kept(rows, self.logp)}
        self.learner = GradientLearner(  # type: ignore[arg-type]
            policy, dpo(BETA), roles, optimiser=optimiser_of(policy.parameters()), lr=LR, clip=CLIP, micro_batch=len(rows)
        )
        self.rows = rows

    def step(self) -> None:
        """One step of the optimiser."""
        self.learner.descend(self.rows)


class Plain:
    """Two padded rows a pair, logits of every position, activations recomputed: `micro` pairs at a time."""

    def __init__(self, module: Any, rows: Rows, micro: int) -> None:
        self.module, self.micro, self.pairs = module, micro, len(rows)
        device = next(module.parameters()).device
        text = [[(*prompt, *answers[k]) for prompt, answers in zip(rows.prompt, rows.response.tokens, strict=True)] for k in (0, 1)]
        self.ids = torch.tensor(text, device=device).transpose(0, 1)  # [B, 2, P + C]
        self.length = len(rows.response.tokens[0][0])
        module.train()
        lm = module.get_base_model() if hasattr(module, "peft_config") else module
        lm.activation_checkpointing_enable({"use_reentrant": False})
        with torch.no_grad():
            self.logp = torch.cat([self.score(ids) for ids in self.ids.split(micro)])
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimiser = make(optimiser_of(self.parameters), [{"params": self.parameters}], LR, 0.9, 0.0)

    def score(self, ids: Tensor) -> Tensor:
        """[B, 2] of ids [B, 2, P + C]."""
        logits = self.module(input_ids=ids.flatten(0, 1), use_cache=False).logits[:, :-1]
        each = logits.float().log_softmax(2).gather(2, ids.flatten(0, 1)[:, 1:, None])[..., 0]
        return each[:, -self.length :].sum(1).view(-1, 2)

    def step(self) -> None:
        """One step of the optimiser."""
        self.optimiser.zero_grad(set_to_none=True)
        for ids, reference in zip(self.ids.split(self.micro), self.logp.split(self.micro), strict=True):
            gap = (self.score(ids) - reference).diff(dim=1)[:, 0]
            (-logsigmoid(-BETA * gap).sum() / self.pairs).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimiser.step()


class Trl:
    """TRL's DPOTrainer with its defaults, checkpointing among them, but log-probs of the reference that are known."""

    def __init__(self, module: Any, rows: Rows, micro: int) -> None:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        self.scratch = tempfile.TemporaryDirectory()
        tokenizer = byte_tokenizer()
        tokenizer.pad_token = "<end>"
        self.module, self.pairs = module, len(rows)
        device = next(module.parameters()).device
        settings = DPOConfig(
            output_dir=self.scratch.name, beta=BETA, max_length=None, use_cpu=device.type == "cpu", report_to="none", bf16=True
        )
        one = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])  # a trainer needs one; batches are given
        # a reference of its own would cost 14 GiB that nobody reads: a second name for the same weights passes its check
        self.trainer = DPOTrainer(module, ref_model=copy.copy(module), args=settings, train_dataset=one, processing_class=tokenizer)
        self.trainer.precompute_ref_logps = True
        self.trainer.ref_model = None
        module.train()
        module.gradient_checkpointing_enable(settings.gradient_checkpointing_kwargs)
        examples = [
            {"prompt_ids": list(p), "chosen_ids": list(a), "rejected_ids": list(b), "ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
            for p, (a, b) in zip(rows.prompt, rows.response.tokens, strict=True)
        ]
        batches = [self.trainer.data_collator(examples[i : i + micro]) for i in range(0, len(rows), micro)]
        self.batches = [{name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()} for batch in batches]
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimiser = make(optimiser_of(self.parameters), [{"params": self.parameters}], LR, 0.9, 0.0)

    def step(self) -> None:
        """One step of the optimiser."""
        self.optimiser.zero_grad(set_to_none=True)
        for batch in self.batches:
            with self.trainer.compute_loss_context_manager():
                loss = self.trainer.compute_loss(self.module, batch)
            self.trainer.accelerator.backward(loss / len(self.batches))
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimiser.step()


# --- the race -------------------------------------------------------------------------------------------------------------


def race(make: Callable[[], Any], pairs: int, device: torch.device, repeats: int) -> tuple[Any, float, float | None]:
    """What ran, without its weights; pairs a second, the median of the repeats; GiB at most, on a card."""
    gc.collect()
    on_card = device.type == "cuda"
    if on_card:
        torch.cuda.empty_cache()
    one, seconds = make(), []
    if on_card:
        torch.cuda.reset_peak_memory_stats(device)
    for repeat in range(repeats + 2):  # two to warm up
        began = time.perf_counter()
        one.step()
        if on_card:
            torch.cuda.synchronize(device)
        seconds += [time.perf_counter() - began] if repeat > 1 else []
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if on_card else None
    return getattr(one, "logp", None), pairs / statistics.median(seconds), memory


def measured(shape: Shape, prompt: int, response: int, train: str, tokens: int, device: torch.device, repeats: int) -> Cell:
    """Everyone at one length, one after the other, each from the same random weights."""
    pairs = max(1, tokens // (prompt + 2 * response))
    rows = random_pairs(shape, prompt, response, pairs)
    micro = max(1, min(pairs, LOGITS // (2 * (prompt + response) * shape.vocabulary * 10)))
    fresh = lambda: random_model(shape, train, device)
    logp, ours, memory = race(lambda: Ours(fresh(), rows, tokens), pairs, device, repeats)
    theirs, plain, plain_memory = race(lambda: Plain(fresh(), rows, micro), pairs, device, repeats)
    off = float((logp - theirs.double().cpu()).abs().max()) / response
    share = ours * useful_flops(shape, prompt, response, train) / PEAK
    cell = Cell(prompt, response, train, pairs, ours, share, memory, off, plain, plain_memory)
    if find_spec("trl") is None or train != "full":
        return cell
    _, trl, trl_memory = race(lambda: Trl(fresh(), rows, micro), pairs, device, repeats)
    return Cell(**{**asdict(cell), "trl": trl, "trl_memory": trl_memory})


# --- the table ------------------------------------------------------------------------------------------------------------

HEAD = """\
## One training step of 7B on one card

    python benchmarks/gpu.py

DPO on pairs of equal lengths, shape of Qwen2.5-7B with random weights, bfloat16 (10 bytes of state a weight; LoRA of rank 16 in
float32), {tokens} packed tokens a step, reference log-probs known beforehand, no checkpointing. The plain step pads, makes logits of
all positions and recomputes activations. Shares are useful FLOPs (no padding, no recomputation) over 989 TFLOP/s.
Goals, floor and aim, are for one H200.

{conditions}

| prompt, response | trains | pairs/s | goal | share of peak | goal | GiB | plain: pairs/s | GiB | TRL: pairs/s | GiB | off, nats a token |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""
UNKNOWN = "not measured"


def table(kept: dict[str, Any] | None) -> str:
    """The section, with what is known in it."""
    cells = {(cell["prompt"], cell["response"], cell["train"]): cell for cell in kept["cells"]} if kept else {}
    where = (
        f"{kept['device']}; {kept['attention']}; {', '.join(f'{name} {version}' for name, version in kept['versions'].items())}; "
        f"commit {kept['commit']}; seed {SEED}; median of {kept['repeats']} steps."
        if kept
        else "Not measured: no CUDA device was at hand. The code runs on a CPU with `--tiny --device cpu`."
    )
    lines = [line_of(*lengths, train, cells.get((*lengths, train))) for train in ("full", "lora") for lengths in LENGTHS]
    return HEAD.format(tokens=kept["tokens"] if kept else TOKENS, conditions=where) + "\n".join(lines)


def line_of(prompt: int, response: int, train: str, cell: dict[str, Any] | None) -> str:
    """One row of the table."""

    def number(name: str, form: str) -> str:
        return UNKNOWN if cell is None or cell[name] is None else format(cell[name], form)

    goal = GOALS.get((prompt, response)) if train == "full" else None
    values = [
        f"{prompt}, {response}",
        train,
        number("ours", ".2f"),
        f"{goal[0]}, {goal[1]}" if goal else "",
        number("share", ".0%"),
        f"{SHARES[0]:.0%}, {SHARES[1]:.0%}",
        number("memory", ".0f"),
        *(number(name, form) for name, form in (("plain", ".2f"), ("plain_memory", ".0f"), ("trl", ".2f"), ("trl_memory", ".0f"))),
        number("off", ".1e"),
    ]
    return f"| {' | '.join(values)} |"


def write_section(page: Path, name: str, text: str) -> None:
    """Put a text between the section's marks: in place of what stands there, or at the end of the page."""
    block = f"<!-- {name} begin -->\n{text.strip()}\n<!-- {name} end -->\n"
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    marks = re.compile(rf"<!-- {name} begin -->\n.*?<!-- {name} end -->\n", re.DOTALL)
    page.write_text(marks.sub(lambda _: block, before) if marks.search(before) else f"{before.rstrip()}\n\n{block}", encoding="utf-8")


def run(device: torch.device, tiny: bool, tokens: int, repeats: int) -> None:
    """Measure length by length, and keep what is known after each."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"device {device} was asked for, but torch {torch.__version__} sees no CUDA device; one with 139 GiB is needed "
            "for the 7B shape; run it there, or try the code with --tiny --device cpu"
        )
    shape, lengths, tokens = (TINY, ((8, 4), (4, 8)), 64) if tiny else (QWEN_7B, LENGTHS, tokens)
    choice = pick(device, capabilities_of(device), dtype=torch.bfloat16, head_dim=shape.width // shape.heads)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "processor",
        "attention": choice.note,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "tokens": tokens,
        "repeats": repeats,
        "cells": [],
    }
    for train in ("full", "lora"):
        for prompt, response in lengths:
            found["cells"].append(asdict(measured(shape, prompt, response, train, tokens, device, repeats)))
            print(json.dumps(found["cells"][-1]), flush=True)
            if not tiny:
                KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, keep, write; or only write; or only run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small shape and short texts; nothing is written")
    parser.add_argument("--table", action="store_true", help="write the table from what was measured before, and measure nothing")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a step, where the card holds no more")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if not options.table:
        run(torch.device(options.device), options.tiny, options.tokens, options.repeats)
    if not options.tiny:
        write_section(options.page, "gpu", table(json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else None))


if __name__ == "__main__":
    main()
