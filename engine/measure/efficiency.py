"""Bandwidth efficiency: how near decoding comes to reading its weights at the memory's speed.

The bytes of weights that decoding touches, over its time, over the bytes a second that all threads
of the products read from memory together. 1: nothing but reading weights takes time. Known for the
native products on a device that is host memory.
"""

from __future__ import annotations

from engine.experts.kernels.native import is_available
from engine.native import library
from engine.run.engine import Engine

_LEAST_BYTES = 128 << 20  # less may lie in a processor's cache
_MOST_BYTES = 512 << 20
_READS = 5


def memory_bytes_per_s(engine: Engine) -> float | None:
    """What all threads of the products read from the experts' slots together: the best of a few
    reads. None where the products are not native or not the CPU's, or the slots are so few that
    they may lie in a cache."""
    if not is_available() or not engine.device.is_host_memory:
        return None
    size = min(engine.live.slots.total_bytes, _MOST_BYTES)
    if size < _LEAST_BYTES:
        return None
    pool, start = library.current(), engine.live.slots.address(0)
    return size / min(pool.read_seconds(start, size) for _ in range(_READS))


def touched_bytes(engine: Engine, steps: int) -> int:
    """Bytes of weights that decoding touched since the counters were reset, in this many steps:
    the records of each layer's experts, and everything outside the experts but the embeddings."""
    counters = engine.residency.counters
    experts = counters.hits["decode"] + counters.misses["decode"]
    return experts * engine.store.record.size_bytes + steps * non_expert_bytes(engine)


def non_expert_bytes(engine: Engine) -> int:
    """Bytes of every weight outside the experts but the embeddings, of which rows are taken."""
    model = engine.model.model
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(table, "weight", None)
    found = {
        tensor.data_ptr(): tensor.nbytes
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.device.type == "cpu" and (tied or tensor is not getattr(table, "weight", None))
    }
    return sum(found.values())
