"""Measures what precisions and plans cost on held-out text: divergence and bits per byte.

    python -m experiments.run compare_precisions demo --text studies/demo/heldout.txt --tokens 2048

Compares uniform 16, 8, 4, 3 and 2 bits, rounding to nearest beside the fitted scales, and plans
with an average of 3 and 4 bits: by sensitivity (measure it first: `tune profile --model demo
--no-timings --sensitivity`) and, with --trace, by popularity. Intervals are over blocks of the
text; ratios are paired block by block.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from engine.config.settings import EngineConfig
from engine.contract.statistics import mean_metric
from engine.device.registry import open_device
from engine.precision.table import average_bits, bits_table
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tuner.folders import cache_folder, resolve_model

BLOCK_TOKENS = 128


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--trace", type=Path, help="for plans by popularity")
    arguments = parser.parse_args()
    folder = Path(resolve_model(arguments.model))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = arguments.text.read_text(encoding="utf-8")[: arguments.tokens * 8]
    ids = list(tokenizer(text)["input_ids"])[: arguments.tokens]
    blocks = [
        ids[n : n + BLOCK_TOKENS] for n in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS)
    ]
    sizes = [len(tokenizer.decode(block[1:]).encode()) for block in blocks]
    engine = Engine(folder, open_device("cpu"), cache_folder())
    reference = run(engine, {"precision.bits": 16}, blocks)
    plain = bits_per_byte(reference, blocks, sizes)
    kept: dict[str, list[float]] = {}
    for name, overlay in configs(arguments.trace).items():
        own = run(engine, overlay, blocks)
        kept[name] = [divergence(a, b) for a, b in zip(reference, own, strict=True)]
        quality = [a / b for a, b in zip(plain, bits_per_byte(own, blocks, sizes), strict=True)]
        table = bits_table(engine.live.config, engine.facts)
        print(
            json.dumps(
                {
                    "name": name,
                    "average_bits": average_bits(table) if table else overlay["precision.bits"],
                    "kld": shown(kept[name]),
                    "quality": shown(quality),
                }
            ),
            flush=True,
        )
    for name, own in kept.items():
        uniform = f"uniform {name.rsplit(' ', 1)[-1]}"
        if uniform in kept and name != uniform:
            ratio = [a / b for a, b in zip(own, kept[uniform], strict=True)]
            print(json.dumps({"name": f"{name} over {uniform}", "kld ratio": shown(ratio)}))
    engine.close()
    return 0


def configs(trace: Path | None) -> dict[str, dict[str, Any]]:
    """Returns overlays by name; a plan's name ends with its average bits."""
    found: dict[str, dict[str, Any]] = {
        f"uniform {bits}": {"precision.bits": bits} for bits in (16, 8, 4, 3, 2)
    }
    for bits in (4, 3, 2):
        nearest = {"precision.bits": bits, "precision.options.optimize": "none"}
        found[f"round to nearest {bits}"] = nearest
    for average in (4, 3):
        plan: dict[str, Any] = {"precision.options.average_bits": average}
        found[f"by sensitivity {average}"] = {"precision.scheme": "by_sensitivity", **plan}
        if trace is not None:
            plan["precision.options.trace"] = str(trace)
            found[f"by popularity {average}"] = {"precision.scheme": "by_popularity", **plan}
    return found


def run(engine: Engine, overlay: dict[str, Any], blocks: list[list[int]]) -> list[torch.Tensor]:
    """Returns the log-probabilities [S, V] of each block."""
    engine.configure(EngineConfig().overlay({"kv.max_tokens": BLOCK_TOKENS, **overlay}))
    found = []
    for block in blocks:
        logits = engine.prefill([MicroBatch(torch.tensor([block]), keep=0)])[0][0]
        found.append(torch.log_softmax(logits.float(), dim=-1))
    return found


def divergence(reference: torch.Tensor, own: torch.Tensor) -> float:
    """Returns KL(reference || own) in nats a token."""
    return float((reference.exp() * (reference - own)).sum(-1).mean())


def bits_per_byte(
    rows: list[torch.Tensor], blocks: list[list[int]], sizes: list[int]
) -> list[float]:
    """Returns the bits per byte of each block; its first token is given."""
    found = []
    for own, block, size in zip(rows, blocks, sizes, strict=True):
        picked = own[:-1].gather(1, torch.tensor(block[1:])[:, None])
        found.append(-float(picked.sum()) / math.log(2) / size)
    return found


def shown(values: list[float]) -> dict[str, float]:
    metric = mean_metric(values, "")
    return {
        "mean": statistics.mean(values),
        "low": metric.low if metric.low is not None else math.nan,
        "high": metric.high if metric.high is not None else math.nan,
    }
