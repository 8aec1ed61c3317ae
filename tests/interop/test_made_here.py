"""Models made here, to the original code and to diffusers and back: the same function of the same inputs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato
from parity import relative_error
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.condition import Condition
from sfumato.errors import UserError
from sfumato.interop.convert import export_model, import_model
from sfumato.interop.original_export import export_original
from sfumato.model import LatentDiffusion, ModelConfig, build

KL = {
    "channels": 32,
    "channel_multipliers": [1, 2],
    "blocks_per_level": 1,
    "latent_channels": 3,
    "attention_levels": [1],
}
VQ = {**KL, "embed_channels": 2, "bottleneck": {"kind": "vq", "codes": 11}}
UNET = {
    "channels": 32,
    "channel_multipliers": [1, 2],
    "blocks_per_level": 1,
    "attention_factors": [2],
    "head_channels": 16,
}
LINEAR = {"kind": "scaled-linear", "steps": 1000, "start": 0.0015, "end": 0.0195}
CONDITIONERS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "class": {"kind": "class", "classes": 5, "dim": 24},
    "vector": {"kind": "class", "classes": 5, "dim": 128, "output": "vector", "null": "none"},
    "text": {
        "kind": "text",
        "dim": 24,
        "depth": 2,
        "max_tokens": 9,
        "vocabulary": 30522,
        "tokenizer": "none",
        "mask_padding": False,
    },
    "layout": {
        "kind": "layout",
        "classes": 7,
        "objects": 3,
        "vocabulary": 60,
        "dim": 24,
        "depth": 1,
        "mask_padding": False,
    },
    "semantic": {"kind": "semantic", "classes": 6, "channels": 2, "stages": 1},
    "image": {"kind": "image", "channels": 3},
    "embeddings": {"kind": "embeddings", "dim": 24},
    "hybrid": {
        "kind": "composite",
        "parts": {
            "concat": {"kind": "image", "field": "concat", "channels": 2},
            "tokens": {"kind": "embeddings", "dim": 24},
        },
    },
    "inpainting": {
        "kind": "composite",
        "parts": {
            "masked_image": {"kind": "image", "field": "masked_latent", "channels": 3},
            "mask": {"kind": "image", "field": "mask", "channels": 1},
        },
    },
}
FIELDS = {
    "label": torch.tensor([3, 1]),
    "tokens": torch.tensor([[101, 7, 102, 0, 0, 0, 0, 0, 0]] * 2),
    "layout_tokens": torch.arange(11).repeat(2, 1),
    "map": torch.arange(2 * 16 * 16).reshape(2, 16, 16) % 6,
    "low_resolution": torch.ones(2, 3, 8, 8),
    "embeddings": torch.linspace(-1, 1, 2 * 4 * 24).reshape(2, 4, 24),
    "concat": torch.ones(2, 2, 8, 8),
    "masked_latent": torch.ones(2, 3, 8, 8),
    "mask": torch.zeros(2, 1, 8, 8),
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def make(
    folder: Path, autoencoder: dict[str, Any], diffusion: dict[str, Any] | None, scaling: Scaling
) -> LatentDiffusion:
    """A model folder with weights that leave no layer at zero."""
    raw = {"autoencoder": autoencoder, "image_size": [16, 16], "diffusion": diffusion}
    torch.manual_seed(3)
    model = build(ModelConfig.model_validate(raw))
    for part in model.parts().values():
        for p in part.parameters():
            p.add_(torch.randn(p.shape) * 0.05)
    model = LatentDiffusion(model.config, model.autoencoder, scaling, model.second)
    model.save(folder)
    return sfumato.load(folder)


def second(conditioner: dict[str, Any], **options: Any) -> dict[str, Any]:
    vector = {"vector_projection": "none"} if conditioner.get("output") == "vector" else {}
    return {"denoiser": {**UNET, **vector}, "conditioner": conditioner, "schedule": LINEAR, **options}


def outputs(model: LatentDiffusion) -> dict[str, Tensor]:
    """The outputs of the two stages and the conditioner for fixed inputs, in model latents."""
    generator = torch.Generator().manual_seed(9)
    image = torch.randn(2, 3, 16, 16, generator=generator)
    channels = model.autoencoder.latent_channels
    latent = torch.randn(2, channels, 8, 8, generator=generator)
    out = {
        "encode": model.scaling.to_model(model.autoencoder.encode(image, latent).moments[:, :channels]),
        "decode": model.autoencoder.decode(model.scaling.to_raw(latent)),
    }
    if model.second is not None:
        conditioner = model.second.conditioner
        condition = Condition() if conditioner is None else conditioner(FIELDS)
        out["predict"] = model.second.denoiser(latent, torch.tensor([5, 700]), condition)
        out["alpha"] = model.second.schedule(torch.tensor([0.1, 0.9]))[0]
    return out


def assert_same(a: LatentDiffusion, b: LatentDiffusion, tolerance: float = 0.0) -> None:
    first, other = outputs(a), outputs(b)
    assert first.keys() == other.keys()
    for name, value in first.items():
        assert relative_error(other[name], value) <= tolerance, name


@pytest.mark.parametrize("autoencoder", [KL, VQ], ids=["kl", "vq"])
@pytest.mark.parametrize("format", ["original", "diffusers"])
def test_autoencoders(autoencoder: dict[str, Any], format: Any, tmp_path: Path) -> None:
    model = make(
        tmp_path / "ours",
        autoencoder,
        None,
        Scaling(torch.zeros(3 if autoencoder is KL else 2), torch.ones(3 if autoencoder is KL else 2)),
    )
    assert export_model(tmp_path / "ours", tmp_path / "out", format) == ()
    source = tmp_path / "out" / "model.ckpt" if format == "original" else tmp_path / "out"
    assert_same(model, sfumato.load(import_model(source, tmp_path / "back").folder))


@pytest.mark.parametrize("kind", sorted(CONDITIONERS))
def test_diffusion_models_through_the_original_layout(kind: str, tmp_path: Path) -> None:
    scaling = Scaling.from_factor(3, 0.37)
    model = make(tmp_path / "ours", KL, second(CONDITIONERS[kind]), scaling)
    result = export_original(tmp_path / "ours", tmp_path / "out")
    assert result.notes == ()
    torch.load(result.checkpoint, weights_only=True)  # nothing but tensors and plain values
    back = import_model(result.checkpoint, tmp_path / "back")
    assert not any("no known use" in note for note in back.notes)
    assert_same(model, sfumato.load(back.folder))


@pytest.mark.parametrize("kind", ["none", "vector", "image", "embeddings", "hybrid", "inpainting"])
def test_diffusion_models_through_diffusers(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    model = make(tmp_path / "ours", KL, second(CONDITIONERS[kind], prediction="v"), Scaling.from_factor(3, 0.37))
    assert export_model(tmp_path / "ours", tmp_path / "out", "diffusers") == ()
    assert_same(model, sfumato.load(import_model(tmp_path / "out", tmp_path / "back").folder))


@pytest.mark.parametrize("kind", ["class", "text", "semantic", "layout"])
def test_conditioners_that_diffusers_lacks_come_along_and_are_named(kind: str, tmp_path: Path) -> None:
    model = make(tmp_path / "ours", KL, second(CONDITIONERS[kind]), Scaling.from_factor(3, 1.0))
    (note,) = export_model(tmp_path / "ours", tmp_path / "out", "diffusers")
    assert "diffusers has no class for this model's" in note
    assert_same(model, sfumato.load(import_model(tmp_path / "out", tmp_path / "back").folder))


@pytest.mark.parametrize("format", ["original", "diffusers"])
def test_a_scaling_per_channel_is_folded_into_the_autoencoder(format: Any, tmp_path: Path) -> None:
    scaling = Scaling(torch.tensor([0.3, -1.0, 0.1]), torch.tensor([0.5, 2.0, 1.25]))
    model = make(tmp_path / "ours", KL, second({"kind": "none"}), scaling)
    notes = export_model(tmp_path / "ours", tmp_path / "out", format)
    assert any("folded" in note for note in notes)
    source = tmp_path / "out" / "model.ckpt" if format == "original" else tmp_path / "out"
    back = sfumato.load(import_model(source, tmp_path / "back").folder)
    assert back.scaling.scale.tolist() == [1.0] * 3
    assert_same(model, back, 1e-5)
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before, after = model.autoencoder.encode(image).moments, back.autoencoder.encode(image).moments
    assert relative_error(after[:, 3:], before[:, 3:] + 2 * scaling.scale.log()[None, :, None, None]) <= 1e-5


@pytest.mark.parametrize(
    ("autoencoder", "diffusion", "scaling", "format", "message"),
    [
        (
            VQ,
            second({"kind": "none"}),
            Scaling(torch.zeros(2), torch.tensor([1.0, 2.0])),
            "original",
            "with a codebook",
        ),
        (
            {**VQ, "bottleneck": {"kind": "vq", "codes": 11, "normalise": True}},
            None,
            Scaling.from_factor(2, 1.0),
            "original",
            "unit sphere",
        ),
        ({**KL, "attention": "linear"}, None, Scaling.from_factor(3, 1.0), "diffusers", "attention linear cannot"),
        (
            KL,
            second({"kind": "none"}, prediction="flow", schedule={"kind": "flow"}),
            Scaling.from_factor(3, 1.0),
            "original",
            "a flow model",
        ),
        (
            KL,
            second({"kind": "none"}, prediction="flow", schedule={"kind": "flow"}),
            Scaling.from_factor(3, 1.0),
            "diffusers",
            "predicts flow",
        ),
        (
            KL,
            second({**CONDITIONERS["text"], "heads": 4}),
            Scaling.from_factor(3, 1.0),
            "original",
            "4 heads of 64 cannot be exported",
        ),
        (
            KL,
            {
                **second({"kind": "none"}),
                "denoiser": {**UNET, "head_channels": None, "heads": 2, "attention_factors": [1, 2]},
            },
            Scaling.from_factor(3, 1.0),
            "diffusers",
            "heads of one width",
        ),
        (
            KL,
            {**second({"kind": "class", "classes": 5, "dim": 7, "output": "vector"}), "denoiser": UNET},
            Scaling.from_factor(3, 1.0),
            "original",
            "MLP",
        ),
        (KL, second({"kind": "crop"}), Scaling.from_factor(3, 1.0), "original", "conditioned on the crop of the"),
        (KL, second({"kind": "crop"}), Scaling.from_factor(3, 1.0), "diffusers", "conditioned on the crop of the"),
        (KL, second({"kind": "crop"}), Scaling.from_factor(3, 1.0), "onnx", "cannot be exported to ONNX"),
    ],
)
def test_what_a_format_cannot_say_is_refused(
    autoencoder: dict[str, Any], diffusion: Any, scaling: Scaling, format: Any, message: str, tmp_path: Path
) -> None:
    make(tmp_path / "ours", autoencoder, diffusion, scaling)
    with pytest.raises(UserError, match=message):
        export_model(tmp_path / "ours", tmp_path / "out", format)


def test_sources_are_recognised(tmp_path: Path) -> None:
    make(tmp_path / "ours", KL, None, Scaling.from_factor(3, 1.0))
    with pytest.raises(UserError, match="already a model folder"):
        import_model(tmp_path / "ours", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a diffusers folder"):
        import_model(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="is not a file"):
        import_model(tmp_path / "absent.ckpt", tmp_path / "out")
