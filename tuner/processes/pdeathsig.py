"""Runs a program that dies with its parent.

`python -m tuner.processes.pdeathsig PARENT_PID PROGRAM ARGS...`

Asks Linux for SIGKILL on the parent's death, then becomes the program. A worker would also see its
socket close, but not while it hangs in a computation. Imports next to nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Sets the death signal of this process and executes the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # the parent died before the signal was set
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
