"""`python -m engine.peers --fd N --peer NAME`: a peer that answers like a worker."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.contract.messages import (
    PEERS,
    PeerName,
)
from engine.worker.__main__ import NATIVE_SETTINGS

if TYPE_CHECKING:
    from engine.worker.loop import (
        Emit,
        Runner,
    )

LLAMA_CPP_PEERS = ("llama.cpp mmap", "llama.cpp resident")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket")
    parser.add_argument("--peer", required=True, choices=PEERS)
    arguments = parser.parse_args()
    if arguments.peer not in LLAMA_CPP_PEERS:  # its threads are tuned to spin between operations
        for name, value in NATIVE_SETTINGS.items():
            os.environ.setdefault(name, value)

    import transformers

    from engine.worker.loop import (
        Connection,
        serve,
    )

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    connection = Connection(socket.socket(fileno=arguments.fd))
    serve(connection, lambda emit: _make_peer(arguments.peer, emit))
    return 0


def _make_peer(name: PeerName, emit: Emit) -> Runner:
    if name in LLAMA_CPP_PEERS:
        import platformdirs

        from engine.peers.llama_cpp_peer import LlamaCppPeer

        return LlamaCppPeer(name, Path(platformdirs.user_cache_dir("expertune")), emit)
    from engine.peers.transformers_peer import TransformersPeer

    return TransformersPeer(name)


if __name__ == "__main__":
    sys.exit(main())
