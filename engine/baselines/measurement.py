"""Measures a baseline's repeats of a workload, sequence by sequence, and reports as a worker does.

In: how to run one sequence. Out: a Report. It must not know which engine runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.contract.report import MemoryReading, Report, Sample
from engine.contract.requests import Workload
from engine.contract.statistics import mean_metric
from engine.device import process_memory
from engine.measure.pass_through import Sequenced
from engine.measure.sentinel import measure_sentinel
from engine.measure.workload import pick, tokenize

_UNITS = {"output_tps": "tokens/s", "decode_tps": "tokens/s", "prefill_tps": "tokens/s"}


@dataclass(frozen=True)
class SequenceTiming:
    """Seconds from the request to the first token, and for all later tokens."""

    first_s: float
    later_s: float


RunSequence = Callable[[Sequenced, int], SequenceTiming]


@dataclass(frozen=True)
class BaselineMeasurement:
    """A loaded baseline, ready to be measured.

    run: runs one sequence up to its output tokens; sentinel_file: the file that the sentinel's
    fixed read uses; runtime_bytes: the process's baseline; bound: how its memory is bounded.
    """

    run: RunSequence
    tokenizer: Any
    sentinel_file: Path
    runtime_bytes: int
    bound: str

    def report(self, arguments: dict[str, Any], environment: dict[str, Any]) -> Report:
        """Answer `measure`: warm up on a different text, then run the repeats, numbered from
        `seed`."""
        workload = Workload.from_json(arguments["workload"])
        first = int(arguments.get("seed", 0))
        sequences = tokenize(workload, self.tokenizer)
        if arguments.get("warm_up", True):
            self._pass(pick(sequences[::-1], 1, 0), min(4, workload.output_tokens))
        rows = [
            self._pass(pick(sequences, workload.sequences, repeat), workload.output_tokens)
            for repeat in range(first, first + int(arguments.get("repeats", 1)))
        ]
        metrics = {
            name: mean_metric([row[name] for row in rows], _UNITS.get(name, "ms"))
            for name in rows[0]
        }
        samples = tuple(
            Sample(name, first + number, value, _UNITS.get(name, "ms"))
            for number, row in enumerate(rows)
            for name, value in row.items()
        )
        sentinel = measure_sentinel(self.sentinel_file)
        return Report(metrics, samples, self._memory(), sentinel, environment)

    def _pass(self, sequences: Sequence[Sequenced], output_tokens: int) -> dict[str, float]:
        timings = [self.run(sequence, output_tokens) for sequence in sequences]
        prefill_s = sum(timing.first_s for timing in timings)
        decode_s = sum(timing.later_s for timing in timings)
        count = len(timings)
        return {
            "output_tps": count * output_tokens / (prefill_s + decode_s),
            "decode_tps": count * (output_tokens - 1) / decode_s,
            "prefill_tps": sum(len(s.prompt) for s in sequences) / prefill_s,
            "ttft_ms": prefill_s / count * 1e3,
            "tpot_ms": decode_s / count / (output_tokens - 1) * 1e3,
        }

    def _memory(self) -> MemoryReading:
        peak = process_memory.peak_resident_bytes()
        return MemoryReading(
            arena_bytes=0,
            non_expert_bytes=0,
            kv_bytes=0,
            peak_bytes=0,
            external_peak_bytes=max(0, peak - self.runtime_bytes),
            external_source=f"VmHWM; {self.bound}",
            runtime_bytes=self.runtime_bytes,
            host_peak_bytes=peak,
        )
