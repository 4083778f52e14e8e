"""Prometheus: every figure stands once, under our name and under vLLM's."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from engine.run.engine import Engine
from engine.serve.batching.exposition import Exposition
from engine.serve.batching.metrics import Meters
from engine.serve.batching.scheduler import EngineLoop
from tests.engine.serve.batching.test_scheduler import ask
from tests.engine.serve.made import MODEL, Heard, configure, eventually, looping, want

# What the panels of vLLM's Grafana dashboard ask for (its documentation, "Production Metrics").
DASHBOARD = {
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:generation_tokens": "counter",
    "vllm:gpu_cache_usage_perc": "gauge",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:prefix_cache_hits": "counter",
    "vllm:prefix_cache_queries": "counter",
    "vllm:prompt_tokens": "counter",
    "vllm:request_decode_time_seconds": "histogram",
    "vllm:request_generation_tokens": "histogram",
    "vllm:request_inference_time_seconds": "histogram",
    "vllm:request_max_num_generation_tokens": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_success": "counter",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:time_per_output_token_seconds": "histogram",
    "vllm:time_to_first_token_seconds": "histogram",
}


def read(meters: Meters) -> dict[str, Metric]:
    text = meters.exposition().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Metric], sample: str, **labels: str) -> float:
    found = [
        one.value
        for family in families.values()
        for one in family.samples
        if one.name == sample and one.labels == {"model_name": MODEL, **labels}
    ]
    (only,) = found
    return float(only)


@pytest.fixture(scope="module")
def measured(engine: Engine, tokenizer: Any) -> dict[str, Metric]:
    """After two answers of 6 tokens to a prompt of 5, and one that was cancelled."""
    with looping(engine, tokenizer) as (loop, meters, _):
        for one in ask(loop, *[want([5, 6, 7, 8, 9], 6, ignore_eos=True)] * 2):
            one.wait()
        leave_early(loop)
        eventually(lambda: meters.totals.finished + meters.totals.cancelled == 3)
        eventually(lambda: loop.running == 0)
        return read(meters)


def leave_early(loop: EngineLoop) -> None:
    received = Heard()
    (sequence,) = loop.submit([(want([5], 200, ignore_eos=True), received)])
    eventually(lambda: bool(received.outputs))
    loop.cancel([sequence])


def test_a_dashboard_of_vllm_finds_all_its_metrics(measured: dict[str, Metric]) -> None:
    found = {name: measured[name].type for name in DASHBOARD if name in measured}
    assert found == DASHBOARD
    for family in measured.values():
        assert all(sample.labels["model_name"] == MODEL for sample in family.samples), family.name


def test_the_figures_are_those_of_the_requests(measured: dict[str, Metric]) -> None:
    tokens = value(measured, "vllm:generation_tokens_total")
    assert tokens == value(measured, "expertune_tokens_total", kind="output") > 12
    assert value(measured, "vllm:prompt_tokens_total") == 11
    success = "vllm:request_success_total"
    assert value(measured, success, finished_reason="length") == 2
    assert value(measured, success, finished_reason="abort") == 1
    assert value(measured, success, finished_reason="stop") == 0
    assert value(measured, "vllm:request_prompt_tokens_sum") == 10
    assert value(measured, "vllm:request_generation_tokens_sum") == 12
    assert value(measured, "vllm:time_to_first_token_seconds_count") == 3
    assert value(measured, "vllm:request_queue_time_seconds_count") == 3
    assert value(measured, "vllm:inter_token_latency_seconds_count") == tokens - 3
    assert value(measured, "vllm:num_requests_running") == 0
    assert value(measured, "vllm:prefix_cache_queries_total") == 0  # there is none


def test_the_parts_of_a_requests_time_add_up(measured: dict[str, Metric]) -> None:
    def seconds(name: str) -> float:
        return value(measured, f"vllm:{name}_sum")

    inference = seconds("request_prefill_time_seconds") + seconds("request_decode_time_seconds")
    assert seconds("request_inference_time_seconds") == pytest.approx(inference)
    assert seconds("e2e_request_latency_seconds") >= inference
    gaps = seconds("inter_token_latency_seconds")
    assert gaps >= seconds("request_decode_time_seconds")  # the cancelled one has gaps too


def test_the_kv_gauge_is_the_part_that_running_sequences_fill(
    engine: Engine, tokenizer: Any
) -> None:
    with looping(engine, tokenizer) as (loop, _, _):
        gauges, received = loop.gauges(), Heard()
        assert gauges.kv_used_ratio() == 0
        (sequence,) = loop.submit([(want([5] * 50, 100, ignore_eos=True), received)])
        eventually(lambda: bool(received.outputs))
        assert 50 / (256 * 3) < gauges.kv_used_ratio() <= 150 / (256 * 3)
        loop.cancel([sequence])
        eventually(lambda: gauges.kv_used_ratio() == 0)


def test_prompt_tokens_are_looked_for_in_the_prefix_cache_if_there_is_one(
    engine: Engine, tokenizer: Any
) -> None:
    configure(engine, **{"serve.prefix_cache_tokens": 128})
    prompt = [5 + number % 40 for number in range(40)]
    with looping(engine, tokenizer) as (loop, meters, _):
        for _ in range(3):
            ask(loop, want(prompt, 1, ignore_eos=True))[0].wait()
        eventually(lambda: meters.totals.finished == 3)
        found = read(meters)
        assert value(found, "vllm:prefix_cache_queries_total") == 120
        hits = value(found, "vllm:prefix_cache_hits_total")
        assert 0 < hits == meters.totals.cached_tokens < 120
    configure(engine)


def test_a_name_of_a_model_is_a_label_whatever_it_is() -> None:
    families = list(text_string_to_metric_families(Exposition('a/"b"\\c\n').text().decode()))
    assert {one.labels["model_name"] for f in families for one in f.samples} == {'a/"b"\\c\n'}
