"""Checkpoints of published models without their data: config.json, and headers over a hole.

The configs and tensor shapes are those that the models' authors publish; no number in the files is
a weight. What `tune plan` says of a model needs no more.
"""

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

Tensors = dict[str, tuple[str, tuple[int, ...]]]
_BYTES = {"BF16": 2, "U8": 1}


def write_model(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    """A folder that can be described and not run; it takes no room on the disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, (kind, shape) in tensors.items():
        size = _BYTES[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(file, 8 + len(text) + end)
    return folder


def qwen3_30b_a3b(folder: Path) -> Path:
    """Qwen/Qwen3-30B-A3B: 48 layers of 128 experts, eight a token."""
    hidden, layers, experts, width, vocabulary = 2048, 48, 128, 768, 151_936
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144,
        "moe_intermediate_size": width, "num_experts": experts, "num_experts_per_tok": 8,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "vocab_size": vocabulary, "max_position_embeddings": 40_960, "hidden_act": "silu",
        "tie_word_embeddings": False, "attention_bias": False,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"lm_head": (vocabulary, hidden), "model.norm": (hidden,)}
    shapes["model.embed_tokens"] = (vocabulary, hidden)
    for layer in range(layers):
        place = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{place}.{norm}"] = (hidden,)
        attention = {"q": (4096, hidden), "k": (512, hidden), "v": (512, hidden)}
        for name, shape in {**attention, "o": (hidden, 4096)}.items():
            shapes[f"{place}.self_attn.{name}_proj"] = shape
        shapes |= {f"{place}.self_attn.{name}_norm": (128,) for name in "qk"}
        shapes[f"{place}.mlp.gate"] = (experts, hidden)
        for expert in range(experts):
            for name in ("gate", "up"):
                shapes[f"{place}.mlp.experts.{expert}.{name}_proj"] = (width, hidden)
            shapes[f"{place}.mlp.experts.{expert}.down_proj"] = (hidden, width)
    return write_model(folder, config, {f"{n}.weight": ("BF16", s) for n, s in shapes.items()})


def gpt_oss_20b(folder: Path) -> Path:
    """openai/gpt-oss-20b: 24 layers of 32 experts, four a token, published as mxfp4."""
    hidden, layers, experts, width, vocabulary = 2880, 24, 32, 2880, 201_088
    config = {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "intermediate_size": width, "num_local_experts": experts,
        "num_experts_per_tok": 4, "vocab_size": vocabulary, "max_position_embeddings": 131_072,
        "sliding_window": 128, "attention_bias": True, "tie_word_embeddings": False,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                       "model.embed_tokens", "lm_head"],
        },
    }  # fmt: skip
    tensors: Tensors = {
        "lm_head.weight": ("BF16", (vocabulary, hidden)),
        "model.embed_tokens.weight": ("BF16", (vocabulary, hidden)),
        "model.norm.weight": ("BF16", (hidden,)),
    }
    for layer in range(layers):
        place = f"model.layers.{layer}"
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.sinks": (64,),
            "mlp.router.weight": (experts, hidden),
            "mlp.router.bias": (experts,),
            "mlp.experts.gate_up_proj_bias": (experts, 2 * width),
            "mlp.experts.down_proj_bias": (experts, hidden),
        }
        rows = {"q": (4096, hidden), "k": (512, hidden), "v": (512, hidden), "o": (hidden, 4096)}
        for name, shape in rows.items():
            shapes[f"self_attn.{name}_proj.weight"] = shape
            shapes[f"self_attn.{name}_proj.bias"] = shape[:1]
        tensors |= {f"{place}.{name}": ("BF16", shape) for name, shape in shapes.items()}
        for name, out, inner in (("gate_up", 2 * width, hidden), ("down", hidden, width)):
            codes = f"{place}.mlp.experts.{name}_proj"
            tensors[f"{codes}_blocks"] = ("U8", (experts, out, inner // 32, 16))
            tensors[f"{codes}_scales"] = ("U8", (experts, out, inner // 32))
    return write_model(folder, config, tensors)
