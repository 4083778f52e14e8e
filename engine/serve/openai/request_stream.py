"""One request between the HTTP side and the engine's thread: its sequences and their output."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from engine.errors import EngineError
from engine.serve.batching.scheduler import EngineLoop, QueueFullError, TooManyError
from engine.serve.batching.sequence import Deliver, SequenceRequest, StepOutput
from engine.serve.openai.errors import ApiError


@dataclass(frozen=True)
class Piece:
    """One step's output for the choice of this index."""

    index: int
    output: StepOutput


class RequestStream:
    """Submits a request's sequences at once; iterate over its pieces, then close it.

    Closing before the last piece cancels running sequences. Raises ApiError: 400 if there are more
    than it would ever take, 429 if the queue is full, 503 if the engine has failed.
    """

    def __init__(self, engine: EngineLoop, wanted: Sequence[SequenceRequest]) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._open = len(wanted)
        pairs = [(one, self._outlet(number)) for number, one in enumerate(wanted)]
        try:
            self._sequences = engine.submit(pairs)
        except TooManyError as error:
            raise ApiError(400, str(error), param="n") from None
        except QueueFullError as error:
            raise ApiError(429, str(error), code="rate_limit_exceeded") from None
        except EngineError as error:
            raise ApiError(503, str(error), code="unavailable") from None

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield pieces until every sequence has ended. Raises ApiError if one failed."""
        while self._open:
            piece = await self._pieces.get()
            if piece.output.error is not None:
                raise ApiError(500, piece.output.error, code="engine_error")
            if piece.output.last:
                self._open -= 1
            yield piece

    def close(self) -> None:
        """Cancel the sequences that are not finished."""
        self._engine.cancel(self._sequences)

    def _outlet(self, index: int) -> Deliver:
        def deliver(output: StepOutput) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended, nobody receives
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, Piece(index, output))

        return deliver
