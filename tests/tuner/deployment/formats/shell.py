"""Runs an exported script with programs that only write down what they were called with."""

import os
import stat
import subprocess
from pathlib import Path

PROGRAMS = ("hf", "python3", "llama-quantize", "llama-server", "vllm")
# Notes each call, one argument a line behind a mark, and makes the file that it was to write.
NOTE = """\
#!/bin/sh
{ echo ">$(basename "$0")"; for word in "$@"; do printf '%s\\n' "$word"; done; } >> "$CALLS"
case "$(basename "$0")" in
python3) while [ "$1" != --outfile ]; do shift; done; : > "$2" ;;
llama-quantize) while [ $# -gt 2 ]; do shift; done; : > "$1" ;;
esac
"""


def run_script(text: str, folder: Path, **environment: str) -> list[list[str]]:
    """The calls that the script made: program and arguments. Raises where the script fails."""
    programs = folder / "programs"
    programs.mkdir()
    for name in PROGRAMS:
        file = programs / name
        file.write_text(NOTE)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    calls = folder / "calls"
    calls.touch()
    script = folder / "script.sh"
    script.write_text(text)
    paths = f"{programs}:{os.environ['PATH']}"
    variables = {**os.environ, **environment, "PATH": paths, "CALLS": str(calls)}
    subprocess.run(["sh", str(script)], cwd=folder, env=variables, check=True, timeout=30)
    found: list[list[str]] = []
    for line in calls.read_text().splitlines():
        if line.startswith(">"):
            found.append([line[1:]])
        else:
            found[-1].append(line)
    return found


def value_of(call: list[str], option: str) -> str:
    """What follows this option in a call."""
    return call[call.index(option) + 1]
