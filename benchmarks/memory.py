"""How much memory a call adds at its peak, over what was resident before it; Linux only."""

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def added_peak(call: Callable[[], object]) -> int | None:
    """Bytes; None where the system does not report it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed: the call before would lend it
    try:
        FORGET.write_text("5")  # the peak begins anew at what is resident
        before = _resident("VmRSS")
    except (OSError, ValueError):
        call()
        return None
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)
