"""A source of records whose reads are short, slow, or fail: preadv as a bad disk answers it."""

import errno
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

PAGE = 4096


class FaultyReads:
    """Stands in for os.preadv. answer: what the n-th read does, given preadv and its arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., int]) -> None:
        self.reads = 0
        plain = os.preadv

        def read(descriptor: int, views: list[memoryview], offset: int, *flags: int) -> int:
            self.reads += 1
            return answer(self.reads, plain, descriptor, views, offset, *flags)

        monkeypatch.setattr(os, "preadv", read)


def short(_: int, plain: Any, descriptor: int, views: list[memoryview], offset: int) -> int:
    """At most a page at a time."""
    return int(plain(descriptor, [memoryview(views[0])[:PAGE]], offset))


def slow(number: int, plain: Any, *arguments: Any) -> int:
    """Every seventh read takes 20 ms longer."""
    if not number % 7:
        time.sleep(0.02)
    return int(plain(*arguments))


def failing_at(struck: int, lasting: bool) -> Callable[..., int]:
    """An I/O error at one read, or from there on."""

    def answer(number: int, plain: Any, *arguments: Any) -> int:
        if number == struck or (lasting and number > struck):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return int(plain(*arguments))

    return answer


def ending_at(struck: int) -> Callable[..., int]:
    """The file ends at one read, as if it had been truncated."""

    def answer(number: int, plain: Any, *arguments: Any) -> int:
        return 0 if number >= struck else int(plain(*arguments))

    return answer
