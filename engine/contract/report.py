"""What the engine reports: metrics with intervals, samples, memory. Converts to JSON and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One measured metric.

    value: mean (or percentile); low, high: 95 % confidence bounds (equal to value when n = 1); n:
    number of repeats or events; estimate: n is too small for this percentile.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str
    estimate: bool = False


@dataclass(frozen=True)
class Sample:
    """One metric of one repeat."""

    metric: str
    repeat: int
    value: float
    unit: str


@dataclass(frozen=True)
class Sentinel:
    """Times of a fixed kernel and a fixed read beside a measurement, to compare different days."""

    compute_ms: float
    read_ms: float


@dataclass(frozen=True)
class MemoryReading:
    """Bytes on the device.

    arena_bytes: expert slots; non_expert_bytes: weights that are always resident; kv_bytes: KV;
    peak_bytes: the highest total that the engine itself accounts for; external_peak_bytes: what an
    outside reading saw: on the CPU VmHWM since configure beyond runtime_bytes, on an accelerator
    torch's reserved peak since configure and what this process holds there beside it (the context
    and libraries' memory), as external_source says;
    runtime_bytes: the baseline, taken after imports and one tiny forward.
    """

    arena_bytes: int
    non_expert_bytes: int
    kv_bytes: int
    peak_bytes: int
    external_peak_bytes: int
    external_source: str
    runtime_bytes: int
    host_peak_bytes: int


@dataclass(frozen=True)
class ExpertUse:
    """How measured passes used each layer's experts, in counts; warm-ups are left out.

    activations: [layer][expert], tokens routed to it in prefill and decoding together; hits,
    misses: look-ups of each layer while decoding; predicted: experts predicted for each layer
    before its router ran; predicted_demanded: those of them that the router then selected.
    """

    activations: tuple[tuple[int, ...], ...]
    hits: tuple[int, ...]
    misses: tuple[int, ...]
    predicted: tuple[int, ...]
    predicted_demanded: tuple[int, ...]

    def plus(self, other: ExpertUse) -> ExpertUse:
        """The sum of two measurements of one model."""
        rows = zip(self.activations, other.activations, strict=True)
        return ExpertUse(
            tuple(_sums(own, theirs) for own, theirs in rows),
            _sums(self.hits, other.hits),
            _sums(self.misses, other.misses),
            _sums(self.predicted, other.predicted),
            _sums(self.predicted_demanded, other.predicted_demanded),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ExpertUse:
        """Inverse of to_json."""
        rest = {name: tuple(row) for name, row in data.items() if name != "activations"}
        return cls(activations=tuple(tuple(row) for row in data["activations"]), **rest)


@dataclass(frozen=True)
class Report:
    """The outcome of one measurement. experts: None from an engine that does not count them."""

    metrics: dict[str, Metric]
    samples: tuple[Sample, ...]
    memory: MemoryReading
    sentinel: Sentinel
    environment: dict[str, Any] = field(default_factory=dict)
    experts: ExpertUse | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """Inverse of to_json."""
        return cls(
            metrics={name: Metric(**value) for name, value in data["metrics"].items()},
            samples=tuple(Sample(**sample) for sample in data["samples"]),
            memory=MemoryReading(**data["memory"]),
            sentinel=Sentinel(**data["sentinel"]),
            environment=dict(data.get("environment", {})),
            experts=ExpertUse.from_json(data["experts"]) if data.get("experts") else None,
        )


@dataclass(frozen=True)
class TaskResult:
    """One lm-eval metric: value, standard error (None if lm-eval has none), items.

    metric: as lm-eval names it, with its filter unless that is `none`; chance: the value of random
    guessing, None if a task has no choices; higher_is_better: None if lm-eval does not say; group:
    whether it is the aggregate of a group, whose subtasks have results of their own.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    chance: float | None = None
    higher_is_better: bool | None = None
    group: bool = False


@dataclass(frozen=True)
class TaskItems:
    """One metric of each item of a task, by the item's index in the task's data."""

    task: str
    metric: str
    docs: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class QualityReport:
    """lm-eval's results for one configuration.

    bits_per_byte: the mean over the rolling-likelihood task, None if none was requested. kld_mean,
    top1_agreement: nats per token and fraction of equal best tokens against the 16-bit model in
    decode mode; prefill_*: the same in prefill mode. None if not measured. items: the values behind
    the task results, empty if the report comes from a store, which keeps them separately.
    cut_texts: scored continuations whose context exceeded kv.max_tokens and lost its beginning.
    """

    tasks: tuple[TaskResult, ...]
    bits_per_byte: float | None
    kld_mean: float | None
    top1_agreement: float | None
    seconds: float
    engine_tokens: int
    prefill_kld_mean: float | None = None
    prefill_top1_agreement: float | None = None
    items: tuple[TaskItems, ...] = ()
    cut_texts: int = 0

    def to_json(self, with_items: bool = True) -> dict[str, Any]:
        """A JSON-ready dict; with_items=False leaves out the per-item values."""
        data = asdict(self)
        if not with_items:
            del data["items"]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> QualityReport:
        """Inverse of to_json."""
        rest = {key: value for key, value in data.items() if key not in ("tasks", "items")}
        return cls(
            tasks=tuple(TaskResult(**task) for task in data["tasks"]),
            items=tuple(
                TaskItems(one["task"], one["metric"], tuple(one["docs"]), tuple(one["values"]))
                for one in data.get("items", ())
            ),
            **rest,
        )


def _sums(own: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(own, other, strict=True))
