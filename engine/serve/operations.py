"""Operations of a server process: a worker's open, configure and measure, and serve.

A separate process from engine.worker, because a server does not need the packages of evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.config.exactness import ON_MISS
from engine.errors import ConfigError, ProtocolError
from engine.serve.server import ServeOptions, serve_http
from engine.trace.fingerprint import RoutingCounts
from engine.worker.baseline import settle_serving_baseline
from engine.worker.engine_host import Emit, EngineHost


class Operations:
    """Holds at most one open engine. cache_folder: packs; emit: sends an event of the current
    request."""

    def __init__(self, cache_folder: Path, emit: Emit) -> None:
        self._host = EngineHost(cache_folder, emit, settle_serving_baseline)
        self._handlers: dict[str, Callable[..., dict[str, Any]]] = {
            "open": self.open,
            "configure": self.configure,
            "measure": self.measure,
            "serve": self.serve,
            "close": self.close,
        }

    def run(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Dispatch. Raises ProtocolError for an unknown operation."""
        handler = self._handlers.get(operation)
        if handler is None:
            raise ProtocolError(
                f"unknown operation '{operation}'; a server knows {', '.join(self._handlers)}"
            )
        try:
            return handler(**arguments)
        except torch.OutOfMemoryError as error:
            raise self._host.out_of_memory(error) from error

    def open(
        self,
        model: str,
        device: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> dict[str, Any]:
        """Load a model's non-expert weights and its tokenizer."""
        answer = self._host.open(model, device, trust_remote_code, revision)
        _ = self._host.tokenizer  # a model without one cannot be served
        return answer

    def configure(self, config: dict[str, Any]) -> dict[str, Any]:
        """Reconfigure in place. Raises ConfigError for a config that only recorded text can run."""
        resolved, memory = self._host.configure(config)
        if self._host.engine.needs_future:
            raise ConfigError(
                "this config knows its future (prefetch.predictor oracle or cache.eviction "
                "belady), which nobody knows of what clients ask: export another trial"
            )
        if resolved.serve.response_cache_entries and resolved.precision.scheme in ON_MISS:
            raise ConfigError(
                "serve.response_cache_entries keeps answers that are always the same; what "
                f"precision.scheme = {resolved.precision.scheme} computes depends on what happens "
                "to be resident: set serve.response_cache_entries to 0"
            )
        return {"config": resolved.to_dict(), "memory": memory.to_json()}

    def measure(
        self,
        workload: dict[str, Any],
        repeats: int = 1,
        warm_up: bool = True,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Run the canary measurement as a worker does, with the routing's fingerprint in the
        environment."""
        facts = self._host.engine.facts
        counts = RoutingCounts(facts.moe_layers, facts.experts)
        report = self._host.measure(
            workload,
            repeats,
            warm_up,
            seed,
            on_trace=lambda trace: counts.add_table(trace.experts),
        )
        report.environment["routing"] = counts.take()
        return report.to_json()

    def serve(self, **options: Any) -> dict[str, Any]:
        """Serve until stopped; returns the totals. options: fields of ServeOptions."""
        host = self._host
        return serve_http(host.engine, host.tokenizer, ServeOptions(**options), host.emit)

    def close(self) -> dict[str, Any]:
        """Close the model."""
        self._host.close()
        return {}
