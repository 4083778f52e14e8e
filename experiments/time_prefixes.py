"""Measures the gain of the prefix cache: `python -m experiments.run time_prefixes MODEL`.

Serves the same requests, a common prefix and a short question each, with and without
serve.prefix_cache_tokens, interleaved request by request, one at a time as a chat client sends
them. Prints the time to the first token of both and their paired ratio with its interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from experiments.local_server import ServedModel, show
from tuner.folders import resolve_model


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True, help="where prompts are cut from")
    parser.add_argument("--vram", default="64MB")
    parser.add_argument("--begin", type=int, default=256, help="tokens that all prompts share")
    parser.add_argument("--ask", type=int, default=24, help="tokens of a question")
    parser.add_argument("--requests", type=int, default=22)
    arguments = parser.parse_args()
    folder = Path(resolve_model(arguments.model))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(arguments.text.read_text(encoding="utf-8")[:200_000])["input_ids"]
    prompts = [
        (*ids[: arguments.begin], *ids[start : start + arguments.ask])
        for start in range(arguments.begin, len(ids), arguments.ask)
    ][: arguments.requests]
    paths = {"budget.vram_bytes": arguments.vram, "kv.max_tokens": len(prompts[0]) + 8}
    plain = ServedModel(folder, tokenizer, paths)
    sharing = ServedModel(
        folder, tokenizer, {**paths, "serve.prefix_cache_tokens": arguments.begin}
    )
    for server in (plain, sharing):
        for prompt in prompts[:2]:
            ttft_s(server, prompt)
    pairs = [(ttft_s(plain, prompt), ttft_s(sharing, prompt)) for prompt in prompts[2:]]
    show("without prefix cache, ms", [1e3 * whole for whole, _ in pairs])
    show("prefix cache, ms", [1e3 * part for _, part in pairs])
    show("ratio, pair by pair", [part / whole for whole, part in pairs])
    print(f"{len(pairs)} pairs; cached {sharing.cached} of {len(prompts[0])} tokens")
    kept = sharing.memory.kv_bytes, plain.memory.kv_bytes
    print(f"keys and values {kept[0]:,} bytes instead of {kept[1]:,}")
    for server in (plain, sharing):
        server.close()
    return 0


def ttft_s(server: ServedModel, prompt: Sequence[int]) -> float:
    """Returns the seconds to the first token; fails for a text that ends at once."""
    sequence = server.ask(prompt, 2)
    found = None if sequence is None else sequence.timing.ttft_s
    assert found is not None, "the first token ended the text: choose another"
    return found
