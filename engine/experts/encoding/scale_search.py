"""Searches scales and zeros of quantization groups that fit the weights better than min and max.

Letters: N output rows, G groups of a row, g elements of a group.

With w ~ (q - 8) * s + z the search reduces the sum of (rms + |w|)^2 * error^2 by alternation: codes
are chosen for a scale and zero, then scale and zero follow in closed form as the weighted
least-squares line through (code, weight). Large weights count more because they move the products
more. The alternation is that of HQQ (Badri and Shaji 2023), whose norm below 1 did worse here than
rounding to nearest (docs/lab/2026-11-25-precision-quality.md). Every candidate is judged as it
would be stored, with scale and zero in bf16, and a group keeps the best one, the initial one
included. Deterministic. Rows are processed in blocks, so that only a few small float32 copies need
memory.
"""

from __future__ import annotations

import torch

_BLOCK_ELEMENTS = 1 << 18
_ROUNDS = 8
_SPANS = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6)  # fractions of the min-max range that a start covers


def objective(
    grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int
) -> torch.Tensor:
    """Weighted squared error of every group, [N, G]. grouped: [N, G, g]; scale, zero: as stored;
    top: the largest code."""
    return _cost(_coded(grouped, scale, zero, top)[1], _importance(grouped))


def weighted_squares(
    grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Better scale and zero than those given, bf16 [N, G] each.

    grouped: float32 [N, G, g]; scale, zero: bf16 [N, G], from the groups' minimum and maximum; top:
    the largest code. No group's objective is above that of its input.
    """
    rows = max(1, _BLOCK_ELEMENTS // max(1, grouped[0].numel()))
    found = [
        _Search(
            grouped[start : start + rows],
            scale[start : start + rows],
            zero[start : start + rows],
            top,
        ).run()
        for start in range(0, grouped.shape[0], rows)
    ]
    return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


class _Search:
    """The best scale and zero so far of each group of one block."""

    def __init__(
        self, grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int
    ) -> None:
        self._grouped = grouped
        self._importance = _importance(grouped)
        self._top = top
        self._scale, self._zero = scale, zero
        self._cost = torch.full(scale.shape, torch.inf, device=scale.device)

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Try starts of several widths around the middle of the range, then alternate."""
        half = self._top / 2 - 8
        given = self._scale
        middle = self._zero.float() + half * given.float()
        self._consider(given, self._zero)
        for span in _SPANS[1:]:
            start = (given.float() * span).to(torch.bfloat16)
            self._consider(start, (middle - half * start.float()).to(torch.bfloat16))
        codes = self._consider(self._scale, self._zero)
        for _ in range(_ROUNDS):
            codes = self._consider(*_line(codes, self._grouped, self._importance))
        return self._scale, self._zero

    def _consider(self, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Keep this scale and zero if better. Returns their codes less 8, [n, G, g]."""
        codes, error = _coded(self._grouped, scale, zero, self._top)
        cost = _cost(error, self._importance)
        better = cost < self._cost
        self._scale = torch.where(better, scale, self._scale)
        self._zero = torch.where(better, zero, self._zero)
        self._cost = torch.where(better, cost, self._cost)
        return codes


def _importance(grouped: torch.Tensor) -> torch.Tensor:
    """(rms + |w|)^2, scaled to the group so that it neither overflows nor vanishes, [n, G, g]."""
    size = grouped.abs()
    rms = grouped.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-12)
    return (size / rms).add_(1).square_()


def _coded(
    grouped: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes less 8, and the error of the stored values, float32 [n, G, g] each."""
    step, offset = scale.float()[..., None], zero.float()[..., None]
    codes = ((grouped - offset) / step).add_(8).round_().clamp_(0, top).sub_(8)
    return codes, grouped - (codes * step + offset)


def _cost(error: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    return (error.square() * importance).sum(dim=-1)


def _line(
    codes: torch.Tensor, grouped: torch.Tensor, importance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of the weighted line through (code, weight), bf16 [n, G] each."""
    total = importance.sum(dim=-1)
    code = (importance * codes).sum(dim=-1) / total
    mean = (importance * grouped).sum(dim=-1) / total
    spread = codes - code[..., None]
    weighted = importance * spread
    slope = (weighted * grouped).sum(dim=-1) / (weighted * spread).sum(dim=-1).clamp_min(1e-6)
    scale = slope.clamp_min(1e-12).to(torch.bfloat16)
    return scale, (mean - code * scale.float()).to(torch.bfloat16)
