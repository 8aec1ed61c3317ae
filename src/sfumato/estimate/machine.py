"""The measured speed of this machine: arithmetic, memory, and whether the native kernels are used."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.engine import native
from sfumato.engine.packing import PackedConv2d
from sfumato.engine.precision import Precision, has_fast_bfloat16
from sfumato.estimate.speed import arithmetic_peak, seconds
from sfumato.report.machine import Machine, describe

ROUNDS = 8
"""The best of this many rounds counts: other programs can only slow a round down."""
BYTES = 256 * 2**20
"""Bytes copied to measure the memory bandwidth: larger than any cache."""


@dataclass(frozen=True)
class Speed:
    """Operations per second in one number format."""

    matrix: float
    """A large matrix product in torch."""
    convolution: float
    """3 x 3 over 256 channels at 32 x 32, as computed by the networks during sampling."""


@dataclass(frozen=True)
class MachineSpeed:
    """The measured speed of one device."""

    machine: Machine
    kernels: str
    speeds: dict[str, Speed]
    """By number format; bfloat16 if the device supports it natively."""
    bandwidth: float
    """Bytes per second, read plus written, of a large copy."""
    share: float | None
    """The share of one core's time that this process had during the measurement, at most 1; None on a GPU."""

    @property
    def best(self) -> str:
        """The number format that `precision auto` chooses."""
        return "bfloat16" if "bfloat16" in self.speeds else "float32"


def reach(device: torch.device) -> MachineSpeed:
    """Measures the device; takes a few seconds."""
    formats: tuple[Precision, ...] = ("float32", "bfloat16") if has_fast_bfloat16(device) else ("float32",)
    cpu_start, wall_start = time.process_time(), time.perf_counter()
    speeds: dict[str, Speed] = {
        name: Speed(arithmetic_peak(device, name), _convolution(device, name)) for name in formats
    }
    kernels = native.describe() if device.type == "cpu" else "native kernels: not used on a GPU"
    bandwidth = _bandwidth(device)
    share = min(1.0, (time.process_time() - cpu_start) / (time.perf_counter() - wall_start))
    return MachineSpeed(describe(device), kernels, speeds, bandwidth, share if device.type == "cpu" else None)


@torch.no_grad()
def _convolution(device: torch.device, precision: Precision) -> float:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    layer, batch = nn.Conv2d(256, 256, 3, padding=1), 64 if device.type == "cuda" else 4
    x = torch.randn(batch, 256, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    convolve = _convolver(layer, device, dtype)
    convolve(x)
    operations = 2 * x.numel() * 256 * 9
    return max(operations / seconds(lambda: convolve(x), device) for _ in range(ROUNDS))


def _convolver(layer: nn.Conv2d, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    if device.type == "cpu":
        packed = PackedConv2d.of(layer, dtype)
        packed.filters = False  # direct convolution: with fewer products the rate would exceed the processor's
        return packed
    weight = layer.weight.to(device, dtype).contiguous(memory_format=torch.channels_last)
    return lambda x: F.conv2d(x, weight, padding=1)


def _bandwidth(device: torch.device) -> float:
    source = torch.ones(BYTES // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)  # the first copy also allocates the pages
    return max(2 * BYTES / seconds(lambda: target.copy_(source), device) for _ in range(ROUNDS))
