"""`tune deploy`: serves a deployment file over HTTP."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.facts.machine import probe
from engine.inputs.host_name import is_loopback
from tuner.cli import options
from tuner.cli.output import print_json, print_note, print_text
from tuner.cli.port import check_free
from tuner.cli.run import open_deployed
from tuner.deployment.canary import Canary
from tuner.deployment.document import load_deployment
from tuner.deployment.serve import (
    Policy,
    ServerOptions,
    check_origins,
    choose,
    read_api_key,
    serve,
)
from tuner.engine_client.session import EngineSession
from tuner.errors import UsageError
from tuner.folders import cache_folder


def deploy(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A deployment YAML.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes any that is free.")
    ] = 8000,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a config that is slower here than its file.")
    ] = False,
    walk: Annotated[
        bool, typer.Option("--walk", help="Take a neighbour on the front that holds instead.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="What clients call the model; default: its id.")
    ] = None,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Sequences that may wait; beyond them 429.")
    ] = 64,
    drain: Annotated[
        str, typer.Option("--drain", help="What requests may take at the end: 60, 5m, 1h.")
    ] = "60",
    telemetry: Annotated[
        str, typer.Option("--telemetry", help="Time between two records, 1s to 5m.")
    ] = "60",
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="URL",
            help="Origin of pages that may use this server from a browser, such as "
            "http://localhost:3000; may be repeated; '*': any page. None by default.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            help="A file with the key that requests have to send; or set EXPERTUNE_API_KEY.",
        ),
    ] = None,
    model: options.Model = None,
    storage: options.Storage = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Serve an exported config as an OpenAI-compatible server, after a canary of at most a minute.

    SIGTERM and Ctrl-C drain: no new requests are accepted, running ones finish; a further Ctrl-C
    ends the server at once.

    Example: tune deploy expertune-demo.yaml --port 8000
    """
    policy, command = _policy(strict, walk), options.serve_command()
    drain_s = math.ceil(options.read_duration_between("--drain", drain))
    telemetry_s = options.read_duration_between("--telemetry", telemetry, 1, 300)
    origins = check_origins(cors_origin or ())
    key_digest = read_api_key(api_key_file, os.environ)
    deployment = load_deployment(file)
    check_free(host, port)  # before a canary of a minute
    machine = probe(cache_folder())
    if deployment.machine.get("fingerprint") not in (None, machine.fingerprint):
        print_note(f"{file} was measured on another machine: {deployment.machine.get('cpu', '?')}")
    if not key_digest and not is_loopback(host):
        print_note(f"anyone who reaches {host} can use this server: give it an --api-key-file")
    served = ServerOptions(
        name or deployment.model.id, host, port, queue, drain_s, telemetry_s, origins, key_digest
    )
    with (
        options.open_store(storage) as store,
        open_deployed(file, deployment, model, trust_remote_code, command) as session,
    ):
        canary = choose(session, deployment, policy, print_note)

        def ready(host: str, port: int) -> None:
            _say_ready(served.name, host, port, canary, as_json)

        with draining(session) as stop:
            totals = serve(session, deployment, canary, served, store=store, on_ready=ready)
    print_note(f"{totals['finished']} finished, {totals['output_tokens']} tokens")
    if stop.signal == signal.SIGINT:
        raise KeyboardInterrupt


@dataclass
class Stop:
    """The signal that requested the stop; None if there was none."""

    signal: int | None = None


@contextmanager
def draining(session: EngineSession) -> Iterator[Stop]:
    """During the block, the first SIGTERM or SIGINT lets the server drain; a later SIGINT
    interrupts, a later SIGTERM does not, because supervisors send it to a group and to its
    leader."""
    stop = Stop()

    def ask(number: int, _: Any) -> None:
        if stop.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        stop.signal = number
        print_note("draining; Ctrl-C ends at once")
        session.interrupt()

    former = {one: signal.signal(one, ask) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)


def _policy(strict: bool, walk: bool) -> Policy:
    if strict and walk:
        raise UsageError("--strict refuses, --walk takes another: give one of them")
    return "strict" if strict else "walk" if walk else "warn"


def _say_ready(name: str, host: str, port: int, canary: Canary, as_json: bool) -> None:
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}/v1"
    if as_json:
        print_json(
            {"url": url, "host": host, "port": port, "model": name, "canary": canary.to_json()}
        )
    else:
        print_text(f"serving '{name}' (trial {canary.point.trial}) at {url}")
        sys.stdout.flush()  # a reader on a pipe waits for this line
