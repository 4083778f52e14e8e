"""Both servers as their commands run them, on loopback; models made of links."""

from __future__ import annotations

import asyncio
import copy
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from transformers import AutoTokenizer

from engine.device.cpu import CpuDevice
from engine.run.engine import Engine
from engine.serve.openai.routes import Serving, create_app
from engine.serve.openai.tokenization import PromptReader, ServedModel
from engine.serve.server import ServeOptions, http_settings
from tests.engine.conftest import make_tiny
from tests.engine.serve.made import MODEL, ROOM, configure, looping
from tests.tuner.service.made import MadeChild
from tuner.service.app import build_app
from tuner.service.serve import Server
from tuner.service.service import Service, open_service
from tuner.service.settings import ServiceSettings

SERVERS = ("deploy", "service")


@dataclass(frozen=True)
class Listening:
    """A server that answers. done: what requests made it do so far."""

    name: str
    port: int
    done: Callable[[], Any] = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(server: uvicorn.Server) -> Iterator[int]:
    """Its port, for one block."""
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder; read it, do not write."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def deployed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """The OpenAI-compatible server without a key."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    engine = Engine(tiny, CpuDevice(), tmp_path_factory.mktemp("cache"))
    configure(engine)
    options = ServeOptions(MODEL, cors_origins=["http://page.example"])
    with looping(engine, tokenizer) as (loop, meters, failures):
        served = ServedModel(MODEL, ROOM, engine.facts.vocabulary, 1)
        reader = PromptReader(served, copy.deepcopy(tokenizer))
        app = create_app(
            Serving(served, reader, loop, meters, local_only=True, origins=options.cors_origins)
        )
        with running(uvicorn.Server(http_settings(app, options))) as port:
            yield Listening("deploy", port, lambda: meters.totals.finished)
        assert failures == []
    engine.close()


@pytest.fixture(scope="session")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """The REST service without tokens; its studies run nothing."""
    folder = tmp_path_factory.mktemp("service")
    settings = ServiceSettings(
        storage=f"sqlite:///{folder / 'own.db'}", folder=folder, requests_per_s=1e6, grace_s=5.0
    )
    with open_service(settings, lambda *_: MadeChild()) as service, running(made(service)) as port:
        yield Listening("service", port, lambda: len(service.jobs.latest()))


def made(service: Service) -> Server:
    return Server(build_app(service), service.closing)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Listening:
    """Either server."""
    name = {"deploy": "deployed", "service": "rest"}[request.param]
    found: Listening = request.getfixturevalue(name)
    return found
