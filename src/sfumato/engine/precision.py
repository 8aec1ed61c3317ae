"""Number formats: the requested one, and those that a device computes natively. Only this module decides an `auto`
precision."""

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "sve_bf16", "arm_bf16")
"""Names of processor features that multiply bfloat16, as `torch.cpu.get_capabilities` lists them."""


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively.

    On a CPU the libraries must use these instructions too: `ONEDNN_MAX_CPU_ISA` and `ATEN_CPU_CAPABILITY` can disable
    them.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _processor_has_bfloat16()


def _processor_has_bfloat16() -> bool:
    try:
        used = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        features = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):
        return False
    wide = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
    return used and wide and any(features.get(name, False) for name in BFLOAT16_UNITS)


def dtype_of(precision: Precision, device: torch.device = torch.device("cpu")) -> torch.dtype:
    """The requested format; `auto` is bfloat16 where the device multiplies it natively, else float32."""
    if precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Autocast to bfloat16 where that is the format of `precision`; else plain float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype_of(precision, device) == torch.bfloat16)
