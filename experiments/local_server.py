"""A configured engine with its serving thread, for scripts that time requests."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.statistics import mean_metric
from engine.device.registry import open_device
from engine.run.engine import Engine
from engine.run.sampling import SamplingOptions
from engine.serve.batching.metrics import Meters
from engine.serve.batching.response_cache import ResponseCache
from engine.serve.batching.scheduler import EngineLoop
from engine.serve.batching.sequence import LiveSequence, SequenceRequest, StepOutput
from tuner.folders import cache_folder


class ServedModel:
    """One engine with one configuration. cached: prompt tokens that the last request found in the
    prefix cache; answers: the response cache."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        paths: dict[str, Any],
        answers: ResponseCache | None = None,
    ) -> None:
        self.engine = Engine(folder, open_device("cpu"), cache_folder())
        _, self.memory = self.engine.configure(EngineConfig().overlay(paths))
        self.cached = 0
        facts = self.engine.facts
        self.meters = Meters(facts.moe_layers, facts.experts)
        self._loop = EngineLoop(
            self.engine,
            tokenizer,
            queue=4,
            meters=self.meters,
            on_failure=lambda reason: None,
            answers=answers,
        )
        self._loop.start()

    def ask(self, prompt: Sequence[int], tokens: int) -> LiveSequence | None:
        """Runs one greedy request to its end; returns None if the response cache answered it."""
        ended = threading.Event()
        received: list[StepOutput] = []

        def deliver(output: StepOutput) -> None:
            received.append(output)
            if output.last:
                ended.set()

        wanted = SequenceRequest(tuple(prompt), tokens, SamplingOptions())
        asked = self._loop.submit([(wanted, deliver)])
        ended.wait()
        assert received[-1].error is None, received[-1].error
        self.cached = received[-1].cached
        return asked[0] if asked else None

    def close(self) -> None:
        """Ends the thread and closes the engine."""
        self._loop.close()
        self.engine.close()


def show(name: str, values: list[float]) -> None:
    """Prints a mean with its interval."""
    found = mean_metric(values, "")
    print(f"{name}: {found.value:.3g} [{found.low:.3g}, {found.high:.3g}]")
