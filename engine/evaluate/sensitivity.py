"""Sensitivity of each layer to fewer bits: the divergence when only that layer has them.

All variants of the text (one layer at one precision each) pass layer by layer together with the
16-bit one, so that every record of every precision is read once per group of variants.

Letters: N tokens of the text, V vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from engine.config.settings import EngineConfig
from engine.errors import UsageError
from engine.run.engine import Engine
from engine.run.layer_by_layer import LayerWise, TextBatch
from engine.types import Bits, ExpertId

ROW_TOKENS = 64
_Variant = tuple[int, Bits]


def measure_sensitivities(
    engine: Engine,
    tokens: Sequence[int],
    bits: Sequence[Bits],
    base: EngineConfig,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[Bits, float]]:
    """KL(16 bits || one layer at fewer bits) of each MoE layer, nats per token in prefill mode.

    tokens: calibration text, cut to whole rows of ROW_TOKENS; base: budget and group size. Leaves
    the engine configured at 16 bits. Raises UsageError if the text is shorter than one row.
    """
    rows = len(tokens) // ROW_TOKENS
    if not rows:
        raise UsageError(f"a calibration text needs at least {ROW_TOKENS} tokens")
    text = torch.tensor(tokens[: rows * ROW_TOKENS]).view(rows, ROW_TOKENS)
    engine.configure(base.overlay({"precision.bits": 16, "batch.count": 1}))
    variants: list[_Variant] = [
        (layer, one) for layer in range(engine.facts.moe_layers) for one in bits
    ]
    found: list[dict[Bits, float]] = [{} for _ in range(engine.facts.moe_layers)]
    done = 0
    with (
        engine.layer_wise(ROW_TOKENS, extra_bits=bits) as passing,
        tempfile.TemporaryFile() as file,
    ):
        reference = np.memmap(
            file, np.float32, "w+", shape=(rows, ROW_TOKENS, engine.facts.vocabulary)
        )
        for group_of in _groups(variants, rows, passing):
            for (layer, one), loss in zip(
                group_of, _run(passing, text, group_of, reference, first=not done), strict=True
            ):
                found[layer][one] = loss
            done += len(group_of)
            if progress is not None:
                progress("sensitivity", done, len(variants))
    return found


def _groups(
    variants: Sequence[_Variant], rows: int, passing: LayerWise
) -> Iterator[Sequence[_Variant]]:
    """As many variants together as fit beside the 16-bit text of the first group."""
    capacity = max(1, passing.capacity_tokens // (rows * ROW_TOKENS) - 1)
    for start in range(0, len(variants), capacity):
        yield variants[start : start + capacity]


def _run(
    passing: LayerWise,
    text: torch.Tensor,
    variants: Sequence[_Variant],
    reference: np.memmap[tuple[int, int, int], np.dtype[np.float32]],
    *,
    first: bool,
) -> list[float]:
    """Divergence of each variant. first: also compute the reference."""
    width = max(1, passing.batch_tokens // ROW_TOKENS)
    starts = range(0, text.shape[0], width)
    plain: list[_Variant | None] = [None] if first else []
    owners: list[tuple[int, int]] = []
    batches: list[TextBatch] = []
    for number, _ in enumerate([*plain, *variants]):
        for start in starts:
            rows = text[start : start + width]
            count = rows.shape[0]
            owners.append((number - len(plain), start))
            batches.append(TextBatch(rows, (ROW_TOKENS,) * count, (0,) * count, number))
    losses = [0.0] * len(variants)

    def read(batch: int, row: int, position: int, logits: torch.Tensor) -> None:
        variant, start = owners[batch]
        own = torch.log_softmax(logits.float(), dim=-1).cpu()  # [n, V]
        where = (start + row, slice(position, position + own.shape[0]))
        if variant < 0:
            reference[where] = own[:, : reference.shape[-1]].numpy()
            return
        expected = torch.from_numpy(np.array(reference[where]))  # [n, V]
        own = own[:, : expected.shape[1]]
        losses[variant] += float((expected.exp() * (expected - own)).sum())

    def bits_of(variant: int, expert: ExpertId) -> Bits:
        number = variant - len(plain)
        if number < 0 or variants[number][0] != expert.layer:
            return 16
        return variants[number][1]

    passing.run(batches, read, bits_of=bits_of)
    return [loss / text.numel() for loss in losses]
