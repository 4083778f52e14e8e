"""Describes the activation of experts: the gate that computes what the module's own code does.

Letters: T values. A gate is recognized by what it computes, not by its name: a described one must
agree with the module's on random numbers, in float32 and in the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from engine.native.values import Activation, Gate, GateForm

RunGate = Callable[[Gate, torch.dtype, torch.Tensor, torch.Tensor], torch.Tensor]
"""Computes a gate of g and u, float32 [T] that are rounded to the dtype -> float32 [T]."""

_TRIED = 4096
_LEAST_AGREEING = 0.99  # of rounded values; a few fall to another side of a rounding bound
_MOST_ERROR = 2e-5  # relative to the largest value, in float32
_LIMITS = ("limit", "swiglu_limit")
_ALPHAS = ("alpha", "swiglu_alpha")


def recognized_gate(module: Any, dtype: torch.dtype, run: RunGate) -> Gate | None:
    """The gate that, computed by `run`, is what this experts module's own code computes; None if
    none is. dtype: of activations."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(1, 2 * _TRIED, generator=generator) * 4
    exact = _own_gate(module, both)
    rounded = _own_gate(module, both.to(dtype))
    if exact is None or rounded is None:
        return None
    for gate in _candidates(module):
        g, u = _parts(both, gate)
        found = run(gate, torch.float32, g, u)
        if not float((found - exact).abs().max()) <= _MOST_ERROR * float(exact.abs().max()):
            continue
        if dtype == torch.float32:
            return gate
        g, u = _parts(both.to(dtype).float(), gate)
        found = run(gate, dtype, g, u).to(dtype)
        if float((found == rounded).float().mean()) >= _LEAST_AGREEING:
            return gate
    return None


def plain_gate(gate: Gate, dtype: torch.dtype, g: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The gate in plain torch, rounded to dtype after each operation as torch rounds there: a
    RunGate, and the oracle of compiled ones."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype).float()

    form = GateForm(gate.form)
    activation, limit = Activation(gate.activation), rounded_limit(gate.limit, dtype)
    if form == GateForm.NONE:
        return rounded(_activated(activation, u, rounded))
    if form == GateForm.WIDE:
        return rounded(_activated(activation, g, torch.Tensor.float) * u)
    if form == GateForm.PRODUCT:
        return rounded(rounded(_activated(activation, g, rounded)) * u)
    u = u.clamp(-limit, limit)
    if form == GateForm.CLAMPED_AFTER:
        return rounded(rounded(_activated(activation, g, rounded)).clamp(max=limit) * u)
    g = g.clamp(max=limit)
    if form == GateForm.CLAMPED:
        return rounded(rounded(_activated(activation, g, rounded)) * u)
    assert form == GateForm.CLAMPED_PLUS_ONE
    glu = rounded(g * rounded(torch.sigmoid(rounded(g * gate.alpha))))
    return rounded(rounded(u + 1) * glu)


def rounded_limit(limit: float, dtype: torch.dtype) -> float:
    """The limit of a clamped gate as the dtype holds it."""
    return float(torch.tensor(limit).to(dtype))


def _activated(
    activation: Activation, x: torch.Tensor, rounded: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Not rounded at the end. rounded: to the dtype, between operations."""
    if activation == Activation.SILU:
        return x / (1 + torch.exp(-x))
    if activation == Activation.GELU:
        return x * 0.5 * (1 + torch.erf(x * 0.5**0.5))
    if activation == Activation.GELU_TANH:
        return torch.nn.functional.gelu(x, approximate="tanh")
    if activation == Activation.RELU:
        return x.clamp(min=0)
    if activation == Activation.RELU_SQUARED:
        return x.clamp(min=0).square()
    assert activation == Activation.QUICK_GELU
    return x * rounded(torch.sigmoid(rounded(1.702 * x)))


def _own_gate(module: Any, both: torch.Tensor) -> torch.Tensor | None:
    """The module's activation of both halves, [T]; None if it does not take plain tensors."""
    try:
        with torch.inference_mode():
            if module.has_gate:
                found: torch.Tensor = module._apply_gate(both)
            else:
                found = module.act_fn(both[:, :_TRIED])
    except (RuntimeError, TypeError, AttributeError):
        return None
    return found.reshape(-1) if found.numel() == _TRIED else None


def _candidates(module: Any) -> Iterator[Gate]:
    limits = [float(v) for n in _LIMITS if (v := getattr(module, n, None)) is not None] or [0.0]
    alphas = [float(v) for n in _ALPHAS if (v := getattr(module, n, None)) is not None] or [1.0]
    if not module.has_gate:
        for activation in Activation:
            yield Gate(GateForm.NONE, activation, 0, 1.0, 0.0)
        return
    for form in (GateForm.PRODUCT, GateForm.WIDE, GateForm.CLAMPED, GateForm.CLAMPED_AFTER):
        for activation in Activation:
            for interleaved in (0, 1):
                yield Gate(form, activation, interleaved, 1.0, limits[0])
    for limit in limits:
        for alpha in alphas:
            for interleaved in (0, 1):
                yield Gate(GateForm.CLAMPED_PLUS_ONE, 0, interleaved, alpha, limit)


def _parts(both: torch.Tensor, gate: Gate) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up values, float32 [T] each."""
    if gate.interleaved:
        return both[0, ::2].contiguous(), both[0, 1::2].contiguous()
    g, u = both[0, :_TRIED], both[0, _TRIED:]
    return g.contiguous(), (g if gate.form == GateForm.NONE else u).contiguous()
