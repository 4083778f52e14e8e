"""One open engine with its tokenizer, shared by worker and server.

In: values of the requests open, configure and measure. Out: values of their answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.report import Report
from engine.contract.requests import Workload
from engine.device.memory_error import device_memory_error
from engine.errors import DeviceMemoryError, EngineError
from engine.measure.energy import EnergyMeter
from engine.measure.measure import measure
from engine.measure.workload import tokenize
from engine.memory.plan import Resolved
from engine.model.chat_template import TemplateRenderer
from engine.model.tokenizer import load_tokenizer
from engine.run.engine import Engine
from engine.trace.trace import Trace
from engine.worker.open_model import open_engine

Emit = Callable[[dict[str, Any]], None]


class EngineHost:
    """Holds at most one open engine.

    cache_folder: packs, self-tests, references; emit: sends an event of the current request;
    settle: brings the process to its baseline before a model is loaded and returns its bytes.
    """

    def __init__(self, cache_folder: Path, emit: Emit, settle: Callable[[], int]) -> None:
        self.cache_folder = cache_folder
        self.emit = emit
        self.runtime_bytes = 0
        self._settle = settle
        self._engine: Engine | None = None
        self._tokenizer: Any = None
        self._trusted = False
        self._renderer = TemplateRenderer()

    @property
    def is_open(self) -> bool:
        """Whether a model is open."""
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """The open engine. Raises EngineError if there is none."""
        if self._engine is None:
            raise EngineError("no model is open: send open first")
        return self._engine

    @property
    def tokenizer(self) -> Any:
        """The open model's tokenizer, loaded on first use. Raises ModelError if it has none."""
        if self._tokenizer is None:
            facts = self.engine.facts
            self._tokenizer = load_tokenizer(
                Path(facts.path), facts.id, trust_remote_code=self._trusted
            )
        return self._tokenizer

    def open(
        self,
        model: str,
        device: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> dict[str, Any]:
        """Load non-expert weights; experts stay on disk. A hub id is fetched first."""
        self.close()
        self._trusted = trust_remote_code
        opened = open_engine(
            model,
            device,
            self.cache_folder,
            trust_remote_code=trust_remote_code,
            revision=revision,
            settle=self._settle,
        )
        self._engine, self.runtime_bytes = opened.engine, opened.runtime_bytes
        return opened.to_json(self.cache_folder)

    def configure(self, config: dict[str, Any]) -> Resolved:
        """Reconfigure in place; makes a missing pack first."""
        return Resolved(*self.engine.configure(EngineConfig.from_dict(config), self.progress))

    def measure(
        self,
        workload: dict[str, Any],
        repeats: int,
        warm_up: bool,
        seed: int,
        meter: EnergyMeter | None = None,
        on_trace: Callable[[Trace], None] | None = None,
    ) -> Report:
        """Run repeats numbered from `seed`; the same number selects the same texts."""
        task = Workload.from_json(workload)
        return measure(
            self.engine,
            tokenize(task, self.tokenizer, self._renderer),
            output_tokens=task.output_tokens,
            sequences_per_repeat=task.sequences,
            repeats=repeats,
            first_repeat=seed,
            warm_up=warm_up,
            runtime_bytes=self.runtime_bytes,
            meter=meter,
            progress=self.progress,
            on_trace=on_trace,
        )

    def out_of_memory(self, error: Exception) -> DeviceMemoryError:
        """An allocator's error as a sentence for people; before a model is open, without the
        budget."""
        if self._engine is None:
            return device_memory_error("the device", str(error))
        return self._engine.device.out_of_memory(error)

    def close(self) -> None:
        """Close the model."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._tokenizer = None

    def progress(self, stage: str, done: int, total: int) -> None:
        """Send a progress event."""
        self.emit({"event": "progress", "stage": stage, "done": done, "total": total})
