"""Compiles the grouped programs for one NVIDIA architecture, without a GPU.

    python compile_programs.py 80

prints, as JSON by case, the registers of a thread, the bytes that it spills and whether tensor
cores are used, as ptxas reports them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.experts.kernels.grouped.launch import (
    _MOST_TILE_ROWS,
    _TILE_OUTPUTS,
    step_of,
    warps_of,
)
from engine.experts.kernels.grouped.program import combine_program, matrix_program

GROUPS = {"sixteen": 0, "int8": 0, "int4": 64, "int3": 64, "int2": 64, "mxfp4": 32}
CODES = {"sixteen": "bf16", "int8": "i8"}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
FORMS = {"product": (1, 0), "clamped": (3, 0), "down": (-1, 0)}


def cases() -> dict[str, tuple[Any, dict[str, str], dict[str, Any]]]:
    """Program, types of its arguments and constants, by what is computed."""
    found = {}
    for kind, dtype, form, is_sorted in product(GROUPS, BYTES, FORMS, (False, True)):
        if dtype == "fp16" and kind != "int4":
            continue
        if form == "clamped" and kind != "mxfp4":
            continue
        types = dict.fromkeys(("x", "out"), f"*{dtype}")
        types["codes"] = f"*{CODES.get(kind, 'u8')}"
        types["scales"] = "*u8" if kind == "mxfp4" else "*bf16"
        types["biases"] = "*bf16"
        types |= dict.fromkeys(("index", "order", "starts", "offsets"), "*i64")
        constants = {
            "kind": kind,
            "group": GROUPS[kind],
            "has_bias": kind == "mxfp4",
            "form": FORMS[form][0],
            "activation": FORMS[form][1],
            "interleaved": form == "clamped",
            "alpha": 1.702,
            "limit": 7.0,
            "is_sorted": is_sorted,
            "places": 128,
            "tile_rows": _MOST_TILE_ROWS[BYTES[dtype]] if is_sorted else 16,
            "tile_outputs": _TILE_OUTPUTS[BYTES[dtype]],
            "step": step_of(kind, GROUPS[kind], BYTES[dtype]),  # type: ignore[arg-type]
            "widen": False,
        }
        name = f"{kind} {dtype} {form} {'sorted' if is_sorted else 'searched'}"
        found[name] = (matrix_program, types, constants)
    for dtype in BYTES:
        types = {"y": f"*{dtype}", "out": f"*{dtype}", "weights": "*fp32"}
        found[f"sum {dtype}"] = (combine_program, types, {"tile_columns": 512})
    return found


def compiled(program: Any, types: dict[str, str], constants: dict[str, Any], arch: int) -> Any:
    """As a launch specializes it: pointers, widths and strides are multiples of 16."""
    counts = ("pairs", "chosen", "entries")
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in program.arg_names
    }
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(program.arg_names)
        if name not in constants and name not in counts and name != "column_stride"
    }
    source = ASTSource(program, signature, constants, aligned)
    warps = warps_of(constants.get("tile_rows", 1), constants.get("tile_outputs", 1))
    return triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "enable_fp_fusion": True},
    )


def usage(ptx: str, arch: int) -> dict[str, Any]:
    """What ptxas reports of a program."""
    nvidia = triton.knobs.nvidia
    ptxas = nvidia.ptxas_blackwell if arch >= 90 else nvidia.ptxas
    name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "program.ptx")
        source.write_text(ptx)
        done = subprocess.run(
            [ptxas.path, "-v", f"--gpu-name={name}", str(source), "-o", f"{folder}/cubin"],
            capture_output=True,
            text=True,
            check=True,
        )
    spilled = re.findall(r"(\d+) bytes spill stores", done.stderr)
    return {
        "registers": int(re.findall(r"Used (\d+) registers", done.stderr)[-1]),
        "spilled_bytes": sum(map(int, spilled)),
        "tensor_cores": bool(re.search(r"\b(w?g?mma|tcgen05)\b", ptx)),
    }


def main() -> None:
    arch = int(sys.argv[1])
    found = {}
    for name, (program, types, constants) in cases().items():
        binary = compiled(program, types, constants, arch)
        found[name] = usage(binary.asm["ptx"], arch)
    sys.stdout.write(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
