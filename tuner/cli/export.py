"""`tune export`: writes a deployable config from a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli import options
from tuner.cli.output import print_json, print_made, print_text
from tuner.deployment.export import (
    build_deployment,
    check_format,
    render_deployment,
    write_atomically,
)
from tuner.deployment.formats.registry import FORMATS
from tuner.errors import StoreError
from tuner.pareto.probability import front_of


def export(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="Its name, see `tune studies`.")],
    pick: Annotated[
        str, typer.Option(help="knee, throughput, latency, quality or a trial's number.")
    ] = "knee",
    file_format: Annotated[
        str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")
    ] = "yaml",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; without it stdout.")
    ] = None,
    storage: options.Storage = None,
    as_json: options.Json = False,
) -> None:
    """Write the config of a trial: as a deployment YAML, or for another program.

    Only the YAML holds the complete config; the other formats list in comments what they omit.

    Example: tune export demo --pick throughput -o fast.yaml
    """
    check_format(file_format)
    with options.open_store_read_only(storage) as store:
        study = store.study(name)
        front = front_of(study, store.trials(study))
    trial = front.pick(pick)
    deployment = build_deployment(study, front, trial)
    text = render_deployment(file_format, deployment, study)
    if output is not None:
        write_atomically(output, text)
        _remember(storage, study.id, trial.id, pick, output, text)
    if as_json:
        document = deployment.model_dump(mode="json", by_alias=True)
        print_json(
            {
                "study": name,
                "trial": trial.number,
                "path": str(output) if output else None,
                "format": file_format,
                "text": text,
                "deployment": document,
            }
        )
    elif output is None:
        print_made(text.rstrip("\n"))
    else:
        print_text(f"trial {trial.number} of {name} written to {output}")


def _remember(
    storage: str | None, study_id: int, trial_id: int, pick: str, path: Path, text: str
) -> None:
    """Records the export; an unwritable store does not stop it."""
    try:
        with options.open_store(storage) as store:
            store.add_export(study_id, trial_id, pick, str(path.resolve()), text)
    except StoreError:
        return
