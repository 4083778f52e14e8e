"""ModelFacts: the facts of a model from config.json and the safetensors headers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engine.inputs.typed import check_types
from engine.layout.non_expert import NonExpertMatrix
from engine.layout.prequantized import PrequantizedFormat
from engine.layout.record import Part, parts_from_json, parts_to_json
from engine.types import BITS


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a model from its config and safetensors headers, without its weights.

    revision: the commit of a hub id, `local` for a folder; non_expert_bytes: all non-expert weights
    at 16 bits; parts: the parameters of one expert; record_bytes: padded bytes of one record, by
    bits (keys as text); expert_bytes: all experts together, by bits and, for a pre-quantized
    checkpoint, as `prequantized`; kv_bytes_per_token: all layers at 16 bits, one sequence, as the
    kv_cache holds them; kv_plain_bytes, kv_window_bytes: those of plain layers and of layers that
    hold the newest kv_window_tokens only, 0 of all if that is unknown; kv_state_bytes: of one
    sequence, whatever its length; kv_layer_bytes: of one token in the largest layer, as attention
    reads it, 0: the mean of all; predictors: usable on this model; prequantized: the format of
    quantized experts; non_expert_matrices: shapes of the non-expert weights that non_expert_bits
    quantizes;
    embedding_bytes: at 16 bits, 0 if the head is the same tensor; kv_plain_layers: those to whose
    keys and values kv.bits, kv.keep_fraction and kv.placement apply; pieces_16: number of pieces of
    a 16-bit record in the checkpoint, each a separate read; has_chat_template: False only if it is
    known to have none.
    """

    id: str
    path: str
    revision: str
    fingerprint: str
    family: str
    layers: int
    moe_layers: int
    experts: int
    experts_per_token: int
    hidden_size: int
    vocabulary: int
    max_positions: int
    non_expert_bytes: int
    parts: tuple[Part, ...]
    record_bytes: dict[str, int]
    expert_bytes: dict[str, int]
    kv_bytes_per_token: int
    predictors: tuple[str, ...]
    has_tokenizer: bool
    in_place_16: bool
    prequantized: PrequantizedFormat | None = None
    non_expert_matrices: tuple[NonExpertMatrix, ...] = ()
    embedding_bytes: int = 0
    kv_plain_layers: int = 0
    pieces_16: int = 1
    has_chat_template: bool = True
    kv_plain_bytes: int = 0
    kv_window_bytes: int = 0
    kv_window_tokens: int = 0
    kv_state_bytes: int = 0
    kv_layer_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        prequantized = self.prequantized.to_json() if self.prequantized else None
        return {**asdict(self), "parts": parts_to_json(self.parts), "prequantized": prequantized}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelFacts:
        """Inverse of to_json. Raises one of CONTENT_ERRORS for facts that no model has."""
        prequantized = data.get("prequantized")
        found = cls(
            **{
                **data,
                "parts": parts_from_json(data["parts"]),
                "predictors": tuple(data["predictors"]),
                "non_expert_matrices": tuple(
                    NonExpertMatrix(*m) for m in data.get("non_expert_matrices", ())
                ),
                "prequantized": PrequantizedFormat(**prequantized) if prequantized else None,
            }
        )
        check_types(found)
        _check_sizes(found)
        return found


_MOST: dict[str, int] = {
    "layers": 1 << 12, "moe_layers": 1 << 12, "experts": 1 << 16, "experts_per_token": 1 << 16,
    "hidden_size": 1 << 24, "vocabulary": 1 << 32,
}  # fmt: skip
_MOST_BYTES = 1 << 56


def _check_sizes(facts: ModelFacts) -> None:
    """Raise ValueError for sizes that no model has. Whole numbers alone: types are checked."""
    parts = [size for part in facts.parts for size in part.shape]
    sizes = {
        **{name: (1, most, [getattr(facts, name)]) for name, most in _MOST.items()},
        "parts": (1, 1 << 32, parts or [0]),
        "record_bytes": (1, _MOST_BYTES, [*facts.record_bytes.values()] or [0]),
        "expert_bytes": (1, _MOST_BYTES, [*facts.expert_bytes.values()] or [0]),
        "non_expert_matrices": (1, 1 << 32, [n for one in facts.non_expert_matrices for n in one]),
        "pieces_16": (1, 1 << 16, [facts.pieces_16]),
    }
    for name in ("max_positions", "non_expert_bytes", "kv_bytes_per_token", "embedding_bytes"):
        sizes[name] = (0, _MOST_BYTES, [getattr(facts, name)])
    for name in ("kv_plain_bytes", "kv_window_bytes"):
        sizes[name] = (0, facts.kv_bytes_per_token, [getattr(facts, name)])
    for name in ("kv_window_tokens", "kv_state_bytes", "kv_layer_bytes"):
        sizes[name] = (0, _MOST_BYTES, [getattr(facts, name)])
    sizes["kv_plain_layers"] = (0, facts.layers, [facts.kv_plain_layers])
    for name, (least, most, given) in sizes.items():
        if any(not least <= size <= most for size in given):
            raise ValueError(f"{name} holds a size outside {least} to {most}")
    if any(len(part.shape) not in (1, 2) for part in facts.parts):
        raise ValueError("parts are matrices and vectors")
    if unknown := set(facts.record_bytes) - {str(bits) for bits in BITS}:
        raise ValueError(f"record_bytes knows no {sorted(unknown)[0]:.40} bits")
