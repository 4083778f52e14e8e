"""Captured decoding gives the bits of eager decoding over the same keys and values.

Without a card: operations are recorded and done again on the same tensors. What a card alone can
tell is marked `gpu`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from transformers.models.qwen3_moe import modeling_qwen3_moe

from engine.config.settings import EngineConfig
from engine.device.base import Device
from engine.device.cpu import CpuDevice
from engine.device.registry import open_device
from engine.errors import EngineError
from engine.kv_cache.static_rooms import StaticKv
from engine.measure.recording import TraceRecorder
from engine.native import library
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tests.engine.families import VOCABULARY, save_tiny
from tests.fakes.recorded_capture import CapturingDevice, RecordingCapturer, RefusingCapturer

TOKENS = 24
BASE = {
    "compute.dtype": "float32",
    "compute.capture": True,
    "cache.expert_bytes": "60%",
    "kv.max_tokens": 64,
    "prefill.chunk_tokens": 16,
    "kernel.name": "dequantize",
    "host.bytes": 0,
}
ON_CARD = {"float32": 1e-5, "bfloat16": 0.2}  # of the largest logit: products may add otherwise
TOLERANCE = 1e-5  # of the largest logit: attention over the whole room sums in another order


@pytest.fixture(autouse=True)
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """All operations are torch's own, as on an accelerator."""
    monkeypatch.setattr(library, "is_available", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe"))


@contextmanager
def opened(folder: Path, cache: Path, device: Device, **settings: Any) -> Iterator[Engine]:
    engine = Engine(folder, device, cache)
    engine.configure(EngineConfig().overlay({**BASE, **settings}))
    yield engine
    engine.close()


def prompt(tokens: int, size: int = 1, seed: int = 7) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)
    return MicroBatch(torch.randint(3, VOCABULARY, (size, tokens), generator=generator))


def decoded(engine: Engine, batches: list[MicroBatch], tokens: int = TOKENS) -> torch.Tensor:
    """Logits of given tokens behind prompts of any lengths, [n, count * B, V]."""
    for batch in batches:
        engine.prefill([batch])
    return steps(engine, batches, tokens)


def steps(engine: Engine, batches: list[MicroBatch], tokens: int = TOKENS) -> torch.Tensor:
    found = []
    for number in range(tokens):
        for batch in batches:
            batch.tokens = torch.full((len(batch.tokens), 1), 5 + 3 * number % 100)
        found.append(engine.forward(batches, "decode"))
    return torch.stack([torch.cat(logits)[:, 0] for logits in found])  # as they are at the end


def both(folder: Path, cache: Path, run: Callable[[Engine], Any], **settings: Any) -> list[Any]:
    """What `run` returns of an engine that captures, and of one that decodes eagerly."""
    found = []
    for capturer in (RecordingCapturer(), RefusingCapturer()):
        with opened(folder, cache, CapturingDevice(capturer), **settings) as engine:
            found.append(run(engine))
            assert bool(said(engine)) == isinstance(capturer, RefusingCapturer)
    return found


def said(engine: Engine) -> str:
    """Why nothing is captured."""
    own = [line for line in engine.live.inactive if line.startswith("compute.capture = true")]
    assert len(own) <= 1
    return "".join(own)


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3"])
def test_every_token_has_the_bits_of_the_eager_pass(family: str, tmp_path: Path) -> None:
    def run(engine: Engine) -> torch.Tensor:
        return decoded(engine, [prompt(9, size=2)])

    captured, eager = both(save_tiny(family, tmp_path / "model"), tmp_path, run)
    assert torch.equal(captured, eager)
    assert len(captured.unique(dim=0)) == TOKENS


def test_texts_of_other_lengths_take_the_room_and_what_was_captured_over_it(
    folder: Path, tmp_path: Path
) -> None:
    capturer = RecordingCapturer()
    lengths = (21, 5, 33)
    with opened(folder, tmp_path, CapturingDevice(capturer)) as engine:
        captured = [decoded(engine, [prompt(length, seed=length)]) for length in lengths]
    assert capturer.captures == 1
    for length, own in zip(lengths, captured, strict=True):
        with opened(folder, tmp_path, CapturingDevice(RefusingCapturer())) as engine:
            assert torch.equal(own, decoded(engine, [prompt(length, seed=length)]))


def test_micro_batches_of_several_lengths_decode_beside_each_other(
    folder: Path, tmp_path: Path
) -> None:
    def run(engine: Engine) -> torch.Tensor:
        return decoded(engine, [prompt(1), prompt(17, seed=1), prompt(11, seed=2)])

    captured, eager = both(folder, tmp_path, run, **{"batch.count": 3})
    assert torch.equal(captured, eager)


def test_another_number_of_sequences_is_captured_anew(folder: Path, tmp_path: Path) -> None:
    def run(engine: Engine) -> list[torch.Tensor]:
        return [decoded(engine, [prompt(6, size)], 5) for size in (3, 1, 3)]

    captured, eager = both(folder, tmp_path, run)
    assert all(map(torch.equal, captured, eager))


def test_what_was_captured_goes_with_its_configuration(folder: Path, tmp_path: Path) -> None:
    capturer = RecordingCapturer()
    with opened(folder, tmp_path, CapturingDevice(capturer)) as engine:
        first = decoded(engine, [prompt(9)])
        engine.configure(EngineConfig().overlay({**BASE, "cache.expert_bytes": "30%"}))
        assert torch.equal(decoded(engine, [prompt(9)]), first)
        assert capturer.captures == 2
        engine.configure(EngineConfig().overlay({**BASE, "compute.capture": False}))
        grown = decoded(engine, [prompt(9)])
        assert capturer.captures == 2
    assert (grown - first).abs().max() <= TOLERANCE * grown.abs().max()


@pytest.mark.parametrize("predictor", ["repeat_last", "next_gate", "expert_map"])
def test_policies_and_recorders_are_told_the_same(
    predictor: str, folder: Path, tmp_path: Path
) -> None:
    def run(engine: Engine) -> Any:
        recorder = TraceRecorder(engine.facts, gate_inputs=True)
        engine.record(recorder)
        decoded(engine, [prompt(9)])
        counters, trace = engine.residency.counters, recorder.trace()
        arrays = trace.experts, trace.weights, trace.probabilities, trace.look_ahead
        return [counters.predicted, dict(counters.hits), *arrays, trace.gate_inputs]

    settings = {"prefetch.predictor": predictor, "prefetch.depth": 2, "host.bytes": 10**9}
    captured, eager = both(folder, tmp_path, run, **settings)
    assert all(map(np.array_equal, captured, eager))
    assert captured[0] > 0


def test_what_a_router_was_given_stays_readable(folder: Path, tmp_path: Path) -> None:
    class Late:
        """A recorder that reads when all is over."""

        needs = frozenset({"gate_input"})

        def __init__(self) -> None:
            self.views: list[Any] = []

        def gate_entered(self, layer: int, micro_batch: int, view: Any) -> None:
            self.views.append(view)

        def routed(self, *given: Any) -> None: ...

        def begin_pass(self, *given: Any) -> None: ...

        def begin_sequences(self) -> None: ...

    def run(engine: Engine) -> list[Any]:
        recorder = Late()
        engine.record(recorder)
        decoded(engine, [prompt(9)])
        return [view.gate_input() for view in recorder.views]

    captured, eager = both(folder, tmp_path, run)
    assert all(map(np.array_equal, captured, eager))


def test_a_token_runs_no_python_of_the_model_and_the_host_waits_once_a_layer_and_at_its_end(
    folder: Path, tmp_path: Path
) -> None:
    device = CapturingDevice(RecordingCapturer())
    with opened(folder, tmp_path, device, **{"cache.expert_bytes": "100%"}) as engine:
        batch = prompt(9)
        decoded(engine, [batch], 12)
        device.waits = 0
        with mock.patch.object(engine.model.model, "forward", side_effect=AssertionError):
            batch.tokens = torch.tensor([[5]])
            engine.forward([batch], "decode")
        assert device.waits == engine.facts.moe_layers + 1  # and for the logits


def test_a_length_that_the_host_knows_is_found(folder: Path, tmp_path: Path) -> None:
    def known(self: StaticKv, layer_idx: int = 0) -> int:
        return self._tokens - 1

    def run(engine: Engine) -> torch.Tensor:
        batch = prompt(9)
        engine.prefill([batch])
        with mock.patch.object(StaticKv, "get_seq_length", known):
            return steps(engine, [batch])

    captured, eager = both(folder, tmp_path, run)
    assert torch.equal(captured[0], eager[0])
    assert not torch.equal(captured[1], eager[1])


def test_a_model_that_reads_a_tensor_decodes_eagerly_and_the_run_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder, tmp_path, CapturingDevice(RefusingCapturer())) as engine:
        expected = decoded(engine, [prompt(9)])
    own = modeling_qwen3_moe.Qwen3MoeDecoderLayer.forward
    layers: list[int] = []

    def reading(self: Any, hidden_states: torch.Tensor, *args: Any, **named: Any) -> Any:
        layers.append(self.self_attn.layer_idx)
        if hidden_states.shape[1] == 1 and layers[-1] == 1:  # the first layer has written already
            float(hidden_states.sum())
        return own(self, hidden_states, *args, **named)

    monkeypatch.setattr(modeling_qwen3_moe.Qwen3MoeDecoderLayer, "forward", reading)
    capturer = RecordingCapturer()
    with opened(folder, tmp_path, CapturingDevice(capturer)) as engine:
        assert torch.equal(decoded(engine, [prompt(9)]), expected)
        assert "this model cannot be captured: called a synchronizing" in said(engine)
    assert (capturer.rehearsals, capturer.captures) == (1, 0)


@pytest.mark.parametrize("family", ["gpt_oss", "jamba"])
def test_a_family_whose_layers_do_not_keep_their_place_decodes_eagerly(
    family: str, tmp_path: Path
) -> None:
    with opened(
        save_tiny(family, tmp_path / "model"), tmp_path, CapturingDevice(RecordingCapturer())
    ) as engine:
        assert "not all layers" in said(engine)
        batch = prompt(9)
        decoded(engine, [batch], 3)
        assert not isinstance(batch.kv, StaticKv)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kv.bits": 4}, "whole, at 16 bits"),
        ({"kv.keep_fraction": 0.5}, "whole, at 16 bits"),
        ({"kv.placement": "host"}, "whole, at 16 bits"),
        ({"serve.prefix_cache_tokens": 32}, "cached prefix"),
        ({"compute.capture": False}, ""),
    ],
)
def test_what_excludes_it_is_said(
    settings: dict[str, Any], reason: str, folder: Path, tmp_path: Path
) -> None:
    with opened(folder, tmp_path, CapturingDevice(RecordingCapturer()), **settings) as engine:
        assert engine.live.captured is None
        assert bool(said(engine)) == bool(reason)
        assert reason in said(engine)


def test_the_cpu_captures_nothing(folder: Path, tmp_path: Path) -> None:
    with opened(folder, tmp_path, CpuDevice()) as engine:
        assert said(engine) == "compute.capture = true: inactive, this device captures nothing"


def test_a_sequence_that_is_too_long_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with (
        opened(folder, tmp_path, CapturingDevice(RecordingCapturer())) as engine,
        pytest.raises(EngineError, match=r"65 tokens exceeds kv.max_tokens = 64"),
    ):
        decoded(engine, [prompt(60)], 5)


def test_rooms_take_what_the_memory_equation_says(folder: Path, tmp_path: Path) -> None:
    device = CapturingDevice(RecordingCapturer())
    with opened(folder, tmp_path, device, **{"batch.count": 2, "batch.size": 3}) as engine:
        batches = [prompt(5, 3), prompt(7, 3)]
        decoded(engine, batches, 2)
        held = sum(t.nbytes for b in batches for one in b.kv.layers for t in (one.keys, one.values))
        assert engine.memory is not None
        assert held == engine.memory.kv_bytes
        former = {id(batch.kv.layers[0]) for batch in batches}
        del batches
        gc.collect()
        again = [prompt(5, 3), prompt(7, 3)]
        decoded(engine, again, 2)
        assert {id(batch.kv.layers[0]) for batch in again} == former


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("dtype", list(ON_CARD))
def test_a_card_gives_the_logits_of_its_eager_pass(family: str, dtype: str, tmp_path: Path) -> None:
    folder = save_tiny(family, tmp_path / "model")
    found = []
    for capturer in (None, RefusingCapturer()):
        device: Any = open_device("auto")
        if device.torch_device.type != "cuda":
            pytest.skip("captures need CUDA")
        if capturer is not None:
            device.capturer = capturer
        with opened(folder, tmp_path, device, **{"compute.dtype": dtype}) as engine:
            texts = [[prompt(9, size=2)], [prompt(4), prompt(17, seed=1)], [prompt(30, size=2)]]
            found.append([decoded(engine, batches).cpu() for batches in texts])
            assert bool(said(engine)) == (capturer is not None), said(engine)
    for captured, eager in zip(*found, strict=True):
        assert (captured - eager).abs().max() <= ON_CARD[dtype] * eager.abs().max()
