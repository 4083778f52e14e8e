"""`tune service` as a command: what it refuses before it listens."""

import socket
import subprocess
import sys
from pathlib import Path

from tests.tuner.conftest import Tune
from tuner.service.service import Service


def test_a_taken_port_is_said(tune: Tune):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = tune("service", "--port", str(port))
    assert done.code == 1
    assert f"127.0.0.1:{port} cannot be listened on" in done.err


def test_a_models_folder_must_be_one(tune: Tune):
    done = tune("service", "--models-folder", "absent")
    assert (done.code, "there is no folder absent" in done.err) == (2, True)


def test_a_second_service_over_the_store_is_refused(tune: Tune, service: Service):
    done = tune("service", "--port", "0")
    assert done.code == 1
    assert "already runs on" in done.err


def test_other_commands_start_without_a_web_framework():
    code = "import sys, tuner.cli.app; sys.exit('fastapi' in sys.modules)"
    source = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=source).returncode == 0
