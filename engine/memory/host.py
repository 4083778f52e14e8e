"""The host's side of the memory equation: what lies in RAM beside a device with its own memory.

Pure arithmetic.
"""

from __future__ import annotations

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.facts.model import ModelFacts
from engine.memory.kv import kv_host_bytes, one_memory
from engine.types import Bits, format_bytes

# Of the free memory, unless a RAM budget allows more: files that are read, and other programs, need
# some. What is free changes by the minute, so it bounds the tier when it is opened, not the config.
FREE_FRACTION = 0.7
# Records beside those that the I/O threads carry: one of the host's products and one to evict.
_MORE_RECORDS = 2


def with_host_bytes(
    config: EngineConfig, facts: ModelFacts, records: dict[Bits, int]
) -> EngineConfig:
    """Resolves host.bytes: `auto` is what all records take, at most what the RAM budget leaves.

    records: bytes of all records that the run may read, by bits. Where device and host are one
    memory there is no host tier. Raises InfeasibleError if the RAM budget is passed.
    """
    kv, budget, wanted = kv_host_bytes(config, facts), config.budget.ram_bytes, config.host.bytes
    everything = sum(records.values())
    if isinstance(wanted, str) and one_memory(config):
        return config.overlay({"host.bytes": 0})
    if wanted == "auto":
        found = min(everything, max(0, budget - kv)) if budget else everything
    elif isinstance(wanted, str):
        found = int(everything * float(wanted.rstrip("%")) / 100)
    else:
        found = wanted
    if budget and found + kv > budget:
        keys = f" and {format_bytes(kv)} of keys and values" if kv else ""
        raise InfeasibleError(
            f"host.bytes = {wanted}{keys} on the host pass the RAM budget of "
            f"{format_bytes(budget)}: lower them or raise --ram"
        )
    return config.overlay({"host.bytes": found})


def host_shares(records: dict[Bits, int], host_bytes: int) -> dict[Bits, int]:
    """Bytes of the host tier for the records of each precision, in proportion to what they take."""
    everything = sum(records.values())
    return {bits: host_bytes * size // max(1, everything) for bits, size in records.items()}


def held_records(share_bytes: int, record_bytes: int, experts: int, threads: int) -> int:
    """How many of `experts` records a tier of these bytes holds; 0, which means no tier, if they
    are too few for so many I/O threads to work with."""
    count = min(share_bytes // record_bytes, experts)
    return count if count >= min(threads + _MORE_RECORDS, experts) else 0
