"""The order of calls to CUDA graphs, on a simulated torch.cuda."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engine.device.capture import CudaCapturer

CARD = torch.device("cuda:0")


class Cuda:
    """Keeps what it was asked. invalid: ending a capture fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.mode: int | str = 0
        self.invalid = False
        self.pools = 0

    def stream(self, device: Any) -> Any:
        return Stream(self, "own")

    def pool(self) -> str:
        self.pools += 1
        return f"pool {self.pools}"

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.asked.append(f"on {stream.name}")
        yield
        self.asked.append(f"off {stream.name}")


class Stream:
    device = CARD

    def __init__(self, cuda: Cuda, name: str) -> None:
        self.name = name
        self._cuda = cuda

    def wait_stream(self, other: Stream) -> None:
        self._cuda.asked.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()

    class Graph:
        def capture_begin(self, pool: str, capture_error_mode: str) -> None:
            made.asked.append(f"begin {pool} {capture_error_mode}")

        def capture_end(self) -> None:
            made.asked.append("end")
            if made.invalid:
                raise RuntimeError("invalid capture")

        def replay(self) -> None:
            made.asked.append("replay")

    def set_mode(mode: int | str) -> None:
        made.mode = mode

    replaced = {
        "Stream": made.stream,
        "current_stream": lambda device: Stream(made, "compute"),
        "stream": made.on,
        "graph_pool_handle": made.pool,
        "CUDAGraph": Graph,
        "get_sync_debug_mode": lambda: made.mode,
        "set_sync_debug_mode": set_mode,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def test_parts_of_a_capture_share_a_pool_on_a_stream_between_what_comes_before_and_after(
    cuda: Cuda,
) -> None:
    capturer = CudaCapturer(CARD)
    with capturer.capture() as capture:
        capture.begin()
        first = capture.end()
        capture.begin()
        capture.end()
    first.replay()
    with capturer.capture() as capture:
        capture.begin()
        capture.end()
    begun, ended = ["own waits for compute", "on own"], ["off own", "compute waits for own"]
    part = ["begin pool 1 thread_local", "end"]
    other = ["begin pool 2 thread_local", "end"]
    assert cuda.asked == [*begun, *part, *part, *ended, "replay", *begun, *other, *ended]


def test_an_error_ends_the_part_that_it_interrupts(cuda: Cuda) -> None:
    def fail() -> None:
        with CudaCapturer(CARD).capture() as capture:
            capture.begin()
            raise RuntimeError("the model's own")

    cuda.invalid = True
    with pytest.raises(RuntimeError, match="the model's own"):
        fail()
    assert cuda.asked.count("end") == 1
    assert cuda.asked[-1] == "compute waits for own"


def test_a_rehearsal_refuses_to_wait_and_puts_the_mode_back(cuda: Cuda) -> None:
    def fail() -> None:
        with CudaCapturer(CARD).rehearsal() as capture:
            capture.begin()
            capture.end()
            assert cuda.mode == "error"
            raise RuntimeError("waits")

    cuda.mode = 1
    with pytest.raises(RuntimeError, match="waits"):
        fail()
    assert cuda.mode == 1
    assert "begin" not in " ".join(cuda.asked)
    assert cuda.asked[-1] == "compute waits for own"
