"""Connections on which half of a request arrives."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from engine.inputs.patient_http import PatientProtocol

ARRIVAL_S = 0.4


class Impatient(PatientProtocol):
    arrival_s = ARRIVAL_S


async def slow_app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, works longer than a request may take to arrive, answers."""
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(2 * ARRIVAL_S)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    settings = uvicorn.Config(slow_app, http=Impatient, log_config=None, lifespan="off")
    server = uvicorn.Server(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=30)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n", b"POST / HTTP/1.1\r\nHost: a\r\n"
     b"Content-Length: 9\r\n\r\nhalf"],
    ids=["nothing", "half a line", "half the headers", "half a body"],
)  # fmt: skip
def test_half_a_request_is_not_waited_for(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        began = time.monotonic()
        client.sendall(sent)
        while client.recv(1000):
            pass
        assert time.monotonic() - began > ARRIVAL_S / 2


def test_bytes_that_trickle_in_do_not_help(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(400):
            try:
                client.sendall(b"X-A: b\r\n")
            except OSError:
                return
            time.sleep(0.05)
    pytest.fail("it was waited for")


def test_a_whole_request_is_answered_however_long_that_takes_and_so_is_the_next(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        for _ in range(2):
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
            client.sendall(b"\r\n")
            answer = b""
            while not answer.endswith(b"ok"):
                answer += client.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200")
