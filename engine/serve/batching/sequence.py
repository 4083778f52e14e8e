"""One sequence during generation: its request, and the output of each step.

In: logits. Out: StepOutput events, passed to `deliver` in the engine's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from engine.errors import EvaluationError
from engine.run.detokenize import TextPieces
from engine.run.micro_batch import MicroBatch
from engine.run.sampling import Sampler, SamplingOptions, check_logits
from engine.serve.batching.stop_strings import Released, StopGate

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class SequenceRequest:
    """One sequence that a client requested.

    prompt: token ids, at least one; max_tokens: maximum number of generated tokens; logprobs:
    number of likeliest tokens to report beside each chosen one, None: no probabilities at all;
    seeded: the client gave the seed, so that it may expect the same answer again.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingOptions
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    seeded: bool = False


@dataclass(frozen=True)
class Likely:
    """A token's text and its natural log probability."""

    text: str
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token, and the likeliest tokens at its position."""

    chosen: Likely
    top: tuple[Likely, ...]


@dataclass(frozen=True)
class StepOutput:
    """The output of one step.

    tokens: number of tokens generated so far; cached: number of prompt tokens that were reused;
    finish: why it ended, None before the end; error: why it failed, which ends it too.
    """

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens: int = 0
    cached: int = 0
    finish: Finish | None = None
    error: str | None = None

    @property
    def last(self) -> bool:
        """Whether this is the last output."""
        return self.finish is not None or self.error is not None


Deliver = Callable[[StepOutput], None]


@dataclass
class Timing:
    """Clock readings in seconds: of the request, of the first and of the newest token."""

    asked_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    last_s: float = 0.0
    tokens: int = 0

    def note_token(self) -> None:
        """Record the arrival of a token."""
        self.last_s = time.monotonic()
        if self.first_s is None:
            self.first_s = self.last_s
        self.tokens += 1

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the request to the first token."""
        return None if self.first_s is None else self.first_s - self.asked_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first."""
        if self.first_s is None or self.tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)


class LiveSequence:
    """One running sequence, with its own micro-batch.

    cancelled: set by any thread when the client has gone. cached: number of prompt tokens whose
    keys and values were reused.
    """

    def __init__(
        self, wanted: SequenceRequest, tokenizer: Any, ends: frozenset[int], deliver: Deliver
    ) -> None:
        self.wanted = wanted
        self.deliver = deliver
        self.batch = MicroBatch(torch.empty(1, 0, dtype=torch.long))
        self.timing = Timing()
        self.cancelled = False
        self.cached = 0
        self.done = False
        self._tokenizer = tokenizer
        self._ends = ends
        self._sampler = Sampler(wanted.sampling)
        self._pieces = TextPieces(tokenizer)
        self._gate: StopGate[TokenLogprob | None] = StopGate(wanted.stop)

    def accept(self, logits: torch.Tensor) -> None:
        """Choose the next token from logits [1, S, V] and deliver its output."""
        last = logits[:, -1]  # [1, V]
        try:
            check_logits(last, self.timing.tokens + 1)
        except EvaluationError as error:
            self.fail(str(error))
            return
        token = int(self._sampler(last)[0])
        if token in self._ends:
            self._end(self._gate.finish(self._pieces.finish()), "stop")
            return
        self.timing.note_token()
        released = self._gate.push(self._pieces.push(token), self._logprob(last[0], token))
        if released.ended:
            self._end(released, "stop")
        elif self.timing.tokens == self.wanted.max_tokens:
            rest = self._gate.finish(self._pieces.finish())
            both = Released(released.text + rest.text, released.items + rest.items, rest.ended)
            self._end(both, "stop" if rest.ended else "length")
        else:
            self._send(released)
            self.batch.tokens = torch.tensor([[token]])

    def fail(self, reason: str) -> None:
        """End the sequence with an error."""
        self.done = True
        self.deliver(StepOutput(tokens=self.timing.tokens, error=reason))

    def _send(self, released: Released[TokenLogprob | None]) -> None:
        output = self._output(released, None)
        if output.text or output.logprobs:
            self.deliver(output)

    def _end(self, released: Released[TokenLogprob | None], finish: Finish) -> None:
        self.done = True
        self.deliver(self._output(released, finish))

    def _output(self, released: Released[TokenLogprob | None], finish: Finish | None) -> StepOutput:
        logprobs = tuple(one for one in released.items if one is not None)
        return StepOutput(released.text, logprobs, self.timing.tokens, self.cached, finish)

    def _logprob(self, row: torch.Tensor, token: int) -> TokenLogprob | None:
        """Log probabilities from logits [V], before temperature and nucleus."""
        count = self.wanted.logprobs
        if count is None:
            return None
        logs = torch.log_softmax(row.float().cpu(), dim=-1)  # [V]
        best = logs.topk(count) if count else None
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
        top = tuple(Likely(self._text(one), value) for one, value in pairs)
        return TokenLogprob(Likely(self._text(token), float(logs[token])), top)

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))
