"""Every packed kernel by name, in order of preference, and the selection of supported ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.config import choices
from engine.config.choices import Registered
from engine.experts.encoding.codec import CodeLayout
from engine.experts.kernels.base import Kernel
from engine.types import Bits, KernelName

KERNELS: Mapping[str, Callable[[], Kernel]] = Registered(choices.KERNELS)


@dataclass(frozen=True)
class KernelSupport:
    """The packed kernels that work for all matrices of a record. names: in order of preference;
    refusals: why each of the others does not."""

    names: tuple[str, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict, compare=False)

    def kernel_for(self, bits: Bits, wanted: KernelName = "auto") -> Kernel | None:
        """The kernel for codes of these bits; None: dequantize + GEMM.

        wanted: a kernel's name selects that kernel if it reads these bits, and the preferred one
        for other bits.
        """
        if wanted == "dequantize":
            return None
        found = [kernel for name in self.names if bits in (kernel := KERNELS[name]()).reads]
        chosen = [kernel for kernel in found if kernel.name == wanted]
        if not chosen and wanted in KERNELS and bits in KERNELS[wanted]().reads:
            return None  # the requested kernel is not supported
        return next(iter(chosen or found), None)

    def readable_by_host(self) -> KernelSupport:
        """The kernels whose codes the host can dequantize too, if it computes on the same
        records."""
        readable = tuple(name for name in self.names if KERNELS[name]().code_layout == "plain")
        lost = {
            name: "the host computes on the same records and cannot read its codes"
            for name in self.names
            if name not in readable
        }
        return KernelSupport(readable, {**self.refusals, **lost})

    def code_layout(self, wanted: KernelName = "auto") -> CodeLayout:
        """The layout of codes of 4 bits and fewer for these kernels."""
        kernel = self.kernel_for(4, wanted)
        return "plain" if kernel is None else kernel.code_layout


NO_KERNELS = KernelSupport()
