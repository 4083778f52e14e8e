"""Reads of experts that are short, slow, fail, or bring other bits: the right tokens, or an error.

The engine is the real one on the tiny model. After each fault the same process configures again
and gives the same tokens; no thread and no file handle is left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.errors import EngineError, PackError
from engine.run.engine import Engine
from tests.chaos.leftovers import Held, check_nothing_left
from tests.engine.test_parity import BASE, generate, make_prompts
from tests.fakes import faulty_reads
from tests.fakes.faulty_reads import FaultyReads, ending_at, failing_at

SETTINGS: dict[str, dict[str, Any]] = {
    "direct": {"io.direct": "auto", "prefetch.predictor": "next_gate", "prefetch.depth": 1},
    "buffered": {"io.direct": "off"},
    "packed": {"precision.bits": 8, "io.threads": 2},
}


def run(engine: Engine, setting: str) -> tuple[list[list[int]], list[torch.Tensor]]:
    engine.configure(
        EngineConfig().overlay({**BASE, "cache.expert_bytes": "20%"} | SETTINGS[setting])
    )
    return generate(engine, make_prompts(1))


def check_same(engine: Engine, setting: str, right: tuple[Any, Any]) -> None:
    tokens, logits = run(engine, setting)
    assert tokens == right[0]
    assert torch.equal(logits[0], right[1][0])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("answer", [faulty_reads.short, faulty_reads.slow])
def test_short_and_slow_reads_change_no_bit(
    engine: Engine, setting: str, answer: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run(engine, setting)
    with monkeypatch.context() as patched:
        reads = FaultyReads(patched, answer)
        check_same(engine, setting, right)
    assert reads.reads > 20


def strike(
    engine: Engine,
    setting: str,
    right: tuple[Any, Any],
    answer: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> bool:
    """Run with these reads; whether an error came. No error: the tokens are right."""
    engine.configure(
        EngineConfig().overlay({**BASE, "cache.expert_bytes": "20%"} | SETTINGS[setting])
    )
    with monkeypatch.context() as patched:
        FaultyReads(patched, answer)
        try:
            tokens, _ = generate(engine, make_prompts(1))
        except (EngineError, OSError):
            return True
    assert tokens == right[0]
    return False


def survive(engine: Engine, setting: str, numbers: range, monkeypatch: pytest.MonkeyPatch) -> int:
    right = run(engine, setting)
    engine.release()
    before, struck = Held.now(), 0
    for number in numbers:
        for answer in (failing_at(number, True), failing_at(number, False), ending_at(number)):
            struck += strike(engine, setting, right, answer, monkeypatch)
            engine.release()
            check_nothing_left(before)
        check_same(engine, setting, right)
        engine.release()
    return struck


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_failing_read_is_an_error_and_the_engine_goes_on(
    engine: Engine, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert survive(engine, setting, range(3, 40, 17), monkeypatch) >= 6


@pytest.mark.chaos
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_failing_read_is_an_error_and_the_engine_goes_on(
    engine: Engine, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(survive(engine, setting, range(1, 101), monkeypatch), "errors of 300 faults")


def flip(engine: Engine, record: int) -> None:
    """One bit of one record of the pack."""
    (file,) = engine.store.files
    size = engine.store.record.size_bytes
    data = bytearray(file.read_bytes())
    data[record * size + size // 3] ^= 4
    file.write_bytes(data)


def survive_flips(engine: Engine, records: range) -> int:
    right = run(engine, "packed")
    noticed = 0
    for record in records:
        flip(engine, record)
        with contextlib.suppress(PackError):
            check_same(engine, "packed", right)  # maybe nobody reads this expert
            continue
        noticed += 1
        check_same(engine, "packed", right)
    return noticed


def test_a_flipped_bit_in_a_pack_is_noticed_and_made_again(engine: Engine) -> None:
    assert survive_flips(engine, range(0, 24, 8)) >= 1


@pytest.mark.chaos
def test_a_flipped_bit_in_every_record_is_noticed_and_made_again(engine: Engine) -> None:
    print(survive_flips(engine, range(24)), "noticed of 24")
