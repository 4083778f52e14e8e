"""Tiny random checkpoints of many MoE families, made by transformers' own classes.

Every family gets the same small sizes; what a family needs beyond them stands in EXTRA. Weights are
rounded to bf16, so that 16-bit records hold them exactly.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from _pytest.mark import ParameterSet
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 128
EXPERTS = 8

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "n_routed_experts": EXPERTS,
}
_MAMBA = {
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_n_groups": 1,
    "mamba_d_head": 16,
    "mamba_expand": 2,
    "use_mamba_kernels": False,
}
EXTRA: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS},
    "qwen2_moe": {"num_experts": EXPERTS},
    "qwen3_moe": {"num_experts": EXPERTS, "head_dim": 16, "norm_topk_prob": True},
    "olmoe": {"num_experts": EXPERTS},
    "deepseek_v2": {**_LATENT, "topk_method": "greedy"},
    "deepseek_v3": _LATENT,
    "gpt_oss": {"num_local_experts": EXPERTS, "head_dim": 16, "sliding_window": 8},
    "phimoe": {"num_local_experts": EXPERTS},
    "granitemoe": {"num_local_experts": EXPERTS},
    "glm4_moe": {
        "n_routed_experts": EXPERTS,
        "head_dim": 16,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    },
    "ernie4_5_moe": {"moe_num_experts": EXPERTS, "moe_k": 2, "moe_num_shared_experts": 1},
    "hunyuan_v1_moe": {"num_experts": EXPERTS, "moe_topk": 2, "head_dim": 16},
    "dots1": {
        "n_routed_experts": EXPERTS,
        "head_dim": 16,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    },
    "flex_olmo": {"num_experts": EXPERTS},
    "minimax": {"num_local_experts": EXPERTS, "head_dim": 16, "block_size": 16},
    "jamba": {
        **_MAMBA,
        "num_experts": EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
    },
    "granitemoehybrid": {
        **_MAMBA,
        "num_local_experts": EXPERTS,
        "shared_intermediate_size": 32,
        "layer_types": ["mamba", "attention", "mamba"],
    },
    "qwen3_next": {
        "num_experts": EXPERTS,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}


# Of distinct structure: plain, latent attention with shared experts, biases and interleaved halves,
# a hybrid with state-space layers. The others run with the slow tests.
QUICK = ("mixtral", "deepseek_v3", "gpt_oss", "jamba")


def each_family(without: Collection[str] = ()) -> list[ParameterSet]:
    """Parameters of a test of all families; those that are not QUICK are marked slow."""
    return [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(set(EXTRA) - set(without))
    ]


def save_tiny(family: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a tiny random checkpoint of this family and return its folder."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**{**COMMON, **EXTRA.get(family, {}), **overrides})
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():  # away from zeros and ones, so that all of it counts
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
