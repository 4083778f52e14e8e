"""The functions of the library, by their names without prefix: result and arguments."""

from __future__ import annotations

import ctypes
from typing import Any

_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "digest": (ctypes.c_char_p, ()),
    "instruction_set": (ctypes.c_char_p, (_LONG,)),
    "open": (_POINTER, (_LONG, _LONG, ctypes.c_char_p)),
    "chosen": (ctypes.c_char_p, (_POINTER,)),
    "close": (None, (_POINTER,)),
    "linear": (None, (*[_POINTER] * 4, *[_LONG] * 3, _POINTER, _LONG)),
    "experts": (
        None,
        (*[_POINTER] * 3, _LONG, _POINTER, *[_LONG] * 3, _POINTER, _POINTER),
    ),
    "plain": (None, (*[_POINTER] * 3, _LONG, _LONG, _POINTER, _LONG)),
    "attend": (None, tuple([_POINTER] * 7)),
    "step": (
        None,
        (*[_POINTER] * 3, _LONG, *[_POINTER] * 2, _LONG, _POINTER, _POINTER),
    ),
    "route": (None, (*[_POINTER] * 3, _LONG, _LONG, *[_POINTER] * 3)),
    "combine": (None, (_POINTER, _LONG, *[_POINTER] * 2, *[_LONG] * 4, _POINTER)),
    "layers": (_LONG, (_POINTER, _POINTER)),
    "norm": (None, (_POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, ctypes.c_double, _POINTER)),
    "round": (None, (_POINTER, _LONG, _POINTER, *[_LONG] * 3, _POINTER)),
    "gate": (None, (_POINTER, _POINTER, _LONG, *[_POINTER] * 3, _LONG)),
    "quantize": (None, (_POINTER, _POINTER, _LONG)),
    "read_seconds": (ctypes.c_double, (_POINTER, _POINTER, _LONG)),
    "replay": (_LONG, (_POINTER, _POINTER, _LONG, _POINTER, _POINTER)),
}
