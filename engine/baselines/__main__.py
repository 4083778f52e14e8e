"""`python -m engine.baselines --fd N --baseline NAME`: a baseline engine as a worker process."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.contract.messages import BASELINES, BaselineName
from engine.worker.process import NATIVE_SETTINGS

if TYPE_CHECKING:
    from engine.worker.loop import Emit, Runner

LLAMA_CPP_BASELINES = ("llama.cpp mmap", "llama.cpp resident")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket")
    parser.add_argument("--baseline", required=True, choices=BASELINES)
    arguments = parser.parse_args()
    if (
        arguments.baseline not in LLAMA_CPP_BASELINES
    ):  # llama.cpp's threads are tuned to spin between operations
        for name, value in NATIVE_SETTINGS.items():
            os.environ.setdefault(name, value)

    import transformers

    from engine.worker.loop import Connection, serve

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    connection = Connection(socket.socket(fileno=arguments.fd))
    serve(connection, lambda emit: _make_baseline(arguments.baseline, emit))
    return 0


def _make_baseline(name: BaselineName, emit: Emit) -> Runner:
    import platformdirs

    cache_folder = Path(platformdirs.user_cache_dir("expertune"))
    if name in LLAMA_CPP_BASELINES:
        from engine.baselines.llama_cpp_baseline import LlamaCppBaseline

        return LlamaCppBaseline(name, cache_folder, emit)
    from engine.baselines.transformers_baseline import TransformersBaseline

    return TransformersBaseline(name, cache_folder)


if __name__ == "__main__":
    sys.exit(main())
