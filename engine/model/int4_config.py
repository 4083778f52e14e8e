"""What config.json says of int4 weights: GPTQ, AWQ and compressed-tensors.

In: a quantization_config. Out: Int4Scheme, or CheckpointError that names what is not read. Knows
nothing of tensors. Sources of the keys: GPTQModel's quantize_config, AutoAWQ's quant_config, and
QuantizationConfig of the package compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import CheckpointError

Int4Method = Literal["gptq", "awq", "compressed-tensors"]
INT4_METHODS: tuple[Int4Method, ...] = ("gptq", "awq", "compressed-tensors")
READ = (
    "fp8 with scales by block, mxfp4, and int4 as GPTQ, AWQ (gemm) and compressed-tensors "
    "(pack-quantized) store it"
)
WHOLE_ROW = -1


@dataclass(frozen=True)
class Int4Scheme:
    """How int4 weights are stored.

    groups: the columns that share a scale (WHOLE_ROW: all of a row), and whether every zero point
    is 8, for each kind of layer; less_one: zero points are stored less one; reordered: columns may
    lie in an order of their own.
    """

    method: Int4Method
    groups: frozenset[tuple[int, bool]]
    less_one: bool = False
    reordered: bool = False


def not_read(folder: Path, found: str) -> CheckpointError:
    """The error for a quantization that is not read. found: its name."""
    return CheckpointError(
        f"{folder} is quantized with {found:.200}, which this version does not read ({READ} are): "
        "give the bf16 checkpoint it was made from and let precision.bits choose the bits"
    )


def int4_scheme(folder: Path, quantization: Mapping[str, Any]) -> Int4Scheme:
    """The scheme of a quantization_config whose quant_method is one of INT4_METHODS.

    Raises CheckpointError that names what is not read.
    """
    method: Int4Method = quantization["quant_method"]
    if method == "gptq":
        return _gptq(folder, quantization)
    return _awq(folder, quantization) if method == "awq" else _compressed(folder, quantization)


def _gptq(folder: Path, found: Mapping[str, Any]) -> Int4Scheme:
    _check_bits(folder, "gptq", found.get("bits"))
    layout = found.get("checkpoint_format", found.get("format", "gptq"))
    if found.get("is_marlin_format"):
        layout = "marlin"
    if layout not in ("gptq", "gptq_v2"):
        raise not_read(folder, f"gptq in the layout {layout}")
    if (words := found.get("pack_dtype", "int32")) != "int32":
        raise not_read(folder, f"gptq packed into {words}")
    # a rule that starts with -: leaves layers out; the others change bits or groups
    own = [rule for rule in _names(found.get("dynamic") or {}) if not rule.startswith("-:")]
    if own:
        raise not_read(folder, f"gptq with other settings for some layers (dynamic: {own[0]})")
    if found.get("rotation"):
        raise not_read(folder, f"gptq with rotated weights ({found['rotation']})")
    group = _group(folder, "gptq", found.get("group_size"))
    symmetric = found.get("sym") is True
    return Int4Scheme(
        "gptq",
        frozenset({(group, symmetric)}),
        less_one=layout == "gptq",
        reordered=bool(found.get("desc_act")),
    )


def _awq(folder: Path, found: Mapping[str, Any]) -> Int4Scheme:
    _check_bits(folder, "awq", found.get("bits", found.get("w_bit")))
    layout = found.get("version", found.get("format", "gemm"))
    if str(layout).lower() != "gemm":
        raise not_read(folder, f"awq in the layout {layout}")
    if (maker := found.get("backend", "autoawq")) not in ("autoawq", "auto"):
        raise not_read(folder, f"awq of {maker}")
    if found.get("zero_point") is False:
        raise not_read(folder, "awq without zero points")
    group = _group(folder, "awq", found.get("group_size", found.get("q_group_size")))
    return Int4Scheme("awq", frozenset({(group, False)}))


def _compressed(folder: Path, found: Mapping[str, Any]) -> Int4Scheme:
    layout = found.get("format")
    if layout not in ("pack-quantized", "mixed-precision"):
        raise not_read(folder, f"compressed-tensors in the format {layout}")
    status = found.get("quantization_status", "compressed")
    if status != "compressed":
        raise not_read(folder, f"compressed-tensors with the status {status}")
    for key, what in (
        ("kv_cache_scheme", "quantized keys and values"),
        ("transform_config", "rotated weights"),
    ):
        if found.get(key):
            raise not_read(folder, f"compressed-tensors with {what} ({key})")
    sparsity = found.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise not_read(folder, "compressed-tensors with sparse weights (sparsity_config)")
    kinds = found.get("config_groups")
    if not isinstance(kinds, dict) or not kinds:
        raise not_read(folder, "compressed-tensors without config_groups")
    groups = frozenset(_compressed_group(folder, kind, layout) for kind in kinds.values())
    return Int4Scheme("compressed-tensors", groups)


def _compressed_group(folder: Path, kind: Any, layout: Any) -> tuple[int, bool]:
    """Columns of a group and whether it is symmetric, of one of config_groups."""
    name = "compressed-tensors"
    weights = kind.get("weights") if isinstance(kind, dict) else None
    if not isinstance(weights, dict):
        raise not_read(folder, f"{name} with config_groups that name no weights")
    if (own := kind.get("format") or layout) != "pack-quantized":
        raise not_read(folder, f"{name} in the format {own}")
    for key in ("input_activations", "output_activations"):
        if kind.get(key):
            raise not_read(folder, f"{name} with quantized activations ({key})")
    if (number := weights.get("type", "int")) != "int":
        raise not_read(folder, f"{name} with weights of type {number}")
    _check_bits(folder, name, weights.get("num_bits"))
    if weights.get("dynamic"):
        raise not_read(folder, f"{name} with weights that are quantized when they are used")
    if (order := weights.get("actorder")) not in (None, False, "weight", "static"):
        raise not_read(folder, f"{name} with columns in an order of their own (actorder: {order})")
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "channel")
    symmetric = weights.get("symmetric", True) is not False
    if strategy == "channel":
        return WHOLE_ROW, symmetric
    if strategy != "group":
        raise not_read(folder, f"{name} with scales by {strategy}")
    return _group(folder, name, weights.get("group_size")), symmetric


def _names(rules: Any) -> list[str]:
    return list(rules) if isinstance(rules, dict) else [str(rules)]


def _check_bits(folder: Path, method: str, bits: Any) -> None:
    if bits is None:
        raise not_read(folder, f"{method} of unknown bits")
    if type(bits) is not int or bits != 4:
        raise not_read(folder, f"{method} of {bits!r:.20} bits")


def _group(folder: Path, method: str, size: Any) -> int:
    """Columns of a group. type: True is no size, though Python counts it as 1."""
    if type(size) is not int or (size < 1 and size != WHOLE_ROW):
        raise not_read(folder, f"{method} in groups of {size!r:.20}")
    return size
