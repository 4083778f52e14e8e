"""What sharing the beginnings of prompts brings: `python scripts/time_prefixes.py MODEL`.

Serves the same requests, a common beginning and a short question each, with and without
serve.prefix_share, interleaved request by request, one at a time as a chat client sends them.
Prints the time to the first token of both and their ratio, pair by pair, with its interval.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import AutoTokenizer

from engine.config import EngineConfig
from engine.device.registry import open_device
from engine.run.engine import Engine
from engine.run.sampling import SamplingOptions
from engine.serve.engine_loop import EngineLoop
from engine.serve.meters import Meters
from engine.serve.sequence import LiveSequence, Output, Wanted
from tuner.folders import cache_folder, resolve_model
from tuner.statistics import interval


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True, help="where prompts are cut from")
    parser.add_argument("--vram", default="64MB")
    parser.add_argument("--begin", type=int, default=256, help="tokens that all prompts share")
    parser.add_argument("--ask", type=int, default=24, help="tokens of a question")
    parser.add_argument("--requests", type=int, default=20)
    arguments = parser.parse_args()
    folder = Path(resolve_model(arguments.model))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(arguments.text.read_text()[:200_000])["input_ids"]
    prompts = [
        (*ids[: arguments.begin], *ids[start : start + arguments.ask])
        for start in range(arguments.begin, len(ids), arguments.ask)
    ][: arguments.requests]
    paths = {"budget.vram_bytes": arguments.vram, "kv.max_tokens": len(prompts[0]) + 8}
    plain = Server(folder, tokenizer, paths)
    sharing = Server(folder, tokenizer, {**paths, "serve.prefix_share": arguments.begin})
    for server in (plain, sharing):
        for prompt in prompts[:2]:
            server.ttft_s(prompt)
    pairs = [(plain.ttft_s(prompt), sharing.ttft_s(prompt)) for prompt in prompts[2:]]
    show("read whole, ms", [1e3 * whole for whole, _ in pairs])
    show("beginning shared, ms", [1e3 * part for _, part in pairs])
    show("ratio, pair by pair", [part / whole for whole, part in pairs])
    print(f"{len(pairs)} pairs; cached {sharing.cached} of {len(prompts[0])} tokens")
    print(f"keys and values {sharing.kv_bytes:,} bytes instead of {plain.kv_bytes:,}")
    for server in (plain, sharing):
        server.close()
    return 0


class Server:
    """One engine's thread with one configuration."""

    def __init__(self, folder: Path, tokenizer: Any, paths: dict[str, Any]) -> None:
        self._engine = Engine(folder, open_device("cpu"), cache_folder())
        _, memory = self._engine.configure(EngineConfig().overlay(paths))
        self.kv_bytes = memory.kv_bytes
        self.cached = 0
        meters = Meters(self._engine.facts.moe_layers, self._engine.facts.experts)
        self._loop = EngineLoop(
            self._engine, tokenizer, queue=4, meters=meters, on_failure=lambda reason: None
        )
        self._loop.start()

    def ttft_s(self, prompt: Sequence[int]) -> float:
        """Seconds to the first token of two."""
        ended = threading.Event()
        heard: list[Output] = []

        def deliver(output: Output) -> None:
            heard.append(output)
            if output.last:
                ended.set()

        wanted = Wanted(tuple(prompt), 2, SamplingOptions())
        (sequence,) = self._loop.submit([(wanted, deliver)])
        ended.wait()
        self.cached = heard[-1].cached
        return first_token_s(sequence)

    def close(self) -> None:
        """End the thread."""
        self._loop.close()
        self._engine.close()


def first_token_s(sequence: LiveSequence) -> float:
    """As its clock says; a sequence that ends at once has no token."""
    assert sequence.timing.ttft_s is not None, "the first token ended the text: choose another"
    return sequence.timing.ttft_s


def show(name: str, values: list[float]) -> None:
    """A mean with its interval."""
    found = interval(values, "")
    print(f"{name}: {found.value:.3g} [{found.low:.3g}, {found.high:.3g}]")


if __name__ == "__main__":
    sys.exit(main())
