"""Studies made with the fake engine, for tests that need one in a store."""

import shlex
import sys
from pathlib import Path

from tests.fakes import FAKE_ENGINE

ENGINE = f"{shlex.quote(sys.executable)} {shlex.quote(str(FAKE_ENGINE))}"
WORKLOAD = "name: tiny\nprompts: [one, two, three, four]\nprompt_tokens: 8\noutput_tokens: 8\n"
DEFINITION = """\
name: small
model: some-moe
budget: {vram_bytes: 45MB}
workload: workload.yaml
quality: {tasks: [a_task], limit: 5}
trials: 6
repeats: {min: 2, max: 3}
"""


def write_definition(folder: Path, text: str = DEFINITION) -> Path:
    """study.yaml and workload.yaml in a folder; the definition's path."""
    (folder / "workload.yaml").write_text(WORKLOAD)
    path = folder / "study.yaml"
    path.write_text(text)
    return path
