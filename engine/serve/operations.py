"""What this process can be asked for: a worker's open, configure and measure, and to serve.

A process of its own beside engine.worker, because a server has no use for what evaluations need.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.config.exactness import ON_MISS
from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.errors import ConfigError, EngineError, ModelError, ProtocolError
from engine.measure.measure import measure
from engine.measure.workload import tokenize
from engine.run.engine import Engine
from engine.serve.server import ServeOptions, serve_http
from engine.trace.fingerprint import RoutingCounts
from engine.worker.baseline import settle_serving_baseline
from engine.worker.open_model import open_engine

Emit = Callable[[dict[str, Any]], None]


class Operations:
    """Holds at most one open engine. cache_folder: packs; emit: sends an event of the running
    request."""

    def __init__(self, cache_folder: Path, emit: Emit) -> None:
        self._cache_folder = cache_folder
        self._emit = emit
        self._engine: Engine | None = None
        self._tokenizer: Any = None
        self._runtime_bytes = 0
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
        return handler(**arguments)

    def open(
        self,
        model: str,
        device: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> dict[str, Any]:
        """Load a model's dense part and its tokenizer."""
        self.close()
        opened = open_engine(
            model,
            device,
            self._cache_folder,
            trust_remote_code=trust_remote_code,
            revision=revision,
            settle=settle_serving_baseline,
        )
        self._engine, self._runtime_bytes = opened.engine, opened.runtime_bytes
        self._tokenizer = _load_tokenizer(self._engine)
        return opened.to_json(self._cache_folder)

    def configure(self, config: dict[str, Any]) -> dict[str, Any]:
        """Reconfigure in place. Raises ConfigError for a config that only recorded text can run."""
        engine = self._opened()
        resolved, memory = engine.configure(EngineConfig.from_dict(config), self._progress)
        if engine.needs_future:
            raise ConfigError(
                "this config knows its future (prefetch.predictor oracle or cache.eviction "
                "belady), which nobody knows of what clients ask: export another trial"
            )
        if resolved.serve.response_cache_entries and resolved.precision.scheme in ON_MISS:
            raise ConfigError(
                f"serve.response_cache_entries keeps answers that are always the same; what "
                "precision.scheme = "
                f"{resolved.precision.scheme} computes depends on what happens to be resident: set "
                "serve.response_cache_entries to 0"
            )
        return {"config": resolved.to_dict(), "memory": memory.to_json()}

    def measure(
        self,
        workload: dict[str, Any],
        repeats: int = 1,
        warm_up: bool = True,
        seed: int = 0,
    ) -> dict[str, Any]:
        """The canary: as a worker does it, with the routing's fingerprint in the environment."""
        task, engine = Workload.from_json(workload), self._opened()
        counts = RoutingCounts(engine.facts.moe_layers, engine.facts.experts)
        report = measure(
            engine,
            tokenize(task, self._tokenizer),
            output_tokens=task.output_tokens,
            sequences_per_repeat=task.sequences,
            repeats=repeats,
            first_repeat=seed,
            warm_up=warm_up,
            runtime_bytes=self._runtime_bytes,
            progress=self._progress,
            on_trace=lambda trace: counts.add_table(trace.experts),
        )
        report.environment["routing"] = counts.take()
        return report.to_json()

    def serve(self, **options: Any) -> dict[str, Any]:
        """Serve until told to stop; the totals. options: of ServeOptions."""
        return serve_http(self._opened(), self._tokenizer, ServeOptions(**options), self._emit)

    def close(self) -> dict[str, Any]:
        """Drop the model."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._tokenizer = None
        return {}

    def _opened(self) -> Engine:
        if self._engine is None:
            raise EngineError("no model is open: send open first")
        return self._engine

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._emit({"event": "progress", "stage": stage, "done": done, "total": total})


def _load_tokenizer(engine: Engine) -> Any:
    from transformers import AutoTokenizer

    facts = engine.facts
    if not facts.has_tokenizer:
        raise ModelError(
            f"{facts.id} has no tokenizer, so it cannot be served: put tokenizer.json beside its "
            "config.json"
        )
    return AutoTokenizer.from_pretrained(facts.path, local_files_only=True)
