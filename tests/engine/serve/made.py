"""A server in this process: the real engine and HTTP, on loopback."""

from __future__ import annotations

import asyncio
import copy
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import uvicorn

from engine.config.settings import EngineConfig
from engine.run.engine import Engine
from engine.run.sampling import SamplingOptions
from engine.serve.batching.metrics import Meters
from engine.serve.batching.response_cache import ResponseCache
from engine.serve.batching.scheduler import EngineLoop
from engine.serve.batching.sequence import SequenceRequest, StepOutput
from engine.serve.openai.routes import Serving, create_app
from engine.serve.openai.tokenization import PromptReader, ServedModel
from engine.serve.server import ServeOptions, http_settings

MODEL = "tiny"
ROOM = 256


@dataclass
class Running:
    """A server that answers. client: OpenAI's own; it does not retry."""

    url: str
    engine: Engine
    loop: EngineLoop
    meters: Meters
    failures: list[str]

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="sk-secret-key", max_retries=0)


def configure(engine: Engine, **settings: Any) -> None:
    """Room for ROOM tokens in float32, three micro-batches."""
    paths = {"compute.dtype": "float32", "kv.max_tokens": ROOM, "batch.count": 3, **settings}
    engine.configure(EngineConfig().overlay(paths))


@contextmanager
def looping(
    engine: Engine, tokenizer: Any, queue: int = 8, answers: ResponseCache | None = None
) -> Iterator[tuple[EngineLoop, Meters, list[str]]]:
    """The engine's thread alone."""
    meters = Meters(engine.facts.moe_layers, engine.facts.experts, MODEL)
    failures: list[str] = []
    loop = EngineLoop(
        engine,
        tokenizer,
        queue=queue,
        meters=meters,
        on_failure=failures.append,
        answers=answers,
    )
    meters.watch(loop.gauges())
    loop.start()
    try:
        yield loop, meters, failures
    finally:
        loop.close()


@contextmanager
def serving(engine: Engine, tokenizer: Any, queue: int = 8) -> Iterator[Running]:
    """A server on any free port."""
    with looping(engine, tokenizer, queue) as (loop, meters, failures):
        assert engine.config is not None
        served = ServedModel(MODEL, engine.config.kv.max_tokens, engine.facts.vocabulary, 1)
        reader = PromptReader(served, copy.deepcopy(tokenizer))
        app = create_app(Serving(served, reader, loop, meters))
        server = uvicorn.Server(http_settings(app, ServeOptions(MODEL)))
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{port}", engine, loop, meters, failures)
        finally:
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive()


class Heard:
    """What the engine delivered of one sequence."""

    def __init__(self) -> None:
        self.outputs: list[StepOutput] = []
        self._ended = threading.Event()

    def __call__(self, output: StepOutput) -> None:
        self.outputs.append(output)
        if output.last:
            self._ended.set()

    def wait(self) -> StepOutput:
        """The last output."""
        assert self._ended.wait(60), "nothing came"
        return self.outputs[-1]

    @property
    def text(self) -> str:
        self.wait()
        return "".join(one.text for one in self.outputs)


def want(prompt: list[int], max_tokens: int = 8, **fields: Any) -> SequenceRequest:
    """Greedy, unless sampling is given."""
    fields.setdefault("sampling", SamplingOptions())
    return SequenceRequest(tuple(prompt), max_tokens, **fields)


def eventually(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.01)
