"""Shapes, precision and the layers that no published model uses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sfumato.autoencoder.convnet import (
    AttentionKind,
    Downsample,
    GroupNorm,
    LinearAttention,
    ResidualBlock,
    SoftmaxAttention,
    Upsample,
)
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig
from sfumato.errors import UserError


@pytest.mark.parametrize(("levels", "attention"), [(1, "softmax"), (2, "linear"), (4, "none"), (6, "softmax")])
def test_every_factor_gives_the_image_back_in_shape(levels: int, attention: AttentionKind) -> None:
    config = AutoencoderConfig(
        image_channels=1,
        channels=8,
        channel_multipliers=(1,) * levels,
        blocks_per_level=1,
        attention_levels=(levels - 1,),
        attention=attention,
        latent_channels=5,
        embed_channels=3,
    )
    model = Autoencoder(config)
    f = 2 ** (levels - 1)
    assert model.factor == config.factor == f
    assert model.latent_channels == 3
    image = torch.rand(2, 1, 3 * f, 4 * f) * 2 - 1
    encoding = model.encode(image)
    assert encoding.z.shape == (2, 3, 3, 4)
    assert model.decode(encoding.z).shape == image.shape


def test_the_kind_of_attention_decides_the_layers() -> None:
    def attention_layers(kind: AttentionKind) -> list[str]:
        config = AutoencoderConfig(
            channels=32, channel_multipliers=(1, 2), attention_levels=(1,), attention=kind, blocks_per_level=1
        )
        return [type(m).__name__ for m in Autoencoder(config).encoder.modules() if "Attention" in type(m).__name__]

    assert attention_layers("softmax") == ["SoftmaxAttention"] * 2
    assert attention_layers("linear") == ["LinearAttention"] * 2
    assert attention_layers("none") == []


def test_softmax_attention_is_attention() -> None:
    torch.manual_seed(0)
    layer = SoftmaxAttention(8).double()
    x = torch.randn(3, 8, 4, 5, dtype=torch.float64)
    h = layer.norm(x)
    q, k, v = (conv(h).flatten(2) for conv in (layer.q, layer.k, layer.v))  # (B, C, N)
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 8**0.5, dim=2)
    expected = x + layer.proj_out(torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))
    assert torch.allclose(layer(x), expected)
    assert torch.allclose(layer(x.to(memory_format=torch.channels_last)), expected)


def test_linear_attention_is_its_formula() -> None:
    torch.manual_seed(0)
    layer = LinearAttention(6).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    q, k, v = layer.to_qkv(x).flatten(2).chunk(3, dim=1)
    context = torch.einsum("bdn,ben->bde", k.softmax(dim=2), v)
    expected = layer.to_out(torch.einsum("bde,bdn->ben", context, q).reshape(x.shape))
    assert torch.allclose(layer(x), expected)


def test_downsampling_pads_right_and_bottom() -> None:
    layer = Downsample(1)
    nn.init.zeros_(layer.conv.bias)
    nn.init.zeros_(layer.conv.weight)
    layer.conv.weight.data[0, 0, 2, 2] = 1.0  # looks two to the right and down
    x = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert layer(x)[0, 0].tolist() == [[14.0, 16.0, 0.0], [0.0, 0.0, 0.0]]


def test_reflected_layers_see_the_mirrored_image() -> None:
    """Padding the image by mirroring it first, and cutting the border off, gives the same, whatever the layer."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 6, 10, generator=g)
    block, down, up = ResidualBlock(4, 4, groups=1, padding="reflect"), Downsample(4, "reflect"), Upsample(4, "reflect")
    for layer, before in ((block.conv1, x), (block.conv2, x), (up.conv, x)):
        expected = F.conv2d(F.pad(before, (1, 1, 1, 1), "reflect"), layer.weight, layer.bias)
        torch.testing.assert_close(layer(before), expected)
    mirrored = torch.cat([x, x[:, :, -2:-1]], dim=2)
    mirrored = torch.cat([mirrored, mirrored[..., -2:-1]], dim=3)
    torch.testing.assert_close(down(x), F.conv2d(mirrored, down.conv.weight, down.conv.bias, stride=2))


def test_reflection_reaches_every_convolution() -> None:
    """The layers of a constant image stay constant: nothing tells the network where the border is."""
    config = AutoencoderConfig(channels=8, channel_multipliers=(1, 2), blocks_per_level=1, norm_groups=1)
    image = torch.full((1, 3, 16, 12), 0.3)
    for padding, constant in (("zeros", False), ("reflect", True)):
        torch.manual_seed(0)
        network = Autoencoder(config.model_copy(update={"padding": padding}))
        z = network.encode(image).z
        output = network.decode(torch.full_like(z, 0.7))
        for found in (z, output):
            assert (found.std(dim=(2, 3)).max().item() < 1e-6) == constant
    with pytest.raises(UserError, match=r"leaves a latent of 1x6, and padding: reflect needs at least 2"):
        network.encode(image[:, :, :2])
    with pytest.raises(UserError, match="give an image of 4 pixels or more"):
        network.decode(z[..., :1])


@pytest.mark.parametrize(("channels", "groups"), [(32, 32), (64, 32), (48, 16), (24, 8), (7, 1)])
def test_group_count(channels: int, groups: int) -> None:
    assert GroupNorm(channels).num_groups == groups


def test_norm_statistics_are_float32_in_half_precision() -> None:
    norm = GroupNorm(32)
    # About 300 a step of bfloat16 is 2, and the squares lose their digits: only float32 statistics give unit variance.
    x = (300 + 20 * torch.randn(2, 32, 16, 24, generator=torch.Generator().manual_seed(0))).bfloat16()
    expected = norm(x.float())
    assert (norm(x).float() - expected).abs().max() < 0.02
    assert norm.bfloat16()(x).dtype == torch.bfloat16


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bf16_autocast_trains(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1))
    model = model.to(memory_format=memory_format)
    image = torch.rand(2, 3, 16, 24).to(memory_format=memory_format)
    exact = model.decode(model.encode(image).z)
    with torch.autocast("cpu", torch.bfloat16):
        encoding = model.encode(image)
        decoded = model.decode(encoding.z)
    assert encoding.z.dtype == encoding.regulariser.dtype == torch.float32
    assert decoded.dtype == torch.bfloat16
    assert (decoded.float() - exact).abs().max() < 0.05 * exact.abs().max()
    (decoded.float().square().mean() + encoding.regulariser).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_channels_last_stays_channels_last() -> None:
    model = Autoencoder(AutoencoderConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1))
    model = model.to(memory_format=torch.channels_last)
    seen: list[bool] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.in_channels > 4:
            module.register_forward_pre_hook(
                lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
            )
    model.decode(model.encode(torch.rand(2, 3, 16, 24).to(memory_format=torch.channels_last)).z)
    assert len(seen) > 10
    assert all(seen)
