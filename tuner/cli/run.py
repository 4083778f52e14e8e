"""`tune run`: generates text with a deployment file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli import options
from tuner.cli.counts import MOST_COUNT
from tuner.cli.output import print_json, print_made, print_note
from tuner.deployment.document import Deployment, load_deployment
from tuner.engine_client.process import Event
from tuner.engine_client.session import EngineSession
from tuner.errors import DeploymentError
from tuner.folders import resolve_model

MOST_SEED = 2**63 - 1  # of torch


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A deployment YAML.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to continue or answer.")],
    chat: Annotated[
        bool | None, typer.Option("--chat/--raw", help="Default: as the file was measured.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=MOST_COUNT)] = 128,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="0: the likeliest token. Default: the checkpoint's own, or 0.7."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Default: the checkpoint's own, or 0.95."),
    ] = None,
    seed: Annotated[int, typer.Option(min=-MOST_SEED, max=MOST_SEED)] = 0,
    model: options.Model = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Generate text with an exported config, streaming it.

    Example: tune run expertune-demo.yaml --prompt 'Once upon a time'
    """
    deployment = load_deployment(file)
    with open_deployed(file, deployment, model, trust_remote_code) as session:
        session.configure(deployment.config())
        result = session.request(
            "generate",
            on_event=None if as_json else _print_token,
            prompt=prompt,
            chat=deployment.workload.chat if chat is None else chat,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
    if as_json:
        print_json(result)
        return
    sys.stdout.write("\n")
    rate = result.get("metrics", {}).get("output_tps")
    count = len(result.get("tokens", ()))
    print_note(f"{count} tokens" + (f", {rate:.1f} tokens/s" if rate else ""))


@contextlib.contextmanager
def open_deployed(
    file: Path,
    deployment: Deployment,
    model: str | None,
    trust_remote_code: bool,
    command: tuple[str, ...] | None = None,
) -> Iterator[EngineSession]:
    """Opens a session on a deployment's model at its revision, or on `model` in its place.

    command: the engine's program, None for the default. Raises DeploymentError if `model` is a
    different model.
    """
    source = resolve_model(model or deployment.model.id)
    pinned = None if model else deployment.model.revision
    device = deployment.config().device.name
    with options.open_session(
        source, device, trust_remote_code, command=command, revision=pinned
    ) as session:
        found = session.facts.fingerprint
        if found != deployment.model.fingerprint:
            raise DeploymentError(
                f"{file} was measured on a model with fingerprint {deployment.model.fingerprint}, "
                f"{source} has {found}: name the right one with --model, or tune this one"
            )
        yield session


def _print_token(event: Event) -> None:
    if event.get("event") == "token":
        print_made(str(event.get("text", "")), end="")
        sys.stdout.flush()
