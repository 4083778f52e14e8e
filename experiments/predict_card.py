"""Predicts decoding beside a card from published figures: `python -m experiments.run predict_card`.

Replays one synthetic routing trace over a model's shapes (config.json and safetensors headers; no
weight is read) and a machine of studies/hardware: every placement of missing experts, with all
experts in RAM. The trace is made so that about the given fraction of choices is resident: a layer's
experts are chosen by a fixed popularity. Prints the arithmetic of one token beside it. Nothing here
was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from engine.config.settings import base_config
from engine.errors import InfeasibleError
from engine.facts.adjusted_timings import at_precision
from engine.facts.emulated_machine import load_machine, predicted_timings
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings, at
from engine.memory.plan import resolve
from engine.memory.records import record_bytes_of
from engine.replay.simulate import replay
from engine.trace.trace import Trace, TracePass
from engine.types import parse_size_bytes
from tuner.cli.options import open_session

PROMPT, STEPS, SEQUENCES = 64, 48, 3
PLACEMENTS = ("device", "host_split", "earliest")


def main(
    model: Annotated[Path, typer.Argument(help="a folder with config.json and headers")],
    machine: str = "laptop_8gb",
    vram: str = "8GB",
    ram: str = "32GB",
    bits: int = 4,
    resident: Annotated[float, typer.Option(help="fraction of the choices")] = 0.5,
) -> None:
    """Print predicted tokens a second for each placement."""
    with open_session(str(model), "cpu") as session:
        facts = session.describe()
    timings = predicted_timings(load_machine(machine), facts)
    base = base_config("cuda:0", 1024, parse_size_bytes(vram), parse_size_bytes(ram)).overlay(
        {"precision.bits": bits, "precision.non_expert_bits": bits, "io.threads": 2}
    )
    try:
        memory = resolve(base, facts).memory
    except InfeasibleError as error:
        raise SystemExit(str(error)) from None
    total = facts.moe_layers * facts.experts
    print(f"{memory.slots} of {total} experts lie on the card ({memory.slots / total:.0%})")
    trace = _trace_with(facts, memory.slots // facts.moe_layers, resident)
    warm = [n for n, item in enumerate(trace.passes) if item.group == 0]
    for placement in PLACEMENTS:
        config = base.overlay({"placement.name": placement})
        found = replay(config, facts, trace, timings, warm=warm).metrics()
        parts = ", ".join(
            f"{name.rpartition('.')[2]} {value:.1f}"
            for name, value in found.items()
            if name.startswith("time_ms_per_token.")
        )
        print(
            f"{placement}: {found['decode_tps']:.1f} tokens/s, hits "
            f"{found['expert_hit_rate']:.0%}, ms a token: {parts}"
        )
    _print_arithmetic(facts, at_precision(timings, bits), bits, resident)


def _print_arithmetic(facts: ModelFacts, timings: ModelTimings, bits: int, resident: float) -> None:
    """One token: what a layer waits for, if all misses are computed on the host."""
    hits = facts.experts_per_token * resident
    misses = facts.experts_per_token - hits
    card = hits * at(timings.expert_s[bits], 1)
    host = misses * at(timings.host_expert_s[bits], 1)
    fixed = sum(
        at(curve, 1)
        for curve in (
            timings.non_expert_s, timings.router_s, timings.policy_s, timings.layer_s[bits],
        )
    )  # fmt: skip
    layer = fixed + max(card, host)
    token = facts.moe_layers * layer + at(timings.pass_s, 1)
    print(
        f"by hand: a layer takes {fixed * 1e6:.0f} us beside its experts, then the longer of "
        f"{card * 1e6:.0f} us for {hits:g} hits and {host * 1e6:.0f} us for {misses:g} misses on "
        f"the host; {facts.moe_layers} layers: {token * 1e3:.1f} ms, {1 / token:.1f} tokens/s"
    )
    moved = misses * record_bytes_of_bits(facts, bits) / timings.sources[bits].rate(1)
    print(f"moving the misses instead would take {moved * 1e6:.0f} us a layer")


def record_bytes_of_bits(facts: ModelFacts, bits: int) -> int:
    """Bytes of a record at these bits."""
    config = resolve(base_config("cpu").overlay({"precision.bits": bits}), facts).config
    return record_bytes_of(config, facts, config.precision.bits)


def _trace_with(facts: ModelFacts, slots: int, resident: float) -> Trace:
    """A trace of which an LRU of so many slots a layer holds about this fraction of the choices."""
    low, high = 0.0, 4.0
    for _ in range(8):
        skew = (low + high) / 2
        trace = _trace(facts, skew)
        low, high = (low, skew) if _lru_hits(trace, slots) > resident else (skew, high)
    return trace


def _trace(facts: ModelFacts, skew: float) -> Trace:
    """Gumbel top-k choices by fixed popularity, exp(skew * normal), of each layer's experts."""
    rng = np.random.default_rng(0)
    rows = SEQUENCES * (PROMPT + STEPS - 1)
    popularity = skew * rng.normal(size=(1, facts.moe_layers, facts.experts))
    scores = popularity + rng.gumbel(size=(rows, facts.moe_layers, facts.experts))
    chosen = scores.argsort(-1)[..., -facts.experts_per_token :].astype(np.int16)
    passes: list[TracePass] = []
    first = 0
    for group in range(SEQUENCES):
        passes.append(TracePass(group, "prefill", (PROMPT,), first))
        first += PROMPT
        for _ in range(STEPS - 1):
            passes.append(TracePass(group, "decode", (1,), first))
            first += 1
    return Trace(tuple(passes), chosen, None, None, None, None, None, {})


def _lru_hits(trace: Trace, slots: int) -> float:
    """The fraction of hits while decoding, in layer 0."""
    held: dict[int, None] = {}
    hits = lookups = 0
    for number, item in enumerate(trace.passes):
        for expert in sorted(trace.demands(number, 0)):
            if item.phase == "decode":
                lookups += 1
                hits += expert in held
            held.pop(expert, None)
            held[expert] = None
            while len(held) > slots:
                del held[next(iter(held))]
    return hits / max(1, lookups)
