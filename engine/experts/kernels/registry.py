"""Every packed kernel by name, in the order in which they are preferred, and which of them hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.config import choices
from engine.config.choices import Registered
from engine.experts.encoding.codec import CodeLayout
from engine.experts.kernels.base import Kernel
from engine.types import Bits, KernelName

KERNELS: Mapping[str, Callable[[], Kernel]] = Registered(choices.KERNELS)


@dataclass(frozen=True)
class KernelSupport:
    """Names of the packed kernels that hold for all matrices of a record, the preferred first."""

    names: tuple[str, ...] = ()

    def kernel_for(self, bits: Bits, wanted: KernelName = "auto") -> Kernel | None:
        """What multiplies codes of these bits; None: dequantize + GEMM.

        wanted: a kernel's name takes that one where it reads these bits, and the preferred one
        for other bits.
        """
        read: Bits = 4 if bits in (3, 2) else bits
        if wanted == "dequantize":
            return None
        found = [kernel for name in self.names if (kernel := KERNELS[name]()).bits == read]
        chosen = [kernel for kernel in found if kernel.name == wanted]
        if not chosen and wanted in KERNELS and KERNELS[wanted]().bits == read:
            return None  # it was asked for and does not hold
        return next(iter(chosen or found), None)

    def readable_by_host(self) -> KernelSupport:
        """Those whose codes the host can dequantize too, where it computes on the same records."""
        return KernelSupport(
            tuple(name for name in self.names if KERNELS[name]().code_layout == "plain")
        )

    def code_layout(self, wanted: KernelName = "auto") -> CodeLayout:
        """How codes of 4 bits and less are arranged for these kernels."""
        kernel = self.kernel_for(4, wanted)
        return "plain" if kernel is None else kernel.code_layout


NO_KERNELS = KernelSupport()
