"""`python -m engine.serve --fd N`: a worker that can also serve HTTP."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from engine.worker.process import run_process

if TYPE_CHECKING:
    from engine.serve.operations import Operations


def _make() -> type[Operations]:
    from engine.serve.operations import Operations

    return Operations


if __name__ == "__main__":
    sys.exit(run_process(str(__doc__), _make))
