"""Micro-batches that pass the model at once: decoded tokens in one pass, others as greenlets.

Each greenlet runs the model's own forward, and the hub computes their experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import greenlet
import torch

from engine.errors import ModelError
from engine.kv_cache.static_rooms import StaticKv
from engine.run.experts_call import ExpertsCall
from engine.run.moe_layers import ExpertsRuntime
from engine.run.time_split import PhaseClock


@dataclass
class MicroBatch:
    """Sequences of equal length that pass the model together.

    tokens: the next input [B, S]; keep: number of last positions whose logits are needed (0: all);
    kv: transformers' cache; None: the engine creates it, or the model at its first forward.
    """

    tokens: torch.Tensor
    keep: int = 1
    kv: Any = None


class DecodePass(Protocol):
    """Decodes one token of each sequence faster than the model's own forward."""

    def logits(
        self,
        tokens: Sequence[torch.Tensor],
        caches: Sequence[Any],
        runtime: ExpertsRuntime | None = None,
    ) -> list[torch.Tensor] | None:
        """Micro-batches [B, 1] -> logits [B, 1, V] of each, and their keys and values appended.
        None: the model's own forward has to; nothing has changed.

        runtime: the experts' if no other sequences wait for it.
        """


def check_token_ids(tokens: torch.Tensor, vocabulary: int) -> None:
    """Raise ModelError for ids that have no embedding: on a CPU the lookup would raise IndexError,
    on an accelerator it would end the process. tokens: any shape, on the host."""
    most = int(tokens.max()) if tokens.numel() else 0
    if most >= vocabulary:
        raise ModelError(
            f"the tokenizer gives token {most}, the model has {vocabulary}: its tokenizer files "
            "belong to another model, or tokens were added to them alone; copy them from the "
            "checkpoint's source"
        )


def single_tokens(batches: Sequence[MicroBatch]) -> bool:
    """Whether each has no more than one sequence's next token."""
    return all(batch.tokens.numel() == 1 for batch in batches)


def forward_together(
    model: Any,
    batches: Sequence[MicroBatch],
    runtime: ExpertsRuntime,
    clock: PhaseClock,
    consume: Callable[[int, torch.Tensor], Any] | None = None,
    faster: DecodePass | None = None,
) -> list[Any]:
    """Run one forward of every micro-batch, sharing each expert load: together as one where all of
    them decode a token that `faster` takes, else each in a greenlet.

    Returns the logits [B, keep, V] of each; with `consume`, the result of consume(number, logits),
    called as soon as each is done, so that the logits of all need not be held together. faster:
    runs instead of the model's own forward where it can.
    """
    runtime.begin_pass([batch.tokens for batch in batches])
    outermost = greenlet.getcurrent().parent is None
    if outermost and faster is not None and len(batches) > 1:
        clock.switch("non_expert")
        tokens, caches = [batch.tokens for batch in batches], [batch.kv for batch in batches]
        logits = faster.logits(tokens, caches, runtime)
        clock.switch("other")
        if logits is not None:
            runtime.end_pass()
            return logits if consume is None else list(map(consume, itertools.count(), logits))
    if outermost and len(batches) == 1:  # nothing to share
        alone = [_forward(model, 0, batches[0], clock, consume, faster, runtime)()]
        runtime.end_pass()
        return alone
    workers = [
        greenlet.greenlet(_forward(model, number, batch, clock, consume, faster))
        for number, batch in enumerate(batches)
    ]
    results: list[Any] = [worker.switch() for worker in workers]
    while any(isinstance(result, ExpertsCall) for result in results):
        assert all(isinstance(result, ExpertsCall) for result in results), "micro-batches diverged"
        outputs = runtime.compute(results)
        results = [worker.switch(output) for worker, output in zip(workers, outputs, strict=True)]
    runtime.end_pass()
    return results


def _forward(
    model: Any,
    number: int,
    batch: MicroBatch,
    clock: PhaseClock,
    consume: Callable[[int, torch.Tensor], Any] | None,
    faster: DecodePass | None,
    alone: ExpertsRuntime | None = None,
) -> Callable[[], Any]:
    def run() -> Any:
        clock.switch("non_expert")
        if isinstance(batch.kv, StaticKv):
            batch.kv.make_room(batch.tokens.shape[1])
        found = None if faster is None else faster.logits([batch.tokens], [batch.kv], alone)
        if found is not None:
            (logits,) = found
        else:
            output = model(
                input_ids=batch.tokens,
                cache=batch.kv,
                use_cache=True,
                logits_to_keep=batch.keep,
            )
            logits, batch.kv = output.logits, output.cache
        clock.switch("other")
        return logits if consume is None else consume(number, logits)

    return run
