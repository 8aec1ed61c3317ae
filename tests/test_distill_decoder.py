"""`sfumato distill-decoder`, and the commands that use what it makes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from command_line import Command, Runs, facts_of
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.request import SampleRequest

QUICK = ("--steps", 2, "--images", 8, "--batch", 4)


@pytest.fixture
def text(runs: Runs, tmp_path: Path) -> Path:
    """A run of a text model that may be changed."""
    shutil.copytree(runs.text / "model", tmp_path / "text" / "model")
    return tmp_path / "text"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_a_model_gets_a_tiny_decoder_and_samples_with_it(
    command: Command, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sfumato.load(text).digest
    done = command("distill-decoder", text, "--data", "toy", *QUICK)
    assert done.code == 0, done.err
    assert "PSNR on 6 held-out images: tiny against full decoder" in done.out
    assert "times fewer operations" in done.out
    assert "trained for 2 steps on 8 images" in done.out
    assert (text / "model" / "tiny_decoder.safetensors").exists()
    assert pixels(text / "tiny-decoder" / "compare.png").shape[2] == 3
    model = sfumato.load(text)
    assert model.digest == before
    assert model.tiny is not None
    assert model.tiny.config.about["steps"] == 2

    facts = json.loads(command("info", text, "--json").out)
    assert facts["tiny decoder"]["images"] == 8
    assert facts["flops"]["decode"] >= 20 * facts["flops"]["tiny decode"]
    assert "tiny decoder" in command("info", text).out

    common = ("sample", text, "a ring", "-n", 1, "--steps", 3, "--precision", "float32", "--out")
    used: list[str] = []
    decode = pipeline.decode

    def noted(model: LatentDiffusion, latents: torch.Tensor, request: SampleRequest) -> torch.Tensor:
        used.append(request.decoder)
        return decode(model, latents, request)

    monkeypatch.setattr(pipeline, "decode", noted)
    assert command(*common, tmp_path / "full", "--preview-every", 1, "--strip", 2).code == 0
    assert used == ["tiny", "tiny", "full", "full", "full"], "two previews, the image, two of the strip"
    assert command(*common, tmp_path / "tiny", "--decoder", "tiny").code == 0
    assert facts_of(tmp_path / "tiny" / "0000.png")["decoder"] == "tiny"
    expected = model.sample_tensor("a ring", steps=3, decoder="tiny")
    sampled = pixels(tmp_path / "tiny" / "0000.png")
    assert np.abs(sampled - ((expected[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()).max() <= 1
    assert np.abs(sampled - pixels(tmp_path / "full" / "0000.png")).max() > 10


def test_the_data_is_by_default_what_the_autoencoder_was_trained_on(command: Command, text: Path) -> None:
    assert command("distill-decoder", text, *QUICK).code == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--steps", 2, "--minutes", 1), "--minutes and --steps both set the length of the training"),
        (("--minutes", 0), "--minutes is 0: give a number from 0.001"),
        (("--channels", 2), "--channels is 2: give a whole number from 4"),
        (("--perceptual", -1), "--perceptual is -1"),
        (("--perceptual", "inf"), "--perceptual is inf: give"),
        (("--data", "nowhere"), "nowhere does not exist"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    command: Command, text: Path, arguments: tuple[object, ...], why: str
) -> None:
    done = command("distill-decoder", text, *arguments)
    assert done.code == 2
    assert why in done.err
    assert not (text / "model" / "tiny_decoder.safetensors").exists()


def test_the_error_about_a_missing_tiny_decoder_names_the_command(command: Command, text: Path, tmp_path: Path) -> None:
    done = command("sample", text, "a ring", "--decoder", "tiny", "--out", tmp_path / "out")
    assert done.code == 2
    assert "no tiny decoder: create one with `sfumato distill-decoder MODEL --data DIR`" in done.err
