"""`tune deploy` under mixed load on a twin of the demo's model: nothing wrong, nothing grows.

`make soak` runs half an hour (EXPERTUNE_SOAK_S), the slow tests half a minute. Right answers come
of a second server over the same weights that has one place and no prefix cache, and is asked one
question after the other. Memory is the proportional set size (PSS) of the command and all its
processes, every second: the median of the last tenth of the time against that of a tenth that
begins when a quarter of it has passed.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from scripts.widen_model import Factors, widen
from tests.engine.serve.load import Load, Seen
from tests.engine.serve.oracle import Answer, Question, ask
from tests.tuner.deployment.test_serve_real import deployed, home, stop, write_deployment

__all__ = ["home"]
SECONDS = float(os.environ.get("EXPERTUNE_SOAK_S", "30"))
CLIENTS = 24
DEMO = Path(__file__).resolve().parents[2] / "studies" / "demo"
SERIAL: dict[str, Any] = {
    "device.name": "cpu", "compute.dtype": "float32", "precision.bits": 8, "kv.max_tokens": 512,
    "cache.expert_bytes": "50%", "budget.vram_bytes": 1_000_000_000,
}  # fmt: skip
SHARED = {"batch.count": 8, "serve.prefix_cache_tokens": 1024, "kv.elastic": True}
LONGEST_TOKENS = 200
FREED_S = 1.0
GROWTH = 0.01 if SECONDS >= 600 else 0.05  # a server of half a minute is still warming up

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(SECONDS + 600)]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twin") / "model"
    widen(DEMO / "model", folder, Factors(hidden=2, expert=4))
    return folder


def questions() -> list[Question]:
    """Short and long prompts, by both routes; two thirds begin alike."""
    lines = (DEMO / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [str(json.loads(line)["prompt"]) for line in lines[:24]]
    alike = ["", prompts[0][:500], prompts[1][:300]]
    return [
        Question(alike[n % 3] + prompt[: 40 + 25 * n], 4 + 2 * n, bool(n % 2))
        for n, prompt in enumerate(prompts)
    ]


def tree_bytes(command: psutil.Process) -> int:
    """PSS of a process and all its children: what is shared is counted once."""
    family = (command, *command.children(recursive=True))
    return sum(one.memory_full_info().pss for one in family)


async def watch_memory(command: psutil.Process, found: list[int]) -> None:
    while True:
        found.append(await asyncio.to_thread(tree_bytes, command))
        await asyncio.sleep(1)


async def under_load(
    url: str, command: psutil.Process, answers: Mapping[Question, Answer]
) -> tuple[Seen, list[int], dict[str, Any]]:
    """What the clients saw, memory second by second, and the state once all have gone."""
    limits = httpx.Limits(max_connections=None)
    memory: list[int] = []
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        watching = asyncio.create_task(watch_memory(command, memory))
        seen = await Load(http, answers, LONGEST_TOKENS).run(CLIENTS, SECONDS)
        watching.cancel()
        return seen, memory, (await http.get("/health")).json()


def growth_of(memory: list[int]) -> float:
    """The fraction by which the last tenth exceeds a tenth behind the warm-up."""
    tenth, settled = max(1, len(memory) // 10), len(memory) // 4
    before = statistics.median(memory[settled : settled + tenth])
    return float(statistics.median(memory[-tenth:]) / before - 1)


def eighths(memory: list[int]) -> str:
    places = (n * (len(memory) - 1) // 8 for n in range(9))
    return ", ".join(f"{memory[place] / 1e6:.0f}" for place in places)


def percentiles(name: str, seconds: list[float]) -> str:
    p50, p99, most = (1000 * float(np.percentile(seconds, q)) for q in (50, 99, 100))
    return f"{name} p50 {p50:.0f} ms, p99 {p99:.0f} ms, max {most:.0f} ms ({len(seconds)})"


def report(seen: Seen, memory: list[int]) -> str:
    """One line of figures."""
    return "; ".join(
        (
            f"{SECONDS:.0f} s, {CLIENTS} clients, {dict(sorted(seen.counts.items()))}",
            f"{seen.compared} compared, {len(seen.wrong)} wrong, {seen.near_ties} near-ties",
            percentiles("first token", seen.first_s),
            percentiles("per token", seen.gap_s),
            percentiles("freed", seen.freed_s),
            f"memory {100 * growth_of(memory):+.2f} %, MB at each eighth: {eighths(memory)}",
        )
    )


def test_mixed_load_answers_rightly_and_grows_by_nothing(home: Path, twin: Path) -> None:
    serial = write_deployment(home / "serial.yaml", twin, SERIAL)
    with deployed(serial, "--port", "0") as (process, said):
        root = said["url"].removesuffix("/v1")
        with httpx.Client(base_url=root, timeout=120) as http:
            answers = {question: ask(http, question) for question in questions()}
        assert stop(process)[0] == 0
    shared = write_deployment(home / "shared.yaml", twin, SERIAL | SHARED)
    with deployed(shared, "--port", "0", "--queue", "16") as (process, said):
        root = said["url"].removesuffix("/v1")
        command = psutil.Process(process.pid)
        seen, memory, health = asyncio.run(under_load(root, command, answers))
        code, notes = stop(process)
    print("soak:", report(seen, memory))
    kinds = {"200", "429", "complete", "left", "refused"}
    assert set(seen.counts) == kinds, seen.counts
    assert seen.wrong == []
    assert health == {"status": "ok", "running": 0, "waiting": 0}
    # a place is free once the step that runs has ended, which takes longer beside other programs
    assert np.percentile(seen.freed_s, 99) < FREED_S
    assert max(seen.freed_s) < max(FREED_S, *seen.gap_s)
    assert growth_of(memory) < GROWTH, memory
    assert (code, "Traceback" in notes) == (0, False), notes
