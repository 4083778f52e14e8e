"""Builds the native library from `sources/` with the C++ compiler that it finds.

Standard library only, so that the build hook of the package can run it before anything is
installed. A compiler is $CXX, `c++`, `g++`, `clang++`, or that of the package `ziglang`; the first
that compiles a small program is taken.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER / "sources"
LIBRARY = FOLDER / "libexpertune.so"

# No multiplication is fused with an addition unless the source says so: every instruction set gives
# the same bits.
_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-Wno-ignored-attributes",
    "-Wno-unused-function",
]
_AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
_AVX512 = [*_AVX2, *["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]]
_X86_FLAGS = {
    "products_avx2": _AVX2,
    "products_avx512": _AVX512,
    "products_avx512_bf16": [*_AVX512, "-mavx512bf16"],
}
_PROGRAM = "#include <vector>\nint main() { return static_cast<int>(std::vector<int>(1)[0]); }\n"
_PATIENCE_S = 600


class BuildError(Exception):
    """Nothing could be built; the message says why and what to try."""


def sources() -> list[Path]:
    """The sources of the library, in order."""
    return sorted(path for path in SOURCES.glob("*.cpp") if path.stem != "check")


def digest() -> str:
    """Hash of everything that the library's bytes depend on in this folder, 16 hex digits."""
    found = hashlib.sha256(" ".join([*_FLAGS, str(_X86_FLAGS)]).encode())
    for path in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler that works; None if there is none."""
    named = [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else []
    for command in [*named, ["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]) and _compiles(command):
            return command
    if importlib.util.find_spec("ziglang") is not None:
        zig = [sys.executable, "-m", "ziglang", "c++"]
        if _compiles(zig):
            return zig
    return None


def build(
    output: Path = LIBRARY,
    *,
    compiler: Sequence[str] | None = None,
    sanitize: str = "",
    check: bool = False,
) -> Path:
    """Compile and link into `output`, which is replaced at once when all is well.

    sanitize: a value of -fsanitize; check: the program of check.cpp instead of the library. Raises
    BuildError.
    """
    chosen = list(compiler) if compiler is not None else find_compiler()
    if chosen is None:
        raise BuildError(
            "no C++ compiler was found: install one (Debian: apt install g++), or the Python "
            "package ziglang, then run `make setup` again"
        )
    flags = [*_FLAGS, f'-DEXPERTUNE_DIGEST="{digest()}"']
    if sanitize:
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g", "-O1"]
    files = [*sources(), *([SOURCES / "check.cpp"] if check else [])]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".build-") as folder:
        objects = [Path(folder) / f"{path.stem}.o" for path in files]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda pair: _compile(chosen, flags, *pair), zip(files, objects)))
        made = Path(folder) / output.name
        kind = [] if check else ["-shared"]
        sanitizer = [f"-fsanitize={sanitize}"] if sanitize else []
        static = [] if "ziglang" in chosen or sanitize else ["-static-libstdc++", "-static-libgcc"]
        hide = ["-Wl,--exclude-libs,ALL"]
        parts = [*kind, *sanitizer, *static, *hide, *map(str, objects), "-pthread"]
        _run([*chosen, *parts, "-o", str(made)])
        made.replace(output)
    return output


def _compile(compiler: Sequence[str], flags: Sequence[str], source: Path, target: Path) -> None:
    own = _X86_FLAGS.get(source.stem, []) if platform.machine() in ("x86_64", "AMD64") else []
    _run([*compiler, *flags, *own, "-c", str(source), "-o", str(target)])


def _compiles(compiler: Sequence[str]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "program.cpp"
        source.write_text(_PROGRAM, encoding="utf-8")
        command = [*compiler, "-std=c++17", str(source), "-o", str(Path(folder) / "program")]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE_S)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=_PATIENCE_S)
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise BuildError(f"`{' '.join(command[:3])} ...` failed:\n{last}")


def main() -> int:
    """`python -m engine.native.build`: builds, or says in one line why it cannot."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=LIBRARY, help="where to put the result")
    parser.add_argument("--sanitize", default="", help="address, undefined or thread")
    parser.add_argument("--check", action="store_true", help="build the program that checks it")
    parser.add_argument("--force", action="store_true", help="build although it is up to date")
    given = parser.parse_args()
    stamp = given.output.with_suffix(".digest")
    plain = not (given.sanitize or given.check)
    if plain and not given.force and given.output.is_file() and stamp.is_file():
        if stamp.read_text(encoding="utf-8") == digest():
            return 0
    try:
        build(given.output, sanitize=given.sanitize, check=given.check)
    except BuildError as error:
        sys.stderr.write(f"the native library is not built, torch multiplies instead: {error}\n")
        return 0 if plain else 1
    if plain:
        stamp.write_text(digest(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
