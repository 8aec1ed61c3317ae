"""The GPU benchmark's workloads, tiny and on the CPU: both sides compute the same, and the numbers become a table."""

import json
from pathlib import Path

import pytest
import torch

from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.denoiser.unet import UNetConfig

UNET = UNetConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1, attention_factors=(2,), head_channels=16)
AUTOENCODER = AutoencoderConfig(channels=32, channel_multipliers=(1, 1), blocks_per_level=1)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


def test_both_sides_compute_the_same_and_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu
    from benchmarks.gpu_workloads import call, first_stage, sampling, step

    workloads = {
        "call": lambda device: call(UNET, 2, True, 8, device),
        "step": lambda device: step(UNET, 2, True, 8, device),
        "decode": lambda device: first_stage(AUTOENCODER, 16, True, device),
        "sample": lambda device: sampling(UNET, AUTOENCODER, 1, 8, 3, device),
    }
    monkeypatch.setattr(gpu, "WORKLOADS", workloads)
    monkeypatch.setattr(gpu, "AT_ONCE", 0.0)
    monkeypatch.setattr(gpu, "peak_flops", lambda device: 1e9)
    gpu.main(["--device", "cpu", "--rounds", "1", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["failed"] == {}
    assert record["workloads"].keys() == workloads.keys()
    for name, workload in record["workloads"].items():
        for candidate, found in workload["candidates"].items():
            most = 1e-4 if "float32" in candidate else 0.1 if name == "sample" else 0.05
            assert found["difference"] < most, (name, candidate)
    page = (tmp_path / "gpu.md").read_text()
    assert "| sfumato bf16 |" in page
    assert page.count("\n## ") == len(workloads)


def test_names_are_listed_and_a_machine_without_a_gpu_is_refused() -> None:
    from benchmarks.choice import chosen
    from benchmarks.gpu import WORKLOADS, parsed

    assert {name.split()[0] for name in WORKLOADS} == {"W1", "W2", "W2-real", "W3", "W4"}
    assert parsed(["--only", "w3 DECODE", "--device", "cpu"]).rounds > 1
    assert all(list(chosen(WORKLOADS, name)) == [name] for name in WORKLOADS if "batch 1" not in name)
    assert list(chosen(WORKLOADS, "W1 call; w3 encode 512")) == [
        "W3 encode 512",
        "W1 call, batch 2",
        "W1 call, batch 32",
    ]
    with pytest.raises(SystemExit, match="2"):
        parsed(["--only", "W9", "--device", "cpu"])
