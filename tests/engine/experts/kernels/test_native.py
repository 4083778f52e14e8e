"""The native products: bit for bit their scalar reference, near the plain one, fused and alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.experts.encoding.codec import RecordFormat, encode, matrix_view
from engine.experts.kernels.multiplier import Multiplier
from engine.experts.kernels.native import GROUPS, NUMBERS, linear, matrix_of
from engine.experts.kernels.native_experts import NativeExperts, native_gate
from engine.experts.kernels.registry import KernelSupport
from engine.layout.record import Part, record_layout
from engine.model.loader import load_model
from engine.native.library import Threads
from engine.native.values import Experts, Gate, GateForm, Matrix
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.run.native_linear import NativeLinear, use_native_linears
from engine.run.native_pass import NativePass
from engine.types import Bits
from tests.engine.families import each_family, save_tiny
from tests.requirements import require_native

LIBRARY = require_native()
NATIVE = KernelSupport(("native",))


@pytest.fixture(scope="module")
def pools() -> Iterator[list[Threads]]:
    """The reference, and every instruction set that runs here on 1, 2, 3 and 5 threads."""
    *fast, reference = LIBRARY.instruction_sets()
    opened = [Threads(LIBRARY, 1, reference)]
    opened += [Threads(LIBRARY, count, name) for name in fast for count in (1, 2, 3, 5)]
    yield opened
    for pool in opened:
        pool.close()


def encoded(
    bits: Any, group: int, rows: int, columns: int, seed: int, transposed: bool = False
) -> tuple[RecordFormat, torch.Tensor]:
    """A record of one matrix of noise."""
    generator = torch.Generator().manual_seed(seed)
    part = Part("w", (columns, rows) if transposed else (rows, columns), transposed)
    record = RecordFormat((part,), record_layout((part,), bits, group), torch.bfloat16, "plain")
    weight = torch.randn(part.shape, generator=generator).bfloat16()
    return record, encode({"w": weight}, record)


@given(
    bits=st.sampled_from([16, 8, 4, 3, 2]),
    group=st.sampled_from(GROUPS),
    groups=st.integers(1, 5),
    rows=st.sampled_from([8, 17, 40, 130]),
    tokens=st.sampled_from([1, 2, 3, 5, 9, 70]),
    dtype=st.sampled_from(list(NUMBERS)),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(
    pools: list[Threads],
    bits: Any,
    group: int,
    groups: int,
    rows: int,
    tokens: int,
    dtype: torch.dtype,
    transposed: bool,
    seed: int,
) -> None:
    columns = group * groups
    record, data = encoded(bits, group, rows, columns, seed, transposed)
    view = matrix_view(data, record, record.parts[0])
    matrix = matrix_of(view, bits, group)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    found = []
    for pool in pools:
        out = torch.empty(tokens, rows, dtype=dtype)
        pool.linear(
            matrix,
            view.codes.data_ptr(),
            x.data_ptr(),
            NUMBERS[dtype],
            tokens,
            columns,
            out.data_ptr(),
            rows,
        )
        found.append(out)
    assert all(torch.equal(out, found[0]) for out in found)
    weight = view.codes.float() if bits == 16 else None
    if weight is None:
        weight = Multiplier(bits, group, "plain", NATIVE, "auto").dequantized(view)
    elif transposed:
        weight = weight.t()
    expected = x.double() @ weight.double().t()
    bound = 1e-5 if dtype == torch.float32 else 8e-3 if dtype == torch.bfloat16 else 1e-3
    error = (found[0].double() - expected).abs().max() / expected.abs().max()
    assert error < bound


def test_rows_of_a_token_do_not_depend_on_its_company() -> None:
    record, data = encoded(4, 64, 48, 256, 0)
    view = matrix_view(data, record, record.parts[0])
    x = torch.randn(70, 256).bfloat16()
    matrix = matrix_of(view, 4, 64)
    together = linear(x, view, matrix)
    for token in (0, 3, 64, 69):
        assert torch.equal(together[token : token + 1], linear(x[token : token + 1], view, matrix))


@pytest.mark.parametrize("dtype", list(NUMBERS))
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_plain_weights_are_the_dequantized_ones_rounded(bits: Bits, dtype: torch.dtype) -> None:
    record, data = encoded(bits, 32, 34, 160, 1)
    view = matrix_view(data, record, record.parts[0])
    multiply = Multiplier(bits, 32, "plain", NATIVE, "auto")
    kernel: Any = NATIVE.kernel_for(bits)
    found = kernel.plain(view, bits, 32, dtype)
    assert torch.equal(found, multiply.dequantized(view).to(dtype))


def test_many_tokens_go_through_plain_weights_few_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    record, data = encoded(4, 64, 64, 128, 2)
    view = matrix_view(data, record, record.parts[0])
    multiply = Multiplier(4, 64, "plain", NATIVE, "auto", crossover=4)
    calls = []
    kernel: Any = type(NATIVE.kernel_for(4))
    plain = kernel.plain
    monkeypatch.setattr(kernel, "plain", lambda self, *a: calls.append(1) or plain(self, *a))
    few, many = torch.randn(4, 128).bfloat16(), torch.randn(5, 128).bfloat16()
    expected = few.float() @ multiply.dequantized(view).t()
    assert (multiply(few, view).float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert not calls
    expected = many.float() @ multiply.dequantized(view).t()
    assert (multiply(many, view).float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_reads_its_weight_where_it_lies(dtype: torch.dtype, bias: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(96, 50, bias=bias)).to(dtype)
    if bias:  # before the weight in memory, and behind it
        room = torch.zeros(50 + 96 * 50 + 50, dtype=dtype)
        first, last = room[:50], room[-50:]
        weight = room[50:-50].view(50, 96).copy_(model[0].weight.detach())
        model[0].weight = torch.nn.Parameter(weight)
        bias_place = first if dtype == torch.bfloat16 else last
        model[0].bias = torch.nn.Parameter(bias_place.copy_(model[0].bias.detach()))
    plain = torch.nn.Linear(96, 50, bias=bias).to(torch.float32)
    plain.load_state_dict({k: v.float() for k, v in model[0].state_dict().items()})
    use_native_linears(model, most_tokens=6)
    assert type(model[0]) is NativeLinear
    x = torch.randn(2, 3, 5, 96).to(dtype)[:, :, 2]  # [2, 3, 96], rows apart
    with torch.inference_mode():
        found, expected = model(x), plain(x.float())
        assert found.shape == (2, 3, 50)
        assert (found.float() - expected).abs().max() < 0.02 * expected.abs().max()
        one = model(x[:1, :1])
        assert torch.equal(one[0, 0], found[0, 0])
        many = torch.randn(7, 96).to(dtype)  # beyond most_tokens: torch's
        assert (model(many).float() - plain(many.float())).abs().max() < 0.05


@pytest.mark.parametrize("family", each_family())
def test_the_activation_of_every_family_is_known(family: str, tmp_path: Path) -> None:
    model = load_model(save_tiny(family, tmp_path), torch.bfloat16)
    module: Any = model.layers[0].experts
    gate = native_gate(module, torch.bfloat16)
    assert gate is not None, f"{family}: {type(module).__name__}"
    assert (gate.form == GateForm.NONE) == (not module.has_gate)


def test_an_unknown_activation_is_left_to_torch() -> None:
    class Odd:
        has_gate = True

        def _apply_gate(self, both: torch.Tensor) -> torch.Tensor:
            gate, up = both.chunk(2, dim=-1)
            return torch.sin(gate) * up

    assert native_gate(Odd(), torch.bfloat16) is None
    Odd._apply_gate = lambda self, both, more: both  # type: ignore[assignment,misc]
    assert native_gate(Odd(), torch.bfloat16) is None


@pytest.mark.parametrize("gated", ["plain", "interleaved", "none"])
def test_a_wave_is_its_products_and_the_gate_in_between(pools: list[Threads], gated: str) -> None:
    hidden, width, experts, tokens, chosen = 64, 48, 5, 7, 3
    form = GateForm.NONE if gated == "none" else GateForm.PRODUCT
    gate = Gate(form, 0, int(gated == "interleaved"), 1.0, 0.0)
    parts = (
        Part("up", (width if gated == "none" else 2 * width, hidden)),
        Part("down", (hidden, width)),
    )
    record = RecordFormat(parts, record_layout(parts, 4, 16), torch.bfloat16, "plain")
    generator = torch.Generator().manual_seed(3)
    arena = torch.stack(
        [
            encode({p.name: torch.randn(p.shape, generator=generator) for p in parts}, record)
            for _ in range(experts)
        ]
    )
    views = [[matrix_view(arena[e], record, part) for part in parts] for e in range(experts)]
    up, down = (matrix_of(view, 4, 16) for view in views[0])
    start = arena[0].data_ptr()
    for matrix, view in zip((up, down), views[0], strict=True):
        matrix.codes_offset = view.codes.data_ptr() - start
        matrix.scales_offset += matrix.codes_offset
    x = torch.randn(tokens, hidden, generator=generator).bfloat16()
    index = torch.stack(
        [torch.randperm(experts, generator=generator)[:chosen] for _ in range(tokens)]
    )
    index[2, 1] = experts  # skipped
    expected = torch.full((tokens * chosen, hidden), 7.0, dtype=torch.bfloat16)
    pool = pools[0]
    for place, expert in enumerate(index.reshape(-1).tolist()):
        if expert == experts:
            continue
        h = linear(x[place // chosen][None], views[expert][0], matrix_of(views[expert][0], 4, 16))
        pair = h.float().view(-1, 2) if gated == "interleaved" else h.float().view(-1, width).t()
        g, u = (pair[:, 0].contiguous(), pair[:, -1].contiguous())
        a = torch.empty(width)
        pool.gate(gate, 1, g.data_ptr(), u.data_ptr(), a.data_ptr(), width)
        expected[place] = linear(
            a.bfloat16()[None], views[expert][1], matrix_of(views[expert][1], 4, 16)
        )[0]
    for pool in pools:
        out = torch.full_like(expected, 7.0)
        for wave in ((0, 2), (1, 3, 4)):  # as they come
            records = (ctypes.c_uint64 * experts)(
                *(arena[e].data_ptr() if e in wave else 0 for e in range(experts))
            )
            pool.experts(
                Experts(up, down, gate),
                records,
                x.data_ptr(),
                1,
                tokens,
                chosen,
                index.data_ptr(),
                out.data_ptr(),
            )
        assert torch.equal(out, expected)


def logits(folder: Path, cache: Path, values: dict[str, Any]) -> list[torch.Tensor]:
    """Of a prompt and three decoded tokens."""
    engine = Engine(folder, CpuDevice(), cache)
    try:
        engine.configure(EngineConfig().overlay(values))
        batch = MicroBatch(torch.arange(3, 23)[None])
        found = engine.prefill([batch])
        for token in (5, 9, 11):
            batch.tokens = torch.tensor([[token]])
            found += engine.forward([batch], "decode")
        return found
    finally:
        engine.close()


@pytest.mark.parametrize("bits", [16, 8, 4, 3, 2])
def test_no_bit_of_a_logit_depends_on_threads_or_on_what_is_resident(
    tiny_folder: Path, tmp_path: Path, bits: Bits
) -> None:
    base = {"precision.bits": bits, "precision.non_expert_bits": min(8, bits) if bits > 3 else 4}
    variants: list[dict[str, Any]] = [
        {"cpu.threads": 1},
        {"cpu.threads": 2},
        {"cpu.threads": 3, "cache.expert_bytes": "40%"},
        {"cpu.threads": 5, "cache.expert_bytes": "40%", "batch.order": "ready_first"},
        {"cache.eviction": "none", "prefetch.predictor": "next_gate", "prefetch.depth": 1},
    ]
    found = [logits(tiny_folder, tmp_path, {**base, **variant}) for variant in variants]
    assert all(
        torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True)
    )


def test_few_tokens_are_computed_in_one_call_a_wave(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    run = NativeExperts.run

    def note(self: NativeExperts, bits: Bits, addresses: dict[int, int], *rest: Any) -> None:
        calls.append(len(addresses))
        run(self, bits, addresses, *rest)

    monkeypatch.setattr(NativeExperts, "run", note)
    monkeypatch.setattr(NativePass, "of", lambda model: None)  # it has one call for all layers
    engine = Engine(tiny_folder, CpuDevice(), tmp_path)
    engine.configure(EngineConfig().overlay({"precision.bits": 4}))
    batch = MicroBatch(torch.arange(3, 11)[None])
    engine.prefill([batch])
    batch.tokens = torch.tensor([[5]])
    engine.forward([batch], "decode")
    calls.clear()
    batch.tokens = torch.tensor([[5]])
    engine.forward([batch], "decode")  # everything is resident by now
    assert calls == [engine.facts.experts_per_token] * engine.facts.moe_layers
    engine.close()


def test_matrices_say_where_they_lie() -> None:
    record, data = encoded(4, 64, 16, 64, 0)
    view = matrix_view(data, record, record.parts[0])
    matrix = matrix_of(view, 4, 64)
    assert isinstance(matrix, Matrix)
    assert (matrix.rows, matrix.columns, matrix.group) == (16, 64, 64)
    assert view.codes.data_ptr() + matrix.scales_offset == view.scales.data_ptr()  # type: ignore[union-attr]
