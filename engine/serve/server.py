"""Serves until it is stopped (SIGTERM, SIGINT), then drains.

While draining it takes no new connections and finishes running and waiting requests. In: a
configured engine, the address to listen on. Out: `ready` and `telemetry` events, then the totals.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from engine.errors import EngineError
from engine.inputs.host_name import is_loopback
from engine.inputs.patient_http import PatientProtocol
from engine.run.engine import Engine
from engine.run.generate import SamplingDefaults
from engine.serve.batching.metrics import Meters
from engine.serve.batching.response_cache import ResponseCache, response_cache_path
from engine.serve.batching.scheduler import EngineLoop
from engine.serve.openai.middleware import let_browsers_in
from engine.serve.openai.routes import Serving, create_app
from engine.serve.openai.tokenization import PromptReader, ServedModel
from engine.serve.telemetry import Telemetry

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ServeOptions:
    """Options of a server.

    name: of the model, as clients call it; port 0: any free port; queue: maximum number of waiting
    sequences; telemetry_s: a window of telemetry; drain_s: time that requests in progress may take
    at the end before they are cut off; cors_origins: of pages that may read answers, "*": all;
    key_digest: SHA-256 of the API key, "": none.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    queue: int = 64
    telemetry_s: float = 60.0
    drain_s: int = 60
    cors_origins: Sequence[str] = ()
    key_digest: str = ""


def serve_http(engine: Engine, tokenizer: Any, options: ServeOptions, emit: Emit) -> dict[str, Any]:
    """Serve; returns the totals after draining.

    Raises EngineError if the address cannot be bound, or once the engine has failed for good.
    """
    assert engine.config is not None, "configure first"
    with _listening(options) as listener, _answers(engine) as answers:
        return asyncio.run(_serve(engine, tokenizer, options, listener, emit, answers))


async def _serve(
    engine: Engine,
    tokenizer: Any,
    options: ServeOptions,
    listener: socket.socket,
    emit: Emit,
    answers: ResponseCache | None,
) -> dict[str, Any]:
    meters = Meters(engine.facts.moe_layers, engine.facts.experts, options.name)
    loop = asyncio.get_running_loop()
    failed = asyncio.Event()

    def on_failure(_: str) -> None:
        loop.call_soon_threadsafe(failed.set)

    work = EngineLoop(
        engine,
        tokenizer,
        queue=options.queue,
        meters=meters,
        on_failure=on_failure,
        answers=answers,
    )
    assert engine.config is not None
    served = ServedModel(
        options.name, engine.config.kv.max_tokens, engine.facts.vocabulary, int(time.time())
    )
    meters.watch(work.gauges())
    # the engine's thread uses the other one
    reader = PromptReader(served, copy.deepcopy(tokenizer), SamplingDefaults.of(engine))
    app = create_app(
        Serving(
            served,
            reader,
            work,
            meters,
            local_only=is_loopback(options.host),
            key_digest=options.key_digest,
            origins=options.cors_origins,
        )
    )
    server = uvicorn.Server(http_settings(app, options))
    telemetry = Telemetry(work, meters)
    side = (
        asyncio.create_task(_report(telemetry, options.telemetry_s, emit)),
        asyncio.create_task(_stop_on(failed, server)),
    )
    with _stopping_on_signals(server):
        work.start()
        host, port = listener.getsockname()[:2]
        emit({"event": "ready", "host": host, "port": port})
        try:
            await server.serve(sockets=[listener])
        finally:
            for task in side:
                task.cancel()
            await asyncio.gather(*side, return_exceptions=True)
            work.close()
            emit({"event": "telemetry", **telemetry.window()})
    if work.failure is not None:
        raise EngineError(work.failure)
    return asdict(meters.totals)


def http_settings(app: FastAPI, options: ServeOptions) -> uvicorn.Config:
    """How HTTP is spoken: no longer than it takes, in one reading, to pages that are let in."""
    return uvicorn.Config(
        let_browsers_in(app, options.cors_origins),
        http=PatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=options.drain_s,
    )


async def _report(telemetry: Telemetry, every_s: float, emit: Emit) -> None:
    while True:
        await asyncio.sleep(every_s)
        emit({"event": "telemetry", **telemetry.window()})


async def _stop_on(failed: asyncio.Event, server: uvicorn.Server) -> None:
    await failed.wait()
    server.should_exit = True


@contextmanager
def _listening(options: ServeOptions) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as error:
        raise EngineError(
            f"cannot listen on {options.host}:{options.port} ({error.strerror}): give another "
            "--host or --port (0: any that is free)"
        ) from None
    with listener:
        yield listener


@contextmanager
def _answers(engine: Engine) -> Iterator[ResponseCache | None]:
    """The response cache, if the config enables it."""
    assert engine.config is not None
    capacity = engine.config.serve.response_cache_entries
    if not capacity:
        yield None
        return
    path = response_cache_path(engine.config, engine.facts, engine.cache_folder)
    with contextlib.closing(ResponseCache(path, capacity)) as answers:
        yield answers


@contextmanager
def _stopping_on_signals(server: uvicorn.Server) -> Iterator[None]:
    """SIGTERM and SIGINT start draining from here on. uvicorn handles them while it serves, and
    raises them again afterwards, when draining is done."""

    def stop(*_: object) -> None:
        server.should_exit = True

    former = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)
