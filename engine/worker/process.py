"""The entry point of every engine process: settings of native libraries first, then requests.

Imports no torch itself: NATIVE_SETTINGS must be in the environment before torch is loaded.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.inputs.visible import log_to_stderr

if TYPE_CHECKING:
    from engine.worker.loop import Emit, Runner

# Native libraries read these when they load, so they are set before torch is imported
# (docs/adr/0002). One core is left to the threads that read the disk. Waiting threads must sleep:
# two busy processes whose threads spin slow each other a hundredfold. A kernel that oneDNN keeps
# costs about 0.4 MB.
NATIVE_SETTINGS = {
    "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 1)),
    "OMP_WAIT_POLICY": "PASSIVE",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
}


def set_native_settings() -> None:
    """Set the native settings that the user did not set."""
    for name, value in NATIVE_SETTINGS.items():
        os.environ.setdefault(name, value)


def run_process(description: str, make_runner: Callable[[], Callable[[Path, Emit], Runner]]) -> int:
    """Serve requests on the inherited socket `--fd N` until it closes or `close` is sent.

    make_runner: imports the engine (after the settings) and returns its constructor.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket")
    arguments = parser.parse_args()
    log_to_stderr(logging.WARNING, logging.BASIC_FORMAT)
    set_native_settings()

    import platformdirs

    cache_folder = Path(platformdirs.user_cache_dir("expertune"))
    os.environ.setdefault("HF_DATASETS_CACHE", str(cache_folder / "datasets"))
    import transformers

    from engine.worker.loop import Connection, serve

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    runner = make_runner()
    connection = Connection(socket.socket(fileno=arguments.fd))
    serve(connection, lambda emit: runner(cache_folder, emit))
    return 0
