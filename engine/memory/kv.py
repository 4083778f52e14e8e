"""The KV part of the memory equation, and the settings that KV does not support together.

Pure arithmetic.
"""

from __future__ import annotations

from engine.config.settings import EngineConfig
from engine.errors import ConfigError
from engine.facts.model import ModelFacts
from engine.layout.kv import (
    HOST_GROWTH,
    MARK_BYTES,
    SCORE_SLICE_BYTES,
    kept_tokens,
    packed_ratio,
    packed_tokens,
    window_tokens,
)
from engine.types import HOST_DEVICES

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

# Scratch of a block of keys or values that is (de)quantized: tokens, and bytes of a channel for
# float32 copies, codes and their rows.
_KV_SLICE_TOKENS = 512
_KV_SCRATCH_BYTES = 16


def check_kv(config: EngineConfig, facts: ModelFacts) -> None:
    """Raise ConfigError if this model, or another setting, does not support a kv setting."""
    bits, keep_fraction = config.kv.bits, config.kv.keep_fraction
    for path, value, exact in (("kv.bits", bits, 16), ("kv.keep_fraction", keep_fraction, 1)):
        if value != exact and not facts.kv_plain_layers:
            raise ConfigError(
                f"{path} = {value} does not suit '{facts.family}': none of its layers keeps plain "
                f"keys and values in transformers' own kv_cache; set {path} to {exact}"
            )
    if keep_fraction != 1 and bits != 16:
        raise ConfigError(
            f"kv.keep_fraction = {keep_fraction:g} and kv.bits = {bits}: merged keys and values "
            "are kept "
            "at 16 bits only; set kv.bits to 16 or kv.keep_fraction to 1"
        )
    if keep_fraction != 1 and config.kv.placement != "device":
        raise ConfigError(
            f"kv.keep_fraction = {keep_fraction:g} and kv.placement = {config.kv.placement}: "
            "merged keys "
            "and values lie on the device only; set kv.placement to device or kv.keep_fraction to 1"
        )


def check_prefix_cache(config: EngineConfig, facts: ModelFacts) -> None:
    """Raise ConfigError if prefixes cannot be cut out of the kv_cache."""
    if not config.serve.prefix_cache_tokens:
        return
    given = f"serve.prefix_cache_tokens = {config.serve.prefix_cache_tokens}"
    if facts.kv_plain_layers != facts.layers:
        raise ConfigError(
            f"{given} does not suit '{facts.family}': not all of its layers keep plain keys and "
            "values; set serve.prefix_cache_tokens to 0"
        )
    kv = config.kv
    if kv.bits != 16 or kv.keep_fraction != 1 or kv.placement != "device":
        raise ConfigError(
            f"{given} needs keys and values whole, at 16 bits, on the device: set kv.bits to 16, "
            "kv.keep_fraction to 1 and kv.placement to device, or serve.prefix_cache_tokens to 0"
        )


def check_elastic(config: EngineConfig, facts: ModelFacts, *, host_memory: bool) -> None:
    """Raise ConfigError if KV memory cannot be shared with experts."""
    if not config.kv.elastic:
        return
    kv = config.kv
    if kv.bits != 16 or kv.keep_fraction != 1 or kv.placement != "device":
        raise ConfigError(
            "kv.elastic counts keys and values by tokens: set kv.bits to 16, kv.keep_fraction to 1 "
            "and kv.placement to device, or kv.elastic to false"
        )
    if not host_memory:
        raise ConfigError(
            f"kv.elastic gives pages back one by one, which device.name = {config.device.name} "
            "cannot: set kv.elastic to false"
        )
    if config.precision.low_bits or config.precision.scheme != "uniform":
        raise ConfigError(
            "kv.elastic needs slots of one size: set precision.scheme to uniform and "
            "precision.low_bits to 0, or kv.elastic to false"
        )


def prefix_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """Bytes of keys and values in the prefix cache."""
    width = DTYPE_BYTES[config.compute.dtype]
    return facts.kv_bytes_per_token * width // 2 * config.serve.prefix_cache_tokens


def kv_host_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """The most bytes that keys and values take on the host: 0 unless kv.placement moves them
    there."""
    if not _kv_moves(config, facts):
        return 0
    return int(_packed_layer_bytes(config, facts) * facts.kv_plain_layers * HOST_GROWTH)


def kv_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """Bytes of keys and values on the device.

    States, sliding windows and other unchanged layers; of plain ones 16-bit windows, and rows: of
    all, or of the one in use and the next. For merged layers, the kept positions, and one more
    while decoding.
    """
    plain, tokens = facts.kv_plain_layers, config.kv.max_tokens
    token, fixed = _plain_token_bytes(config, facts), _fixed_bytes(config, facts)
    others = _of_all(config, facts.kv_bytes_per_token - facts.kv_window_bytes) - token * plain
    if config.kv.keep_fraction != 1:
        kept = min(tokens, kept_tokens(config.kv.keep_fraction, tokens) + 1)
        marks = MARK_BYTES * config.batch.count * config.batch.size
        return fixed + others * tokens + (token + marks) * plain * kept
    moves = _kv_moves(config, facts)
    if config.kv.bits == 16 and not moves:
        return fixed + (others + token * plain) * tokens
    windows = token * plain * window_tokens(config.kv.bits, tokens)
    rows = _packed_layer_bytes(config, facts) * (min(2, plain) if moves else plain)
    return fixed + others * tokens + windows + rows


def kv_growing_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """The part of kv_bytes that is proportional to a sequence's tokens, if all is kept at 16 bits
    on the device."""
    return kv_bytes(config, facts) - _fixed_bytes(config, facts)


def _fixed_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """What does not grow with the tokens of long sequences: states, and windows, which hold a whole
    chunk of a prompt until the next token. With states a prompt passes in one piece."""
    tokens = config.kv.max_tokens
    held = tokens
    if not facts.kv_state_bytes:
        held = min(tokens, facts.kv_window_tokens + config.prefill.chunk_tokens)
    states = facts.kv_state_bytes * config.batch.count * config.batch.size
    return states + _of_all(config, facts.kv_window_bytes) * held


def kv_growth_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """Bytes for a layer's keys and values while they are joined, merged, dequantized, or made from
    compressed ones."""
    layer = facts.kv_layer_bytes or facts.kv_bytes_per_token // max(1, facts.layers)
    token = _of_all(config, layer)
    growth = token * config.kv.max_tokens * 2
    width = DTYPE_BYTES[config.compute.dtype]
    if config.kv.keep_fraction != 1:
        return growth + _merge_bytes(config, facts, token * 4 // width)
    if config.kv.bits == 16:
        return growth
    slice_tokens = min(config.kv.max_tokens, _KV_SLICE_TOKENS) * config.batch.size
    channels = _plain_layer_bytes(facts) // 2
    return growth + slice_tokens * channels // 2 * (_KV_SCRATCH_BYTES + width)


def _merge_bytes(config: EngineConfig, facts: ModelFacts, token_float_bytes: int) -> int:
    """Bytes while one layer merges: attention weights, and float32 copies of its kept positions
    and of the newest chunk. With layers that are not plain a prompt may pass in one piece."""
    tokens = config.kv.max_tokens
    if facts.kv_plain_layers == facts.layers:
        joined = kept_tokens(config.kv.keep_fraction, tokens) + config.prefill.chunk_tokens
        tokens = min(tokens, joined)
    return 3 * SCORE_SLICE_BYTES + token_float_bytes * tokens


def _of_all(config: EngineConfig, sixteen_bytes: int) -> int:
    """Bytes in the compute dtype, for all sequences, of what one has at 16 bits."""
    width, sequences = DTYPE_BYTES[config.compute.dtype], config.batch.count * config.batch.size
    return sixteen_bytes * width // 2 * sequences


def _plain_layer_bytes(facts: ModelFacts) -> int:
    """Bytes of one token in a plain layer at 16 bits, the mean of all."""
    if facts.kv_plain_bytes:
        return facts.kv_plain_bytes // max(1, facts.kv_plain_layers)
    return facts.kv_bytes_per_token // max(1, facts.layers)


def _plain_token_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """Bytes of one token of all sequences in a plain layer, in the compute dtype."""
    return _of_all(config, _plain_layer_bytes(facts))


def _packed_layer_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """Bytes of the rows of one plain layer."""
    ratio = packed_ratio(config.kv.bits, DTYPE_BYTES[config.compute.dtype])
    tokens = packed_tokens(config.kv.bits, config.kv.max_tokens)
    return int(_plain_token_bytes(config, facts) * tokens * ratio)


def _kv_moves(config: EngineConfig, facts: ModelFacts) -> bool:
    """Whether keys and values lie on the host and are fetched layer by layer."""
    moved = config.kv.placement == "host" and bool(facts.kv_plain_layers)
    return moved and not one_memory(config)


def one_memory(config: EngineConfig) -> bool:
    """Whether the config's device is host memory itself."""
    return config.device.name in HOST_DEVICES
