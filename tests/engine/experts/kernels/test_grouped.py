"""Grouped launches: values against plain torch, what is left alone, and that they compile.

What launches is marked `triton`: on the CPU it needs TRITON_INTERPRET=1 from the start (make
triton; test_interpreted.py runs the quick ones so), on CUDA the same tests run compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.experts.encoding.codec import RecordFormat
from engine.experts.kernels.activations import plain_gate
from engine.experts.kernels.grouped.launch import (
    GroupedFormat,
    GroupedMatrix,
    LayerRows,
    launch_experts,
    launch_sum,
)
from engine.experts.kernels.grouped.probe import (
    noise_record,
    plain_experts,
    self_test,
    tiny_record,
)
from engine.layout.record import Part, record_layout
from engine.native.values import Activation, Gate, GateForm

# Of the largest value. In float32: another order of summing. Of 16 bits every rounding counts, and
# triton's interpreter cuts off instead of rounding.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}
UNTOUCHED = 7.0

SILU = Gate(GateForm.PRODUCT, Activation.SILU, 0, 1.0, 0.0)
CLAMPED = Gate(GateForm.CLAMPED_PLUS_ONE, 0, 1, 1.702, 1.5)
NONE = Gate(GateForm.NONE, Activation.RELU_SQUARED, 0, 1.0, 0.0)
GATES = {
    "silu": SILU,
    "gelu": Gate(GateForm.PRODUCT, Activation.GELU, 0, 1.0, 0.0),
    "gelu_tanh": Gate(GateForm.PRODUCT, Activation.GELU_TANH, 1, 1.0, 0.0),
    "quick_gelu": Gate(GateForm.PRODUCT, Activation.QUICK_GELU, 0, 1.0, 0.0),
    "wide": Gate(GateForm.WIDE, Activation.SILU, 0, 1.0, 0.0),
    "clamped": Gate(GateForm.CLAMPED, Activation.SILU, 0, 1.0, 0.75),
    "clamped_after": Gate(GateForm.CLAMPED_AFTER, Activation.RELU, 0, 1.0, 0.75),
    "clamped_plus_one": CLAMPED,
    "none": NONE,
}


@pytest.fixture(scope="module")
def device() -> torch.device:
    """Where triton can run here."""
    pytest.importorskip("triton", reason="needs the extra gpu")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.skip("without CUDA it needs TRITON_INTERPRET=1")


def check(
    record: RecordFormat,
    gate: Gate,
    index: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
    *,
    experts: int = 4,
    missing: tuple[int, ...] = (),
) -> None:
    """Experts of `index` [T, K] in slots of several sizes; those from `experts` on are none."""
    layout = GroupedFormat.of(record, gate, dtype)
    assert layout is not None
    raw = [noise_record(record, seed) for seed in range(experts)]
    pieces, offsets, end = [], [], 0
    for number in reversed(range(experts)):  # slots are not in the order of the experts
        spare = torch.full((4096 * (number % 3),), 0xFF, dtype=torch.uint8)
        pieces += [spare, raw[number]]
        offsets.insert(0, end + spare.numel())
        end += spare.numel() + raw[number].numel()
    table = torch.tensor([-1 if e in missing else at for e, at in enumerate(offsets)] + [-1])
    tokens, chosen = index.shape
    x = torch.randn(tokens, layout.up.columns, generator=torch.Generator().manual_seed(9)).to(dtype)
    out = torch.full((tokens * chosen, layout.down.rows), UNTOUCHED, dtype=dtype, device=device)
    rows = LayerRows.of(index.to(device), torch.arange(experts + 2, device=device))
    arena = torch.cat(pieces).to(device)
    launch_experts(layout, arena, table.to(device), x.to(device), rows, out)
    expected = plain_experts(record, gate, raw, x, index)
    flat = index.reshape(-1)
    left = (flat >= experts) | torch.isin(flat, torch.tensor(missing, dtype=torch.int64))
    assert torch.all(out.cpu()[left] == UNTOUCHED)
    if not left.all():
        error = (out.cpu().float() - expected)[~left].abs().max() / expected.abs().max()
        assert error <= TOLERANCES[dtype]


def routing(tokens: int, chosen: int, experts: int = 4, seed: int = 0) -> torch.Tensor:
    """Each token's choices differ."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, experts, generator=generator).topk(chosen).indices


RECORDS: dict[str, dict[str, Any]] = {
    "16": {"bits": 16},
    "16 transposed, with biases": {"bits": 16, "is_transposed": True, "has_bias": True},
    "fp16": {"bits": 16, "sixteen": torch.float16},
    "8": {"bits": 8},
    "8, with biases": {"bits": 8, "has_bias": True},
    **{f"4 by {group}": {"bits": 4, "group": group} for group in (16, 32, 64, 128)},
    "4, with biases": {"bits": 4, "group": 32, "has_bias": True},
    "3": {"bits": 3, "group": 64},
    "2": {"bits": 2, "group": 32},
    "mxfp4": {"bits": 4, "is_mxfp4": True, "has_bias": True, "is_transposed": True},
}


QUICK = {"16", "16 transposed, with biases", "8", "4 by 64", "mxfp4"}


@pytest.mark.triton
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RECORDS],
)
def test_outputs_equal_the_reference_for_every_precision(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    gate = CLAMPED if RECORDS[name].get("has_bias") else SILU
    check(tiny_record(**RECORDS[name]), gate, routing(2, 2), dtype, device)


@pytest.mark.triton
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", list(GATES))
def test_outputs_equal_the_reference_for_every_activation(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    gate = GATES[name]
    record = tiny_record(8, is_gated=gate.form != GateForm.NONE)
    check(record, gate, routing(1, 2), dtype, device)


@pytest.mark.triton
@pytest.mark.parametrize(
    ("index", "missing"),
    [
        (routing(1, 4), ()),
        (routing(1, 4), (0, 2)),  # they arrive later, or the host computes them
        (torch.tensor([[4, 1, 4]]), ()),  # 4: no expert
        (torch.full((3, 2), 4), ()),
        (torch.tensor([[2]]), (2,)),
        (torch.zeros(40, 1, dtype=torch.int64), ()),  # one expert, rows around two tiles
        (torch.arange(17).view(17, 1) % 2 * 3, (3,)),
        (routing(32, 4), (1,)),  # the most pairs whose rows are searched
        (routing(33, 4), (1,)),  # sorted from here on
        (torch.zeros(130, 1, dtype=torch.int64), ()),
        (torch.cat([routing(50, 3), torch.full((4, 3), 4)]), (0,)),
        (torch.full((65, 2), 3), (3,)),
    ],
)
def test_rows_are_found_however_they_are_spread(
    index: torch.Tensor, missing: tuple[int, ...], device: torch.device
) -> None:
    record = tiny_record(4, group=32)
    check(record, SILU, index, torch.float32, device, missing=missing)


@pytest.mark.triton
@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_layer_equals_the_reference(data: st.DataObject, device: torch.device) -> None:
    name = data.draw(st.sampled_from(list(RECORDS)))
    gate = data.draw(st.sampled_from(list(GATES.values())))
    experts = data.draw(st.integers(1, 9))
    tokens = data.draw(st.integers(1, 60))
    chosen = data.draw(st.integers(1, 4))
    entries = st.lists(st.integers(0, experts), min_size=chosen, max_size=chosen)
    index = torch.tensor(data.draw(st.lists(entries, min_size=tokens, max_size=tokens)))
    missing = data.draw(st.sets(st.integers(0, experts - 1)))
    record = tiny_record(**RECORDS[name], is_gated=gate.form != GateForm.NONE)
    dtype = data.draw(st.sampled_from(list(TOLERANCES)))
    check(record, gate, index, dtype, device, experts=experts, missing=tuple(missing))


@pytest.mark.triton
def test_widths_that_no_tile_divides_are_computed_whole(device: torch.device) -> None:
    parts = (Part("gate_up_proj", (2 * 72, 40)), Part("down_proj", (40, 72)))
    for bits in (16, 8):
        record = RecordFormat(parts, record_layout(parts, bits, 0), torch.bfloat16, "plain")
        check(record, SILU, routing(2, 2), torch.float32, device)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("tokens", [1, 3])
def test_the_sum_is_weighted_in_routing_order(
    tokens: int, dtype: torch.dtype, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    y = torch.randn(tokens * 8, 700, generator=generator).to(dtype)
    weights = torch.rand(tokens, 8, generator=generator)
    found = launch_sum(y.to(device), weights.to(device)).cpu()
    expected = torch.zeros(tokens, 700)
    for choice in range(8):
        part = y.view(tokens, 8, -1)[:, choice].float() * weights[:, choice, None].to(dtype).float()
        expected += part.to(dtype).float()
    assert found.dtype == dtype
    if dtype == torch.float32:
        assert torch.equal(found, expected)
    else:
        assert (found.float() - expected).abs().max() <= TOLERANCES[dtype] * expected.abs().max()


@pytest.mark.triton
@pytest.mark.parametrize("name", ["16", "8", "4 by 64", "mxfp4"])
def test_the_self_test_holds(name: str, device: torch.device) -> None:
    record = tiny_record(**RECORDS[name])
    gate = CLAMPED if name == "mxfp4" else SILU
    assert self_test(record, gate, torch.bfloat16, device) is None


@pytest.mark.triton
def test_the_self_test_fails_where_a_launch_computes_something_else(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = GroupedFormat.of

    def shifted(record: RecordFormat, gate: Gate, dtype: torch.dtype) -> GroupedFormat:
        found = own(record, gate, dtype)
        assert found is not None
        down = GroupedMatrix(**{**vars(found.down), "scales": found.down.scales + 2})
        return GroupedFormat(found.up, down, gate, found.sixteen)

    monkeypatch.setattr(GroupedFormat, "of", shifted)
    failure = self_test(tiny_record(4, group=64), SILU, torch.bfloat16, device)
    assert failure is not None
    assert "grouped launches err by" in failure


def test_records_that_no_program_reads_have_no_format() -> None:
    def format_of(**changes: Any) -> GroupedFormat | None:
        parts = (Part("gate_up_proj", (128, 64)), Part("down_proj", (64, 64)))
        given = {"sixteen": torch.bfloat16, "code_layout": "plain", "bits": 4, "group": 32}
        given |= changes
        layout = record_layout(parts, given.pop("bits"), given.pop("group"))
        return GroupedFormat.of(RecordFormat(parts, layout, **given), SILU, torch.bfloat16)

    assert format_of() is not None
    assert format_of(bits=8, code_layout="torch_int4") is not None  # it says nothing of 8 bits
    assert format_of(code_layout="torch_int4") is None
    assert format_of(code_layout="cuda_int4") is None
    huge = (Part("gate_up_proj", (1 << 16, 1 << 15)), Part("down_proj", (64, 64)))
    record = RecordFormat(huge, record_layout(huge, 8, 0), torch.bfloat16, "plain")
    assert GroupedFormat.of(record, SILU, torch.bfloat16) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plain_gate_is_what_torch_computes(dtype: torch.dtype) -> None:
    g, u = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    low = g.clamp(max=1.5)
    plus_one = (u.clamp(-1.5, 1.5) + 1) * (low * torch.sigmoid(low * 1.702))
    wanted = {
        "silu": torch.nn.functional.silu(g) * u,
        "gelu": torch.nn.functional.gelu(g) * u,
        "clamped_plus_one": plus_one,
        "none": torch.relu(u).square(),
    }
    for name, expected in wanted.items():
        found = plain_gate(GATES[name], dtype, g.float(), u.float())
        near = 1e-6 if dtype == torch.bfloat16 else 2e-5 * float(expected.abs().max())
        agreeing = torch.isclose(found, expected.float(), rtol=1e-5, atol=near)
        assert agreeing.float().mean() > 0.99, name


SPILLED = {90: 4}  # bytes: one number of one program (mxfp4 in bf16, down)
COMPILED = Path(__file__).parent / "compile_programs.py"


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90, 120])
def test_programs_fit_into_registers_without_a_gpu(capability: int) -> None:
    pytest.importorskip("triton", reason="needs the extra gpu")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    child = subprocess.run(
        [sys.executable, str(COMPILED), str(capability)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    found = json.loads(child.stdout)
    assert found
    for name, used in found.items():
        assert used["registers"] <= 255, name
        assert used["spilled_bytes"] <= SPILLED.get(capability, 0), (name, used)
        assert used["tensor_cores"] == ("fp32" not in name), name
