"""Numbers that are not finite or of no sensible size end in a sentence, before anything is computed or written."""

import json
import time
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import BaseModel, ValidationError

import sfumato
from command_line import Command
from sfumato import checkpoint
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.autoencoder.scaling import Scaling
from sfumato.baselines.model import CodeModelConfig
from sfumato.cards.card import Metric
from sfumato.classifier import LatentClassifierConfig
from sfumato.config import _models_in, parse, read_source
from sfumato.errors import UserError
from sfumato.estimate.images import check_affordable, reconstruction
from sfumato.model import LatentDiffusion, ModelConfig, build
from sfumato.plain_json import to_json
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun

NAN, INF = float("nan"), float("inf")
TINY = {"channels": 8, "channel_multipliers": [1, 2], "blocks_per_level": 1, "latent_channels": 2, "norm_groups": 2}


def model_at(folder: Path, weight: float | None = None, second: bool = True) -> Path:
    """A tiny model; `weight` is put into its last convolution."""
    torch.manual_seed(0)
    unet = {"channels": 8, "channel_multipliers": [1], "blocks_per_level": 1, "attention_factors": []}
    diffusion = {"denoiser": {**unet, "head_channels": 8, "norm_groups": 2}, "schedule": {"kind": "scaled-linear"}}
    raw = {"autoencoder": TINY, "image_size": (32, 32), "diffusion": diffusion if second else None}
    model = build(ModelConfig.model_validate(raw))
    LatentDiffusion(model.config, model.autoencoder, Scaling.from_factor(2, 1.0), model.second).save(folder)
    if weight is not None:
        path = folder / ("denoiser" if second else "autoencoder")
        tensors, _ = checkpoint.load_tensors(path.with_suffix(".safetensors"))
        tensors["out.2.bias" if second else "decoder.conv_out.bias"][0] = weight
        checkpoint.save_tensors(path.with_suffix(".safetensors"), tensors)
    return folder


def images_at(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.effect_noise((32, 32), 40 + i).convert("RGB").save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("number", [NAN, INF])
@pytest.mark.parametrize(
    "what", ["reconstruct", "evaluate-autoencoder", "evaluate", "info", "export", "replace-decoder", "quantize"]
)
def test_weights_that_are_not_finite_are_named(what: str, number: float, tmp_path: Path, command: Command) -> None:
    model = model_at(tmp_path / "model", number, second=what in ("evaluate", "replace-decoder"))
    images, out = images_at(tmp_path / "images"), tmp_path / "out"
    more: dict[str, list[object]] = {
        "reconstruct": [images, "--out", out],
        "evaluate-autoencoder": [images, "--out", out],
        "evaluate": [images, "--out", out, "--n", 4, "--steps", 2],
        "info": [],
        "export": [out, "--format", "diffusers"],
        "replace-decoder": [model, "--out", out],
        "quantize": ["--out", out],
    }
    done = command(what, model, *more[what])
    assert done.code == 2, done.out
    name = "out.2.bias" if what in ("evaluate", "replace-decoder") else "decoder.conv_out.bias"
    assert f"{name}' holds 1 of " in done.err
    assert done.err.count("\n") == 1
    assert not [p for p in tmp_path.rglob("*.json*") if out in p.parents]


@pytest.mark.parametrize("what", ["reconstruct", "evaluate-autoencoder"])
def test_images_that_overflow_are_an_error(what: str, tmp_path: Path, command: Command) -> None:
    model = model_at(tmp_path / "model", 3e38, second=False)
    path = model / "autoencoder.safetensors"
    tensors, _ = checkpoint.load_tensors(path)
    tensors["post_quant_conv.bias"].fill_(3e38)
    tensors["decoder.conv_in.weight"].fill_(3e38)
    checkpoint.save_tensors(path, tensors)
    listed = model / "config.yaml"  # without the checksums, which are of the weights before
    listed.write_text("".join(line for line in listed.open() if not line.startswith("#")))
    sfumato.load(model)  # every weight is finite
    out = tmp_path / "out"
    done = command(what, model, images_at(tmp_path / "images"), "--out", out, "--precision", "float32")
    assert done.code == 2
    assert "not finite" in done.err
    assert not [p for p in out.rglob("*") if p.is_file()]


def test_a_text_encoder_beside_a_model_is_looked_at() -> None:
    with pytest.raises(UserError, match="text encoder"):
        checkpoint.check_finite({"a": torch.tensor([NAN])}, "the text encoder x")


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_json_has_no_place_for_them(number: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scores\.fd\[1\] is (nan|inf|-inf), not a finite number"):
        to_json({"scores": {"fd": [1.0, number]}})
    with pytest.raises(UserError, match="best is"):
        checkpoint.save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)}, {"best": number})
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="a metric's value is"):
        Metric(value=number)
    assert json.loads(to_json({"a": [1, 0.5, None, "é"]})) == {"a": [1, 0.5, None, "é"]}


def first_stage(**changes: Any) -> AutoencoderRun:
    raw = read_source("zoo:toy/small-autoencoder")
    for name, value in changes.items():
        section, key = name.split("__")
        raw[section][key] = value
    return parse(raw, AutoencoderRun, "test")


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["loss__kl_weight", "train__minutes", "train__ema_decay", "model__dropout"])
def test_floats_of_a_configuration_are_finite(name: str, number: float) -> None:
    with pytest.raises(UserError, match=name.split("__")[1]):
        first_stage(**{name: number})


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("train__workers", 10**6),
        ("train__batch", 10**12),
        ("train__accumulate", 10**12),
        ("train__steps", 10**12),
        ("train__preview_images", 10**9),
        ("data__size", 10**9),
        ("data__length", 10**12),
        ("model__channels", 10**12),
        ("model__blocks_per_level", 10**9),
        ("model__channel_multipliers", [1, 10**9]),
        ("model__channel_multipliers", [1] * 40),
        ("model__latent_channels", 10**9),
        ("train__batch", 10**4000),
    ],
)
def test_whole_numbers_of_a_configuration_are_of_a_sensible_size(name: str, number: Any) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"give at most|at most 10 items|has 40 levels|less than or equal to") as caught:
        first_stage(**{name: number})
    assert name.split("__")[1] in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("section", "key", "number"),
    [
        ("schedule", "steps", 10**10),
        ("conditioner", "depth", 10**6),
        ("conditioner", "vocabulary", 10**12),
        ("denoiser", "heads", 10**9),
        ("denoiser", "transformer_depth", 10**6),
    ],
)
def test_second_stages_too(section: str, key: str, number: int) -> None:
    raw = read_source("zoo:toy/text")
    raw[section] = {**raw[section], key: number}
    with pytest.raises(UserError, match=key):
        parse(raw, DiffusionRun, "test")


def test_every_shipped_number_is_in_range() -> None:
    with pytest.raises(ValidationError, match="give at most 4096"):
        AutoencoderConfig(latent_channels=5000)
    assert AutoencoderConfig(channels=512).channels == 512


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e40", "-1"])
@pytest.mark.parametrize(
    "line",
    [
        ("distill-decoder", "m", "--perceptual"),
        ("distill-decoder", "m", "--minutes"),
        ("ema", "m", "--out", "o", "--width"),
        ("demo", "--out", "o", "--minutes"),
    ],
)
def test_floats_of_the_command_line(
    line: tuple[str, ...], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*line, text)
    assert done.code == 2
    assert f"{line[-1]} is " in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["1000000000000", "-1"])
@pytest.mark.parametrize(
    "line",
    [
        ("reconstruct", "m", "i", "--out", "o", "--batch"),
        ("evaluate", "m", "d", "--out", "o", "--n"),
        ("evaluate", "m", "d", "--out", "o", "--batch"),
        ("evaluate", "m", "d", "--out", "o", "--steps"),
        ("evaluate", "m", "d", "--out", "o", "--bootstrap"),
        ("evaluate", "m", "d", "--out", "o", "--reference"),
        ("evaluate-autoencoder", "m", "d", "--n"),
        ("evaluate-autoencoder", "m", "d", "--batch"),
        ("estimate", "zoo:toy/text", "--steps"),
        ("estimate", "zoo:toy/text", "--sampling-steps"),
        ("bench", "--count"),
        ("distill-decoder", "m", "--batch"),
        ("distill-decoder", "m", "--images"),
        ("distill-decoder", "m", "--channels"),
        ("distill-decoder", "m", "--steps"),
        ("study", "downsampling", "--out", "o", "--data", "toy", "--feature-size"),
        ("study", "downsampling", "--out", "o", "--data", "toy", "--samples"),
        ("study", "downsampling", "--out", "o", "--data", "toy", "--channels"),
        ("study", "downsampling", "--out", "o", "--data", "toy", "--length"),
        ("study", "downsampling", "--out", "o", "--data", "toy", "--seeds"),
        ("study", "downsampling", "--out", "o", "--data", "toy", "--sampling-steps"),
        ("study", "baselines", "--out", "o", "--data", "toy", "--codebook"),
        ("study", "latents", "--out", "o", "--seeds"),
        ("study", "latents", "--out", "o", "--steps"),
        ("study", "latents", "--out", "o", "--measured"),
    ],
)
def test_whole_numbers_of_the_command_line(
    line: tuple[str, ...], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*line, text)
    assert done.code == 2, done.out
    assert line[-1].lstrip("-").replace("-", "") in done.err.replace("-", "").replace("_", "")
    assert "does not exist" not in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_finite(tmp_path: Path, command: Command) -> None:
    done = command("study", "downsampling", "--out", tmp_path / "o", "--data", "toy", "--budget", "9" * 400 + "d")
    assert done.code == 2
    assert "--budget is" in done.err


def test_an_image_whose_attention_takes_hours_is_refused(tmp_path: Path, command: Command) -> None:
    config = AutoencoderConfig()  # kl-f8
    check_affordable(reconstruction(config, [(1024, 1024)]), "cpu", "x", "give --size")
    huge = reconstruction(config, [(64, 64), (10_000, 12_000)])
    with pytest.raises(UserError, match=r"x would take .*1,875,000 positions.*give --size"):
        check_affordable(huge, "cpu", "x", "give --size")
    check_affordable(reconstruction(config, [(4096, 4096)]), "cuda", "x", "give --size")
    model = model_at(tmp_path / "model", second=False)
    Image.new("RGB", (4000, 4000)).save(tmp_path / "large.png")
    started = time.monotonic()
    done = command("reconstruct", model, tmp_path / "large.png", "--out", tmp_path / "out")
    assert done.code == 2
    assert "--size" in done.err
    assert time.monotonic() - started < 20


CHECKED_ELSEWHERE = {
    "channel_multipliers", "attention_levels", "attention_factors",  # by a validator of their configuration
    "revive_every", "classes_seen", "void", "pad_token", "empty_tokens",  # size nothing
}  # fmt: skip


def whole_numbers(annotation: Any) -> bool:
    """Whether a field may hold a whole number of any size."""
    if typing.get_origin(annotation) is typing.Annotated and any(hasattr(m, "le") for m in _metadata(annotation)):
        return False
    return annotation is int or (
        typing.get_origin(annotation) is not typing.Literal and any(map(whole_numbers, typing.get_args(annotation)))
    )


def _metadata(annotation: Any) -> list[Any]:
    return [inner for given in annotation.__metadata__ for inner in getattr(given, "metadata", [given])]


def configurations(start: type[BaseModel], found: set[type[BaseModel]]) -> set[type[BaseModel]]:
    if start not in found:
        found.add(start)
        for field in start.model_fields.values():
            for below in _models_in(field.annotation):
                configurations(below, found)
    return found


@pytest.mark.parametrize("folder", [ModelConfig, CodeModelConfig, LatentClassifierConfig])
def test_every_size_in_the_configuration_of_a_model_folder_is_bounded(folder: type[BaseModel]) -> None:
    open_ended = [
        f"{config.__name__}.{name}"
        for config in configurations(folder, set())
        for name, field in config.model_fields.items()
        if name not in CHECKED_ELSEWHERE
        and whole_numbers(field.annotation)
        and not any(hasattr(given, "le") for given in field.metadata)
    ]
    assert open_ended == []


def test_a_study_bounds_its_networks(command: Command, tmp_path: Path) -> None:
    done = command("study", "baselines", "--data", "toy", "--parameters", 10**12, "--out", tmp_path / "out")
    assert done.code == 2
    assert "parameters" in done.err
    assert not (tmp_path / "out").exists()
