"""An engine that computes nothing: the worker's messages, with made-up but lawful numbers.

Run as `python fake_engine.py --fd N [--baseline NAME]`. More cache is faster, fewer bits are faster
and worse, more micro-batches give throughput and cost latency. EXPERTUNE_FAKE holds JSON that makes
it misbehave: {"faults": [{"kind": KIND, "op": OP, "at": n}], "counter": FILE, "slow_s": s,
"beyond_bytes": n}, the last: what it takes beyond the memory equation.

KIND: crash, kill (SIGKILL), hang (heartbeats go on), freeze (they stop), error (an out_of_memory
reply), bad_output (impossible figures), garbage (a line that is no message), over_budget (the
external reading passes the budget), task (an lm-eval task cannot be run), nan (logits are NaN),
full (the disk of the packs is), busy (other programs use the processor).
`at` counts this op from 1, over all processes when `counter` names a file; without it the fault
happens every time.
"""

import argparse
import fcntl
import hashlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.config.settings import EngineConfig
from engine.contract import messages
from engine.contract.report import (
    ExpertUse,
    MemoryReading,
    Metric,
    QualityReport,
    Report,
    Sample,
    Sentinel,
    TaskItems,
    TaskResult,
)
from engine.contract.requests import TaskNeed, TaskOptions, Workload
from engine.errors import (
    DenseModelError,
    DeviceMemoryError,
    EngineError,
    EvaluationError,
    NotAModelError,
    StorageError,
    TaskError,
    UnreachableTaskError,
)
from engine.facts.machine import MachineProfile
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings, RecordSource
from engine.layout.record import Part, record_bytes_table
from engine.memory import plan as memory
from engine.memory.plan import MemoryPlan
from engine.trace.trace import Trace, TracePass

PARTS = (Part("gate_up_proj", (256, 256)), Part("down_proj", (256, 128)))
LAYERS, EXPERTS = 4, 16
ERRORS = {
    "error": MemoryError("the fake engine found no memory"),
    "task": UnreachableTaskError("the data of a_task cannot be reached: go online"),
    "broken": TaskError("the tasks a_task cannot be scored: utils.py, function f, line 2, raised"),
    "nan": EvaluationError("the logits became NaN on 1 of 5 texts"),
    "full": StorageError("the disk of /packs is full: make room"),
}
BITS_PER_BYTE = {16: 1.5, 8: 1.503, 4: 1.56, 3: 1.7, 2: 2.4}


def facts_of(model: str) -> ModelFacts:
    """The same small model under every name."""
    name = Path(model).name
    if name == "dense":
        raise DenseModelError(f"{model} has no experts: there is nothing to offload")
    if name == "missing":
        raise NotAModelError(f"there is no model {model}")
    records = record_bytes_table(PARTS)
    return ModelFacts(
        id=name,
        path=model,
        revision="main",
        fingerprint=hashlib.sha256(name.encode()).hexdigest()[:16],
        family="fake_moe",
        layers=LAYERS,
        moe_layers=LAYERS,
        experts=EXPERTS,
        experts_per_token=2,
        hidden_size=256,
        vocabulary=512,
        max_positions=2048,
        non_expert_bytes=4_000_000,
        parts=PARTS,
        record_bytes={str(bits): size for bits, size in records.items()},
        expert_bytes={str(bits): size * LAYERS * EXPERTS for bits, size in records.items()},
        kv_bytes_per_token=2048,
        kv_plain_layers=LAYERS,
        predictors=("none", "next_gate"),
        has_tokenizer=True,
        in_place_16=True,
    )


class FakeEngine:
    """The state behind the operations."""

    def __init__(self, baseline: str | None, process: str = str(os.getpid())) -> None:
        self.baseline = baseline
        self.process = process
        self.facts: ModelFacts | None = None
        self.config = EngineConfig()
        self.plan: MemoryPlan | None = None
        self.over_budget = False
        self.limited = False  # whether the device refuses what passes the budget
        self.beyond_bytes = 0
        self.repeats = 0

    def describe(
        self, model: str, device: str, trust_remote_code: bool, revision: str | None = None
    ) -> dict[str, Any]:
        found = self.open(model, device, trust_remote_code, revision)
        return {"facts": found["facts"], "device": "cpu"}

    def open(
        self, model: str, device: str, trust_remote_code: bool, revision: str | None = None
    ) -> dict[str, Any]:
        latest = f"commit-{self.process}"  # a hub whose model changes between any two openings
        self.facts = replace(facts_of(model), revision=revision or latest)
        if self.baseline:
            return {"runtime_bytes": 300_000_000, "baseline": self.baseline}
        return {"facts": self.facts.to_json(), "hardware": {}, "runtime_bytes": 300_000_000}

    def configure(self, config: dict[str, Any]) -> dict[str, Any]:
        assert self.facts is not None
        self.config, self.plan = memory.resolve(EngineConfig.from_dict(config), self.facts)
        if self.baseline:
            return {"config": config, "memory": {"bound": "fake"}}
        return {"config": self.config.to_dict(), "memory": self.plan.to_json()}

    def seen_bytes(self, work: Workload) -> int:
        """What an outside reading says: by default so much less than the equation that nothing is
        corrected."""
        if self.over_budget:
            return self.config.budget.vram_bytes * 2
        used = {
            "kv.max_tokens": work.prompt_tokens + work.output_tokens,
            "budget.vram_bytes": 0,
            "device.correction_bytes": 0,
        }
        assert self.facts is not None
        plan = memory.resolve(self.config.overlay(used), self.facts).memory
        return plan.total_bytes - 4_000_000 + self.beyond_bytes

    def measure(
        self, workload: dict[str, Any], repeats: int, warm_up: bool, seed: int
    ) -> dict[str, Any]:
        assert self.plan is not None
        work = Workload.from_json(workload)
        samples = []
        for repeat in range(repeats):
            self.repeats += 1
            for (name, unit), value in self.figures(work, seed).items():
                samples.append(Sample(name, seed + repeat, value, unit))
        last = {s.metric: s for s in samples}
        total, seen = self.plan.total_bytes, self.seen_bytes(work)
        if self.limited and seen > self.config.budget.vram_bytes:
            raise DeviceMemoryError("the fake card gives no more", seen)
        reading = MemoryReading(
            self.plan.slots_bytes, self.plan.non_expert_bytes, self.plan.kv_bytes, total, seen,
            "fake", 300_000_000, seen + 10_000_000,
        )  # fmt: skip
        return Report(
            metrics={n: Metric(s.value, s.value, s.value, 1, s.unit) for n, s in last.items()},
            samples=tuple(samples),
            memory=reading,
            sentinel=Sentinel(2.0, 1.0),
            environment=self.environment(),
            experts=None if self.baseline else self.expert_use(work, repeats),
        ).to_json()

    def figures(self, work: Workload, seed: int) -> dict[tuple[str, str], float]:
        """Lawful numbers with one percent of noise that repeats exactly."""
        config, plan, facts = self.config, self.plan, self.facts
        assert plan is not None
        assert facts is not None
        noise = random.Random(f"{config.digest()} {seed} {self.repeats}").uniform(0.99, 1.01)
        fraction = plan.resident_fraction(facts.moe_layers * facts.experts)
        width = config.precision.bits / 16
        compute_ms = (2 + 4 * width) * noise
        kept = 0.0 if config.cache.eviction == "none" else fraction
        disk_ms = 30 * width * (1 - kept) ** 1.3 * (0.9 if config.prefetch.depth == 1 else 1.0)
        disk_ms *= noise * (4.0 if self.baseline else 1.0)
        together = config.batch.count * config.batch.size
        tpot_ms = (compute_ms + disk_ms) * together**0.4
        tps = 1000 * together / tpot_ms
        parts = {"compute": compute_ms, "transfer_wait": 0.0, "disk_wait": disk_ms,
                 "router": 0.1, "non_expert": 0.2, "policy": 0.05, "other": 0.05}  # fmt: skip
        scale = together**0.4 / together  # of a step to a token
        wall_ms = sum(parts.values()) * scale
        hits, best = min(1.0, 0.1 + kept * 0.9) if kept else 0.0, min(1.0, 0.2 + fraction)
        demanded = facts.moe_layers * facts.experts_per_token * 200_000 * width
        moved = demanded * (1 - hits)
        found = {
            ("output_tps", "tok/s"): tps,
            ("decode_tps", "tok/s"): 1000 / wall_ms,
            ("prefill_tps", "tok/s"): 4000 / wall_ms,
            ("tpot_ms", "ms"): tpot_ms,
            ("ttft_ms", "ms"): 20 * tpot_ms,
            ("expert_hit_rate", "ratio"): hits,
            ("expert_hit_rate.prefill", "ratio"): hits / 2,
            ("resident_fraction", "ratio"): fraction,
            ("stall_ms_per_token", "ms"): disk_ms * scale,
            ("wall_ms_per_token", "ms"): wall_ms,
            **{(f"time_ms_per_token.{n}", "ms"): ms * scale for n, ms in parts.items()},
            ("transfer_bytes_per_token", "bytes"): moved,
            ("disk_bytes_per_token", "bytes"): moved,
            ("overlap_ratio", "fraction"): 1 - disk_ms * scale / wall_ms,
        }
        if self.baseline:
            return {key: found[key] for key in list(found)[:5]}
        if config.precision.scheme == "uniform":  # with mixed sizes no bound holds
            found["oracle_hit_rate", "fraction"] = best
            found["oracle_bytes_per_token", "bytes"] = demanded * (1 - best)
            if moved:
                found["policy_ratio", "fraction"] = (1 - best) / (1 - hits)
        found["read_bytes_per_s", "bytes/s"] = 1e9
        return found

    def expert_use(self, work: Workload, repeats: int) -> ExpertUse:
        """Lower numbers are chosen more often; later layers hit a little less often."""
        assert self.plan is not None
        assert self.facts is not None
        tokens = repeats * work.sequences * (work.prompt_tokens + work.output_tokens)
        weights = [1 / (1 + expert) for expert in range(EXPERTS)]
        row = tuple(round(2 * tokens * weight / sum(weights)) for weight in weights)
        lookups = 2 * repeats * work.sequences * (work.output_tokens - 1)
        fraction = self.plan.resident_fraction(LAYERS * EXPERTS) * (
            self.config.cache.eviction != "none"
        )
        hits = tuple(round(lookups * fraction * (1 - layer / 20)) for layer in range(LAYERS))
        named = lookups if self.config.prefetch.depth else 0
        return ExpertUse(
            activations=tuple(row[layer:] + row[:layer] for layer in range(LAYERS)),
            hits=hits,
            misses=tuple(lookups - hit for hit in hits),
            predicted=(0, *[named] * (LAYERS - 1)),
            predicted_demanded=(0, *[named * 8 // 10] * (LAYERS - 1)),
        )

    def environment(self) -> dict[str, Any]:
        """What a reader must know of the configured run."""
        config = self.config
        placed = config.placement.name
        planned = config.plan.name != "fixed"
        return {
            "engine": "fake",
            "inactive": [] if placed == "device" else [f"placement.name = {placed}: inactive here"],
            "notes": ["the future is known"] if config.prefetch.predictor == "oracle" else [],
            "lossy": config.precision.scheme != "uniform",
            "plan": "2 micro-batches hide transfers" if planned else None,
            "routing": [[1 / EXPERTS] * EXPERTS] * LAYERS,
        }

    def evaluate(self, tasks: list[str], reference: bool, **options: Any) -> dict[str, Any]:
        """Bits per byte by precision; a task named *choice has accuracy as well; one named guessed*
        has accuracy alone, that of guessing."""
        read = TaskOptions(**options)
        value = BITS_PER_BYTE[self.config.precision.bits]
        count = read.limit or 100
        docs = tuple(range(count))
        results, items = [], []
        if tasks[0].startswith("guessed"):
            guessed = (TaskResult(tasks[0], "acc", 0.25, 0.1, count, 0.25, True),)
            return QualityReport(guessed, None, None, None, 0.01, 1000).to_json()
        for task in (Path(name).stem for name in tasks):
            results.append(TaskResult(task, "bits_per_byte", value, None, count, None, False))
            spread = tuple(value + (doc - (count - 1) / 2) / 100 for doc in docs)
            items.append(TaskItems(task, "bits_per_byte", docs, spread))
            if task.endswith("choice"):
                right = tuple(float(doc % 5 < 6 - 2 * value) for doc in docs)
                fraction = sum(right) / count
                results.append(TaskResult(task, "acc", fraction, 0.1, count, 0.25, True))
                items.append(TaskItems(task, "acc", docs, right))
        kld = None if reference else (value - 1.5) / 3
        report = QualityReport(
            tuple(results), value, kld, 1.0 - (kld or 0.0), 0.01, 1000, kld, 1.0, tuple(items)
        )
        return report.to_json()

    def check_tasks(self, tasks: list[str], **_: Any) -> dict[str, Any]:
        """A task needs as many tokens as the digits at the end of its name, split evenly between
        prompt and answer; one named unknown* is unknown."""
        for name in tasks:
            if name.startswith("unknown"):
                raise TaskError(f"lm-eval knows no task '{name}': see `lm_eval ls tasks`")
        stems = [Path(name).stem for name in tasks]
        sizes = [int("".join(filter(str.isdigit, stem)) or 0) for stem in stems]
        needs = [
            TaskNeed(stem, size - size // 2, size // 2)
            for stem, size in zip(stems, sizes, strict=True)
        ]
        return {"needs": [need.to_json() for need in needs]}

    def device(self, device: str) -> dict[str, Any]:
        return {"name": "cpu" if device == "auto" else device, "torch": "2", "built_for": "cpu"}

    def discard_journal(self) -> dict[str, Any]:
        return {}

    def generate(self, prompt: str, max_tokens: int, **_: Any) -> dict[str, Any]:
        words = [f" word{n}" for n in range(max_tokens)]
        return {"text": "".join(words), "tokens": list(range(max_tokens)),
                "metrics": {"output_tps": 100.0}}  # fmt: skip

    def serve(self, **options: Any) -> dict[str, Any]:
        """Totals of a server that was drained at once."""
        return {"finished": 2, "output_tokens": 600, "options": options}

    def windows(self, port: int) -> list[dict[str, Any]]:
        """What it says meanwhile: ready, a quiet window, one as tuned for, one of another text."""
        figures = {"seconds": 1.0, "prompt_tokens": 0, "output_tokens": 300,
                   "sequences": {"finished": 1, "failed": 0, "cancelled": 0}}  # fmt: skip
        alike = [[1 / EXPERTS] * EXPERTS] * LAYERS
        other = [[1.0] + [0.0] * (EXPERTS - 1)] * LAYERS
        quiet = {**figures, "output_tokens": 0, "routing": None,
                 "sequences": {"finished": 0, "failed": 0, "cancelled": 0}}  # fmt: skip
        said = (quiet, {**figures, "routing": alike}, {**figures, "routing": other})
        return [
            {"event": "ready", "host": "127.0.0.1", "port": port or 8123},
            *({"event": "telemetry", "expert_hit_rate": 1.0, **one} for one in said),
        ]

    def pack(self, bits: int, group_size: int) -> dict[str, Any]:
        return {"path": "/packs/fake", "bytes": 1000, "records": LAYERS * EXPERTS}

    def profile(self, device: str = "auto") -> dict[str, Any]:
        return MachineProfile({"196608": 1e9}, 8e9, None, {"4/1": 0.1}).to_json()

    def trace(
        self, path: str, workload: dict[str, Any], repeats: int, seed: int, gate_inputs: bool
    ) -> dict[str, Any]:
        assert self.facts is not None
        rng = np.random.default_rng(seed)
        groups = repeats * Workload.from_json(workload).sequences
        tokens = [(8,), *[(1,)] * 6] * groups
        starts = np.cumsum([0, *[sum(sizes) for sizes in tokens]])
        passes = tuple(
            TracePass(n // 7, "prefill" if n % 7 == 0 else "decode", sizes, int(first))
            for n, (sizes, first) in enumerate(zip(tokens, starts[:-1], strict=True))
        )
        ranked = rng.permuted(np.tile(np.arange(EXPERTS), (int(starts[-1]), LAYERS, 1)), axis=-1)
        experts = ranked[:, :, :2].astype(np.int16)
        facts = {"model_facts": self.facts.to_json()}
        found = Trace(passes, experts, None, None, None, None, None, facts)
        found.save(Path(path))
        return {"path": path, "bytes": 1, "passes": len(passes), "tokens": int(starts[-1])}

    def calibrate(
        self, config: dict[str, Any], workload: dict[str, Any], bits: list[int]
    ) -> dict[str, Any]:
        assert self.facts is not None
        curve = {1: 1e-3, 16: 2e-3}
        return ModelTimings(
            model=self.facts.fingerprint,
            device="cpu",
            sources=dict.fromkeys(bits, RecordSource({1: 5e7, 2: 7e7}, 0.0, "shared")),
            non_expert_s=curve,
            router_s=curve,
            layer_s=dict.fromkeys(bits, curve),
            expert_s=dict.fromkeys(bits, curve),
            pass_s=curve,
            policy_s={1: 1e-4},
            submit_s=0.0,
            gate_lookahead_s=1e-4,
            wake_s=dict.fromkeys(bits, 0.0),
            restart_s=dict.fromkeys(bits, 0.0),
            contention=dict.fromkeys(bits, 1.0),
        ).to_json()

    def divergence(self, text: str, tokens: int, reference: bool) -> dict[str, Any]:
        kld = (BITS_PER_BYTE[self.config.precision.bits] - 1.5) / 3
        return {"kld_mean": kld, "top1_agreement": 1.0 - kld, "tokens": tokens}

    def parity(self, tokens: int = 32) -> dict[str, Any]:
        return {"parity_max_abs_diff": 1e-6, "parity_max_abs_logit": 12.0}


def faults_now(operation: str, knobs: dict[str, Any], counts: dict[str, int]) -> list[str]:
    """The faults that strike this call."""
    if "counter" in knobs:
        counts = _counted(Path(knobs["counter"]), operation)
    else:
        counts[operation] = counts.get(operation, 0) + 1
    return [
        fault["kind"]
        for fault in knobs.get("faults", [])
        if fault["op"] == operation and fault.get("at") in (None, counts[operation])
    ]


def _counted(path: Path, operation: str) -> dict[str, int]:
    """The counts in a file that several workers share, with this call."""
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        counts: dict[str, int] = json.loads(text) if text else {}
        counts[operation] = counts.get(operation, 0) + 1
        file.truncate(0)
        file.write(json.dumps(counts))
    return counts


def serve(connection: socket.socket, baseline: str | None) -> None:
    """Answer requests until the socket closes."""
    knobs = json.loads(os.environ.get("EXPERTUNE_FAKE", "{}"))
    engine, counts, beating = FakeEngine(baseline), {}, threading.Event()
    engine.beyond_bytes = knobs.get("beyond_bytes", 0)
    engine.limited = knobs.get("limited", False)
    sending = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with sending:
            connection.sendall(messages.encode(message))

    def beat() -> None:
        while not beating.wait(knobs.get("heartbeat_s", 1.0)):
            try:
                send({"event": "heartbeat", "rss_bytes": 1})
            except OSError:
                os._exit(0)

    threading.Thread(target=beat, daemon=True).start()
    for line in connection.makefile("rb"):
        message = messages.decode(line)
        operation, request_id = message.pop("op"), message.pop("id")
        message.pop("schema")
        if operation == "close":
            send({"id": request_id, "ok": True, "result": {}})
            return
        time.sleep(knobs.get("slow_s", 0.0))
        faults = faults_now(operation, knobs, counts)
        if strike(faults, connection, beating):
            continue
        for said in answer(engine, operation, message, faults):
            send({"id": request_id, **said})


def answer(
    engine: FakeEngine, operation: str, arguments: dict[str, Any], faults: list[str]
) -> Iterator[dict[str, Any]]:
    """What is said to one request: events, then the answer."""
    try:
        for error in (ERRORS[kind] for kind in faults if kind in ERRORS):
            raise error
        engine.over_budget = "over_budget" in faults
        result = getattr(engine, operation)(**arguments)
        if "bad_output" in faults:
            result["metrics"]["output_tps"]["value"] = 0.0
        if "busy" in faults:
            result["environment"]["others_cpu_fraction"] = 0.4
        if operation == "generate":
            for word in result["text"].split(" ")[1:]:
                yield {"event": "token", "text": f" {word}"}
        if operation == "serve":
            yield from engine.windows(arguments["port"])
        yield {"event": "progress", "stage": operation, "done": 1, "total": 1}
        yield {"ok": True, "result": result}
    except (EngineError, MemoryError) as error:
        yield {"ok": False, "error": {
            "class": getattr(error, "failure", "out_of_memory"),
            "type": type(error).__name__,
            "message": str(error),
            "exit_code": getattr(error, "exit_code", 1),
            "smallest_bytes": getattr(error, "smallest_bytes", None),
        }}  # fmt: skip


def strike(faults: list[str], connection: socket.socket, beating: threading.Event) -> bool:
    """Do what no engine should; True when the request must stay unanswered."""
    if "crash" in faults:
        os.write(2, b"the fake engine crashes as it was told\n")
        os._exit(7)
    if "kill" in faults:
        os.kill(os.getpid(), signal.SIGKILL)
    if "freeze" in faults:
        beating.set()
    if "garbage" in faults:
        connection.sendall(b"this is not JSON\n")
    return bool({"hang", "freeze", "garbage"} & set(faults))


def main() -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--baseline")
    arguments = parser.parse_args()
    with socket.socket(fileno=arguments.fd) as connection:
        serve(connection, arguments.baseline)


if __name__ == "__main__":
    main()
