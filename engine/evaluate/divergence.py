"""Divergence of a configuration's next-token distributions from the 16-bit model's.

Measured twice on the same fixed text: in decode mode, one token at a time with the kernels that
decoding uses, and in prefill mode, in chunks as prompts are. If kv.keep_fraction is below 1 the
first half of the text is the prompt of decode mode, and only the tokens decoded after it count. The
16-bit model's log-probabilities of both modes are kept on disk, so that a comparison holds only one
row, or one chunk, of each.

Letters: T tokens of the text, S tokens of a piece, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from engine.derived.file import DerivedKind, is_whole, seal
from engine.evaluate.scoring import scored_chunk
from engine.experts.kernels.gemm import padded_length
from engine.files import short_digest
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.types import Phase

REFERENCE = DerivedKind(
    "reference of 16 bits", 1, "divergences from it wait until 16 bits are evaluated again"
)
TOKENS = 128
_Read = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True)
class Divergence:
    """kld_mean: KL(reference || this), nats per token; top1_agreement: fraction of equal argmax."""

    kld_mean: float
    top1_agreement: float


def reference_path(engine: Engine, tokens: list[int], folder: Path, phase: Phase) -> Path:
    """The file that holds the reference of this model, text and mode."""
    key = short_digest(repr((engine.facts.fingerprint, tokens)), 24)
    suffix = "" if phase == "decode" else ".prefill"
    return folder / "references" / f"{key}{suffix}.npy"


def diverge(
    engine: Engine, tokens: list[int], folder: Path, phase: Phase, *, reference: bool
) -> Divergence | None:
    """Run the text on the current configuration and compare; None if no reference was kept.

    reference: this run is the reference for later comparisons.
    """
    merging = phase == "decode" and not reference and engine.live.config.kv.keep_fraction != 1
    prompt = len(tokens) // 2 if merging else 0
    reader = open_reader(engine, tokens, folder, phase, reference=reference, unread=prompt)
    if reader is None:
        return None
    _run(engine, tokens, phase, reader.read, prompt)
    return reader.finish()


class Reader(Protocol):
    """Receives a text's log-probabilities piece by piece."""

    def read(self, start: int, rows: torch.Tensor) -> None:
        """Receive the next piece. rows: [S, V], float32, of the positions from `start` on."""

    def finish(self) -> Divergence | None:
        """The result after every position was read; None if some were not."""


def open_reader(
    engine: Engine,
    tokens: list[int],
    folder: Path,
    phase: Phase,
    *,
    reference: bool,
    unread: int = 0,
) -> Reader | None:
    """A reader that keeps or compares this text's distributions; None if there is no reference.

    unread: number of leading tokens that are not compared.
    """
    path = reference_path(engine, tokens, folder, phase)
    if reference:
        return _Keeping(path, len(tokens), engine.facts.vocabulary)
    return _Comparing(path, len(tokens) - unread) if is_whole(path, REFERENCE) else None


class _Keeping:
    """Writes a reference; its divergence from itself is zero."""

    def __init__(self, path: Path, tokens: int, vocabulary: int) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.stem}.partial.npy")
        self._left = tokens
        path.parent.mkdir(parents=True, exist_ok=True)
        self._kept = np.lib.format.open_memmap(
            self._partial, mode="w+", dtype=np.float32, shape=(tokens, vocabulary)
        )

    def read(self, start: int, rows: torch.Tensor) -> None:
        self._kept[start : start + len(rows)] = rows[:, : self._kept.shape[1]].cpu().numpy()
        self._left -= len(rows)

    def finish(self) -> Divergence | None:
        if self._left:
            self._partial.unlink()
            return None
        self._kept.flush()
        seal(self._partial, self._path, REFERENCE)
        return Divergence(0.0, 1.0)


class _Comparing:
    """Accumulates the divergence of a text's distributions from the reference."""

    def __init__(self, path: Path, tokens: int) -> None:
        self._reference = np.load(path, mmap_mode="r")
        self._tokens = self._left = tokens
        self._divergence = 0.0
        self._agreed = 0

    def read(self, start: int, rows: torch.Tensor) -> None:
        for number, row in enumerate(rows):
            kept = np.array(self._reference[start + number])
            expected = torch.from_numpy(kept).to(row.device)  # [V]
            row = row[: expected.shape[0]]
            self._divergence += float((expected.exp() * (expected - row)).sum())
            self._agreed += int(expected.argmax() == row.argmax())
        self._left -= len(rows)

    def finish(self) -> Divergence | None:
        if self._left:
            return None
        return Divergence(self._divergence / self._tokens, self._agreed / self._tokens)


def _run(engine: Engine, tokens: list[int], phase: Phase, read: _Read, prompt: int = 0) -> None:
    """Pass log-probabilities [S, V] of each piece of the text, and where it begins, to `read`.

    prompt: number of leading tokens that run as a prompt and are not read.
    """
    batch = MicroBatch(torch.tensor([tokens[:prompt]], dtype=torch.long))
    if prompt:
        engine.prefill([batch])
    size = 1 if phase == "decode" else scored_chunk(engine, len(tokens))
    for start in range(prompt, len(tokens), size):
        piece = tokens[start : start + size]
        last = phase == "prefill" and start + size >= len(tokens)
        padding = padded_length(len(piece)) - len(piece) if last else 0
        batch.tokens = torch.tensor([[*piece, *[piece[-1]] * padding]])
        batch.keep = len(piece) + padding

        def consume(
            _: int, logits: torch.Tensor, start: int = start, count: int = len(piece)
        ) -> None:
            read(start, torch.log_softmax(logits[0, :count].float(), dim=-1))  # [S, V]

        engine.forward([batch], phase, consume)
