"""Transfers under stress: delays, failures, cancellations; no chunk lost or doubled."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.device.pages import allocate_pages, bytes_view
from engine.errors import CheckpointError
from engine.experts.encoding.codec import encode
from engine.experts.kernels.registry import NO_KERNELS
from engine.experts.slots import Slots
from engine.experts.tiers.direct_io import DiskReader, Extent
from engine.experts.tiers.disk import open_store
from engine.experts.transfer import Transfer, TransferEngine
from engine.memory.plan import resolve
from engine.policy.pools import Pool
from engine.policy.registry import QUEUES
from engine.run.engine import Engine
from engine.types import ExpertId

SLOTS = 4


class SlowStore:
    """A store whose reads take random time and fail when told to."""

    def __init__(self, inner: Any, seed: int) -> None:
        self._inner = inner
        self._random = random.Random(seed)
        self.record = inner.record
        self.fail: set[ExpertId] = set()
        self.reads: list[tuple[ExpertId, Extent]] = []

    def scratch_bytes(self) -> int:
        return int(self._inner.scratch_bytes())

    def chunks(self, expert: ExpertId, chunk_bytes: int) -> list[Extent]:
        return list(self._inner.chunks(expert, chunk_bytes))

    def read(self, expert: ExpertId, piece: Extent, target: memoryview, scratch: Any) -> None:
        time.sleep(self._random.random() * 0.002)
        self.reads.append((expert, piece))
        if expert in self.fail:
            raise CheckpointError("injected")
        self._inner.read(expert, piece, target, scratch)


@pytest.fixture(params=sorted(QUEUES))
def parts(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Any]:
    config, _ = resolve(EngineConfig(), engine.facts)
    record = engine.record_format(config, NO_KERNELS)
    store = SlowStore(open_store(engine.model, record, engine.cache_folder, "auto"), seed=1)
    slots = Slots(CpuDevice(), {16: record}, [Pool(None, (16,), SLOTS)])
    transfers = TransferEngine(
        slots,
        {16: store},  # type: ignore[dict-item]
        QUEUES[request.param](),
        threads=3,
        chunk_bytes=4096,
        in_flight=3,
    )
    yield engine, store, slots, transfers
    transfers.close()
    slots.close()


def content(slots: Slots, slot: int) -> bytes:
    return bytes(bytes_view(slots.bytes_of(slot, 0, slots.slot_bytes)))


def test_the_last_submitted_record_is_what_a_slot_holds(parts: Any) -> None:
    engine, store, slots, transfers = parts
    rng = random.Random(2)
    last: dict[int, Transfer] = {}
    for _ in range(150):
        expert = ExpertId(rng.randrange(3), rng.randrange(8))
        slot = rng.randrange(SLOTS)
        transfer = transfers.submit(expert, slot, 16, demanded=rng.random() < 0.5)
        last[slot] = transfer
        action = rng.random()
        if action < 0.2:
            transfers.promote(transfer)
        elif action < 0.4:
            transfers.demote(transfer)
        elif action < 0.5:
            transfers.wait([transfer])
    for slot, transfer in last.items():
        transfers.wait([transfer])
        expected = encode(engine.model.read_expert(transfer.expert), store.record)
        assert content(slots, slot) == expected.numpy().tobytes()


def test_each_chunk_of_an_undisturbed_record_is_read_once(parts: Any) -> None:
    _, store, _, transfers = parts
    submitted = [transfers.submit(ExpertId(0, i), i, 16, demanded=False) for i in range(SLOTS)]
    for transfer in submitted:
        transfers.wait([transfer])
    transfers.drain()
    expected = [(t.expert, piece) for t in submitted for piece in store.chunks(t.expert, 4096)]
    assert sorted(store.reads, key=repr) == sorted(expected, key=repr)


def test_whoever_waits_is_woken_once_a_record(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store, _, transfers = parts
    assert len(store.chunks(ExpertId(0, 1), 4096)) > 1
    woken: list[int] = []
    notify_all = transfers._moved.notify_all

    def counted() -> None:
        woken.append(1)
        notify_all()

    monkeypatch.setattr(transfers._moved, "notify_all", counted)
    submitted = [transfers.submit(ExpertId(0, i), i, 16, demanded=True) for i in range(SLOTS)]
    for transfer in submitted:
        transfers.wait([transfer])
    transfers.drain()
    assert len(woken) == SLOTS


def test_a_failed_read_reaches_the_waiter_and_the_engine_goes_on(parts: Any) -> None:
    _, store, _, transfers = parts
    store.fail.add(ExpertId(1, 1))
    broken = transfers.submit(ExpertId(1, 1), 0, 16, demanded=True)
    with pytest.raises(CheckpointError, match="injected"):
        transfers.wait([broken])
    store.fail.clear()
    again = transfers.submit(ExpertId(1, 1), 0, 16, demanded=True)
    transfers.wait([again])
    assert again.read


def test_a_direct_and_a_buffered_read_give_the_same_bytes(engine: Engine) -> None:
    prompt = torch.arange(3, 20)[None]
    outcomes = []
    for direct in ("auto", "off"):
        from engine.run.micro_batch import MicroBatch

        engine.configure(EngineConfig().overlay({"io.direct": direct, "kv.max_tokens": 32}))
        outcomes.append(engine.prefill([MicroBatch(prompt)])[0])
    assert torch.equal(*outcomes)


def test_an_unforeseen_error_in_a_thread_reaches_the_waiter_too(parts: Any) -> None:
    _, store, _, transfers = parts

    def explode(*_: Any) -> None:
        raise RuntimeError("driver")

    healthy, store.read = store.read, explode
    broken = transfers.submit(ExpertId(2, 2), 1, 16, demanded=True)
    with pytest.raises(RuntimeError, match="driver"):
        transfers.wait([broken])
    store.read = healthy
    again = transfers.submit(ExpertId(2, 3), 1, 16, demanded=True)
    transfers.wait([again])
    assert again.read


def test_a_file_that_ends_early_is_an_error_and_no_loop(tmp_path: Any) -> None:
    file = tmp_path / "short"
    file.write_bytes(b"x" * 9000)
    for direct in ("auto", "off"):
        reader = DiskReader([file], direct)
        target, scratch = (bytes_view(allocate_pages(32768)) for _ in range(2))
        with pytest.raises(CheckpointError, match="ends early"):
            reader.read(Extent(0, 0, 0, 16384), target[:16384], scratch)
        reader.close()
