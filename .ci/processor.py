"""Prints the processor and what the libraries use of it: the tests must pass on every kind."""

import os
import platform
from pathlib import Path

import torch

from sfumato.engine.precision import has_fast_bfloat16

info = Path("/proc/cpuinfo")
lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
features = sorted(feature for feature, there in torch.cpu.get_capabilities().items() if there is True)
print(f"processor: {name or platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}")
print(f"torch {torch.__version__} uses {torch.backends.cpu.get_cpu_capability()}; features: {', '.join(features)}")
print(f"native bfloat16: {'yes' if has_fast_bfloat16(torch.device('cpu')) else 'no'}")
