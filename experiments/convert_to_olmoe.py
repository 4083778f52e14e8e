"""Writes the demo model as a checkpoint of the OLMoE family, for a grid of another family.

    python -m experiments.run convert_to_olmoe studies/demo/model experiments/grids/twin_olmoe_demo

Qwen3-MoE and OLMoE differ in one product: OLMoE norms queries and keys over all heads at once,
Qwen3 norms each head (transformers, modeling_olmoe.py and modeling_qwen3_moe.py). Every weight
stays; the norms' weights are repeated for each head. So the model is not the same function: it
reads a little worse, but has the routing and the sensitivity to bits of a trained one, which noise
has not.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

KEPT = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "num_experts_per_tok", "norm_topk_prob", "vocab_size", "max_position_embeddings",
    "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "bos_token_id", "eos_token_id",
    "pad_token_id", "dtype",
)  # fmt: skip


def main(source: Path, out: Path) -> None:
    """Writes OUT, a new folder, from SOURCE, a Qwen3-MoE checkpoint in one file."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    if (
        config["model_type"] != "qwen3_moe"
        or config["hidden_size"] != heads["q"] * config["head_dim"]
    ):
        raise SystemExit(f"{source}: takes a Qwen3-MoE model whose heads fill its hidden vector")
    tensors = load_file(source / "model.safetensors")
    for name in tensors:
        for kind, count in heads.items():
            if name.endswith(f"self_attn.{kind}_norm.weight"):
                tensors[name] = tensors[name].repeat(count)
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    converted = {name: config[name] for name in KEPT} | {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "intermediate_size": config["moe_intermediate_size"],
        "num_experts": config["num_local_experts"],
    }
    (out / "config.json").write_text(json.dumps(converted, indent=2) + "\n", encoding="utf-8")
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(path, out / path.name)
