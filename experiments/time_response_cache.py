"""Measures the response cache: `python -m experiments.run time_response_cache MODEL --text FILE`.

Requests repeat as users' do: prompts cut from a text, drawn with Zipf's probabilities (exponent
--zipf, an assumption). Prints hit rates, and the time of a cached and of a computed answer.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer

from engine.serve.batching.response_cache import ResponseCache
from experiments.local_server import ServedModel, show
from tuner.folders import resolve_model


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True, help="where prompts are cut from")
    parser.add_argument("--vram", default="64MB")
    parser.add_argument("--prompts", type=int, default=50, help="different ones")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--capacity", type=int, default=25, help="answers that are kept")
    parser.add_argument("--zipf", type=float, default=1.0)
    arguments = parser.parse_args()
    folder = Path(resolve_model(arguments.model))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(arguments.text.read_text(encoding="utf-8")[:200_000])["input_ids"]
    prompts = [tuple(ids[32 * n : 32 * n + 32]) for n in range(arguments.prompts)]
    weights = [1 / (n + 1) ** arguments.zipf for n in range(len(prompts))]
    asked = random.Random(0).choices(prompts, weights, k=arguments.requests)
    known: list[float] = []
    computed: list[float] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.closing(
            ResponseCache(Path(scratch) / "answers.db", arguments.capacity)
        ) as answers,
    ):
        paths = {"budget.vram_bytes": arguments.vram, "kv.max_tokens": 128}
        server = ServedModel(folder, tokenizer, paths, answers)
        for prompt in asked:
            started = time.perf_counter()
            sequence = server.ask(prompt, arguments.tokens)
            spent = 1e3 * (time.perf_counter() - started)
            (known if sequence is None else computed).append(spent)
        server.close()
    prompts = len(set(asked))
    print(f"{len(asked)} requests for {prompts} prompts, capacity {arguments.capacity} answers")
    fraction, most = len(known) / len(asked), 1 - len(set(asked)) / len(asked)
    print(f"hit rate {fraction:.2f}; the most possible {most:.2f}")
    show("known, ms", known)
    show("computed, ms", computed)
    return 0
