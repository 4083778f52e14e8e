"""Loads the native library and mirrors its interface (sources/api.cpp).

Letters: T tokens, N output rows, K input columns, D hidden, F expert width. Addresses are plain
integers; whoever passes one keeps the memory alive during the call, in which Python's lock is
released. Set EXPERTUNE_NATIVE=off to do without the library, EXPERTUNE_INSTRUCTION_SET to one of
`instruction_sets` to multiply with less than the processor offers.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine.native import build
from engine.native.signatures import SIGNATURES
from engine.native.values import (
    Attention,
    Experts,
    Gate,
    Layers,
    Matrix,
    Number,
    QuantizeJob,
    Router,
    Step,
    Store,
)

INSTRUCTION_SET = "EXPERTUNE_INSTRUCTION_SET"

_log = logging.getLogger(__name__)
_SPIN_US = 50  # a waiting thread looks this long for the next call before it sleeps


@dataclass(frozen=True)
class Library:
    """The loaded library. functions: by their names without prefix."""

    path: Path
    functions: dict[str, Any]

    def instruction_sets(self) -> tuple[str, ...]:
        """Those that run here, best first; the last is the scalar reference."""
        found: list[str] = []
        while (name := self.functions["instruction_set"](len(found))) is not None:
            found.append(name.decode())
        return tuple(found)


@functools.cache
def load() -> Library | str:
    """The library, or why there is none."""
    if os.environ.get("EXPERTUNE_NATIVE") == "off":
        return "EXPERTUNE_NATIVE is off"
    if not build.LIBRARY.is_file():
        return (
            "it is not built: install a C++ compiler (Debian: apt install g++) or the Python "
            "package ziglang, then run `python -m engine.native.build`"
        )
    try:
        loaded = ctypes.CDLL(str(build.LIBRARY))
        functions = {name: _function(loaded, name) for name in SIGNATURES}
    except (OSError, AttributeError) as error:
        return f"{build.LIBRARY} cannot be loaded ({error}): run `python -m engine.native.build`"
    if build.SOURCES.is_dir() and functions["digest"]().decode() != build.digest():
        return f"{build.LIBRARY} is of other sources: run `python -m engine.native.build`"
    found = Library(build.LIBRARY, functions)
    wanted, names = os.environ.get(INSTRUCTION_SET, ""), found.instruction_sets()
    if wanted and wanted not in names:
        return f"{INSTRUCTION_SET}={wanted} does not run here: use one of {', '.join(names)}"
    return found


def is_available() -> bool:
    """Whether there is a library; if not, one line of the log says so, once."""
    found = load()
    if isinstance(found, str):
        _say_once(found)
    return not isinstance(found, str)


@functools.cache
def _say_once(why: str) -> None:
    _log.warning("the native library is not used, torch multiplies instead (slower): %s", why)


def function(name: str) -> Any:
    """A function of the library, by its name without prefix. Call only if it is available."""
    found = load()
    assert isinstance(found, Library), found
    return found.functions[name]


def _function(loaded: ctypes.CDLL, name: str) -> Any:
    found = loaded[f"expertune_{name}"]
    found.restype, found.argtypes = SIGNATURES[name]
    return found


class Threads:
    """A pool of the library's threads with one instruction set.

    threads: with the caller's own. Raises ValueError if the instruction set does not run here.
    """

    def __init__(self, library: Library, threads: int, instruction_set: str = "") -> None:
        names = library.instruction_sets()
        if instruction_set and instruction_set not in names:
            raise ValueError(f"{instruction_set} does not run here: use {', '.join(names)}")
        self.count = threads
        self._functions = library.functions
        opened = self._functions["open"](threads, _SPIN_US, instruction_set.encode())
        if opened is None:
            raise ValueError(f"{instruction_set} differs from the scalar reference here")
        self._context = ctypes.c_void_p(opened)
        self.instruction_set: str = self._functions["chosen"](self._context).decode()
        self._linear = self._functions["linear"]
        self._attend = self._functions["attend"]
        self._norm = self._functions["norm"]
        self._step = self._functions["step"]
        self._experts = self._functions["experts"]
        self._combine = self._functions["combine"]
        self._layers = self._functions["layers"]

    def linear(
        self,
        matrix: Matrix,
        record: int,
        x: int,
        number: Number,
        tokens: int,
        stride: int,
        out: int,
        out_stride: int,
    ) -> None:
        """x [T, K], rows `stride` numbers apart -> out [T, N], rows `out_stride` numbers apart, of
        x's type."""
        self._linear(
            self._context,
            ctypes.byref(matrix),
            record,
            x,
            number,
            tokens,
            stride,
            out,
            out_stride,
        )

    def experts(
        self,
        experts: Experts,
        records: ctypes.Array[ctypes.c_uint64],
        x: int,
        number: Number,
        tokens: int,
        chosen: int,
        index: int,
        out: int,
    ) -> None:
        """x [T, D] through the experts of index int64 [T, k] -> their places in out [T * k, D].

        records: the address of each expert's record; 0: not now, its places are left as they are.
        """
        self._experts(
            self._context,
            ctypes.byref(experts),
            records,
            len(records),
            x,
            number,
            tokens,
            chosen,
            index,
            out,
        )

    def plain(
        self, matrix: Matrix, record: int, first: int, end: int, out: int, number: Number
    ) -> None:
        """The values of rows first to end: out [end - first, K]. Not for the *_COLUMNS formats."""
        self._functions["plain"](
            self._context, ctypes.byref(matrix), record, first, end, out, number
        )

    def attend(
        self, attention: Attention, query: int, keys: int, values: int, mask: int, out: int
    ) -> None:
        """query [B, Q, D], contiguous, attends to keys and values [B, H, L, ..] -> out [B, Q, Dv].

        mask: float32 [B, L], added to the scores; 0: none.
        """
        self._attend(self._context, ctypes.byref(attention), query, keys, values, mask or None, out)

    def step(
        self,
        step: Step,
        x: int,
        tokens: int,
        cosine: int,
        sine: int,
        stride: int,
        stores: ctypes.Array[Store],
        out: int,
    ) -> None:
        """A whole attention layer for one token of each of T sequences: x [T, D] -> out [T, D].

        cosine, sine: [T, rotated], `stride` numbers apart, 0: one for all; stores: [T], to whose
        positions keys and values are written.
        """
        self._step(self._context, ctypes.byref(step), x, tokens, cosine, sine, stride, stores, out)

    def route(
        self,
        router: Router,
        x: int,
        number: Number,
        tokens: int,
        logits: int,
        weights: int,
        index: int,
    ) -> None:
        """x [T, D] -> logits [T, E] of x's type, weights [T, k] of the router's, index int64
        [T, k], best first, equal ones in their order."""
        self._functions["route"](
            self._context, ctypes.byref(router), x, number, tokens, logits, weights, index
        )

    def combine(
        self,
        number: Number,
        y: int,
        weights: int,
        weights_number: Number,
        tokens: int,
        chosen: int,
        columns: int,
        out: int,
    ) -> None:
        """y [T * k, D] of `number` and weights [T, k] -> out [T, D]: each row times its weight,
        both rounded; those of a token are added in order in float32, then rounded."""
        self._combine(
            self._context, number, y, weights, weights_number, tokens, chosen, columns, out
        )

    def layers(self, layers: Layers) -> int:
        """Run decoder layers from `first` on. Returns the layer that lacks the record of a chosen
        expert: its router has run, its experts have not; `count` if there is none. Without records
        that is the first layer."""
        reached: int = self._layers(self._context, ctypes.byref(layers))
        return reached

    def norm(
        self, number: Number, x: int, weight: int, tokens: int, count: int, epsilon: float, out: int
    ) -> None:
        """Each row of x [T, count] over its root mean square, times weight [count] -> out."""
        self._norm(self._context, number, x, weight, tokens, count, epsilon, out)

    def round(
        self, number: Number, x: int, tokens: int, columns: int, group: int, out: int
    ) -> None:
        """x [T, columns] -> out [T, columns], rounded to 8 bits in groups of so many columns."""
        self._functions["round"](self._context, number, x, tokens, columns, group, out)

    def gate(self, gate: Gate, number: Number, g: int, u: int, out: int, count: int) -> None:
        """out[i] = the gate of g[i] and u[i], all float32, rounded to `number`."""
        self._functions["gate"](self._context, ctypes.byref(gate), number, g, u, out, count)

    def quantize(self, *jobs: QuantizeJob) -> None:
        """Write the codes and scales of these matrices: the same bytes for every thread count and
        instruction set."""
        given = (QuantizeJob * len(jobs))(*jobs)
        self._functions["quantize"](self._context, given, len(jobs))

    def read_seconds(self, memory: int, size_bytes: int) -> float:
        """Seconds in which all threads read this memory once."""
        found: float = self._functions["read_seconds"](self._context, memory, size_bytes)
        return found

    def close(self) -> None:
        """Stop the threads; nothing else may be called afterwards."""
        self._functions["close"](self._context)
        self._context = ctypes.c_void_p()


_open: dict[int, Threads] = {}
_count = 0


def physical_cores() -> int:
    """The physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, _cores_there() or allowed))


@functools.cache
def _cores_there() -> int | None:
    return psutil.cpu_count(logical=False)


def use(count: int) -> int:
    """From now on products run on this many threads; 0: on the physical cores. Returns how many."""
    global _count
    _count = count or physical_cores()
    return _count


def current() -> Threads:
    """The pool of the process. Raises OSError without the library. Pools stay open."""
    library = load()
    if isinstance(library, str):
        raise OSError(library)
    count = _count or use(0)
    if count not in _open:
        _open[count] = Threads(library, count, os.environ.get(INSTRUCTION_SET, ""))
    return _open[count]


@functools.cache
def chosen_set() -> str | None:
    """The instruction set that a pool takes here; None without the library."""
    library = load()
    if isinstance(library, str):
        return None
    return Threads(library, 1, os.environ.get(INSTRUCTION_SET, "")).instruction_set


def multiplies_bytes() -> bool:
    """Whether products with activations of 8 bits are products of bytes here, which take less time
    than others."""
    return chosen_set() in ("avx2", "avx512", "avx512_bf16")


@functools.cache
def products_name(count: int = 0) -> str:
    """Names the products, their threads (0: as many as `use` would take) and the library's sources:
    a figure measured with some holds for no others."""
    library = load()
    if isinstance(library, str):
        return "torch"
    digest = library.functions["digest"]().decode()
    return f"native-{chosen_set()}-{count or physical_cores()}-{digest[:8]}"
