"""What a host tier holds in a replay: which records cross the link at once, and which are read from
the disk before. As engine.experts.tiers fills a tier and makes room in it.

Nothing is left to say where the tier holds all records: they come over the link.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings, RecordSource
from engine.memory.host import held_records, host_shares
from engine.memory.kv import one_memory
from engine.memory.records import all_records_bytes, record_bytes_of
from engine.precision.table import bits_table, run_bits
from engine.types import Bits, ExpertId


class PartialTier:
    """A tier that holds some of the records of one precision.

    experts: all of them, in the order in which the tier is filled; count: how many fit; disk: where
    the others come from; record_bytes: of one.
    """

    def __init__(
        self, experts: Sequence[ExpertId], count: int, disk: RecordSource, record_bytes: int
    ) -> None:
        self.filled = tuple(experts[:count])
        self.disk = disk
        # the bytes that the disk reads meanwhile: the fixed cost of each piece counts as some
        self.read_bytes = record_bytes + disk.extents * disk.chunk_s * disk.rate(1)
        self._held: OrderedDict[ExpertId, None] = OrderedDict.fromkeys(self.filled)

    @property
    def read_s(self) -> float:
        """Seconds of reading one record alone."""
        return self.read_bytes / self.disk.rate(1)

    def borrow(self, expert: ExpertId) -> bool:
        """Whether the record is held. It is from now on; the one that was used longest ago makes
        room."""
        held = expert in self._held
        if held:
            self._held.move_to_end(expert)
        else:
            self._held.popitem(last=False)
            self._held[expert] = None
        return held


def record_source(
    config: EngineConfig, facts: ModelFacts, profile: ModelTimings, bits: Bits
) -> RecordSource:
    """Where records of a resolved config come from: the disk where there is no tier for them."""
    disk = profile.disk_sources.get(bits)
    if disk is None or one_memory(config) or _tier_records(config, facts, bits)[0]:
        return profile.sources[bits]
    return disk


def has_tiers(config: EngineConfig, facts: ModelFacts, profile: ModelTimings) -> bool:
    """Whether the host holds records of every precision, so that it may compute with them. Taken
    for granted where config or timings do not know of disk and link."""
    known = [bits for bits in run_bits(config) if bits in profile.disk_sources]
    return one_memory(config) or all(_tier_records(config, facts, bits)[0] for bits in known)


def partial_tiers(
    config: EngineConfig, facts: ModelFacts, profile: ModelTimings
) -> dict[Bits, PartialTier]:
    """The tiers of a resolved config that do not hold all of their records, by bits. None where
    these timings do not know the disk."""
    found = {}
    for bits in run_bits(config):
        count, experts = _tier_records(config, facts, bits)
        if bits in profile.disk_sources and 0 < count < experts:
            size, disk = record_bytes_of(config, facts, bits), profile.disk_sources[bits]
            found[bits] = PartialTier(_experts(config, facts, bits), count, disk, size)
    return found


def _tier_records(config: EngineConfig, facts: ModelFacts, bits: Bits) -> tuple[int, int]:
    """How many records of these bits the host tier holds, and how many there are."""
    records, size = all_records_bytes(config, facts), record_bytes_of(config, facts, bits)
    share, experts = host_shares(records, int(config.host.bytes))[bits], records[bits] // size
    return held_records(share, size, experts, config.io.threads), experts


def _experts(config: EngineConfig, facts: ModelFacts, bits: Bits) -> list[ExpertId]:
    """All experts with a record of these bits, from all layers alike."""
    table = bits_table(config, facts)
    return [
        ExpertId(layer, expert)
        for expert in range(facts.experts)
        for layer in range(facts.moe_layers)
        if table is None or table[layer][expert] == bits
    ]
