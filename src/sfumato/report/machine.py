"""Describes the machine on which results were measured."""

import os
import platform
from pathlib import Path

import torch

from sfumato.report.result import Machine


def describe(device: torch.device) -> Machine:
    """The machine that runs this process; `device` is where the model computes."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return Machine(
        device=name,
        cores=usable,
        threads=torch.get_num_threads(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
    )


def processor(listing: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the system reports it."""
    try:
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next((name for name in named if name), platform.processor() or platform.machine() or "unknown processor")
