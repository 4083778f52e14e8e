"""The host tier: filled once, kept over configurations, bounded by memory that is free, pinned."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.pages import allocate_pages, bytes_view
from engine.errors import EngineError
from engine.experts.encoding.codec import encode
from engine.experts.kernels.registry import NO_KERNELS
from engine.experts.tiers.disk import ExpertStore, open_store
from engine.experts.tiers.host import HostTier
from engine.experts.tiers.host_tiers import HostTiers
from engine.facts.timings import RecordSource
from engine.memory.plan import resolve
from engine.replay.tier import PartialTier
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.types import ExpertId
from tests.fakes.staged_device import StagedDevice

PROMPT = torch.arange(3, 30)[None]


class PinningDevice(StagedDevice):
    """Pins at most so many bytes, and notes what is pinned."""

    def __init__(self, allowed_bytes: int = 1 << 40) -> None:
        super().__init__()
        self.name = "pinning:0"
        self.allowed_bytes = allowed_bytes
        self.pinned: dict[int, int] = {}

    def pin(self, pages: torch.Tensor) -> int:
        found = min(self.allowed_bytes, pages.numel())
        self.pinned[pages.data_ptr()] = found
        return found

    def unpin(self, pages: torch.Tensor) -> None:
        del self.pinned[pages.data_ptr()]


@pytest.fixture
def engine(tiny_folder: Path, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tiny_folder, PinningDevice(), tmp_path)
    yield engine
    engine.close()


@pytest.fixture
def store(engine: Engine) -> Iterator[ExpertStore]:
    config, _ = resolve(EngineConfig(), engine.facts)
    record = engine.record_format(config, NO_KERNELS)
    store = open_store(engine.model, record, engine.cache_folder, "off")
    yield store
    store.close()


def config_of(**settings: object) -> EngineConfig:
    paths = {name.replace("__", "."): value for name, value in settings.items()}
    return EngineConfig().overlay({"kv.max_tokens": 64, "cache.expert_bytes": "40%", **paths})


def test_a_borrowed_record_is_the_stored_one_however_little_fits(
    engine: Engine, store: ExpertStore
):
    tier = HostTier(store, engine.device, 2 * store.record.size_bytes)
    scratch = bytes_view(allocate_pages(tier.scratch_bytes()))
    for number in (3, 1, 3, 0, 2, 3):
        expert = ExpertId(0, number)
        with tier.borrow(expert, scratch) as record:
            expected = encode(engine.model.read_expert(expert), store.record)
            size = expected.numel()
            assert torch.equal(record[:size], expected)
    assert (tier.hits, tier.misses) == (1, 5)
    tier.close()


def test_a_tier_whose_records_are_all_borrowed_says_so(engine: Engine, store: ExpertStore):
    tier = HostTier(store, engine.device, store.record.size_bytes)
    scratch = bytes_view(allocate_pages(tier.scratch_bytes()))
    with (
        tier.borrow(ExpertId(0, 0), scratch),
        pytest.raises(EngineError, match=r"raise host\.bytes"),
        tier.borrow(ExpertId(0, 1), scratch),
    ):
        pass
    tier.close()


def test_filling_takes_experts_of_all_layers_alike(engine: Engine, store: ExpertStore):
    layers = len(engine.model.layers)
    tier = HostTier(store, engine.device, 2 * layers * store.record.size_bytes)
    read: list[int] = []
    tier.fill(2, read.append)
    assert sum(read) == tier.size_bytes
    held = set(tier._entries)
    assert held == {ExpertId(layer, expert) for layer in range(layers) for expert in (0, 1)}
    tier.close()


def test_a_replay_knows_what_the_tier_holds(engine: Engine, store: ExpertStore):
    layers, count = len(engine.model.layers), 7
    tier = HostTier(store, engine.device, count * store.record.size_bytes)
    tier.fill(1, lambda size_bytes: None)
    order = sorted(store.experts, key=lambda one: (one.expert, one.layer))
    disk = RecordSource({1: 1e9}, 0.0, "shared")
    simulated = PartialTier(order, count, disk, store.record.size_bytes)
    assert tier.held() == list(simulated.filled)
    scratch = bytes_view(allocate_pages(tier.scratch_bytes()))
    random = Random(0)
    for _ in range(60):
        expert = ExpertId(random.randrange(layers), random.randrange(8))
        hits = tier.hits
        with tier.borrow(expert, scratch):
            pass
        assert simulated.borrow(expert) == (tier.hits > hits)
    tier.close()


def test_by_default_everything_lies_in_ram_and_only_the_first_configuration_reads_it(
    engine: Engine,
):
    stages: list[tuple[str, int, int]] = []
    config, _ = engine.configure(config_of(), lambda *stage: stages.append(stage))
    everything = engine.store.all_bytes
    assert config.host.bytes == engine.live.host_tier_bytes == everything
    fills = [(done, total) for stage, done, total in stages if stage == "fill"]
    assert fills[-1] == (everything, everything)
    before = engine.live.disk_bytes
    engine.prefill([MicroBatch(PROMPT)])
    assert engine.live.disk_bytes == before
    engine.configure(config_of(cache__expert_bytes="80%"))
    engine.prefill([MicroBatch(PROMPT)])
    assert engine.live.disk_bytes == 0
    assert engine.live.inactive == engine.live.notes == ()


def test_records_of_another_precision_take_the_place(engine: Engine):
    engine.configure(config_of())
    engine.configure(config_of(precision__bits=4, kernel__name="dequantize"))
    assert set(engine.live.tiers) == {4}
    assert len(engine.device.pinned) == 1
    engine.close()
    assert not engine.device.pinned


def test_the_host_tier_takes_no_more_than_a_share_of_what_is_free(engine: Engine):
    everything = engine.configure(config_of())[0].host.bytes
    engine.close()
    engine._host_tiers = HostTiers(engine.device, lambda: everything // 2)
    engine.configure(config_of())
    assert engine.live.host_tier_bytes <= 0.7 * everything / 2
    assert "70% of the memory that is free; give --ram" in engine.live.notes[0]
    engine.prefill([MicroBatch(PROMPT)])
    held = engine.live.host_tier_bytes
    engine.configure(config_of(cache__expert_bytes="50%"))
    assert engine.live.host_tier_bytes >= held, "what it holds itself counts as free"


def test_a_ram_budget_is_taken_at_its_word(engine: Engine):
    engine._host_tiers = HostTiers(engine.device, lambda: 0)
    budget = 150_000
    config, _ = engine.configure(config_of(budget__ram_bytes=budget))
    assert config.host.bytes == budget
    assert budget - engine.store.record.size_bytes < engine.live.host_tier_bytes <= budget
    assert engine.live.notes == ()


def test_what_cannot_be_pinned_is_said(tiny_folder: Path, tmp_path: Path):
    engine = Engine(tiny_folder, PinningDevice(allowed_bytes=10_000), tmp_path)
    engine.configure(config_of())
    assert "10 kB of the" in engine.live.notes[0]
    assert "are pinned, since the system allows no more" in engine.live.notes[0]
    engine.close()


def test_too_little_for_the_threads_that_read_is_no_tier(engine: Engine):
    engine.configure(config_of(host__bytes=1000))
    assert engine.live.tiers == {}
    assert engine.live.inactive == ("host.bytes: inactive, it holds too few records",)
    engine.prefill([MicroBatch(PROMPT)])
