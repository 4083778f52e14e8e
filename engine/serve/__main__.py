"""`python -m engine.serve --fd N`: a worker that serves HTTP when it is asked to."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from pathlib import Path

from engine.worker.__main__ import NATIVE_SETTINGS


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for name, value in NATIVE_SETTINGS.items():
        os.environ.setdefault(name, value)

    import platformdirs
    import transformers

    from engine.serve.operations import Operations
    from engine.worker.loop import (
        Connection,
        serve,
    )

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cache_folder = Path(platformdirs.user_cache_dir("expertune"))
    connection = Connection(socket.socket(fileno=arguments.fd))
    serve(connection, lambda emit: Operations(cache_folder, emit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
