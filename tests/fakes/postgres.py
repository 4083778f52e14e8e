"""A PostgreSQL server of Debian's package on 127.0.0.1, for one block: fresh, not as root."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.requirements import require_program

USER = "expertune"


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The URL of an empty database; the server ends with the block."""
    initdb = _program("initdb")
    with tempfile.TemporaryDirectory(prefix="expertune-pg-") as folder:
        root = Path(folder)
        data = root / "data"
        # root may not run it; its own user may neither read nor keep anything elsewhere
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        prefix = as_user if os.geteuid() == 0 else []
        if prefix:
            shutil.chown(root, "nobody", "nogroup")
        subprocess.run(
            [*prefix, initdb, "-D", str(data), "-U", USER, "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=root,
        )
        port = _free_port()
        listening = ["-h", "127.0.0.1", "-p", str(port), "-k", str(root)]
        with (root / "log").open("wb") as log:
            server = subprocess.Popen(
                [*prefix, str(Path(initdb).with_name("postgres")), "-D", str(data), *listening],
                stdout=log,
                stderr=log,
                cwd=root,
            )
            try:
                ready = [str(Path(initdb).with_name("pg_isready")), "-h", "127.0.0.1"]
                for _ in range(100):
                    waited = subprocess.run(
                        [*ready, "-p", str(port), "-t", "1"], capture_output=True, check=False
                    )
                    if waited.returncode == 0:
                        break
                    assert server.poll() is None, (root / "log").read_text()
                yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
            finally:
                server.send_signal(signal.SIGINT)  # do not wait for clients to leave
                server.wait(timeout=30)


def _program(name: str) -> str:
    """Debian keeps it out of PATH, one folder a version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else require_program(name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
