"""Checks of this machine and this installation: Python, torch, processor, GPU, kernels, disk and optional packages."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from sfumato import __version__
from sfumato.engine import native
from sfumato.engine.precision import BFLOAT16_UNITS, has_fast_bfloat16
from sfumato.pipeline.memory import machine_memory
from sfumato.report.machine import describe

GIB = 2**30
LITTLE_MEMORY = 4 * GIB
"""Below this, training at 64 px and more is likely to run out of memory."""
LITTLE_DISK = 2 * GIB
"""Below this, a run (two states, the model, cached latents) may not fit."""
EXTRAS = {
    "text": "frozen text encoders: BERT, CLIP, T5",
    "offline": "the perceptual loss without a download",
    "shards": "shards at http(s) and other addresses (fsspec)",
    "tables": "datasets in Parquet and LMDB files",
    "track": "curves in TensorBoard; log.jsonl has the same numbers without it",
    "wandb": "curves and previews in Weights & Biases (train.track=wandb)",
    "trackio": "curves and previews in trackio (train.track=trackio)",
    "web": "the studio in the browser and the service for programs",
    "hub": "models and datasets from, and to, the Hugging Face Hub",
    "onnx": "export to ONNX, for onnxruntime and what is built on it",
    "clients": "the tests of the service by other programs' clients",
    "browser": "the studio's tests in a browser",
    "docs": "the documentation as a site",
    "dev": "the tests and checks",
}
"""The purpose of each optional group of packages, by its name in pyproject.toml."""

State = Literal["ok", "missing", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        state: ok; missing, where everything works without it; problem, where something asked for will fail.
        found: what is there.
        way_out: what to do about it, or what it would bring; empty where all is well.
    """

    name: str
    state: State
    found: str
    way_out: str = ""


def examine(folder: Path) -> list[Finding]:
    """Looks at this machine; `folder` is where runs will be written. Changes nothing but the cache of kernels."""
    return [
        Finding("sfumato", "ok", f"{__version__}, Python {platform.python_version()}, {sys.prefix}"),
        _torch(),
        _processor(),
        _memory(),
        _gpu(),
        _compiler(),
        _kernels(),
        _disk(folder),
        *_extras(),
    ]


def _torch() -> Finding:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return Finding("torch", "ok", f"{torch.__version__}, {build} build, {torch.get_num_threads()} threads")


def _processor() -> Finding:
    machine = describe(torch.device("cpu"))
    used = torch.backends.cpu.get_cpu_capability()
    found = f"{machine.device}, {machine.cores} cores, vector instructions: {used}"
    if has_fast_bfloat16(torch.device("cpu")):
        return Finding("processor", "ok", f"{found}, native bfloat16")
    features = torch.cpu.get_capabilities()
    disabled = any(features.get(name, False) for name in BFLOAT16_UNITS)
    way_out = (
        "it has bfloat16 units that ATEN_CPU_CAPABILITY or ONEDNN_MAX_CPU_ISA switch off: unset them"
        if disabled
        else "without bfloat16 units, precision auto is float32, which is slower"
    )
    return Finding("processor", "problem" if disabled else "missing", f"{found}, no native bfloat16", way_out)


def _memory() -> Finding:
    if not hasattr(os, "sysconf"):
        return Finding("memory", "ok", "size unknown on this system")
    total = machine_memory()
    found = f"{total / GIB:.0f} GiB"
    if total >= LITTLE_MEMORY:
        return Finding("memory", "ok", found)
    return Finding(
        "memory", "missing", found, "train at 32 px with a small train.batch; `sfumato estimate` computes the memory"
    )


def _gpu() -> Finding:
    if torch.cuda.is_available():
        found = ", ".join(_described_gpu(i) for i in range(torch.cuda.device_count()))
        return Finding("GPU", "ok", found)
    if Path("/proc/driver/nvidia").exists() and torch.version.cuda is None:
        way_out = "this torch is built for CPUs: install the CUDA build of the same version to use the GPU"
        return Finding("GPU", "problem", "an NVIDIA driver is there, torch does not use it", way_out)
    return Finding("GPU", "missing", "none", "everything runs on the CPU, many times slower")


def _described_gpu(index: int) -> str:
    facts = torch.cuda.get_device_properties(index)
    precision = "native bfloat16" if (facts.major, facts.minor) >= (8, 0) else "no native bfloat16"
    capability = f"compute capability {facts.major}.{facts.minor}"
    return f"{facts.name} ({facts.total_memory / GIB:.0f} GiB, {capability}, {precision})"


def _compiler() -> Finding:
    found = native.compiler()
    if found is not None:
        return Finding("compiler", "ok", found)
    way_out = "install g++ or clang++: the kernels for CPUs are compiled once, when they are first used"
    return Finding("compiler", "missing", "no C++ compiler", way_out)


def _kernels() -> Finding:
    found = native.describe().removeprefix("native kernels: ")
    if found.startswith("on"):
        return Finding("kernels", "ok", found)
    if "SFUMATO_NATIVE" in found:
        return Finding("kernels", "missing", found, "unset SFUMATO_NATIVE for faster training and sampling on a CPU")
    if "compiler" in found:
        return Finding("kernels", "missing", found, "install g++ or clang++ for faster training and sampling on a CPU")
    return Finding("kernels", "problem", found, f"check that the compiler works and that {native.cache()} is writable")


def _disk(folder: Path) -> Finding:
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / GIB:.1f} GiB free at {there}"
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding(
            "disk", "problem", f"{found}, not writable: {error.strerror}", "choose a folder of yours with --out"
        )
    if free < LITTLE_DISK:
        return Finding("disk", "problem", found, "a run writes up to 2 GiB: free some space or choose another --out")
    return Finding("disk", "ok", found)


def _extras() -> Iterator[Finding]:
    """A finding for each optional group of packages that pyproject.toml declares."""
    groups: dict[str, list[Requirement]] = {}
    try:
        declared = [Requirement(each) for each in requires("sfumato") or []]
    except PackageNotFoundError:
        yield Finding(
            "packages", "missing", "sfumato runs without being installed", "pip install -c constraints.txt -e ."
        )
        return
    for requirement in declared:
        for extra in EXTRAS:
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
                groups.setdefault(extra, []).append(requirement)
    for extra, needed in groups.items():
        lacking = [each.name for each in needed if not _installed(each)]
        there = [f"{each.name} {version(each.name)}" for each in needed if each.name not in lacking]
        if not lacking:
            yield Finding(extra, "ok", ", ".join(there))
        else:
            way_out = f"pip install 'sfumato[{extra}]' for {EXTRAS[extra]}"
            yield Finding(extra, "missing", f"without {', '.join(lacking)}", way_out)


def _installed(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False
