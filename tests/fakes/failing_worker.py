"""A worker without an engine, whose operations fail as an accelerator does.

`python -m tests.fakes.failing_worker --fd N` speaks the real loop.
"""

from __future__ import annotations

import argparse
import os
import socket
from typing import Any

import torch

from engine.errors import EngineError
from engine.worker.loop import Connection, serve


class Failing:
    """Raises the error of the operation; `pid` answers."""

    def run(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if operation == "lose":
            raise RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")
        if operation == "lose_while_closing":
            try:
                raise EngineError("a layer is incomplete")
            finally:
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if operation == "fill":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return {"pid": os.getpid()}


def main() -> None:
    """Serve until the socket closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    arguments = parser.parse_args()
    serve(Connection(socket.socket(fileno=arguments.fd)), lambda emit: Failing())


if __name__ == "__main__":
    main()
