"""What holds of every target on every input, and a place of its own to hold it in.

A target ends, or raises an error of the project whose message is a sentence, within CPU_S seconds
of the processor and MEMORY_BYTES beyond what the process had; and it writes, makes, moves or
removes nothing outside the folders of its data, starts no program and connects to nobody.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

from engine.errors import EngineError
from tuner.errors import TunerError

Run = Callable[[bytes], None]

CPU_S = 4.0  # of one input, unless the target says otherwise
MEMORY_BYTES = 3 << 30  # of addresses; what is shown to be needed is far less
LONGEST_SENTENCE = 1600
INSIDE = ("given", "data", "cache", "home")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events that change what is there: where in their arguments a path and its folder's descriptor are.
_CHANGES = {
    "os.mkdir": [(0, 2)], "os.remove": [(0, 1)], "os.rmdir": [(0, 1)], "os.chmod": [(0, 2)],
    "os.rename": [(0, 2), (1, 3)], "os.link": [(1, 3)], "os.symlink": [(1, 2)],
}  # fmt: skip
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")


class FindingError(AssertionError):
    """An input on which a target does what none may."""


class TooLongError(BaseException):
    """The time is over; nothing catches it."""


class Arena:
    """A folder in which targets run, and what they try outside of it.

    root/given holds what a target is given, the others are its data; root itself is the working
    folder, which nothing may write to. named: inputs may name files to write, so that an attempt is
    no finding; it fails all the same.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.named = False
        self.tried: list[str] = []
        self.outputs: tuple[Path, ...] = tuple(root / name for name in INSIDE)
        for folder in self.outputs:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def given(self) -> Path:
        """The folder of inputs."""
        return self.root / "given"

    @property
    def cache(self) -> Path:
        """The cache folder."""
        return self.root / "cache" / "expertune"

    def loose(self) -> set[str]:
        """What lies beside the folders."""
        return {path.name for path in self.root.iterdir()} - set(INSIDE)

    def judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what must not happen, and make it fail. Python calls it for every file it opens."""
        tried = [what for what in _subjects(event, arguments) if not self._may(what)]
        if tried:
            if not self.named:
                self.tried += [f"{event} {what!r:.200}" for what in tried]
            raise PermissionError(errno.EACCES, "not in a test", str(tried[0])[:200])

    def _may(self, what: Any) -> bool:
        if isinstance(what, int):  # a descriptor, opened before
            return True
        if isinstance(what, tuple):  # an address
            return what[0] in ("127.0.0.1", "::1", "localhost")
        text = os.path.abspath(os.fsdecode(what))
        if text.startswith(("/dev/null", "/dev/tty", "/dev/shm/")) or "__pycache__" in text:
            return True
        return any(text == str(one) or text.startswith(f"{one}/") for one in self.outputs)


def _subjects(event: str, arguments: tuple[Any, ...]) -> list[Any]:
    """What an event would write to, start or reach."""
    if event == "open":
        flags = arguments[2]
        return [arguments[0]] if isinstance(flags, int) and flags & _WRITES else []
    if event in _CHANGES:
        return [_at(arguments[place], arguments[fd]) for place, fd in _CHANGES[event]]
    if event in _STARTS:
        return [f"/a program: {arguments[:1]}"]
    if event == "socket.connect":
        return [arguments[1]] if isinstance(arguments[1], tuple) else []
    return _database(str(arguments[0])) if event == "sqlite3.connect" else []


def _database(name: str) -> list[str]:
    """The file that SQLite may write to; none if it is opened to be read."""
    if not name.startswith("file:"):
        return [name]
    parts = urlsplit(name)
    return [] if "mode=ro" in parts.query.split("&") else [unquote(parts.path)]


def _at(path: Any, folder: int) -> Any:
    """A path, also one that is relative to an open folder."""
    if isinstance(path, int) or folder < 0:
        return path
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))


_current: Arena | None = None
_hooked = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _current is not None and threading.current_thread() is threading.main_thread():
        _current.judge(event, arguments)


@contextlib.contextmanager
def arena(root: Path | None = None) -> Iterator[Arena]:
    """A place for targets: a home and a working folder of its own during the block."""
    global _hooked
    with contextlib.ExitStack() as stack:
        if root is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
        place = Arena(root.resolve())
        folders = {
            "HOME": place.root / "home",
            "XDG_DATA_HOME": place.root / "data",
            "XDG_CACHE_HOME": place.root / "cache",
        }
        stack.enter_context(mock.patch.dict(os.environ, {k: str(v) for k, v in folders.items()}))
        stack.enter_context(contextlib.chdir(place.root))
        if not _hooked:
            sys.addaudithook(_audit)
            _hooked = True
        yield place


def hold(
    place: Arena,
    run: Run,
    data: bytes,
    allowed: tuple[type[Exception], ...] = (),
    most_s: float = CPU_S,
) -> None:
    """Run a target on an input. Raises FindingError if something does not hold.

    allowed: errors beside the project's that this target may raise with a sentence; most_s: seconds
    of the processor.
    """
    before = place.loose()
    place.tried.clear()
    began_s = time.process_time()
    try:
        with _watching(place), _bounded_memory(), _bounded_time(most_s), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of numbers too large
            run(data)
    except (TunerError, EngineError, *allowed) as error:
        _check_sentence(error)
    except TooLongError:
        raise FindingError(f"it takes more than {most_s:g} s of the processor") from None
    took_s = time.process_time() - began_s
    if took_s > most_s:
        raise FindingError(f"it took {took_s:.1f} s of the processor")
    if place.tried:
        raise FindingError(f"outside of its folders it tried: {'; '.join(place.tried[:3])}")
    if found := place.loose() - before:
        raise FindingError(f"it left {sorted(found)[:3]} behind")


def _check_sentence(error: Exception) -> None:
    text = str(error)
    wrong = (
        not text.strip()
        or len(text) > LONGEST_SENTENCE
        or "Traceback" in text
        or text.startswith("unexpected ")
    )
    if wrong:
        raise FindingError(f"{type(error).__name__} says no sentence: {text[:300]!r}") from error


@contextlib.contextmanager
def _watching(place: Arena) -> Iterator[None]:
    """Nothing is logged meanwhile: what is said of each wrong input would be megabytes."""
    global _current
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    _current = place
    try:
        yield
    finally:
        _current = None
        logging.disable(before)


@contextlib.contextmanager
def _bounded_time(most_s: float) -> Iterator[None]:
    """Seconds of the processor, not of the clock: tests run beside others."""

    def stop(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, most_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """What wants all of the memory gets a MemoryError, which is a finding."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
