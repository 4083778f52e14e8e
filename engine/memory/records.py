"""Records of a resolved config: their layout and size at each of its precisions.

Pure arithmetic.
"""

from __future__ import annotations

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts
from engine.layout.prequantized import prequantized_layout
from engine.layout.record import RecordLayout, record_layout
from engine.precision.table import PLANNED, bits_table, run_bits
from engine.types import Bits


def record_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """Padded bytes of one record at this config's precision."""
    return config_layout(config, facts, config.precision.bits).size_bytes


def all_records_bytes(config: EngineConfig, facts: ModelFacts) -> dict[Bits, int]:
    """Bytes of all records that a run of this resolved config may read, by bits."""
    table = bits_table(config, facts)
    experts = facts.moe_layers * facts.experts
    return {
        bits: record_bytes_of(config, facts, bits)
        * (experts if table is None else sum(row.count(bits) for row in table))
        for bits in run_bits(config)
    }


def config_layout(config: EngineConfig, facts: ModelFacts, bits: Bits) -> RecordLayout:
    """The record layout of a resolved config at one of its precisions."""
    own = bits == config.precision.bits
    if own and config.precision.prequantized:
        assert facts.prequantized is not None, "prequantized is resolved"
        return prequantized_layout(facts.parts, facts.prequantized)
    return record_layout(facts.parts, bits, group_size_of(config, bits))


def record_bytes_of(config: EngineConfig, facts: ModelFacts, bits: Bits) -> int:
    """Padded bytes of one record of a resolved config, at one of its precisions."""
    return config_layout(config, facts, bits).size_bytes


def group_size_of(config: EngineConfig, bits: Bits) -> int:
    """The group size of a precision: records loaded at low bits on a miss have their own."""
    own = bits == config.precision.bits or config.precision.scheme in PLANNED
    return config.precision.group_size if own else config.precision.low_group_size
