"""Requests of which two programs could see different ends: one answer, and the connection ends."""

from __future__ import annotations

import logging
import re
import socket

import pytest

from tests.security.conftest import Listening

NEXT = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
LONG = b"Content-Length: %d\r\n" % len(NEXT)

AMBIGUOUS = {
    "length then chunked": POST + b"Content-Length: 4\r\n" + CHUNKED[len(POST) :] + END,
    "chunked then length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + END,
    "two lengths": POST + b"Content-Length: 4\r\n" + LONG + b"\r\nabcd",
    "lengths in one line": POST + b"Content-Length: 4, 5\r\n\r\nabcd",
    "signed length": POST + b"Content-Length: +4\r\n\r\nabcd",
    "negative length": POST + b"Content-Length: -1\r\n\r\n",
    "hexadecimal length": POST + b"Content-Length: 0x4\r\n\r\nabcd",
    "length with a line between digits": POST + b"Content-Length: 4_0\r\n\r\nabcd",
    "length of a mile": POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nabcd",
    "folded length": POST + b"Content-Length:\r\n 4\r\n\r\nabcd",
    "folded chunked": POST + b"Transfer-Encoding:\r\n\tchunked\r\n\r\n0\r\n\r\n",
    "folded other": POST + b"X-A: b\r\n Content-Length: 4\r\n\r\nabcd",
    "line feed alone": POST + b"X-A: b\nContent-Length: 4\r\n\r\nabcd",
    "line feeds only": b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
    "end by line feeds": POST + b"X-A: b\n\n",
    "carriage return alone": POST + b"X-A: b\rContent-Length: 4\r\n\r\nabcd",
    "space before the colon": POST + b"Content-Length : 4\r\n\r\nabcd",
    "space before the name": POST + b" Content-Length: 4\r\n\r\nabcd",
    "zero byte": POST + b"X-A: a\x00b\r\n\r\n",
    "two encodings": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "encoding that is none": POST + b"Transfer-Encoding: identity\r\n" + LONG + b"\r\n",
    "encoding behind a control": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /healthz HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two hosts": POST + b"Host: elsewhere\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "an empty line first": b"\r\n" + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a line that is no request": b"GET /healthz\x0b HTTP/1.1\r\nHost: localhost\r\n\r\n",
}  # fmt: skip
LYING = {
    "chunk longer than it says": CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n",
    "chunk without its end": CHUNKED + b"3\r\nabcX0\r\n\r\n",
    "size that is no number": CHUNKED + b"G\r\nabc\r\n0\r\n\r\n",
    "signed size": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "size with 0x": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "size of 21 digits": CHUNKED + b"F" * 21 + b"\r\nabc",
    "size of 20 digits": CHUNKED + b"F" * 20 + b"\r\nabc",
    "size in a line that never ends": CHUNKED + b"0" * 200_000,
    "extension with a line feed": CHUNKED + b"3;a=b\nabc\r\n0\r\n\r\n",
    "line feed behind the last chunk": CHUNKED + b"0\r\n\n",
    "trailers that name a length": CHUNKED + b"0\r\nContent-Length: 9\r\n\r\n",
    "folded trailer": CHUNKED + b"0\r\nX-A: b\r\n c\r\n\r\n",
    "nothing wrong": CHUNKED + b"3\r\nabc\r\n0\r\n\r\n",
}


def send(port: int, data: bytes, wait_s: float = 5.0) -> tuple[list[int], bool]:
    """The statuses that come back within wait_s of silence, and whether the server closed."""
    found, closed = b"", False
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as client:
        try:
            client.sendall(data)
            while piece := client.recv(65536):
                found += piece
            closed = True
        except TimeoutError:
            pass
        except (ConnectionResetError, BrokenPipeError):
            closed = True
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", found)], closed


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_an_ambiguous_request_is_refused_and_what_follows_is_not_read(
    server: Listening, case: str
) -> None:
    before = server.done()
    statuses, closed = send(server.port, AMBIGUOUS[case] + NEXT)
    assert (statuses, closed) == ([400], True)
    assert server.done() == before


@pytest.mark.parametrize("case", LYING)
def test_behind_a_body_in_chunks_nothing_is_read(server: Listening, case: str) -> None:
    statuses, closed = send(server.port, LYING[case] + NEXT)
    assert closed
    assert len(statuses) <= 1  # a reset connection may lose the one
    assert all(400 <= status < 500 for status in statuses)


def test_a_body_in_chunks_is_read(server: Listening) -> None:
    path = {"deploy": b"/v1/completions", "service": b"/v1/studies"}[server.name]
    head = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n"
    statuses, closed = send(server.port, head + body)
    assert (statuses, closed) == ([400 if server.name == "deploy" else 422], True)


def test_a_request_in_a_body_is_a_body(server: Listening) -> None:
    for method in (b"POST", b"GET"):
        head = method + b" /healthz HTTP/1.1\r\nHost: localhost\r\n" + LONG + b"\r\n"
        statuses, _ = send(server.port, head + NEXT, wait_s=0.7)
        assert statuses == [405 if method == b"POST" else 200]


def test_requests_one_after_the_other_are_answered_in_their_order(server: Listening) -> None:
    statuses, _ = send(server.port, NEXT + POST + b"\r\n" + NEXT, wait_s=0.7)
    assert statuses == [200, 405, 200]


def test_what_follows_a_request_without_a_body_is_no_body(server: Listening) -> None:
    """A GET with bytes behind it: they are the next request, or none at all."""
    statuses, closed = send(server.port, NEXT + b"{}\r\n\r\n" + NEXT)
    assert (statuses, closed) == ([200, 400], True)


@pytest.mark.parametrize("sent", [POST + b"Content-Length: 9\r\n\r\nab", CHUNKED + b"9\r\nab"])
def test_a_client_that_leaves_in_its_body_fails_nothing(
    server: Listening, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(sent)
    assert send(server.port, NEXT, wait_s=0.7)[0] == [200]
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_no_refusal_fails_in_the_log(server: Listening, caplog: pytest.LogCaptureFixture) -> None:
    for case in (*AMBIGUOUS.values(), *LYING.values()):
        send(server.port, case, wait_s=0.05)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
