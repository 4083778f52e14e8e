"""ModelFacts of a loaded model: sizes, family, the predictors that it supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.errors import CheckpointError, FamilyError
from engine.facts.model import ModelFacts
from engine.layout.prequantized import prequantized_layout
from engine.layout.record import record_bytes_table
from engine.model.config_numbers import CHOSEN
from engine.model.kv_layers import plain_kv_layers
from engine.model.kv_shape import KvLayer
from engine.model.loader import LoadedModel, is_sixteen_bit
from engine.model.non_expert import can_keep_embeddings_on_host, non_expert_matrices
from engine.model.tokenizer import has_chat_template, has_tokenizer


def describe(model: LoadedModel, model_id: str, revision: str) -> ModelFacts:
    """Facts of this model. Raises FamilyError if the layers' experts differ in shape."""
    parts = model.layers[0].parts
    for layer in model.layers:
        if layer.parts != parts:
            raise FamilyError(
                f"'{model.config.model_type}' has experts of different shapes in different layers "
                f"({layer.name}): this version needs equal ones"
            )
    text = model.config.get_text_config()
    experts = max(layer.count for layer in model.layers)
    table = record_bytes_table(parts)
    sizes = {str(bits): size for bits, size in table.items()}
    if model.prequantized is not None:
        sizes["prequantized"] = prequantized_layout(parts, model.prequantized).size_bytes
    total = sum(layer.count for layer in model.layers)
    return ModelFacts(
        id=model_id,
        path=str(model.folder),
        revision=revision,
        fingerprint=model.checkpoint.fingerprint,
        family=model.config.model_type,
        layers=text.num_hidden_layers,
        moe_layers=len(model.layers),
        experts=experts,
        experts_per_token=_experts_per_token(model, text, experts),
        hidden_size=text.hidden_size,
        vocabulary=text.vocab_size,
        max_positions=int(getattr(text, "max_position_embeddings", 0) or 0),
        non_expert_bytes=_non_expert_bytes(model),
        parts=parts,
        record_bytes={str(bits): size for bits, size in table.items()},
        expert_bytes={name: size * total for name, size in sizes.items()},
        predictors=_predictors(model),
        has_tokenizer=has_tokenizer(model.folder),
        has_chat_template=has_chat_template(model.folder),
        in_place_16=_stored_at_16_bits(model),
        prequantized=model.prequantized,
        non_expert_matrices=non_expert_matrices(model.linears),
        embedding_bytes=_embedding_bytes(model),
        kv_plain_layers=len(plain_kv_layers(model.model)),
        pieces_16=_pieces_of_an_expert(model),
        **_kv_sizes(model.kv_layers, text),
    )


def carries_state(text: Any) -> bool:
    """Whether some layers carry a recurrent state instead of keys and values.

    transformers continues such a state only one token at a time, so a prompt must then run in one
    piece.
    """
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    return any(not kind.endswith("attention") or kind.startswith("linear") for kind in kinds)


def _non_expert_bytes(model: LoadedModel) -> int:
    """Bytes of resident parameters and buffers, counted at 16 bits; tied weights once."""
    seen: dict[int, int] = {}
    tensors = [*model.model.parameters(), *model.model.buffers()]
    for tensor in tensors:
        seen[id(tensor) if tensor.is_meta else tensor.data_ptr()] = tensor.numel() * 2
    return sum(seen.values())


def _embedding_bytes(model: LoadedModel) -> int:
    """Bytes at 16 bits of an embedding table that may lie on the host, else 0."""
    if not can_keep_embeddings_on_host(model.model):
        return 0
    return int(model.model.get_input_embeddings().weight.numel()) * 2


def _kv_sizes(layers: Sequence[KvLayer], text: Any) -> dict[str, int]:
    """The facts of keys and values; upper bounds where it is unknown what layers hold."""
    attended = _attended_bytes(text)
    if not layers:
        return {"kv_bytes_per_token": text.num_hidden_layers * attended}
    plain = [layer.token_elements for layer in layers if layer.plain]
    windows = [layer for layer in layers if layer.window]
    largest = max(layer.token_elements for layer in layers)
    latent = getattr(text, "kv_lora_rank", None)
    return {
        "kv_bytes_per_token": 2 * sum(layer.token_elements for layer in layers),
        "kv_plain_bytes": 2 * sum(plain),
        "kv_window_bytes": 2 * sum(layer.token_elements for layer in windows),
        "kv_window_tokens": max((layer.window for layer in windows), default=0),
        "kv_state_bytes": sum(layer.state_bytes for layer in layers),
        "kv_layer_bytes": max(2 * largest, attended if latent else 0),
    }


def _attended_bytes(text: Any) -> int:
    """Bytes of one token's keys and values in one layer at 16 bits, as attention reads them."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if getattr(text, "kv_lora_rank", None):
        query = getattr(text, "qk_head_dim", None) or head
        value = getattr(text, "v_head_dim", None) or head
        return int(text.num_attention_heads * (query + value) * 2)
    return int(heads * head * 2 * 2)


def _experts_per_token(model: LoadedModel, text: Any, experts: int) -> int:
    """The most that a layer chooses; raises CheckpointError if it has fewer."""
    for name in CHOSEN:
        value = getattr(text, name, None)
        if isinstance(value, list) and value:
            value = max(value)
        if isinstance(value, int):
            if value > experts:
                raise CheckpointError(
                    f"{model.folder / 'config.json'}: {name} is {value}, but a layer has {experts} "
                    "experts to choose from: mend it, or copy config.json again"
                )
            return value
    return 1


def _predictors(model: LoadedModel) -> tuple[str, ...]:
    has_routers = all(layer.router is not None for layer in model.layers)
    return ("none", "next_gate") if has_routers else ("none",)


def _stored_at_16_bits(model: LoadedModel) -> bool:
    return all(is_sixteen_bit(entry.dtype) for entry in model.expert_entries())


def _pieces_of_an_expert(model: LoadedModel) -> int:
    """Number of checkpoint tensors that hold one expert; 1 if it can only be read from a pack."""
    layer, pieces = model.layers[0], 0
    for part in layer.parts:
        entries = layer.sources[part.name].expert_entries(0, layer.count, model.checkpoint)
        if entries is None:
            return 1
        pieces += len(entries)
    return pieces
