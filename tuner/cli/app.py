"""The typer application: which module stands behind which command."""

from __future__ import annotations

import typer

from tuner.cli import (
    bench,
    compare,
    dashboard,
    deploy,
    export,
    machine,
    pack,
    plan,
    run,
    service,
    studies,
    study,
    trace,
    train,
    verify,
    worker,
)

app = typer.Typer(
    name="tune",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.callback(invoke_without_command=True)(study.study)
for command in (
    studies.studies,
    studies.show,
    export.export,
    run.run,
    deploy.deploy,
    bench.bench,
    plan.plan,
    machine.profile,
    machine.doctor,
    trace.trace,
    trace.replay,
    pack.pack,
    dashboard.dashboard,
):
    app.command()(command)
app.add_typer(service.app)
app.add_typer(train.app)
app.command("compare")(compare.compare_two)
app.command("verify")(verify.verify_file)
app.command("worker")(worker.join)
