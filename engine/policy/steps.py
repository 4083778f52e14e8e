"""Decisions of the cache: steps and fetches, and the layer pass that they belong to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from engine.types import Bits, ExpertId

ON_HOST = -1


class Step(NamedTuple):
    """One expert of the current layer pass.

    slot: its slot on the device, ON_HOST if the host computes it; bits: of the record; hit: it was
    resident (perhaps still in transfer); after: the expert of an earlier step whose slot it takes
    over once that has been computed (None: the slot is free now).
    """

    expert: ExpertId
    slot: int
    bits: Bits
    hit: bool
    after: ExpertId | None = None


class Fetch(NamedTuple):
    """A decided prefetch: load `expert` into `slot`."""

    expert: ExpertId
    slot: int
    bits: Bits


@dataclass
class LayerPass:
    """One pass over one layer, from its first routing until its experts are computed.

    demanded: by any micro-batch, in routing order; steps: all decisions so far, in that order;
    deferred: demanded, but without a slot until all micro-batches are routed.
    """

    layer: int
    demanded: dict[ExpertId, None] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    deferred: list[tuple[ExpertId, Bits]] = field(default_factory=list)
