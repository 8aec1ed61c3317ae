"""`sfumato bench`: what it measures hangs together, with a model, a configuration, and what it refuses."""

import json
from pathlib import Path

import pytest

import tiny
from command_line import Command
from sfumato.estimate import from_config, machine


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROUNDS", 1)
    monkeypatch.setattr(machine, "BYTES", 2**20)


def test_a_model_is_timed_as_the_sample_command_runs_it(command: Command, tmp_path: Path) -> None:
    tiny.model().save(tmp_path / "model")
    done = command("bench", tmp_path / "model", "-n", 2, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    sampling, speed = report["sampling"], report["speeds"][report["precision"]]
    assert (sampling["sampler"], sampling["calls"], sampling["guided"]) == ("dpmpp-2m", 20, True)
    assert sampling["seconds"] == pytest.approx(20 * sampling["call_seconds"] + sampling["decode_seconds"])
    assert sampling["utilisation"] * speed["convolution"] * sampling["call_seconds"] == pytest.approx(
        sampling["call_operations"]
    )
    assert min(speed.values()) > 1e8
    assert report["bandwidth"] > 1e7
    assert 0 < report["share"] <= 1
    assert report["kernels"].startswith("native kernels: ")


def test_a_configuration_is_timed_untrained_and_shown(command: Command, tmp_path: Path) -> None:
    config = tmp_path / "second.yaml"
    config.write_text(
        "denoiser: {channels: 32, channel_multipliers: [1, 2], blocks_per_level: 1, attention_factors: [2]}\n"
        "conditioner: {kind: semantic, classes: 5, channels: 3, stages: 1}\n"
        "schedule: {kind: scaled-linear}\ndata: {kind: toy, size: 16, length: 8}\n"
    )
    first = tmp_path / "first.yaml"
    first.write_text(
        "model: {channels: 32, channel_multipliers: [1, 1], blocks_per_level: 1}\n"
        "data: {kind: toy, size: 16, length: 8}\n"
    )
    done = command("bench", config, "--autoencoder", first, "-n", 1, "--device", "cpu")
    assert done.code == 0, done.err
    for part in ("matrix product", "GB/s copied", "dpmpp-2m, 20 steps, 20 network calls", "an image", "of 1 at once"):
        assert part in done.out


def test_what_cannot_be_timed(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.model().save(tmp_path / "model")
    assert "leave it out" in command("bench", tmp_path / "model", "--autoencoder", "pixels").err
    assert "not a stage 2 configuration" in command("bench", "zoo:toy/autoencoder").err
    assert "--count is 0: give a whole number from 1" in command("bench", "-n", 0).err
    monkeypatch.setattr(from_config, "MOST_SECONDS", 0.0)
    refused = command("bench", tmp_path / "model", "--device", "cpu")
    assert refused.code == 2
    assert "give a smaller --count, or a smaller model" in refused.err
