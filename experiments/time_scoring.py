"""Times layer-wise streaming against the ordinary loop and token-by-token scoring of the same
texts.

    python -m experiments.run time_scoring MODEL --fraction 25% --texts 24 --tokens 96

Prints the seconds of each way in interleaved rounds, how often each expert's record was read, and
the largest difference of any text's log-likelihood.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from engine.config.settings import EngineConfig
from engine.device.registry import open_device
from engine.errors import InfeasibleError
from engine.evaluate.scoring import Continuation, score
from engine.memory.plan import resolve
from engine.run.engine import Engine
from engine.run.layer_by_layer import LayerWise
from engine.run.micro_batch import MicroBatch
from tuner.definition.workload import DEFAULT, load_workload
from tuner.folders import cache_folder, resolve_model


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--fraction", default="25%", help="of all expert bytes that fits")
    parser.add_argument("--bits", default="16")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = Path(resolve_model(arguments.model))
    engine = Engine(folder, open_device("cpu"), cache_folder())
    config = budgeted(engine, arguments)
    items = texts(folder, arguments.texts, arguments.tokens)
    ways: dict[str, Callable[[], list[float]]] = {
        "layer by layer": lambda: scored(engine, items),
        "ordinary loop": lambda: without_layer_wise(engine, items),
        "token by token": lambda: [token_by_token(engine, item) for item in items],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[float]] = {}
    reads: list[int] = []
    for _ in range(arguments.rounds):
        for name, run in ways.items():
            engine.configure(config)
            started = time.perf_counter()
            with counted(reads if name == "layer by layer" else []):
                found[name] = run()
            seconds[name].append(time.perf_counter() - started)
    report: dict[str, Any] = {
        "seconds": seconds,
        "ratio of token by token": {
            name: statistics.median(
                a / b for a, b in zip(seconds["token by token"], own, strict=True)
            )
            for name, own in seconds.items()
        },
        "largest difference in nats": {
            name: max(abs(a - b) for a, b in zip(found["token by token"], own, strict=True))
            for name, own in found.items()
        },
        "most reads of one record in one pass": max(reads),
        "budget_bytes": config.budget.vram_bytes,
    }
    print(json.dumps(report, indent=1))
    engine.close()
    return 0


def budgeted(engine: Engine, arguments: argparse.Namespace) -> EngineConfig:
    """Returns a config whose budget holds the fraction of the experts and nothing more."""
    base = EngineConfig().overlay(
        {
            "precision.bits": arguments.bits,
            "compute.dtype": arguments.dtype,
            "cache.expert_bytes": arguments.fraction,
            "kv.max_tokens": max(2, arguments.tokens + 8),
        }
    )
    _, memory = resolve(base, engine.facts)
    return base.overlay({"budget.vram_bytes": memory.total_bytes})


def texts(folder: Path, count: int, tokens: int) -> list[Continuation]:
    """Returns windows of the default workload's texts; the last half of each is scored."""
    work = load_workload(DEFAULT)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = "\n".join((*work.prompts, *work.continuations))
    ids = list(tokenizer(text)["input_ids"])
    if len(ids) < count * tokens:
        raise SystemExit(f"the default workload has {len(ids)} tokens: fewer texts or tokens")
    windows = [ids[start * tokens : (start + 1) * tokens] for start in range(count)]
    return [Continuation(tuple(w[: tokens // 2]), tuple(w[tokens // 2 :])) for w in windows]


def scored(engine: Engine, items: list[Continuation]) -> list[float]:
    return [result.log_likelihood for result in score(engine, items)]


def without_layer_wise(engine: Engine, items: list[Continuation]) -> list[float]:
    """Scores as if memory did not allow layer-wise streaming."""
    plain = Engine.layer_wise

    def refuse(self: Engine, longest: int) -> Any:
        raise InfeasibleError("left out to compare", 0)

    Engine.layer_wise = refuse  # type: ignore[assignment,method-assign]
    try:
        return scored(engine, items)
    finally:
        Engine.layer_wise = plain  # type: ignore[method-assign]


def token_by_token(engine: Engine, item: Continuation) -> float:
    """Scores with one decode step a token."""
    engine.begin_sequences()
    batch, total = MicroBatch(torch.empty(1, 0, dtype=torch.long)), 0.0
    wanted = (*item.context, *item.target)[1:]
    for position, token in enumerate(item.input):
        batch.tokens = torch.tensor([[token]])
        logits = engine.forward([batch], "decode")[0][0, -1]
        if position >= len(item.context) - 1:
            total += float(torch.log_softmax(logits.float(), dim=-1)[wanted[position]])
    return total


@contextmanager
def counted(reads: list[int]) -> Any:
    """Records the largest number of reads of any record in each layer-wise pass."""
    run = LayerWise.run

    def counting(self: LayerWise, *arguments: Any, **keywords: Any) -> None:
        self.reads.clear()
        run(self, *arguments, **keywords)
        reads.append(max(self.reads.values()))

    LayerWise.run = counting  # type: ignore[method-assign]
    try:
        yield
    finally:
        LayerWise.run = run  # type: ignore[method-assign]
