"""Layer-wise streaming: whole texts pass layer by layer, so each expert is read once for all.

It serves scores, references and sensitivities, where nothing is generated and no cache is measured.
Every batch runs the model's own forward in a greenlet, without keys and values, and stops at each
MoE layer; when all batches have arrived there, the layer's experts stream through a few slots in
order, and each is multiplied with every token that chose it.

Letters: B sequences, S tokens of each, T tokens of all batches, K chosen experts, D hidden, V
vocabulary.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import greenlet
import torch

from engine.device.base import Device
from engine.errors import EngineError
from engine.experts.kernels.multiplier import Product
from engine.experts.slots import Slots
from engine.experts.tiers.disk import ExpertStore
from engine.experts.transfer import Transfer, TransferEngine
from engine.model.hook import attach, detach
from engine.model.loader import LoadedModel
from engine.policy.pools import Pool
from engine.policy.transfer_queue import FifoQueue
from engine.precision.table import Table
from engine.run.experts_call import ExpertsCall
from engine.run.micro_batch import check_token_ids
from engine.run.moe_layers import expert_output
from engine.types import Bits, ExpertId

Read = Callable[[int, int, int, torch.Tensor], None]
"""Called with (batch, row, first position, logits [n, V]) piece by piece."""
BitsOf = Callable[[int, ExpertId], Bits]
"""The precision of an expert in a variant."""
Routed = Callable[[int, int, torch.Tensor], None]
"""Called with (layer, batch, index [B*S, K]); for padding the index is the number of experts."""


@dataclass(frozen=True)
class TextBatch:
    """Sequences of one padded length that pass the non-expert weights together.

    tokens: [B, S]; lengths: of each sequence without its padding, which is at its end; wanted:
    first position of each sequence whose logits are needed; variant: selects its precisions.
    """

    tokens: torch.Tensor
    lengths: tuple[int, ...]
    wanted: tuple[int, ...]
    variant: int = 0


class LayerWise:
    """Implements ExpertsPort over a ring of slots.

    stores, multipliers: by bits; bits, table: of every expert unless a run says otherwise; slots:
    capacity for records; capacity_tokens: tokens of all batches of a run; batch_tokens: of one
    batch, and of one product with an expert; logit_rows: number of positions whose logits are
    computed at once. reads: number of reads of each record so far.
    """

    def __init__(
        self,
        model: LoadedModel,
        device: Device,
        stores: Mapping[Bits, ExpertStore],
        multipliers: Mapping[Bits, Product],
        *,
        bits: Bits,
        table: Table | None,
        slots: int,
        threads: int,
        chunk_bytes: int,
        in_flight: int,
        capacity_tokens: int,
        batch_tokens: int,
        logit_rows: int,
    ) -> None:
        self._model = model
        self._device = device
        self._multipliers = dict(multipliers)
        self._bits = bits
        self._table = table
        self.capacity_tokens = capacity_tokens
        self.batch_tokens = batch_tokens
        self._logit_rows = logit_rows
        self._batches: dict[Any, TextBatch] = {}
        self._head_input: torch.Tensor | None = None
        self.reads: dict[tuple[ExpertId, Bits], int] = defaultdict(int)
        with ExitStack() as opened:
            records = {bits: store.record for bits, store in stores.items()}
            self._slots = Slots(device, records, [Pool(None, tuple(records), slots)])
            opened.callback(self._slots.close)
            self._transfers = TransferEngine(
                self._slots,
                dict(stores),
                FifoQueue[Transfer](),
                threads=threads,
                chunk_bytes=chunk_bytes,
                in_flight=in_flight,
            )
            opened.callback(self._transfers.close)
            handles = attach(model, self)
            opened.callback(detach, model, handles)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Stop the threads, free the slots, detach from the model."""
        self._opened.close()

    def run(
        self,
        batches: Sequence[TextBatch],
        read: Read,
        *,
        bits_of: BitsOf | None = None,
        on_routed: Routed | None = None,
    ) -> None:
        """Run one pass over all batches, of at most capacity_tokens tokens.

        Raises UnknownHeadError if the model changes its logits after its output head: then they
        cannot be computed piece by piece, and the ordinary path has to score.
        """
        with torch.inference_mode(), self._watch_head():
            workers = [
                greenlet.greenlet(self._forward(number, batch, read))
                for number, batch in enumerate(batches)
            ]
            self._batches = dict(zip(workers, batches, strict=True))
            results: list[Any] = [worker.switch() for worker in workers]
            while any(isinstance(result, ExpertsCall) for result in results):
                out = self._layer(results, batches, bits_of or self._own_bits, on_routed)  # [T, D]
                first = 0
                for number, worker in enumerate(workers):
                    hidden = results[number].hidden
                    last = first + hidden.shape[0]
                    results[number] = worker.switch(out[first:last].to(hidden.dtype))
                    first = last
            self._batches = {}

    # ExpertsPort -------------------------------------------------------------------------------

    watches_gate = False

    def gate_entered(
        self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        """Does nothing: there is no prediction."""

    def gate_left(self, layer: int, output: Any) -> None:
        """Does nothing: no router output is needed."""

    def experts(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Switch to the hub, which resumes with the output [B*S, D]. Padding chooses no expert."""
        batch = self._batches[greenlet.getcurrent()]
        size = batch.tokens.shape[1]
        if min(batch.lengths) < size:
            lengths = torch.tensor(batch.lengths, device=index.device)
            padding = torch.arange(size, device=index.device)[None] >= lengths[:, None]  # [B, S]
            index = index.masked_fill(padding.reshape(-1, 1), self._model.layers[layer].count)
        out: torch.Tensor = greenlet.getcurrent().parent.switch(
            ExpertsCall(layer, hidden, index, weights)
        )
        return out

    # The hub -----------------------------------------------------------------------------------

    def _layer(
        self,
        calls: Sequence[ExpertsCall],
        batches: Sequence[TextBatch],
        bits_of: BitsOf,
        on_routed: Routed | None,
    ) -> torch.Tensor:
        """Compute one layer at which all batches have arrived. Returns the sums of their
        experts, [T, D] float32."""
        layer = calls[0].layer
        assert all(call.layer == layer for call in calls), "batches diverged"
        if on_routed is not None:
            for number, call in enumerate(calls):
                on_routed(layer, number, call.index)
        hidden = torch.cat([call.hidden for call in calls])  # [T, D]
        weights = torch.cat([call.weights for call in calls])  # [T, K]
        work = self._work(layer, calls, batches, bits_of)
        module = self._model.layers[layer].experts
        out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        chosen = weights.shape[1]
        for (expert, bits), slot in self._stream(list(work)):
            view = self._slots.view(slot, bits)
            places = torch.cat(work[expert, bits])  # [t] of [T*K]
            for piece in torch.split(places, self.batch_tokens):
                rows = piece // chosen
                y = expert_output(module, self._multipliers[bits], view, hidden[rows])
                weighted = y * weights.view(-1)[piece].unsqueeze(-1).to(y.dtype)
                out[rows] += weighted.float()  # a token chooses an expert once: rows are distinct
        return out

    def _own_bits(self, variant: int, expert: ExpertId) -> Bits:
        return self._table[expert.layer][expert.expert] if self._table else self._bits

    def _work(
        self,
        layer: int,
        calls: Sequence[ExpertsCall],
        batches: Sequence[TextBatch],
        bits_of: BitsOf,
    ) -> dict[tuple[ExpertId, Bits], list[torch.Tensor]]:
        """Indices in [T*K] of the tokens of each expert and precision, in order of the experts."""
        count = self._model.layers[layer].count
        by_variant: dict[int, list[torch.Tensor]] = defaultdict(list)
        first = 0
        for call, batch in zip(calls, batches, strict=True):
            places = torch.arange(call.index.numel(), device=call.index.device) + first
            by_variant[batch.variant].append(torch.stack((call.index.reshape(-1), places)))
            first += call.index.numel()
        work: dict[tuple[ExpertId, Bits], list[torch.Tensor]] = defaultdict(list)
        for variant, tables in by_variant.items():
            table = torch.cat(tables, dim=1)  # [2, t*K]: expert, place
            order = torch.argsort(table[0], stable=True)
            sizes = torch.bincount(table[0], minlength=count + 1).tolist()
            parts = torch.split(table[1][order], sizes)
            for index in range(count):
                if sizes[index]:
                    expert = ExpertId(layer, index)
                    work[expert, bits_of(variant, expert)].append(parts[index])
        return dict(sorted(work.items()))

    def _stream(
        self, wanted: Sequence[tuple[ExpertId, Bits]]
    ) -> Iterator[tuple[tuple[ExpertId, Bits], int]]:
        """Yield each record once, in order, with its slot, which is valid until the next step."""
        coming = deque(wanted)
        moving: deque[Transfer] = deque()

        def start(slot: int) -> None:
            if coming:
                expert, bits = coming.popleft()
                self.reads[expert, bits] += 1
                moving.append(self._transfers.submit(expert, slot, bits, demanded=True))

        for slot in range(self._slots.count):
            start(slot)
        for key in wanted:
            transfer = moving.popleft()
            self._transfers.wait([transfer])
            for event in transfer.events:
                self._device.wait(event)
            yield key, transfer.slot
            self._slots.mark_used([transfer.slot])
            start(transfer.slot)

    # The logits --------------------------------------------------------------------------------

    def _forward(self, number: int, batch: TextBatch, read: Read) -> Callable[[], None]:
        def run() -> None:
            check_token_ids(batch.tokens, self._model.config.get_text_config().vocab_size)
            tokens = batch.tokens.to(self._device.torch_device)
            logits = self._model.model(input_ids=tokens, use_cache=False, logits_to_keep=0).logits
            states, self._head_input = self._head_input, None
            if states is None or not self._is_plain(states, logits):
                raise UnknownHeadError(type(self._model.model).__name__)
            for row, (start, stop) in enumerate(zip(batch.wanted, batch.lengths, strict=True)):
                for position in range(start, stop, self._logit_rows):
                    piece = states[row, position : min(stop, position + self._logit_rows)]
                    read(number, row, position, self._head(piece))  # [n, V]

        return run

    def _is_plain(self, states: torch.Tensor, logits: torch.Tensor) -> bool:
        """Whether the last position's logits equal the head's output on its last state."""
        own = self._head(states[:, -1:]).to(logits.dtype)
        return torch.allclose(own, logits, rtol=0, atol=0, equal_nan=True)

    def _head(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the output head, [..., D] -> [..., V]."""
        head = self._model.model.get_output_embeddings()
        logits: torch.Tensor = head.forward(states)  # without hooks
        return logits

    @contextmanager
    def _watch_head(self) -> Iterator[None]:
        """Capture the output head's input, and compute logits of the last position only."""

        def before(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            self._head_input = arguments[0]
            return (arguments[0][:, -1:], *arguments[1:])

        head = self._model.model.get_output_embeddings()
        if head is None:
            raise UnknownHeadError(type(self._model.model).__name__)
        handle = head.register_forward_pre_hook(before)
        try:
            yield
        finally:
            handle.remove()
            self._head_input = None


class UnknownHeadError(EngineError):
    """The model changes its logits after its output head."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} changes its logits behind its output head")
