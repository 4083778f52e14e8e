"""One decoded token of each sequence in the model's own forward, of all micro-batches together.

What surrounds the experts is read and queued once for all; only attention runs for each micro-batch
by itself, over its own keys and values, whatever their lengths. For models of any structure whose
attention goes through transformers' interface. Whether a model has it is tried: with experts that
give nothing the pass must ask and find what the model's forward does for each micro-batch alone.

Letters: B sequences, T = B tokens of all micro-batches, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from engine.experts.kernels.gemm import all_cores, single_token_products
from engine.kv_cache.joined_kv import JoinedKv
from engine.model.hook import ExpertsPort, answered_by, redirected
from engine.model.joined_attention import JoinedAttention, StructureError
from engine.model.loader import LoadedModel
from engine.model.trial import TRIAL_FAILURES
from engine.run.experts_call import ExpertsCall, GateInput
from engine.run.moe_layers import ExpertsRuntime

_SIZES, _PROMPTS = (1, 2), (3, 7)  # sequences of the trial's micro-batches, and their tokens
_KNOWN_LAYERS = ("full_attention", "sliding_attention")
_ROUNDING = 0.1  # of a tensor's norm: products of more tokens add in another order
logger = logging.getLogger(__name__)


class JoinedPass:
    """Implements DecodePass for several micro-batches; a single one is left to others."""

    def __init__(self, model: LoadedModel, *, packs: bool) -> None:
        """packs: see JoinedKv."""
        self._model = model
        self._packs = packs
        self._attention = JoinedAttention(model.model)

    @classmethod
    def of(cls, model: LoadedModel, *, exact: bool) -> JoinedPass | None:
        """The pass of this model; None if its micro-batches have to decode one after another.
        exact: whether it has to give the bits of the model's own forward. What packs only rounds as
        it does: a product for the tokens of all sequences is none of its own."""
        if not _looks_usual(model.model):
            return None
        try:
            return cls._tried(model, 0.0 if exact else _ROUNDING)
        except (StructureError, *TRIAL_FAILURES) as error:
            logger.debug("sequences do not decode together: %s", error)
            return None

    @classmethod
    def _tried(cls, model: LoadedModel, tolerance: float) -> JoinedPass | None:
        try:
            found = cls(model, packs=False)
            return found if found._agrees(tolerance) else None
        except StructureError:
            found = cls(model, packs=True)
            return found if found._agrees(_ROUNDING) else None

    def logits(
        self,
        tokens: Sequence[torch.Tensor],
        caches: Sequence[Any],
        runtime: ExpertsRuntime | None = None,
    ) -> list[torch.Tensor] | None:
        """See DecodePass."""
        if len(tokens) < 2 or runtime is None or any(batch.shape[1] != 1 for batch in tokens):
            return None
        if any(cache is None for cache in caches):
            return None
        port = _JoinedPort(runtime, [len(batch) for batch in tokens])
        # what is packed has as many rows as there are tokens so far
        cores = all_cores(self._packs and tokens[0].device.type == "cpu")
        with redirected(self._model, port), single_token_products(False), cores:
            return self._forward(tokens, caches)

    def over(self, model: LoadedModel) -> JoinedPass:
        """The pass of the same model with other weights."""
        return JoinedPass(model, packs=self._packs)

    def _forward(self, tokens: Sequence[torch.Tensor], caches: Sequence[Any]) -> list[torch.Tensor]:
        sizes = [len(batch) for batch in tokens]
        joined = torch.cat(list(tokens))  # [T, 1]
        before = torch.tensor([cache.get_seq_length() for cache in caches])
        positions = before.repeat_interleave(torch.tensor(sizes))[:, None]  # [T, 1]
        states = JoinedKv(caches, sizes, packs=self._packs)
        with self._attention.joined(states):
            output = self._model.model(
                input_ids=joined,
                position_ids=positions.to(joined.device, non_blocking=True),
                cache=states,
                use_cache=True,
                logits_to_keep=1,
            )
        return list(torch.split(output.logits, sizes))

    def _agrees(self, tolerance: float) -> bool:
        """Whether the pass asks routers and experts the same, gives the same logits and leaves the
        same keys and values as the model's own forward of each micro-batch, within this part of
        each tensor's norm."""
        own, alone, together = self._model, _Listener(), _Listener()
        with torch.inference_mode():
            caches = self._read_prompts()
            ways = caches, copy.deepcopy(caches)
            tokens = [torch.arange(5, 5 + size)[:, None] for size in _SIZES]
            expected = []
            with _answered(own, alone):
                for one, cache in zip(tokens, caches, strict=True):
                    with single_token_products(len(one) == 1 and own.dtype != torch.float32):
                        output = own.model(input_ids=one, cache=cache, use_cache=True)
                    expected.append(output.logits)
            with _answered(own, together):
                found = self._forward(tokens, ways[1])
        layers = len(together.asked)
        if not layers or len(alone.asked) != layers * len(_SIZES):
            return False
        asked = [
            torch.cat(alone.asked[number::layers]) for number in range(layers)
        ]  # of each layer, of all micro-batches
        pairs = [*zip(expected, found, strict=True), *zip(asked, together.asked, strict=True)]
        for first, second in zip(*ways, strict=True):
            for one, other in zip(first.layers, second.layers, strict=True):
                pairs += [(one.keys, other.keys), (one.values, other.values)]
        return all(_alike(one, other, tolerance) for one, other in pairs)

    def _read_prompts(self) -> list[Any]:
        """kv_caches of micro-batches with prompts of other lengths."""
        caches = [DynamicCache(config=self._model.model.config) for _ in _SIZES]
        with _answered(self._model, _Listener()):
            for size, length, cache in zip(_SIZES, _PROMPTS, caches, strict=True):
                prompt = torch.arange(3, 3 + size * length).view(size, length)
                self._model.model(input_ids=prompt, cache=cache, use_cache=True)
        return caches


class _JoinedPort:
    """Implements ExpertsPort: tells the runtime of each micro-batch when it asks for experts."""

    def __init__(self, runtime: ExpertsRuntime, sizes: Sequence[int]) -> None:
        self._runtime = runtime
        self._sizes = sizes
        self._entered: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.watches_gate = runtime.watches_gate

    def gate_entered(
        self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        """Keep the router's arguments."""
        self._entered = arguments, keywords

    def gate_left(self, layer: int, output: Any) -> None:
        """Pass on the router's output."""
        self._runtime.gate_left(layer, output)

    def experts(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The experts of all micro-batches, [T, D]."""
        entered, self._entered = self._entered, None
        call = ExpertsCall(layer, hidden, index, weights)
        out = self._runtime.joined(GateInput(self._sizes, entered), call)
        self._entered = None  # predictions ask routers too
        return out


class _Listener:
    """Implements ExpertsPort: keeps what experts are given, [T, D], and gives nothing."""

    watches_gate = False

    def __init__(self) -> None:
        self.asked: list[torch.Tensor] = []

    def gate_entered(
        self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        """Does nothing."""

    def gate_left(self, layer: int, output: Any) -> None:
        """Does nothing."""

    def experts(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Zeros [T, D]."""
        self.asked.append(hidden.clone())
        return torch.zeros_like(hidden)


def _answered(model: LoadedModel, port: ExpertsPort) -> ExitStack:
    with ExitStack() as opened:
        for layer in model.layers:
            opened.enter_context(answered_by(layer, port))
        return opened.pop_all()


def _looks_usual(model: Any) -> bool:
    """Whether every layer keeps keys and values that one new token sees all of, at angles that
    depend on its position alone."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    if any(kind not in _KNOWN_LAYERS for kind in kinds):
        return False
    layers = DynamicCache(config=model.config).layers
    if any(type(one) not in (DynamicLayer, DynamicSlidingWindowLayer) for one in layers):
        return False
    return len(layers) > 0 and not any(map(_varies, model.modules()))


def _varies(module: Any) -> bool:
    """Whether its angles depend on how long the longest sequence is."""
    found = getattr(module, "rope_type", None)
    kinds = found.values() if isinstance(found, dict) else [found]  # of kinds of layers
    return any("dynamic" in str(kind) or kind == "longrope" for kind in kinds)


def _alike(expected: Any, found: Any, tolerance: float) -> bool:
    if expected is None or found is None:  # a layer that is never asked
        return expected is found
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not tolerance:
        return torch.equal(expected, found)
    difference = (expected.float() - found.float()).norm()
    return bool(difference <= tolerance * expected.float().norm())
