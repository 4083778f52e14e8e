"""One document on stdout, whole, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tuner.__main__ import run
from tuner.cli import output

LONG = """
import os, signal
from tuner.cli.output import print_json
for number in (signal.SIGTERM, signal.SIGINT):  # a shell's background jobs ignore the latter
    signal.signal(number, signal.default_int_handler)
os.write(2, b"ready\\n")
try:
    print_json({"text": "x" * 10_000_000})
except KeyboardInterrupt:
    os.write(2, b"interrupted\\n")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_document_is_whole_though_the_command_is_ended_while_it_prints(number: int):
    command = [sys.executable, "-c", LONG]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stderr.readline() == b"ready\n"
    first = os.read(child.stdout.fileno(), 1)  # it prints, and waits for a reader
    child.send_signal(number)
    time.sleep(0.2)
    rest, said = child.communicate(timeout=60)
    assert len(json.loads(first + rest)["text"]) == 10_000_000
    assert said == b"interrupted\n"


def test_no_error_stands_behind_a_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def print_and_fail(_: object) -> int:
        output.PRINTED.set(False)
        output.print_json({"url": "http://127.0.0.1:1"})
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tuner.__main__._invoke", print_and_fail)
    assert run(["deploy", "x.yaml", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["url"] == "http://127.0.0.1:1"
    assert "No space left on device" in captured.err


def test_ended_before_its_document_a_command_prints_one_of_the_error():
    slow = "import signal, os; from tuner import __main__ as m; m._check_text = lambda _: "
    slow += "os.kill(os.getpid(), signal.SIGTERM) or signal.pause(); m.main()"
    command = [sys.executable, "-c", slow, "plan", "--json"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert done.returncode == 130
    assert json.loads(done.stdout)["error"]["message"] == "interrupted"
    assert done.stderr == b"tune: interrupted\n"
