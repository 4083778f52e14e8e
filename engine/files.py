"""Atomic file replacement, short digests, strict YAML, and the folder of an installation's data."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import yaml

DIGITS = 16


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A stream whose content replaces `path` when the block ends without an error.

    A reader sees either the old or the new file, also after a crash. Creates the folder. Raises
    OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        with tempfile.NamedTemporaryFile(
            dir=path.absolute().parent, prefix=f".{path.name}.", delete=False
        ) as stream:
            undo.callback(Path(stream.name).unlink, missing_ok=True)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(stream.name, 0o644)
        os.replace(stream.name, path)
        undo.pop_all()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder safely on disk: a file that was moved there stays after a crash.

    Does nothing where the folder may not be read, or its file system cannot. Raises OSError.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file atomically (UTF-8). Raises OSError."""
    with replacing(path) as stream:
        stream.write(text.encode())


def short_digest(data: str | bytes, digits: int = DIGITS) -> str:
    """The first hex digits of SHA-256."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:digits]


def json_digest(value: Any, digits: int = DIGITS) -> str:
    """short_digest of a value as JSON with sorted keys."""
    return short_digest(json.dumps(value, sort_keys=True), digits)


def studies_folder() -> Path:
    """The folder of policies/, workloads/, hardware/ and demo/; it need not exist.

    EXPERTUNE_STUDIES if set; else the folder installed inside this package; else `studies/` of the
    source tree.
    """
    if named := os.environ.get("EXPERTUNE_STUDIES"):
        return Path(named)
    package = Path(__file__).resolve().parent
    installed = package / "studies"
    return installed if installed.is_dir() else package.parent / "studies"


class UniqueKeys(yaml.SafeLoader):
    """YAML's safe part; a key that stands twice in one mapping is an error, not the last one's
    victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping. Raises yaml.YAMLError that names a key which stands twice, with its line."""
        if node.id != "mapping":  # `!!map [a]`
            return super().construct_mapping(node, deep)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice: keep one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
