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


class Server:
    """A server over a folder of data. url: of its database, the same after a restart."""

    def __init__(self, command: list[str], root: Path, port: int, ready: list[str]) -> None:
        self.url = f"postgresql://{USER}@127.0.0.1:{port}/postgres"
        self._command, self._root, self._ready = command, root, ready

    def start(self) -> None:
        """Returns once it accepts connections."""
        with (self._root / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._root)
        for _ in range(100):
            if subprocess.run(self._ready, capture_output=True, check=False).returncode == 0:
                return
            assert self._process.poll() is None, (self._root / "log").read_text()

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: it does not wait for clients to leave; SIGQUIT: as if it had crashed."""
        self._process.send_signal(number)
        self._process.wait(timeout=30)


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The URL of an empty database; the server ends with the block."""
    with server() as running:
        yield running.url


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A running server with an empty database; it ends with the block."""
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
        program = [str(Path(initdb).with_name("postgres")), "-D", str(data)]
        listening = ["-h", "127.0.0.1", "-p", str(port), "-k", str(root)]
        ready = [str(Path(initdb).with_name("pg_isready")), "-h", "127.0.0.1"]
        running = Server(
            [*prefix, *program, *listening], root, port, [*ready, "-p", str(port), "-t", "1"]
        )
        running.start()
        try:
            yield running
        finally:
            running.stop()


def _program(name: str) -> str:
    """Debian keeps it out of PATH, one folder a version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else require_program(name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
