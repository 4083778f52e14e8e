"""`tune service`: runs the REST service, and manages its bearer tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tuner.cli import options
from tuner.cli.extras import require_extra
from tuner.cli.output import print_json, print_note, print_table, print_text
from tuner.errors import UsageError
from tuner.folders import data_folder, default_storage
from tuner.service.settings import ServiceSettings
from tuner.service.tokens import make_token
from tuner.store.database import open_database, open_read_only
from tuner.store.service import Tokens, TokenSnapshot

app = typer.Typer(name="service")
token_app = typer.Typer(name="token", help="Bearer tokens of the service.", no_args_is_help=True)
app.add_typer(token_app)

TokenName = Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, such as `ci`.")]


@app.callback(invoke_without_command=True)
def service(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8700,
    storage: options.Storage = None,
    models_folder: Annotated[
        list[Path] | None,
        typer.Option(help="Model folders below this one may be named; may be repeated."),
    ] = None,
    require_token: Annotated[
        bool, typer.Option("--require-token", help="Also on loopback, where none is needed.")
    ] = False,
    rate: Annotated[
        float, typer.Option(min=0.1, help="Requests a second of one client, twice that at once.")
    ] = 50.0,
    as_json: options.Json = False,
) -> None:
    """Start studies, follow them and fetch their configs over HTTP; ends with Ctrl-C.

    With --json the one document appears once requests are accepted.

    Example: tune service --port 8700
    """
    if context.invoked_subcommand is not None:
        return
    require_extra("`tune service`", "serve")
    for folder in models_folder or []:
        if not folder.is_dir():
            raise UsageError(f"--models-folder: there is no folder {folder}")
    settings = ServiceSettings(
        storage=storage or default_storage(),
        folder=data_folder() / "service",
        host=host,
        models_folders=tuple(models_folder or ()),
        require_token=require_token,
        requests_per_s=rate,
    )
    _serve(settings, port, as_json)


@token_app.command()
def add(name: TokenName, storage: options.Storage = None, as_json: options.Json = False) -> None:
    """Make a token; it is shown only this once.

    Example: tune service token add ci
    """
    with _tokens(storage) as tokens:
        token = make_token(tokens, name)
    if as_json:
        print_json({"name": name, "token": token})
        return
    print_text(token)
    print_note("keep it now: only its hash is stored")


@token_app.command("list")
def list_tokens(storage: options.Storage = None, as_json: options.Json = False) -> None:
    """List the tokens, without their secrets.

    Example: tune service token list
    """
    with contextlib.closing(open_read_only(storage or default_storage())) as database:
        found = Tokens(database).all()
    if as_json:
        print_json({"tokens": [_document(token) for token in found]})
        return
    rows = [
        [
            t.id,
            t.name,
            f"{t.created:%Y-%m-%d %H:%M}",
            f"{t.revoked:%Y-%m-%d %H:%M}" if t.revoked else "",
        ]
        for t in found
    ]
    print_table("", ["#id", "name", "made (UTC)", "revoked (UTC)"], rows)


@token_app.command()
def revoke(name: TokenName, storage: options.Storage = None, as_json: options.Json = False) -> None:
    """Revoke a token: it is refused from now on.

    Example: tune service token revoke ci
    """
    with _tokens(storage) as tokens:
        token = tokens.revoke(name)
    if as_json:
        print_json(_document(token))
        return
    print_text(f"token '{name}' is refused from now on")


def _serve(settings: ServiceSettings, port: int, as_json: bool) -> None:
    # Here, so that every other command starts without a web framework.
    from tuner.cli.port import listen
    from tuner.service.app import build_app
    from tuner.service.serve import Server, address
    from tuner.service.service import open_service

    with listen(settings.host, port) as listening, open_service(settings) as opened:
        where = address(listening)
        print_note(f"{where} (OpenAPI at {where}/docs; end it with Ctrl-C)")
        if settings.needs_token and all(token.revoked for token in opened.tokens.all()):
            print_note("there is no token yet: make one with `tune service token add NAME`")
        server = Server(build_app(opened), opened.closing)
        if as_json:
            print_json({"url": where, "openapi": f"{where}/openapi.json"})
        server.run([listening])
    if server.interrupted:
        raise typer.Exit(130)


@contextlib.contextmanager
def _tokens(storage: str | None) -> Iterator[Tokens]:
    with contextlib.closing(open_database(storage or default_storage())) as database:
        yield Tokens(database)


def _document(token: TokenSnapshot) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "created": token.created.isoformat(),
        "revoked": token.revoked.isoformat() if token.revoked else None,
    }
