"""A configured engine behind its serving thread, for scripts that time requests."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import EngineConfig
from engine.device.registry import open_device
from engine.run.engine import Engine
from engine.run.sampling import SamplingOptions
from engine.serve.engine_loop import EngineLoop
from engine.serve.meters import Meters
from engine.serve.sequence import LiveSequence, Output, Wanted
from tuner.folders import cache_folder
from tuner.statistics import interval


class Served:
    """One engine with one configuration. cached: prompt tokens that the last request found."""

    def __init__(self, folder: Path, tokenizer: Any, paths: dict[str, Any]) -> None:
        self.engine = Engine(folder, open_device("cpu"), cache_folder())
        _, self.memory = self.engine.configure(EngineConfig().overlay(paths))
        self.cached = 0
        facts = self.engine.facts
        self.meters = Meters(facts.moe_layers, facts.experts)
        self._loop = EngineLoop(
            self.engine, tokenizer, queue=4, meters=self.meters, on_failure=lambda reason: None
        )
        self._loop.start()

    def ask(self, prompt: Sequence[int], tokens: int) -> LiveSequence:
        """One greedy request, to its end."""
        ended = threading.Event()
        heard: list[Output] = []

        def deliver(output: Output) -> None:
            heard.append(output)
            if output.last:
                ended.set()

        wanted = Wanted(tuple(prompt), tokens, SamplingOptions())
        (sequence,) = self._loop.submit([(wanted, deliver)])
        ended.wait()
        assert heard[-1].error is None, heard[-1].error
        self.cached = heard[-1].cached
        return sequence

    def close(self) -> None:
        """End the thread."""
        self._loop.close()
        self.engine.close()


def show(name: str, values: list[float]) -> None:
    """A mean with its interval."""
    found = interval(values, "")
    print(f"{name}: {found.value:.3g} [{found.low:.3g}, {found.high:.3g}]")
