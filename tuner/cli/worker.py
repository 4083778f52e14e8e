"""`tune worker`: adds a worker to a running study."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.facts.machine import probe
from tuner.cli import options
from tuner.cli.output import print_note, print_text
from tuner.definition.study import StudyDefinition
from tuner.folders import cache_folder, resolve_model
from tuner.formatting import format_count
from tuner.study.displays import choose_display
from tuner.study.progress import StudyProgress
from tuner.study.run import join_study


def join(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A study that runs now.")],
    storage: options.Storage = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Run trials of a study that another process began, here or on a machine of the same kind.

    It ends with the study. A worker that dies costs its running trial, which is retried once.

    Example: tune worker my-study --storage postgresql://user@host/name --device cuda:1
    """
    with options.open_store(storage) as store:
        found = store.study(study)
        definition = StudyDefinition.model_validate(dict(found.definition))
        session = options.open_session(
            resolve_model(definition.model),
            device or definition.device,
            trust_remote_code or definition.trust_remote_code,
            definition.stall_s,
            revision=str(found.facts["revision"]),
        )
        progress = StudyProgress([choose_display()])
        session.watch = progress.engine_said
        with session, options.terminate_interrupts():
            print_note(f"joining study '{study}'")
            try:
                with progress.showing():
                    done = join_study(
                        found, definition, session, store, probe(cache_folder()), progress
                    )
            except KeyboardInterrupt:
                print_note("interrupted: the study goes on without this worker")
                raise typer.Exit(130) from None
    print_text(f"study '{study}': {format_count(done, 'trial')} ran here")
