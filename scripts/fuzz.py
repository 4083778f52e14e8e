"""Fuzz one target of tests/fuzz/ guided by coverage: `python scripts/fuzz.py TARGET [--seconds N]`.

In: a target's right inputs and its kept ones. Out: an input that fails is kept beside them as
`failed-*`, so that `make test` replays it from then on; give it a name that says what it is. Needs
atheris (`pip install atheris`); `make fuzz` does without and changes inputs by their structure
instead, which reaches what lies behind a parser sooner.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

INSTRUMENTED = ["engine", "tuner", "yaml"]
LONGEST_BYTES = 20_000


def fuzz(
    target: Annotated[str, typer.Argument(help="A name of tests/fuzz/table.py.")],
    seconds: Annotated[int, typer.Option(min=1, help="How long.")] = 60,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Fuzz one target guided by coverage."""
    if find_spec("atheris") is None:
        raise SystemExit("atheris is missing: pip install atheris, or run `make fuzz` without it")
    if folder is not None:
        _run(target, seconds, folder)
        return
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:  # libFuzzer ends its own process
        command = [sys.executable, __file__, target, "--seconds", str(seconds), "--folder", name]
        raise SystemExit(subprocess.run(command).returncode)


def _run(name: str, seconds: int, folder: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.oracle import arena
        from tests.fuzz.table import TARGETS
        from tests.fuzz.target import CORPUS
    if name not in TARGETS:
        raise SystemExit(f"there is no target '{name}' (there are: {', '.join(TARGETS)})")
    target = TARGETS[name]
    inputs, kept = folder / "inputs", CORPUS / name
    for made in (inputs, kept):
        made.mkdir(parents=True, exist_ok=True)
    for seed in (*target.seeds(), *(path.read_bytes() for path in target.corpus)):
        (inputs / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    with arena(folder / "arena") as place, target.open(place) as run:

        def once(data: bytes) -> None:
            target.hold(place, run, data)

        options = {
            "max_total_time": seconds,
            "max_len": LONGEST_BYTES,
            "rss_limit_mb": 8192,
            "print_final_stats": 1,
            "artifact_prefix": f"{kept}/failed-",
        }
        words = [f"-{key}={value}" for key, value in options.items()]
        atheris.Setup([sys.argv[0], *words, str(inputs)], once)
        atheris.Fuzz()


if __name__ == "__main__":
    typer.run(fuzz)
