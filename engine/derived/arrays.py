"""Derived files that hold named numpy arrays, as .npz."""

from __future__ import annotations

import contextlib
import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.derived.file import DerivedKind, drop, is_sealed, load, read_named, writing
from engine.errors import UnreadableError

T = TypeVar("T")
Arrays = dict[str, NDArray[Any]]
MOST_UNPACKED_BYTES = 1 << 30  # a million tokens' routing in a model of 48 layers, 8 experts each
_ZIP_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,  # NotImplementedError too: a flipped flag asks for a password, or for LZMA
    OverflowError,
    TypeError,
    AttributeError,
    LookupError,
    MemoryError,  # a header that names more elements than any memory holds
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def save_arrays(
    path: Path, kind: DerivedKind, arrays: Mapping[str, Any], *, compressed: bool = False
) -> None:
    """Write arrays by name. Raises OSError."""
    save = np.savez_compressed if compressed else np.savez
    with writing(path, kind) as stream:
        save(stream, **arrays)


def parse_arrays(content: bytes) -> Arrays:
    """The arrays of an .npz, whose members have checksums of their own. Raises ValueError if it is
    none, or holds more than MOST_UNPACKED_BYTES: a thousandth of that may have been sent."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:  # which unpacks no more than it says
            unpacked_bytes = sum(member.file_size for member in packed.infolist())
        if unpacked_bytes > MOST_UNPACKED_BYTES:
            raise ValueError(f"its arrays take more than {MOST_UNPACKED_BYTES >> 20} MiB")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except _ZIP_ERRORS as error:
        raise ValueError(f"no arrays ({type(error).__name__})") from None


def read_arrays(path: Path, kind: DerivedKind) -> Arrays:
    """The arrays of a file that a user names; one without a checksum is taken if it is whole.

    Raises FileNotFoundError, UnreadableError.
    """
    try:
        return parse_arrays(read_named(path, kind))
    except ValueError as error:
        raise UnreadableError(kind.name, path, str(error)) from None


def load_arrays(path: Path, kind: DerivedKind, parse: Callable[[Arrays], T]) -> T | None:
    """What `parse` makes of the arrays; None if there is no file, or after a damaged one was
    dropped."""
    return load(path, kind, lambda content: parse(parse_arrays(content)))


def adopt_arrays(path: Path, kind: DerivedKind) -> Arrays | None:
    """The arrays of a file that cannot be made again; None if there is none.

    One without a checksum gets it, a damaged one is moved aside.
    """
    try:
        found = read_arrays(path, kind)
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        drop(path, kind, error.reason)
        return None
    with contextlib.suppress(OSError):  # in a folder that cannot be written it stays as it is
        if not is_sealed(path, kind):
            save_arrays(path, kind, found)
    return found
