"""`tune dashboard`: runs Streamlit on this machine, over the store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from engine.inputs.host_name import is_loopback
from tuner.cli import options
from tuner.cli.extras import require_extra
from tuner.cli.output import print_note
from tuner.cli.port import check_free
from tuner.errors import StudyError
from tuner.folders import SOURCE, default_storage
from tuner.processes.secrets import without_password
from tuner.processes.start import start_module
from tuner.store.database import open_read_only

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def dashboard(
    storage: options.Storage = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
) -> None:
    """Show the studies in a browser; reads the store only.

    Example: tune dashboard --port 8600
    """
    require_extra("`tune dashboard`", "dashboard")
    check_free(host, port)
    url = storage or default_storage()
    open_read_only(url).close()
    app = SOURCE / "dashboard" / "app.py"
    if not app.is_file():
        raise StudyError(f"the dashboard is not installed: {app} is missing")
    print_note(f"http://{host}:{port} (end it with Ctrl-C)")
    command = ["run", str(app)]
    command += ["--server.address", host, "--server.port", str(port), "--server.headless", "true"]
    command += ["--browser.gatherUsageStats", "false", "--server.fileWatcherType", "none"]
    command += ["--client.toolbarMode", "viewer"]
    if is_loopback(host):  # else a page elsewhere reaches it under a name of its own
        command += [part for name in LOCAL_NAMES for part in ("--server.allowedHosts", name)]
    shown, secrets = without_password(url)
    command += ["--", "--storage", shown]
    child = start_module("streamlit", *command, environment=secrets, stdin=None, stdout=sys.stderr)
    code = child.wait()
    if code:
        raise StudyError(f"the dashboard ended with code {code}: is port {port} taken?")
