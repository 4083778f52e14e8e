"""Builds the native library from `sources/` with the C++ compiler that it finds.

Standard library only, so that the build hook of the package (hatch_build.py) can run it before
anything is installed. A compiler is $CXX, `c++`, `g++`, `clang++`, or that of the package
`ziglang`; the first that compiles a small program is taken.
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
from collections.abc import Mapping, Sequence
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
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
_X86_FLAGS = {
    "products_avx2": _AVX2,
    "products_avx512": _AVX512,
    "products_avx512_bf16": [*_AVX512, "-mavx512bf16", "-mavx512vnni"],
}
_PROGRAM = "#include <vector>\nint main() { return static_cast<int>(std::vector<int>(1)[0]); }\n"
_PATIENCE_S = 600
_FETCH_S = 300  # 98 MB
_ASK_S = 30
_NO_COMPILER = (
    "no C++ compiler was found: install one (Debian: apt install g++), or the Python package "
    "ziglang, then run `python -m engine.native.build`"
)


class BuildError(Exception):
    """Nothing could be built; the message says why and what to try."""


def sources() -> list[Path]:
    """The sources of the library, in order."""
    return sorted(path for path in SOURCES.glob("*.cpp") if path.stem != "check")


def digest() -> str:
    """Hash of everything that the library's bytes depend on in this folder, 16 hex digits."""
    found = hashlib.sha256(" ".join([*_FLAGS, str(_X86_FLAGS)]).encode())
    for path in (*sources(), *sorted(SOURCES.glob("*.h"))):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def is_current() -> bool:
    """Whether the library was built from these sources."""
    stamp = _stamp(LIBRARY)
    return LIBRARY.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == digest()


def find_compiler(sanitize: str = "") -> list[str] | None:
    """The command of a C++ compiler that works, with that -fsanitize; None if there is none."""
    named = [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else []
    for command in [*named, ["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]) and _compiles(command, sanitize):
            return command
    if importlib.util.find_spec("ziglang") is not None:
        zig = [sys.executable, "-m", "ziglang", "c++"]
        if _compiles(zig, sanitize):
            return zig
    return None


def can_fetch() -> bool:
    """Whether pip would find the package `ziglang`. Where there is no pip to ask: yes."""
    done = _pip("index", "versions", "ziglang", patience_s=_ASK_S)
    return done is None or done.returncode == 0


def fetch_compiler(folder: Path) -> list[str] | None:
    """The compiler of the package `ziglang`, put into `folder`; None if pip cannot have it."""
    words = ("--quiet", "--no-deps", "--no-cache-dir", "--only-binary", ":all:")
    done = _pip("install", *words, "--target", str(folder), "ziglang", patience_s=_FETCH_S)
    zig = [str(folder / "ziglang" / "zig"), "c++"]
    return zig if done is not None and done.returncode == 0 and _compiles(zig) else None


def build(
    output: Path,
    *,
    compiler: Sequence[str] | None = None,
    sanitize: str = "",
    check: bool = False,
    target: str = "",
) -> Path:
    """Compile and link into `output`, which is replaced at once when all is well.

    sanitize: a value of -fsanitize; check: the program of check.cpp instead of the library; target:
    another machine, such as aarch64-linux-gnu, with ziglang's compiler. Raises BuildError.
    """
    chosen = list(compiler) if compiler is not None else find_compiler(sanitize)
    if chosen is None:
        raise BuildError(_NO_COMPILER)
    zig = _is_zig(chosen)
    if target:
        chosen += ["-target", target]
    machine = target.partition("-")[0] or platform.machine()
    flags = [*_FLAGS, f'-DEXPERTUNE_DIGEST="{digest()}"', *(["-g0"] if zig else [])]
    if sanitize:
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g", "-O0"]
    files = [*sources(), *([SOURCES / "check.cpp"] if check else [])]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".build-") as folder:
        objects = [Path(folder) / f"{path.stem}.o" for path in files]
        # ziglang keeps 280 MB for the next time, which a library that is built once has no use for
        environment = dict(os.environ) if check else _without_zig_cache(Path(folder))

        def compile_one(source: Path, made: Path) -> None:
            own = _X86_FLAGS.get(source.stem, []) if machine in ("x86_64", "AMD64") else []
            if zig:  # which takes this processor's own instructions everywhere unless told
                own = ["+".join(["-mcpu=baseline", *(flag[2:] for flag in own)])]
            _run([*chosen, *flags, *own, "-c", str(source), "-o", str(made)], environment)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(compile_one, files, objects))
        made = Path(folder) / output.name
        parts = [] if check else ["-shared"]
        parts += [f"-fsanitize={sanitize}"] if sanitize else []
        if zig:  # its C++ library is static and hidden anyway
            parts += ["-s", "-mcpu=baseline"]
        elif not sanitize:
            parts += ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"]
        _run([*chosen, *parts, *map(str, objects), "-pthread", "-o", str(made)], environment)
        made.replace(output)
    if not (check or sanitize or target):
        _stamp(output).write_text(digest(), encoding="utf-8")
    return output


def build_if_stale(*, fetch: bool = False, force: bool = False) -> bool:
    """Build the library unless it is current; whether anything was built. Raises BuildError.

    fetch: where no compiler is found, take that of the package `ziglang` for this once.
    """
    if is_current() and not force:
        return False
    compiler = find_compiler()
    if compiler is not None or not fetch:
        build(LIBRARY, compiler=compiler)
        return True
    with tempfile.TemporaryDirectory() as folder:
        build(LIBRARY, compiler=fetch_compiler(Path(folder)))
    return True


def _stamp(library: Path) -> Path:
    return library.with_suffix(".digest")


def _pip(*words: str, patience_s: int) -> subprocess.CompletedProcess[bytes] | None:
    """What pip answers; None if it is not installed or does not come to an end.

    Inside a build, PYTHONPATH hides the pip that runs it.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    python = [sys.executable, "-m", "pip"]
    options = ["--disable-pip-version-check", "--retries", "1", "--timeout", "10"]
    try:
        asked = subprocess.run(
            [*python, "--version"], env=environment, capture_output=True, check=False
        )
        if asked.returncode != 0:
            return None
        return subprocess.run(
            [*python, *words, *options],
            env=environment,
            capture_output=True,
            check=False,
            timeout=patience_s,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _is_zig(compiler: Sequence[str]) -> bool:
    return any("zig" in Path(word).name for word in compiler[:3])


def _without_zig_cache(folder: Path) -> dict[str, str]:
    cache = str(folder / "cache")
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}


def _compiles(compiler: Sequence[str], sanitize: str = "") -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "program.cpp", Path(folder) / "program"
        source.write_text(_PROGRAM, encoding="utf-8")
        wanted = [f"-fsanitize={sanitize}"] if sanitize else []
        if _is_zig(compiler):
            if sanitize:  # it has none of the libraries
                return False
            wanted = ["-c"]  # linking would compile all of the C++ library, for minutes
        command = [*compiler, "-std=c++17", *wanted, str(source), "-o", str(program)]
        try:
            _run(command, _without_zig_cache(Path(folder)))
        except (BuildError, OSError, subprocess.TimeoutExpired):
            return False
        return True


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=_PATIENCE_S,
    )
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise BuildError(f"`{' '.join(command[:3])} ...` failed:\n{last}")


def main(words: Sequence[str] | None = None) -> int:
    """`python -m engine.native.build`: builds, or says in one line why it cannot."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--force", action="store_true", help="build although it is up to date")
    parser.add_argument(
        "--fetch",
        action="store_true",
        help="without a compiler, take that of the Python package ziglang for this once",
    )
    parser.add_argument("--check", action="store_true", help="build the program that checks it")
    parser.add_argument("--output", type=Path, help="where to put that program")
    parser.add_argument("--sanitize", default="", help="of it: address, undefined or thread")
    parser.add_argument("--target", default="", help="of it: another machine, by ziglang")
    given = parser.parse_args(words)
    if given.check != (given.output is not None):
        parser.error("a program that checks needs a place, and only that")
    if not given.check and os.environ.get("EXPERTUNE_NATIVE") == "off":
        return 0
    try:
        if given.check:
            build(given.output, sanitize=given.sanitize, check=True, target=given.target)
        else:
            build_if_stale(fetch=given.fetch, force=given.force)
    except BuildError as error:
        if given.check:
            sys.stderr.write(f"{error}\n")
            return 1
        sys.stderr.write(f"the native library is not built, torch multiplies instead: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
