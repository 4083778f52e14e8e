"""Checks the numbers of a config.json before anything is built from them.

In: the parsed file. transformers checks types of most values and ranges of few: with 0 heads it
divides by zero, with 10^8 layers it builds them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError

CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "num_experts_per_token")
_MOST_LAYERS = 1000  # ten times as many as any model has; each is built before it is measured
_MOST_SIZE = 1 << 24
_MOST_TOKENS = 1 << 40
_RANGES: dict[str, tuple[int, int]] = {
    "num_hidden_layers": (1, _MOST_LAYERS),
    **dict.fromkeys(
        (*CHOSEN, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
        (1, 1 << 16),
    ),
    **dict.fromkeys(
        ("hidden_size", "moe_intermediate_size", "vocab_size", "head_dim", "num_attention_heads",
         "num_key_value_heads"),
        (1, _MOST_SIZE),
    ),
    **dict.fromkeys(("intermediate_size", "kv_lora_rank", "v_head_dim"), (0, _MOST_SIZE)),
    "max_position_embeddings": (1, _MOST_TOKENS),
}  # fmt: skip
_POSITIVE = ("rope_theta", "rms_norm_eps")


def check_numbers(path: Path, described: Mapping[str, Any]) -> None:
    """Raise CheckpointError that names the file, the key, what was given and what is allowed.

    described: the parsed config.json, also of models whose sizes stand in a section of their own. A
    null is the family's default; where a list gives a value for each layer, each is checked.
    """
    for place, section in _sections("", described):
        for key, value in section.items():
            _check(path, f"{place}{key}", key, value)
        heads, shared = (section.get(f"num_{kind}_heads") for kind in ("attention", "key_value"))
        if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
            raise _refused(
                path, f"{place}num_key_value_heads", shared, f"a divisor of {heads} attention heads"
            )


def _check(path: Path, place: str, key: str, value: Any) -> None:
    for given in value if isinstance(value, list) else [value]:
        if given is None:
            continue
        if key in _RANGES:
            least, most = _RANGES[key]
            if type(given) is not int or not least <= given <= most:  # True is no number
                raise _refused(path, place, given, f"a whole number from {least} to {most}")
        elif key in _POSITIVE and (type(given) not in (int, float) or not 0 < given < 1e30):
            raise _refused(path, place, given, "a number above 0")


def _sections(place: str, section: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The config and the mappings inside it, each with the beginning of its keys."""
    yield place, section
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _sections(f"{place}{key}.", value)


def _refused(path: Path, place: str, given: Any, allowed: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {place} is {given!r:.60}, it must be {allowed}: mend it, or copy it again"
    )
