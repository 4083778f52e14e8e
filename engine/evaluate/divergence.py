"""How far a configuration's next-token distributions lie from the 16-bit model's.

Measured twice on the same fixed text: in decode mode, one token at a time with the kernels that
decoding uses, and in prefill mode, in chunks as prompts go. Where kv.keep_ratio is below 1 the
first half of the text is the prompt of decode mode, and only what is decoded behind it counts. The
16-bit model's log-probabilities of both are kept on disk, so that comparing holds one row, or one
chunk, of each.

Letters: T tokens of the text, S tokens of a piece, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.evaluate.scoring import scored_chunk
from engine.experts.kernels.gemm import padded_length
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.types import Phase

TOKENS = 128
_Read = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True)
class Divergence:
    """kld_mean: KL(reference || this), nats a token; top1_agreement: share of equal argmax."""

    kld_mean: float
    top1_agreement: float


def reference_path(engine: Engine, tokens: list[int], folder: Path, phase: Phase) -> Path:
    """Where the reference of this model, text and mode lies."""
    key = hashlib.sha256(repr((engine.facts.fingerprint, tokens)).encode()).hexdigest()[:24]
    suffix = "" if phase == "decode" else ".prefill"
    return folder / "references" / f"{key}{suffix}.npy"


def keep_reference(engine: Engine, tokens: list[int], folder: Path, phase: Phase) -> None:
    """Run the text and store float32 log-probabilities [T, V]."""
    path = reference_path(engine, tokens, folder, phase)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial.npy")
    _write_reference(engine, tokens, partial, phase)
    partial.replace(path)


def compare_with_reference(
    engine: Engine, tokens: list[int], folder: Path, phase: Phase
) -> Divergence | None:
    """Divergence of the present configuration, or None where no reference was kept."""
    path = reference_path(engine, tokens, folder, phase)
    if not path.is_file():
        return None
    reference = np.load(path, mmap_mode="r")
    merging = phase == "decode" and engine.live.config.kv.keep_ratio != 1
    prompt = len(tokens) // 2 if merging else 0
    divergence = 0.0
    agreed = 0

    def compare(start: int, rows: torch.Tensor) -> None:
        nonlocal divergence, agreed
        for number, row in enumerate(rows):
            expected = torch.from_numpy(np.array(reference[start + number])).to(row.device)  # [V]
            row = row[: expected.shape[0]]
            divergence += float((expected.exp() * (expected - row)).sum())
            agreed += int(expected.argmax() == row.argmax())

    _run(engine, tokens, phase, compare, prompt)
    counted = len(tokens) - prompt
    return Divergence(divergence / counted, agreed / counted)


def _write_reference(engine: Engine, tokens: list[int], file: Path, phase: Phase) -> None:
    kept = np.lib.format.open_memmap(
        file, mode="w+", dtype=np.float32, shape=(len(tokens), engine.facts.vocabulary)
    )

    def keep(start: int, rows: torch.Tensor) -> None:
        kept[start : start + len(rows)] = rows[:, : kept.shape[1]].cpu().numpy()

    _run(engine, tokens, phase, keep)
    kept.flush()


def _run(engine: Engine, tokens: list[int], phase: Phase, read: _Read, prompt: int = 0) -> None:
    """Hand log-probabilities [S, V] of each piece of the text, and where it begins, to `read`.

    prompt: so many tokens go ahead as prompts do, and are not read.
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
