"""The recorder keeps what routers choose, in little of the memory that the run is measured by."""

import tracemalloc

import numpy as np

from engine.measure.recording import TraceRecorder
from engine.policy.events import PassStart, Routing
from tests.engine.memory.test_plan import make_facts

LAYERS, CHOSEN = 2, 4
FACTS = make_facts(layers=LAYERS, moe_layers=LAYERS, experts=64, experts_per_token=CHOSEN)


def record(recorder: TraceRecorder, chosen: list[list[int]]) -> None:
    recorder.begin_pass(PassStart("prefill", (len(chosen),), None))
    for layer in range(LAYERS):
        recorder.routed(layer, 0, Routing([list(row) for row in chosen]))


def test_prompts_and_single_tokens_come_back_in_order():
    rng = np.random.default_rng(0)
    passes = [rng.integers(0, 64, (tokens, CHOSEN)).tolist() for tokens in (40, 1, 1, 9, 2, 1)]
    passes.append([[5], [1, 2, 3]])  # a router may choose fewer
    recorder = TraceRecorder(FACTS, lean=True)
    recorder.begin_sequences()
    for chosen in passes:
        record(recorder, chosen)
    found = recorder.trace()
    expected = [row + [-1] * (CHOSEN - len(row)) for chosen in passes for row in chosen]
    for layer in range(LAYERS):
        assert found.experts[:, layer].tolist() == expected
    assert found.experts.dtype == np.int16


def test_a_long_prompt_takes_a_few_bytes_for_each_choice():
    chosen = np.random.default_rng(0).integers(0, 64, (4096, CHOSEN)).tolist()
    recorder = TraceRecorder(FACTS, lean=True)
    recorder.begin_sequences()
    tracemalloc.start()
    record(recorder, chosen)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 4 * 4096 * CHOSEN * LAYERS
