"""Training-time kernels of the demo model for a CPU: experts by segments, plain bf16 attention.

`segment_experts` computes all experts of a layer on contiguous segments of the tokens sorted by
expert; `causal_attention` is two batched products, which beat the fused kernel at head width 32.
Both are registered with transformers under `KERNELS_NAME`; inference never needs them.

T tokens, K chosen experts a token, E experts, D hidden, F expert width,
R rows (routes and filling).
B sequences, L length, H heads, G key heads, W head width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

KERNELS_NAME = "demo_kernels"
SEGMENT_ROWS = 64  # few different shapes, so that compiled bf16 products are reused


class SegmentExperts(torch.autograd.Function):
    """Sum over the chosen experts of weight * down(silu(gate(x)) * up(x)), with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, weights: Tensor
    ) -> Tensor:
        """Return [T, D] for x [T, D], gate_up [E, 2F, D], down [E, D, F], index, weights [T, K]."""
        tokens, chosen = index.shape
        bounds, back, token = _segments(index, gate_up.shape[0])
        rows = x[token]  # [R, D]
        row_weights = x.new_zeros(len(rows), 1)  # [R, 1]
        row_weights[back, 0] = weights.reshape(-1)
        gate_up_rows = x.new_empty(len(rows), gate_up.shape[1])  # [R, 2F]
        for e, start, end in bounds:
            torch.mm(rows[start:end], gate_up[e].t(), out=gate_up_rows[start:end])
        gate, up = gate_up_rows.chunk(2, dim=-1)  # [R, F]
        hidden = nn.functional.silu(gate) * up * row_weights
        out_rows = torch.empty_like(rows)
        for e, start, end in bounds:
            torch.mm(hidden[start:end], down[e].t(), out=out_rows[start:end])
        ctx.bounds, ctx.chosen = bounds, chosen
        ctx.save_for_backward(rows, gate_up, down, gate_up_rows, hidden, row_weights, token, back)
        return out_rows[back].view(tokens, chosen, -1).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, gate_up, down and weights."""
        rows, gate_up, down, gate_up_rows, hidden, row_weights, token, back = ctx.saved_tensors
        grad_rows = grad[token]  # [R, D]
        grad_hidden, grad_down = torch.empty_like(hidden), torch.zeros_like(down)
        for e, start, end in ctx.bounds:
            torch.mm(grad_rows[start:end], down[e], out=grad_hidden[start:end])
            torch.mm(grad_rows[start:end].t(), hidden[start:end], out=grad_down[e])
        gate, up = gate_up_rows.chunk(2, dim=-1)  # [R, F]
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        grad_weights = (grad_hidden * silu * up).sum(-1)[back].view(-1, ctx.chosen)  # [T, K]
        grad_hidden *= row_weights
        grad_gate_up = torch.empty_like(gate_up_rows)
        slope = sigmoid + silu * (1 - sigmoid)
        torch.mul(grad_hidden * up, slope, out=grad_gate_up[:, : gate.shape[1]])
        torch.mul(grad_hidden, silu, out=grad_gate_up[:, gate.shape[1] :])
        grad_x_rows, grad_weight = torch.empty_like(rows), torch.zeros_like(gate_up)
        for e, start, end in ctx.bounds:
            torch.mm(grad_gate_up[start:end], gate_up[e], out=grad_x_rows[start:end])
            torch.mm(grad_gate_up[start:end].t(), rows[start:end], out=grad_weight[e])
        grad_x = grad_x_rows[back].view(-1, ctx.chosen, rows.shape[1]).sum(1)  # [T, D]
        return grad_x, grad_weight, grad_down, None, grad_weights


def segment_experts(
    experts: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Run a layer's experts by segments: [T, D] for hidden [T, D] and routes [T, K].

    Under autocast everything is computed in its type, else in the type of the hidden states.
    """
    dtype = hidden_states.dtype
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    floats = (hidden_states, experts.gate_up_proj, experts.down_proj, top_k_weights)
    x, gate_up, down, weights = (tensor.to(dtype) for tensor in floats)
    return SegmentExperts.apply(x, gate_up, down, top_k_index, weights)  # type: ignore[no-any-return, no-untyped-call]


def causal_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """Attend causally over whole sequences: [B, L, H, W] for query [B, H, L, W], key [B, G, L, W].

    Takes no padding: every sequence of the batch fills its row.
    """
    sequences, heads, length, width = query.shape
    groups = key.shape[1]
    rows = heads // groups * length
    query = query.reshape(sequences * groups, rows, width)  # [B * G, H / G * L, W]
    key, value = (x.reshape(sequences * groups, length, width) for x in (key, value))
    ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
    bias = torch.zeros(length, length, dtype=query.dtype).masked_fill(ahead, -1e9)
    bias = bias.repeat(heads // groups, 1)  # [H / G * L, L]
    scores = torch.baddbmm(
        bias.expand(sequences * groups, -1, -1), query, key.transpose(1, 2), alpha=width**-0.5
    )
    mixed = scores.softmax(-1) @ value.to(scores.dtype)  # [B * G, H / G * L, W]
    return mixed.view(sequences, heads, length, width).transpose(1, 2), None  # [B, L, H, W]


def register_kernels() -> None:
    """Make the experts and the attention known to transformers as `KERNELS_NAME`."""
    ALL_EXPERTS_FUNCTIONS.register(KERNELS_NAME, segment_experts)
    AttentionInterface.register(KERNELS_NAME, causal_attention)
    AttentionMaskInterface.register(KERNELS_NAME, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def _segments(index: Tensor, experts: int) -> tuple[list[tuple[int, int, int]], Tensor, Tensor]:
    """Lay the routes [T, K] out by expert, each segment filled up to a multiple of `SEGMENT_ROWS`.

    Returns (expert, start, end) of each segment, the row of each route [T * K] and the token of
    each row [R]; filling rows name token 0 and are given no weight.
    """
    routes = index.reshape(-1)
    counts = torch.bincount(routes, minlength=experts)
    padded = (counts + SEGMENT_ROWS - 1) // SEGMENT_ROWS * SEGMENT_ROWS
    ends = padded.cumsum(0)
    order = routes.argsort()
    shift = ends - padded - (counts.cumsum(0) - counts)  # [E]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order)) + shift[routes[order]]
    token = order.new_zeros(int(ends[-1]))
    token[back] = torch.arange(len(order)) // index.shape[1]
    starts = [0, *ends.tolist()]
    return [(e, starts[e], starts[e + 1]) for e in range(experts) if counts[e] > 0], back, token
