"""Regroups one recorded trace as other batch settings would have run it.

A token's routing does not depend on what runs beside it, so sequences that were recorded one at a
time can be combined into any number of micro-batches, of any size, in prefill chunks of any length:
one trace serves every batch setting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import UsageError
from engine.trace.trace import Trace, TracePass
from engine.types import Phase

Rows = NDArray[np.int64]
Number = TypeVar("Number", bound=np.generic)


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """Rows of one sequence in the trace: those of its prompt, and those of its decoded tokens."""

    prompt: Rows
    decoded: Rows


def regroup(trace: Trace, count: int, size: int, chunk_tokens: int, together: int) -> Trace:
    """The trace as `count` micro-batches of `size` sequences each would have run it.

    trace: of groups of one sequence each; chunk_tokens: of a prefill pass, per sequence; together:
    sequences of one repeat, whose last group may be smaller. Prompts of a group are cut to the
    shortest, from the front, as in a run. Raises UsageError if groups hold several sequences.
    """
    sequences = list(_sequences(trace))
    passes: list[TracePass] = []
    rows: list[Rows] = []
    first = group = 0
    for start in range(0, len(sequences), together):
        repeat = sequences[start : start + together]
        for begin in range(0, len(repeat), count * size):
            members = repeat[begin : begin + count * size]
            batches = [members[at : at + size] for at in range(0, len(members), size)]
            for phase, parts in _passes(batches, chunk_tokens):
                tokens = tuple(len(part) for part in parts)
                passes.append(TracePass(group, phase, tokens, first))
                rows.extend(parts)
                first += sum(tokens)
            group += 1
    order = np.concatenate(rows)

    return dataclasses.replace(
        trace,
        passes=tuple(passes),
        experts=trace.experts[order],
        weights=_taken(trace.weights, order),
        probabilities=_taken(trace.probabilities, order),
        look_ahead=_taken(trace.look_ahead, order),
        embeddings=_taken(trace.embeddings, order),
        gate_inputs=_taken(trace.gate_inputs, order),
    )


def _taken(array: NDArray[Number] | None, order: Rows) -> NDArray[Number] | None:
    return None if array is None else array[order]


def _sequences(trace: Trace) -> Iterator[_Sequence]:
    by_group: dict[int, list[TracePass]] = {}
    for item in trace.passes:
        by_group.setdefault(item.group, []).append(item)
    for group, items in by_group.items():
        decode = [item for item in items if item.phase == "decode"]
        if any(len(item.tokens) > 1 for item in items) or any(i.tokens != (1,) for i in decode):
            raise UsageError(
                f"group {group} of this trace holds several sequences: record it with "
                "batch.count=1 and batch.size=1 to see it as other batches"
            )
        prompt = [np.arange(i.first, i.first + i.tokens[0]) for i in items if i.phase == "prefill"]
        yield _Sequence(
            np.concatenate(prompt) if prompt else np.arange(0),
            np.array([item.first for item in decode], dtype=np.int64),
        )


def _passes(
    batches: Sequence[Sequence[_Sequence]], chunk_tokens: int
) -> Iterator[tuple[Phase, list[Rows]]]:
    """Phase of every pass, and the rows of each micro-batch, sequence after sequence."""
    members = [member for batch in batches for member in batch]
    length = min(len(member.prompt) for member in members)
    for start in range(0, length, chunk_tokens):
        stop = min(start + chunk_tokens, length)
        yield (
            "prefill",
            [
                np.concatenate([m.prompt[len(m.prompt) - length :][start:stop] for m in batch])
                for batch in batches
            ],
        )
    for step in range(min(len(member.decoded) for member in members)):
        yield "decode", [np.array([m.decoded[step] for m in batch]) for batch in batches]
