"""Models of diffusers in and out: the same numbers, the same bytes, and the pipelines run."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sfumato
from parity import relative_error
from sfumato.conditioning.condition import Condition
from sfumato.errors import UserError
from sfumato.interop.diffusers_component import Component, open_component
from sfumato.interop.diffusers_export import export_diffusers
from sfumato.interop.diffusers_import import import_autoencoder, import_diffusers, import_unet
from sfumato.interop.source import open_checkpoint

diffusers = pytest.importorskip("diffusers")
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def filled(module: nn.Module) -> nn.Module:
    """Weights that leave no layer at zero, from a fixed seed."""
    generator = torch.Generator().manual_seed(5)
    for name, p in module.named_parameters():
        scale = 1 / max(p[0].numel(), 1) ** 0.5 if p.dim() > 1 else 0.1
        noise = torch.randn(p.shape, generator=generator) * scale
        p.data = noise + (1.0 if p.dim() == 1 and name.endswith("weight") else 0.0)
    return module.eval()


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autoencoder_kl(**options: Any) -> Any:
    settings = {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 32,
        "scaling_factor": 0.18215,
    }
    return filled(diffusers.AutoencoderKL(**{**settings, **options}))


def vq_model() -> Any:
    return filled(
        diffusers.VQModel(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=3,
            num_vq_embeddings=37,
            vq_embed_dim=5,
            sample_size=16,
            scaling_factor=0.7,
        )
    )


PLAIN: dict[str, dict[str, Any]] = {
    "conv": {},
    "one head": {"attention_head_dim": None},
    "residual": {
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
    },
    "classes": {"num_class_embeds": 7},
}


def unet_plain(**options: Any) -> Any:
    settings = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (32, 96),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 16,
        "layers_per_block": 2,
        "norm_eps": 1e-5,
    }
    return filled(diffusers.UNet2DModel(**{**settings, **options}))


CONDITIONED: dict[str, dict[str, Any]] = {
    "heads": {"attention_head_dim": 4},
    "head width, linear": {"attention_head_dim": (1, 2, 2), "use_linear_projection": True},
    "deep": {"transformer_layers_per_block": 2, "attention_head_dim": 2},
    "nine channels": {"in_channels": 9, "attention_head_dim": 4},
}


def unet_conditioned(**options: Any) -> Any:
    settings = {
        "sample_size": 8,
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
        "layers_per_block": 2,
    }
    return filled(diffusers.UNet2DConditionModel(**{**settings, **options}))


def same_tensors(a: Path, b: Path) -> bool:
    first, second = open_checkpoint(a).tensors, open_checkpoint(b).tensors
    return set(first) == set(second) and all(torch.equal(first[key].load(), second[key].load()) for key in first)


WEIGHTS = "diffusion_pytorch_model.safetensors"


# -- autoencoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_autoencoder_kl(tmp_path: Path, half: bool) -> None:
    theirs = autoencoder_kl()
    if half:
        theirs = theirs.half()
    theirs.save_pretrained(tmp_path / "theirs")
    model = sfumato.load(import_diffusers(tmp_path / "theirs", tmp_path / "ours").folder)
    theirs = theirs.float()
    image, z = gaussian(2, 3, 32, 48), gaussian(2, 4, 8, 12)
    posterior = theirs.encode(image).latent_dist
    assert relative_error(model.autoencoder.encode(image).z, posterior.mean) <= TOLERANCE
    assert relative_error(model.autoencoder.encode(image).moments[:, 4:], posterior.logvar) <= TOLERANCE
    assert relative_error(model.autoencoder.decode(z), theirs.decode(z).sample) <= TOLERANCE
    assert export_diffusers(tmp_path / "ours", tmp_path / "back") == ()
    assert same_tensors(tmp_path / "theirs" / WEIGHTS, tmp_path / "back" / WEIGHTS)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "back").float()
    assert torch.equal(again.decode(z).sample, theirs.decode(z).sample)


def test_autoencoder_kl_at_full_size() -> None:
    """The published kl-f8, which is also Stable Diffusion's: 83.7 million parameters, in memory."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    theirs = autoencoder_kl(block_out_channels=(128, 256, 512, 512), **blocks)
    tensors = {key: InMemory(value) for key, value in theirs.state_dict().items()}
    ours = import_autoencoder(Component(Path("full size"), dict(theirs.config), tensors))
    assert sum(p.numel() for p in ours.parameters()) == pytest.approx(83.65e6, rel=1e-3)
    image, z = gaussian(1, 3, 32, 64), gaussian(1, 4, 4, 8)
    assert relative_error(ours.encode(image).z, theirs.encode(image).latent_dist.mean) <= TOLERANCE
    assert relative_error(ours.decode(z), theirs.decode(z).sample) <= TOLERANCE


@dataclass
class InMemory:
    """A tensor in the place of one in a file."""

    tensor: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def load(self) -> Tensor:
        return self.tensor


def test_vq_model(tmp_path: Path) -> None:
    theirs = vq_model()
    theirs.save_pretrained(tmp_path / "theirs")
    model = sfumato.load(import_diffusers(tmp_path / "theirs", tmp_path / "ours").folder)
    image, z = gaussian(2, 3, 16, 24), gaussian(2, 5, 8, 12)
    assert relative_error(model.autoencoder.encode(image).moments, theirs.encode(image).latents) <= TOLERANCE
    assert relative_error(model.autoencoder.decode(z), theirs.decode(z).sample) <= TOLERANCE
    assert model.scaling.scale.tolist() == pytest.approx([0.7] * 5)
    export_diffusers(tmp_path / "ours", tmp_path / "back")
    assert same_tensors(tmp_path / "theirs" / WEIGHTS, tmp_path / "back" / WEIGHTS)


def test_old_names_of_attention_and_pickled_weights(tmp_path: Path) -> None:
    theirs = autoencoder_kl()
    theirs.save_pretrained(tmp_path / "theirs", safe_serialization=False)
    path = tmp_path / "theirs" / "diffusion_pytorch_model.bin"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = torch.load(path, weights_only=True)
    for new, before in old.items():
        state = {key.replace(new, before): value for key, value in state.items()}
    torch.save(state, path)
    model = sfumato.load(import_diffusers(tmp_path / "theirs", tmp_path / "ours").folder)
    z = gaussian(1, 4, 8, 8)
    assert relative_error(model.autoencoder.decode(z), theirs.decode(z).sample) <= TOLERANCE


# -- U-Nets -----------------------------------------------------------------------------------------------------------


def pipeline_folder(path: Path, unet: Any, vae: Any, name: str, **scheduler: Any) -> Path:
    """A pipeline folder as diffusers writes them."""
    unet.save_pretrained(path / "unet")
    vae.save_pretrained(path / name)
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False}
    settings |= {"set_alpha_to_one": False, "steps_offset": 1, **scheduler}
    diffusers.DDIMScheduler(**settings).save_pretrained(path / "scheduler")
    index = {
        "_class_name": "LDMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", type(unet).__name__],
        name: ["diffusers", type(vae).__name__],
    }
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def small_vae(channels: int) -> Any:
    return autoencoder_kl(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=channels,
        sample_size=16,
    )


@pytest.mark.parametrize("kind", sorted(PLAIN))
def test_unconditional_unet(kind: str, tmp_path: Path) -> None:
    theirs = unet_plain(**PLAIN[kind])
    source = pipeline_folder(tmp_path / "theirs", theirs, small_vae(3), "vqvae")
    model = sfumato.load(import_diffusers(source, tmp_path / "ours").folder)
    second = model.second
    assert second is not None
    x, t, label = gaussian(2, 3, 8, 16), torch.tensor([3, 907]), torch.tensor([6, 2])
    condition, extra = Condition(), {}
    if kind == "classes":
        assert second.conditioner is not None
        condition, extra = second.conditioner({"label": label}), {"class_labels": label}
    expected = theirs(x, t, **extra).sample
    assert relative_error(second.denoiser(x, t, condition), expected) <= TOLERANCE
    export_diffusers(tmp_path / "ours", tmp_path / "back")
    for part in ("unet", "vqvae"):
        assert same_tensors(source / part / WEIGHTS, tmp_path / "back" / part / WEIGHTS)
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "back" / "unet")
    assert torch.equal(again(x, t, **extra).sample, expected)
    if kind == "conv":
        images = [
            diffusers.DiffusionPipeline.from_pretrained(folder)(
                generator=torch.Generator().manual_seed(3), num_inference_steps=3, output_type="np"
            ).images
            for folder in (source, tmp_path / "back")
        ]
        assert (images[0] == images[1]).all()


@pytest.mark.parametrize("kind", sorted(CONDITIONED))
def test_conditioned_unet(kind: str, tmp_path: Path) -> None:
    theirs = unet_conditioned(**CONDITIONED[kind])
    theirs.save_pretrained(tmp_path / "unet")
    ours, table = import_unet(open_component(tmp_path / "unet"))
    assert table is None
    x, t, tokens = gaussian(2, theirs.config.in_channels, 8, 16), torch.tensor([3, 907]), gaussian(2, 5, 24, seed=1)
    spatial = x[:, 4:] if x.shape[1] > 4 else None
    made = ours(x[:, :4], t, Condition(tokens=tokens, spatial=spatial))
    assert relative_error(made, theirs(x, t, tokens).sample) <= TOLERANCE


def test_a_pipeline_with_tokens_comes_back(tmp_path: Path) -> None:
    source = pipeline_folder(
        tmp_path / "theirs",
        unet_conditioned(**CONDITIONED["heads"]),
        autoencoder_kl(),
        "vae",
        prediction_type="v_prediction",
    )
    result = import_diffusers(source, tmp_path / "ours")
    assert result.config.diffusion is not None
    assert result.config.diffusion.prediction == "v"
    assert result.config.image_size == (32, 32)
    assert any("ready-made tokens of width 24" in note for note in result.notes)
    export_diffusers(tmp_path / "ours", tmp_path / "back")
    for part in ("unet", "vae"):
        assert same_tensors(source / part / WEIGHTS, tmp_path / "back" / part / WEIGHTS)
    for name in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        assert json.loads((source / name).read_text()) == json.loads((tmp_path / "back" / name).read_text())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"beta_schedule": "scaled_linear"}, {"kind": "scaled-linear", "start": 0.0015, "end": 0.0195}),
        ({"beta_schedule": "linear"}, {"kind": "linear", "start": 0.0015, "end": 0.0195}),
        ({"beta_schedule": "squaredcos_cap_v2"}, {"kind": "cosine"}),
        ({"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}, {"zero_terminal_snr": True}),
    ],
)
def test_schedules_have_the_same_noise_levels(
    tmp_path: Path, schedule: dict[str, Any], expected: dict[str, Any]
) -> None:
    if schedule.get("rescale_betas_zero_snr"):
        schedule = {**schedule, "prediction_type": "v_prediction"}
    source = pipeline_folder(tmp_path / "theirs", unet_plain(), small_vae(3), "vqvae", **schedule)
    model = sfumato.load(import_diffusers(source, tmp_path / "ours").folder)
    assert model.second is not None
    assert expected.items() <= model.second.config.schedule.model_dump().items()
    theirs = diffusers.DDIMScheduler.from_pretrained(source / "scheduler").alphas_cumprod.double()
    alpha, _ = model.second.schedule((torch.arange(1000, dtype=torch.float64) + 1) / 1000)
    assert (alpha.square() - theirs).abs().max() <= 1e-6


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "relu"}, "act_fn = 'relu' has no counterpart"),
        ({"norm_num_groups": 24}, "norm_num_groups 24 does not divide"),
        ({"_class_name": "AutoencoderDC"}, "the autoencoder AutoencoderDC is not supported"),
        ({"down_block_types": ["Odd"] * 2}, "the block Odd has no counterpart"),
        ({"layers_per_block": 2}, "lacks the key 'encoder.down_blocks.0.resnets.1"),
        ({"block_out_channels": [32, 64]}, r"has shape \(32,.*requires \(64,"),
        ({"latent_channels": 5}, r"has shape \(.*requires \("),
    ],
)
def test_options_without_counterpart_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    small_vae(4).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        import_diffusers(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_a_network_alone_asks_for_its_pipeline(tmp_path: Path) -> None:
    unet_plain().save_pretrained(tmp_path / "unet")
    with pytest.raises(
        UserError, match="UNet2DModel is a network without its autoencoder: give the folder of the whole"
    ):
        import_diffusers(tmp_path / "unet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_incomplete_folders_are_named(tmp_path: Path) -> None:
    source = pipeline_folder(tmp_path / "theirs", unet_plain(), small_vae(3), "vqvae")
    (source / "unet" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"unet has no diffusion_pytorch_model\.safetensors or \.bin"):
        import_diffusers(source, tmp_path / "ours")
    (source / "vqvae" / "config.json").unlink()
    with pytest.raises(UserError, match="without autoencoder"):
        import_diffusers(source, tmp_path / "ours")
