"""StudyProcess: the child `python -m tuner` that runs the study of one job.

It dies with this process, ends resumably on SIGTERM, and writes one JSON document to stdout. Its
working folder is the job's own, so that no model id can be mistaken for a folder beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tuner.definition.strict_yaml import dump_yaml
from tuner.definition.study import StudyDefinition
from tuner.deployment.export import write_atomically
from tuner.processes.secrets import without_password
from tuner.processes.start import start_module
from tuner.store.url import parse_url, sqlite_path

ERROR_BYTES = 1 << 20  # a longer document is no error


@dataclass
class StudyProcess:
    """A running study. Start it from a thread that outlives it: Linux ties it to that thread."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def wait(self, timeout_s: float) -> int | None:
        """The exit code; None if it still runs after timeout_s; negative: ended by a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout_s)
        return None

    def interrupt(self) -> None:
        """Asks it to end; finished trials are kept."""
        self.process.terminate()

    def kill(self) -> None:
        """Ends it and its children at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def error(self) -> str:
        """The error sentence that it wrote, else one with its exit code."""
        self.output.seek(0)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(self.output.read(ERROR_BYTES))["error"]["message"])
        return f"the study's process ended with code {self.process.returncode}"

    def close(self) -> None:
        """Closes its output; it must have ended."""
        self.output.close()


def start_study(definition: StudyDefinition, storage: str, folder: Path) -> StudyProcess:
    """Writes the definition into the job's folder and runs it; its log goes beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "definition.yaml"
    output = str(folder / "recommended.yaml")
    complete = definition.model_copy(update={"output": output})
    written = complete.model_dump(mode="json", exclude_defaults=True)
    write_atomically(path, dump_yaml(written))
    url, secrets = _for_child(storage)
    with contextlib.ExitStack() as undo:
        document = undo.enter_context(tempfile.TemporaryFile())
        with (folder / "log.txt").open("ab") as log_file:
            process = start_module(
                "tuner",
                *("--definition", str(path), "--storage", url, "--json"),
                environment=secrets,
                cwd=folder,
                stdout=document,
                stderr=log_file,
                start_new_session=True,
            )
        undo.pop_all()
    return StudyProcess(process, document)


def _for_child(storage: str) -> tuple[str, dict[str, str]]:
    """`without_password`; a file's path is made absolute, since the job runs in a folder of its
    own."""
    if parse_url(storage).get_backend_name() == "sqlite":
        return f"sqlite:///{sqlite_path(storage).absolute()}", {}
    return without_password(storage)
