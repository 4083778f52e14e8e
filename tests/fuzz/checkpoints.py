"""Targets: what a checkpoint's folder holds: headers, an index, config.json, codes that lie.

A `codes` input describes a whole folder: {"config": config.json, "tensors": {name: [dtype, shape,
filler]}}; the file is laid out right from that, so that what lies is the shapes, groups and zero
points, not the header, which has a target of its own. filler: a byte for all data, None for mixed.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from engine.inputs.bounds import parse_json
from engine.model.checkpoint import Checkpoint
from engine.model.loader import load_model
from engine.model.safetensors_file import parse_header, read_header
from engine.model.weight_files import read_index, weight_files
from engine.types import ExpertId
from tests.engine.families import save_tiny
from tests.engine.model.int4_layouts import publish_awq, publish_compressed, publish_gptq
from tests.engine.model.layouts import quantize_fp8, quantize_mxfp4
from tests.fuzz.documents import Tree, read_json, write, write_bytes
from tests.fuzz.oracle import Arena, Run
from tests.fuzz.target import Shape, Target

WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
MOST_BYTES = 1 << 22  # of a made-up tensor
MIXED = bytes((7 * n + n // 5) % 251 for n in range(4096))
PUBLISH: dict[str, tuple[str, Callable[[Path], object]]] = {
    "gptq": ("qwen3_moe", publish_gptq),
    "awq": ("qwen3_moe", publish_awq),
    "compressed": ("qwen3_moe", publish_compressed),
    "asymmetric": ("qwen3_moe", lambda folder: publish_compressed(folder, symmetric=False)),
    "fp8": ("qwen3_moe", lambda folder: quantize_fp8(folder, (16, 16))),
    "mxfp4": ("gpt_oss", quantize_mxfp4),
    "plain": ("qwen3_moe", lambda folder: None),
}
SMALL = {"num_hidden_layers": 1, "num_experts_per_tok": 1}


@cache
def described(method: str) -> bytes:
    """The folder that a method publishes of a model with one layer of two experts."""
    family, publish = PUBLISH[method]
    experts = "num_local_experts" if family == "gpt_oss" else "num_experts"
    with tempfile.TemporaryDirectory() as name:
        folder = save_tiny(family, Path(name) / "model", **SMALL, **{experts: 2})
        publish(folder)
        tensors: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            header = json.loads(read_header(file))
            header.pop("__metadata__", None)
            tensors |= {key: [one["dtype"], one["shape"], None] for key, one in header.items()}
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return json.dumps({"config": config, "tensors": tensors}).encode()


def write_folder(folder: Path, data: bytes) -> None:
    """The folder that an input describes. Raises TypeError or ValueError if it is none."""
    found = parse_json(data.decode("utf-8", "surrogatepass"))
    if not isinstance(found, dict) or not isinstance(found.get("tensors"), dict):
        raise TypeError("no folder")
    header: dict[str, Any] = {}
    pieces: list[bytes] = []
    end = 0
    for name, one in found["tensors"].items():
        dtype, shape, filler = [*one, None, None, None][:3] if isinstance(one, list) else (one,) * 3
        sizes = [n if type(n) is int and 0 <= n < 1 << 40 else 1 for n in shape or ()]
        length = math.prod(sizes) * WIDTHS.get(str(dtype), 1)
        length = length if length <= MOST_BYTES else 0
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + length]}
        byte = bytes([filler % 256]) if type(filler) is int else MIXED
        pieces.append((byte * (length // len(byte) + 1))[:length])
        end += length
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(found.get("config")), encoding="utf-8")
    text = json.dumps(header).encode()
    file = len(text).to_bytes(8, "little") + text + b"".join(pieces)
    (folder / "model.safetensors").write_bytes(file)


def _read_all(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    for name in checkpoint.tensors:
        checkpoint.read(name)


def _load(folder: Path) -> None:
    model = load_model(folder, torch.bfloat16)
    for layer in model.layers:
        for index in range(layer.count):
            model.read_expert(ExpertId(layer.index, index))


def of_folder(read: Callable[[Path], None]) -> Callable[[Arena], Any]:
    """Opens a target that reads a described folder."""

    @contextlib.contextmanager
    def opened(place: Arena) -> Iterator[Run]:
        folder = place.given / "model"

        def run(data: bytes) -> None:
            try:
                write_folder(folder, data)
            except (ValueError, TypeError, RecursionError):  # an input that describes nothing
                return
            read(folder)

        yield run

    return opened


@contextlib.contextmanager
def _headers(place: Arena) -> Iterator[Run]:
    file = place.given / "model.safetensors"

    def run(data: bytes) -> None:
        file.write_bytes(data)
        for one in parse_header(file, read_header(file)):
            assert one.offset + one.size_bytes <= len(data)

    yield run


@contextlib.contextmanager
def _index(place: Arena) -> Iterator[Run]:
    """The files that an index names, of a folder that has two of them."""
    for name in ("config.json", "a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"):
        (place.given / name).write_bytes(b"{}")
    path = place.given / "model.safetensors.index.json"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        read_index(place.given, {})
        for file in weight_files(place.given, {"transformers_weights": path.name}):
            assert file.parent == place.given

    yield run


@contextlib.contextmanager
def _config(place: Arena) -> Iterator[Run]:
    """config.json alone is wrong; the rest is a right checkpoint without its weights."""
    folder = place.given / "model"
    write_folder(folder, described("plain"))

    def run(data: bytes) -> None:
        (folder / "config.json").write_bytes(data)
        load_model(folder, torch.bfloat16, weights=False)

    yield run


def _file(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _read_file(data: bytes) -> Tree:
    return read_json(data[8 : 8 + int.from_bytes(data[:8], "little")])


HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 16]},
    "b": {"dtype": "F32", "shape": [], "data_offsets": [16, 20]},
    "c": {"dtype": "I32", "shape": [0, 3], "data_offsets": [20, 20]},
    "d": {"dtype": "F8_E4M3", "shape": [1, 2, 3], "data_offsets": [20, 26]},
}
INDEX = {
    "metadata": {"total_size": 8},
    "weight_map": {
        "a": "a-00001-of-00002.safetensors",
        "b": "a-00002-of-00002.safetensors",
    },
}
JSON = Shape(read_json, write_bytes)
CODES = Shape(read_json, write_bytes, extra=(*WIDTHS, *(2**n for n in range(10))))


def _config_of(method: str) -> bytes:
    return json.dumps(json.loads(described(method))["config"]).encode()


TARGETS = (
    Target(
        "safetensors", _headers, lambda: [_file(json.dumps(HEADER).encode(), bytes(range(26)))],
        Shape(_read_file, lambda tree: _file(write(tree).encode(errors="replace"), bytes(26))),
        cases=150,
    ),
    Target("weight_index", _index, lambda: [json.dumps(INDEX).encode()], JSON),
    Target("codes", of_folder(_read_all), lambda: [*map(described, PUBLISH)], CODES, cases=100),
    Target(
        "model", of_folder(_load), lambda: [described(name) for name in ("gptq", "plain")], CODES,
        cases=40,
    ),
    Target("config", _config, lambda: [_config_of(name) for name in ("plain", "fp8")], JSON,
           cases=10),
)  # fmt: skip
