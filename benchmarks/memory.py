"""The peak memory of a run against its plan, each in a process of its own: what is held over the loaded model.

    OMP_NUM_THREADS=1 python benchmarks/memory.py
    OMP_NUM_THREADS=1 python benchmarks/memory.py --only lora        # cases whose name has the word
    OMP_NUM_THREADS=1 python benchmarks/memory.py --exact            # a heap that gives freed blocks back, a plan without holes
    python benchmarks/memory.py --device cuda

A model with random weights and a tokenizer of single bytes, so that P characters are P tokens; two steps of dpo on four pairs of
(prompt, response) tokens each. On a CPU the peak is that of the resident memory, on CUDA that of `max_memory_allocated`; the bars are
30 % and 15 %. The process ends with 1 if a case is outside.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BAR = {"cpu": 0.30, "cuda": 0.15}
STEPS, BATCH = 2, 4
SHAPES: dict[str, dict[str, int]] = {
    "6 layers of 576, V 49152": {
        "hidden_size": 576,
        "num_hidden_layers": 6,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "8 layers of 256, V 8192": {
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "intermediate_size": 768,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
    },
}
WIDE, SMALL = SHAPES
CASES: dict[str, dict[str, Any]] = {  # name -> shape, (prompt, response) tokens, how it is loaded
    "full": {"shape": WIDE, "lengths": (512, 128)},
    "full, all layers again": {"shape": WIDE, "lengths": (512, 128), "load": {"checkpointing": True}},
    "full, three layers again": {"shape": WIDE, "lengths": (512, 128), "load": {"checkpointing": 3}},
    "full, long responses": {"shape": WIDE, "lengths": (128, 384)},
    "full, 2048 tokens": {"shape": WIDE, "lengths": (128, 384), "load": {"tokens_per_batch": 2048}},
    "full, bfloat16": {"shape": WIDE, "lengths": (512, 128), "load": {"dtype": "bfloat16"}},
    "lora": {"shape": WIDE, "lengths": (512, 128), "load": {"train": "lora"}},
    "last two layers": {"shape": WIDE, "lengths": (512, 128), "load": {"train": 2}},
    "small": {"shape": SMALL, "lengths": (128, 128)},
    "small, all layers again": {"shape": SMALL, "lengths": (128, 128), "load": {"checkpointing": True}},
    "small, whole sequences": {"shape": SMALL, "lengths": (128, 128), "load": {"engine": "plain"}},
}


def make(folder: Path, shape: dict[str, int]) -> None:
    """A random Llama with the bytes as its tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({"<end>": 0, **{letter: i + 1 for i, letter in enumerate(alphabet)}}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bytewise.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0)
    LlamaForCausalLM(config).save_pretrained(folder)


def pairs(prompt: int, response: int) -> list[dict[str, str]]:
    """Different pairs of so many tokens each."""
    text = lambda n, i: "".join(chr(97 + (i * 7 + j * j) % 26) for j in range(n))
    return [
        {"prompt": text(prompt, i), "chosen": text(response - 1, i + 1), "rejected": text(response - 1, i + 2)} for i in range(2 * BATCH)
    ]


def resident(what: str) -> int:
    """VmRSS or VmHWM, the highest VmRSS since `forget`, in bytes."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[what].split()[0])


def forget() -> int:
    """Give back what is free, begin a new peak; what is held now."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def measure(case: dict[str, Any], model: str, device: str) -> dict[str, float]:
    """Planned and measured bytes over the loaded model. Three steps, and the peak before the run is written."""
    import torch

    import preftune
    from preftune.api import load_policy

    cuda = device.startswith("cuda")
    preftune.train  # noqa: B018  what is imported later is not the run's
    policy = load_policy(model, device=device, **case.get("load", {}))
    loaded = torch.cuda.memory_allocated() if cuda else forget()
    peak = [0]

    def look(event: Any) -> bool:
        peak[0] = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
        return event.step == STEPS

    with tempfile.TemporaryDirectory() as out:
        run = preftune.train(
            policy,
            "dpo",
            pairs(*case["lengths"]),
            out=Path(out) / "run",
            batch=BATCH,
            samples=0,
            save_every=0,
            progress=False,
            callbacks=[look],
            **case.get("settings", {}),
        )
        plan = json.loads((run.folder / "config.json").read_text())["memory"]
    return {"planned": plan["peak"] - plan["weights"], "measured": peak[0] - loaded, **plan}


def alone(name: str, model: Path, device: str, exact: bool) -> dict[str, float]:
    """A case in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:  # no reference log-probs of an earlier run
        command = [sys.executable, __file__, "--case", name, "--model", str(model), "--device", device]
        world = os.environ | {"PREFTUNE_CACHE": cache} | ({"MALLOC_MMAP_THRESHOLD_": "262144"} if exact else {})
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, env=world, check=True).stdout.splitlines()[-1])
    return found | ({"planned": found["planned"] - found["holes"]} if exact else {})


def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("--only", "--case", "--model"):
        parser.add_argument(option, default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--exact", action="store_true")
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(measure(CASES[asked.case], asked.model, asked.device)))
        return
    bar, outside = BAR[asked.device.partition(":")[0]], []
    with tempfile.TemporaryDirectory() as folder:
        for shape, sizes in SHAPES.items():
            make(Path(folder) / shape, sizes)
        print("| case | model | prompt, response | tokens a pass | layers again | planned MB | measured MB | measured / planned |")
        print("|---|---|---|---|---|---|---|---|")
        for name in [name for name in CASES if asked.only in name]:
            case = CASES[name]
            found = alone(name, Path(folder) / case["shape"], asked.device, asked.exact)
            ratio = found["measured"] / found["planned"]
            outside += [name] * (abs(ratio - 1) > bar)
            again = f"{found['checkpointed']:.0f} of {found['layers']:.0f}"
            sizes = f"{found['planned'] / 1e6:.0f} | {found['measured'] / 1e6:.0f} | {ratio:.2f}"
            print(f"| {name} | {case['shape']} | {case['lengths']} | {found['expected']:.0f} | {again} | {sizes} |", flush=True)
    print(f"\noutside {bar:.0%}: {', '.join(outside) or 'none'}")
    sys.exit(bool(outside))


if __name__ == "__main__":
    main()
