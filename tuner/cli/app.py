"""The typer application: maps every command to its module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup, TyperOption

from engine.errors import nearest_hint
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
from tuner.errors import UsageError

FIND, USE, LOOK, PREPARE = "Find a config", "Use it", "Look", "Prepare"
COMPLETION = "Shell completion"
# Words that people try -> what does it here.
_OTHER_WORDS = {
    "sweep": "--model", "study": "--model", "optimize": "--model", "search": "--model",
    "serve": "deploy", "up": "deploy", "generate": "run", "list": "studies", "ls": "studies",
    "benchmark": "bench", "diff": "compare", "info": "doctor", "probe": "doctor",
}  # fmt: skip


class _Tune(TyperGroup):
    """The root command; gives typer's shell options their own panel in the help."""

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperOption) and str(param.name).endswith("_completion"):
                param.rich_help_panel = COMPLETION
        return params

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = str(args[0]) if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise UsageError(_unknown_command(name, self.list_commands(ctx)))
        return super().resolve_command(ctx, args)


def _unknown_command(name: str, commands: list[str]) -> str:
    """What to type instead of a command that there is none of."""
    if nearest := nearest_hint(name, (*commands, *_OTHER_WORDS), cutoff=0.6):
        for word, command in _OTHER_WORDS.items():
            nearest = nearest.replace(f"'{word}'", f"'{command}'")
    return (
        f"No such command '{name}'{nearest or ' (see `tune --help`)'}; a study is started by "
        "options alone (`tune --model M --vram 8GB`), and a size or a list is one word "
        "(8GB, or 4GB,8GB)"
    )


app = typer.Typer(
    name="tune",
    cls=_Tune,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.callback(invoke_without_command=True)(study.study)
# Grouped by purpose; within a panel in the order of use.
_COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    FIND: {
        "plan": plan.plan,
        "doctor": machine.doctor,
        "bench": bench.bench,
        "studies": studies.studies,
        "show": studies.show,
        "compare": compare.compare_two,
        "worker": worker.join,
    },
    USE: {
        "run": run.run,
        "export": export.export,
        "deploy": deploy.deploy,
        "verify": verify.verify_file,
    },
    LOOK: {
        "dashboard": dashboard.dashboard,
    },
    PREPARE: {
        "profile": machine.profile,
        "pack": pack.pack,
        "trace": trace.trace,
        "replay": trace.replay,
    },
}
for panel, commands in _COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)
app.add_typer(service.app, rich_help_panel=LOOK)
app.add_typer(train.app, rich_help_panel=PREPARE)
