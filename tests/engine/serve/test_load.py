"""Many clients for a minute: only 429 is refused, every stream ends, memory stays.

Half an hour of the same over `tune deploy`: tests/chaos/test_soak.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil
import pytest

from tests.engine.conftest import TEXT
from tests.engine.serve.load import Load, Seen
from tests.engine.serve.oracle import Answer, Question, ask
from tests.engine.serve.test_process import CONFIG, Service
from tests.engine.worker.test_worker import start

CLIENTS, SECONDS, SETTLED_S = 64, 60.0, 20.0
GROWTH_BYTES = 30_000_000
QUESTIONS = [Question(TEXT[n : 40 + 7 * n], 4 + 3 * n, bool(n % 2)) for n in range(12)]


async def all_clients(
    url: str, process: psutil.Process, answers: Mapping[Question, Answer]
) -> tuple[Seen, int, int]:
    """What was seen, and the server's resident bytes once settled and at the end."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        running = asyncio.create_task(Load(http, answers, longest=120).run(CLIENTS, SECONDS))
        await asyncio.sleep(SETTLED_S)
        settled = process.memory_info().rss
        return await running, settled, process.memory_info().rss


@pytest.mark.slow
@pytest.mark.alone
def test_64_clients_for_a_minute(tiny_folder: Path, tmp_path: Path) -> None:
    client = start(["engine.serve"], tmp_path)
    client.result("open", model=str(tiny_folder), device="cpu")
    client.result("configure", config={**CONFIG, "batch": {"count": 8}})
    service = Service(client, queue=24)
    with httpx.Client(base_url=service.url, timeout=60) as http:
        answers = {question: ask(http, question) for question in QUESTIONS}
    process = psutil.Process(client.process.pid)
    seen, settled, end = asyncio.run(all_clients(service.url, process, answers))
    totals = service.stop()
    client.hang_up()
    assert client.process.wait(timeout=30) == 0
    kinds = {"200", "429", "complete", "left", "refused"}
    assert set(seen.counts) <= kinds, seen.counts
    assert min(seen.counts[kind] for kind in kinds) > 0, seen.counts
    assert seen.wrong == []
    assert totals["failed"] == 0
    assert totals["finished"] >= seen.counts["200"] + seen.counts["complete"]
    assert end - settled < GROWTH_BYTES, (settled, end)
