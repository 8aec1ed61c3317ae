"""README's lines for your own folder, on images alone, with captions, and sorted into classes."""

import shlex
from pathlib import Path

import pytest
import yaml

from command_line import Command, Runs
from data.make_images import save
from sfumato.training.log import read_lines

SMALL = ["data.size=32", "train.steps=2", "train.batch=2", "train.workers=0", "train.precision=float32"]
FIRST = ["model.channels=8", "loss.perceptual.kind=none", "loss.adversarial.weight=0", "train.preview_images=2"]
SECOND = ["denoiser.channels=32", "denoiser.channel_multipliers=[1, 1]", "denoiser.attention_factors=[2]"]


def folder(root: Path, kind: str, count: int = 6) -> Path:
    """A folder of images named after what stands beside them."""
    place = root / kind
    save(place, [f"{'cd'[i % 2]}/{i}.png" if kind == "labelled" else f"{i}.png" for i in range(count)], 20, 30)
    for i in range(count if kind == "captioned" else 0):
        (place / f"{i}.txt").write_text(f"a {'red' if i % 2 else 'green'} apple")
    return place


@pytest.mark.parametrize("kind", ["plain", "captioned", "labelled"])
def test_stage_1_trains_on_any_folder(tmp_path: Path, command: Command, kind: str) -> None:
    data = folder(tmp_path, kind)
    done = command(
        "train", "autoencoder", "zoo:emoji/autoencoder", "--data", data, "--out", tmp_path / "r", *SMALL, *FIRST
    )
    assert done.code == 0, done.err
    warning = "held_out.by is 'text', but the images have no text: images are held out one by one"
    assert done.err.count(warning) == (kind != "captioned")
    lines = read_lines(tmp_path / "r" / "log.jsonl")
    assert any("psnr" in line for line in lines)
    assert not any("measured_on_training_images" in line for line in lines)


def test_numbers_of_training_images_say_so(tmp_path: Path, command: Command) -> None:
    data = folder(tmp_path, "plain", 3)
    common = ("train", "autoencoder", "zoo:emoji/autoencoder", "--data", data, *SMALL, *FIRST)
    done = command(*common, "--out", tmp_path / "none", "held_out.amount=0")
    assert done.code == 0, done.err
    assert "nothing is held out (held_out.amount is 0): previews and metrics use training images" in done.err
    lines = [line for line in read_lines(tmp_path / "none" / "log.jsonl") if "psnr" in line]
    assert [line["measured_on_training_images"] for line in lines] == [True]


def test_a_field_that_was_mistyped_is_still_an_error(tmp_path: Path, command: Command) -> None:
    data = folder(tmp_path, "plain")
    done = command(
        *("train", "autoencoder", "zoo:emoji/autoencoder", "--data", data, "--out", tmp_path / "r", *SMALL, *FIRST),
        "held_out.by=style",
    )
    assert done.code == 2
    assert "held_out.by 'style' is not a field of the data" in done.err


@pytest.mark.parametrize("kind", ["plain", "captioned", "labelled"])
def test_stage_2_trains_or_prints_the_command_to_type(tmp_path: Path, command: Command, runs: Runs, kind: str) -> None:
    data, out = folder(tmp_path, kind), tmp_path / "r"
    line = ["train", "diffusion", "zoo:emoji/text", "--data", data, "--autoencoder", runs.autoencoder, "--out", out]
    done = command(*line, *SMALL, *SECOND)
    if kind != "captioned":
        assert done.code == 2
        assert not list((out / "cache").glob("latents-*")), "nothing is encoded for a training that cannot begin"
        name, *words = shlex.split(done.err.partition("by typing: ")[2])
        assert name == "sfumato"
        done = command(*words)
    assert done.code == 0, done.err
    conditioner = yaml.safe_load((out / "model" / "config.yaml").read_text())["diffusion"]["conditioner"]
    assert conditioner["kind"] == {"plain": "none", "captioned": "text", "labelled": "class"}[kind]
    assert conditioner.get("classes") == (2 if kind == "labelled" else None)


def test_a_caption_is_missed_before_anything_is_typed_twice(tmp_path: Path, command: Command, runs: Runs) -> None:
    """The command to copy leaves out the settings of the conditioner, and keeps blanks and quotes."""
    data = folder(tmp_path / "my images", "plain")
    line = ["train", "diffusion", "zoo:emoji/text", "--data", data, "--autoencoder", runs.autoencoder, "--out"]
    done = command(*line, tmp_path / "r", "conditioner.dim=32", *SMALL, *SECOND)
    words = shlex.split(done.err.partition("by typing: ")[2])
    assert words[words.index("--data") + 1] == str(data)
    assert [word for word in words if word.startswith("conditioner")] == ["conditioner.kind=none"]
