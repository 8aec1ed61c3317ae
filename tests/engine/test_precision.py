"""The choice of an `auto` precision: both choices are tested, whatever the processor supports."""

from pathlib import Path

import pytest
import torch

from command_line import Command, Runs
from sfumato.engine import precision
from sfumato.engine.precision import autocast, dtype_of, has_fast_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize("native", [False, True])
def test_auto_takes_bfloat16_where_the_processor_has_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_processor_has_bfloat16", lambda: native)
    assert dtype_of("auto") == (torch.bfloat16 if native else torch.float32)
    assert autocast(CPU, "auto")._enabled is native
    assert autocast(CPU, "bfloat16")._enabled is True
    assert autocast(CPU, "float32")._enabled is False


@pytest.mark.parametrize("native", [False, True])
def test_samples_of_auto_are_those_of_the_format_it_takes(
    native: bool, runs: Runs, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(asked: str) -> bytes:
        out = tmp_path / asked
        arguments = ("sample", runs.plain, "-n", 1, "--steps", 2, "--seed", 3, "--precision", asked, "--out", out)
        assert command(*arguments).code == 0
        return (out / "0000.png").read_bytes()

    formats = {name: sample(name) for name in ("float32", "bfloat16")}
    assert formats["float32"] != formats["bfloat16"]
    monkeypatch.setattr(precision, "_processor_has_bfloat16", lambda: native)
    assert sample("auto") == formats["bfloat16" if native else "float32"]


@pytest.mark.parametrize(
    ("capability", "used", "feature", "expected"),
    [
        ("AVX512", True, "avx512_bf16", True),
        ("AVX512", True, "avx512_f", False),
        ("AVX512", False, "avx512_bf16", False),
        ("AVX2", True, "amx_bf16", False),
        ("DEFAULT", True, "avx512_bf16", False),
        ("SVE256", True, "sve_bf16", True),
    ],
)
def test_a_processor_needs_the_units_and_libraries_that_use_them(
    capability: str, used: bool, feature: str, expected: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "_processor_has_bfloat16", REAL)
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        patch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True})
        patch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: used)
        assert has_fast_bfloat16(CPU) is expected


REAL = precision._processor_has_bfloat16
"""As it is when this file is read, before the tests fix what `auto` takes."""
