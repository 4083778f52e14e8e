"""The values that the native library takes: formats, matrices, experts, attention, jobs.

They mirror sources/structures.h, matrix.h and gate.h, number for number.
Letters: T tokens, N output rows, K input columns, D hidden, F expert width.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum


class Format(IntEnum):
    """How a matrix is stored; see sources/matrix.h."""

    BF16 = 0
    FP16 = 1
    INT8 = 2
    INT4 = 3
    INT3 = 4
    INT2 = 5
    MXFP4 = 6
    FP8 = 7
    BF16_COLUMNS = 8
    FP16_COLUMNS = 9
    UINT4 = 10


class Number(IntEnum):
    """The type of activations."""

    FLOAT32 = 0
    BF16 = 1
    FP16 = 2


NO_BIAS = -1
"""As Matrix.bias_number."""


class Activation(IntEnum):
    """An activation function; see sources/gate.h."""

    SILU = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3
    RELU_SQUARED = 4
    QUICK_GELU = 5


class GateForm(IntEnum):
    """How gate g and up u are joined; see sources/gate.h."""

    NONE = 0
    PRODUCT = 1
    CLAMPED = 2
    CLAMPED_PLUS_ONE = 3
    CLAMPED_AFTER = 4
    WIDE = 5


class Matrix(ctypes.Structure):
    """The location of a matrix in a record, offsets in bytes. bias_number -1: no bias.
    activation_bits: 8 if what it is multiplied by is rounded (sources/rounding.h)."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "format",
            "rows",
            "columns",
            "group",
            "block_rows",
            "codes_offset",
            "scales_offset",
            "bias_offset",
            "bias_number",
            "activation_bits",
        )
    ]


class Gate(ctypes.Structure):
    """An expert's activation."""

    _fields_ = [
        ("form", ctypes.c_int64),
        ("activation", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("alpha", ctypes.c_double),
        ("limit", ctypes.c_double),
    ]


class Experts(ctypes.Structure):
    """An expert's matrices and activation: up [2F, D] (gate and up) or [F, D], down [D, F]."""

    _fields_ = [("up", Matrix), ("down", Matrix), ("gate", Gate)]


class QuantizeJob(ctypes.Structure):
    """A matrix [N, K] to quantize: its weights, and where its codes and scales go; see
    sources/fit.h. Strides in numbers."""

    _fields_ = [
        ("weights", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in (
                "number",
                "rows",
                "columns",
                "row_stride",
                "column_stride",
                "bits",
                "group",
                "weighted",
            )
        ),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    ]


class Block(ctypes.Structure):
    """A matrix and the address of its record."""

    _fields_ = [("matrix", Matrix), ("record", ctypes.c_uint64)]


MOST_BLOCKS = 8
"""Of a Linear."""


class Linear(ctypes.Structure):
    """A linear layer as blocks of rows, and all its rows."""

    _fields_ = [
        ("count", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("blocks", Block * MOST_BLOCKS),
    ]


class Step(ctypes.Structure):
    """An attention layer for one token of each sequence; see sources/structures.h."""

    _fields_ = [
        *((name, Linear) for name in ("query", "key", "value", "output")),
        *((name, ctypes.c_int64) for name in ("number", "heads", "key_heads", "width")),
        *((name, ctypes.c_int64) for name in ("query_norm_width", "key_norm_width", "rotated")),
        *((name, ctypes.c_uint64) for name in ("query_norm", "key_norm")),
        *((n, ctypes.c_double) for n in ("query_epsilon", "key_epsilon", "scale", "clip")),
    ]


class RouterForm(IntEnum):
    """What a router takes the softmax of; see sources/structures.h."""

    SOFTMAX = 0
    SOFTMAX_OF_CHOSEN = 1


class Router(ctypes.Structure):
    """A linear layer [E, D] and how its logits choose; no rows: there is no router."""

    _fields_ = [
        ("block", Block),
        *((name, ctypes.c_int64) for name in ("form", "chosen", "normalized", "weights_number")),
    ]


class Front(ctypes.Structure):
    """What comes before the experts of a decoder layer; see sources/structures.h."""

    _fields_ = [
        ("step", Step),
        ("router", Router),
        *((name, ctypes.c_uint64) for name in ("input_norm", "post_norm")),
        *((name, ctypes.c_double) for name in ("input_epsilon", "post_epsilon")),
    ]


class Store(ctypes.Structure):
    """Addresses of keys and values of a sequence in a layer, [heads, room, width], `room`, and the
    position of the sequence's next token."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("room", "position")),
    ]


class Layers(ctypes.Structure):
    """One token of each of T sequences through decoder layers; see sources/structures.h."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("count", "first", "tokens", "experts_of_layer")),
        *((n, ctypes.c_uint64) for n in ("fronts", "experts", "records", "stores")),
        *((n, ctypes.c_uint64) for n in ("x", "cosine", "sine")),
        ("stride", ctypes.c_int64),
        ("residuals", ctypes.c_uint64 * 2),
        *((n, ctypes.c_uint64) for n in ("normed", "logits", "weights", "index")),
        ("experts_s", ctypes.c_double),
    ]


class Attention(ctypes.Structure):
    """Shapes and strides (in numbers) of one query a sequence; see sources/structures.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                "number",
                "sequences",
                "query_heads",
                "heads",
                "length",
                "key_width",
                "value_width",
                "key_batch",
                "key_head",
                "key_stride",
                "value_batch",
                "value_head",
                "value_stride",
            )
        ),
        ("scale", ctypes.c_double),
    ]
