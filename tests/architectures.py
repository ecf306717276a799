"""Tiny random models of the architectures that people train, each with what makes it differ: windows, caps, biases, norms, scales."""

from __future__ import annotations

from typing import Any

import torch

SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
WINDOW = 6  # positions, shorter than the sequences of the tests
ARCHITECTURES: dict[str, dict[str, Any]] = {  # of the packs: name in transformers -> what it has beyond SMALL
    "Llama": {"tie_word_embeddings": True},
    "Mistral": {"sliding_window": WINDOW},
    "Qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "Qwen3": {"head_dim": 16},
    "Gemma2": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 1.5,
        "query_pre_attn_scalar": 16,
    },
    "Gemma3Text": {"head_dim": 16, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "Phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "Phi3": {"sliding_window": WINDOW, "original_max_position_embeddings": 512},
    "SmolLM3": {"use_sliding_window": False, "no_rope_layer_interval": 2},
    "GPTNeoX": {"use_parallel_residual": True},
    "GPT2": {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 512},
    "Olmo2": {},
    "Granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "Cohere": {"logit_scale": 0.25},
    "StableLm": {},
    "Starcoder2": {"sliding_window": WINDOW},
    "Mixtral": {"num_local_experts": 4, "sliding_window": WINDOW},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
}
REFUSED: dict[str, dict[str, Any]] = {  # whole sequences: what they see is not what a pack shows
    "GptOss": {"head_dim": 16, "num_local_experts": 4, "sliding_window": WINDOW},  # attention sinks
    "Bloom": {"n_layer": 3, "n_head": 4},  # a bias of positions inside the scores
    "Mamba": {"state_size": 8},  # no attention
    "Qwen3Next": {  # linear attention in some layers
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 0,
        "head_dim": 16,
    },
}


def architecture(name: str, seed: int = 0) -> Any:
    """A random model, with weights large enough that a token too much or too little shows."""
    import transformers

    given = {**SMALL, **{**ARCHITECTURES, **REFUSED}[name]}
    if name == "GPT2":
        given = {n: value for n, value in given.items() if not n.startswith(("hidden", "inter", "num_", "max_"))}
    family = getattr(transformers, f"{name}Config")
    kind = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}.get(name, f"{name}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, kind)(family(**given)).eval()
