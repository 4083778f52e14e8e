"""schemathesis' own command line against a live service: `pytest -m slow tests/tuner/service`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tuner.conftest import Tune

CONFIG = Path(__file__).with_name("schemathesis.toml")
SCHEMATHESIS = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"]
SOURCE = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_line_finds_nothing(tune: Tune, study: Path):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    service = subprocess.Popen(
        [sys.executable, "-m", "tuner", "service", "--port", "0", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    try:
        url = _url_of(service)
        found = subprocess.run(
            [*SCHEMATHESIS, f"{url}/openapi.json", "--max-examples", "12", "--seed", "1"],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
    finally:
        service.terminate()
        service.wait(timeout=60)
        if service.stdout is not None:
            service.stdout.close()
    assert "Tested: 10" in found.stdout, found.stdout[-3000:]
    assert found.returncode == 0, found.stdout[-3000:]


def _url_of(service: subprocess.Popen[str]) -> str:
    """From the one document on its stdout."""
    assert service.stdout is not None
    text = ""
    for line in service.stdout:
        text += line
        try:
            return str(json.loads(text)["url"])
        except ValueError:
            continue
    raise AssertionError(f"the service did not start: {text}")
