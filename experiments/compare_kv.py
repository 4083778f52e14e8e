"""Measures what fewer KV bits or fewer kept positions cost, on held-out text, in decode mode.

    python -m experiments.run compare_kv demo --text FILE --set kv.keep_fraction=0.75,0.5

For each value: KL(full 16-bit KV cache || this) in nats a token and the fraction of tokens with the
same most likely next token, with intervals over blocks of the text. The first half of a block is
the prompt and is not counted where kv.keep_fraction is below 1; for kv.bits every token counts.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from engine.config.settings import EngineConfig
from engine.contract.statistics import mean_metric
from engine.device.registry import open_device
from engine.evaluate.divergence import diverge
from engine.run.engine import Engine
from tuner.folders import cache_folder, resolve_model


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--set", required=True, help="path=value,value,...")
    parser.add_argument("--tokens", type=int, default=256, help="of a block")
    parser.add_argument("--blocks", type=int, default=8)
    arguments = parser.parse_args()
    folder = Path(resolve_model(arguments.model))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = list(tokenizer(arguments.text.read_text(encoding="utf-8"))["input_ids"])
    size = arguments.tokens
    blocks = [ids[n * size : (n + 1) * size] for n in range(arguments.blocks)]
    base = EngineConfig().overlay({"kv.max_tokens": size + 8})
    path, _, values = arguments.set.partition("=")
    engine = Engine(folder, open_device("cpu"), cache_folder())
    with tempfile.TemporaryDirectory() as references:
        engine.configure(base)
        for block in blocks:
            diverge(engine, block, Path(references), "decode", reference=True)
        for value in values.split(","):
            engine.configure(base.overlay({path: value}))
            row = compare(engine, blocks, Path(references))
            print(json.dumps({path: value, **row}), flush=True)
    engine.close()
    return 0


def compare(
    engine: Engine, blocks: list[list[int]], references: Path
) -> dict[str, tuple[float, float, float]]:
    """Returns the means over the blocks, each with its interval."""
    found = [diverge(engine, block, references, "decode", reference=False) for block in blocks]
    kept = [one for one in found if one is not None]
    return {
        "kld": _shown([one.kld_mean for one in kept]),
        "top1_agreement": _shown([one.top1_agreement for one in kept]),
    }


def _shown(values: list[float]) -> tuple[float, float, float]:
    metric = mean_metric(values, "")
    low = metric.low if metric.low is not None else math.nan
    high = metric.high if metric.high is not None else math.nan
    return metric.value, low, high
