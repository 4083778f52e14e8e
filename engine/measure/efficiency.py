"""Bandwidth efficiency: how near decoding comes to reading its weights at the memory's speed.

The bytes of weights that one step of decoding touches, times steps per second, over the bytes per
second that all threads of the products read from memory. 1 means that nothing but reading weights
takes time. Known for the native products on a device that is host memory.
"""

from __future__ import annotations

import torch

from engine.experts.kernels.native import is_available
from engine.native import library
from engine.run.engine import Engine

_READ_BYTES = 256 << 20  # far beyond any cache
_READS = 5


def bandwidth_efficiency(engine: Engine, tokens: int, steps_per_s: float) -> float | None:
    """The efficiency of steps of this many tokens (of as many sequences); None where it is not
    known.

    Experts of several tokens overlap: each is counted as often as routing without preference would
    choose it at all.
    """
    if not is_available() or not engine.device.is_host_memory:
        return None
    return touched_bytes(engine, tokens) * steps_per_s / memory_bytes_per_s()


def touched_bytes(engine: Engine, tokens: int) -> float:
    """Bytes of weights that a step of decoding reads: chosen experts, linear layers, head."""
    assert engine.memory is not None
    facts = engine.facts
    record = engine.store.record.size_bytes
    chosen = facts.experts * (1 - (1 - facts.experts_per_token / facts.experts) ** tokens)
    return facts.moe_layers * chosen * record + _linear_bytes(engine)


def _linear_bytes(engine: Engine) -> int:
    """Bytes of every weight outside the experts but the embeddings, of which rows are taken."""
    model = engine.model.model
    table = model.get_input_embeddings()
    head = model.get_output_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(table, "weight", None)
    own = set() if tied else {id(table.weight)}
    found = {
        t.data_ptr(): t.nbytes
        for t in (*model.parameters(), *model.buffers())
        if id(t) not in own and t.device.type != "meta"
    }
    return sum(found.values())


def memory_bytes_per_s() -> float:
    """What all threads of the products read from memory together: the best of a few reads."""
    memory = torch.ones(_READ_BYTES, dtype=torch.uint8)
    pool = library.current()
    seconds = min(pool.read_seconds(memory.data_ptr(), memory.nbytes) for _ in range(_READS))
    return _READ_BYTES / seconds
