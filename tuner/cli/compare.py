"""`tune compare`: compares two studies or exported configs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tuner.cli import options
from tuner.cli.output import print_json, print_table, print_text
from tuner.deployment.compare import Comparison, compare
from tuner.deployment.document import Deployment, load_deployment
from tuner.deployment.export import build_deployment
from tuner.errors import MissingStudyError
from tuner.pareto.probability import front_of
from tuner.store.repository import Store
from tuner.store.snapshots import StudySnapshot

SHOWN = ("output_tps", "tpot_ms", "ttft_ms", "prefill_tps", "decode_tps", "expert_hit_rate",
         "stall_ms_per_token", "disk_bytes_per_token", "quality")  # fmt: skip


def compare_two(
    first: Annotated[
        str,
        typer.Argument(metavar="A", help="A study, STUDY:PICK as in demo:3, or a deployment YAML."),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    pick: Annotated[
        str,
        typer.Option(help="Where A or B names none: knee, throughput, latency, quality, a trial."),
    ] = "knee",
    storage: options.Storage = None,
    as_json: options.Json = False,
) -> None:
    """Show which settings and which figures of two configs differ.

    Example: tune compare demo:0 demo:knee
    """
    sides = [_read(name, pick, storage) for name in (first, second)]
    found = compare(*sides)
    if as_json:
        print_json({"first": first, "second": second, **found.to_json()})
    else:
        _print(first, second, found)


def _read(name: str, pick: str, storage: str | None) -> Deployment:
    if name.endswith((".yaml", ".yml")):
        return load_deployment(Path(name))
    with options.open_store_read_only(storage) as store:
        study, own = _study(store, name)
        front = front_of(study, store.trials(study))
    return build_deployment(study, front, front.pick(own or pick))


def _study(store: Store, name: str) -> tuple[StudySnapshot, str]:
    """Finds the study of this name, which may hold colons; otherwise splits at the last colon into
    study and pick."""
    before, _, own = name.rpartition(":")
    try:
        return store.study(name), ""
    except MissingStudyError:
        if not before:
            raise
        return store.study(before), own


def _print(first: str, second: str, found: Comparison) -> None:
    rows: list[list[Any]] = [[path, *pair] for path, pair in found.settings.items()]
    if rows:
        print_table("settings that differ", ["", first, second], rows)
    else:
        print_text("every setting is the same")
    shown = [figure for figure in found.figures if figure.metric in SHOWN]
    shown.sort(key=lambda figure: SHOWN.index(figure.metric))
    table = []
    for figure in shown:
        ratio, words = "", ""
        if figure.ratio is not None:
            ratio = f"{figure.ratio.value:.3f} [{figure.ratio.low:.3f}, {figure.ratio.high:.3f}]"
            words = "differs" if figure.differs else "not told apart"
        table.append(
            [figure.metric, f"{figure.first.value:.4g}", f"{figure.second.value:.4g}", ratio, words]
        )
    print_table("figures", ["", f"#{first}", f"#{second}", "#second / first", ""], table)
    for note in found.notes:
        print_text(note)
