"""Times sequences of different lengths that decode together, beside one after another.

    python -m experiments.run time_together MODEL --counts 4,16

Both ways run in one process, in turn: one pass of all sequences, and the pass of each sequence by
itself, which shares only the experts. Prints tokens/s of all sequences, the median
over steps, for each round.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from engine.config.settings import EngineConfig
from engine.device.registry import open_device
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tuner.folders import cache_folder

STEPS, WARM_UP, TOKEN = 24, 4, 7


def main(
    model: Annotated[Path, typer.Argument(help="the checkpoint's folder")],
    counts: Annotated[str, typer.Option(help="sequences at once")] = "4,16",
    bits: int = 4,
    non_expert_bits: int = 4,
    activation_bits: int = 16,
    cache: Annotated[str, typer.Option(help="cache.expert_bytes")] = "100%",
    rounds: int = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda:0 or any device of torch")] = "cpu",
) -> None:
    """Compare."""
    engine = Engine(model, open_device(device), cache_folder())
    print("| sequences | together, tokens/s | one after another | times as fast |")
    print("| --- | --- | --- | --- |")
    for count in map(int, counts.split(",")):
        settings: dict[str, Any] = {
            "precision.bits": bits,
            "precision.non_expert_bits": non_expert_bits,
        }
        settings["precision.activation_bits"] = activation_bits
        settings |= {"cache.expert_bytes": cache, "batch.count": count, "kv.max_tokens": 256}
        engine.configure(EngineConfig().overlay(settings))
        joined, native = engine.passes, engine.passes.native
        if not joined.together:
            raise SystemExit(f"{model}: its sequences do not decode together")
        for _ in range(rounds):
            found = []
            for passes in (replace(joined, joined=None), joined):
                engine.passes = passes
                if native is not None:
                    native.joins = passes is joined and joined.joined is None
                found.append(_tokens_per_s(engine, count))
            print(f"| {count} | {found[1]:.1f} | {found[0]:.1f} | {found[1] / found[0]:.2f} |")
    engine.close()


def _tokens_per_s(engine: Engine, count: int) -> float:
    generator = torch.Generator().manual_seed(0)
    vocabulary = engine.facts.vocabulary
    batches = [
        MicroBatch(torch.randint(vocabulary, (1, 20 + 3 * number), generator=generator))
        for number in range(count)
    ]
    for batch in batches:
        engine.prefill([batch])
        batch.tokens = torch.tensor([[TOKEN]])
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        logits = engine.forward(batches, "decode")
        seconds.append(time.perf_counter() - started)
        for batch, row in zip(batches, logits, strict=True):
            batch.tokens = row[:, -1].argmax(-1, keepdim=True)
    return count / statistics.median(seconds[WARM_UP:])
