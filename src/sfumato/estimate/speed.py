"""The speed of this machine's arithmetic, and the time of a piece of work on it."""

import time
from collections.abc import Callable

import torch

from sfumato.engine.precision import Precision, autocast

USUAL_UTILISATION = 0.3
"""The assumed utilisation (share of the arithmetic peak), where it is not measured."""


def arithmetic_peak(device: torch.device, precision: Precision) -> float:
    """Operations per second of a large matrix product, the best of several: the reference for utilisation."""
    n = 8192 if device.type == "cuda" else 1024
    with autocast(device, precision) as computing:
        dtype = torch.bfloat16 if computing._enabled else torch.float32
        a, b = torch.randn(2, n, n, device=device).to(dtype)
        return max(2 * n**3 / seconds(lambda: torch.mm(a, b), device) for _ in range(8))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, including all kernels that it queues on the device."""
    _finish(device)
    t_start = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - t_start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
