"""Plain transformers as a peer: resident, or with accelerate's disk offload under a budget.

Both run the 16-bit checkpoint with transformers' own experts and KV cache, one sequence at a time.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config import EngineConfig
from engine.device import process_memory
from engine.errors import EngineError, UsageError
from engine.measure.pass_through import Sequenced
from engine.measure.sentinel import measure_sentinel
from engine.measure.statistics import mean_metric
from engine.measure.workload import pick, tokenize
from engine.model.checkpoint import Checkpoint, locate
from engine.peers.memory_group import bounded_memory, drop_page_cache
from engine.protocol import Workload
from engine.report import MemoryReading, Report, Sample
from engine.worker.baseline import settle_baseline

PeerName = Literal["transformers resident", "accelerate disk"]


class TransformersPeer:
    """Implements the worker's open, configure, measure and close."""

    def __init__(self, name: PeerName) -> None:
        self._name = name
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
            return self._open(str(arguments["model"]))
        if operation == "configure":
            return self._configure(EngineConfig.from_dict(arguments["config"]))
        if operation == "measure":
            return self._measure(arguments)
        if operation == "close":
            self._cleanup.close()
            return {}
        raise UsageError(f"the peer '{self._name}' cannot {operation}")

    def _open(self, model: str) -> dict[str, Any]:
        self._folder = locate(model).folder
        self._runtime_bytes = settle_baseline()
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        return {"runtime_bytes": self._runtime_bytes, "device": "cpu", "peer": self._name}

    def _configure(self, config: EngineConfig) -> dict[str, Any]:
        """Load under the config's budget (accelerate disk) or whole (resident)."""
        if self._model is not None:
            return {"config": config.to_dict(), "memory": {"bound": self._bound}}
        options: dict[str, Any] = {"dtype": torch.bfloat16}
        offload = self._cleanup.enter_context(tempfile.TemporaryDirectory())
        if self._name == "accelerate disk":
            self._budget_bytes = config.budget.vram_bytes
            if not self._budget_bytes:
                raise UsageError("the peer 'accelerate disk' needs a budget: give --vram")
            options |= {
                "device_map": "auto",
                "max_memory": {"cpu": self._resident_bytes()},
                "offload_folder": offload,
            }
        self._model = AutoModelForCausalLM.from_pretrained(self._folder, **options).eval()
        process_memory.trim()
        if self._budget_bytes:
            drop_page_cache(self._folder)
            drop_page_cache(Path(offload))
            bound = bounded_memory(self._budget_bytes + self._runtime_bytes)
            self._bound = self._cleanup.enter_context(bound)
        process_memory.reset_peak()
        return {"config": config.to_dict(), "memory": {"bound": self._bound}}

    def _resident_bytes(self) -> int:
        """What accelerate may keep loaded: the budget less room for the layer it streams in."""
        checkpoint = Checkpoint(self._folder)
        layers = int(checkpoint.config.get("num_hidden_layers", 1))
        total = sum(entry.size_bytes for entry in checkpoint.tensors.values())
        return max(1, self._budget_bytes - 2 * total // layers)

    def _measure(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._model is None:
            raise EngineError("configure first")
        workload = Workload.from_json(arguments["workload"])
        first = int(arguments.get("seed", 0))
        sequences = tokenize(workload, self._tokenizer)
        file = next(iter(sorted(self._folder.glob("*.safetensors"))))
        if arguments.get("warm_up", True):
            self._pass(pick(sequences[::-1], 1, 0), min(4, workload.output_tokens))
        rows = [
            self._pass(pick(sequences, workload.sequences, repeat), workload.output_tokens)
            for repeat in range(first, first + int(arguments.get("repeats", 1)))
        ]
        units = {"output_tps": "tokens/s", "decode_tps": "tokens/s", "prefill_tps": "tokens/s"}
        metrics = {
            name: mean_metric([row[name] for row in rows], units.get(name, "ms"))
            for name in rows[0]
        }
        samples = tuple(
            Sample(name, first + number, value, units.get(name, "ms"))
            for number, row in enumerate(rows)
            for name, value in row.items()
        )
        environment = {"peer": self._name, "memory": self._bound}
        memory = self._memory()
        return Report(metrics, samples, memory, measure_sentinel(file), environment).to_json()

    def _pass(self, sequences: Sequence[Sequenced], output_tokens: int) -> dict[str, float]:
        prefill_s = decode_s = 0.0
        for sequence in sequences:
            ttft, decode = self._sequence(sequence, output_tokens)
            prefill_s += ttft
            decode_s += decode
        count = len(sequences)
        return {
            "output_tps": count * output_tokens / (prefill_s + decode_s),
            "decode_tps": count * (output_tokens - 1) / decode_s,
            "prefill_tps": sum(len(s.prompt) for s in sequences) / prefill_s,
            "ttft_ms": prefill_s / count * 1e3,
            "tpot_ms": decode_s / count / (output_tokens - 1) * 1e3,
        }

    def _sequence(self, sequence: Sequenced, output_tokens: int) -> tuple[float, float]:
        """Seconds to the first token and for the others."""
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
        return first - started, time.perf_counter() - first

    def _memory(self) -> MemoryReading:
        peak = process_memory.peak_resident_bytes()
        return MemoryReading(
            arena_bytes=0,
            dense_bytes=0,
            kv_bytes=0,
            peak_bytes=0,
            external_peak_bytes=max(0, peak - self._runtime_bytes),
            external_source=f"VmHWM; {self._bound}",
            runtime_bytes=self._runtime_bytes,
            host_peak_bytes=peak,
        )
