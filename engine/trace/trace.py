"""A routing trace: the choices of every MoE layer in every forward pass, and inputs of predictors.

Letters: N tokens of all passes in order, L MoE layers, K chosen experts, E experts of a layer, H
look-ahead distances, M look-ahead experts, D hidden.

Recorded by the engine, read by replay, oracle and predictors. A value: numpy arrays on disk as one
compressed .npz; no torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.derived.arrays import Arrays, load_arrays, read_arrays, save_arrays
from engine.derived.file import CONTENT_ERRORS, DerivedKind
from engine.errors import StorageError, UnreadableError, UsageError
from engine.inputs.typed import check_types
from engine.types import Phase

TRACE_VERSION = 1
TRACE = DerivedKind("routing trace", TRACE_VERSION, "a study or `tune trace` records it again")
LOOK_AHEAD_LAYERS = 4  # how many layers ahead a trace keeps the gate look-ahead
# Kind of numbers and shape of each array.
_SHAPES = {
    "weights": ("f", "NLK"),
    "probabilities": ("f", "NLE"),
    "look_ahead": ("i", "NLHM"),
    "embeddings": ("f", "ND"),
    "gate_inputs": ("f", "NLD"),
}
_ARRAYS = ("experts", "weights", "probabilities", "look_ahead", "embeddings", "gate_inputs")


@dataclass(frozen=True)
class TracePass:
    """One forward pass.

    group: number of the group of sequences that ran together; tokens: of each micro-batch;
    first: its first row in the trace's arrays.
    """

    group: int
    phase: Phase
    tokens: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Trace:
    """All passes of a workload.

    experts: [N, L, K], -1 where a router chose fewer; weights: of the gate, [N, L, K] or None;
    probabilities: [N, L, E] or None; look_ahead: best experts of router l + 1 + h on the gate input
    of layer l, [N, L, H, M] (-1 where there is no such layer) or None; embeddings: [N, D] or None;
    gate_inputs: [N, L, D] or None; facts: model fingerprint, workload and so on.
    """

    passes: tuple[TracePass, ...]
    experts: NDArray[np.int16]
    weights: NDArray[np.float16] | None
    probabilities: NDArray[np.float16] | None
    look_ahead: NDArray[np.int16] | None
    embeddings: NDArray[np.float16] | None
    gate_inputs: NDArray[np.float16] | None
    facts: dict[str, Any]

    @property
    def layers(self) -> int:
        """Number of MoE layers."""
        return int(self.experts.shape[1])

    def micro_batches(self, number: int) -> Iterator[slice]:
        """The rows of each micro-batch of a pass."""
        first = self.passes[number].first
        for tokens in self.passes[number].tokens:
            yield slice(first, first + tokens)
            first += tokens

    def chosen(self, rows: slice, layer: int) -> list[list[int]]:
        """The experts of each token, as the router gave them, without sentinels."""
        found: list[list[int]] = self.experts[rows, layer].tolist()
        return [[e for e in row if e >= 0] for row in found]

    def demands(self, number: int, layer: int) -> frozenset[int]:
        """All experts that a pass demands in a layer."""
        item = self.passes[number]
        block = self.experts[item.first : item.first + sum(item.tokens), layer]
        return frozenset(int(e) for e in np.unique(block) if e >= 0)

    def save(self, path: Path) -> None:
        """Write atomically. Raises StorageError."""
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        table = [[p.group, p.phase, list(p.tokens), p.first] for p in self.passes]
        header = json.dumps({"version": TRACE_VERSION, "passes": table, "facts": self.facts})
        try:
            save_arrays(path, TRACE, {"header": np.array(header), **arrays}, compressed=True)
        except OSError as error:
            raise StorageError(f"the trace {path} cannot be written: {error.strerror}") from None


def scored_trace_path(cache_folder: Path, fingerprint: str) -> Path:
    """The path of the routing of a model's last evaluation at 16 bits."""
    return cache_folder / "traces" / f"{fingerprint}-scored.npz"


def load_trace(path: Path) -> Trace:
    """Read a trace that the user names, which is never removed.

    Raises UsageError if it is missing, StorageError if it is not a trace, damaged or of another
    version.
    """
    try:
        arrays = read_arrays(path, TRACE)
    except FileNotFoundError:
        raise UsageError(f"there is no trace {path}: record one with `tune trace`") from None
    except UnreadableError as error:
        raise StorageError(
            f"{path} is not a routing trace ({error.reason}): record one with `tune trace`"
        ) from None
    try:
        return _from_arrays(arrays)
    except CONTENT_ERRORS as error:
        raise StorageError(
            f"{path} is not a routing trace of this release ({error}): record one with `tune trace`"
        ) from None


def load_kept_trace(path: Path) -> Trace | None:
    """Read a trace of the cache folder; None if there is none or after a damaged one was
    dropped."""
    return load_arrays(path, TRACE, _from_arrays)


def _from_arrays(arrays: Arrays) -> Trace:
    """Raises one of CONTENT_ERRORS."""
    header = json.loads(str(arrays["header"]))
    if header["version"] != TRACE_VERSION:
        raise ValueError(f"it is of version {header['version']!r:.40}, not {TRACE_VERSION}")
    passes = tuple(
        TracePass(group, phase, tuple(tokens), first)
        for group, phase, tokens, first in header["passes"]
    )
    named: dict[str, Any] = {name: arrays.get(name) for name in _ARRAYS}
    if named["experts"] is None:
        raise ValueError("it has no experts")
    found = Trace(passes=passes, facts=dict(header["facts"]), **named)
    _check(found)
    return found


def mismatch(trace: Trace, layers: int, experts: int, needs: Collection[str] = ()) -> str | None:
    """What is wrong if a trace cannot belong to a model with this many MoE layers and experts per
    layer, else None. needs: of a policy, whose probabilities are compared only if it reads them."""
    highest = int(trace.experts.max(initial=-1))
    read = trace.probabilities if "probabilities" in needs else None
    known = experts if read is None else read.shape[2]
    if trace.layers == layers and highest < experts and known == experts:
        return None
    return (
        f"has {trace.layers} MoE layers and experts up to {max(highest, known - 1)}; the model has "
        f"{layers} layers of {experts} experts: record one of this model with `tune trace`"
    )


def _check(trace: Trace) -> None:
    """Raise ValueError unless arrays and passes agree."""
    if trace.experts.ndim != 3 or trace.experts.dtype.kind != "i":
        raise ValueError("its experts are no whole numbers [N, L, K]")
    if trace.experts.min(initial=0) < -1 or 0 in trace.experts.shape[1:]:
        raise ValueError("its experts are no choices")
    rows, layers, _ = trace.experts.shape
    known = {"N": rows, "L": layers}
    for name, (kind, letters) in _SHAPES.items():
        array = getattr(trace, name)
        sizes = () if array is None else zip(letters, array.shape, strict=False)
        right = array is None or (array.dtype.kind == kind and array.ndim == len(letters))
        if not right or any(known.get(letter, size) != size for letter, size in sizes):
            raise ValueError(f"its {name} are not of shape [{', '.join(letters)}]")
    for one in trace.passes:
        check_types(one)
        if not one.tokens or min(one.tokens) < 1 or min(one.group, one.first) < 0:
            raise ValueError("a pass has no tokens, or begins before the first")
        if one.first + sum(one.tokens) > rows:
            raise ValueError(f"a pass ends behind the {rows} tokens")
    if not trace.passes:
        raise ValueError("it has no passes")
