"""`sfumato doctor`: each thing that can be missing is named with its way out."""

import json
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from command_line import Command
from sfumato.engine import native
from sfumato.estimate import doctor
from sfumato.estimate.doctor import EXTRAS, GIB, Finding, examine

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def finding(name: str, folder: Path = Path(".")) -> Finding:
    return {each.name: each for each in examine(folder)}[name]


def test_every_group_of_packages_is_described() -> None:
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert set(declared) - {"all"} == set(EXTRAS)


def test_a_group_without_its_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        return ["torch>=2.7", 'no-such-package>=1; extra == "text"', 'numpy>=1; extra == "offline"']

    monkeypatch.setattr(doctor, "requires", requires)
    text, offline = finding("text"), finding("offline")
    assert (text.state, text.found) == ("missing", "without no-such-package")
    assert text.way_out.startswith("pip install 'sfumato[text]' for ")
    assert (offline.state, offline.way_out) == ("ok", "")


def test_too_old_a_package_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ['numpy>=1000; extra == "track"'])
    assert finding("track").state == "missing"


def test_a_checkout_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", requires)
    assert "pip install" in finding("packages").way_out


@pytest.mark.parametrize(
    ("said", "state", "way_out"),
    [
        ("native kernels: on (8 lanes)", "ok", ""),
        ("native kernels: off (SFUMATO_NATIVE=0)", "missing", "unset SFUMATO_NATIVE"),
        ("native kernels: off (no working C++ compiler found)", "missing", "install g++"),
        ("native kernels: off (build failed)", "problem", "writable"),
    ],
)
def test_kernels(said: str, state: str, way_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "describe", lambda: said)
    kernels = finding("kernels")
    assert kernels.state == state
    assert way_out in kernels.way_out


def test_the_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiler", lambda: "/usr/bin/c++")
    assert finding("compiler").found == "/usr/bin/c++"
    monkeypatch.setattr(native, "compiler", lambda: None)
    assert "install g++" in finding("compiler").way_out


def test_a_gpu_with_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(name="T4", total_memory=16 * GIB, major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    assert doctor._gpu().found == "T4 (16 GiB, compute capability 7.5, no native bfloat16)"


@pytest.mark.parametrize("fast", [True, False])
def test_the_processor_without_bfloat16(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_fast_bfloat16", lambda device: fast)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    processor = finding("processor")
    assert processor.state == ("ok" if fast else "missing")
    assert ("float32" in processor.way_out) is not fast


def test_bfloat16_units_that_are_switched_off_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_fast_bfloat16", lambda device: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    processor = finding("processor")
    assert processor.state == "problem"
    assert "ONEDNN_MAX_CPU_ISA" in processor.way_out


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": GIB // 2})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    disk = finding("disk", tmp_path / "not" / "there")
    assert disk.state == "problem"
    assert f"0.5 GiB free at {tmp_path}" in disk.found


def test_a_folder_that_cannot_be_written_is_a_problem() -> None:
    disk = finding("disk", Path("/proc"))
    assert disk.state == "problem"
    assert "--out" in disk.way_out


def test_the_command(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_fast_bfloat16", lambda device: True)
    monkeypatch.setattr(doctor, "LITTLE_DISK", 0)
    monkeypatch.setattr(native, "describe", lambda: "native kernels: on (8 lanes)")
    done = command("doctor", tmp_path)
    assert done.code == 0, done.err
    assert "torch" in done.out
    as_json = json.loads(command("doctor", tmp_path, "--json").out)
    assert as_json["kernels"]["state"] == "ok"
    monkeypatch.setattr(native, "describe", lambda: "native kernels: off (build failed)")
    failed = command("doctor", tmp_path)
    assert failed.code == 1
    assert "PROBLEM" in failed.out
