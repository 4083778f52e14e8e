"""llama.cpp as a baseline, through the xllamacpp wheel: memory-mapped under a budget, or resident.

Both run a GGUF file of the same checkpoint with 4-bit experts, on all cores, one sequence at a
time. A grammar of token ids forces the continuation, so that all baselines decode the same tokens.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.baselines.gguf_file import QUANTIZATION, check_comparable, ensure_gguf
from engine.baselines.measurement import BaselineMeasurement, SequenceTiming
from engine.baselines.memory_group import bounded_memory, drop_page_cache
from engine.config.settings import EngineConfig
from engine.contract.messages import BaselineName
from engine.device import process_memory
from engine.errors import EngineError, ModelError, UsageError
from engine.measure.pass_through import Sequenced
from engine.measure.sentinel import measure_sentinel
from engine.model.checkpoint import read_description
from engine.model.hub import locate
from engine.model.tokenizer import load_tokenizer
from engine.model.weight_files import weight_files
from engine.worker.process import NATIVE_SETTINGS

Emit = Callable[[dict[str, Any]], None]


class LlamaCppBaseline:
    """Implements the worker's open, configure, measure and close.

    cache_folder: where GGUF files are kept; emit: sends an event of the current request.
    """

    def __init__(self, name: BaselineName, cache_folder: Path, emit: Emit) -> None:
        self._name = name
        self._mapped = name == "llama.cpp mmap"
        self._cache_folder = cache_folder
        self._emit = emit
        self._file = self._sentinel_file = Path()
        self._runtime_bytes = 0
        self._tokenizer: Any = None
        self._server: Any = None
        self._bound = "not bounded"
        self._forced = True
        self._cleanup = contextlib.ExitStack()

    def run(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Dispatch an operation."""
        if operation == "open":
            trusted = bool(arguments.get("trust_remote_code", False))
            revision = arguments.get("revision")
            return self._open(str(arguments["model"]), revision, trust_remote_code=trusted)
        if operation == "configure":
            return self._configure(EngineConfig.from_dict(arguments["config"]))
        if operation == "measure":
            return self._measure(arguments)
        if operation == "close":
            self._server = None
            self._cleanup.close()
            return {}
        raise UsageError(f"the baseline '{self._name}' cannot {operation}")

    def _open(self, model: str, revision: str | None, *, trust_remote_code: bool) -> dict[str, Any]:
        """Convert if needed, then read the runtime's baseline memory: imports, tokenizer, a
        first product."""
        try:
            import xllamacpp  # noqa: F401
        except ImportError:
            raise UsageError(
                f"the baseline '{self._name}' needs the extra 'baselines': pip install "
                "'expertune[baselines]'"
            ) from None
        folder = locate(model, revision).folder
        check_comparable(folder, trust_remote_code=trust_remote_code)
        self._file = ensure_gguf(folder, self._cache_folder, self._progress)
        self._sentinel_file = weight_files(folder, read_description(folder))[0]
        self._tokenizer = load_tokenizer(folder, model, trust_remote_code=trust_remote_code)
        torch.set_num_threads(
            int(NATIVE_SETTINGS["OMP_NUM_THREADS"])
        )  # the sentinel's threads, as in other engines
        measure_sentinel(self._sentinel_file)
        process_memory.trim()
        self._runtime_bytes = process_memory.resident_bytes()
        return {"runtime_bytes": self._runtime_bytes, "device": "cpu", "baseline": self._name}

    def _configure(self, config: EngineConfig) -> dict[str, Any]:
        """Load the model: memory-mapped within the budget, or fully resident and unbounded."""
        if self._server is None:
            if self._mapped:
                if not config.budget.vram_bytes:
                    raise UsageError("the baseline 'llama.cpp mmap' needs a budget: give --vram")
                drop_page_cache(self._file.parent)
                bound = bounded_memory(config.budget.vram_bytes)
                self._bound = self._cleanup.enter_context(bound)
            process_memory.reset_peak()
            self._server = self._load(config.kv.max_tokens)
        return {"config": config.to_dict(), "memory": {"bound": self._bound}}

    def _load(self, context_tokens: int) -> Any:
        import xllamacpp

        modes = xllamacpp.llama_load_mode
        options = xllamacpp.CommonParams()
        options.model.path = str(self._file)
        options.load_mode = (
            modes.LLAMA_LOAD_MODE_MMAP if self._mapped else modes.LLAMA_LOAD_MODE_NONE
        )
        options.lazy_mode = xllamacpp.llama_lazy_mode.LLAMA_LAZY_MODE_OFF
        options.no_extra_bufts = self._mapped  # repacked weights are a copy of the whole model
        options.n_ctx = context_tokens
        options.n_parallel = 1
        options.n_gpu_layers = 0
        options.fit_params = options.warmup = options.cache_prompt = options.ui = False
        options.cache_ram_mib = options.n_ctx_checkpoints = options.verbosity = 0
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = os.cpu_count() or 1
        try:
            return xllamacpp.Server(options)
        except RuntimeError as error:
            raise ModelError(
                f"llama.cpp cannot load {self._file} ({error}): remove it to have it converted "
                "again; llama.cpp may not know this family"
            ) from None

    def _measure(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._server is None:
            raise EngineError("configure first")
        self._forced = True
        measurement = BaselineMeasurement(
            run=self._sequence,
            tokenizer=self._tokenizer,
            sentinel_file=self._sentinel_file,
            runtime_bytes=self._runtime_bytes,
            bound=self._bound,
        )
        environment: dict[str, Any] = {
            "baseline": self._name,
            "memory": self._bound,
            "quantization": QUANTIZATION,
            "no_extra_bufts": self._mapped,
            "threads": os.cpu_count() or 1,
            "xllamacpp": importlib.metadata.version("xllamacpp"),
        }
        report = measurement.report(arguments, environment)
        environment["forced_text"] = self._forced
        return report.to_json()

    def _sequence(self, sequence: Sequenced, output_tokens: int) -> SequenceTiming:
        """Times of one request: later tokens by llama.cpp's own clock, the first token by the
        remainder."""
        forced = sequence.forced[:output_tokens]
        self._forced &= len(forced) == output_tokens
        request: dict[str, Any] = {
            "prompt": list(sequence.prompt),
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0,
            "samplers": ["top_k"],
            "top_k": 1,
        }
        if forced:
            request["grammar"] = _forcing_grammar(forced)
        started = time.perf_counter()
        answer = self._server.handle_completions(request)
        total_s = time.perf_counter() - started
        if "error" in answer:
            raise EngineError(f"llama.cpp refused a sequence: {answer['error'].get('message')}")
        timings = answer["timings"]
        if timings["predicted_n"] != output_tokens:
            raise EngineError(
                f"llama.cpp generated {timings['predicted_n']} of {output_tokens} tokens"
            )
        later_s = timings["predicted_ms"] / 1e3
        return SequenceTiming(total_s - later_s, later_s)

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._emit({"event": "progress", "stage": stage, "done": done, "total": total})


def _forcing_grammar(tokens: tuple[int, ...]) -> str:
    """GBNF grammar of these token ids, then any token but 0: if it ended, decoding would stop."""
    fixed = " ".join(f"<[{token}]>" for token in tokens)
    return f"root ::= {fixed} any*\nany ::= !<[0]>"
