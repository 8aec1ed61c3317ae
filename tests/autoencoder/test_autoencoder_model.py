"""The autoencoder's doors, its configuration, and another library's autoencoder with the same weights."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig, VQConfig
from sfumato.errors import UserError


def small(**changes: object) -> Autoencoder:
    torch.manual_seed(0)
    fields = {"channels": 32, "channel_multipliers": (1, 2), "blocks_per_level": 1, **changes}
    return Autoencoder(AutoencoderConfig.model_validate(fields)).eval()


def random_image(B: int = 3, H: int = 12, W: int = 20) -> Tensor:
    return torch.rand(B, 3, H, W, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_kl_latent_is_sampled_with_the_given_noise() -> None:
    model, image = small(latent_channels=5), random_image()
    noise = torch.randn(3, 5, 6, 10, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        encoding = model.encode(image, noise)
        mean = model.encode(image).z
    std = torch.exp(0.5 * encoding.moments[:, 5:])
    assert encoding.moments.shape == (3, 10, 6, 10)
    assert torch.allclose(encoding.z, mean + std * noise)
    assert torch.equal(model.latent_from_moments(encoding.moments), mean)
    assert torch.equal(model.latent_from_moments(encoding.moments, noise), encoding.z)


def test_vq_decodes_the_codes_from_either_latent() -> None:
    model, image = small(bottleneck=VQConfig(codes=50)), random_image()
    assert model.quantize is not None
    with torch.no_grad():
        model.quantize.embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
        encoding = model.encode(image)
        assert encoding.indices is not None
        assert encoding.indices.shape == (3, 6, 10)
        decoded = model.decode(encoding.z, quantize=False)
        assert not torch.allclose(model.decode(encoding.moments, quantize=False), decoded, atol=1e-3)
        for again in (
            model.decode(encoding.z),
            model.decode(model.latent_from_moments(encoding.moments)),
            model.decode_indices(encoding.indices),
        ):
            assert torch.allclose(again, decoded, atol=1e-5)
    with pytest.raises(ValueError, match="no codebook"):
        small().decode_indices(encoding.indices)


def test_gradients_reach_encoder_and_codebook() -> None:
    model, image = small(bottleneck=VQConfig(codes=50)), random_image()
    encoding = model.encode(image)
    (model.decode(encoding.z).square().mean() + encoding.regulariser).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.last_layer() is model.decoder.conv_out.weight


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match=r"image size 12x19 \(height x width\) is not a multiple of 2"):
        small().encode(random_image(W=19))


def test_a_half_precision_model_takes_float_images() -> None:
    model = small().bfloat16()
    with torch.no_grad():
        encoding = model.encode(random_image())
        assert encoding.z.dtype == torch.float32
        assert model.decode(encoding.z).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_levels": (0, 4)}, r"attention_levels \[4\] do not exist: channel_multipliers has levels 0 to 3"),
        ({"channel_multipliers": (1, 0)}, r"channel_multipliers \(1, 0\) must be between 1 and 1024"),
        ({"channel_multipliers": ()}, "channel_multipliers"),
        ({"bottleneck": {"kind": "vae"}}, "bottleneck"),
        ({"chanels": 3}, "chanels"),
    ],
)
def test_wrong_configurations(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AutoencoderConfig.model_validate(fields)


def theirs_to_ours(key: str, levels: int) -> str:
    """diffusers' name of a parameter -> ours."""
    for level in range(levels):
        key = key.replace(f"down_blocks.{level}.resnets.", f"down.{level}.block.")
        key = key.replace(f"down_blocks.{level}.attentions.", f"down.{level}.attn.")
        key = key.replace(f"down_blocks.{level}.downsamplers.0.", f"down.{level}.downsample.")
        key = key.replace(f"up_blocks.{level}.resnets.", f"up.{levels - 1 - level}.block.")
        key = key.replace(f"up_blocks.{level}.upsamplers.0.", f"up.{levels - 1 - level}.upsample.")
    for theirs, ours in [
        ("mid_block.resnets.0.", "mid.block_1."),
        ("mid_block.resnets.1.", "mid.block_2."),
        ("mid_block.attentions.0.", "mid.attn_1."),
        ("group_norm.", "norm."),
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("to_out.0.", "proj_out."),
        ("conv_norm_out.", "norm_out."),
        ("conv_shortcut.", "nin_shortcut."),
    ]:
        key = key.replace(theirs, ours)
    return key


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_agrees_with_diffusers(kind: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    shape = {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 32,
    }
    if kind == "kl":
        other = diffusers.AutoencoderKL(**shape).eval()
    else:
        other = diffusers.VQModel(**shape, num_vq_embeddings=40, vq_embed_dim=4).eval()
    ours = small(channel_multipliers=(1, 1, 2), bottleneck={"kind": kind} | ({"codes": 40} if kind == "vq" else {}))
    target = ours.state_dict()
    renamed = {theirs_to_ours(k, 3): v for k, v in other.state_dict().items()}
    ours.load_state_dict({k: v.reshape(target[k].shape) for k, v in renamed.items()})
    image = random_image(2, 16, 24)
    with torch.no_grad():
        if kind == "kl":
            posterior = other.encode(image).latent_dist
            encoding = ours.encode(image)
            assert torch.allclose(encoding.moments, torch.cat([posterior.mean, posterior.logvar], 1), atol=1e-5)
            assert torch.allclose(encoding.regulariser, posterior.kl().mean(), rtol=1e-4)
            assert torch.allclose(ours.decode(encoding.z), other.decode(posterior.mean).sample, atol=1e-5)
        else:
            latent = other.encode(image).latents
            encoding = ours.encode(image)
            assert torch.allclose(encoding.moments, latent, atol=1e-5)
            assert torch.allclose(ours.decode(latent), other.decode(latent).sample, atol=1e-5)
