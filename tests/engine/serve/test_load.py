"""Many clients for a minute: only 429 is refused, every stream ends, memory stays."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from tests.engine.serve.test_process import CONFIG, Service
from tests.engine.worker.test_worker import start

CLIENTS, SECONDS, SETTLED_S = 64, 60.0, 20.0
GROWTH_BYTES = 30_000_000


async def one_client(http: httpx.AsyncClient, number: int, until_s: float) -> Counter[str]:
    """Ask again and again, in every way; every fourth stream is left early."""
    rng, seen = random.Random(number), Counter[str]()
    clock = asyncio.get_running_loop().time
    while clock() < until_s:
        body = {
            "model": "tiny",
            "max_tokens": rng.randint(1, 40),
            "temperature": rng.choice([0, 1]),
            "stream": rng.random() < 0.7,
        }
        prompt = "The engine reads experts. " * rng.randint(1, 4)
        chat = rng.random() < 0.5
        body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        route = "/v1/chat/completions" if chat else "/v1/completions"
        async with http.stream("POST", route, json=body) as answer:
            if answer.status_code != 200 or not body["stream"]:
                await answer.aread()
                seen[str(answer.status_code)] += 1
            else:
                seen[await read_stream(answer, leave=rng.random() < 0.25)] += 1
        if answer.status_code == 429:
            await asyncio.sleep(rng.uniform(0.2, 0.6))
    return seen


async def read_stream(answer: httpx.Response, *, leave: bool) -> str:
    last = ""
    async for line in answer.aiter_lines():
        if leave and line:
            return "left"
        last = line or last
    return "complete" if last == "data: [DONE]" else f"torn: {last[:200]}"


async def all_clients(url: str, process: psutil.Process) -> tuple[Counter[str], int, int]:
    """What was seen, and the server's resident bytes once settled and at the end."""
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        until_s = asyncio.get_running_loop().time() + SECONDS
        asking = [asyncio.create_task(one_client(http, n, until_s)) for n in range(CLIENTS)]
        await asyncio.sleep(SETTLED_S)
        settled = process.memory_info().rss
        seen = sum(await asyncio.gather(*asking), Counter[str]())
        return seen, settled, process.memory_info().rss


@pytest.mark.slow
@pytest.mark.alone
def test_64_clients_for_a_minute(tiny_folder: Path, tmp_path: Path) -> None:
    client = start(["engine.serve"], tmp_path)
    client.result("open", model=str(tiny_folder), device="cpu")
    client.result("configure", config={**CONFIG, "batch": {"count": 8}})
    service = Service(client, queue=24)
    process = psutil.Process(client.process.pid)
    seen, settled, end = asyncio.run(all_clients(service.url, process))
    totals = service.stop()
    client.hang_up()
    assert client.process.wait(timeout=30) == 0
    assert set(seen) <= {"200", "429", "complete", "left"}, seen
    assert min(seen[kind] for kind in ("200", "429", "complete", "left")) > 0, seen
    assert totals["failed"] == 0
    assert totals["finished"] >= seen["200"] + seen["complete"]
    assert end - settled < GROWTH_BYTES, (settled, end)
