"""Shared value types of the engine: ids, choices, units. Standard library only."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Literal, NamedTuple, get_args

Bits = Literal[16, 8, 4, 3, 2]
HOST_DEVICES = ("cpu", "auto")  # names of devices whose memory is the host's
NonExpertBits = Literal[16, 8, 4]
ActivationBits = Literal[16, 8]
EmbeddingsName = Literal["device", "host"]
LowBits = Literal[0, 8, 4, 3, 2]
KvBits = Literal[16, 8, 4]
KvPlacementName = Literal["device", "host"]
# open choices: the names registered in engine.config.choices under this kind
EvictionName = Annotated[str, "eviction"]
PredictorName = Annotated[str, "predictor"]
AllocationName = Literal["uniform", "shallow_first", "by_misses", "by_profile"]
ScopeName = Literal["layer", "shared"]
QueueName = Literal["fifo", "two_priority"]
OrderName = Literal["routed", "popularity", "ready_first", "hot_first"]
PlacementName = Literal["device", "host_below", "host_split", "earliest"]
PrecisionName = Literal[
    "uniform", "by_layer", "by_popularity", "by_sensitivity", "popularity_mass", "gate_threshold"
]
PlanName = Literal["fixed", "io_compute"]
OptimizeName = Literal["weighted_squares", "none"]
KernelName = Annotated[str, "kernel"]
DtypeName = Literal["bfloat16", "float16", "float32"]
DirectName = Literal["auto", "on", "off"]
Phase = Literal["prefill", "decode"]
FailureClass = Literal[
    "does_not_fit",
    "out_of_memory",
    "timeout",
    "crash",
    "bad_output",
    "interrupted",
    "usage",
    "model",
    "task",
    "storage",
]
SensitivityClass = Literal["exact", "rounding", "lossy_static", "lossy_on_miss"]

BITS: tuple[Bits, ...] = get_args(Bits)
MOST_BYTES = 1 << 62  # of a size; a database keeps 63 bits

LONGEST_TEXT = 64  # of a size or a duration; patterns take the square of a text's length
_SIZE = re.compile(r"\s*(\d[\d_]*(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)
_PREFIXES = {"": "", "k": "kilo", "m": "mega", "g": "giga", "t": "tera"}
# Spellings in lower case: 8G, 8GB, 8gb, 8Go, 8 gigabytes (10^9); 8Gi, 8GiB, 8 gibibytes (2^30).
_UNITS: dict[str, int] = {
    spelling: base**power
    for power, (letter, name) in enumerate(_PREFIXES.items())
    for base, spellings in (
        (1000, (letter, f"{letter}b", f"{letter}o", f"{name}byte", f"{name}bytes")),
        (1024, (f"{letter}i", f"{letter}ib", f"{name[:2]}bibyte", f"{name[:2]}bibytes")),
    )
    if power or base == 1000
    for spelling in spellings
}


class ExpertId(NamedTuple):
    """One expert: the index of its layer among the MoE layers (not all layers), and its own
    index."""

    layer: int
    expert: int


def product_key(bits: int, activation_bits: int) -> str:
    """Names products with codes of these bits in tables: 4, or 4a8 with activations of 8 bits."""
    return str(bits) if activation_bits == 16 else f"{bits}a{activation_bits}"


def shown(text: object, most: int = LONGEST_TEXT) -> str:
    """What was given, as a message repeats it: cut if it is long."""
    word = str(text)
    return word if len(word) <= most else f"{word[: most - 3]}..."


def parse_size_bytes(text: str | int) -> int:
    """Read `8GB` (10^9), `8GiB` (2^30), `512MB` or plain bytes, in the spellings people use.

    Raises ValueError with one sentence that says what is allowed, also for more than MOST_BYTES.
    """
    word = str(text)
    match = _SIZE.fullmatch(word) if len(word) <= LONGEST_TEXT else None
    unit = None if match is None else _UNITS.get(match.group(2).lower())
    if match is None or unit is None:
        hint = " (a decimal takes a point: 8.5GB)" if "," in word else ""
        raise ValueError(
            f"'{shown(word)}' is not a size: write a positive number with a unit, "
            f"such as 8GB (10^9 bytes), 8GiB (2^30), 512MB or plain bytes{hint}"
        )
    size = math.floor(Decimal(match.group(1).replace("_", "")) * unit)
    if size <= 0:
        raise ValueError(
            f"'{shown(word)}' is not a size: it must be above zero, such as 8GB or 512MB"
        )
    if size > MOST_BYTES:
        raise ValueError(f"'{shown(word)}' is more than any machine has: write a smaller size")
    return size


def format_at_least(size_bytes: int) -> str:
    """Like format_bytes, but rounded up, so that the text is enough as a budget."""
    scale = max(1, 10 ** (len(str(size_bytes)) - 3))
    return format_bytes(-(-size_bytes // scale) * scale)


def format_bytes(size_bytes: float) -> str:
    """Format bytes in decimal units for people: 1.5 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size_bytes) >= scale:
            value = size_bytes / scale
            return f"{value:.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"
    return f"{size_bytes:.0f} B"
