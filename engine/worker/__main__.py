"""`python -m engine.worker --fd N`: serve requests until the socket closes or `close` is asked."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from pathlib import Path

# Read by native libraries when they load, so set before torch is imported (docs/adr/0002). One core
# is left to the threads that read the disk. Waiting threads must sleep: two busy processes whose
# threads spin slow each other a hundredfold. A kernel that oneDNN keeps costs about 0.4 MB.
NATIVE_SETTINGS = {
    "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 1)),
    "OMP_WAIT_POLICY": "PASSIVE",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for name, value in NATIVE_SETTINGS.items():
        os.environ.setdefault(name, value)

    import platformdirs

    cache_folder = Path(platformdirs.user_cache_dir("expertune"))
    os.environ.setdefault("HF_DATASETS_CACHE", str(cache_folder / "datasets"))
    import transformers

    from engine.worker.loop import (
        Connection,
        serve,
    )
    from engine.worker.operations import Operations

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    connection = Connection(socket.socket(fileno=arguments.fd))
    serve(connection, lambda emit: Operations(cache_folder, emit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
