"""`python -m engine.peers --fd N --peer NAME`: a peer that answers like a worker."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from engine.worker.__main__ import NATIVE_SETTINGS

PEERS = ("transformers resident", "accelerate disk")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket")
    parser.add_argument(
        "--peer", required=True, choices=["transformers resident", "accelerate disk"]
    )
    arguments = parser.parse_args()
    for name, value in NATIVE_SETTINGS.items():
        os.environ.setdefault(name, value)

    import transformers

    from engine.peers.transformers_peer import TransformersPeer
    from engine.worker.serve import Connection, serve

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    connection = Connection(socket.socket(fileno=arguments.fd))
    serve(connection, lambda emit: TransformersPeer(arguments.peer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
