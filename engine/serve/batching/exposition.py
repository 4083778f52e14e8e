"""Metrics in Prometheus's text format: our own, and the same figures under vLLM's names.

Dashboards that were made for vLLM work unchanged. Every metric carries the label model_name. The
figures exist once: vLLM's names are a view of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

if TYPE_CHECKING:
    from engine.serve.batching.metrics import Totals
    from engine.serve.batching.sequence import LiveSequence

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
# Our histograms, what they measure, and vLLM's names for them, the older one last.
_HISTOGRAMS: dict[str, tuple[str, Sequence[float], tuple[str, ...]]] = {
    "ttft_seconds": (
        "From the request to the first token", _SECONDS, ("time_to_first_token_seconds",),
    ),
    "tpot_seconds": (
        "Mean time of a token after the first", _SECONDS,
        ("request_time_per_output_token_seconds",),
    ),
    "inter_token_seconds": (
        "From a token to the next", _SECONDS,
        ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    ),
    "e2e_seconds": (
        "From the request to the last token", _SECONDS, ("e2e_request_latency_seconds",),
    ),
    "queue_seconds": (
        "From the request to its place in the group", _SECONDS, ("request_queue_time_seconds",),
    ),
    "prefill_seconds": (
        "From the place in the group to the first token", _SECONDS,
        ("request_prefill_time_seconds",),
    ),
    "decode_seconds": (
        "From the first token to the last", _SECONDS, ("request_decode_time_seconds",),
    ),
    "inference_seconds": (
        "From the place in the group to the last token", _SECONDS,
        ("request_inference_time_seconds",),
    ),
    "prompt_length_tokens": ("Tokens of a prompt", _TOKENS, ("request_prompt_tokens",)),
    "answer_length_tokens": (
        "Tokens of an answer", _TOKENS,
        ("request_generation_tokens", "request_max_num_generation_tokens"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Gauges:
    """What is read when Prometheus scrapes. kv_used_ratio: the part of the capacity for keys and
    values that running sequences fill, 0 to 1; prefix_cache: whether there is one."""

    running: Callable[[], int]
    waiting: Callable[[], int]
    kv_used_ratio: Callable[[], float] = lambda: 0.0
    prefix_cache: bool = False


class Exposition:
    """The registry of a server. model: its name, the label of everything."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "expertune_requests", "HTTP requests", ["route", "code"], registry=self._registry
        )
        self._reasons = Counter(
            "expertune_answers", "Sequences by finish reason", ["finished_reason"],
            registry=self._registry,
        )  # fmt: skip
        for reason in ("stop", "length", "abort", "error"):
            self._reasons.labels(reason)  # known from the start, at 0
        self._histograms = {
            name: Histogram(f"expertune_{name}", text, buckets=buckets, registry=self._registry)
            for name, (text, buckets, _) in _HISTOGRAMS.items()
        }

    def watch(self, totals: Totals, gauges: Gauges) -> None:
        """Export totals and gauges too."""
        self._registry.register(_TotalsCollector(totals, gauges))

    def text(self) -> bytes:
        """All metrics, ours first."""
        return generate_latest(_View(self._registry, self._model))

    def request(self, route: str, code: int) -> None:
        """Count an answered HTTP request."""
        self._requests.labels(route, str(code)).inc()

    def observe(self, name: str, value: float | None) -> None:
        """Observe a value of a histogram, unless it is None. name: a key of the histograms."""
        if value is not None:
            self._histograms[name].observe(value)

    def ended(self, sequence: LiveSequence, reason: str) -> None:
        """Observe a sequence at its end. reason: stop, length, abort or error, as vLLM has it."""
        self._reasons.labels(reason).inc()
        timing = sequence.timing
        self.observe("tpot_seconds", timing.tpot_s)
        if reason in ("abort", "error"):
            return
        self.observe("e2e_seconds", timing.e2e_s)
        self.observe("prefill_seconds", timing.prefill_s)
        self.observe("decode_seconds", timing.decode_s)
        self.observe("inference_seconds", timing.inference_s)
        self.observe("prompt_length_tokens", len(sequence.wanted.prompt))
        self.observe("answer_length_tokens", timing.tokens)


class _TotalsCollector(Collector):
    """Reads the totals when Prometheus scrapes."""

    def __init__(self, totals: Totals, gauges: Gauges) -> None:
        self._totals, self._gauges = totals, gauges

    def collect(self) -> Iterator[Metric]:
        """All totals as Prometheus metrics."""
        totals = self._totals
        ended = CounterMetricFamily(
            "expertune_sequences", "Sequences by how they ended", labels=["end"]
        )
        lookups = CounterMetricFamily(
            "expertune_expert_lookups", "Look-ups of experts", labels=["phase", "outcome"]
        )
        tokens = CounterMetricFamily("expertune_tokens", "Tokens by kind", labels=["kind"])
        for end in ("finished", "failed", "cancelled"):
            ended.add_metric([end], getattr(totals, end))
        for phase in ("prefill", "decode"):
            lookups.add_metric([phase, "hit"], getattr(totals, f"{phase}_hits"))
            lookups.add_metric([phase, "miss"], getattr(totals, f"{phase}_misses"))
        answers = CounterMetricFamily(
            "expertune_response_cache", "Answers looked for before the engine", labels=["outcome"]
        )
        answers.add_metric(["hit"], totals.answers_known)
        answers.add_metric(["miss"], totals.answers_asked)
        tokens.add_metric(["prompt"], totals.prompt_tokens)
        tokens.add_metric(["prompt_cached"], totals.cached_tokens)
        tokens.add_metric(["output"], totals.output_tokens)
        yield from (ended, lookups, tokens, answers)
        yield from self._ratios()
        gauges = self._gauges
        yield GaugeMetricFamily("expertune_running", "Sequences in the group", gauges.running())
        yield GaugeMetricFamily("expertune_queue_length", "Waiting sequences", gauges.waiting())

    def _ratios(self) -> Iterator[Metric]:
        totals = self._totals
        rate = GaugeMetricFamily(
            "expertune_expert_hit_rate", "Since the server began", labels=["phase"]
        )
        for phase, value in (("prefill", totals.prefill_hit_rate), ("decode", totals.hit_rate)):
            if value is not None:
                rate.add_metric([phase], value)
        yield rate
        yield GaugeMetricFamily(
            "expertune_kv_used_ratio",
            "KV capacity in use",
            self._gauges.kv_used_ratio(),
        )
        looked_up = totals.prompt_tokens if self._gauges.prefix_cache else 0
        found = CounterMetricFamily(
            "expertune_prefix_cache_tokens", "Prompt tokens looked for", labels=["outcome"]
        )
        found.add_metric(["hit"], totals.cached_tokens)
        found.add_metric(["miss"], looked_up - totals.cached_tokens if looked_up else 0)
        yield found


class _View(CollectorRegistry):
    """A registry with the label model_name on everything, and vLLM's view behind it."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        super().__init__()
        self._own, self._model = registry, model

    def collect(self) -> Iterator[Metric]:
        """Our metrics, then vLLM's."""
        own = [_labelled(family, {"model_name": self._model}) for family in self._own.collect()]
        yield from own
        yield from _as_vllm({family.name: family for family in own})


def _as_vllm(own: dict[str, Metric]) -> Iterator[Metric]:
    """The figures that vLLM has too, under its names."""
    for name, (_, _, others) in _HISTOGRAMS.items():
        for other in others:
            yield _renamed(own[f"expertune_{name}"], f"vllm:{other}")
    yield _renamed(own["expertune_answers"], "vllm:request_success")
    if "expertune_running" not in own:  # nothing is watched yet
        return
    for name, other in (
        ("running", "num_requests_running"),
        ("queue_length", "num_requests_waiting"),
        ("kv_used_ratio", "kv_cache_usage_perc"),
        ("kv_used_ratio", "gpu_cache_usage_perc"),
    ):
        yield _renamed(own[f"expertune_{name}"], f"vllm:{other}")
    tokens, prefix = own["expertune_tokens"], own["expertune_prefix_cache_tokens"]
    yield _renamed(_one(tokens, kind="prompt"), "vllm:prompt_tokens")
    yield _renamed(_one(tokens, kind="output"), "vllm:generation_tokens")
    yield _renamed(_one(prefix, outcome="hit"), "vllm:prefix_cache_hits")
    yield _renamed(_summed(prefix, "outcome"), "vllm:prefix_cache_queries")


def _labelled(family: Metric, labels: dict[str, str]) -> Metric:
    return _with_samples(
        family,
        [one._replace(labels={**one.labels, **labels}) for one in family.samples],
    )


def _renamed(family: Metric, name: str) -> Metric:
    made = Metric(name, family.documentation, family.type)
    made.samples = [
        one._replace(name=name + one.name.removeprefix(family.name)) for one in family.samples
    ]
    return made


def _one(family: Metric, **chosen: str) -> Metric:
    """The samples with this label, which they lose."""
    ((label, value),) = chosen.items()
    kept = [one for one in family.samples if one.labels[label] == value]
    return _with_samples(family, [_without(one, label) for one in kept])


def _summed(family: Metric, label: str) -> Metric:
    """One sample, the sum over a label."""
    total = sum(one.value for one in family.samples)
    first = _without(family.samples[0], label)
    return _with_samples(family, [first._replace(value=total)])


def _without(sample: Sample, label: str) -> Sample:
    return sample._replace(
        labels={name: value for name, value in sample.labels.items() if name != label}
    )


def _with_samples(family: Metric, samples: list[Sample]) -> Metric:
    made = Metric(family.name, family.documentation, family.type)
    made.samples = samples
    return made
