"""Maps checkpoint tensors to model parameters, through transformers' own conversions.

A checkpoint may store experts one by one or fused, under other names, split or transposed.
transformers describes that as renamings and converters. This module plans them once, by name, and
then runs a converter over the tensors of one non-expert parameter or of one single expert, so that
a layer of experts never has to be in memory at once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from engine.errors import CheckpointError
from engine.model.checkpoint import Checkpoint
from engine.model.quantized import refuse_scale
from engine.model.safetensors_file import TensorEntry
from engine.types import shown

log = logging.getLogger(__name__)


@dataclass
class ParameterSource:
    """The checkpoint tensors behind one parameter.

    keys: checkpoint names by source pattern, in natural order (one list entry per expert if experts
    are stored one by one); converter: None if the tensor is only renamed.
    """

    target: str
    keys: dict[str, list[str]] = field(default_factory=dict)
    converter: WeightConverter | None = None

    def convert(
        self, load: Callable[[str], torch.Tensor], model: Any
    ) -> Mapping[str, torch.Tensor]:
        """Load all tensors and run the conversion. Returns `parameter name -> tensor`."""
        tensors = {pattern: [load(key) for key in keys] for pattern, keys in self.keys.items()}
        return self._run(tensors, model)

    def convert_expert(
        self,
        index: int,
        experts: int,
        read: Callable[[str, slice | None], torch.Tensor],
        model: Any,
    ) -> torch.Tensor:
        """One expert's slice of a fused parameter, read and converted alone."""
        tensors: dict[str, list[torch.Tensor]] = {}
        for pattern, keys in self.keys.items():
            if len(keys) == experts and experts > 1:
                tensors[pattern] = [read(keys[index], None)]
            elif len(keys) == 1:
                tensors[pattern] = [read(keys[0], slice(index, index + 1))]
            else:
                raise CheckpointError(
                    f"{self.target}: the checkpoint holds {len(keys)} tensors for {experts} "
                    f"experts (first {keys[0]}): it is incomplete, finish the download or copy it "
                    "again"
                )
        result = next(iter(self._run(tensors, model).values()))
        if result.ndim < 2:
            raise CheckpointError(
                f"{self.target}: the checkpoint gives shape {tuple(result.shape)} for expert "
                f"{index}: config.json belongs to other weights"
            )
        return result[0]

    def expert_entries(
        self, index: int, experts: int, checkpoint: Checkpoint, *, scales: bool = False
    ) -> list[TensorEntry] | None:
        """The tensors of one expert in checkpoint order; None if their bytes cannot be located.

        They can be located if experts are stored one by one, or fused without conversion. scales:
        the scales of a pre-quantized checkpoint's codes instead.
        """

        def entry_of(key: str) -> TensorEntry:
            return checkpoint.prequantized[key].scales if scales else checkpoint.tensors[key]

        entries = []
        for keys in self.keys.values():
            if len(keys) == experts and experts > 1:
                entries.append(entry_of(keys[index]))
                continue
            entry = entry_of(keys[0])
            if len(keys) != 1 or not entry.shape or entry.shape[0] != experts:
                return None
            size = entry.size_bytes // experts
            entries.append(
                TensorEntry(
                    entry.name,
                    entry.file,
                    entry.dtype,
                    entry.shape[1:],
                    entry.offset + index * size,
                    size,
                )
            )
        return entries

    def _run(self, tensors: dict[str, list[torch.Tensor]], model: Any) -> dict[str, torch.Tensor]:
        if self.converter is None:
            return {self.target: next(iter(tensors.values()))[0]}
        converter = deepcopy(self.converter)
        for pattern, values in tensors.items():
            for value in values:
                converter.add_tensor(self.target, self.target, pattern, value)
        try:
            converted = converter.convert(self.target, model=model, config=model.config)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            shapes = {tuple(value.shape) for values in tensors.values() for value in values}
            why = shown(" ".join(str(error).split()) or type(error).__name__, 200)
            raise CheckpointError(
                f"{self.target}: its tensors cannot be joined, of shapes "
                f"{', '.join(map(str, sorted(shapes)))} ({why}): config.json belongs to other "
                "weights, or the checkpoint is damaged"
            ) from None
        return {
            name: value[0] if isinstance(value, list) else value
            for name, value in converted.items()
        }


def plan_sources(model: Any, checkpoint: Checkpoint) -> dict[str, ParameterSource]:
    """Map every checkpoint tensor that the model knows to its (first) parameter.

    model: on the meta device, with all its parameters. Checkpoint tensors that the model does not
    have (extra heads) are left out with a warning, as from_pretrained does; scales of quantized
    weights are refused.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    state = model.state_dict()
    sources: dict[str, ParameterSource] = {}
    ignored = (*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq")
    unknown: list[str] = []
    for key in sorted(checkpoint.tensors, key=dot_natural_key):
        target, pattern = rename_source_key(
            key, renamings, converters, model.base_model_prefix, state
        )
        if target not in state and key in state:
            target, pattern = rename_source_key(key, [], [], model.base_model_prefix, state)
        if target not in state:
            refuse_scale(checkpoint.folder, key)
            if not any(re.search(known, key) for known in ignored):
                unknown.append(key)
            continue
        source = sources.setdefault(target, ParameterSource(target))
        if pattern is not None:
            source.converter = by_pattern[pattern]
        source.keys.setdefault(pattern or key, []).append(key)
    if unknown:
        log.warning(
            "%s: %d tensors are no part of a %s as config.json describes it and are not read, "
            "first %s",
            checkpoint.folder,
            len(unknown),
            type(model).__name__,
            unknown[0],
        )
    return sources
