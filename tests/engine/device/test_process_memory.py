"""Memory readings on kernels whose /proc lacks fields (gVisor)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.device import process_memory


@pytest.mark.parametrize("text", ["", "Name:\tpython\nVmSize:\t 100 kB\n", "VmHWM:\n", None])
def test_without_its_fields_memory_is_read_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "status").write_text(text)
    known = process_memory.resident_bytes()
    monkeypatch.setattr(process_memory, "_STATUS", tmp_path / "status")
    assert process_memory.resident_bytes() == pytest.approx(known, rel=0.2)
    assert process_memory.peak_resident_bytes() >= process_memory.resident_bytes()
    assert process_memory.peak_source() == "ru_maxrss"
    assert not process_memory.reset_peak()


def test_the_peak_sees_memory_that_was_given_back() -> None:
    process_memory.reset_peak()
    before = process_memory.resident_bytes()
    np.ones(60_000_000, dtype=np.uint8).sum()
    assert process_memory.peak_resident_bytes() >= before + 50_000_000
