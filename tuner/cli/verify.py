"""`tune verify`: checks whether a config still reproduces its file's figures on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.facts.machine import probe
from tuner.cli import options
from tuner.cli.output import print_json, print_note, print_table, print_text
from tuner.cli.run import open_deployed
from tuner.definition.study import Repeats
from tuner.deployment.document import load_deployment
from tuner.deployment.verdict import Outcome, Verification
from tuner.deployment.verify import verify
from tuner.errors import BusyMachineError
from tuner.folders import cache_folder

_WORDS: dict[Outcome, str] = {
    "holds": "as recorded",
    "faster": "faster than recorded, which is no fault",
    "slower": "slower than recorded: tune again on this machine",
    "over_budget": "more memory than its budget: tune again on this machine",
    "busy": "busy machine: this is no verdict on the config, run again when nothing else runs here",
}


def verify_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A deployment YAML.")],
    model: options.Model = None,
    repeats: Annotated[
        int | None, typer.Option(min=2, help="Most repeats (default 7, until it is steady).")
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Measure an exported config afresh and compare it with the figures in its file.

    Exits with 1 if it is slower, or takes more memory than its budget, and with 4 if it is slower
    while other programs use the machine. The file's figures are scaled by a fixed kernel and a
    fixed read that were timed beside both.

    Example: tune verify expertune-demo.yaml
    """
    deployment = load_deployment(file)
    machine = probe(cache_folder())
    rule = Repeats(min=min(3, repeats or 3), max=repeats or 7)
    if deployment.machine.get("fingerprint") not in (None, machine.fingerprint):
        print_note(f"{file} was measured on another machine: {deployment.machine.get('cpu', '?')}")
    with open_deployed(file, deployment, model, trust_remote_code) as session:
        found = verify(deployment, session, rule, print_note)
    if as_json:
        print_json({"file": str(file), **found.to_json()})
    else:
        _print(file, found)
    if not found.holds:
        raise typer.Exit(BusyMachineError.exit_code if found.outcome == "busy" else 1)


def _print(file: Path, found: Verification) -> None:
    rows = [
        [
            one.metric,
            f"{one.recorded.value:.4g}",
            f"{one.expected:.4g}",
            f"{one.low:.4g} to {one.high:.4g}",
            f"{one.found.value:.4g} [{one.found.low:.4g}, {one.found.high:.4g}]",
            one.rated,
        ]
        for one in found.verdicts
    ]
    columns = ["", "#recorded", "#expected here now", "#band", "#measured", "verdict"]
    print_table(str(file), columns, rows)
    print_text(
        f"sentinel: compute {found.recorded.compute_ms:.3g} ms then, {found.found.compute_ms:.3g} "
        f"now; read {found.recorded.read_ms:.3g} then, {found.found.read_ms:.3g} now"
    )
    print_text(f"load: {found.load.sentence}")
    if found.over_budget:
        print_text(found.over_budget)
    if found.outcome == "busy" and not found.load.busy:
        print_text("the repeats scatter too much for a verdict: run again")
    else:
        print_text(_WORDS[found.outcome])
