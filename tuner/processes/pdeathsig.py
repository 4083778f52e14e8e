"""Starts a program that dies with its parent.

`python -m tuner.processes.pdeathsig PARENT_PID PROGRAM ARGS...`

Asks Linux for SIGKILL on the parent's death, then becomes the program. A worker would also see
its socket close, but one that hangs in a computation would not look. Imports next to nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent and become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # the parent died before the signal was arranged
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
