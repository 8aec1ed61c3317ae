"""Every shipped configuration through both export formats and back: the same images, or a sentence that names why not.

The networks keep their kinds and norms; the wide ones are narrowed, so that each takes a second.
"""

import itertools
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato
from parity import relative_error
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.condition import Condition
from sfumato.config import read_source, zoo_names
from sfumato.diffusion.prediction import to_eps, to_x0
from sfumato.diffusion.process import timestep_like
from sfumato.errors import UserError
from sfumato.interop.convert import export_model, import_model
from sfumato.interop.published import DIFFUSIONS
from sfumato.interop.read_back import random_fields
from sfumato.model import LatentDiffusion, ModelConfig, build

TOLERANCE = 1e-5
NARROW = 32
TOY_FIRST = {"toy/small-text": "toy/small-autoencoder", "emoji/gpu-text": "emoji/gpu-autoencoder"}
OTHER_MODELS = {"toy/classifier", "toy/transformer"}  # no diffusion models: `export` knows neither

GROUPS = r"first stage with norm_groups: {} .* the original's norms always have 32 groups.*--format diffusers"
FLOW = r"flow.* cannot be exported"
PIXELS = r"pixel space \(bottleneck: pixels\) cannot be exported"
REFUSED: dict[str, dict[str, str]] = {
    "toy/autoencoder": {"original": GROUPS.format(2)},
    "toy/small-autoencoder": {"original": GROUPS.format(2)},
    "toy/joint": {"original": GROUPS.format(2)},  # its first stage
    "toy/small-dit": {"original": "kind dit cannot be exported", "diffusers": "DiT with conditioner.kind: text cannot"},
    "toy/vq-autoencoder": {
        "original": GROUPS.format(32) + "|norms of 8 groups at 24 channels",
        "diffusers": r"8 at 24 channels, 16 at 48 channels, 32 at 96 channels.*diffusers has one number",
    },
    "emoji/autoencoder": {"original": GROUPS.format(8)},
    "emoji/gpu-autoencoder": {"original": GROUPS.format(8)},
    "toy/pixels": {"original": PIXELS, "diffusers": PIXELS},
    "emoji/pixels": {"original": PIXELS, "diffusers": PIXELS},
    "ldm/inpainting-big": {"diffusers": "first stage with attention none cannot be exported"},
    "ldm/vq-f4-noattn": {"diffusers": "first stage with attention none cannot be exported"},
    "ldm/lsun-churches256": {"diffusers": "UNet2DModel has heads of one width"},
    "ldm/celebahq-ldm-1": {"original": PIXELS, "diffusers": PIXELS},
    "ldm/imagenet-ldm-1": {"original": PIXELS, "diffusers": PIXELS},
}
"""Refusals by configuration; the second stages of the toy and emoji configurations follow below."""
for _name in ("inpainting-text", "text", "small-text"):
    REFUSED[f"toy/{_name}"] = {"original": "norm_groups: 2", "diffusers": "pooled: true cannot be exported"}
for _name in ("inpainting", "layout", "semantic", "super-res"):
    REFUSED[f"toy/{_name}"] = {"original": "norm_groups: 2", "diffusers": FLOW}
for _name in ("text", "gpu-text"):
    REFUSED[f"emoji/{_name}"] = {"original": "norm_groups: 8", "diffusers": "pooled: true cannot be exported"}


def first_stage_of(name: str) -> dict[str, Any] | None:
    """The first stage's configuration of a second stage; None in pixel space."""
    if name.startswith("ldm/"):
        row = next(row for row in DIFFUSIONS if f"ldm/{row.name}" == name)
        return None if row.first_stage is None else narrowed_first(read_source(f"zoo:ldm/{row.first_stage}")["model"])
    if name.endswith("pixels"):
        return None
    return dict(read_source(f"zoo:{TOY_FIRST.get(name, name.split('/')[0] + '/autoencoder')}")["model"])


def narrowed_first(model: dict[str, Any]) -> dict[str, Any]:
    codes = {"bottleneck": {**model["bottleneck"], "codes": 16}} if model.get("bottleneck", {}).get("codes") else {}
    return {**model, **narrowed_levels(model), **codes}


def narrowed_levels(network: dict[str, Any]) -> dict[str, Any]:
    levels = len(network["channel_multipliers"])
    multipliers = [*[1] * (levels - 1), min(levels, 2)]  # the last level alone is wider
    return {"channels": NARROW, "channel_multipliers": multipliers, "blocks_per_level": 1}


def narrowed_second(raw: dict[str, Any]) -> dict[str, Any]:
    denoiser = {**raw["denoiser"], **narrowed_levels(raw["denoiser"])}
    small = {"dim": 24, "depth": 1, "tokenizer": "none", "classes": 5, "vocabulary": 110}
    conditioner = {key: small.get(key, value) for key, value in raw.get("conditioner", {"kind": "none"}).items()}
    return {**raw, "denoiser": denoiser, "conditioner": conditioner}


def model_config(name: str) -> ModelConfig:
    raw = read_source(f"zoo:{name}")
    if "model" in raw:
        model = narrowed_first(raw["model"]) if name.startswith("ldm/") else raw["model"]
        return ModelConfig.model_validate({"autoencoder": model, "image_size": (64, 64)})
    first = first_stage_of(name) or {"channel_multipliers": [1], "bottleneck": {"kind": "pixels"}}
    raw = narrowed_second(raw) if name.startswith("ldm/") else raw
    conditioner = dict(raw.get("conditioner", {"kind": "none"}))
    for part in [conditioner, *conditioner.get("parts", {}).values()]:
        part |= {"tokenizer": "none"} if part["kind"] == "text" else {}
        part |= {"classes": 5} if part.get("classes") == 0 else {}
    diffusion = {
        "denoiser": raw["denoiser"],
        "conditioner": conditioner,
        "schedule": raw["schedule"],
        "prediction": raw.get("objective", {}).get("prediction", "eps"),
        "condition_dropout": 0.25,
    }
    names = {"classes": tuple("abcde")} if conditioner["kind"] == "class" else {}
    return ModelConfig.model_validate({"autoencoder": first, "image_size": (64, 64), "diffusion": diffusion, **names})


@cache
def distinct() -> dict[str, ModelConfig]:
    """One name for each model that is left different once narrowed."""
    found: dict[str, tuple[str, ModelConfig]] = {}
    for name in zoo_names():
        if name not in OTHER_MODELS:
            config = model_config(name)
            found.setdefault(config.model_dump_json() + REFUSED.get(name, {}).get("original", ""), (name, config))
    return dict(found.values())


def with_weights(config: ModelConfig, folder: Path) -> LatentDiffusion:
    """Saved, with random weights that leave no layer at zero, and a scaling per channel where it can be folded."""
    torch.manual_seed(3)
    model = build(config)
    for part in model.parts().values():
        for p in part.parameters():
            p.requires_grad_(False).add_(torch.randn(p.shape) * 0.05)
    channels = model.autoencoder.latent_channels
    scaling = Scaling.from_factor(channels, 0.5)
    if config.autoencoder.bottleneck.kind == "kl" and config.diffusion is not None:
        scaling = Scaling(torch.linspace(-0.5, 0.7, channels), torch.linspace(0.6, 1.7, channels))
    if config.diffusion is None:
        scaling = Scaling.from_factor(channels, 1.0)
    LatentDiffusion(config, model.autoencoder, scaling, model.second).save(folder)
    return sfumato.load(folder)


@torch.no_grad()
def images(model: LatentDiffusion) -> dict[str, Tensor]:
    """A reconstruction, and a sample of three DDIM steps written out here."""
    generator = torch.Generator().manual_seed(1)
    f = model.autoencoder.factor
    image = torch.rand(1, 3, 2 * f, 3 * f, generator=generator) * 2 - 1
    out = {"reconstruction": model.reconstruct(image)}
    second = model.second
    if second is None:
        return out
    size = (2 * second.config.denoiser.factor, 3 * second.config.denoiser.factor)
    condition = Condition()
    if second.conditioner is not None:
        condition = second.conditioner(random_fields(second.config, second.conditioner, size, generator))
    x = torch.randn(1, model.autoencoder.latent_channels, *size, generator=generator)
    schedule, kind = second.schedule, second.config.prediction
    for t, s in itertools.pairwise(torch.tensor([0.9, 0.6, 0.3, 0.0], dtype=torch.float64)):
        (alpha, sigma), (alpha_s, sigma_s) = (tuple(v.item() for v in schedule(time)) for time in (t, s))
        predicted = second.denoiser(x, timestep_like(t, schedule.steps, x), condition)
        x0, eps = (to(kind, predicted, x, alpha, sigma) for to in (to_x0, to_eps))
        x = alpha_s * x0 + sigma_s * eps
    return {**out, "sample": model.decode(x)}


@pytest.mark.parametrize("name", sorted(distinct()))
def test_a_shipped_configuration_is_exported_right_or_refused(name: str, tmp_path: Path) -> None:
    config = distinct()[name]
    model = with_weights(config, tmp_path / "ours")
    before = images(model)
    for format in ("original", "diffusers"):
        out = tmp_path / format
        refusal = REFUSED.get(name, {}).get(format)
        if refusal is not None:
            with pytest.raises(UserError) as caught:
                export_model(tmp_path / "ours", out, format)  # type: ignore[arg-type]
            assert re.search(refusal, str(caught.value)), str(caught.value)
            assert not out.exists()
            continue
        export_model(tmp_path / "ours", out, format)  # type: ignore[arg-type]
        source = out / "model.ckpt" if format == "original" else out
        back = sfumato.load(import_model(source, tmp_path / f"{format}-back").folder)
        after = images(back)
        for what, expected in before.items():
            assert (after[what] - expected).abs().max() <= TOLERANCE * expected.abs().max(), (format, what)
        assert back.config.diffusion == config.diffusion
        assert back.config.classes == config.classes
        if format == "diffusers":
            assert_diffusers_computes_the_same(model, out)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@torch.no_grad()
def assert_diffusers_computes_the_same(model: LatentDiffusion, folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    generator = torch.Generator().manual_seed(2)
    vq = model.config.autoencoder.bottleneck.kind == "vq"
    place = folder if model.second is None else folder / ("vqvae" if (folder / "vqvae").is_dir() else "vae")
    first = (diffusers.VQModel if vq else diffusers.AutoencoderKL).from_pretrained(place)
    latent = torch.randn(1, model.autoencoder.latent_channels, 2, 3, generator=generator)
    theirs = first.decode(latent / first.config.scaling_factor).sample
    assert relative_error(theirs, model.autoencoder.decode(model.scaling.to_raw(latent))) <= TOLERANCE
    if model.second is None:
        return
    conditional = model.second.denoiser.spec.token_dim is not None
    kind = diffusers.UNet2DConditionModel if conditional else diffusers.UNet2DModel
    unet = kind.from_pretrained(folder / "unet")
    spec = model.second.denoiser.spec
    size = (2 * model.second.config.denoiser.factor, 3 * model.second.config.denoiser.factor)
    x = torch.randn(1, model.autoencoder.latent_channels, *size, generator=generator)
    spatial = torch.randn(1, spec.spatial_channels, *size, generator=generator) if spec.spatial_channels else None
    tokens = torch.randn(1, 4, spec.token_dim, generator=generator) if spec.token_dim else None
    whole = x if spatial is None else torch.cat([x, spatial], 1)
    theirs = unet(whole, torch.tensor([70]), *([] if tokens is None else [tokens])).sample
    ours = model.second.denoiser(x, torch.tensor([70]), Condition(tokens=tokens, spatial=spatial))
    assert relative_error(theirs, ours) <= TOLERANCE
