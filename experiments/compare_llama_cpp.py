"""expertune beside llama.cpp at 4 bits, resident or in a budget: decode, prefill, many sequences.

In: a checkpoint of any size that both know; needs the extra `baselines`. Each engine lives in a
process of its own, with its own thread settings, and only one works at a time: A B C A B C.
Prints each round and medians of ratios within rounds; bandwidth efficiency is ours. `rounded` is
ours with activations of 8 bits, which llama.cpp's products always have.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer

PROMPT, DECODED, VOCABULARY = 512, 48, 2000
OPTIMIZE = os.environ.get("EXPERTUNE_OPTIMIZE", "weighted_squares")
Figures = dict[str, float]


def main(
    model: Annotated[Path, typer.Argument(help="the checkpoint's folder")],
    gguf: Annotated[Path, typer.Option(help="llama.cpp's file, made if missing")],
    rounds: int = 5,
    sequences: Annotated[int, typer.Option(help="how many decode together; 1: one only")] = 16,
    bits: int = 4,
    cache: Annotated[str, typer.Option(help="cache.expert_bytes")] = "auto",
    threads: Annotated[int, typer.Option(help="of llama.cpp")] = os.cpu_count() or 1,
    mapped: Annotated[str, typer.Option(help="llama.cpp maps its file within this memory")] = "",
    ours_only: bool = False,
) -> None:
    """Compare. A round is a prompt of 512 tokens, 48 tokens of one sequence, then of many."""
    makers: dict[str, Callable[[], Callable[[], Figures]]] = {
        "ours": lambda: _ours(model, sequences, bits, cache, 16),
        "rounded": lambda: _ours(model, sequences, bits, cache, 8),
    }
    if not ours_only:
        makers["llama.cpp"] = lambda: _llama(gguf, sequences, threads, mapped)
    context = multiprocessing.get_context("fork")  # this process never loads torch
    if not gguf.is_file() and not ours_only:
        converting = context.Process(target=_convert, args=(model, gguf))
        converting.start()
        converting.join()
        if converting.exitcode != 0:
            raise typer.Exit(1)
    pipes = {}
    for name, make in makers.items():
        mine, theirs = context.Pipe()
        context.Process(target=_serve, args=(name, make, theirs), daemon=True).start()
        theirs.close()  # so that a process that ends is noticed
        mine.recv()
        pipes[name] = mine
    results: dict[str, list[Figures]] = {name: [] for name in pipes}
    for number in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send("run")
            found = pipe.recv()
            shown = "  ".join(f"{key} {value:.4g}" for key, value in found.items())
            print(f"{number} {name:9s} {shown}", flush=True)
            if number:  # the first round warms caches
                results[name].append(found)
    for key in dict.fromkeys(key for found in results["ours"] for key in found):
        medians = {
            name: statistics.median(found.get(key, 0.0) for found in rows)
            for name, rows in results.items()
        }
        print(f"{key}:", ", ".join(f"{name} {value:.4g}" for name, value in medians.items()))
        for one, other in itertools.combinations(results, 2):
            pairs = zip(results[one], results[other], strict=True)
            ratios = sorted(a[key] / b[key] for a, b in pairs if key in a and key in b)
            if ratios and not key.startswith("share"):
                print(
                    f"  {one} / {other} by rounds {ratios[0]:.2f} to {ratios[-1]:.2f}, "
                    f"median {statistics.median(ratios):.2f}"
                )


def _serve(name: str, make: Callable[[], Callable[[], Figures]], pipe: Connection) -> None:
    if name != "llama.cpp":
        from engine.worker.process import set_native_settings

        set_native_settings()
    else:
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ.pop("OMP_WAIT_POLICY", None)
    run = make()
    pipe.send("ready")
    while True:
        pipe.recv()
        pipe.send(run())


def _ours(
    model: Path, sequences: int, bits: int, cache: str, activation_bits: int
) -> Callable[[], Figures]:
    import torch

    from engine.config.settings import EngineConfig
    from engine.device.cpu import CpuDevice
    from engine.measure.efficiency import memory_bytes_per_s, touched_bytes
    from engine.run.engine import Engine
    from engine.run.micro_batch import MicroBatch

    folder = Path(os.environ.get("EXPERTUNE_EXPERIMENT_CACHE", tempfile.gettempdir()))
    engine = Engine(model, CpuDevice(), folder / "compare-cache")
    config = EngineConfig().overlay(
        {
            "precision.bits": bits,
            "precision.non_expert_bits": bits,
            "precision.activation_bits": activation_bits,
            "cache.expert_bytes": cache,
            "kv.max_tokens": PROMPT + 2 * DECODED,
            "batch.size": sequences,
            "prefill.chunk_tokens": PROMPT,
            "precision.options": {} if bits > 4 else {"optimize": OPTIMIZE},
        }
    )
    _, memory = engine.configure(config, lambda *news: None)
    sys.stderr.write(f"ours: {memory.total_bytes} bytes\n")
    generator = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(1, VOCABULARY, shape, generator=generator)

    def decode(count: int, prompt: int) -> tuple[float, float, float]:
        """Tokens per second of decoding, seconds of the prompt, bandwidth efficiency."""
        batch = MicroBatch(tokens(count, prompt))
        started = time.perf_counter()
        engine.prefill([batch])
        prefill_s = time.perf_counter() - started
        for _ in range(4):
            batch.tokens = tokens(count, 1)
            engine.forward([batch], "decode")
        engine.clock.reset()
        engine.residency.reset_counters()
        started = time.perf_counter()
        for _ in range(DECODED):
            batch.tokens = tokens(count, 1)
            engine.forward([batch], "decode")
        spent = time.perf_counter() - started
        engine.clock.switch("other")
        rate = memory_bytes_per_s(engine) or 0.0
        bandwidth = touched_bytes(engine, DECODED) / spent
        return DECODED * count / spent, prefill_s, bandwidth / rate if rate else 0.0

    def run() -> Figures:
        single, prefill_s, efficiency = decode(1, PROMPT)
        seconds = dict(engine.clock.seconds)
        found = {"prefill_tps": PROMPT / prefill_s, "decode_tps": single}
        if sequences > 1:
            found["decode_many_tps"] = decode(sequences, 32)[0]
        whole = sum(seconds.values())
        found["bandwidth_efficiency"] = efficiency
        found |= {f"share_{name}": value / whole for name, value in seconds.items() if value > 0}
        return found

    return run


def _llama(gguf: Path, sequences: int, threads: int, mapped: str) -> Callable[[], Figures]:
    import random

    import xllamacpp

    from engine.baselines.memory_group import bounded_memory, drop_page_cache
    from engine.types import parse_size_bytes

    bound = contextlib.ExitStack()  # held by `run`, so for as long as the process lives
    if mapped:
        drop_page_cache(gguf.parent)
        held = bound.enter_context(bounded_memory(parse_size_bytes(mapped)))
        sys.stderr.write(f"llama.cpp: {held}\n")
    options = xllamacpp.CommonParams()
    options.model.path = str(gguf)
    modes = xllamacpp.llama_load_mode
    options.load_mode = modes.LLAMA_LOAD_MODE_MMAP if mapped else modes.LLAMA_LOAD_MODE_NONE
    options.lazy_mode = xllamacpp.llama_lazy_mode.LLAMA_LAZY_MODE_OFF
    options.no_extra_bufts = bool(mapped)  # repacked weights are a copy of the whole model
    options.n_ctx = (PROMPT + 2 * DECODED) * max(2, sequences // 4)
    options.n_parallel = sequences
    options.kv_unified = True
    options.n_gpu_layers = 0
    options.fit_params = options.warmup = options.cache_prompt = options.ui = False
    options.cache_ram_mib = options.n_ctx_checkpoints = options.verbosity = 0
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(options)
    dice = random.Random(0)

    def ask(prompt: int, output: int) -> dict[str, Any]:
        answer = server.handle_completions(
            {
                "prompt": [dice.randrange(1, VOCABULARY) for _ in range(prompt)],
                "max_tokens": output,
                "ignore_eos": True,
                "cache_prompt": False,
                "temperature": 0,
            }
        )
        timings: dict[str, Any] = answer["timings"]
        return timings

    def run(held: contextlib.ExitStack = bound) -> Figures:
        alone = ask(PROMPT, DECODED)
        found = {
            "prefill_tps": alone["prompt_n"] / alone["prompt_ms"] * 1e3,
            "decode_tps": (alone["predicted_n"] - 1) / alone["predicted_ms"] * 1e3,
        }
        if sequences > 1:
            answers: list[dict[str, Any]] = []
            callers = [
                threading.Thread(target=lambda: answers.append(ask(32, DECODED)))
                for _ in range(sequences)
            ]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            each = [(a["predicted_n"] - 1) / a["predicted_ms"] * 1e3 for a in answers]
            found["decode_many_tps"] = sum(each)
        return found

    return run


def _convert(model: Path, gguf: Path) -> None:
    """Q4_0 for every matrix but routers."""
    import gguf as library
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    architecture = get_model_architecture(ModelBase.load_hparams(model, False), ModelType.TEXT)
    family: Any = get_model_class(architecture)

    class FourBits(family):  # type: ignore[misc]
        model_arch = family.model_arch

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            return "gpt-2"  # prompts arrive as token ids

        def tensor_force_quant(self, name: str, new_name: str, bid: int | None, dims: int) -> Any:
            if dims >= 2 and new_name.endswith(".weight") and "gate_inp" not in new_name:
                return library.GGMLQuantizationType.Q4_0
            return super().tensor_force_quant(name, new_name, bid, dims)

    started = time.perf_counter()
    with torch.inference_mode():
        FourBits(model, library.LlamaFileType.MOSTLY_F16, gguf).write()
    sys.stderr.write(f"{gguf} made in {time.perf_counter() - started:.0f} s\n")


if __name__ == "__main__":
    typer.run(main)
