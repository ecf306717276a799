"""A GGUF file becomes an ordinary Hugging Face folder: float32 safetensors and a tokenizer that splits like the model's own.

The conversion is checked, not hopeful: every tensor of the architecture must be there in its shape and none may be left
over, and whatever this file would change silently (another architecture, scaled rotary frequencies, experts, an unknown
pre-tokeniser) is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...types import PreftuneError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import LlamaConfig, PreTrainedTokenizerFast

STAMP = "conversion.json"  # written into the folder: which file it came from
VERSION = 1  #               raised when the same file would convert to something else

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMAL, CONTROL, USER = 1, 3, 4  # tokenizer.ggml.token_type


def convert(gguf_file: str | Path, out_folder: str | Path) -> Path:
    """Convert a Llama-architecture GGUF file (any quantisation that the gguf package reads) and return the folder.

    A folder that already holds this file's conversion is returned as it is; any other existing folder is refused. The
    files are written aside and renamed, so that an interrupted conversion leaves no half folder.
    """
    from filelock import FileLock

    if find_spec("gguf") is None:
        raise PreftuneError("the package gguf is not installed, needed to read a GGUF file; pip install 'preftune[quickstart]'")
    source, out = Path(gguf_file), Path(out_folder)
    with FileLock(prepare(out.parent) / f".{out.name}.lock"):
        stamp = {"source": source.name, "sha256": digest(source), "version": VERSION}
        if (out / STAMP).is_file() and json.loads((out / STAMP).read_text()) == stamp:
            return out
        if out.exists():
            raise PreftuneError(f"{out} exists and is not a conversion of {source.name}, needed a new folder; remove it or choose another")
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            write(source, aside)
            (aside / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
            aside.chmod(0o755)
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return out


def prepare(folder: Path) -> Path:
    """The folder, made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(file: Path) -> str:
    """sha256 of a GGUF file, after a look at its first four bytes."""
    if not file.is_file():
        raise PreftuneError(f"{file} is not a file, needed a .gguf file; check the path")
    with file.open("rb") as stream:
        magic = stream.read(4)
        if magic != b"GGUF":
            raise PreftuneError(f"{file} begins with {magic!r}, needed b'GGUF'; is it another format or a broken download?")
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(source: Path, folder: Path) -> None:
    """Read, check and write everything into an existing empty folder."""
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    reader = GGUFReader(os.fspath(source))
    header = Header(reader, source)
    if header["general.architecture"] != "llama":
        raise header.refuse(f"architecture {header['general.architecture']!r}", "'llama', the only one converted here")
    tokenizer = tokenizer_of(header)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = config_of(header, ids)
    tensors = tensors_of(reader, header, config)

    config.save_pretrained(folder)
    GenerationConfig(**ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library leaves it readable by its owner alone
    with (folder / "model.safetensors").open("rb") as stream:
        os.fsync(stream.fileno())


class Header:
    """The key-value part of the file: `header["llama.block_count"]` demands a key, `header.get(key, default)` does not."""

    def __init__(self, reader: Any, source: Path) -> None:
        self.reader, self.source, self.tensors = reader, source, {tensor.name for tensor in reader.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        field = self.reader.fields.get(key)
        return default if field is None else field.contents()

    def __getitem__(self, key: str) -> Any:
        if key not in self.reader.fields:
            raise PreftuneError(f"{self.source.name} has no key {key}, needed for a Llama model; use a file that llama.cpp wrote")
        return self.get(key)

    def refuse(self, found: str, needed: str) -> PreftuneError:
        return PreftuneError(f"{self.source.name} has {found}, needed {needed}; pass a folder made by its authors' tools")


# --- weights --------------------------------------------------------------------------------------------------------


def config_of(header: Header, ids: dict[str, int | None]) -> LlamaConfig:
    """The model's shape, rotary base and norm epsilon as the file states them."""
    from transformers import LlamaConfig

    if header.get("llama.expert_count", 0):
        raise header.refuse(f"{header['llama.expert_count']} experts", "a dense model")
    scaling = header.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header.tensors:
        raise header.refuse(f"scaled rotary frequencies ({scaling})", "plain ones")
    width, heads = header["llama.embedding_length"], header["llama.attention.head_count"]
    head_width = header.get("llama.attention.key_length", width // heads)
    if header.get("llama.rope.dimension_count", head_width) != head_width:
        raise header.refuse(f"rotary positions on {header['llama.rope.dimension_count']} of {head_width} dimensions", "all of them")
    return LlamaConfig(
        vocab_size=len(header["tokenizer.ggml.tokens"]),
        hidden_size=width,
        intermediate_size=header["llama.feed_forward_length"],
        num_hidden_layers=header["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=header.get("llama.attention.head_count_kv", heads),
        head_dim=head_width,
        max_position_embeddings=header["llama.context_length"],
        rms_norm_eps=float(f"{header['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # float32 in the file: 9.9999997e-06 is 1e-05
        rope_parameters={"rope_type": "default", "rope_theta": header.get("llama.rope.freq_base", 10000.0)},
        tie_word_embeddings="output.weight" not in header.tensors,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        **ids,
    )


def tensors_of(reader: Any, header: Header, config: LlamaConfig) -> dict[str, Tensor]:
    """Name -> float32 tensor, exactly the names and shapes that transformers expects for this configuration."""
    import gguf
    import numpy
    import torch
    from transformers import LlamaForCausalLM

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors: dict[str, Tensor] = {}
    for entry in reader.tensors:
        name, part = rename(entry.name, header)
        weight = gguf.dequantize(entry.data, entry.tensor_type).astype(numpy.float32)
        if part in heads:
            weight = split_halves(weight, heads[part])
        tensors[name] = torch.from_numpy(numpy.ascontiguousarray(weight))

    with torch.device("meta"):
        expected = {name: tuple(parameter.shape) for name, parameter in LlamaForCausalLM(config).named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise header.refuse(f"{name} of shape {found.get(name, 'absent')}", f"shape {expected.get(name, 'absent')}")
    return tensors


def rename(name: str, header: Header) -> tuple[str, str]:
    """blk.3.attn_q.weight -> (model.layers.3.self_attn.q_proj.weight, attn_q)."""
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in BLOCK:
            return f"model.layers.{layer}.{BLOCK[part]}.weight", part
        case [part, "weight"] if part in TOP:
            return f"{TOP[part]}.weight", part
    raise header.refuse(f"a tensor {name!r}", "the tensors of a plain Llama model alone")


def split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """[heads * d, width]: rows of a head from rotary pairs (0, d/2, 1, d/2 + 1, ...), as llama.cpp stores them, to two halves."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


# --- tokenizer ------------------------------------------------------------------------------------------------------


def smollm() -> Any:
    """Every digit alone, then the GPT-2 pattern. Without the first step whitespace before a digit is split elsewhere."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])


def gpt2() -> Any:
    """The GPT-2 pattern."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {"smollm": smollm, "gpt-2": gpt2}  # tokenizer.ggml.pre -> how text is cut before merging


def tokenizer_of(header: Header) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer in the file, its chat template included."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    kind, pre = header["tokenizer.ggml.model"], header.get("tokenizer.ggml.pre", "none")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise header.refuse(f"tokenizer {kind!r} with pre-tokeniser {pre!r}", f"'gpt2' with one of {', '.join(PRE_TOKENIZERS)}")
    words, types = header["tokenizer.ggml.tokens"], header["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in header["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(w, special=True, normalized=False) for w, t in zip(words, types, strict=True) if t == CONTROL])
    tokenizer.add_tokens([AddedToken(w, normalized=False) for w, t in zip(words, types, strict=True) if t == USER])

    bos, eos, unknown = (header.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown"))
    if eos is None:
        raise header.refuse("no end-of-text token", "tokenizer.ggml.eos_token_id")
    pad = pad_of(header, types, bos, eos, unknown)
    if header.get("tokenizer.ggml.add_bos_token", False):
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{words[bos]} $A", special_tokens=[(words[bos], bos)])
    special = {"bos_token": bos, "eos_token": eos, "unk_token": unknown, "pad_token": pad}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        model_max_length=header["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **{name: words[i] for name, i in special.items() if i is not None},
    )
    fast.chat_template = header.get("tokenizer.chat_template")
    return fast


def pad_of(header: Header, types: list[int], bos: int | None, eos: int, unknown: int | None) -> int:
    """The id to pad with: the file's own unless it ends a turn as well, where a mask of "not pad" would delete the end of the response."""
    spare = [i for i, kind in enumerate(types) if kind == CONTROL]
    for candidate in (header.get("tokenizer.ggml.padding_token_id"), unknown, *spare):
        if candidate is not None and candidate not in (bos, eos):
            return int(candidate)
    raise header.refuse("no control token besides the ends of text", "one to pad with")
