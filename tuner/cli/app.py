"""The typer application: which module stands behind which command."""

from __future__ import annotations

import typer

from tuner.cli import study

app = typer.Typer(
    name="tune",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.callback(invoke_without_command=True)(study.study)
