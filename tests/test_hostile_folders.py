"""Model folders made to harm: one sentence at `info`, nothing hangs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny
from sfumato.baselines.model import CodeModelConfig, build_code_model
from sfumato.checkpoint import load_tensors, save_tensors
from sfumato.classifier import build_classifier, described
from sfumato.cli import main
from sfumato.conditioning.tokenizer import fit_tokenizer
from sfumato.denoiser.classifier import ClassifierConfig
from sfumato.denoiser.unet import UNetConfig
from sfumato.diffusion.schedule import ScaledLinearConfig
from sfumato.model import LatentDiffusion


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny.model()


def configured(folder: Path, path: str, value: Any) -> None:
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text())
    *above, last = path.split(".")
    node = config
    for key in above:
        node = node[key]
    node[last] = value
    file.write_text(yaml.safe_dump(config))


def recast(folder: Path, dtype: torch.dtype) -> None:
    tensors, numbers = load_tensors(folder / "denoiser.safetensors")
    save_tensors(folder / "denoiser.safetensors", {key: value.to(dtype) for key, value in tensors.items()}, numbers)


def piped(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


CASES: dict[str, tuple[Any, str]] = {
    "pad_token": (lambda f: configured(f, "diffusion.conditioner.pad_token", 1_000_000), "pad_token holds 1000000"),
    "blocks": (lambda f: configured(f, "diffusion.denoiser.blocks_per_level", 10**9), "blocks_per_level"),
    "many blocks": (
        lambda f: [configured(f, f"diffusion.denoiser.{k}", 64) for k in ("blocks_per_level", "transformer_depth")],
        "at most 1024",
    ),
    "channels": (lambda f: configured(f, "autoencoder.channels", 10**12), "channels"),
    "steps": (lambda f: configured(f, "diffusion.schedule.steps", 10**12), "steps"),
    "size": (lambda f: configured(f, "image_size", [10**12, 16]), "image_size"),
    "int64": (lambda f: recast(f, torch.int64), "has int64 numbers"),
    "bool": (lambda f: recast(f, torch.bool), "has bool numbers"),
    "float8": (lambda f: recast(f, torch.float8_e4m3fn), "has float8_e4m3fn numbers"),
    "binary tokenizer": (lambda f: (f / "tokenizer.json").write_bytes(b"\x80\x04\xff"), "not UTF-8 text"),
    "tokenizer of nothing": (
        lambda f: (f / "tokenizer.json").write_text("[]"),
        "model/tokenizer.json' is not a tokenizer.json",
    ),
    "tokenizer of large ids": (
        lambda f: (f / "tokenizer.json").write_text(
            (f / "tokenizer.json")
            .read_text()
            .replace('"[SEP]": 2', '"[SEP]": 900000')
            .replace('"[SEP]":2', '"[SEP]":900000')
        ),
        "token id 900000|not a tokenizer.json",
    ),
    "pipe as configuration": (lambda f: piped(f, "config.yaml"), "not a regular file"),
    "pipe as weights": (lambda f: piped(f, "denoiser.safetensors"), "not a regular file"),
    "pipe as tokenizer": (lambda f: piped(f, "tokenizer.json"), "not a regular file"),
    "empty configuration": (lambda f: (f / "config.yaml").write_text(""), "is empty"),
    "hub source": (
        lambda f: configured(f, "diffusion.conditioner", {"kind": "pretrained-text", "source": "someone/some-model"}),
        "only training and sampling download|needs the extra",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_model_folder_is_one_sentence(
    name: str,
    model: LatentDiffusion,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model.save(tmp_path / "model")
    harm, sentence = CASES[name]
    harm(tmp_path / "model")
    with pytest.raises(SystemExit) as ended:
        main(["info", str(tmp_path / "model")])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.count("\n") == 1
    assert any(part in err for part in sentence.split("|")), err


def code_model(folder: Path) -> None:
    first = tiny.model(tiny.VQ)
    first = LatentDiffusion(first.config.model_copy(update={"diffusion": None}), first.autoencoder, first.scaling, None)
    config = CodeModelConfig.model_validate(
        {
            "transformer": {"dim": 8, "depth": 1, "head_dim": 4},
            "conditioner": tiny.CONFIG["diffusion"]["conditioner"],
            "image_size": [16, 24],
        }
    )
    build_code_model(config, first, fit_tokenizer(tiny.TEXTS, 512)).save(folder)


def latent_classifier(folder: Path) -> None:
    unet = UNetConfig(channels=32, channel_multipliers=(1,), blocks_per_level=1, attention_factors=())
    small = ClassifierConfig(encoder=unet, pooling_head_channels=16)
    first = tiny.model()
    build_classifier(described(small, first, first.scaling, ScaledLinearConfig(), 2, None)).save(folder)


OTHERS: dict[str, tuple[Callable[[Path], None], str, Callable[[Path], Any], str]] = {
    "codes, binary tokenizer": (code_model, "tokenizer.json", lambda p: p.write_bytes(b"\0\xff"), "not UTF-8 text"),
    "codes, pipe as tokenizer": (code_model, "tokenizer.json", os.mkfifo, "not a regular file"),
    "codes, no tokenizer": (code_model, "tokenizer.json", lambda p: None, "lacks tokenizer.json"),
    "codes, device as tokenizer": (
        code_model,
        "tokenizer.json",
        lambda p: p.symlink_to("/dev/zero"),
        "not a regular file",
    ),
    "codes, pipe as weights": (code_model, "transformer.safetensors", os.mkfifo, "not a regular file"),
    "classifier, pipe as weights": (latent_classifier, "classifier.safetensors", os.mkfifo, "not a regular file"),
    "classifier, many channels": (
        latent_classifier,
        "config.yaml",
        lambda p: p.write_text(p.read_text().replace("latent_channels: 3", f"latent_channels: {10**12}")),
        "latent_channels",
    ),
    "classifier, many classes": (
        latent_classifier,
        "config.yaml",
        lambda p: p.write_text(p.read_text().replace("classes: 2", f"classes: {10**25}")),
        "classes",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_hostile_folder_of_another_kind_is_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, file, harm, sentence = OTHERS[name]
    make(tmp_path / "model")
    place = tmp_path / "model" / file
    text = place.read_bytes()
    place.unlink()
    if file == "config.yaml":
        place.write_bytes(text)
    harm(place)
    with pytest.raises(SystemExit) as ended:
        main(["info", str(tmp_path / "model")])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.count("\n") == 1
    assert sentence in err
