"""One sequence during generation: its request, and the output of each step.

In: logits. Out: StepOutput events, passed to `deliver` in the engine's thread.
"""

from __future__ import annotations

import math
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
from engine.serve.batching.token_texts import Likely, TokenLogprob, TokenTexts

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class SequenceRequest:
    """One sequence that a client requested.

    prompt: token ids, at least one; max_tokens: maximum number of generated tokens; logprobs:
    number of likeliest tokens to report beside each chosen one, None: no probabilities at all;
    seeded: the client gave the seed, so that it may expect the same answer again; min_tokens:
    neither an end token nor a stop string ends the text before; ignore_eos: no end token does.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingOptions
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    seeded: bool = False
    min_tokens: int = 0
    ignore_eos: bool = False


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
    """Clock readings in seconds: of the request, of its place in the group, of the first, the
    newest and the second newest token."""

    asked_s: float = field(default_factory=time.monotonic)
    started_s: float | None = None
    first_s: float | None = None
    last_s: float = 0.0
    before_s: float = 0.0
    tokens: int = 0

    def note_token(self) -> None:
        """Record the arrival of a token."""
        self.before_s, self.last_s = self.last_s, time.monotonic()
        if self.first_s is None:
            self.first_s = self.last_s
        self.tokens += 1

    @property
    def queue_s(self) -> float | None:
        """Seconds from the request to its place in the group."""
        return None if self.started_s is None else self.started_s - self.asked_s

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

    @property
    def newest_s(self) -> float:
        """Seconds from the second newest token to the newest; there must be two."""
        return self.last_s - self.before_s

    @property
    def e2e_s(self) -> float | None:
        """Seconds from the request to the newest token."""
        return None if self.first_s is None else self.last_s - self.asked_s

    @property
    def prefill_s(self) -> float | None:
        """Seconds from the place in the group to the first token."""
        if self.first_s is None or self.started_s is None:
            return None
        return self.first_s - self.started_s

    @property
    def decode_s(self) -> float | None:
        """Seconds from the first token to the newest."""
        return None if self.first_s is None else self.last_s - self.first_s

    @property
    def inference_s(self) -> float | None:
        """Seconds from the place in the group to the newest token."""
        if self.first_s is None or self.started_s is None:
            return None
        return self.last_s - self.started_s


class LiveSequence:
    """One running sequence, with its own micro-batch.

    cancelled: set by any thread when the client has gone. cached: number of prompt tokens whose
    keys and values were reused. finish: why it ended, None before and if it failed.
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
        self.finish: Finish | None = None
        self._ends = frozenset() if wanted.ignore_eos else ends
        self._sampler = Sampler(wanted.sampling, wanted.prompt)
        self._pieces = TextPieces(tokenizer)
        self._texts = TokenTexts(tokenizer)
        self._gate: StopGate[TokenLogprob | None] = StopGate(wanted.stop)

    def accept(self, logits: torch.Tensor) -> None:
        """Choose the next token from logits [1, S, V] and deliver its output."""
        last = logits[:, -1]  # [1, V]
        try:
            check_logits(last, self.timing.tokens + 1)
        except EvaluationError as error:
            self.fail(str(error))
            return
        early = self.timing.tokens < self.wanted.min_tokens
        token = int(self._sampler(self._without_ends(last) if early else last)[0])
        if token in self._ends:
            self._end(self._gate.finish(self._pieces.finish()), "stop")
            return
        self.timing.note_token()
        item = self._logprob(last[0], token)
        released = self._gate.push(self._pieces.push(token), item, armed=not early)
        if released.ended:
            self._end(released, "stop")
        elif self.timing.tokens == self.wanted.max_tokens:
            rest = self._gate.finish(self._pieces.finish())
            both = Released(released.text + rest.text, released.items + rest.items, rest.ended)
            self._end(both, "stop" if rest.ended else "length")
        else:
            self._send(released)
            self.batch.tokens = torch.tensor([[token]])

    def _without_ends(self, last: torch.Tensor) -> torch.Tensor:
        """Logits [1, V] that leave no end token a chance."""
        ends = torch.tensor(sorted(self._ends), dtype=torch.long, device=last.device)
        return last.index_fill(-1, ends, -math.inf)

    def fail(self, reason: str) -> None:
        """End the sequence with an error."""
        self.done = True
        self.deliver(StepOutput(tokens=self.timing.tokens, error=reason))

    def _send(self, released: Released[TokenLogprob | None]) -> None:
        output = self._output(released, None)
        if output.text or output.logprobs:
            self.deliver(output)

    def _end(self, released: Released[TokenLogprob | None], finish: Finish) -> None:
        self.done, self.finish = True, finish
        self.deliver(self._output(released, finish))

    def _output(self, released: Released[TokenLogprob | None], finish: Finish | None) -> StepOutput:
        logprobs = self._texts.placed(released.items)
        return StepOutput(released.text, logprobs, self.timing.tokens, self.cached, finish)

    def _logprob(self, row: torch.Tensor, token: int) -> TokenLogprob | None:
        """Log probabilities from logits [V], before penalties, temperature and nucleus. Call before
        the token is pushed."""
        count = self.wanted.logprobs
        if count is None:
            return None
        logs = torch.log_softmax(row.float().cpu(), dim=-1)  # [V]
        best = logs.topk(min(count, len(logs))).indices.tolist()
        top = tuple(self._likely(one, float(logs[one])) for one in best)
        return TokenLogprob(self._likely(token, float(logs[token])), top)

    def _likely(self, token: int, logprob: float) -> Likely:
        return self._texts.alternative(token, self._pieces.would_be(token), logprob)
