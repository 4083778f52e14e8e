"""Plain transformers as a baseline: resident, or with accelerate's disk offload under a budget.

Both run the 16-bit checkpoint with transformers' own experts and KV cache, one sequence at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from engine.baselines.measurement import BaselineMeasurement, SequenceTiming
from engine.baselines.memory_group import bounded_memory, drop_page_cache
from engine.config.settings import EngineConfig
from engine.contract.messages import BaselineName
from engine.derived.scratch import scratch_folder
from engine.device import process_memory
from engine.errors import EngineError, InfeasibleError, StorageError, UsageError
from engine.measure.pass_through import Sequenced
from engine.model.checkpoint import Checkpoint, read_description
from engine.model.hub import locate
from engine.model.tokenizer import load_tokenizer
from engine.model.weight_files import weight_files
from engine.types import format_bytes
from engine.worker.baseline import settle_baseline


class TransformersBaseline:
    """Implements the worker's open, configure, measure and close.

    cache_folder: where accelerate's offloaded weights lie meanwhile.
    """

    def __init__(self, name: BaselineName, cache_folder: Path) -> None:
        self._name = name
        self._cache_folder = cache_folder
        self._folder = Path()
        self._runtime_bytes = 0
        self._model: Any = None
        self._tokenizer: Any = None
        self._bound = "not bounded"
        self._budget_bytes = 0
        self._cleanup = contextlib.ExitStack()

    def run(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Dispatch an operation."""
        if operation == "open":
            return self._open(str(arguments["model"]), arguments.get("revision"))
        if operation == "configure":
            return self._configure(EngineConfig.from_dict(arguments["config"]))
        if operation == "measure":
            return self._measure(arguments)
        if operation == "close":
            self._cleanup.close()
            return {}
        raise UsageError(f"the baseline '{self._name}' cannot {operation}")

    def _open(self, model: str, revision: str | None) -> dict[str, Any]:
        self._folder = locate(model, revision).folder
        self._runtime_bytes = settle_baseline()
        self._tokenizer = load_tokenizer(self._folder, model, trust_remote_code=False)
        return {"runtime_bytes": self._runtime_bytes, "device": "cpu", "baseline": self._name}

    def _configure(self, config: EngineConfig) -> dict[str, Any]:
        """Load under the config's budget (accelerate disk) or fully (resident)."""
        if self._model is not None:
            return {"config": config.to_dict(), "memory": {"bound": self._bound}}
        options: dict[str, Any] = {"dtype": torch.bfloat16}
        offload = self._folder
        if self._name == "accelerate disk":
            self._budget_bytes = config.budget.vram_bytes
            if not self._budget_bytes:
                raise UsageError("the baseline 'accelerate disk' needs a budget: give --vram")
            offload = self._cleanup.enter_context(self._scratch())
            options |= {
                "device_map": "auto",
                "max_memory": {"cpu": self._resident_bytes()},
                "offload_folder": str(offload),
            }
        self._model = AutoModelForCausalLM.from_pretrained(self._folder, **options).eval()
        process_memory.trim()
        if self._budget_bytes:
            drop_page_cache(self._folder)
            drop_page_cache(offload)
            held_bytes = process_memory.resident_bytes() - self._runtime_bytes
            if held_bytes >= self._budget_bytes:
                raise InfeasibleError(
                    f"accelerate holds {format_bytes(held_bytes)} after loading, the budget is "
                    f"{format_bytes(self._budget_bytes)}: give more memory"
                )
            bound = bounded_memory(self._budget_bytes - held_bytes)
            self._bound = self._cleanup.enter_context(bound)
        process_memory.reset_peak()
        return {"config": config.to_dict(), "memory": {"bound": self._bound}}

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(scratch_folder(self._cache_folder))
            except OSError as error:
                raise StorageError(
                    f"{self._cache_folder} cannot hold accelerate's weights ({error.strerror}): "
                    "set XDG_CACHE_HOME to a folder that can be written"
                ) from None
            yield folder

    def _resident_bytes(self) -> int:
        """Bytes that accelerate may keep loaded: the budget less the layer that it streams in."""
        checkpoint = Checkpoint(self._folder)
        layers = int(checkpoint.config.get("num_hidden_layers", 1))
        total = sum(entry.size_bytes for entry in checkpoint.tensors.values())
        return max(1, self._budget_bytes - 2 * total // layers)

    def _measure(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._model is None:
            raise EngineError("configure first")
        measurement = BaselineMeasurement(
            run=self._sequence,
            tokenizer=self._tokenizer,
            sentinel_file=weight_files(self._folder, read_description(self._folder))[0],
            runtime_bytes=self._runtime_bytes,
            bound=self._bound,
        )
        environment = {"baseline": self._name, "memory": self._bound}
        return measurement.report(arguments, environment).to_json()

    def _sequence(self, sequence: Sequenced, output_tokens: int) -> SequenceTiming:
        started = time.perf_counter()
        tokens = torch.tensor([sequence.prompt])
        cache = None
        first = 0.0
        with torch.inference_mode():
            for number in range(output_tokens):
                output = self._model(tokens, cache=cache, use_cache=True, logits_to_keep=1)
                cache = output.cache
                best = int(output.logits[0, -1].argmax())
                forced = sequence.forced[number] if number < len(sequence.forced) else best
                tokens = torch.tensor([[forced]])
                if number == 0:
                    first = time.perf_counter()
        return SequenceTiming(first - started, time.perf_counter() - first)
