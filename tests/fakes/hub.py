"""A small Hugging Face hub on 127.0.0.1: model info, file tree, files by range, gates, cut lines.

Serves one repository with two commits (`main` is the later one). It counts the bytes of every file
that it sends, so that a test can say what was fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODEL = "tiny/moe"
FIRST, LATER = "1" * 40, "2" * 40


@dataclass
class FakeHub:
    """files: by commit, then by name. gate: the status that a gated repository answers for files
    (401 without a token, 403 with one; 0: open). cut: name of a file whose next transfer breaks off
    in the middle. down: answers 503 to everything."""

    files: dict[str, dict[str, bytes]]
    gate: int = 0
    cut: str = ""
    down: bool = False
    endpoint: str = ""
    sent_bytes: Counter[str] = field(default_factory=Counter)
    requests: int = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Route one GET or HEAD."""
        self.requests += 1
        path = handler.path.partition("?")[0].lstrip("/")
        if self.down:
            return _send(handler, 503)
        if path.startswith("api/models/"):
            return self._answer_api(handler, path.removeprefix("api/models/"))
        if not path.startswith(f"{MODEL}/resolve/"):
            return _send(handler, 404, {"X-Error-Code": "RepoNotFound"})
        revision, _, name = path.removeprefix(f"{MODEL}/resolve/").partition("/")
        commit = self._commit(revision)
        if commit is None:
            return _send(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        if self.gate and name != ".gitattributes":
            return _send(handler, self.gate, {"X-Error-Code": "GatedRepo"})
        if name not in self.files[commit]:
            return _send(handler, 404, {"X-Error-Code": "EntryNotFound"})
        return self._answer_file(handler, commit, name)

    def _answer_api(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        if not (path + "/").startswith(f"{MODEL}/"):
            return _send(handler, 404, {"X-Error-Code": "RepoNotFound"})
        parts = path.removeprefix(MODEL).strip("/").split("/")
        commit = self._commit(parts[1] if len(parts) > 1 else "main")
        if commit is None:
            return _send(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        if parts[0] == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in self.files[commit].items()
            ]
            return _send(handler, 200, body=json.dumps(tree).encode())
        info = {"id": MODEL, "modelId": MODEL, "sha": commit, "siblings": [], "tags": []}
        return _send(handler, 200, body=json.dumps(info).encode())

    def _answer_file(self, handler: BaseHTTPRequestHandler, commit: str, name: str) -> None:
        data = self.files[commit][name]
        wanted = handler.headers.get("Range")
        first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data)), len(data) - 1)
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        rest = data[start : end + 1]
        if handler.command == "GET" and self.cut == name:
            self.cut = ""
            half = rest[: len(rest) // 2]
            self.sent_bytes[name] += len(half)
            _send(handler, 206 if wanted else 200, headers, half, length=len(rest))
            handler.close_connection = True
            return
        if handler.command == "GET":
            self.sent_bytes[name] += len(rest)
        _send(handler, 206 if wanted else 200, headers, rest)

    def _commit(self, revision: str) -> str | None:
        commit = LATER if revision == "main" else revision
        return commit if commit in self.files else None


@contextlib.contextmanager
def serving(first: Path, later: Path) -> Iterator[FakeHub]:
    """A hub whose two commits are these two folders, on a free port, until the block ends."""
    files = {
        commit: {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        for commit, folder in ((FIRST, first), (LATER, later))
    }
    hub = FakeHub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    length: int | None = None,
) -> None:
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
