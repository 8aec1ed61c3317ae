"""Diffusion without a first stage: f = 1, the latent is the image."""

from pathlib import Path

import pytest
import torch

from sfumato import flops
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig, PixelsConfig
from sfumato.cli import main
from sfumato.config import parse
from sfumato.errors import UserError
from sfumato.model_folder import load
from sfumato.training.autoencoder_run import AutoencoderRun

PIXELS = AutoencoderConfig(channel_multipliers=(1,), bottleneck=PixelsConfig())


def test_the_latent_is_the_image() -> None:
    autoencoder = Autoencoder(PIXELS)
    image = torch.randn(2, 3, 5, 7)
    encoding = autoencoder.encode(image)
    assert torch.equal(autoencoder.decode(encoding.z), image)
    assert torch.equal(autoencoder.latent_from_moments(encoding.moments, torch.randn(2, 3, 5, 7)), image)
    assert (autoencoder.factor, autoencoder.latent_channels) == (1, 3)
    assert not list(autoencoder.parameters())
    assert flops.encode(PIXELS, (8, 8)) == flops.decode(PIXELS, (8, 8)) == 0


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0


def test_it_trains_and_samples_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pixels.yaml").write_text(
        "denoiser: {channels: 32, channel_multipliers: [1, 2], blocks_per_level: 1, attention_factors: []}\n"
        "schedule: {kind: scaled-linear}\n"
        "data: {kind: toy, size: 32, length: 8}\n"
        "train: {steps: 2, batch: 2, workers: 0}\n"
    )
    monkeypatch.chdir(tmp_path)
    run("train", "diffusion", "pixels.yaml", "--autoencoder", "pixels", "--out", "run")
    model = load("run")
    assert model.latent_shape == (3, 32, 32)
    assert model.sample_tensor(count=2, steps=2).shape == (2, 3, 32, 32)
    with pytest.raises(UserError, match="guidance"):
        model.sample_tensor(count=2, steps=2, guidance=3.0)
    run("sample", "run", "-n", "1", "--steps", "2", "--out", "samples")
    assert (tmp_path / "samples" / "0000.png").exists()
    run("info", "run")


def test_what_makes_no_sense_is_refused() -> None:
    bottleneck = {"kind": "pixels"}
    with pytest.raises(UserError, match=r"f = 1: set channel_multipliers to \[1\]"):
        parse({"model": {"bottleneck": bottleneck}, "data": {"kind": "toy"}}, AutoencoderRun, "x")
    model = {"bottleneck": bottleneck, "channel_multipliers": [1]}
    with pytest.raises(UserError, match="nothing to train: train stage 2 with --autoencoder pixels"):
        parse({"model": model, "data": {"kind": "toy"}}, AutoencoderRun, "x")
