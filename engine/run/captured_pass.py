"""One decoded token of each sequence as captured parts, with the experts of a layer between two.

The model's own forward is captured once for the keys and values of a micro-batch. Where it reaches
the experts of a layer, a part ends and the next one begins, so nothing of the model's structure has
to be known. A token is then the replay of these parts, each followed by the experts as always.

Letters: B sequences, T = B tokens, K chosen experts, D hidden, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from engine.config.settings import EngineConfig
from engine.device.base import Device
from engine.device.capture import Capture, Capturer, Graph
from engine.kv_cache.static_rooms import StaticKv
from engine.model.hook import redirected
from engine.model.kv_layers import plain_kv_layers
from engine.model.loader import LoadedModel
from engine.run.moe_layers import ExpertsRuntime

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """What runs up to the experts of a layer, and the tensors that it fills each time.

    entered: arguments and keywords of the router, left: its output; None where there is no router.
    hidden [T, D], index and weights [T, K]: what the experts are given; out [T, D]: where the next
    part reads what they give.
    """

    layer: int
    graph: Graph
    entered: tuple[tuple[Any, ...], dict[str, Any]] | None
    left: Any
    hidden: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    out: torch.Tensor


@dataclass(frozen=True)
class _Parts:
    """A whole forward pass: tokens [B, 1] -> logits [B, 1, V], in place."""

    tokens: torch.Tensor
    parts: Sequence[_Part]
    last: Graph
    logits: torch.Tensor


def eager_reason(model: Any, device: Device, config: EngineConfig) -> str | None:
    """Why nothing is captured under this config; None if it can be. model: transformers' own."""
    kv = config.kv
    if device.capturer is None:
        return "this device captures nothing"
    if kv.bits != 16 or kv.keep_fraction != 1 or kv.placement != "device":
        return "keys and values are not whole, at 16 bits, on the device"
    if config.serve.prefix_cache_tokens:
        return "keys and values that begin with a cached prefix grow"
    layers = model.config.get_text_config().num_hidden_layers
    if not model._can_compile_fullgraph or len(plain_kv_layers(model)) != layers:
        return "not all layers of this family can keep keys and values in one place"
    return None


class CapturedPass:
    """Implements DecodePass. eager_reason: why it decodes eagerly after all, once that is known.

    For a configuration: captured work holds the addresses of weights, keys and values.
    """

    def __init__(self, model: LoadedModel, runtime: ExpertsRuntime, capturer: Capturer) -> None:
        self._model = model
        self._runtime = runtime
        self._capturer = capturer
        self._captured: WeakKeyDictionary[Any, _Parts] = WeakKeyDictionary()  # by first kv layer
        self.eager_reason: str | None = None

    def logits(
        self,
        tokens: Sequence[torch.Tensor],
        caches: Sequence[Any],
        runtime: ExpertsRuntime | None = None,
    ) -> list[torch.Tensor] | None:
        """See DecodePass; several micro-batches come one by one."""
        if len(tokens) != 1 or tokens[0].shape[1] != 1 or self.eager_reason is not None:
            return None
        (batch,), (cache,) = tokens, caches
        if not isinstance(cache, StaticKv) or not cache.is_initialized:
            return None
        found = self._captured.get(cache.layers[0]) or self._capture(batch, cache)
        if found is None:
            return None
        found.tokens.copy_(batch)
        for part in found.parts:
            part.graph.replay()
            self._notify(part)
            given = part.hidden, part.index, part.weights
            part.out.copy_(self._runtime.experts(part.layer, *given))
        found.last.replay()
        return [found.logits.clone()]

    def _notify(self, part: _Part) -> None:
        """Tell of the router, which has run. What is read later than now is copied."""
        if part.entered is None:
            return
        arguments, keywords = part.entered
        if self._runtime.watches_gate:
            arguments = tuple(map(_copied, arguments))
            keywords = {name: _copied(value) for name, value in keywords.items()}
        self._runtime.gate_entered(part.layer, arguments, keywords)
        self._runtime.gate_left(part.layer, part.left)

    def _capture(self, batch: torch.Tensor, cache: StaticKv) -> _Parts | None:
        """Capture the forward pass of these sequences; their next token has not run afterwards.
        None, and the reason kept, if this model cannot be captured."""
        tokens = batch.clone()
        try:
            with _lengths_kept(cache):
                with self._capturer.rehearsal() as under_way:
                    self._cut(tokens, cache, under_way)
                with self._capturer.capture() as under_way:
                    found = self._cut(tokens, cache, under_way)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.eager_reason = f"this model cannot be captured: {str(error).splitlines()[0]}"
            logger.warning("decoding runs eagerly (slower): %s", self.eager_reason)
            return None
        self._captured[cache.layers[0]] = found
        return found

    def _cut(self, tokens: torch.Tensor, cache: StaticKv, capture: Capture) -> _Parts:
        """Run the model's forward once, in parts."""
        cutter = _Cutter(capture)
        with redirected(self._model, cutter):
            capture.begin()
            output = self._model.model(
                input_ids=tokens, cache=cache, use_cache=True, logits_to_keep=1
            )
        return _Parts(tokens, cutter.parts, capture.end(), output.logits)


class _Cutter:
    """Implements ExpertsPort: ends a part at the experts of each layer and begins the next."""

    watches_gate = False

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._entered: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._left: Any = None
        self.parts: list[_Part] = []

    def gate_entered(
        self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        """Keep the router's arguments."""
        self._entered = arguments, keywords

    def gate_left(self, layer: int, output: Any) -> None:
        """Keep the router's output."""
        self._left = output

    def experts(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The place of their output, which is not computed here."""
        out = torch.empty_like(hidden)
        graph, entered, left = self._capture.end(), self._entered, self._left
        self.parts.append(_Part(layer, graph, entered, left, hidden, index, weights, out))
        self._capture.begin()
        return out


@contextmanager
def _lengths_kept(cache: StaticKv) -> Iterator[None]:
    """Inside the block tokens may be written; afterwards the cache is as long as before."""
    lengths = [layer.cumulative_length for layer in cache.layers]
    before = [length.clone() for length in lengths]
    try:
        yield
    finally:
        for length, former in zip(lengths, before, strict=True):
            length.copy_(former)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
