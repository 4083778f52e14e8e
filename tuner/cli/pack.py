"""`tune pack`: makes expert packs ahead of time, lists and removes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from engine.types import format_bytes
from tuner.cli import options
from tuner.cli.output import print_json, print_note, print_table
from tuner.definition.text import split_words
from tuner.engine_client.packs import PackFolder, list_packs, remove_packs
from tuner.folders import cache_folder


def pack(
    model: options.Model = None,
    bits: Annotated[str, typer.Option(help="Precisions by commas: 16, 8, 4, 3, 2.")] = "4",
    group_size: Annotated[int, typer.Option(help="Quantization group.")] = 64,
    list_them: Annotated[bool, typer.Option("--list", help="List the packs here.")] = False,
    remove: Annotated[
        str | None, typer.Option(metavar="NAME", help="Remove a pack by its name, or `all`.")
    ] = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Make the expert packs of a model ahead of time (a study makes what it needs).

    Example: tune pack --model demo --bits 8,4
    """
    if remove is not None:
        _print_folders("Removed", remove_packs(cache_folder(), remove), "removed", as_json)
    elif list_them:
        _print_folders("Expert packs", list_packs(cache_folder()), "packs", as_json)
    else:
        source, wanted = options.require_model(model), _read_precisions(bits)
        with options.open_session(source, device, trust_remote_code) as session:
            made = []
            for width in wanted:
                print_note(f"packing {width} bits")
                result = session.request("pack", bits=width, group_size=group_size)
                made.append({"bits": width, **result})
        _print_made(made, as_json)


def _read_precisions(text: str) -> list[int | str]:
    """Parses numbers of bits, and `prequantized` for a pre-quantized checkpoint's own codes."""
    words = split_words(text) or [text]
    return [w if w == "prequantized" else options.read_bits(w)[0] for w in words]


def _print_made(packs: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"packs": packs})
        return
    rows = [
        [made["bits"], made.get("records"), format_bytes(made.get("bytes", 0)), made["path"]]
        for made in packs
    ]
    print_table("Expert packs", ["#bits", "#records", "#size", "where"], rows)


def _print_folders(title: str, packs: Sequence[PackFolder], key: str, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "name": found.name,
                "path": str(found.path),
                "bytes": found.size_bytes,
                "complete": found.complete,
            }
            for found in packs
        ]
        print_json({key: rows})
        return
    table = [
        [found.name, format_bytes(found.size_bytes), "yes" if found.complete else "no"]
        for found in packs
    ]
    print_table(title, ["pack", "#size", "complete"], table)
