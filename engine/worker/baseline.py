"""Brings a worker to its baseline memory before it loads a model; budgets are counted from it."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import torch

from engine.device import process_memory


def settle_baseline() -> int:
    """Import everything that a request may need, run one tiny forward, and read the resident
    bytes."""
    import lm_eval.evaluator
    import lm_eval.tasks  # noqa: F401

    _load_small_data_set()
    return settle_serving_baseline()


def settle_serving_baseline() -> int:
    """Do the same for a process that never evaluates. Returns bytes.

    The tiny forward starts torch's thread pool and loads its kernels, so that a model's first
    forward does not pay for them.
    """
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=2,
        num_experts_per_tok=1,
    )
    for dtype in (torch.float32, torch.bfloat16):
        model = Qwen3MoeForCausalLM(config).to(dtype).eval()
        with torch.inference_mode():
            output = model(torch.zeros(1, 64, dtype=torch.long), use_cache=True)
            model(torch.zeros(1, 1, dtype=torch.long), cache=output.cache, use_cache=True)
        del model, output
    square = torch.ones(512, 512)
    for dtype in (torch.float32, torch.bfloat16):
        (square.to(dtype) @ square.to(dtype)).sum()
    del square
    gc.collect()
    process_memory.trim()
    process_memory.reset_peak()
    return process_memory.resident_bytes()


def _load_small_data_set() -> None:
    """Load a tiny data set: the loader of evaluation items allocates its own memory pools."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.jsonl"
        path.write_text('{"text": "one"}\n', encoding="utf-8")
        datasets.load_dataset("json", data_files={"test": str(path)}, cache_dir=folder)
