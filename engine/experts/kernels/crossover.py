"""Stores up to how many tokens this machine's packed kernels are faster, beside their
self-tests."""

from __future__ import annotations

import json
from pathlib import Path

from engine.experts.kernels.multiplier import CROSSOVER_TOKENS
from engine.experts.kernels.probe import layout_key
from engine.files import write_atomically


def keep_crossover(folder: Path, tokens: int) -> None:
    """Store the measured crossover of this machine's packed kernels."""
    write_atomically(_path(folder), json.dumps({"tokens": tokens}))


def known_crossover(folder: Path) -> int:
    """The crossover measured on this machine, else CROSSOVER_TOKENS."""
    path = _path(folder)
    return (
        int(json.loads(path.read_text(encoding="utf-8"))["tokens"])
        if path.is_file()
        else CROSSOVER_TOKENS
    )


def _path(folder: Path) -> Path:
    return folder / "kernels" / f"crossover-{layout_key('torch_int4')}.json"
