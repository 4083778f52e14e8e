"""How far a configuration's next-token distributions lie from the 16-bit model's.

Measured in decode mode: fixed text is fed one token at a time, with the kernels that decoding uses.
The 16-bit model's log-probabilities are kept on disk, so that comparing holds one row of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch

TOKENS = 128


@dataclass(frozen=True)
class Divergence:
    """kld_mean: KL(reference || this), nats a token; top1_agreement: share of equal argmax."""

    kld_mean: float
    top1_agreement: float


def reference_path(engine: Engine, tokens: list[int], folder: Path) -> Path:
    """Where the reference of this model and text lies."""
    key = hashlib.sha256(repr((engine.facts.fingerprint, tokens)).encode()).hexdigest()[:24]
    return folder / "references" / f"{key}.npy"


def keep_reference(engine: Engine, tokens: list[int], folder: Path) -> None:
    """Decode the text and store float32 log-probabilities [T, V]."""
    path = reference_path(engine, tokens, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    rows = np.lib.format.open_memmap(
        partial, mode="w+", dtype=np.float32, shape=(len(tokens), engine.facts.vocabulary)
    )
    for number, row in enumerate(_decode_rows(engine, tokens)):
        rows[number] = row[: rows.shape[1]].cpu().numpy()
    rows.flush()
    del rows
    partial.replace(path)


def compare_with_reference(engine: Engine, tokens: list[int], folder: Path) -> Divergence | None:
    """Divergence of the present configuration, or None where no reference was kept."""
    path = reference_path(engine, tokens, folder)
    if not path.is_file():
        return None
    reference = np.load(path, mmap_mode="r")
    divergence = 0.0
    agreed = 0
    for number, row in enumerate(_decode_rows(engine, tokens)):
        expected = torch.from_numpy(np.array(reference[number])).to(row.device)
        row = row[: expected.shape[0]]
        divergence += float((expected.exp() * (expected - row)).sum())
        agreed += int(expected.argmax() == row.argmax())
    return Divergence(divergence / len(tokens), agreed / len(tokens))


def _decode_rows(engine: Engine, tokens: list[int]) -> Iterator[torch.Tensor]:
    batch = MicroBatch(torch.tensor([[tokens[0]]]))
    for token in tokens:
        batch.tokens = torch.tensor([[token]])
        logits = engine.forward([batch], "decode")[0]
        yield torch.log_softmax(logits[0, -1].float(), dim=-1)
