"""Reads experts one after another, without copies where the checkpoint allows it.

In: a loaded model. Out: what LoadedModel.read_expert gives. transformers' conversion of one expert
copies it twice; where it only joins the checkpoint's tensors, their bytes are read straight into
the joined one.
"""

from __future__ import annotations

import torch

from engine.layout.record import Part
from engine.model.loader import LoadedModel
from engine.model.safetensors_file import TensorEntry, read_into
from engine.types import ExpertId


class ExpertReader:
    """Reads experts of one model. Not for several threads at once.

    The first expert read of each layer shows whether a parameter's bytes lie in the checkpoint in
    the module's order: it is read in both ways and compared.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._in_order: dict[tuple[int, str], bool] = {}

    def read(self, expert: ExpertId) -> dict[str, torch.Tensor]:
        """One expert's parameters as the module stores them, in the checkpoint's dtype."""
        parts = self._model.layers[expert.layer].parts
        return {part.name: self._read_part(expert, part) for part in parts}

    def _read_part(self, expert: ExpertId, part: Part) -> torch.Tensor:
        key = (expert.layer, part.name)
        entries = self._entries(expert, part) if self._in_order.get(key, True) else None
        if entries is None:
            return self._model.read_part(expert, part)
        if key in self._in_order:
            return _joined(entries, part)
        converted = self._model.read_part(expert, part)
        if bool((converted != converted.flatten()[0]).any()):  # equal values show no order
            joined = _joined(entries, part)
            same_type = joined.dtype == converted.dtype
            self._in_order[key] = same_type and torch.equal(joined, converted)
        return converted

    def _entries(self, expert: ExpertId, part: Part) -> list[TensorEntry] | None:
        """The checkpoint's tensors that could be the parameter when joined."""
        layer, checkpoint = self._model.layers[expert.layer], self._model.checkpoint
        source = layer.sources[part.name]
        if any(key in checkpoint.prequantized for keys in source.keys.values() for key in keys):
            return None
        entries = source.expert_entries(expert.expert, layer.count, checkpoint)
        if entries is None or len({entry.dtype for entry in entries}) != 1:
            return None
        elements = sum(entry.size_bytes for entry in entries) // entries[0].dtype.itemsize
        return entries if elements == part.elements else None


def _joined(entries: list[TensorEntry], part: Part) -> torch.Tensor:
    joined = torch.empty(part.shape, dtype=entries[0].dtype)
    left = memoryview(joined.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    for entry in entries:
        read_into(left[: entry.size_bytes], entry.file, entry.offset)
        left = left[entry.size_bytes :]
    return joined
